"""FP16 as types in the graph: an exact cast of every float32 tensor, refused where it overflows."""

from __future__ import annotations

__all__ = ["TOLERANCE", "Fp16", "to_fp16"]

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vntools.base.errors import DataFault, first_three
from vntools.base.tolerance import Tolerance
from vntools.export.graph import unique_name


_TINY = float(np.finfo(np.float16).smallest_normal)

TOLERANCE = Tolerance(
    max_relative_l2=1e-2,
    same_top1=False,
    why="a weight and an activation are each off by up to 2^-11 at every layer; over the 25 "
    "convolutions of the deepest network that adds up to some 1e-3, and top-1 of random logits "
    "may be a tie at that distance",
)


@dataclass(frozen=True)
class Fp16:
    """A graph in float16.

    Attributes:
        model: the typed graph.
        subnormal: weights that fell below 2^-14 and kept less than 11 bits, zeros not counted.
        flushed: of those, weights that became zero.
    """

    model: ir.Model
    subnormal: int
    flushed: int


def to_fp16(model: ir.Model, *, io_type: str = "fp32") -> Fp16:
    """``model`` with every float32 tensor in float16, rounded to nearest even.

    Inputs and outputs keep their names, and with ``io_type="fp32"`` their types: a Cast stands
    behind each float input and in front of each float output. ``model`` is left as it is.

    Raises:
        DataFault: ``fp16.overflow``: a weight is beyond 65504 once rounded; the message names its
            layer. Nothing is ever clamped.
    """
    typed = model.clone()
    graph = typed.graph
    tiny = zero = 0
    overflowing: list[str] = []
    for name, value in list(graph.initializers.items()):
        if value.dtype != ir.DataType.FLOAT or value.const_value is None:
            continue
        wide = value.const_value.numpy()
        with np.errstate(over="ignore", under="ignore"):
            narrow = wide.astype(np.float16)
        if not np.isfinite(narrow).all():
            overflowing.append(f"{name} (largest {np.abs(wide).max():.3g})")
        small = (np.abs(narrow) < _TINY) & (wide != 0)
        tiny, zero = tiny + int(small.sum()), zero + int((narrow[small] == 0).sum())
        value.const_value = ir.tensor(narrow, name=name)
        value.type = ir.TensorType(ir.DataType.FLOAT16)
    if overflowing:
        raise DataFault(
            "fp16.overflow",
            f"weights beyond float16's 65504: {first_three(overflowing)}",
            hint="build with --fp32",
        )
    for value in _tensors(graph):
        if value.dtype == ir.DataType.FLOAT:
            value.type = ir.TensorType(ir.DataType.FLOAT16)
    _retype_attributes(graph)
    if io_type == "fp32":
        _cast_borders(graph)
    return Fp16(typed, tiny, zero)


def _tensors(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def _retype_attributes(graph: ir.Graph) -> None:
    """Constants and casts that name float32 name float16."""
    for node in graph:
        tensor = node.attributes.get("value")
        if node.op_type in ("Constant", "ConstantOfShape") and tensor is not None:
            array = tensor.as_tensor()
            if array.dtype == ir.DataType.FLOAT:
                half = ir.tensor(array.numpy().astype(np.float16))
                node.attributes["value"] = ir.AttrTensor("value", half)
        to = node.attributes.get("to")
        if node.op_type == "Cast" and to is not None and to.as_int() == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT16)


def _cast_borders(graph: ir.Graph) -> None:
    """Float32 inputs and outputs around a float16 graph."""
    wide, half = ir.TensorType(ir.DataType.FLOAT), ir.TensorType(ir.DataType.FLOAT16)
    for value in graph.inputs:
        if value.type != half or value.is_initializer():
            continue
        value.type = wide
        cast = ir.Node("", "Cast", [value], [ir.AttrInt64("to", half.dtype)], name="cast_input")
        inner = cast.outputs[0]
        inner.name = unique_name(graph, f"{value.name}_fp16")
        inner.type, inner.shape = half, value.shape
        for use in tuple(value.uses()):
            if use.node is not cast:
                use.node.replace_input_with(use.idx, inner)
        graph.insert_before(graph[0], cast)
    for i, value in enumerate(graph.outputs):
        if value.type != half:
            continue
        cast = ir.Node("", "Cast", [value], [ir.AttrInt64("to", wide.dtype)], name="cast_output")
        outer, name = cast.outputs[0], value.name
        value.name = unique_name(graph, f"{name}_fp16")
        outer.name, outer.type, outer.shape = name, wide, value.shape
        graph.append(cast)
        graph.outputs[i] = outer
