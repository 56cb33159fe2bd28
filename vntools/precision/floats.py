"""Float types in the graph: float32 tensors cast to float16 or bfloat16, some nodes kept."""

from __future__ import annotations

__all__ = [
    "HALVES",
    "TOLERANCES",
    "Typed",
    "emulated",
    "in_opset",
    "to_floats",
    "with_followers",
]

from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vntools.base.errors import DataFault, first_three
from vntools.base.tolerance import Tolerance
from vntools.export.graph import constant, free_name, is_op, only_consumer, value_names

HALVES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
_SUFFIXES = {ir.DataType.FLOAT: "fp32", **{v: k for k, v in HALVES.items()}}
_LARGEST = {"fp16": "float16's 65504", "bf16": "bfloat16's 3.39e38"}
# Inputs that are float32 whatever the others are (ONNX operator specifications).
_ALWAYS_FLOAT32 = {"Resize": (2,), "Upsample": (1,)}
ROUNDED = ".rounded"
"""Behind the name of a node whose output :func:`emulated` rounds."""

_BFLOAT16_OPSET = 22  # from here on Conv and pools take bfloat16
_FOLLOWERS = ("Relu", "LeakyRelu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool")

TOLERANCES = {
    "fp16": Tolerance(
        max_relative_l2=1e-2,
        same_top1=False,
        why="a weight and an activation are each off by up to 2^-11 at every layer; over the "
        "25 convolutions of the deepest network that adds up to some 1e-3, and top-1 of "
        "random logits may be a tie at that distance",
    ),
    "bf16": Tolerance(
        max_relative_l2=8e-2,
        same_top1=False,
        why="as float16's, with 2^-8 in place of 2^-11",
    ),
}


@dataclass(frozen=True)
class Typed:
    """A graph with its types.

    Attributes:
        model: the typed graph.
        subnormal: weights that fell below the smallest normal number and lost bits, zeros not
            counted.
        flushed: of those, weights that became zero.
    """

    model: ir.Model
    subnormal: int
    flushed: int


def to_floats(
    model: ir.Model,
    precision: str = "fp16",
    *,
    io_type: str = "fp32",
    fp32: Container[str | None] = (),
) -> Typed:
    """``model`` with every float32 tensor in a half type, rounded to nearest even.

    Args:
        model: left as it is.
        precision: ``fp16`` or ``bf16``.
        io_type: of inputs and outputs, which keep their names: ``fp32`` (a Cast stands behind
            each input and in front of each output) or the half type.
        fp32: names of nodes that compute in float32, with Casts around them.

    Raises:
        DataFault: ``fp16.overflow``, ``bf16.overflow``: a weight is beyond the largest number
            once rounded; the message names its layer. Nothing is ever clamped.
    """
    typed = model.clone()
    if precision == "bf16":
        typed = in_opset(typed, _BFLOAT16_OPSET)
    work = _Typing(typed.graph, HALVES[precision], fp32)
    work.retype_values(io_type)
    work.wire()
    if work.overflowing:
        raise DataFault(
            "bf16.overflow" if precision == "bf16" else "fp16.overflow",
            f"weights beyond {_LARGEST[precision]}: {first_three(work.overflowing)}",
            hint="build with --fp32, or keep these layers with --fp32-layers",
        )
    return Typed(typed, work.subnormal, work.flushed)


