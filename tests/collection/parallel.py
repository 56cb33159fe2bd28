"""Sums of branches over one input."""

from __future__ import annotations

__all__ = ["GRAPHS"]

from tests.collection.base import Graph, collapse, dear, keep
from tests.collection.reasons import COST, SIZE

_P1 = "<pads=[1,1,1,1]>"
_X4 = "float[n,4,h,w] x"


def _sum(what: str, left: str, right: str, held: str, nodes: str = "Conv:1", **kwargs: object
         ) -> Graph:  # fmt: skip
    """Two convolutions of x, by W and V, added."""
    body = f"a = Conv{left}(x, W) b = Conv{right}(x, V) y = Add(a, b)"
    return collapse(f"parallel: {what}", body, nodes, held, **kwargs)


_KERNELS = [
    _sum("1x1, 1x1", "", "", "W:4,3,1,1 V:4,3,1,1"),
    _sum("3x3, 1x1", _P1, "", "W:4,3,3,3 V:4,3,1,1"),
    _sum("3x3, 1x1, stride 2", "<strides=[2,2], pads=[1,1,1,1]>", "<strides=[2,2]>",
         "W:4,3,3,3 V:4,3,1,1"),
    _sum("1x3, 3x3", "<pads=[0,1,0,1]>", _P1, "W:4,3,1,3 V:4,3,3,3"),
    _sum("5x5, 3x3 of dilation 2", "<pads=[2,2,2,2]>", "<dilations=[2,2], pads=[2,2,2,2]>",
         "W:4,3,5,5 V:4,3,3,3"),
    _sum("3x3 of dilation 2, 1x1 stays dilated", "<dilations=[2,2], pads=[2,2,2,2]>", "",
         "W:4,3,3,3 V:4,3,1,1", cheaper=True),
    _sum("7x7 depthwise, 3x3 depthwise", "<group=4, pads=[3,3,3,3]>",
         "<group=4, pads=[1,1,1,1]>", "W:4,1,7,7 V:4,1,3,3", x=_X4),
    _sum("dense, groups of 2", _P1, "<group=2>", "W:4,4,3,3 V:4,2,1,1", x=_X4),
    _sum("dense, depthwise", _P1, "<group=4, pads=[1,1,1,1]>", "W:4,4,3,3 V:4,1,3,3", x=_X4),
    _sum("2x2 and 1x1 of another centre", "<pads=[0,0,1,1]>", "", "W:4,3,2,2 V:4,3,1,1"),
    _sum("3x3 and 2x2 of another centre", _P1, "<pads=[1,0,0,1]>", "W:4,3,3,3 V:4,3,2,2"),
    _sum("more padding than reach", "<pads=[3,3,3,3]>", "<pads=[2,2,2,2]>",
         "W:4,3,3,3 V:4,3,1,1"),
    _sum("stride 2 of one axis", "<strides=[2,1], pads=[1,1,1,1]>", "<strides=[2,1]>",
         "W:4,3,3,3 V:4,3,1,1"),
    _sum("auto_pad of stride 1", '<auto_pad="SAME_UPPER">', "", "W:4,3,3,3 V:4,3,1,1"),
    _sum("conv1d", "<pads=[2,2]>", "", "W:4,3,5 V:4,3,1", x="float[n,3,l] x"),
    _sum("conv3d", "<pads=[1,1,1,1,1,1]>", "<pads=[0,0,1,0,0,1]>",
         "W:2,2,3,3,3 V:2,2,1,1,3", x="float[n,2,d,h,w] x"),
    collapse("parallel: square, column and row with norms", "a = Conv<pads=[1,1,1,1]>(x, A) "
             "a1 = bn1(a) b = Conv<pads=[1,0,1,0]>(x, B) b1 = bn2(b) "
             "c = Conv<pads=[0,1,0,1]>(x, C) c1 = bn3(c) d = Add(a1, b1) y = Add(d, c1)",
             "Conv:1", "A:4,3,3,3 bn1:4 B:4,3,3,1 bn2:4 C:4,3,1,3 bn3:4"),
    collapse("parallel: the same weight twice", "a = Conv(x, W, b) c = Conv(x, W, b) "
             "y = Add(a, c)", "Conv:1", "W:4,3,1,1 b:4"),
    collapse("parallel: reflected 3x3, 1x1", 'p = Pad<mode="reflect">(x, pd) a = Conv(p, W) '
             "b = Conv(x, V) y = Add(a, b)", "Conv:1", "W:4,3,3,3 V:4,3,1,1 pd:8:int64",
             pd=[0, 0, 1, 1, 0, 0, 1, 1]),
    collapse("parallel: transposed, equal geometry", "a = ConvTranspose<strides=[2,2], "
             "pads=[1,1,0,0]>(x, W, p) b = ConvTranspose<strides=[2,2], pads=[1,1,0,0]>(x, V) "
             "y = Add(a, b)", "ConvTranspose:1", "W:3,4,3,3 p:4 V:3,4,3,3"),
]  # fmt: skip

