"""Operators that move, cast or draw values: old forms, and what ONNX's reference has wrong."""

from __future__ import annotations

__all__ = ["FORMS"]

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from vntools.export.graph import constant
from vntools.verify.float64_call import Call, Kernel, NotHere, Value, wide

_FLOATS = frozenset(
    (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
)
_LARGEST_DRAW = 1 << 28  # elements


def _identity(call: Call) -> Any:
    return call.inputs[0]


def _constant(call: Call) -> Value:
    array = constant(call.node.outputs[0])
    if array is None:
        raise NotHere
    return wide(array)


def _cast(call: Call) -> Value:
    """Cast and CastLike; a cast between float types changes nothing here."""
    x = call.array(0)
    out = call.node.outputs[0].dtype
    if call.node.op_type == "Cast":
        if call.version < 6:  # a word then
            raise NotHere
        out = ir.DataType(call.int("to", 1))
    elif call.array(1).dtype.kind == "f":
        out = ir.DataType.DOUBLE
    if out not in _FLOATS or x.dtype.kind not in "fiub":
        raise NotHere
    return x.astype(np.float64)


def _reshape(call: Call) -> Value:
    """Reshape-1 to -25: 0 keeps an extent, unless ``allowzero``."""
    x = call.array(0)
    shape = call.ints("shape")
    if shape is None:
        shape = tuple(int(d) for d in call.array(1))
    if not call.int("allowzero", 0):
        shape = tuple(d or x.shape[i] for i, d in enumerate(shape))
    return x.reshape(shape)


def _transpose(call: Call) -> Value:
    return call.array(0).transpose(call.ints("perm"))


def _pad(call: Call) -> Value:
    """Pad-1 to -25; a negative pad crops."""
    x, pads = call.array(0), call.ints("pads") or call.ints("paddings")
    value: Any = call.float("value", 0.0)
    axes = list(range(x.ndim))
    if pads is None:
        pads = tuple(int(p) for p in call.array(1))
        given, chosen = call.optional(2), call.optional(3)
        value = 0 if given is None or not given.size else given.reshape(-1)[0]
        axes = axes if chosen is None else [int(a) % x.ndim for a in chosen]
    mode = call.text("mode", "constant")
    ends = [(0, 0)] * x.ndim
    for i, a in enumerate(axes):
        ends[a] = (pads[i], pads[i + len(axes)])
    inner = tuple(
        slice(max(-p, 0), n - max(-q, 0)) for (p, q), n in zip(ends, x.shape, strict=True)
    )
    grown = [(max(p, 0), max(q, 0)) for p, q in ends]
    if mode == "constant":
        return np.pad(x[inner], grown, constant_values=value)
    modes = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}
    return np.pad(x[inner], grown, mode=modes[mode])  # pyright: ignore[reportArgumentType, reportCallIssue]


def _dropout(call: Call) -> tuple[Value, Value]:
    """Dropout-1 to -22; in training a seeded mask."""
    x, training = call.array(0), call.optional(2)
    ratio = call.float("ratio", 0.5)
    if call.version < 7:
        trains = not call.int("is_test", 0)
    else:
        trains = call.version >= 12 and training is not None and bool(training.any())
        given = call.optional(1)
        ratio = ratio if given is None else float(given.item())
    if not trains or ratio == 0:
        return x, np.ones(x.shape, bool)
    mask = call.random().random(x.shape) >= ratio
    return np.where(mask, x / (1 - ratio) if ratio < 1 else 0.0, 0.0), mask


def _drawn(call: Call) -> Value:
    """RandomNormal, RandomUniform and those of an input's shape."""
    like = call.node.op_type.endswith("Like")
    shape = call.array(0).shape if like else call.ints("shape") or ()
    if math.prod(shape) > _LARGEST_DRAW:
        raise ValueError(f"{math.prod(shape)} random numbers")
    if "Normal" in call.node.op_type:
        normal = call.random().standard_normal(shape)
        return call.float("mean", 0.0) + call.float("scale", 1.0) * normal
    low, high = call.float("low", 0.0), call.float("high", 1.0)
    return call.random().uniform(low, high, shape)


def _bernoulli(call: Call) -> Value:
    p = call.array(0)
    kind = ir.DataType(call.int("dtype", ir.DataType.DOUBLE))
    return wide((call.random().random(p.shape) < p).astype(kind.numpy()))


def _multinomial(call: Call) -> Value:
    logits, count = call.array(0), call.int("sample_size", 1)
    noise = call.random().gumbel(size=(len(logits), count, logits.shape[1]))
    kind = ir.DataType(call.int("dtype", ir.DataType.INT32))
    return (logits[:, None] + noise).argmax(-1).astype(kind.numpy())


FORMS: Mapping[str, Kernel] = {
    "Bernoulli": _bernoulli,
    "Cast": _cast,
    "CastLike": _cast,
    "Constant": _constant,
    "Dropout": _dropout,
    "Identity": _identity,
    "Multinomial": _multinomial,
    "Pad": _pad,
    "RandomNormal": _drawn,
    "RandomNormalLike": _drawn,
    "RandomUniform": _drawn,
    "RandomUniformLike": _drawn,
    "Reshape": _reshape,
    "Transpose": _transpose,
}
