"""Gemm and MatMul: affines behind them, and one behind the other."""

from __future__ import annotations

__all__ = ["GRAPHS"]

from tests.collection.base import collapse, dear, keep
from tests.collection.reasons import AXIS, COST, DATA

_V = "float[n,3] x"
_T = "float[n,s,3] x"

_AFFINES = [
    collapse("matrix: gemm, bn", "c = Gemm(x, W, b) y = bn(c)", "Gemm:1", "W:3,4 b:4 bn:4",
             x=_V),
    collapse("matrix: gemm without C, bn", "c = Gemm(x, W) y = bn(c)", "Gemm:1",
             "W:3,4 bn:4", x=_V),
    collapse("matrix: gemm of alpha, beta and transB, bn",
             "c = Gemm<alpha=0.5, beta=2.0, transB=1>(x, W, b) y = bn(c)", "Gemm:1",
             "W:4,3 b:4 bn:4", x=_V),
    collapse("matrix: gemm of beta 0, mul", "c = Gemm<beta=0.0>(x, W, b) y = Mul(c, k)",
             "Gemm:1", "W:3,4 b:4 k:4", x=_V),
    collapse("matrix: gemm of transA, scale and shift", "c = Gemm<transA=1>(x, W, b) "
             "d = Mul(k, c) y = Sub(d, j)", "Gemm:1", "W:3,4 b:1,4 k:4 j:1,4",
             x="float[3,n] x"),
    collapse("matrix: gemm of a scalar C, mul", "c = Gemm(x, W, b) y = Mul(c, k)", "Gemm:1",
             "W:3,4 b: k:4", x=_V),
    collapse("matrix: gemm of C (1,), bn", "c = Gemm(x, W, b) y = bn(c)", "Gemm:1",
             "W:3,4 b:1 bn:4", x=_V),
    collapse("matrix: gemm of C (M,N), mul", "c = Gemm(x, W, b) y = Mul(c, k)",
             "Gemm:1", "W:3,4 b:2,4 k:4", x="float[2,3] x"),
    collapse("matrix: gemm of C (M,1), scalar", "c = Gemm<beta=3.0>(x, W, b) y = Mul(c, k)",
             "Gemm:1", "W:3,4 b:2,1 k:", x="float[2,3] x"),
    collapse("matrix: gemm, neg, constant minus", "c = Gemm(x, W, b) d = Neg(c) y = Sub(k, d)",
             "Gemm:1", "W:3,4 b:4 k:4", x=_V),
    collapse("matrix: matmul, add, bn", "c = MatMul(x, W) d = Add(b, c) y = bn(d)",
             "Gemm|MatMul:1 Add:1", "W:3,4 b:4 bn:4", x=_V),
    collapse("matrix: matmul, view, bn, view", "c = MatMul(x, W) f = Reshape(c, flat) "
             "g0 = bn(f) s0 = Shape(c) y = Reshape(g0, s0)", "MatMul|Gemm:1 Add:1",
             "W:3,4 flat:2:int64 bn:4", x=_T, flat=[-1, 4]),
    collapse("matrix: matmul, view, bn, fixed view", "c = MatMul(x, W) f = Flatten<axis=2>(c) "
             "d = bn(f) y = Reshape(d, back)", "MatMul|Gemm:1 Add:1",
             "W:3,4 back:3:int64 bn:4", x="float[n,5,3] x", back=[-1, 5, 4]),
    collapse("matrix: rank 3, scale, shift", "c = MatMul(x, W) d = Mul(c, k) y = Add(d, b)",
             "MatMul:1 Add:1", "W:3,4 k:4 b:1,1,4", x=_T),
    collapse("matrix: rank 4, scale", "c = MatMul(x, W) y = Div(c, k)", "MatMul:1",
             "W:3,4 k:1,1,1,4", x="float[n,2,s,3] x"),
    collapse("matrix: shift, then scale", "c = MatMul(x, W) d = Add(c, b) y = Mul(d, k)",
             "MatMul:1 Add:1", "W:3,4 k: b:4", x=_T),
    collapse("matrix: matmul, transpose, bn", "c = MatMul(x, W) "
             "t = Transpose<perm=[0,2,1]>(c) y = bn(t)", "MatMul:1 Add:1", "W:3,4 bn:4", x=_T),
    collapse("matrix: left operand, scale of rows", "c = MatMul(A, x) y = Mul(c, k)",
             "MatMul:1", "A:5,4 k:5,1", x="float[n,4,s] x"),
    collapse("matrix: a place's constant, then scale", "c = MatMul(x, W) d = Add(c, P) "
             "y = Mul(d, k)", "MatMul:1 Add:1", "W:3,4 P:6,4 k:4", x="float[n,6,3] x"),
    collapse("matrix: vector", "c = MatMul(x, W) y = Mul(c, k)", "MatMul:1", "W:3,4 k:4",
             x="float[3] x"),
    collapse("matrix: scale of the head, gemm", "a = Sigmoid(x) d = Mul(a, k) e = Sub(d, j) "
             "y = Gemm<transB=1, alpha=2.0>(e, W, b)", "Gemm:1", "W:4,3 k:3 j:3 b:4", x=_V),
    collapse("matrix: conv, flatten, bn", "c = Conv(x, W) p = GlobalMaxPool(c) "
             "q = Conv(p, V) f = Flatten(q) y = bn(f)", "Conv|Gemm:2",
             "W:4,3,1,1 V:5,4,1,1 bn:5"),
    collapse("matrix: conv, view, bn", "c = Conv<strides=[2,2]>(x, W) r = Reshape(c, sh) "
             "y = bn(r)", "Conv:1", "W:4,3,2,2 sh:3:int64 bn:4", sh=[0, 4, -1]),
    collapse("matrix: conv, channels last, scale, back", "c = Conv(x, W) "
             "t = Transpose<perm=[0,2,3,1]>(c) d = Mul(t, k) e = Add(d, j) "
             "y = Transpose<perm=[0,3,1,2]>(e)", "Conv:1", "W:4,3,1,1 k:4 j:4"),
    collapse("matrix: conv, squeeze, bn", "p = GlobalMaxPool(x) c = Conv(p, W) "
             "z = Squeeze(c, ax) y = bn(z)", "Conv|Gemm:1", "W:4,3,1,1 ax:2:int64 bn:4",
             ax=[2, 3]),
    collapse("matrix: conv, view, transpose, scale", "c = Conv(x, W, b) r = Reshape(c, sh) "
             "t = Transpose<perm=[0,2,1]>(r) y = Mul(t, k)", "Conv:1",
             "W:4,3,1,1 b:4 sh:3:int64 k:4", sh=[0, 4, -1]),
]  # fmt: skip

