"""ONNX graphs as text, weights from a seed, and a plain float64 evaluation to hold against."""

from __future__ import annotations

__all__ = [
    "conv",
    "feeds_of",
    "graph",
    "onnx_bytes",
    "parsed",
    "reference",
    "relative",
    "text_of",
]

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from vntools.export.load import parse_onnx

Array = NDArray[Any]


def parsed(
    text: str, *, seed: int = 0, opset: int = 20, foreign: str = "", **weights: object
) -> onnx.ModelProto:
    """``(float[n,3] x) => (float[n,3] y) <float[3] W> { y = Add(x, W) }`` as a model.

    What is declared between angle brackets, and no node writes, becomes an initializer: the
    one of ``weights``, else standard normal from ``seed`` (the variance of a
    BatchNormalization is positive).
    """
    domains = f'"" : {opset}' + (f', "{foreign}" : 1' if foreign else "")
    model = onnx.parser.parse_model(f"<ir_version: 10, opset_import: [{domains}]> g {text}")
    rng = np.random.default_rng(seed)
    nodes = model.graph.node
    written = {name for n in nodes for name in n.output}
    variances = {n.input[4] for n in nodes if n.op_type == "BatchNormalization"}
    for info in list(model.graph.value_info):
        if info.name in written:
            continue
        model.graph.value_info.remove(info)
        tensor = info.type.tensor_type
        dims = [d.dim_value for d in tensor.shape.dim]
        drawn = (
            rng.uniform(0.5, 2, dims) if info.name in variances else rng.standard_normal(dims)
        )
        value = np.asarray(
            weights.pop(info.name, drawn), helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        )
        model.graph.initializer.append(numpy_helper.from_array(value, info.name))
    assert not weights, f"the text declares no {', '.join(weights)}"
    return model


def onnx_bytes(text: str, **kwargs: Any) -> bytes:
    """As :func:`parsed`, serialised."""
    return parsed(text, **kwargs).SerializeToString(deterministic=True)


def graph(text: str, **kwargs: Any) -> ir.Model:
    """As :func:`parsed`, as the product reads it: checked, shapes inferred."""
    return parse_onnx(onnx_bytes(text, **kwargs))


