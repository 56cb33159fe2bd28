"""What looks linear and is not: each stays, and a Skip says why."""

from __future__ import annotations

__all__ = ["GRAPHS"]

import numpy as np
import onnx
from onnx import helper

from tests.collection.base import Graph, collapse, keep
from tests.collection.reasons import (
    CAST,
    DATA,
    NORM,
    OVERFLOW,
    OVERRIDE,
    QUANT,
    SLOPE,
    STATISTICS,
    TRAINING,
)

_WIDE = "U:16,3,1,1 V:2,16,1,1"


def _between(what: str, body: str, held: str, reason: str | None, **kwargs: object) -> Graph:
    """``body`` makes d of c, between two 1x1 convolutions of which one would do."""
    text = f"c = Conv(x, U) {body} y = Conv(d, V)"
    return keep(f"nonlinear: {what}", text, reason, f"{_WIDE} {held}", **kwargs)


def _gate(what: str, body: str, held: str = "", **kwargs: object) -> Graph:
    """As :func:`_between`, where c has few channels: what reads it is cheap as it is."""
    text = f"c = Conv(x, U) {body} y = Conv(d, V)"
    given = {"x": "float[n,16,h,w] x"} | kwargs
    return keep(f"nonlinear: {what}", text, DATA, f"U:4,16,1,1 V:4,4,1,1 {held}", **given)


def _nothing(what: str, body: str, held: str = "", **kwargs: object) -> Graph:
    """``body`` makes d of c and changes nothing."""
    text = f"c = Conv(x, U) {body} y = Conv(d, V)"
    return collapse(f"nothing: {what}", text, "Conv:1 Identity:0 Dropout:0 Cast:0 LeakyRelu:0 "
                    "PRelu:0", f"{_WIDE} {held}", **kwargs)  # fmt: skip


_SLOPES = [
    _nothing("slope 1", "d = LeakyRelu<alpha=1.0>(c)"),
    _nothing("slopes 1", "d = PRelu(c, k)", "k:16,1,1", k=np.ones((16, 1, 1))),
    _nothing("one slope 1", "d = PRelu(c, k)", "k:1", k=[1]),
    _between("slope 0.9999", "d = LeakyRelu<alpha=0.9999>(c)", "", SLOPE),
    _between("slope just above 1", "d = LeakyRelu<alpha=1.0000001>(c)", "", SLOPE),
    _between("slope not given", "d = LeakyRelu(c)", "", SLOPE),
    _between("slope 0", "d = LeakyRelu<alpha=0.0>(c)", "", SLOPE),
    _between("one slope of sixteen is not 1", "d = PRelu(c, k)", "k:16,1,1", SLOPE,
             k=[*[[[1]]] * 15, [[0.5]]]),
    _between("slopes from data", "d = PRelu(c, u)", "", None,
             x="float[n,3,h,w] x, float[16,1,1] u"),
    _between("thresholded", "d = ThresholdedRelu<alpha=0.5>(c)", "", None),
    _between("elu, selu, softplus", "a = Elu(c) b = Selu(a) d = Softplus(b)", "", None),
]  # fmt: skip

_NO_OPERATIONS = [
    _nothing("identity", "d = Identity(c)"),
    _nothing("dropout", "d = Dropout(c)"),
    _nothing("dropout of a ratio", "d = Dropout(c, r)", "r:", r=0.5),
    _nothing("dropout, not in training", "d = Dropout(c, r, t)", "r: t::bool", r=0.5, t=False),
    _nothing("cast to its own type", "d = Cast<to=1>(c)"),
    _nothing("scale by 1, shift by 0", "a = Mul(c, k) d = Add(a, j)", "k: j:1", k=1, j=[0]),
    _nothing("several at once", "a = Identity(c) b = Identity(a) d = Dropout(b)"),
    _between("dropout, training by the caller", "d = Dropout(c, r, t)", "r:", r"training|data",
             r=0.5, x="float[n,3,h,w] x, bool t", runs="nowhere"),
    _between("dropout in training", "[it] d = Dropout<seed=1>(c, r, t)", "r: t::bool",
             TRAINING, r=0.5, t=True, runs="nowhere"),
    keep("nonlinear: dropout's mask", "c = Conv(x, U) [it] d, e = Dropout(c) y = Conv(d, V) "
         "z = Cast<to=1>(e)", None, _WIDE, y="y, z"),
    _between("half precision and back", "a = Cast<to=10>(c) d = Cast<to=1>(a)", "", CAST,
             runs="nowhere"),
    _between("integers and back", "a = Cast<to=6>(c) d = Cast<to=1>(a)", "", CAST),
]  # fmt: skip

