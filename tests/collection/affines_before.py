"""Channel affines in front of what is linear, and where they change places with others."""

from __future__ import annotations

__all__ = ["GRAPHS"]

from tests.collection.base import collapse, keep
from tests.collection.reasons import BORDER, READ, SIGN

_S = "a = Sigmoid(x)"  # so that nothing lies in front that could take the affine

_EXACT = [
    collapse("before: bn, 1x1", f"{_S} c = bn(a) y = Conv(c, W)", "Conv:1", "W:4,3,1,1 bn:3"),
    collapse("before: bn, 3x3 without padding, stride 2", f"{_S} c = bn(a) "
             "y = Conv<strides=[2,2], dilations=[1,2]>(c, W, b)", "Conv:1",
             "W:4,3,3,2 b:4 bn:3"),
    collapse("before: bn of zero gamma", f"{_S} c = bn(a) y = Conv(c, W)", "Conv:1",
             "W:4,3,1,1 bn:3", g=[0, 1, 0]),
    collapse("before: bn without a shift, padded", f"{_S} c = bn(a) "
             "y = Conv<pads=[1,1,1,1]>(c, W)", "Conv:1", "W:4,3,3,3 bn:3",
             s=[0, 0, 0], m=[0, 0, 0]),
    collapse("before: scale, padded", f"{_S} c = Mul(a, k) y = Conv<pads=[1,1,1,1]>(c, W, b)",
             "Conv:1", "W:4,3,3,3 b:4 k:3,1,1"),
    collapse("before: scale, padded depthwise", f"{_S} c = Div(a, k) "
             "y = Conv<pads=[1,1,1,1], group=3>(c, W)", "Conv:1", "W:6,1,3,3 k:1,3,1,1"),
    collapse("before: scale, grouped", f"{_S} c = Mul(a, k) y = Conv<group=2>(c, W)",
             "Conv:1", "W:6,2,1,1 k:4,1,1", x="float[n,4,h,w] x"),
    collapse("before: shift, grouped", f"{_S} c = Add(a, k) y = Conv<group=2>(c, W, b)",
             "Conv:1", "W:6,2,2,2 b:6 k:4,1,1", x="float[n,4,h,w] x"),
    collapse("before: constant minus", f"{_S} c = Sub(k, a) y = Conv(c, W)", "Conv:1",
             "W:4,3,3,3 k:3,1,1"),
    collapse("before: a camera's numbers, no padding", "c = Div(x, k) d = Sub(c, m) "
             "e = Div(d, s) y = Conv<strides=[4,4]>(e, W)", "Conv:1",
             "W:4,3,4,4 k: m:1,3,1,1 s:1,3,1,1", k=255, x="float[n,3,8,8] x"),
    collapse("before: a camera's numbers, padded", "d = Sub(x, m) e = Div(d, s) "
             "y = Conv<pads=[1,1,1,1]>(e, W)", "Conv:1 Add|Sub|BatchNormalization:1",
             "W:4,3,3,3 m:1,3,1,1 s:1,3,1,1"),
    collapse("before: bn, conv1d", f"{_S} c = bn(a) y = Conv(c, W)", "Conv:1",
             "W:4,3,3 bn:3", x="float[n,3,l] x"),
    collapse("before: bn, 1x1 behind a bn behind", f"{_S} c = bn1(a) d = Conv(c, W) "
             "y = bn2(d)", "Conv:1", "W:4,3,1,1 bn1:3 bn2:4"),
    collapse("before: two readers that both take it", f"{_S} c = bn(a) y = Conv(c, W) "
             "z = Conv(c, V)", "Conv:2", "W:4,3,1,1 V:2,3,3,3 bn:3", y="y, z"),
    collapse("before: scale, two padded readers", f"{_S} c = Mul(a, k) "
             "y = Conv<pads=[1,1,1,1]>(c, W) z = Conv<pads=[1,1,1,1], group=3>(c, V)",
             "Conv:2", "W:4,3,3,3 V:3,1,3,3 k:3,1,1", y="y, z"),
    collapse("before: bn, gemm", f"{_S} c = bn(a) y = Gemm<transB=1>(c, W, b)", "Gemm:1",
             "W:4,3 b:4 bn:3", x="float[n,3] x"),
    collapse("before: bn, flatten, gemm", f"{_S} c = bn(a) f = Flatten(c) y = Gemm(f, W)",
             "Gemm:1", "W:12,4 bn:3", x="float[n,3,2,2] x"),
    collapse("before: bn, global pool, flatten, gemm", f"{_S} c = bn(a) "
             "p = GlobalAveragePool(c) f = Flatten(p) y = Gemm(f, W, b)", "Gemm:1",
             "W:3,4 b:4 bn:3"),
    collapse("before: bn, mean, gemm", f"{_S} c = bn(a) p = ReduceMean<keepdims=0>(c, ax) "
             "y = Gemm(p, W)", "Gemm:1", "W:3,4 bn:3 ax:2:int64", ax=[-1, -2]),
    collapse("before: bn, view, transpose, matmul", f"{_S} c = bn(a) r = Reshape(c, sh) "
             "t = Transpose<perm=[0,2,1]>(r) y = MatMul(t, W)", "MatMul:1 Add:1",
             "W:3,5 bn:3 sh:3:int64", sh=[0, 3, -1]),
    collapse("before: channels last, scale, matmul, bias", f"{_S} "
             "t = Transpose<perm=[0,2,3,1]>(a) c = Mul(t, k) d = MatMul(c, W) y = Add(d, b)",
             "MatMul:1 Add:1", "W:3,5 k:3 b:5"),
    collapse("before: vector affine, matmul", f"{_S} c = Mul(a, k) d = Add(c, j) "
             "y = MatMul(d, W)", "MatMul:1 Add:1", "W:3,5 k:3 j:3", x="float[n,s,3] x"),
    collapse("before: bn, average pool, 1x1", f"{_S} c = bn(a) "
             "p = AveragePool<kernel_shape=[2,2], strides=[2,2]>(c) y = Conv(p, W)",
             "Conv:1", "W:4,3,1,1 bn:3"),
    collapse("before: bn, average pool that counts no padding, 1x1", f"{_S} c = bn(a) "
             "p = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=0>(c) "
             "y = Conv(p, W)", "Conv:1", "W:4,3,1,1 bn:3"),
    collapse("before: scale, average pool that counts padding, 1x1", f"{_S} c = Mul(a, k) "
             "p = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(c) "
             "y = Conv(p, W)", "Conv:1", "W:2,3,1,1 k:3,1,1"),
    collapse("before: bn of positive scale, max pool, 1x1", f"{_S} c = bn(a) "
             "p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(c) y = Conv(p, W)", "Conv:1",
             "W:4,3,1,1 bn:3", g=[1, 0.5, 2]),
    collapse("before: bn of positive scale, padded max pool, 1x1", f"{_S} c = bn(a) "
             "p = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(c) y = Conv(p, W)", "Conv:1",
             "W:4,3,1,1 bn:3", g=[1, 0, 2]),
    collapse("before: positive scale, relu, padded 3x3", f"{_S} s = Sub(a, h1) "
             "c = Mul(s, k) r = Relu(c) y = Conv<pads=[1,1,1,1]>(r, W)",
             "Conv:1 Sub|Add|BatchNormalization:1", "W:4,3,3,3 k:3,1,1 h1:",
             k=[[[1]], [[0.5]], [[3]]], h1=0.7),
    collapse("before: bn beside another in a concat, 1x1", f"{_S} c = bn(a) t = Tanh(x) "
             "k = Concat<axis=1>(c, t) y = Conv(k, W)", "Conv:1 Concat:1",
             "W:4,6,1,1 bn:3"),
    collapse("before: scale beside another in a concat, padded", f"{_S} c = Mul(a, q) "
             "t = Tanh(x) k = Concat<axis=1>(t, c) y = Conv<pads=[1,1,1,1]>(k, W)",
             "Conv:1 Concat:1", "W:4,6,3,3 q:3,1,1"),
    collapse("before: scale, transposed convolution", f"{_S} c = Mul(a, k) "
             "y = ConvTranspose<strides=[2,2]>(c, W, b)", "ConvTranspose:1",
             "W:3,4,3,3 b:4 k:3,1,1"),
    collapse("before: bn, transposed 1x1", f"{_S} c = bn(a) y = ConvTranspose(c, W)",
             "ConvTranspose|Conv:1", "W:3,4,1,1 bn:3"),
    collapse("before: bn without a shift, zero pad node, 3x3", f"{_S} c = Mul(a, k) "
             "p = Pad(c, pd) y = Conv(p, W)", "Conv:1", "W:4,3,3,3 k:3,1,1 pd:8:int64",
             pd=[0, 0, 1, 1, 0, 0, 1, 1]),
    collapse("before: bn, reflected, 3x3", f"{_S} c = bn(a) "
             'p = Pad<mode="reflect">(c, pd) y = Conv(p, W)', "Conv:1",
             "W:4,3,3,3 bn:3 pd:8:int64", pd=[0, 0, 1, 1, 0, 0, 1, 1]),
]  # fmt: skip

