"""Writing an expression back as nodes."""

from __future__ import annotations

__all__ = ["Overflow", "Writer"]

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vntools.export.affine import AffineConv, Array, lift, widened
from vntools.export.graph import add_initializer, free_name, value_names
from vntools.export.maps import Expression, Map, Term
from vntools.export.naming import rename_initializer


class Overflow(Exception):
    """A number leaves the range of its type, or is none."""


@dataclass
class _Part:
    """A value of a sum; ``negative`` where it is to be subtracted."""

    value: ir.Value
    negative: bool = False


class Writer:
    """Writes expressions into one graph.

    Args:
        graph: the graph; its names are taken.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._values = value_names(graph)
        self._nodes = {n.name for n in graph.all_nodes()}
        self._left: set[ir.Node] = set()
        self._wanted: dict[ir.Value, str] = {}

    def write(
        self,
        expression: Expression,
        value: ir.Value,
        bases: Sequence[ir.Value],
        seen: Callable[[Term, AffineConv], None],
    ) -> tuple[list[ir.Node], int]:
        """Nodes that compute ``value``, to stand where it is computed; and their parameters.

        The last one has a fresh output; none at all where the value is one of the ``bases``,
        which stand for those of the expression's terms. ``seen`` gets the numbers of every
        term, which are made once.

        Raises:
            Overflow: a weight leaves the range of the value's type; nothing has been changed.
        """
        nodes = _Nodes(self, value)
        try:
            return nodes.write(expression, bases, seen), nodes.parameters
        except Overflow:
            nodes.discard()
            raise

    def release(self, nodes: Iterable[ir.Node | None]) -> None:
        """Names of nodes that are on their way out, free to be given again: once each."""
        leaving = dict.fromkeys(n for n in nodes if n is not None and n not in self._left)
        self._left |= {*leaving}
        self._nodes -= {n.name for n in leaving}

    def keep(self, nodes: Iterable[ir.Node | None]) -> None:
        """Take the names of nodes that stay after all."""
        self._nodes |= {n.name for n in nodes if n is not None}

    def fresh(self, wanted: str, taken: set[str | None]) -> str:
        """``wanted``, or ``wanted_1`` and so on, where a thing is called so."""
        name = free_name(wanted, taken)
        taken.add(name)
        return name

    def discard(self, value: ir.Value) -> None:
        """Take an initializer back."""
        assert value.name is not None
        del self._graph.initializers[value.name]
        self._values.discard(value.name)
        self._wanted.pop(value, None)

    def settle_names(self) -> None:
        """Give initializers the names that they wanted, where what had those is gone."""
        if not self._wanted:
            return
        graph = self._graph
        taken = value_names(graph)
        for value, wanted in self._wanted.items():
            if value.is_initializer() and wanted not in taken:
                rename_initializer(graph, value, wanted)
                taken.add(wanted)
        self._wanted.clear()

    def node_name(self, wanted: str) -> str:
        """A name for a node."""
        return self.fresh(wanted, self._nodes)

    def value_name(self, wanted: str) -> str:
        """A name for a value."""
        return self.fresh(wanted, self._values)

    def constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        """A new initializer."""
        wanted, name = name, self.value_name(name)
        made = add_initializer(self._graph, name, array)
        if name != wanted:
            self._wanted[made] = wanted
        return made


class _Nodes:
    """The nodes of one expression."""

    def __init__(self, writer: Writer, value: ir.Value) -> None:
        self._writer, self._value = writer, value
        self._dtype = value.dtype or ir.DataType.FLOAT
        self._rank = None if value.shape is None else len(value.shape)
        producer = value.producer()
        self._name = (
            (producer.name if producer is not None else None) or value.name or "linear"
        )
        self._made: list[ir.Node] = []
        self._held: list[ir.Value] = []
        self.parameters = 0

    def write(
        self,
        expression: Expression,
        bases: Sequence[ir.Value],
        seen: Callable[[Term, AffineConv], None],
    ) -> list[ir.Node]:
        carrier = expression.carrier
        pairs = list(zip(expression.terms, bases, strict=True))
        # The carrier is written last, when the biases of all others are known.
        pairs.sort(key=lambda p: p[0] is carrier)
        bias: tuple[int | None, Array] | None = None
        constants = expression.constants
        parts: list[_Part] = []
        for term, base in pairs:
            m = term.map
            conv = m.value if m.value is not None else m.make()
            seen(term, conv)
            if m.biased:
                bias = _joined(bias, (m.axis, conv.bias))
            if m.value is None:
                held = bias[1] if bias is not None and term is carrier else None
                if term is carrier and not conv.axes:
                    if constants:
                        held = sum(constants, np.zeros(1) if held is None else held)
                    constants = ()
                parts.append(_Part(self._heavy(m, conv, held, base)))
            elif len(pairs) == 1 and m.norm and m.biased and m.axis == 1 and m.scales:
                parts.append(_Part(self._normalization(conv, base)))
                bias = None
            else:
                parts.append(self._scaled(m, conv, base))
        parts.sort(key=lambda p: p.negative)
        if parts[0].negative:
            scale = self._constant("scale", np.array(-1.0))
            parts[0] = _Part(self._node("Mul", [parts[0].value, scale]))
        total = parts[0].value
        for part in parts[1:]:
            total = self._node("Sub" if part.negative else "Add", [total, part.value])
        if bias is not None and carrier is None:
            total = self._node("Add", [total, self._constant("shift", self._column(*bias))])
        for array in constants:
            total = self._node("Add", [total, self._constant("shift", array)])
        return self._made

    def _node(
        self,
        op_type: str,
        inputs: list[ir.Value],
        attributes: dict[str, Any] | None = None,
        layer: str = "",
        shape: ir.Shape | None = None,
    ) -> ir.Value:
        held = [_attribute(k, v) for k, v in (attributes or {}).items()]
        node = ir.Node("", op_type, inputs, held)
        node.name = self._writer.node_name(layer or self._name)
        out = node.outputs[0]
        out.name = self._writer.value_name(f"{node.name}.out")
        out.type = ir.TensorType(self._dtype)
        out.shape = self._value.shape if shape is None else shape
        self._made.append(node)
        return out

    def discard(self) -> None:
        """Take back what was made."""
        for node in reversed(self._made):
            for i in range(len(node.inputs)):
                node.replace_input_with(i, None)
        for value in self._held:
            self._writer.discard(value)

    def _constant(self, part: str, array: NDArray[Any], layer: str = "") -> ir.Value:
        self.parameters += array.size
        name = f"{layer or self._name}.{part}"
        made = self._writer.constant(name, _cast(array, self._dtype, layer or self._name))
        self._held.append(made)
        return made

    def _column(self, axis: int | None, numbers: Array) -> Array:
        """Numbers along an axis, to broadcast against the value."""
        if axis is None:
            return numbers.reshape(())
        behind = -axis - 1 if axis < 0 else (self._rank or axis + 1) - axis - 1
        return numbers.reshape((-1,) + (1,) * behind)

    def _scaled(self, m: Map, value: AffineConv, base: ir.Value) -> _Part:
        scale = widened(value.weight).reshape(-1)
        if (scale == 1).all() or (scale == -1).all():
            return _Part(base, bool(scale[0] == -1))
        column = self._constant("scale", self._column(m.axis, scale))
        return _Part(self._node("Mul", [base, column], shape=base.shape))

    def _normalization(self, value: AffineConv, base: ir.Value) -> ir.Value:
        """A scale and a shift along axis 1 as the one operator that has both."""
        zeros = np.zeros(value.out_channels)
        arrays = {
            "scale": widened(value.weight).reshape(-1),
            "shift": value.bias,
            "mean": zeros,
            "var": zeros + 1,
        }
        inputs = [self._constant(part, array) for part, array in arrays.items()]
        return self._node("BatchNormalization", [base, *inputs], {"epsilon": 0.0})

    def _heavy(self, m: Map, conv: AffineConv, bias: Array | None, base: ir.Value) -> ir.Value:
        layer = m.layer or self._name
        rank = self._rank or 0
        if not conv.axes and m.axis == 1 and rank > 3:  # no operator has a matrix there
            conv = lift(conv, rank - 2)
        if conv.axes:
            return self._convolution(m, conv, bias, base)
        matrix = _dense(conv)
        if m.axis == 1 and self._rank == 2:
            inputs = [base, self._constant("weight", matrix, layer)]
            held = np.zeros(conv.out_channels) if bias is None else bias
            inputs.append(self._constant("bias", held, layer))
            given = {"transA": int(m.turned), "transB": 1}
            return self._node("Gemm", inputs, given, layer, self._shape(m, base))
        assert m.axis is not None
        if m.axis in (-1, (self._rank or 0) - 1):
            weight = self._constant("weight", np.ascontiguousarray(matrix.T), layer)
            inputs = [base, weight]
        else:
            inputs = [self._constant("weight", matrix, layer), base]
        return self._node("MatMul", inputs, layer=layer, shape=self._shape(m, base))

    def _shape(self, m: Map, base: ir.Value) -> ir.Shape | None:
        """What a map makes of a base: it may be less than a sum that broadcasts it."""
        g, whole = m.geometry, self._value.shape
        if base.shape is None or m.axis is None or m.turned:
            return None
        dims = list(base.shape)
        if g.axes and (whole is None or not len(whole) == len(dims) == g.axes + 2):
            return None
        for a in range(g.axes):
            extent = dims[a + 2]
            if isinstance(extent, int):
                dims[a + 2] = g.output_size((extent,) * g.axes)[a]
            elif whole is not None and not g.pointwise:
                dims[a + 2] = whole[a + 2]
        dims[m.axis] = g.out_channels
        return ir.Shape(dims)

    def _convolution(
        self, m: Map, conv: AffineConv, bias: Array | None, base: ir.Value
    ) -> ir.Value:
        weight, layer = conv.weight, m.layer or self._name
        attributes: dict[str, Any] = {
            "kernel_shape": conv.kernel,
            "strides": conv.strides,
            "pads": conv.pads,
            "dilations": conv.dilations,
            "group": conv.groups,
        }
        if conv.auto_pad is not None:
            del attributes["pads"]
            attributes["auto_pad"] = conv.auto_pad
        op_type = "Conv"
        if conv.output_padding is not None:
            op_type = "ConvTranspose"
            attributes["output_padding"] = conv.output_padding
            split = weight.reshape(conv.groups, -1, *weight.shape[1:]).swapaxes(1, 2)
            weight = split.reshape(-1, *split.shape[2:])
        inputs = [base, self._constant("weight", weight, layer)]
        if bias is not None:
            held = np.broadcast_to(bias, (conv.out_channels,))
            inputs.append(self._constant("bias", held, layer))
        return self._node(op_type, inputs, attributes, layer, self._shape(m, base))


def _attribute(name: str, value: Any) -> ir.Attr:
    if isinstance(value, tuple):
        return ir.AttrInt64s(name, value)
    make = {int: ir.AttrInt64, float: ir.AttrFloat32, str: ir.AttrString}[type(value)]
    return make(name, value)


def _joined(
    left: tuple[int | None, Array] | None, right: tuple[int | None, Array]
) -> tuple[int | None, Array]:
    """The sum of two biases, either of which may be one number for all channels."""
    if left is None:
        return right
    axis = left[0] if left[0] is not None else right[0]
    return axis, left[1] + right[1]


def _dense(conv: AffineConv) -> Array:
    """The matrix of a map without spatial axes."""
    if conv.groups == 1:
        return widened(conv.weight)
    out = np.zeros((conv.out_channels, conv.in_channels))
    o, i = conv.out_channels // conv.groups, conv.in_channels // conv.groups
    for g in range(conv.groups):
        out[g * o : (g + 1) * o, g * i : (g + 1) * i] = conv.weight[g * o : (g + 1) * o]
    return out


def _cast(array: NDArray[Any], dtype: ir.DataType, name: str) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(array, dtype.numpy())
    ends = np.array([narrow.min(initial=0), narrow.max(initial=0)], np.float64)
    if not np.isfinite(ends).all():
        why = f"overflow {dtype.name}" if np.isfinite(array).all() else "are not finite"
        raise Overflow(f"the merged weights of {name} {why}")
    return narrow
