"""Elementwise operators, matrix products, and normalisation by statistics in float64."""

from __future__ import annotations

__all__ = ["ARITHMETIC"]

import math
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import numpy as np

from vntools.export.affine import Array
from vntools.verify.float64_call import Call, Kernel, NotHere, Value

_BROADCAST_BY_RANK, _BN_MODE_BY_ATTRIBUTE, _BN_ALWAYS_SPATIAL = 7, 14, 9  # opsets


def _unary(function: Callable[[Array], Array]) -> Kernel:
    def kernel(call: Call) -> Value:
        x = call.array(0)
        if x.dtype.kind != "f":
            raise NotHere
        return function(x)

    return kernel


def _binary(function: Callable[[Array, Array], Array]) -> Kernel:
    def kernel(call: Call) -> Value:
        a, b = call.array(0), call.array(1)
        if call.version < _BROADCAST_BY_RANK and call.int("broadcast", 0):
            axis = call.int("axis", a.ndim - b.ndim)
            b = b.reshape(b.shape + (1,) * (a.ndim - axis % max(a.ndim, 1) - b.ndim))
        if not a.dtype.kind == b.dtype.kind == "f":
            raise NotHere
        return function(a, b)

    return kernel


def _several(function: Callable[[Array, Array], Array]) -> Kernel:
    def kernel(call: Call) -> Value:
        arrays = [a for a in call.inputs if a is not None]
        if any(a.dtype.kind != "f" for a in arrays):
            raise NotHere
        return reduce(function, arrays)

    return kernel


def _sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1.0) / (1.0 + e)


def _erf(x: Array) -> Array:
    found = np.fromiter(map(math.erf, x.ravel().tolist()), np.float64, x.size)
    return found.reshape(x.shape)


def _relu(x: Array) -> Array:
    return np.maximum(x, 0)


def _hard_sigmoid(call: Call) -> Value:
    x = call.array(0)
    return np.clip(x * call.float("alpha", 0.2) + call.float("beta", 0.5), 0, 1)


def _hard_swish(x: Array) -> Array:
    return x * np.clip(x / 6 + 0.5, 0, 1)


def _leaky_relu(call: Call) -> Value:
    x, alpha = call.array(0), call.float("alpha", 0.01)
    return x if alpha == 1.0 else np.where(x < 0, alpha * x, x)


def _gelu(call: Call) -> Value:
    x = call.array(0)
    if call.text("approximate", "none") == "tanh":
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        return 0.5 * x * (1 + np.tanh(inner))
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def _exponentials(call: Call) -> tuple[Array, Array]:
    """Shifted x and its exponentials; before opset 13 the axes behind ``axis`` are one."""
    x = call.array(0)
    old = call.version < 13
    axis = call.int("axis", 1 if old else -1)
    shape = x.shape
    if old:
        x = x.reshape(math.prod(shape[: axis % x.ndim]), -1)
        axis = 1
    x = x - x.max(axis=axis, keepdims=True)
    e = np.exp(x)
    total = e.sum(axis=axis, keepdims=True)
    return (e / total).reshape(shape), (x - np.log(total)).reshape(shape)


def _softmax(call: Call) -> Value:
    return _exponentials(call)[0]


def _log_softmax(call: Call) -> Value:
    return _exponentials(call)[1]


def _hardmax(call: Call) -> Value:
    x = call.array(0)
    if call.version >= 13:
        raise NotHere
    flat = x.reshape(math.prod(x.shape[: call.int("axis", 1) % x.ndim]), -1)
    return (
        (np.arange(flat.shape[1]) == flat.argmax(1)[:, None]).astype(x.dtype).reshape(x.shape)
    )


def _matmul(a: Array, b: Array) -> Array:
    return np.asarray(a @ b)


def _gemm(call: Call) -> Value:
    a, b, c = call.array(0), call.array(1), call.optional(2)
    if a.dtype.kind != "f":
        raise NotHere
    y = (a.T if call.int("transA", 0) else a) @ (b.T if call.int("transB", 0) else b)
    if (alpha := call.float("alpha", 1.0)) != 1.0:
        y *= alpha
    return y if c is None else y + call.float("beta", 1.0) * c


def _batch_normalization(call: Call) -> Any:
    """BatchNormalization-1 to -15, with the statistics given or, in training, the batch's.

    In training it writes running statistics too, and before opset 14 the batch's own behind
    them.
    """
    x, gamma, beta, mean, var = (call.array(i) for i in range(5))
    if call.version < _BN_ALWAYS_SPATIAL and not call.int("spatial", 1):
        column, axes = (1, *x.shape[1:]), (0,)
    else:
        column, axes = (1, -1) + (1,) * (x.ndim - 2), (0, *range(2, x.ndim))
    if not _trains(call):
        scale = gamma / np.sqrt(var + call.float("epsilon", 1e-5))
        y = x * scale.reshape(column)
        y += (beta - mean * scale).reshape(column)
        return y
    seen, spread = x.mean(axis=axes), x.var(axis=axes)
    kept = call.float("momentum", 0.9)
    running = [
        (kept * old.reshape(-1) + (1 - kept) * new.reshape(-1)).reshape(old.shape)
        for old, new in ((mean, seen), (var, spread))
    ]
    scale = gamma.reshape(column) / np.sqrt(spread + call.float("epsilon", 1e-5)).reshape(
        column
    )
    y = (x - seen.reshape(column)) * scale + beta.reshape(column)
    return (y, *running, seen, spread)


def _trains(call: Call) -> bool:
    """Whether a BatchNormalization is in training mode, which each opset says in its way."""
    if call.version >= _BN_MODE_BY_ATTRIBUTE:
        return bool(call.int("training_mode", 0))
    if call.version >= _BROADCAST_BY_RANK:
        return call.written() > 1
    return not call.int("is_test", 0)


ARITHMETIC: Mapping[str, Kernel] = {
    "Abs": _unary(np.abs),
    "Add": _binary(np.add),
    "BatchNormalization": _batch_normalization,
    "Div": _binary(np.divide),
    "Erf": _unary(_erf),
    "Exp": _unary(np.exp),
    "Gelu": _gelu,
    "Gemm": _gemm,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary(_hard_swish),
    "Hardmax": _hardmax,
    "LeakyRelu": _leaky_relu,
    "Log": _unary(np.log),
    "LogSoftmax": _log_softmax,
    "MatMul": _binary(_matmul),
    "Max": _several(np.maximum),
    "Min": _several(np.minimum),
    "Mul": _binary(np.multiply),
    "Neg": _unary(np.negative),
    "Reciprocal": _unary(np.reciprocal),
    "Relu": _unary(_relu),
    "Sigmoid": _unary(_sigmoid),
    "Softmax": _softmax,
    "Sqrt": _unary(np.sqrt),
    "Sub": _binary(np.subtract),
    "Sum": _several(np.add),
    "Tanh": _unary(np.tanh),
}