_TEMPTING = [
    keep("before: bn with a shift, padded", f"{_S} c = bn(a) y = Conv<pads=[1,1,1,1]>(c, W)",
         BORDER, "W:4,3,3,3 bn:3"),
    keep("before: shift, padded at one corner", f"{_S} c = Add(a, k) "
         "y = Conv<pads=[0,0,0,1]>(c, W)", BORDER, "W:4,3,2,2 k:3,1,1"),
    keep("before: shift, a padded 1x1", f"{_S} c = Add(a, k) y = Conv<pads=[1,1,1,1]>(c, W)",
         BORDER, "W:4,3,1,1 k:3,1,1"),
    keep("before: shift, padded by auto_pad", f"{_S} c = Add(a, k) "
         'y = Conv<auto_pad="SAME_UPPER">(c, W)', r"pad|border", "W:4,3,3,3 k:3,1,1"),
    keep("before: one reader is padded", f"{_S} c = bn(a) y = Conv(c, W) "
         "z = Conv<pads=[1,1,1,1]>(c, V)", BORDER, "W:4,3,1,1 V:4,3,3,3 bn:3", y="y, z"),
    keep("before: one reader is no map", f"{_S} c = bn(a) y = Conv(c, W) z = Sin(c)",
         READ, "W:4,3,1,1 bn:3", y="y, z"),
    keep("before: negative scale, max pool, 1x1", f"{_S} c = bn(a) "
         "p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(c) y = Conv(p, W)", SIGN,
         "W:4,3,1,1 bn:3", g=[1, -0.5, 2]),
    keep("before: shift, average pool that counts padding, 1x1", f"{_S} c = bn(a) "
         "p = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(c) "
         "y = Conv(p, W)", BORDER, "W:1,3,1,1 bn:3"),
    keep("before: negative scale, relu, conv", f"{_S} c = Mul(a, k) r = Relu(c) "
         "y = Conv(r, W)", SIGN, "W:4,3,1,1 k:3,1,1", k=[[[1]], [[-0.5]], [[3]]]),
    keep("before: shift, relu, conv", f"{_S} c = Sub(a, k) r = Relu(c) y = Conv(r, W)",
         None, "W:4,3,1,1 k:3,1,1"),
    keep("before: shift, transposed convolution", f"{_S} c = bn(a) y = ConvTranspose(c, W)",
         r"pad|border|cover|tap", "W:3,4,3,3 bn:3"),
    keep("before: shift, transposed convolution of stride 2", f"{_S} c = bn(a) "
         "y = ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(c, W)", r"pad|border|cover|tap",
         "W:3,4,4,4 bn:3"),
    keep("before: shift, zero pad node, 3x3", f"{_S} [it] c = bn(a) p = Pad(c, pd) "
         "y = Conv(p, W)", BORDER, "W:4,3,3,3 bn:3 pd:8:int64", pd=[0, 0, 1, 1, 0, 0, 1, 1]),
    keep("before: scale of rows, matmul", f"{_S} c = Mul(a, k) y = MatMul(c, W)", r"ax[ie]s",
         "W:3,5 k:4,1", x="float[n,4,3] x"),
]  # fmt: skip