_CHAINS = [
    collapse("matrix: gemm, gemm", "c = Gemm(x, U, p) y = Gemm(c, V, q)", "Gemm:1",
             "U:3,16 p:16 V:16,2 q:2", x=_V),
    collapse("matrix: gemm, gemm, all attributes", "c = Gemm<transB=1, alpha=2.0, beta=0.5>"
             "(x, U, p) y = Gemm<alpha=-0.5, beta=3.0, transB=1>(c, V, q)", "Gemm:1",
             "U:16,3 p:16 V:2,16 q:", x=_V),
    collapse("matrix: gemm, bn, gemm, bn", "c = Gemm(x, U) d = bn1(c) e = Gemm(d, V, q) "
             "y = bn2(e)", "Gemm:1", "U:3,16 bn1:16 V:16,2 q:2 bn2:2", x=_V),
    collapse("matrix: matmul, add, matmul, add", "c = MatMul(x, U) d = Add(c, p) "
             "e = MatMul(d, V) y = Add(e, q)", "MatMul:1 Add:1", "U:3,16 p:16 V:16,2 q:2",
             x=_T),
    collapse("matrix: three matmuls of rank 4", "c = MatMul(x, U) d = MatMul(c, V) "
             "y = MatMul(d, T)", "MatMul:1", "U:3,8 V:8,8 T:8,2", x="float[n,2,s,3] x"),
    collapse("matrix: places' constants between", "c = MatMul(x, U) d = Add(c, P) "
             "y = MatMul(d, V)", "MatMul:1 Add:1", "U:3,16 P:6,16 V:16,2",
             x="float[n,6,3] x"),
    collapse("matrix: left, left", "c = MatMul(A, x) y = MatMul(B, c)", "MatMul:1",
             "A:16,4 B:2,16", x="float[n,4,s] x"),
    collapse("matrix: matmul, gemm", "c = MatMul(x, U) y = Gemm(c, V, q)",
             "Gemm:1", "U:3,16 V:16,2 q:2", x=_V),
    collapse("matrix: gemm, matmul", "c = Gemm(x, U, p) y = MatMul(c, V)",
             "Gemm:1", "U:3,16 p:16 V:16,2", x=_V),
    collapse("matrix: bottleneck whose whole is cheaper", "a = Gemm(x, A) b = Gemm(a, B) "
             "y = Gemm(b, C)", "Gemm:1", "A:16,2 B:2,16 C:16,2", x="float[n,16] x"),
    collapse("matrix: dropout and identity between", "c = Gemm(x, U, p) d = Dropout(c) "
             "e = Identity(d) y = Gemm(e, V)", "Gemm:1", "U:3,16 p:16 V:16,2", x=_V),
    collapse("matrix: two heads' mean", "a = Gemm<transB=1>(x, A, p) b = Gemm<transB=1>"
             "(x, B, q) c = Add(a, b) y = Div(c, two)", "Gemm:1", "A:4,3 p:4 B:4,3 q:4 two:",
             two=2, x=_V),
    collapse("matrix: two heads with norms, mean", "f = bn1(x) h0 = bn2(x) "
             "a = Gemm(f, A, p) b = Gemm(h0, B, q) c = Add(a, b) y = Mul(c, half)", "Gemm:1",
             "bn1:3 bn2:3 A:3,4 p:4 B:3,4 q:4 half:", half=0.5, x=_V),
    collapse("matrix: low rank beside", "a = MatMul(x, W) b = MatMul(x, A) c = MatMul(b, B) "
             "d = Mul(c, k) y = Add(a, d)", "MatMul:1", "W:8,8 A:8,1 B:1,8 k:",
             x="float[n,s,8] x"),
    collapse("matrix: low rank beside a gemm", "a = Gemm<transB=1>(x, W, p) b = MatMul(x, A) "
             "c = MatMul(b, B) y = Add(a, c)", "Gemm:1", "W:8,8 p:8 A:8,1 B:1,8",
             x="float[n,8] x"),
    collapse("matrix: identity beside", "a = MatMul(x, W) y = Add(x, a)", "MatMul:1",
             "W:3,3", x=_T),
    collapse("matrix: a difference of products", "a = MatMul(x, A) b = MatMul(x, B) "
             "y = Sub(a, b)", "MatMul:1", "A:3,4 B:3,4", x=_T),
]  # fmt: skip

