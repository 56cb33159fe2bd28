"""Who else reads a value: outputs, subgraphs, other nodes, and what is shared."""

from __future__ import annotations

__all__ = ["GRAPHS"]

from tests.collection.base import collapse, keep
from tests.collection.reasons import OUTPUT, READ

# The way through the middle is never cheaper than what it would replace.
_NARROW = "U:4,4,1,1 V:4,4,1,1"
_X4 = "float[n,4,h,w] x"
_X4K = "float[n,4,h,w] x, bool k"


def _if(value: str) -> str:
    """An If whose branches read ``value`` from outside."""
    branches = ", ".join(
        f"{b}_branch = {b} () => (float[n,4,i,j] {b}o) {{ {b}o = {op}({value}) }}"
        for b, op in (("then", "Sin"), ("else", "Cos"))
    )
    return f"z = If<{branches}>(k)"


def _pair(branch: str, op: str) -> str:
    """A branch with a mergeable pair of its own, and a norm."""
    b = branch[0]
    return (
        f"{branch}_branch = {branch} () => (float[n,2,i,j] {b}o) {{ {b}1 = Conv(x, U{b}) "
        f"{b}2 = Conv({b}1, V{b}) {b}o = {op}({b}2) }}"
    )


_OUTPUTS = [
    keep("readers: bn, the convolution is an output", "c = Conv(x, W) y = bn(c)", OUTPUT,
         "W:4,3,1,1 bn:4", y="y, c"),
    keep("readers: scale, the convolution is an output", "c = Conv(x, W) y = Mul(c, k)",
         OUTPUT,
         "W:4,3,1,1 k:4,1,1", y="c, y"),
    keep("readers: pair, the middle is an output", "c = Conv(x, U) y = Conv(c, V)", OUTPUT,
         _NARROW, y="y, c", x=_X4),
    keep("readers: gemms, the middle is an output", "c = Gemm(x, U) y = Gemm(c, V)", OUTPUT,
         "U:4,4 V:4,4", y="c, y", x="float[n,4] x"),
    keep("readers: sum, one branch is an output", "a = Conv(x, U) b = Conv(x, V) "
         "y = Add(a, b)", OUTPUT, _NARROW, y="y, a", x=_X4),
    keep("readers: bn in front, itself an output", "a = Sin(x) b = bn(a) y = Conv(b, U)",
         OUTPUT, "U:4,4,1,1 bn:4", y="y, b", x=_X4),
    collapse("readers: an output behind the pair too", "c = Conv(x, U) d = Conv(c, V) "
             "y = bn(d) z = Identity(y)", "Conv:1 Identity:1", "U:16,2,1,1 V:2,16,1,1 bn:2",
             y="y, z", x="float[n,2,h,w] x"),
    collapse("readers: the output is a view of the bn", "c = Conv(x, W) d = bn(c) "
             "y = Identity(d)", "Conv:1", "W:4,3,1,1 bn:4"),
    collapse("readers: outputs on both sides of a relu",
             "c = Conv(x, W) y = bn(c) z = Relu(y)",
             "Conv:1", "W:4,3,1,1 bn:4", y="y, z"),
]  # fmt: skip

_NODES = [
    keep("readers: bn, the convolution is read by a sine", "c = Conv(x, W) y = bn(c) "
         "z = Sin(c)", READ, "W:4,3,1,1 bn:4", y="y, z"),
    keep("readers: two norms of one convolution", "c = Conv(x, W) d = bn1(c) e = bn2(c) "
         "y = Sigmoid(d) z = Tanh(e)", None, "W:4,16,3,3 bn1:4 bn2:4", y="y, z",
         x="float[n,16,h,w] x"),
    keep("readers: pair, the middle is read by a relu", "c = Conv(x, U) y = Conv(c, V) "
         "z = Relu(c)", READ, _NARROW, y="y, z", x=_X4),
    keep("readers: one bn of the middle and a gate of it", "c = Conv(x, U) d = bn(c) "
         "e = Sigmoid(c) y = Mul(d, e)", READ, "U:4,4,1,1 bn:4", x=_X4),
    keep("readers: the middle is its own factor", "c = Conv(x, U) d = bn(c) y = Mul(c, d)",
         READ, "U:4,4,1,1 bn:4", x=_X4),
    collapse("readers: two norms of one wide-to-narrow map that cost nothing",
             "a = Sigmoid(x) d = bn1(a) e = bn2(a) y = Conv(d, U) z = Conv(e, V)", "Conv:2",
             "U:2,4,1,1 V:3,4,1,1 bn1:4 bn2:4", y="y, z", x=_X4),
    collapse("readers: a shape is no value", "c = Conv(x, W) d = bn(c) s0 = Shape(c) "
             "e = Sin(d) t = Flatten(e) y = Reshape(t, s0)", "Conv:1", "W:4,3,1,1 bn:4"),
    collapse("readers: a dead reader", "c = Conv(x, W) y = bn(c) dead = Sin(c)",
             "Conv:1 Sin:1 BatchNormalization:1",
             "W:4,3,1,1 bn:4"),
]  # fmt: skip