_PAST = [
    collapse("past: relu, positive scale", "c = Conv<pads=[1,1,1,1]>(x, W, b) r = Relu(c) "
             "y = Mul(r, k)", "Conv:1", "W:4,3,3,3 b:4 k:4,1,1",
             k=[[[1]], [[2]], [[0.5]], [[0]]]),
    keep("past: relu, negative scale", "c = Conv(x, W, b) r = Relu(c) y = Mul(r, k)", SIGN,
         "W:4,3,1,1 b:4 k:4,1,1", k=[[[1]], [[-2]], [[0.5]], [[1]]]),
    keep("past: relu, shift", "c = Conv(x, W, b) r = Relu(c) y = Add(r, k)", None,
         "W:4,3,1,1 b:4 k:4,1,1"),
    keep("past: sigmoid, scale", "c = Conv(x, W, b) r = Sigmoid(c) y = Mul(r, k)", None,
         "W:4,3,1,1 b:4 k:4,1,1"),
    collapse("past: max pool, bn of positive scale", "c = Conv(x, W, b) "
             "p = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(c) y = bn(p)",
             "Conv:1", "W:4,3,1,1 b:4 bn:4", g=[1, 2, 0, 0.5]),
    keep("past: max pool, bn of negative scale", "c = Conv(x, W, b) "
         "p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(c) y = bn(p)", SIGN,
         "W:4,3,1,1 b:4 bn:4", g=[1, 2, -1, 0.5]),
    keep("past: max pool with indices, bn", "c = Conv(x, W, b) "
         "p, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(c) y = bn(p) z = Cast<to=1>(i)",
         r"indices|negative|sign", "W:4,3,1,1 b:4 bn:4", y="y, z", g=[1, 2, -3, 0.5]),
    collapse("past: average pool, bn", "c = Conv(x, W, b) "
             "p = AveragePool<kernel_shape=[2,2], strides=[2,2]>(c) y = bn(p)", "Conv:1",
             "W:4,3,3,3 b:4 bn:4"),
    collapse("past: padded average pool that counts no padding, bn", "c = Conv(x, W, b) "
             "p = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(c) y = bn(p)", "Conv:1",
             "W:4,3,1,1 b:4 bn:4"),
    collapse("past: concat, bn", "c = Conv(x, W, b) d = Conv<pads=[1,1,1,1]>(u, V) "
             "k = Concat<axis=1>(c, d) y = bn(k)", "Conv:2 Concat:1",
             "W:4,3,1,1 b:4 V:2,2,3,3 bn:6", x="float[n,3,h,w] x, float[n,2,h,w] u"),
    collapse("past: concat, scalar", "c = Conv(x, W) d = Conv(u, V) k = Concat<axis=-3>(c, d) "
             "y = Mul(k, q)", "Conv:2 Concat:1", "W:4,3,1,1 V:2,2,1,1 q:",
             x="float[n,3,h,w] x, float[n,2,h,w] u"),
    keep("past: concat with what is not linear, bn", "c = Conv(x, W) d = Sin(u) "
         "[it] k = Concat<axis=1>(c, d) [it2] y = bn(k)", None, "W:4,3,1,1 bn:6",
         x="float[n,3,h,w] x, float[n,2,h,w] u"),
    keep("past: depth to space, conv", "c = Conv(x, W, b) "
         "d = DepthToSpace<blocksize=2>(c) y = Conv(d, V)", None, "W:8,3,1,1 b:8 V:3,2,3,3"),
]  # fmt: skip

GRAPHS = (*_EXACT, *_TEMPTING, *_PAST)