def emulated(model: ir.Model) -> ir.Model:
    """A float32 graph that computes what one of half types does.

    What each node makes is rounded to its type and back, so between two nodes the values are
    those of the graph itself; sums within a node stay float32, as on a GPU. ONNX Runtime's CPU
    has no kernels for bfloat16, and leaves out the rounding of float16 between two nodes.
    Inputs and outputs become float32 too. What rounds has the node's name and a suffix.
    """
    wide = model.clone()
    fp32 = ir.TensorType(ir.DataType.FLOAT)
    halves = tuple(HALVES.values())
    taken = value_names(wide.graph)
    for value in wide.graph.initializers.values():
        if value.dtype in halves and value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32))
            value.type = fp32
    for value in wide.graph.inputs:
        if value.dtype in halves:
            value.type = fp32
    for node in list(wide.graph):
        array = _held(node)
        if array is not None and ir.DataType.from_numpy(array.dtype) in halves:
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(array.astype("f4")))
        for value in node.outputs:
            if value.dtype is None or value.dtype not in halves:
                continue
            half = ir.TensorType(value.dtype)
            if node.op_type == "Cast":
                node.attributes["to"] = ir.AttrInt64("to", fp32.dtype)
            value.type = fp32
            readers = tuple(value.uses())
            to = [ir.AttrInt64("to", t.dtype) for t in (half, fp32)]
            narrow = ir.Node("", "Cast", [value], to[:1], name=f"{node.name}{ROUNDED}")
            back = ir.Node("", "Cast", narrow.outputs, to[1:])
            narrow.outputs[0].type, back.outputs[0].type = half, fp32
            wide.graph.insert_after(node, (narrow, back))
            for use in readers:
                use.node.replace_input_with(use.idx, back.outputs[0])
            for at, output in enumerate(wide.graph.outputs):
                if output is value:
                    back.outputs[0].name = value.name
                    value.name = free_name(f"{value.name}_wide", taken)
                    wide.graph.outputs[at] = back.outputs[0]
    return wide


def with_followers(nodes: Iterable[ir.Node]) -> frozenset[str]:
    """Names of ``nodes``, and of the activations and pools behind each that read it alone.

    TensorRT-RTX demotes a convolution that stands directly between two Casts; with its
    activation it keeps the type it was given (seen in 1.7.1).
    """
    names: set[str] = set()
    for node in nodes:
        at: ir.Node | None = node
        while at is not None and (at is node or is_op(at, *_FOLLOWERS)):
            names.add(at.name or "")
            at = only_consumer(at.outputs[0])
    return frozenset(names)


def in_opset(model: ir.Model, least: int) -> ir.Model:
    """``model`` in opset ``least`` where it is older.

    Raises:
        DataFault: ``onnx.opset``.
    """
    version = model.opset_imports.get("", least)
    if version >= least:
        return model
    import onnx

    proto = ir.serde.serialize_model(model)
    try:
        return ir.serde.deserialize_model(onnx.version_converter.convert_version(proto, least))
    except Exception as e:
        raise DataFault(
            "onnx.opset",
            f"opset {version} cannot be converted to {least}: {str(e).splitlines()[0][:200]}",
            hint="export it with a newer opset",
        ) from e


