"""A float64 evaluator of ONNX graphs: the reference that every float32 graph is held against.

Weights are widened one layer at a time and values are freed behind their last reader, so
memory stays near that of the float32 model. Convolutions are done here: 1x1 as one matrix
product over all samples, depthwise as products with band matrices, others tap by tap. The
remaining operators run through ONNX's reference implementation, with every float in float64.
"""

from __future__ import annotations

__all__ = ["evaluate"]

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vntools.base.errors import DataFault
from vntools.export.affine import Array
from vntools.export.graph import ONNX_DOMAINS, constant, int_attribute, ints_attribute

_TILE = 16  # places along a line that one product of a depthwise convolution writes
_CHANNELS = 32  # done together there: few enough for a core's own cache
_UNFOLDED_BYTES = 1 << 26
_FLOATS = frozenset(
    (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
)

Value = NDArray[Any]
Kernel = Callable[[ir.Node, list[Value | None]], Value]


def evaluate(graph: ir.Graph, feeds: Mapping[str, Value]) -> dict[str, Value]:
    """Outputs of ``graph`` for ``feeds``, all floating-point arithmetic in float64.

    Args:
        graph: a graph without local functions; initializers of any float type.
        feeds: an array for each input that is no initializer.

    Raises:
        DataFault: ``onnx.op``, where an operator is unknown to ONNX's reference
            implementation or does not fit its inputs; ``onnx.control_flow``, where a node
            holds a subgraph.
    """
    values: dict[ir.Value, Value] = {}
    for value in graph.inputs:
        if value.name is not None and value.name in feeds:
            values[value] = _wide(feeds[value.name])
    left = Counter(v for node in graph for v in node.inputs if v is not None)
    left.update(graph.outputs)
    for node in graph:
        # No name holds the widened weights of a layer while those of the next are made.
        outputs = _run(node, [None if v is None else _read(v, values) for v in node.inputs])
        values.update(zip(node.outputs, outputs, strict=False))
        for v in node.inputs:
            if v is not None:
                left[v] -= 1
                if not left[v]:
                    values.pop(v, None)
    return {v.name or "": _read(v, values) for v in graph.outputs}


def _wide(array: Value) -> Value:
    return array.astype(np.float64, copy=False) if array.dtype.kind in "fV" else array


def _read(value: ir.Value, values: Mapping[ir.Value, Value]) -> Value:
    if value in values:
        return values[value]
    if value.const_value is None:
        raise DataFault("onnx.invalid", f"value {value.name!r} is read before it is written")
    return _wide(value.const_value.numpy())


def _run(node: ir.Node, inputs: list[Value | None]) -> list[Value]:
    if any(
        a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for a in node.attributes.values()
    ):
        raise DataFault("onnx.control_flow", f"{node.op_type} {node.name!r} holds a subgraph")
    kernel = _KERNELS.get(node.op_type) if node.domain in ONNX_DOMAINS else None
    if node.op_type == "MaxPool" and len(node.outputs) > 1:
        kernel = None  # ours writes no Indices
    if kernel is None:
        return _reference(node, inputs)
    try:
        return [kernel(node, inputs)]
    except (ValueError, ArithmeticError) as e:
        raise _unfit(node, e) from e


def _unfit(node: ir.Node, why: Exception) -> DataFault:
    what = f"{node.op_type} {node.name!r}"
    return DataFault("onnx.op", f"{what} cannot be evaluated: {type(why).__name__}: {why}")


def _reference(node: ir.Node, inputs: list[Value | None]) -> list[Value]:
    from onnx.reference import ReferenceEvaluator

    graph = node.graph
    version = node.version or (
        graph.opset_imports.get(node.domain) if graph is not None else None
    )
    try:
        evaluator = ReferenceEvaluator(
            ir.serde.serialize_node(node), opsets={node.domain: version or 1}
        )
        feeds = {
            v.name or "": _wide(a)
            for v, a in zip(node.inputs, inputs, strict=True)
            if v is not None and a is not None
        }
        return [_wide(np.asarray(r)) for r in evaluator.run(None, feeds)]
    except Exception as e:
        raise _unfit(node, e) from e


def _conv(node: ir.Node, inputs: list[Value | None]) -> Array:
    """Conv-11 for x (n, c, ..), W (o, c / g, ..), any number of spatial axes."""
    x, w = inputs[0], inputs[1]
    assert x is not None
    assert w is not None
    axes, groups = w.ndim - 2, int_attribute(node, "group", 1)
    strides = ints_attribute(node, "strides") or (1,) * axes
    dilations = ints_attribute(node, "dilations") or (1,) * axes
    pads = _pads(node, x.shape[2:], w.shape[2:], strides, dilations)
    dense = axes == 2 and strides == dilations == (1, 1)
    depthwise = dense and groups == w.shape[0] == x.shape[1]
    if any(pads) and not depthwise:
        edges = [(0, 0), (0, 0), *zip(pads[:axes], pads[axes:], strict=True)]
        x = np.pad(x, edges)
    if math.prod(w.shape[2:]) == 1 and groups == 1:
        window = tuple(slice(None, None, s) for s in strides)
        y = _pointwise(x[(slice(None), slice(None), *window)], w)
    elif depthwise:
        y = _depthwise(x, w, pads)
    else:
        y = _tapwise(x, w, strides, dilations, groups)
    bias = inputs[2] if len(inputs) > 2 else None
    if bias is not None:
        y += bias.reshape((1, -1) + (1,) * axes)
    return y


def _pads(
    node: ir.Node,
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
) -> tuple[int, ...]:
    attribute = node.attributes.get("auto_pad")
    mode = attribute.as_string() if attribute is not None else "NOTSET"
    if mode == "NOTSET":
        return ints_attribute(node, "pads") or (0,) * 2 * len(size)
    if mode == "VALID":
        return (0,) * 2 * len(size)
    total = [
        max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
        for n, k, s, d in zip(size, kernel, strides, dilations, strict=True)
    ]
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return (*small, *large) if mode == "SAME_UPPER" else (*large, *small)


def _pointwise(x: Array, w: Value) -> Array:
    """A 1x1 convolution as one product (o, c) @ (c, n p) over all samples and places."""
    n, c = x.shape[:2]
    places = x.shape[2:]
    if n == 1:
        columns = x.reshape(c, -1)
    else:
        columns = np.ascontiguousarray(x.reshape(n, c, -1).transpose(1, 0, 2)).reshape(c, -1)
    y = w.reshape(w.shape[0], c) @ columns
    return y.reshape(-1, n, math.prod(places)).transpose(1, 0, 2).reshape(n, -1, *places)


def _depthwise(x: Array, w: Value, pads: tuple[int, ...]) -> Array:
    """A dense depthwise convolution of x (n, c, h, w) at stride 1, as matrix products.

    Along a line the kernel is a band matrix: row i of it takes a tile of the padded line,
    (k - 1) wider than its result, to that result. One product does so for all lines of all
    samples of a channel, and the products of the kernel's rows are added. What straddles two
    samples is cut off at the end.
    """
    n, c, height, width = x.shape
    kh, kw = w.shape[2:]
    top, left, bottom, right = pads
    lines, columns = height + top + bottom, width + left + right
    oh, ow = lines - kh + 1, columns - kw + 1
    tile = min(ow, _TILE)
    out = np.empty((c, n, oh, ow))
    padded = np.zeros((_CHANNELS, n, lines, columns))
    bands = np.zeros((_CHANNELS, kh, tile + kw - 1, tile))
    for start in range(0, c, _CHANNELS):
        part = slice(start, start + _CHANNELS)
        m = len(w[part])
        padded[:m, :, top : top + height, left : left + width] = x[:, part].swapaxes(0, 1)
        for j in range(tile):
            bands[:m, :, j : j + kw, j] = w[part, 0]
        tall = padded[:m].reshape(m, n * lines, columns)
        for at in range(0, ow, tile):
            wide = min(tile, ow - at)
            taken, reach = n * lines - kh + 1, wide + kw - 1
            y = np.zeros((m, n * lines, wide))
            for i in range(kh):
                y[:, :taken] += (
                    tall[:, i : i + taken, at : at + reach] @ bands[:m, i, :reach, :wide]
                )
            out[part, :, :, at : at + wide] = y.reshape(m, n, lines, wide)[:, :, :oh]
    return out.swapaxes(0, 1)


def _tapwise(
    x: Array, w: Value, strides: tuple[int, ...], dilations: tuple[int, ...], groups: int
) -> Array:
    """Any convolution of padded x: a product per group over channels and taps together.

    Where the unfolded input would be large, a product per tap.
    """
    kernel = w.shape[2:]
    size = tuple(
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True)
    )
    n, places = x.shape[0], math.prod(size)
    windows = [
        tuple(
            slice(t * d, t * d + s * (m - 1) + 1, s)
            for t, d, s, m in zip(u, dilations, strides, size, strict=True)
        )
        for u in itertools.product(*map(range, kernel))
    ]
    weights = w.reshape(groups, w.shape[0] // groups, w.shape[1], -1)
    if 8 * n * x.shape[1] * len(windows) * places <= _UNFOLDED_BYTES:
        parts = [
            x[(slice(None), slice(None), *u)].reshape(n, x.shape[1], places) for u in windows
        ]
        columns = np.stack(parts, axis=2).reshape(n, groups, -1, places)
        y = weights.reshape(groups, weights.shape[1], -1) @ columns
        return y.reshape(n, -1, *size)
    y = np.zeros((n, groups, weights.shape[1], places))
    for t, window in enumerate(windows):
        part = x[(slice(None), slice(None), *window)].reshape(n, groups, -1, places)
        y += np.ascontiguousarray(weights[..., t]) @ part
    return y.reshape(n, -1, *size)


def _batch_normalization(node: ir.Node, inputs: list[Value | None]) -> Array:
    """BatchNormalization-15 in inference mode."""
    x, gamma, beta, mean, var = (a for a in inputs if a is not None)
    if int_attribute(node, "training_mode", 0):
        raise DataFault(
            "onnx.bn_training",
            f"BatchNormalization {node.name!r} is in training mode",
            hint="export the network with model.eval()",
        )
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    column = (1, -1) + (1,) * (x.ndim - 2)
    scale = gamma / np.sqrt(var + epsilon)
    y = x * scale.reshape(column)
    y += (beta - mean * scale).reshape(column)
    return y


def _relu(node: ir.Node, inputs: list[Value | None]) -> Array:
    x = inputs[0]
    assert x is not None
    return np.maximum(x, 0)


def _leaky_relu(node: ir.Node, inputs: list[Value | None]) -> Array:
    x = inputs[0]
    assert x is not None
    alpha = node.attributes["alpha"].as_float() if "alpha" in node.attributes else 0.01
    return x if alpha == 1.0 else np.where(x < 0, alpha * x, x)


def _max_pool(node: ir.Node, inputs: list[Value | None]) -> Array:
    """MaxPool-12 over two axes, floor mode, without padding; others through the reference."""
    x = inputs[0]
    assert x is not None
    kernel = ints_attribute(node, "kernel_shape") or ()
    strides = ints_attribute(node, "strides") or (1,) * len(kernel)
    dilations = ints_attribute(node, "dilations") or (1,) * len(kernel)
    plain = len(node.outputs) == 1 and not int_attribute(node, "ceil_mode", 0)
    if not plain or any(_pads(node, x.shape[2:], kernel, strides, dilations)):
        return _reference(node, inputs)[0]
    size = [
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True)
    ]
    y: Array | None = None
    for u in itertools.product(*map(range, kernel)):
        window = tuple(
            slice(t * d, t * d + s * (m - 1) + 1, s)
            for t, d, s, m in zip(u, dilations, strides, size, strict=True)
        )
        part = x[(slice(None), slice(None), *window)]
        y = part.copy() if y is None else np.maximum(y, part, out=y)
    assert y is not None
    return y


