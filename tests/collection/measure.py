"""What a model holds, costs and computes, counted apart from the product's own counting."""

from __future__ import annotations

__all__ = ["counts", "difference", "live_nodes", "macs", "outputs", "run"]

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from tests.collection.base import Array, Feeds
from vntools.base.errors import DataFault
from vntools.export.load import parse_onnx
from vntools.verify.float64 import evaluate

_NARROW = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_SHAPES = ("Shape", "Size")


def live_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Nodes, of subgraphs and functions too, that do more than prepare constants."""
    whole = onnx.inliner.inline_local_functions(model) if model.functions else model
    return list(_live(whole.graph, set()))


def _live(graph: onnx.GraphProto, outer: set[str]) -> Iterator[onnx.NodeProto]:
    inputs = {i.name for i in graph.input}
    data = outer | {t.name for t in graph.initializer if t.name not in inputs} | {""}
    for node in graph.node:
        bodies = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
        read = node.input[:1] if node.op_type == "CastLike" else node.input
        chance = node.op_type.startswith("Random")
        if node.op_type in _SHAPES or (not bodies and not chance and data.issuperset(read)):
            data.update(node.output)
            continue
        yield node
        for body in bodies:
            yield from _live(body, data)


def macs(model: onnx.ModelProto, feeds: Feeds) -> int | None:
    """Multiply-accumulates of one run on ``feeds``; None where a shape stays unknown.

    A Conv costs its weight for each place of its output, a ConvTranspose for each place of
    its input, a product of matrices the rows for each element of the result.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    graph = fixed.graph
    for info in graph.input:
        if info.name in feeds:
            kind = info.type.tensor_type.elem_type
            info.CopyFrom(
                helper.make_tensor_value_info(info.name, kind, feeds[info.name].shape)
            )
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    del graph.value_info[:]
    graph = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*graph.value_info, *graph.output, *graph.input)
        if v.type.tensor_type.HasField("shape")
    } | {t.name: list(t.dims) for t in graph.initializer}
    total = 0
    for node in live_nodes(fixed):
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            a, b, y = (shapes.get(n) for n in (*node.input[:2], node.output[0]))
            if not a or not b or not y or not all((*a, *b, *y)):
                return None
            transposed = any(t.name == "transA" and t.i for t in node.attribute)
            total += {
                "Conv": math.prod(b) * y[0] * math.prod(y[2:]),
                "ConvTranspose": math.prod(b) * a[0] * math.prod(a[2:]),
                "Gemm": math.prod(y) * a[0 if transposed else -1],
                "MatMul": math.prod(y) * a[-1],
            }[node.op_type]
    return total


def outputs(data: bytes, feeds: Feeds) -> dict[str, Array]:
    """Outputs in float64; on ONNX's reference where the product's own lacks something."""
    try:
        return evaluate(parse_onnx(data).graph, feeds)
    except DataFault as e:
        if e.code not in ("onnx.control_flow", "onnx.op", "onnx.bn_training"):
            raise
    model = onnx.load_model_from_string(data)
    _widen(model.graph)
    for function in model.functions:
        _widen_nodes(function.node)
    wide = {k: v.astype(np.float64) if v.dtype.kind == "f" else v for k, v in feeds.items()}
    replaced: list[type[OpRun]] = [ConvTranspose, Pad]
    if any(o.domain == "" and o.version < 9 for o in model.opset_import):
        replaced.append(BatchNormalization)
    found = ReferenceEvaluator(model, new_ops=replaced).run(None, wide)
    return {o.name: np.asarray(v) for o, v in zip(model.graph.output, found, strict=True)}