_NORMS = [
    _between("instance norm", "d = InstanceNormalization(c, k, j)", "k:16 j:16", NORM),
    _between("layer norm", "a = Transpose<perm=[0,2,3,1]>(c) b = LayerNormalization(a, k, j) "
             "d = Transpose<perm=[0,3,1,2]>(b)", "k:16 j:16", NORM),
    _between("group norm", "d = GroupNormalization<num_groups=4>(c, k, j)", "k:16 j:16", NORM,
             opset=21, y="float[n,2,h,w] y"),
    _between("lp norm", "d = LpNormalization<axis=1>(c)", "", None),
    keep("nonlinear: bn in training", "c = Conv(x, W) y, rm, rv = BatchNormalization"
         "<training_mode=1>(c, g, s, m, v)", TRAINING, "W:4,3,1,1 bn:4"),
    keep("nonlinear: bn in training, one output", "c = Conv(x, W) y = BatchNormalization"
         "<training_mode=1>(c, g, s, m, v)", TRAINING, "W:4,3,1,1 bn:4", y="float[n,4,h,w] y",
         runs="nowhere"),
    keep("nonlinear: bn of opset 9 with running outputs", "c = Conv(x, W) "
         "y, rm, rv, sm, sv = BatchNormalization(c, g, s, m, v)", TRAINING, "W:4,3,1,1 bn:4",
         opset=9, runs="nowhere"),
    keep("nonlinear: bn of a mean from data", "c = Conv(x, W) m0 = ReduceMean<keepdims=0>"
         "(c, ax) y = BatchNormalization(c, g, s, m0, v)", DATA,
         "W:4,3,1,1 g:4 s:4 v:4 ax:3:int64", ax=[0, 2, 3]),
    keep("nonlinear: bn of a negative variance", "c = Conv(x, W) y = bn(c)", STATISTICS,
         "W:4,3,1,1 bn:4", v=[1, -1, 1, 1], runs="nowhere"),
    keep("nonlinear: bn of variance and epsilon 0", "c = Conv(x, W) y = BatchNormalization"
         "<epsilon=0.0>(c, g, s, m, v)", STATISTICS, "W:4,3,1,1 bn:4", v=[1, 0, 1, 1],
         runs="nowhere"),
    keep("nonlinear: bn of a variance that is no number", "c = Conv(x, W) y = bn(c)",
         STATISTICS, "W:4,3,1,1 bn:4", v=[1, np.nan, 1, 1], runs="nowhere"),
    keep("nonlinear: scale that is no number", "c = Conv(x, W) y = Mul(c, k)",
         r"finite|overflow|range", "W:4,3,1,1 k:4,1,1", k=[[[np.inf]], [[1]], [[1]], [[1]]],
         runs="nowhere"),
    keep("nonlinear: divided by zero", "c = Conv(x, W) y = Div(c, k)",
         r"finite|overflow|range|zero", "W:4,3,1,1 k:4,1,1", k=[[[0]], [[1]], [[1]], [[1]]],
         runs="nowhere"),
]  # fmt: skip

_GATES = [
    _gate("squeeze and excitation", "p = GlobalAveragePool(c) e = Conv(p, E) "
          "s0 = Sigmoid(e) d = Mul(c, s0)", "E:4,4,1,1"),
    _gate("spatial gate", "e = Conv(c, E) s0 = Sigmoid(e) d = Mul(s0, c)", "E:1,4,1,1"),
    _between("a scale from outside", "d = Mul(c, u)", "", DATA,
             x="float[n,3,h,w] x, float[16,1,1] u"),
    _between("a quotient of data", "d = Div(c, u)", "", DATA,
             x="float[n,3,h,w] x, float[16,1,1] u"),
    _between("swish", "e = Sigmoid(c) d = Mul(c, e)", "", DATA),
    _between("a scale by the input's size", "t = Shape<start=2, end=3>(x) e = Cast<to=1>(t) "
             "d = Mul(c, e)", "", DATA),
    keep("nonlinear: weight computed from data", "W1 = Mul(W, u) c = Conv(x, W1) y = bn(c)",
         DATA, "W:4,3,1,1 bn:4", x="float[n,3,h,w] x, float[1] u"),
    keep("nonlinear: weight from outside", "c = Conv(x, u) y = bn(c)", DATA, "bn:4",
         x="float[n,3,h,w] x, float[4,3,1,1] u"),
    keep("nonlinear: bias from outside", "c = Conv(x, W, u) y = bn(c)", DATA,
         "W:4,3,1,1 bn:4", x="float[n,3,h,w] x, float[4] u"),
    keep("nonlinear: chance", "c = Conv(x, W) r = RandomNormalLike(c) y = Mul(c, r)", DATA,
         "W:4,3,1,1", runs="nowhere"),
]  # fmt: skip

