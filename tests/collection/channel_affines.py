"""Channel affines behind convolutions, in all their spellings."""

from __future__ import annotations

__all__ = ["GRAPHS"]

from tests.collection.base import Graph, collapse, keep
from tests.collection.reasons import AXIS, DATA, SIZE

_CONV = "W:4,3,1,1 b:4"


def _spelt(
    what: str, body: str, held: str, *, before: str = "", opset: int = 20, **weights: object
) -> Graph:
    """A biased 1x1 convolution c with ``body`` behind it; ``before`` prepares constants."""
    return collapse(
        f"affine: {what}",
        f"{before} c = Conv(x, W, b) {body}",
        "Conv:1",
        f"{_CONV} {held}",
        opset=opset,
        **weights,
    )


def _not(what: str, body: str, held: str, reason: str | None, **kwargs: object) -> Graph:
    return keep(
        f"affine: {what}", f"c = Conv(x, W, b) {body}", reason, f"{_CONV} {held}", **kwargs
    )


_BATCHNORMS = [
    _spelt("bn behind 1x1", "y = bn(c)", "bn:4"),
    _spelt("zero and negative gamma", "y = bn(c)", "bn:4", g=[1.5, 0, -2, 0], s=[1, 2, 3, 0]),
    _spelt(
        "tiny variance, large epsilon",
        "y = BatchNormalization<epsilon=0.1>(c, g, s, m, v)",
        "bn:4",
        v=[0, 1e-8, 1e-3, 1],
    ),
    _spelt("two bns", "d = bn1(c) y = bn2(d)", "bn1:4 bn2:4"),
    collapse(
        "affine: bn behind 3x3, stride 2, dilation 2, odd pads",
        "c = Conv<strides=[2,1], dilations=[1,2], pads=[1,0,2,3]>(x, W) y = bn(c)",
        "Conv:1",
        "W:4,3,3,3 bn:4",
    ),
    collapse(
        "affine: bn behind grouped",
        "c = Conv<group=2, pads=[1,1,1,1]>(x, W, b) y = bn(c)",
        "Conv:1",
        "W:6,2,3,3 b:6 bn:6",
        x="float[n,4,h,w] x",
    ),
    collapse(
        "affine: bn behind depthwise with multiplier",
        "c = Conv<group=3, pads=[1,1,1,1]>(x, W) y = bn(c)",
        "Conv:1",
        "W:6,1,3,3 bn:6",
    ),
    collapse(
        "affine: bn behind conv1d",
        "c = Conv<pads=[1,1]>(x, W) y = bn(c)",
        "Conv:1",
        "W:4,3,3 bn:4",
        x="float[n,3,l] x",
    ),
    collapse(
        "affine: bn behind conv3d",
        "c = Conv<pads=[1,0,1,1,0,1]>(x, W, b) y = bn(c)",
        "Conv:1",
        "W:4,2,3,1,3 b:4 bn:4",
        x="float[n,2,d,h,w] x",
    ),
    collapse(
        "affine: bias as the exporter writes none",
        "z = CastLike(zero, x) b = Expand(z, four) c = Conv(x, W, b) y = bn(c)",
        "Conv:1",
        "W:4,3,1,1 zero: four:1:int64 bn:4",
        zero=0,
        four=[4],
    ),
    collapse(
        "affine: bn behind auto_pad, static stride 2",
        'c = Conv<auto_pad="SAME_LOWER", strides=[2,2]>(x, W) y = bn(c)',
        "Conv:1",
        "W:4,3,3,3 bn:4",
        x="float[n,3,6,7] x",
    ),
    collapse(
        "affine: bn behind auto_pad, dynamic stride 2",
        'c = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, W) y = bn(c)',
        "Conv:1",
        "W:4,3,3,3 bn:4",
    ),
]

