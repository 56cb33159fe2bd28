"""INT8 as QuantizeLinear and DequantizeLinear in the graph, symmetric, zero point 0.

A convolution's weight becomes int8 with a scale per output channel, its input goes through a
pair of QuantizeLinear and DequantizeLinear with one scale. Its bias stays as it is, and
nothing stands between it and the activation and pool behind it: TensorRT fuses the three.

Where another convolution makes that input and nothing else reads it, the scale goes into that
one's weights and bias: QuantizeLinear has scale 1 then, DequantizeLinear has the scale still.
That is one product less for each element.

Source: ONNX operators QuantizeLinear and DequantizeLinear (19); TensorRT documentation,
"Working with Quantized Types".
"""

from __future__ import annotations

__all__ = [
    "LEVELS",
    "OPSET",
    "TOLERANCE",
    "Layer",
    "find_layers",
    "quantize",
    "quantized",
    "weight_error",
]

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vntools.base.tolerance import Tolerance
from vntools.export.graph import (
    add_initializer,
    constant,
    free_name,
    int_attribute,
    is_op,
    node_macs,
    only_consumer,
    remove_dead,
    value_names,
)

LEVELS = 127
"""The largest magnitude of an int8 here; -128 is not used, so that signs are alike."""

OPSET = 19
"""The oldest whose scales may be float16; one per channel needs 13."""

_WEIGHTED = ("Conv", "Gemm", "MatMul")

TOLERANCE = Tolerance(
    max_relative_l2=0.3,
    same_top1=False,
    why="the network was not trained for INT8, and loses up to 2^-8 of the largest activation "
    "at every layer; whether that is much is for --max-drop to say, beyond this it is broken",
)

Role = Literal["dense", "depthwise", "head"]


@dataclass(frozen=True)
class Layer:
    """A layer that can be INT8.

    Attributes:
        name: of the node.
        tensor: what it reads.
        weight: name of its weight.
        channel_axis: of the weight's output channels.
        role: ``dense``; ``depthwise``: a convolution with groups; ``head``: nothing with
            weights stands between it and an output of the graph.
        macs: multiply-accumulates of one sample; None where sizes are unknown.
    """

    name: str
    tensor: str
    weight: str
    channel_axis: int
    role: Role
    macs: int | None


def find_layers(graph: ir.Graph) -> list[Layer]:
    """Layers with a constant weight and an input made of data, in the graph's order.

    Convolutions all; Gemm and MatMul where they are the head.
    """
    found: list[Layer] = []
    heads = _heads(graph)
    for node in graph:
        weight = node.inputs[1] if is_op(node, *_WEIGHTED) else None
        if weight is None or node.inputs[0] is None or constant(weight) is None:
            continue
        if constant(node.inputs[0]) is not None or weight.dtype != ir.DataType.FLOAT:
            continue
        head = node in heads
        if is_op(node, "Conv"):
            role: Role = "head" if head else "dense"
            if int_attribute(node, "group", 1) > 1:
                role = "depthwise"
            axis = 0
        elif head and (axis := _matrix_axis(node)) is not None:
            role = "head"
        else:
            continue
        tensor, name = node.inputs[0].name or "", node.name or ""
        found.append(Layer(name, tensor, weight.name or "", axis, role, node_macs(node)))
    return found


def _matrix_axis(node: ir.Node) -> int | None:
    """Axis of a matrix's output channels; None where a scale per channel would not do."""
    if is_op(node, "MatMul"):
        shape = node.inputs[1].shape if node.inputs[1] is not None else None
        return 1 if shape is not None and len(shape) == 2 else None
    if int_attribute(node, "transA", 0):
        return None
    return 0 if int_attribute(node, "transB", 0) else 1


def _heads(graph: ir.Graph) -> set[ir.Node]:
    """Layers from which an output is reached past no other layer."""
    heads: set[ir.Node] = set()
    seen: set[ir.Value] = set()
    todo = list(graph.outputs)
    while todo:
        value = todo.pop()
        node = value.producer()
        if node is None or value in seen:
            continue
        seen.add(value)
        if is_op(node, *_WEIGHTED) and node.inputs[1] is not None:
            heads.add(node)
        else:
            todo += [v for v in node.inputs if v is not None]
    return heads


def quantize(
    typed: ir.Model, source: ir.Model, amax: Mapping[str, float], layers: Mapping[str, Layer]
) -> ir.Model:
    """Put pairs and int8 weights around some layers, in place.

    Args:
        typed: in opset 19 or newer, float types chosen already
            (:func:`vntools.precision.floats.to_floats`).
        source: the float32 graph that it was made of; int8 weights are rounded from its own.
        amax: what 127 stands for in the input of each layer, by the layer's name.
        layers: by name.

    Returns:
        ``typed``.
    """
    work = _Quantizer(typed.graph, source.graph, amax)
    for node in [n for n in typed.graph if n.name in amax]:
        work.quantize(node, layers[node.name or ""], amax[node.name or ""])
    remove_dead(typed.graph, *work.replaced)
    return typed