def _global_average_pool(node: ir.Node, inputs: list[Value | None]) -> Array:
    x = inputs[0]
    assert x is not None
    return x.mean(axis=tuple(range(2, x.ndim)), keepdims=True)


def _cast(node: ir.Node, inputs: list[Value | None]) -> Value:
    """Cast and CastLike; a cast between float types changes nothing here."""
    x = inputs[0]
    assert x is not None
    out = node.outputs[0].dtype
    if node.op_type == "Cast":
        out = ir.DataType(int_attribute(node, "to", 1))
    elif inputs[1] is not None and inputs[1].dtype.kind == "f":
        out = ir.DataType.DOUBLE
    if out in _FLOATS:
        return x.astype(np.float64)
    return _reference(node, inputs)[0]


def _identity(node: ir.Node, inputs: list[Value | None]) -> Value:
    x = inputs[0]
    assert x is not None
    return x


def _constant(node: ir.Node, inputs: list[Value | None]) -> Value:
    array = constant(node.outputs[0])
    if array is None:
        raise DataFault("onnx.op", f"Constant {node.name!r} holds no tensor")
    return _wide(array)


_KERNELS: dict[str, Kernel] = {
    "BatchNormalization": _batch_normalization,
    "Cast": _cast,
    "CastLike": _cast,
    "Constant": _constant,
    "Conv": _conv,
    "GlobalAveragePool": _global_average_pool,
    "Identity": _identity,
    "LeakyRelu": _leaky_relu,
    "MaxPool": _max_pool,
    "Relu": _relu,
}