_IDENTITY = [
    collapse("parallel: identity, 3x3", "a = Conv<pads=[1,1,1,1]>(x, W, b) y = Add(x, a)",
             "Conv:1", "W:3,3,3,3 b:3"),
    collapse("parallel: identity, depthwise", "a = Conv<group=3, pads=[1,1,1,1]>(x, W) "
             "y = Add(a, x)", "Conv:1", "W:3,1,3,3"),
    collapse("parallel: identity, groups", "a = Conv<group=2, pads=[1,1,1,1]>(x, W) "
             "y = Add(a, x)", "Conv:1", "W:4,2,3,3", x=_X4),
    collapse("parallel: identity minus", "a = Conv<pads=[1,1,1,1]>(x, W) y = Sub(x, a)",
             "Conv:1", "W:3,3,3,3"),
    collapse("parallel: minus identity", "a = Conv<pads=[1,1,1,1]>(x, W, b) y = Sub(a, x)",
             "Conv:1", "W:3,3,3,3 b:3"),
    collapse("parallel: x three times", "a = Conv(x, W) b = Add(x, a) c = Add(b, x) "
             "y = Sum(x, c)", "Conv:1", "W:3,3,1,1"),
    collapse("parallel: norm of x, 1x1", "a = Conv(x, W) b = bn(x) y = Add(a, b)", "Conv:1",
             "W:3,3,1,1 bn:3"),
    collapse("parallel: scaled x, depthwise 1x1", "a = Conv<group=3>(x, W) b = Mul(x, k) "
             "y = Sub(b, a)", "Conv:1", "W:3,1,1,1 k:3,1,1"),
    collapse("parallel: even kernel, identity at its corner", "a = Conv<pads=[0,0,1,1]>(x, W) "
             "y = Add(a, x)", "Conv:1", "W:3,3,2,2"),
    collapse("parallel: identity around a chain", "a = Conv(x, U, p) b = Conv(a, V) "
             "y = Add(b, x)", "Conv:1", "U:16,2,1,1 p:16 V:2,16,1,1",
             x="float[n,2,h,w] x"),
    collapse("parallel: identity around a padded chain", "a = Conv(x, U) "
             "b = Conv<pads=[1,1,1,1]>(a, V) c = Add(x, b) y = bn(c)", "Conv:1",
             "U:16,2,1,1 V:2,16,3,3 bn:2", x="float[n,2,h,w] x"),
    collapse("parallel: residual of a residual", "a = Conv<group=3, pads=[1,1,1,1]>(x, W) "
             "b = Add(a, x) c = Conv<group=3>(b, V) y = Add(c, b)", "Conv:1",
             "W:3,1,3,3 V:3,1,1,1"),
]  # fmt: skip