class _Quantizer:
    def __init__(self, graph: ir.Graph, source: ir.Graph, int8: Container[str]) -> None:
        self.graph, self._int8 = graph, int8
        self._weights_of = {n.name or "": n.inputs[1:] for n in source if is_op(n, *_WEIGHTED)}
        self._taken = value_names(graph)
        self._pairs: dict[tuple[ir.Value, float], ir.Value] = {}
        self._weights: dict[tuple[str, int, ir.DataType], ir.Value] = {}
        self.replaced: list[ir.Value | None] = []

    def quantize(self, node: ir.Node, layer: Layer, amax: float) -> None:
        """One layer: a pair in front of it, and its weight in int8."""
        x = node.inputs[0]
        assert x is not None
        dtype = x.dtype or ir.DataType.FLOAT
        self.replaced.append(node.inputs[1])
        node.replace_input_with(1, self._weight(layer, dtype))
        if (x, amax) not in self._pairs:
            self._pairs[x, amax] = self._pair(x, amax, dtype)
        node.replace_input_with(0, self._pairs[x, amax])

    def _absorbed(self, x: ir.Value, scale: NDArray[Any]) -> bool:
        """Whether the convolution that makes ``x`` could be divided by ``scale``."""
        conv = x.producer()
        if conv is None or not is_op(conv, "Conv") or only_consumer(x) is None:
            return False
        name = conv.name or ""
        if name in self._int8:
            return False
        held = conv.inputs[1:]
        if any(v is not None and (v.const_value is None or v.dtype != x.dtype) for v in held):
            return False
        new: list[NDArray[Any] | None] = []
        for wide in map(constant, self._weights_of[name]):
            with np.errstate(over="ignore", under="ignore"):
                new.append(None if wide is None else (wide / float(scale)).astype(scale.dtype))
        if not all(a is None or np.isfinite(a).all() for a in new):
            return False
        for at, (value, array) in enumerate(zip(held, new, strict=True), 1):
            if value is not None and array is not None:
                divided = self._constant(f"{value.name}_divided", array)
                conv.replace_input_with(at, divided)
                self.replaced.append(value)
        return True

    def _pair(self, x: ir.Value, amax: float, dtype: ir.DataType) -> ir.Value:
        steps = _scales(np.float64(amax), dtype)
        scale = self._constant(f"{x.name}_scale", steps)
        zero = self._constant(f"{x.name}_zero_point", np.array(0, np.int8))
        one = scale
        if self._absorbed(x, steps):
            one = self._constant(f"{x.name}_scale_1", np.ones_like(steps))
        quantize = ir.Node("", "QuantizeLinear", [x, one, zero], name=f"{x.name}_quantize")
        q = quantize.outputs[0]
        q.name, q.shape = self._name(f"{x.name}_int8"), x.shape
        q.type = ir.TensorType(ir.DataType.INT8)
        back = ir.Node("", "DequantizeLinear", [q, scale, zero], name=f"{x.name}_dequantize")
        y = back.outputs[0]
        y.name, y.type, y.shape = self._name(f"{x.name}_dequantized"), x.type, x.shape
        producer = x.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], (quantize, back))
        else:
            self.graph.insert_after(producer, (quantize, back))
        return y

    def _weight(self, layer: Layer, dtype: ir.DataType) -> ir.Value:
        key = layer.weight, layer.channel_axis, dtype
        if key not in self._weights:
            held = constant(self._weights_of[layer.name][0])
            assert held is not None
            whole, scales = quantized(held, layer.channel_axis, dtype)
            zeros = np.zeros(len(scales), np.int8)
            w = [
                self._constant(f"{layer.weight}_{what}", array)
                for what, array in (("int8", whole), ("scale", scales), ("zero_point", zeros))
            ]
            axis = ir.AttrInt64("axis", layer.channel_axis)
            name = f"{layer.weight}_dequantize"
            back = ir.Node("", "DequantizeLinear", w, [axis], name=name)
            y = back.outputs[0]
            y.name, y.type = self._name(f"{layer.weight}_dequantized"), ir.TensorType(dtype)
            y.shape = ir.Shape(whole.shape)
            self.graph.insert_before(self.graph[0], back)
            self._weights[key] = y
        return self._weights[key]

    def _constant(self, wanted: str, array: NDArray[Any]) -> ir.Value:
        return add_initializer(self.graph, self._name(wanted), array)

    def _name(self, wanted: str) -> str:
        name = free_name(wanted, self._taken)
        self._taken.add(name)
        return name


def quantized(
    weight: NDArray[Any], axis: int, dtype: ir.DataType
) -> tuple[NDArray[np.int8], NDArray[Any]]:
    """A weight in int8, rounded to nearest even, and its scales, (channels,) of ``dtype``.

    The largest magnitude of a channel is 127 scales or less: a scale that ``dtype`` does not
    hold is rounded up.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scales = _scales(np.abs(weight).max(axis=others).astype(np.float64), dtype)
    along = [1] * weight.ndim
    along[axis] = -1
    steps = scales.astype(np.float32).reshape(along)
    whole = np.clip(np.rint(weight / steps), -LEVELS, LEVELS)
    return whole.astype(np.int8), scales


def weight_error(weight: NDArray[Any], axis: int, dtype: ir.DataType) -> float:
    """||int8 weight - weight|| / ||weight||."""
    whole, scales = quantized(weight, axis, dtype)
    along = [1] * weight.ndim
    along[axis] = -1
    wide = whole * scales.astype(np.float32).reshape(along)
    norm = float(np.linalg.norm(weight))
    return float(np.linalg.norm(wide - weight)) / norm if norm else 0.0


def _scales(amax: Any, dtype: ir.DataType) -> NDArray[Any]:
    """Largest magnitudes / 127 in ``dtype``, rounded up; 1 for a channel of zeros."""
    exact = np.where(np.asarray(amax) > 0, np.asarray(amax, np.float64) / LEVELS, 1.0)
    kind = dtype.numpy()
    rounded = exact.astype(kind)
    up = np.nextafter(rounded, kind.type(math.inf))
    return np.where(rounded.astype(np.float64) < exact, up, rounded).astype(kind)