_SUBGRAPHS = [
    keep("readers: bn, the convolution is read in an If",
         f"c = Conv(x, W) y = bn(c) {_if('c')}",
         READ, "W:4,4,1,1 bn:4", y="float[n,4,i,j] y, float[n,4,i,j] z", x=_X4K),
    keep("readers: pair, the middle is read in an If", f"c = Conv(x, U) y = Conv(c, V) "
         f"{_if('c')}", READ, _NARROW, y="float[n,4,i,j] y, float[n,4,i,j] z", x=_X4K),
    keep("readers: bn in front, read in an If",
         f"a = Sin(x) b = bn(a) y = Conv(b, U) {_if('b')}",
         READ, "U:4,4,1,1 bn:4", y="float[n,4,i,j] y, float[n,4,i,j] z", x=_X4K),
    collapse("readers: pair before what an If reads", f"c = Conv(x, U) d = Conv(c, V) "
             f"y = Relu(d) {_if('d')}", "Conv:1", "U:16,4,1,1 V:4,16,1,1",
             y="float[n,4,i,j] y, float[n,4,i,j] z", x=_X4K),
    collapse("readers: weights that an If reads too", "c = Conv(x, W) y = bn(c) z = If<"
             "then_branch = t () => (float[4] to) { to = Sin(g) }, "
             "else_branch = e () => (float[4] eo) { eo = Cos(s) }>(k)", "Conv:1",
             "W:4,4,1,1 bn:4", y="float[n,4,h,w] y, float[4] z", x=_X4K),
    collapse("readers: pairs in the branches of an If", f"y = If<{_pair('then', 'Sin')}, "
             f"{_pair('else', 'Relu')}>(k)", "Conv:2",
             "Ut:16,4,1,1 Vt:2,16,1,1 Ue:16,4,1,1 Ve:2,16,1,1", y="float[n,2,i,j] y", x=_X4K),
    collapse("readers: a pair in the body of a loop", "y = Loop<body = b (int64 i, bool c0, "
             "float[n,4,h,w] v) => (bool c1, float[n,4,h,w] o) { c1 = Identity(c0) "
             "a = Conv(v, U) o1 = Conv(a, V) o = Tanh(o1) }>(trips, yes, x)",
             "Conv:1 Identity:1", "U:16,4,1,1 V:4,16,1,1 trips::int64 yes::bool",
             y="float[n,4,h,w] y", x=_X4, trips=2, yes=True),
    keep("readers: the middle is read in a loop", "c = Conv(x, U) y = Conv(c, V) z = Loop<"
         "body = b (int64 i, bool c0, float[n,4,h,w] v) => (bool c1, float[n,4,h,w] o) "
         "{ c1 = Identity(c0) o1 = Mul(v, c) o = Tanh(o1) }>(trips, yes, x)", READ,
         f"{_NARROW} trips::int64 yes::bool", y="float[n,4,i,j] y, float[n,4,h,w] z", x=_X4,
         trips=2, yes=True),
]  # fmt: skip

_SHARED = [
    collapse("readers: two convolutions share a weight, each with its norm",
             "c = Conv(x, W) y = bn1(c) d = Conv(u, W) z = bn2(d)", "Conv:2",
             "W:4,3,1,1 bn1:4 bn2:4", y="y, z", x="float[n,3,h,w] x, float[n,3,h,w] u"),
    collapse("readers: a weight that another convolution reads unchanged",
             "c = Conv(x, W, s) y = bn(c) z = Conv(x, W, s) w0 = Sin(W)", "Conv:2",
             "W:4,3,1,1 bn:4", y="y, z, w0"),
    collapse("readers: one norm's statistics for two convolutions", "c = Conv(x, W) "
             "y = bn(c) r = Relu(y) d = Conv(r, V) z = bn(d)", "Conv:2",
             "W:4,3,1,1 V:4,4,1,1 bn:4", y="y, z"),
    collapse("readers: the same weight inside and outside",
             "c = Conv(x, W, b) y = Conv(c, W, b)",
             "Conv:1", "W:4,4,1,1 b:4", x=_X4),
    collapse("readers: a weight that is an output", "c = Conv(x, W) y = bn(c)", "Conv:1",
             "W:4,3,1,1 bn:4", y="float[n,4,h,w] y, float[4,3,1,1] W"),
    collapse("readers: a scale that is data for another", "c = Conv(x, W) y = Mul(c, k) "
             "e = Relu(k) z = Mul(x, e)", "Conv:1 Mul:1", "W:3,3,1,1 k:3,1,1", y="y, z"),
]  # fmt: skip

GRAPHS = (*_OUTPUTS, *_NODES, *_SUBGRAPHS, *_SHARED)