class ConvTranspose(OpRun):
    """With groups, which ONNX's own has wrong: every input place adds its kernel."""

    op_domain = ""

    def _run(self, x: Array, w: Array, b: Array | None = None, **given: Any) -> tuple[Array]:
        axes, group = x.ndim - 2, given.get("group") or 1
        strides = given.get("strides") or [1] * axes
        dilations = given.get("dilations") or [1] * axes
        pads = given.get("pads") or [0] * 2 * axes
        extra = given.get("output_padding") or [0] * axes
        kernel, wide = w.shape[2:], w.shape[1]
        spatial = zip(x.shape[2:], kernel, strides, dilations, extra, strict=True)
        full = [(n - 1) * s + d * (k - 1) + 1 + e for n, k, s, d, e in spatial]
        y = np.zeros((x.shape[0], wide * group, *full))
        for g in range(group):
            part = slice(g * x.shape[1] // group, (g + 1) * x.shape[1] // group)
            for tap in itertools.product(*map(range, kernel)):
                at = tuple(
                    slice(t * d, t * d + (n - 1) * s + 1, s)
                    for t, d, s, n in zip(tap, dilations, strides, x.shape[2:], strict=True)
                )
                added = np.einsum("nc...,co->no...", x[:, part], w[(part, slice(None), *tap)])
                y[(slice(None), slice(g * wide, (g + 1) * wide), *at)] += added
        ends = zip(pads[:axes], pads[axes:], full, strict=True)
        y = y[(..., *(slice(p, n - q) for p, q, n in ends))]
        return (y if b is None else y + b.reshape(-1, *[1] * axes),)


class Pad(OpRun):
    """Of all axes; cropping where pads are negative, which numpy's own refuses."""

    op_domain = ""

    def _run(
        self, x: Array, pads: Array | None = None, value: Array | None = None, **given: Any
    ) -> tuple[Array]:
        ends = np.asarray(given["pads"] if pads is None else pads).reshape(2, -1).T
        filled: dict[str, Any] = {"mode": given.get("mode") or "constant"}
        if filled["mode"] == "constant":
            filled["constant_values"] = given.get("value") or 0 if value is None else value
        y = np.pad(x, np.maximum(ends, 0), **filled)
        cuts = [(max(-p, 0), n - max(-q, 0)) for (p, q), n in zip(ends, y.shape, strict=True)]
        return (y[tuple(slice(*c) for c in cuts)],)


class BatchNormalization(OpRun):
    """Of opset 7, where ONNX's own returns no tensor."""

    op_domain = ""

    def _run(self, x: Array, *given: Array, **attributes: Any) -> tuple[Array]:
        gamma, beta, mean, var = (a.reshape(-1, *[1] * (x.ndim - 2)) for a in given)
        epsilon = attributes.get("epsilon") or 1e-5
        return ((x - mean) / np.sqrt(var + epsilon) * gamma + beta,)


def _widen(graph: onnx.GraphProto) -> None:
    for info in (*graph.input, *graph.output, *graph.value_info):
        if info.type.tensor_type.elem_type in _NARROW:
            info.type.tensor_type.elem_type = TensorProto.DOUBLE
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    _widen_nodes(graph.node)


def _widen_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        for attribute in node.attribute:
            _widen_tensor(attribute.t)
            _widen(attribute.g)
            if node.op_type == "Cast" and attribute.i in _NARROW:
                attribute.i = TensorProto.DOUBLE


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type in _NARROW:
        array = numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def run(data: bytes, feeds: Feeds) -> dict[str, Array]:
    """Outputs of ONNX Runtime, which may write warnings to the standard error."""
    options = ort.SessionOptions()
    options.log_severity_level = 2  # warnings and worse
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return {k: np.asarray(v) for k, v in zip(names, session.run(names, feeds), strict=True)}


def difference(got: Mapping[str, Array], want: Mapping[str, Array]) -> float:
    """Largest difference of any output, relative to that output's largest element."""
    if list(got) != list(want) or any(got[k].shape != want[k].shape for k in want):
        return float("inf")
    worst = 0.0
    for k, w in want.items():
        scale = float(np.abs(w.astype(np.float64)).max(initial=0)) or 1.0
        apart = np.abs(got[k].astype(np.float64) - w.astype(np.float64)).max(initial=0)
        worst = max(worst, float(apart) / scale)
    return worst


def counts(model: onnx.ModelProto) -> Counter[str]:
    """Live nodes by type."""
    return Counter(n.op_type for n in live_nodes(model))