_TREES = [
    collapse("parallel: tree of signs and scales", "a = Conv(x, A) b = Conv(x, B, p) "
             "c = Conv<pads=[1,1,1,1]>(x, C) d = Mul(a, k) e = Neg(b) f = Div(c, j) "
             "g = Sub(d, e) h0 = Sum(g, f, i) y = Sub(q, h0)", "Conv:1",
             "A:4,3,1,1 B:4,3,1,1 p:4 C:4,3,3,3 k:4,1,1 j: i:4,1,1 q:", j=3),
    collapse("parallel: diamond", "m = Conv(x, U, p) a = Conv(m, A) b = Conv(m, B) "
             "y = Add(a, b)", "Conv:1", "U:16,2,1,1 p:16 A:2,16,1,1 B:2,16,1,1",
             x="float[n,2,h,w] x"),
    collapse("parallel: diamond that pays as a whole", "m = Conv(x, U) "
             "a = Conv(m, A) b = Conv(m, B) y = Sub(a, b)", "Conv:1",
             "U:4,4,1,1 A:4,4,1,1 B:4,4,1,1", x=_X4),
    collapse("parallel: the same value doubled", "a = Conv(x, W, b) y = Add(a, a)", "Conv:1",
             "W:4,3,1,1 b:4"),
    collapse("parallel: difference of the same value", "a = Conv(x, W, b) c = Mul(a, k) "
             "d = Sub(c, a) y = Add(d, a)", "Conv:1", "W:4,3,1,1 b:4 k:4,1,1"),
    collapse("parallel: two of three share an input", "a = Conv(x, A) b = Conv(x, B) "
             "r = Sigmoid(x) c = Add(a, r) y = Add(c, b)", "Conv:1 Add:1",
             "A:3,3,1,1 B:3,3,1,1"),
    collapse("parallel: low rank beside", "a = Conv(x, W) b = Conv(x, A) c = Conv(b, B) "
             "y = Add(a, c)", "Conv:1", "W:8,8,1,1 A:1,8,1,1 B:8,1,1,1", x="float[n,8,h,w] x"),
    collapse("parallel: low rank 3x3 beside", "a = Conv<pads=[1,1,1,1]>(x, W) "
             "b = Conv<pads=[1,1,1,1]>(x, A) c = Conv(b, B) y = Add(a, c)", "Conv:1",
             "W:8,8,3,3 A:1,8,3,3 B:8,1,1,1", x="float[n,8,h,w] x"),
    collapse("parallel: depthwise separable beside a dense 3x3", "a = Conv<pads=[1,1,1,1]>"
             "(x, W) b = Conv<group=4, pads=[1,1,1,1]>(x, A) c = Conv(b, B) y = Add(a, c)",
             "Conv:1", "W:4,4,3,3 A:4,1,3,3 B:4,4,1,1", x=_X4),
    collapse("parallel: concat of convolutions", "a = Conv(x, A, p) b = Conv(x, B) "
             "y = Concat<axis=1>(a, b)", "Conv:1 Concat:0", "A:4,3,1,1 p:4 B:2,3,1,1"),
    collapse("parallel: concat of convolutions with norms", "a = Conv<pads=[1,1,1,1]>(x, A) "
             "b = Conv<pads=[1,1,1,1]>(x, B) c = bn1(a) d = bn2(b) "
             "y = Concat<axis=1>(c, d)", "Conv:1 Concat:0", "A:4,3,3,3 B:2,3,3,3 bn1:4 bn2:2"),
]  # fmt: skip

_POOLS = [
    collapse("parallel: average that counts padding", "a = Conv<pads=[1,1,1,1]>(x, W) "
             "b = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(x) "
             "y = Add(a, b)", "Conv:1 AveragePool:0", "W:3,3,3,3"),
    collapse("parallel: average of stride 2 without padding", "a = Conv<strides=[2,2]>(x, W) "
             "b = AveragePool<kernel_shape=[2,2], strides=[2,2]>(x) y = Add(a, b)",
             "Conv:1 AveragePool:0", "W:3,3,2,2"),
    collapse("parallel: 1x1, average, beside a 3x3", "a = Conv<pads=[1,1,1,1]>(x, W) "
             "o = Conv(x, U) b = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], "
             "count_include_pad=1>(o) c = bn(b) y = Add(a, c)", "Conv:1 AveragePool:0",
             "W:4,3,3,3 U:4,3,1,1 bn:4"),
    collapse("parallel: average of dilation 2", "a = Conv<pads=[2,2,2,2]>(x, W) "
             "b = AveragePool<kernel_shape=[3,3], dilations=[2,2], pads=[2,2,2,2], "
             "count_include_pad=1>(x) y = Sub(a, b)", "Conv:1 AveragePool:0", "W:3,3,5,5"),
    keep("parallel: average that counts no padding", "a = Conv<pads=[1,1,1,1]>(x, W) "
         "b = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=0>(x) "
         "y = Add(a, b)", r"count_include_pad|pad", "W:3,3,3,3"),
    keep("parallel: average, the last window cut short",
         "a = Conv<strides=[2,2], pads=[0,0,1,1]>(x, W) "
         "b = AveragePool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(x) y = Add(a, b)",
         r"ceil", "W:3,3,2,2", x="float[n,3,5,7] x"),
    keep("parallel: maximum", "a = Conv<pads=[1,1,1,1]>(x, W) "
         "b = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(x) y = Add(a, b)", None,
         "W:3,3,3,3"),
    keep("parallel: biased 1x1, average that counts padding", "m = Conv(x, U, p) "
         "[it] b = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(m) "
         "a = Conv<pads=[1,1,1,1]>(x, W) y = Add(a, b)", r"pad|border",
         "W:4,3,3,3 U:4,3,1,1 p:4"),
]  # fmt: skip