_QUANTISED = [
    _between("quantised and back", "q = QuantizeLinear(c, k, z) d = DequantizeLinear(q, k, z)",
             "k: z::uint8", QUANT, k=0.1, z=128),
    keep("nonlinear: quantised weight", "W = DequantizeLinear(Q, k, z) c = Conv(x, W, b) "
         "y = bn(c)", QUANT, "Q:4,3,1,1:int8 k: z::int8 b:4 bn:4", k=0.02, z=0,
         Q=np.arange(-6, 6).reshape(4, 3, 1, 1)),
    keep("nonlinear: quantised weight and input", "a = QuantizeLinear(x, k, z) "
         "d = DequantizeLinear(a, k, z) W = DequantizeLinear(Q, k, z0) c = Conv(d, W) "
         "y = Mul(c, j)", QUANT, "Q:4,3,1,1:int8 k: z::uint8 z0::int8 j:4,1,1", k=0.02, z=128,
         z0=0, Q=np.arange(-6, 6).reshape(4, 3, 1, 1)),
    keep("nonlinear: integers", "a, k, z = DynamicQuantizeLinear(x) c = ConvInteger(a, Q, z) "
         "e = Cast<to=1>(c) d = Mul(e, k) y = bn(d)", None, "Q:4,3,1,1:uint8 bn:4",
         Q=np.arange(12).reshape(4, 3, 1, 1)),
]  # fmt: skip


def _overridable(name: str) -> Graph:
    """Conv, bn, mul, gemm: ``name`` is an initializer and an input, so a caller may set it."""

    def edit(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == name)
        info = helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))
        model.graph.input.append(info)

    op = {"g": "bn(c)", "m": "bn(c)", "k": "Mul(c, k)"}.get(name, "bn(c)")
    held = f"W:4,3,1,1 b:4 {'k:4,1,1' if name == 'k' else 'bn:4'}"
    return keep(f"nonlinear: overridable {name}", f"c = Conv(x, W, b) y = {op}", OVERRIDE,
                held, edit=edit, runs="nowhere")  # fmt: skip


_OVERRIDES = [_overridable(name) for name in ("W", "b", "g", "m", "k")]

_RANGE = [
    keep("nonlinear: half precision overflows", "c = Conv(x, W) y = Mul(c, k)", OVERFLOW,
         "W:4,3,1,1 k:4,1,1", dtype="float16", W=np.full((4, 3, 1, 1), 300),
         k=np.full((4, 1, 1), 300), runs="nowhere"),
    keep("nonlinear: half precision overflows in a product", "c = Conv(x, U) y = Conv(c, V)",
         OVERFLOW, "U:16,3,1,1 V:2,16,1,1", dtype="float16", U=np.full((16, 3, 1, 1), 200),
         V=np.full((2, 16, 1, 1), 200), runs="nowhere"),
    keep("nonlinear: single precision overflows", "c = Conv(x, U) y = Conv(c, V)", OVERFLOW,
         "U:4,4,1,1 V:4,4,1,1", U=np.full((4, 4, 1, 1), 1e30), V=np.full((4, 4, 1, 1), 1e30),
         x="float[n,4,h,w] x", runs="nowhere"),
]  # fmt: skip

GRAPHS = (
    *_SLOPES,
    *_NO_OPERATIONS,
    *_NORMS,
    *_GATES,
    *_QUANTISED,
    *_OVERRIDES,
    *_RANGE,
)