_SPELLINGS = [
    _spelt("mul (C,1,1)", "y = Mul(c, k)", "k:4,1,1"),
    _spelt("mul (1,C,1,1) on the left", "y = Mul(k, c)", "k:1,4,1,1"),
    _spelt("mul scalar", "y = Mul(c, k)", "k:"),
    _spelt("mul (1,)", "y = Mul(k, c)", "k:1"),
    _spelt("mul (1,1,1,1)", "y = Mul(c, k)", "k:1,1,1,1"),
    _spelt("mul by zero", "y = Mul(c, k)", "k:4,1,1", k=[[[0]], [[1]], [[0]], [[-1]]]),
    _spelt("add (C,1,1)", "y = Add(c, k)", "k:4,1,1"),
    _spelt("add on the left", "y = Add(k, c)", "k:1,4,1,1"),
    _spelt("add scalar", "y = Add(c, k)", "k:"),
    _spelt("sub constant", "y = Sub(c, k)", "k:4,1,1"),
    _spelt("constant minus", "y = Sub(k, c)", "k:4,1,1"),
    _spelt("scalar minus", "y = Sub(k, c)", "k:"),
    _spelt("div by constant", "y = Div(c, k)", "k:4,1,1", k=[[[2]], [[-3]], [[0.5]], [[7]]]),
    _spelt("div by scalar", "y = Div(c, k)", "k:", k=255),
    _spelt("sum of three", "y = Sum(k, c, j)", "k:4,1,1 j:"),
    _spelt("sum of one", "d = Sum(c) y = bn(d)", "bn:4"),
    _spelt("neg", "y = Neg(c)", ""),
    _spelt("mul, add, sub, div, neg", "d = Mul(c, k) e = Add(j, d) f = Sub(k, e) g = Neg(f) "
           "y = Div(g, i)", "k:4,1,1 j:1,4,1,1 i:", i=3),
    _spelt("mul by one, add zero", "d = Mul(c, k) y = Add(d, j)", "k: j:4,1,1",
           k=1, j=[[[0]]] * 4),
    _spelt("constant node", "k = Constant<value=float[4,1,1] {1,-2,3,4}>() y = Mul(c, k)", ""),
    _spelt("constant node, value_float", "k = Constant<value_float=0.25>() y = Mul(k, c)", ""),
    _spelt("reshaped constant", "k = Reshape(r, sh) y = Mul(c, k)", "r:4 sh:3:int64",
           sh=[-1, 1, 1]),
    _spelt("unsqueezed constant", "k = Unsqueeze(r, at) y = Add(c, k)", "r:4 at:2:int64",
           at=[1, 2]),
    _spelt("gate of a constant", "e = Sigmoid(r) k = Reshape(e, sh) y = Mul(c, k)",
           "r:4 sh:4:int64", sh=[1, 4, 1, 1]),
    _spelt("scalar gate of a constant", "k = Sigmoid(r) y = Mul(c, k)", "r:"),
    _spelt("exp, softplus and tanh of constants",
           "e = Exp(r) f = Softplus(r) k = Tanh(r) d = Mul(c, e) z = Add(d, f) y = Mul(z, k)",
           "r:4,1,1"),
    _spelt("softmax of a constant", "k = Softmax<axis=0>(r) y = Mul(c, k)", "r:4,1,1"),
    _spelt("expanded constant", "k = Expand(r, sh) y = Mul(c, k)", "r: sh:3:int64",
           sh=[4, 1, 1]),
    _spelt("constant from a chain over shapes", "sz = Shape<start=0, end=1>(W) "
           "sh = Concat<axis=0>(sz, one, one) k = ConstantOfShape<value=float[1] {0.5}>(sh) "
           "y = Mul(c, k)", "one:1:int64", one=[1]),
    _spelt("layer scale of ones that add no node", "d = Mul(c, k) e = Identity(d) y = bn(e)",
           "k:4,1,1 bn:4"),
    _spelt("mul by a squared constant", "k = Mul(r, r) y = Mul(c, k)", "r:4,1,1"),
    _spelt("mul by a square root", "q = Mul(r, r) k = Sqrt(q) y = Div(c, k)", "r:4,1,1"),
    _spelt("bn in its parts", "d = Sub(c, m) e = Add(v, eps) f = Sqrt(e) g = Div(d, f) "
           "h = Mul(g, k) y = Add(h, j)", "m:4,1,1 v:4,1,1 eps: k:4,1,1 j:4,1,1",
           v=[[[1]], [[2]], [[3]], [[4]]], eps=1e-5),
    collapse(
        "affine: batch of one in the constant on a batch of one",
        "c = Conv(x, W) y = Add(c, k)",
        "Conv:1",
        "W:4,3,1,1 k:1,4,1,1",
        x="float[1,3,4,5] x",
    ),
    collapse(
        "affine: full map, then bn",
        "c = Conv(x, W) d = Add(c, k) y = bn(d)",
        "Conv:1 Add:1",
        "W:4,3,1,1 k:4,5,6 bn:4",
        x="float[n,3,5,6] x",
    ),
    collapse(
        "affine: data added, then bn",
        "c = Conv(x, W) e = Conv(u, V) d = Add(c, e) y = bn(d)",
        "Conv:2 Add:1",
        "W:4,3,1,1 V:4,2,1,1 bn:4",
        x="float[n,3,h,w] x, float[n,2,h,w] u",
    ),
]  # fmt: skip

_ELSEWHERE = [
    _not("(W,) where W is C", "y = Mul(c, k)", "k:4", AXIS, x="float[n,3,4,4] x"),
    _not("(H,1) where H is C", "y = Add(c, k)", "k:4,1", AXIS, x="float[n,3,4,5] x"),
    _not("(N,C,1,1)", "y = Mul(c, k)", "k:2,4,1,1", AXIS, x="float[2,3,5,5] x"),
    _not("(N,1,1,1)", "y = Add(c, k)", "k:2,1,1,1", AXIS, x="float[2,3,5,5] x"),
    _not("constant over", "y = Div(k, c)", "k:4,1,1", r"div|linear|affine"),
    _not("scalar over", "y = Div(k, c)", "k:", r"div|linear|affine"),
    _not("a rank more", "y = Add(c, k)", "k:2,1,4,1,1", AXIS),
    _not("square", "y = Mul(c, c)", "", DATA),
    _not("power", "y = Pow(c, k)", "k:", None, k=2),
    _not("product of data", "d = Sin(x) e = Conv(d, V) y = Mul(c, e)", "V:4,3,1,1", DATA),
    keep(
        "affine: a map that the constant makes larger",
        "p = GlobalAveragePool(x) c = Conv(p, W, b) s = Sin(c) y = Add(s, k)",
        None,
        f"{_CONV} k:4,3,3",
    ),
    keep(
        "affine: pooled, then a constant that makes it larger",
        "c = Conv(x, W, b) y = Add(c, k)",
        SIZE,
        f"{_CONV} k:4,3,3",
        x="float[n,3,1,1] x",
    ),
    keep(
        "affine: one channel that the constant makes four",
        "c = Conv(x, W, b) y = Mul(c, k)",
        SIZE,
        "W:1,3,1,1 b:1 k:4,1,1",
    ),
    keep(
        "affine: rows of a map",
        "c = Conv(x, W, b) y = Mul(c, k)",
        AXIS,
        f"{_CONV} k:4,5,1",
        x="float[n,3,5,5] x",
    ),
]

GRAPHS = (*_BATCHNORMS, *_SPELLINGS, *_ELSEWHERE)