_TEMPTING = [
    keep("parallel: sizes that broadcast", "a = Conv(x, W) b = Conv(x, V) y = Add(a, b)", SIZE,
         "W:4,3,3,3 V:4,3,1,1", x="float[n,3,3,3] x"),
    keep("parallel: sizes that broadcast along one axis", "a = Conv<pads=[1,0,1,0]>(x, W) "
         "b = Conv(x, V) y = Add(a, b)", SIZE, "W:4,3,3,3 V:4,3,1,1", x="float[n,3,5,3] x"),
    keep("parallel: strides that broadcast", "a = Conv<strides=[2,2]>(x, W) b = Conv(x, V) "
         "y = Add(a, b)", SIZE, "W:4,3,1,1 V:4,3,1,1", x="float[n,3,2,2] x"),
    keep("parallel: strides differ, sizes agree", "a = Conv<strides=[2,2]>(x, W) "
         "b = Conv(x, V) y = Add(a, b)", r"stride|size", "W:4,3,2,2 V:4,3,3,3",
         x="float[n,3,4,4] x"),
    keep("parallel: one channel that broadcasts", "a = Conv(x, W) y = Add(a, x)", SIZE,
         "W:4,1,1,1", x="float[n,1,h,w] x"),
    keep("parallel: one branch of one channel", "a = Conv(x, W) b = Conv(x, V) y = Add(a, b)",
         SIZE, "W:4,3,1,1 V:1,3,1,1"),
    keep("parallel: identity beside a map of one place", "a = Conv(x, W) y = Add(a, x)", SIZE,
         "W:3,3,3,3", x="float[n,3,3,3] x"),
    keep("parallel: a pooled branch", "[it] p = GlobalAveragePool(x) a = Conv(p, W) "
         "b = Conv(x, V) y = Add(a, b)", SIZE, "W:4,3,1,1 V:4,3,1,1"),
    keep("parallel: two inputs", "a = Conv(x, W) b = Conv(u, V) y = Add(a, b)", None,
         "W:4,3,1,1 V:4,3,1,1", x="float[n,3,h,w] x, float[n,3,h,w] u"),
    keep("parallel: relu in a branch", "a = Conv(x, W) r = Relu(a) b = Conv(x, V) "
         "y = Add(r, b)", None, "W:4,3,1,1 V:4,3,1,1"),
    keep("parallel: product of branches", "a = Conv(x, W) b = Conv(x, V) y = Mul(a, b)", None,
         "W:4,3,1,1 V:4,3,1,1"),
    keep("parallel: maximum of branches", "a = Conv(x, W) b = Conv(x, V) y = Max(a, b)", None,
         "W:4,3,1,1 V:4,3,1,1"),
    keep("parallel: auto_pad of stride 2, dynamic",
         'a = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, W) '
         "b = Conv<strides=[2,2]>(x, V) y = Add(a, b)", r"auto_pad|size",
         "W:4,3,3,3 V:4,3,1,1"),
    keep("parallel: concat of places", "a = Conv(x, W) b = Conv(x, V) "
         "y = Concat<axis=2>(a, b)", None, "W:4,3,1,1 V:4,3,1,1"),
    keep("parallel: transposed, other kernels", "a = ConvTranspose<strides=[2,2]>(x, W) "
         "b = ConvTranspose<strides=[2,2], output_padding=[1,1]>(x, V) y = Add(a, b)", None,
         "W:3,4,4,4 V:3,4,3,3"),
    dear("parallel: depthwise beside pointwise", "a = Conv<group=8, pads=[1,1,1,1]>(x, W) "
         "b = Conv(x, V) y = Add(a, b)", COST, "W:8,1,3,3 V:8,8,1,1", x="float[n,8,h,w] x"),
    dear("parallel: 3x3 beside 3x3 of dilation 2", "a = Conv<pads=[1,1,1,1]>(x, W) "
         "b = Conv<dilations=[2,2], pads=[2,2,2,2]>(x, V) y = Add(a, b)", COST,
         "W:4,3,3,3 V:4,3,3,3"),
    dear("parallel: row beside column", "a = Conv<pads=[0,2,0,2]>(x, W) "
         "b = Conv<pads=[2,0,2,0]>(x, V) y = Add(a, b)", COST, "W:4,3,1,5 V:4,3,5,1"),
    dear("parallel: 2x2 beside 2x2 of the other corner", "a = Conv<pads=[1,1,0,0]>(x, W) "
         "b = Conv<pads=[0,0,1,1]>(x, V) y = Add(a, b)", COST, "W:4,3,2,2 V:4,3,2,2"),
    dear("parallel: concat of 3x3 and 1x1", "a = Conv<pads=[1,1,1,1]>(x, W) b = Conv(x, V) "
         "y = Concat<axis=1>(a, b)", None, "W:4,3,3,3 V:4,3,1,1"),
]  # fmt: skip

GRAPHS = (*_KERNELS, *_IDENTITY, *_TREES, *_POOLS, *_TEMPTING)
