"""FP16 as types in the graph: every float32 tensor cast, refused where it overflows."""

from __future__ import annotations

__all__ = ["TOLERANCE", "Fp16", "to_fp16"]

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vntools.base.errors import DataFault, first_three
from vntools.base.tolerance import Tolerance
from vntools.export.graph import constant, is_op, unique_name

_TINY = float(np.finfo(np.float16).smallest_normal)

TOLERANCE = Tolerance(
    max_relative_l2=1e-2,
    same_top1=False,
    why="a weight and an activation are each off by up to 2^-11 at every layer; over the 25 "
    "convolutions of the deepest network that adds up to some 1e-3, and top-1 of random "
    "logits may be a tie at that distance",
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


@dataclass
class _Narrowed:
    """What narrowing float32 constants to float16 met; the counts are :class:`Fp16`'s."""

    subnormal: int = 0
    flushed: int = 0
    overflowing: list[str] = field(default_factory=list[str])

    def narrow(self, wide: NDArray[Any], layer: str) -> ir.TensorProtocol:
        with np.errstate(over="ignore", under="ignore"):
            narrow = wide.astype(np.float16)
        if not np.isfinite(narrow).all():
            self.overflowing.append(f"{layer} (largest {np.abs(wide).max():.3g})")
        small = (np.abs(narrow) < _TINY) & (wide != 0)
        self.subnormal += int(small.sum())
        self.flushed += int((narrow[small] == 0).sum())
        return ir.tensor(narrow, name=layer)


def to_fp16(model: ir.Model, *, io_type: str = "fp32") -> Fp16:
    """``model`` with every float32 tensor in float16, rounded to nearest even.

    Inputs and outputs keep their names, and with ``io_type="fp32"`` their types: a Cast stands
    behind each float input and in front of each float output. ``model`` is left as it is.

    Raises:
        DataFault: ``fp16.overflow``: a weight is beyond 65504 once rounded; the message names
            its layer. Nothing is ever clamped.
    """
    typed = model.clone()
    graph = typed.graph
    narrowed = _Narrowed()
    for name, value in list(graph.initializers.items()):
        if value.dtype != ir.DataType.FLOAT or value.const_value is None:
            continue
        value.const_value = narrowed.narrow(value.const_value.numpy(), name)
        value.type = ir.TensorType(ir.DataType.FLOAT16)
    _retype_attributes(graph, narrowed)
    if narrowed.overflowing:
        raise DataFault(
            "fp16.overflow",
            f"weights beyond float16's 65504: {first_three(narrowed.overflowing)}",
            hint="build with --fp32",
        )
    for value in _tensors(graph):
        if value.dtype == ir.DataType.FLOAT:
            value.type = ir.TensorType(ir.DataType.FLOAT16)
    if io_type == "fp32":
        _cast_borders(graph)
    return Fp16(typed, narrowed.subnormal, narrowed.flushed)


def _tensors(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def _retype_attributes(graph: ir.Graph, narrowed: _Narrowed) -> None:
    """Constants and casts that name float32 name float16."""
    for node in graph:
        array = _held(node)
        if array is not None and array.dtype == np.float32:
            half = narrowed.narrow(array, node.outputs[0].name or node.op_type)
            node.attributes.clear()
            node.attributes["value"] = ir.AttrTensor("value", half)
        to = node.attributes.get("to")
        if node.op_type == "Cast" and to is not None and to.as_int() == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT16)


def _held(node: ir.Node) -> NDArray[Any] | None:
    """The array in the attributes of a Constant or ConstantOfShape node; None of any other."""
    if is_op(node, "Constant"):
        return constant(node.outputs[0])
    if not is_op(node, "ConstantOfShape"):
        return None
    value = node.attributes.get("value")
    return np.zeros(1, np.float32) if value is None else value.as_tensor().numpy()


def _cast_borders(graph: ir.Graph) -> None:
    """Float32 inputs and outputs around a float16 graph."""
    wide, half = ir.TensorType(ir.DataType.FLOAT), ir.TensorType(ir.DataType.FLOAT16)
    for value in graph.inputs:
        if value.type != half or value.is_initializer():
            continue
        value.type = wide
        name = f"cast_{value.name}"
        cast = ir.Node("", "Cast", [value], [ir.AttrInt64("to", half.dtype)], name=name)
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
        name = value.name
        cast = ir.Node(
            "", "Cast", [value], [ir.AttrInt64("to", wide.dtype)], name=f"cast_{name}"
        )
        outer = cast.outputs[0]
        value.name = unique_name(graph, f"{name}_fp16")
        outer.name, outer.type, outer.shape = name, wide, value.shape
        graph.append(cast)
        graph.outputs[i] = outer