_TEMPTING = [
    keep("matrix: left and right", "c = MatMul(A, x) y = MatMul(c, W)", None, "A:2,4 W:3,2",
         x="float[n,4,3] x"),
    keep("matrix: left plus right", "c = MatMul(A, x) d = MatMul(x, W) y = Add(c, d)", None,
         "A:4,4 W:4,4", x="float[n,4,4] x"),
    keep("matrix: left operand, scale of columns", "c = MatMul(A, x) y = Mul(c, k)", AXIS,
         "A:5,4 k:4", x="float[n,4,4] x"),
    keep("matrix: right operand, scale of rows", "c = MatMul(x, W) y = Mul(c, k)", AXIS,
         "W:3,4 k:4,1", x="float[n,4,3] x"),
    keep("matrix: rank 3, bn over places", "c = MatMul(x, W) y = bn(c)", AXIS, "W:3,6 bn:6",
         x="float[n,6,3] x"),
    keep("matrix: a batch of weights", "c = MatMul(x, U) y = MatMul(c, V)", None,
         "U:2,8,2 V:2,2,8", x="float[2,s,8] x"),
    keep("matrix: both operands data", "t = Transpose<perm=[0,2,1]>(x) y = MatMul(x, t)", None,
         "", x=_T),
    keep("matrix: scores of attention", "q = MatMul(x, Q) k = MatMul(x, K) "
         "t = Transpose<perm=[0,2,1]>(k) y = MatMul(q, t)", None, "Q:4,4 K:4,4",
         x="float[n,s,4] x"),
    keep("matrix: relu between", "c = Gemm(x, U, p) r = Relu(c) y = Gemm(r, V)", None,
         "U:3,16 p:16 V:16,2", x=_V),
    keep("matrix: softmax between", "c = MatMul(x, U) r = Softmax(c) y = MatMul(r, V)", None,
         "U:3,16 V:16,2", x=_T),
    keep("matrix: heads split between", "c = MatMul(x, U) r = Reshape(c, sh) "
         "y = MatMul(r, V)", None, "U:16,4 V:2,16 sh:4:int64", x="float[n,s,16] x",
         sh=[0, -1, 2, 2]),
    keep("matrix: transposed between", "c = MatMul(x, U) r = Transpose<perm=[0,2,1]>(c) "
         "y = MatMul(r, V)", None, "U:3,16 V:6,2", x="float[n,6,3] x"),
    keep("matrix: view that mixes channels and rows, bn", "c = Conv(x, W) "
         "r = Reshape(c, sh) y = bn(r)", AXIS, "W:4,3,1,1 sh:3:int64 bn:20", sh=[0, 20, 4],
         x="float[n,3,5,4] x"),
    keep("matrix: view that mixes rows, scale", "c = MatMul(x, W) r = Reshape(c, sh) "
         "y = Mul(r, k)", AXIS, "W:3,4 sh:3:int64 k:8", sh=[0, -1, 8], x="float[n,6,3] x"),
    keep("matrix: gemm, bias from data", "y = Gemm(x, W, u)", None, "W:3,4",
         x="float[n,3] x, float[4] u"),
    keep("matrix: weight from data, scale", "c = Gemm(x, u) y = Mul(c, k)", DATA, "k:4",
         x="float[n,3] x, float[3,4] u"),
    dear("matrix: bottleneck", "c = Gemm(x, U, p) y = Gemm(c, V, q)", COST,
         "U:16,2 p:2 V:2,16 q:16", x="float[n,16] x"),
    dear("matrix: low rank alone", "c = MatMul(x, A) d = MatMul(c, B) s0 = Sin(x) "
         "y = Mul(s0, d)", COST, "A:8,1 B:1,8", x="float[n,s,8] x"),
]  # fmt: skip

GRAPHS = (*_AFFINES, *_CHAINS, *_TEMPTING)