@dataclass
class _Typing:
    """A graph on its way to half types; counts are :class:`Typed`'s."""

    graph: ir.Graph
    half: ir.DataType
    fp32: Container[str | None]
    subnormal: int = 0
    flushed: int = 0
    overflowing: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        self._taken = value_names(self.graph)
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def retype_values(self, io_type: str) -> None:
        """What nodes make and inputs bring is of the half type, where it was float32."""
        for value in self.graph.inputs:
            if value.dtype == ir.DataType.FLOAT and io_type != "fp32":
                value.type = ir.TensorType(self.half)
                if value.const_value is not None:
                    value.const_value = self._narrowed(
                        value.const_value.numpy(), value.name or ""
                    )
        for node in self.graph:
            if self._keeps(node):
                continue
            array = _held(node)
            if array is not None and array.dtype == np.float32:
                narrow = self._narrowed(array, node.outputs[0].name or node.op_type)
                node.attributes.clear()
                node.attributes["value"] = ir.AttrTensor("value", narrow)
            to = node.attributes.get("to")
            if node.op_type == "Cast" and to is not None and to.as_int() == ir.DataType.FLOAT:
                node.attributes["to"] = ir.AttrInt64("to", self.half)
            for value in node.outputs:
                if value.dtype == ir.DataType.FLOAT:
                    value.type = ir.TensorType(self.half)
        self._outputs = {
            id(v): ir.DataType.FLOAT if io_type == "fp32" else self.half
            for v in self.graph.outputs
            if v.dtype in (ir.DataType.FLOAT, self.half)
        }

    def wire(self) -> None:
        """Give every node its inputs in the type that it reads."""
        for node in list(self.graph):
            for at, value in enumerate(node.inputs):
                if value is not None and value.dtype in (ir.DataType.FLOAT, self.half):
                    node.replace_input_with(at, self._as(value, self._wanted(node, at)))
        for at, value in enumerate(self.graph.outputs):
            wanted = self._outputs.get(id(value))
            if wanted is not None and wanted != value.dtype:
                self._cast_output(at, value, wanted)

    def _keeps(self, node: ir.Node) -> bool:
        """Whether a node computes in float32; a constant does where all that read it do."""
        if is_op(node, "Constant"):
            uses = node.outputs[0].uses()
            return bool(uses) and all(u.node.name in self.fp32 for u in uses)
        return node.name in self.fp32

    def _wanted(self, node: ir.Node, at: int) -> ir.DataType:
        """The type of a float input."""
        always = at in _ALWAYS_FLOAT32.get(node.op_type, ())
        return ir.DataType.FLOAT if always or self._keeps(node) else self.half

    def _as(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        """``value`` in the type ``wanted``: itself, a narrowed weight, or behind a Cast."""
        if value.dtype == wanted:
            return value
        if (value, wanted) not in self._casts:
            held = value.const_value
            if held is not None and not value.is_graph_input():
                cast = self._narrow_weight(value, held)
            else:
                cast = self._cast(value, wanted)
            self._casts[value, wanted] = cast
        return self._casts[value, wanted]

    def _narrow_weight(self, value: ir.Value, held: ir.TensorProtocol) -> ir.Value:
        """A weight in the half type, under its own name unless others keep it as it is."""
        name = value.name or ""
        reader = next(iter(value.uses())).node.name or name
        narrow = self._narrowed(held.numpy(), reader)
        narrow.name = name
        if all(self._wanted(use.node, use.idx) == self.half for use in value.uses()):
            value.const_value, value.type = narrow, ir.TensorType(self.half)
            return value
        cast = ir.Value(name=self._name(value, self.half), const_value=narrow)
        cast.type, cast.shape = ir.TensorType(self.half), value.shape
        self.graph.register_initializer(cast)
        return cast

    def _cast(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", wanted)])
        node.name = f"cast_{value.name}"
        cast = node.outputs[0]
        cast.name = self._name(value, wanted)
        cast.type, cast.shape = ir.TensorType(wanted), value.shape
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], node)
        else:
            self.graph.insert_after(producer, node)
        return cast

    def _cast_output(self, at: int, value: ir.Value, wanted: ir.DataType) -> None:
        """The output keeps its name; what is cast to it gets another."""
        name = value.name or ""
        value.name = self._name(value, value.dtype)
        node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", wanted)], name=f"cast_{name}")
        outer = node.outputs[0]
        outer.name, outer.type, outer.shape = name, ir.TensorType(wanted), value.shape
        self.graph.append(node)
        self.graph.outputs[at] = outer

    def _name(self, value: ir.Value, dtype: ir.DataType | None) -> str:
        name = free_name(f"{value.name}_{_SUFFIXES[dtype or self.half]}", self._taken)
        self._taken.add(name)
        return name

    def _narrowed(self, wide: NDArray[Any], layer: str) -> ir.TensorProtocol:
        half = self.half.numpy()
        limits = ml_dtypes.finfo(half)
        with np.errstate(over="ignore", under="ignore"):
            narrow = wide.astype(half)
        if not np.isfinite(narrow).all():
            self.overflowing.append(f"{layer} (largest {np.abs(wide).max():.3g})")
        small = (np.abs(narrow) < limits.smallest_normal) & (wide != 0)
        self.subnormal += int(small.sum())
        self.flushed += int((narrow[small] == 0).sum())
        return ir.tensor(narrow, name=layer)


def _held(node: ir.Node) -> NDArray[Any] | None:
    """The array in the attributes of a Constant or ConstantOfShape node; None of any other."""
    if is_op(node, "Constant"):
        return constant(node.outputs[0])
    if not is_op(node, "ConstantOfShape"):
        return None
    value = node.attributes.get("value")
    return np.zeros(1, np.float32) if value is None else value.as_tensor().numpy()