def feeds_of(model: ir.Model, *, seed: int = 1, batch: int = 2) -> dict[str, Array]:
    """Standard normal inputs; what is symbolic is ``batch``."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for value in model.graph.inputs:
        if value.name not in model.graph.initializers:
            assert value.name
            assert value.shape is not None
            assert value.dtype is not None
            dims = [d if isinstance(d, int) else batch for d in value.shape]
            feeds[value.name] = rng.standard_normal(dims).astype(value.dtype.numpy())
    return feeds


def text_of(graph: ir.Graph) -> str:
    """A graph as text to compare and read: nodes with types and attributes, initializers."""
    lines = [
        ", ".join(map(_typed, graph.inputs)) + " => " + ", ".join(map(_typed, graph.outputs))
    ]
    for node in graph:
        attributes = ", ".join(f"{k}={_shown(a)}" for k, a in sorted(node.attributes.items()))
        inputs = ", ".join("" if v is None else str(v.name) for v in node.inputs)
        outputs = ", ".join(map(_typed, node.outputs))
        label = f"[{node.name}] " if node.name else ""
        lines.append(f"{label}{outputs} = {node.op_type}<{attributes}>({inputs})")
    lines += [
        f"initializer {_typed(graph.initializers[k])}" for k in sorted(graph.initializers)
    ]
    return "\n".join(lines) + "\n"


def _shown(attribute: ir.Attr) -> str:
    if attribute.type == ir.AttributeType.TENSOR:
        return str(attribute.as_tensor().numpy().tolist())
    value = attribute.value
    return str(list(value) if isinstance(value, tuple) else value)


def _typed(value: ir.Value) -> str:
    dims = "?" if value.shape is None else ",".join(map(str, value.shape))
    return f"{value.name} {value.dtype.name.lower() if value.dtype else '?'}[{dims}]"


def relative(got: Array, want: Array) -> float:
    """Largest difference over the largest element."""
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / np.abs(want).max())


def conv(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    groups: int = 1,
) -> Array:
    """ONNX Conv over any number of axes, as its definition has it: a product a window."""
    n = w.ndim - 2
    strides, dilations = strides or (1,) * n, dilations or (1,) * n
    pads = pads or (0,) * 2 * n
    padded = np.pad(x, [(0, 0), (0, 0), *zip(pads[:n], pads[n:], strict=True)])
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, w.shape[2:], strict=True)]
    windows = sliding_window_view(padded, spans, tuple(range(2, n + 2)))
    steps = [slice(None, None, s) for s in (*strides, *dilations)]
    windows = windows[(slice(None), slice(None), *steps)]
    c, o = w.shape[1], w.shape[0] // groups
    summed = [1, *range(n + 2, 2 * n + 2)], [1, *range(2, n + 2)]
    y = np.concatenate(
        [
            np.tensordot(windows[:, g * c :][:, :c], w[g * o :][:o], summed)
            for g in range(groups)
        ],
        axis=-1,
    )
    y = np.moveaxis(y, -1, 1)
    return y if b is None else y + b.reshape(-1, *(1,) * n)


def reference(
    graph: ir.Graph, feeds: Mapping[str, Array], *, absolute: bool = False
) -> dict[str, Array]:
    """Outputs of a chain of Conv, BatchNormalization, LeakyRelu, Relu and MaxPool in float64.

    With ``absolute`` the same net runs on absolute values: a bound of every partial sum in
    it, so rounding errors are measured in it.
    """
    values = {k: _float64(v, absolute) for k, v in feeds.items()}
    for node in graph:
        inputs: list[Array | None] = []
        for value in node.inputs:
            if value is None or value.name in values:
                inputs.append(None if value is None else values[str(value.name)])
            else:
                assert value.const_value is not None
                inputs.append(_float64(value.const_value.numpy(), absolute))
        values[str(node.outputs[0].name)] = _step(node, inputs, absolute)
    return {str(v.name): values[str(v.name)] for v in graph.outputs}


def _float64(array: Array, absolute: bool) -> Array:
    wide = array.astype(np.float64)
    return np.abs(wide) if absolute else wide


def _step(node: ir.Node, inputs: list[Any], absolute: bool) -> Array:
    given: dict[str, Any] = {k: a.value for k, a in node.attributes.items()}
    x = inputs[0]
    column = (-1, *(1,) * (x.ndim - 2))
    if node.op_type == "Conv":
        named = {k: given.get(k) for k in ("strides", "pads", "dilations")}
        return conv(x, *inputs[1:], **named, groups=given.get("group", 1))
    if node.op_type == "BatchNormalization":
        gamma, beta, mean, var = (a.reshape(column) for a in inputs[1:])
        centred = x + mean if absolute else x - mean
        return centred * gamma / np.sqrt(var + given.get("epsilon", 1e-5)) + beta
    if node.op_type == "LeakyRelu":
        alpha = given.get("alpha", 0.01)
        return x * max(1.0, abs(alpha)) if absolute else np.where(x < 0, alpha * x, x)
    if node.op_type == "Relu":
        return np.maximum(x, 0)
    assert node.op_type == "MaxPool", f"the reference has no {node.op_type}"
    kernel, n = given["kernel_shape"], x.ndim - 2
    pads = given.get("pads") or (0,) * 2 * n
    edges = [(0, 0), (0, 0), *zip(pads[:n], pads[n:], strict=True)]
    windows = sliding_window_view(
        np.pad(x, edges, constant_values=-math.inf), kernel, tuple(range(2, n + 2))
    )
    steps = [slice(None, None, s) for s in given.get("strides") or (1,) * n]
    return windows[(slice(None), slice(None), *steps)].max(axis=tuple(range(n + 2, 2 * n + 2)))
