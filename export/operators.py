"""The linear operators of ONNX, one entry each: a node's result by its inputs."""

from __future__ import annotations

__all__ = ["Reader", "pads_of", "read", "repeated"]

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vntools.export.affine import AffineConv, Geometry, Refused, average, same_pads, widened
from vntools.export.graph import (
    ONNX_DOMAINS,
    constant,
    int_attribute,
    ints_attribute,
    is_float,
)
from vntools.export.maps import Expression, Map, Term, composed, diagonal_map, scalar_map

_LARGEST_VECTOR = 1 << 16  # elements that are looked at before anything is merged
_LARGEST_POOL = 1 << 24  # weights of a pooling, written as a convolution
_NOT_LINEAR = {
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), "quantisation rounds"),
    **dict.fromkeys(
        ("InstanceNormalization", "GroupNormalization", "LayerNormalization"),
        "it normalises by the data",
    ),
}


class Reader:
    """Reads the nodes of a graph whose shapes are known as far as they can be.

    Args:
        opset: the version of the ONNX domain.
        channels: the extent of a value along an axis, where it is known.
        rank: the number of axes of a value, where it is known.
    """

    def __init__(
        self,
        opset: int,
        channels: Callable[[ir.Value, int], int | None],
        rank: Callable[[ir.Value], int | None],
    ) -> None:
        self.opset = opset
        self.channels = channels
        self._rank = rank

    def rank(self, value: ir.Value | None) -> int | None:
        """The number of axes of a value, where it is known."""
        return None if value is None else self._rank(value)

    def version(self, node: ir.Node) -> int:
        """The opset that a node is of."""
        return node.version or self.opset

    def number(self, value: ir.Value | None, what: str) -> NDArray[Any]:
        """A constant float input.

        Raises:
            Refused: it is none.
        """
        if value is not None and value.is_graph_input() and value.const_value is not None:
            raise Refused(f"a caller may override {what}")
        array = constant(value)
        if array is None:
            raise Refused(f"{what} is not constant")
        if value is not None and not is_float(value.dtype or ir.DataType(_dtype(array))):
            raise Refused(f"{what} is {array.dtype}")
        if array.size <= _LARGEST_VECTOR and not np.isfinite(array).all():
            raise Refused(f"{what} is not finite")
        return array


def _dtype(array: NDArray[Any]) -> ir.DataType:
    return ir.DataType.from_numpy(array.dtype)


_Entry = Callable[[ir.Node, Reader], Expression | None]


def read(node: ir.Node, reader: Reader) -> Expression | None:
    """What a node's result is of its inputs; None where the node is not near linear.

    Raises:
        Refused: a node of its kind may be linear, and this one is not; the reason.
    """
    if node.domain not in ONNX_DOMAINS or not node.outputs or not node.inputs:
        return None
    if node.op_type in _NOT_LINEAR:
        raise Refused(_NOT_LINEAR[node.op_type])
    entry = _ENTRIES.get(node.op_type)
    if entry is None or not is_float(_type_of(node)):
        return None
    if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        raise Refused("its other outputs are read too")
    return entry(node, reader)


def _type_of(node: ir.Node) -> ir.DataType | None:
    """The type of a result: that of the data, where nothing says it (in a subgraph)."""
    value = node.outputs[0]
    if value.type is None:
        value.type = next((v.type for v in node.inputs if v is not None and v.type), None)
    return value.dtype


def _one(node: ir.Node, m: Map, at: int = 0) -> Expression:
    base = node.inputs[at]
    if base is None:
        raise Refused("its input is missing")
    return Expression((Term(base, m),), node=node)


def _weighted(
    node: ir.Node, geometry: Geometry, weight: Callable[[], NDArray[Any]], bias: Any, axis: int
) -> Map:
    """A map with weights of its own, which are read when they are wanted."""
    if not geometry.weights:
        raise Refused("it has no channels")
    held = np.zeros(geometry.out_channels) if bias is None else widened(bias).reshape(-1)
    if held.size != geometry.out_channels:
        raise Refused("its bias does not fit its channels")
    return Map(
        geometry,
        axis,
        bool(held.any()),
        lambda: AffineConv.shaped(geometry, weight(), held),
        layer=node.name or "",
    )


def _shape(value: ir.Value | None, what: str, reader: Reader) -> tuple[int, ...]:
    """The shape of a constant weight, without reading an initializer."""
    if value is not None and value.const_value is not None and not value.is_graph_input():
        if not is_float(value.const_value.dtype):
            raise Refused(f"{what} is {value.const_value.dtype.name}")
        return tuple(value.const_value.shape.numpy())
    return reader.number(value, what).shape


def _held(value: ir.Value | None) -> NDArray[Any]:
    array = constant(value)
    assert array is not None
    return array


def _attribute(node: ir.Node, name: str, default: float) -> float:
    return node.attributes[name].as_float() if name in node.attributes else default


def _pads(
    node: ir.Node,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
) -> tuple[int, ...] | str:
    """The padding of a node; its mode, where that is another one for every input size."""
    axes = len(kernel)
    attribute = node.attributes.get("auto_pad")
    mode = attribute.as_string() if attribute is not None else "NOTSET"
    if mode == "NOTSET":
        return ints_attribute(node, "pads") or (0,) * 2 * axes
    if mode == "VALID":
        return (0,) * 2 * axes
    size: tuple[int, ...] | None = (1,) * axes  # at stride 1 any size pads alike
    if max(strides, default=1) > 1:
        size = _spatial(node.inputs[0], axes)
    return mode if size is None else same_pads(mode, size, kernel, strides, dilations)


def _spatial(value: ir.Value | None, axes: int) -> tuple[int, ...] | None:
    if value is None or value.shape is None or len(value.shape) != axes + 2:
        return None
    dims = [d for d in tuple(value.shape)[2:] if isinstance(d, int)]
    return tuple(dims) if len(dims) == axes else None


def _conv(node: ir.Node, reader: Reader) -> Expression:
    """Conv-22: W (o, i / g, k..)."""
    shape = _shape(node.inputs[1], "its weight", reader)
    bias = _optional(node, 2, "its bias", reader)
    axes, groups = len(shape) - 2, int_attribute(node, "group", 1)
    strides = ints_attribute(node, "strides") or (1,) * axes
    dilations = ints_attribute(node, "dilations") or (1,) * axes
    pads = _pads(node, shape[2:], strides, dilations)
    mode = pads if isinstance(pads, str) else None
    pads = (0,) * 2 * axes if isinstance(pads, str) else pads
    if min(pads, default=0) < 0:
        raise Refused("a negative padding crops")
    geometry = Geometry(
        shape[0],
        shape[1] * groups,
        shape[2:],
        strides,
        pads,
        dilations,
        groups,
        auto_pad=mode,
    )
    weight = node.inputs[1]
    return _one(node, _weighted(node, geometry, lambda: _held(weight), bias, 1))


def _conv_transpose(node: ir.Node, reader: Reader) -> Expression:
    """ConvTranspose-22: W (i, o / g, k..)."""
    shape = _shape(node.inputs[1], "its weight", reader)
    bias = _optional(node, 2, "its bias", reader)
    axes, groups = len(shape) - 2, int_attribute(node, "group", 1)
    padding = node.attributes.get("auto_pad")
    if "output_shape" in node.attributes or (
        padding is not None and padding.as_string() != "NOTSET"
    ):
        raise Refused("its padding depends on the input's size")
    geometry = Geometry(
        shape[1] * groups,
        shape[0],
        shape[2:],
        ints_attribute(node, "strides") or (1,) * axes,
        ints_attribute(node, "pads") or (0,) * 2 * axes,
        ints_attribute(node, "dilations") or (1,) * axes,
        groups,
        ints_attribute(node, "output_padding") or (0,) * axes,
    )
    if min(geometry.pads, default=0) < 0:
        raise Refused("a negative padding crops")
    held = node.inputs[1]
    if replace(geometry, output_padding=None).pointwise and not any(
        geometry.output_padding or ()
    ):
        geometry = replace(geometry, output_padding=None)

    def weight() -> NDArray[Any]:
        w = _held(held)
        split = w.reshape(groups, -1, *w.shape[1:]).swapaxes(1, 2)
        return split.reshape(-1, *split.shape[2:])

    return _one(node, _weighted(node, geometry, weight, bias, 1))


def _optional(node: ir.Node, at: int, what: str, reader: Reader) -> NDArray[Any] | None:
    present = len(node.inputs) > at and node.inputs[at] is not None
    return reader.number(node.inputs[at], what) if present else None


def _matrix(out: int, inside: int) -> Geometry:
    return Geometry(out, inside, (), (), (), ())


def _require_broadcasting(node: ir.Node, reader: Reader) -> None:
    if reader.version(node) < 7:
        raise Refused("before opset 7 it broadcasts by attributes")


def _gemm(node: ir.Node, reader: Reader) -> Expression:
    """Gemm-13: alpha A' B' + beta C."""
    _require_broadcasting(node, reader)
    shape = _shape(node.inputs[1], "its weight", reader)
    turned = bool(int_attribute(node, "transB", 0))
    alpha, beta = _attribute(node, "alpha", 1.0), _attribute(node, "beta", 1.0)
    out, inside = shape if turned else shape[::-1]
    held, c = node.inputs[1], _optional(node, 2, "its bias", reader)

    def weight() -> NDArray[Any]:
        w = _held(held) if turned else _held(held).T
        return w if alpha == 1 else w * np.float64(alpha)

    bias, constants = None, ()
    if c is not None:
        c = widened(c) * beta
        if c.ndim == 2 and c.shape[0] > 1:
            constants = (c,)
        else:
            bias = np.broadcast_to(c.reshape(-1), (out,))
    m = _weighted(node, _matrix(out, inside), weight, bias, 1)
    m = replace(m, turned=bool(int_attribute(node, "transA", 0)))
    base = node.inputs[0]
    if base is None:
        raise Refused("its input is missing")
    return Expression((Term(base, m),), constants, node)


def _mat_mul(node: ir.Node, reader: Reader) -> Expression:
    """MatMul-13 with one constant matrix, on either side."""
    left, right = node.inputs[0], node.inputs[1]
    at = 1 if constant(left) is not None or _overridable(left) else 0
    shape = _shape(node.inputs[1 - at], "one of its factors", reader)
    if len(shape) != 2:
        raise Refused("its weight is a stack of matrices")
    data = node.inputs[at]
    rank = reader.rank(data)
    if at == 0:
        axis = -1 if rank is None else rank - 1
        m = _weighted(node, _matrix(shape[1], shape[0]), lambda: _held(right).T, None, axis)
    else:
        axis = -2 if rank is None else max(rank - 2, 0)
        m = _weighted(node, _matrix(*shape), lambda: _held(left), None, axis)
    return _one(node, m, at)


def _overridable(value: ir.Value | None) -> bool:
    return value is not None and value.is_graph_input() and value.const_value is not None


def _batch_normalization(node: ir.Node, reader: Reader) -> Expression:
    """BatchNormalization-15 in inference mode: Eq. 2 of the VanillaNet paper."""
    trains = int_attribute(node, "training_mode", 0) or any(v.name for v in node.outputs[1:])
    if trains or (reader.version(node) < 7 and not int_attribute(node, "is_test", 0)):
        raise Refused("training mode: it normalises by the data")
    if not int_attribute(node, "spatial", 1):
        raise Refused("spatial=0: its statistics lie on more than the channel axis")
    what = "one of its statistics or parameters"
    gamma, beta, mean, var = (widened(reader.number(v, what)) for v in node.inputs[1:5])
    spread = var + _attribute(node, "epsilon", 1e-5)
    if not np.all(spread > 0):
        raise Refused("var + epsilon is not positive")
    if any(a.shape != gamma.shape or a.ndim != 1 for a in (beta, mean, var)):
        raise Refused("its statistics do not fit its channels")
    scale = gamma / np.sqrt(spread)
    return _one(node, replace(diagonal_map(scale, beta - mean * scale, 1), norm=True))


def _along(
    node: ir.Node, at: int, array: NDArray[Any], reader: Reader
) -> tuple[int | None, int]:
    """The axis of ``node.inputs[at]`` along which a constant lies, and its length.

    Raises:
        Refused: it lies on several axes, on the batch, or may widen the data.
    """
    data = node.inputs[at]
    rank = reader.rank(data)
    if array.ndim > (0 if rank is None else rank) and array.ndim:
        raise Refused("a constant of more axes than its data may broadcast it")
    on = [a - array.ndim for a, n in enumerate(array.shape) if n != 1]
    if not on:
        return None, 1
    if len(on) > 1:
        raise Refused("a constant lies on more than the channel axis")
    assert rank is not None
    assert data is not None
    axis = rank + on[0]
    if axis == 0 and rank > 1:
        raise Refused("a constant lies on the batch axis")
    if reader.channels(data, axis) != array.size:
        raise Refused("a constant may broadcast its data")
    return axis, array.size


def _affine(
    node: ir.Node, at: int, scale: NDArray[Any] | float, shift: NDArray[Any] | float, r: Reader
) -> Expression:
    """The map scale * x + shift, one of which is an array."""
    array = np.asarray(scale if isinstance(scale, np.ndarray) else shift)
    axis, size = _along(node, at, array, r)
    a, c = (
        np.broadcast_to(np.asarray(v, np.float64).reshape(-1), (size,)) for v in (scale, shift)
    )
    return _one(node, diagonal_map(a, c, axis), at)


def _sides(node: ir.Node, reader: Reader) -> tuple[int | None, NDArray[Any] | None]:
    """Which input of two is data where the other is constant, and that constant."""
    _require_broadcasting(node, reader)
    for at in (0, 1):
        if constant(node.inputs[1 - at]) is not None or _overridable(node.inputs[1 - at]):
            return at, widened(reader.number(node.inputs[1 - at], "one of its operands"))
    return None, None


def _mul(node: ir.Node, reader: Reader) -> Expression:
    """Mul-14 with a constant."""
    at, array = _sides(node, reader)
    if at is None or array is None:
        raise Refused("both of its factors are computed from the data")
    return _affine(node, at, array, 0.0, reader)


def _div(node: ir.Node, reader: Reader) -> Expression:
    """Div-14 by a constant."""
    at, array = _sides(node, reader)
    if at != 0 or array is None:
        raise Refused("it divides by the data")
    if not array.all():
        raise Refused("it divides by zero")
    return _affine(node, 0, 1 / array, 0.0, reader)


def _sum_of(node: ir.Node, factors: tuple[float, ...], reader: Reader) -> Expression:
    """A weighted sum of inputs that are constant or data."""
    terms: list[Term] = []
    constants: list[NDArray[Any]] = []
    for value, factor in zip(node.inputs, factors, strict=True):
        if value is None:
            raise Refused("an operand is missing")
        array = constant(value)
        if array is not None:
            constants.append(widened(reader.number(value, "one of its operands")) * factor)
        elif _overridable(value):
            raise Refused("a caller may override one of its operands")
        else:
            terms.append(Term(value, scalar_map(factor)))
    if not terms:
        raise Refused("it has no data")
    ranks = {reader.rank(t.base) for t in terms}
    if len(terms) > 1 and (len(ranks) > 1 or None in ranks):
        raise Refused("its operands differ in rank, or it is unknown")
    held: list[NDArray[Any]] = []
    first = terms[0]
    for array in constants:
        at = next(i for i, v in enumerate(node.inputs) if v is first.base)
        try:
            axis, size = _along(node, at, array, reader)
        except Refused:
            _require_within(array, first.base)
            held.append(array)
            continue
        if len(terms) > 1 and axis is not None:
            held.append(array)
            continue
        shift = diagonal_map(np.ones(size), array.reshape(-1), axis)
        first = Term(first.base, composed(shift, first.map))
    return Expression((first, *terms[1:]), tuple(held), node)


def _require_within(array: NDArray[Any], data: ir.Value) -> None:
    """Refuse a constant that may broadcast its data."""
    shape = data.shape
    if shape is None or array.ndim > len(shape):
        raise Refused("a constant may broadcast its data")
    for n, d in zip(array.shape[::-1], tuple(shape)[::-1], strict=False):
        if n not in (1, d):
            raise Refused("a constant may broadcast its data")


def _add(node: ir.Node, reader: Reader) -> Expression:
    """Add-14 and Sum-13."""
    _require_broadcasting(node, reader)
    return _sum_of(node, (1.0,) * len(node.inputs), reader)


def _sub(node: ir.Node, reader: Reader) -> Expression:
    """Sub-14."""
    _require_broadcasting(node, reader)
    return _sum_of(node, (1.0, -1.0), reader)


def _mean(node: ir.Node, reader: Reader) -> Expression:
    """Mean-13 of several values."""
    if reader.version(node) < 8:
        raise Refused("before opset 8 it does not broadcast")
    n = len(node.inputs)
    return _sum_of(node, (1 / n,) * n, reader)


def _neg(node: ir.Node, _reader: Reader) -> Expression:
    """Neg-13."""
    return _one(node, scalar_map(-1.0))


def _identity(node: ir.Node, _reader: Reader) -> Expression | None:
    """Identity-21, and Cast-21 to the type that a value has."""
    source = node.inputs[0]
    if source is None:
        return None
    if source.dtype != node.outputs[0].dtype:
        if source.is_graph_input():
            return None
        raise Refused("it changes the type")
    return _one(node, scalar_map(1.0))


def _dropout(node: ir.Node, reader: Reader) -> Expression:
    """Dropout-13 in inference mode."""
    if reader.version(node) < 7:
        raise Refused("before opset 7 an attribute decides whether it is in training mode")
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        training = constant(node.inputs[2])
        if node.inputs[2].is_graph_input() or training is None or bool(training.any()):
            raise Refused("it may be in training mode")
    return _one(node, scalar_map(1.0))


def _leaky_relu(node: ir.Node, _reader: Reader) -> Expression:
    """LeakyRelu-16 of slope 1: Eq. 1 of the VanillaNet paper at lambda = 1."""
    slope = _attribute(node, "alpha", 0.01)
    if slope != 1.0:
        raise Refused(f"its slope is {slope:g}, not 1")
    return _one(node, scalar_map(1.0))


def _p_relu(node: ir.Node, reader: Reader) -> Expression:
    """PRelu-16 whose slopes are all 1."""
    slopes = reader.number(node.inputs[1], "its slope")
    if not (slopes == 1).all():
        raise Refused("its slopes are not all 1")
    rank = reader.rank(node.inputs[0])
    if slopes.ndim and (rank is None or slopes.ndim > rank):
        raise Refused("a constant of more axes than its data may broadcast it")
    if slopes.size > 1 and node.inputs[0] is not None:
        _require_within(slopes, node.inputs[0])
    return _one(node, scalar_map(1.0))


def _average_pool(node: ir.Node, reader: Reader) -> Expression:
    """AveragePool-22 that counts its padding, or has none."""
    kernel = ints_attribute(node, "kernel_shape") or ()
    strides = ints_attribute(node, "strides") or (1,) * len(kernel)
    dilations = ints_attribute(node, "dilations") or (1,) * len(kernel)
    pads = _pads(node, kernel, strides, dilations)
    if isinstance(pads, str):
        raise Refused(f"auto_pad={pads} depends on the input's size")
    if int_attribute(node, "ceil_mode", 0):
        raise Refused("ceil_mode: its last window may be cut off")
    if any(pads) and not int_attribute(node, "count_include_pad", 0):
        raise Refused("it does not count its padding: it averages fewer places at the border")
    source = node.inputs[0]
    channels = None if source is None else reader.channels(source, 1)
    if channels is None or min(pads, default=0) < 0:
        raise Refused("its channels are unknown")
    geometry = Geometry(channels, channels, kernel, strides, pads, dilations, channels)
    if geometry.weights > _LARGEST_POOL:
        raise Refused("its window is too large to be a convolution's")
    m = _weighted(node, geometry, lambda: average(channels, kernel).weight, None, 1)
    return _one(node, _native(m))


def _native(m: Map) -> Map:
    return Map(m.geometry, m.axis, m.biased, m.recipe, native=True)


def _pad(node: ir.Node, reader: Reader) -> Expression:
    """Pad-21 of zeros around spatial axes."""
    mode = node.attributes.get("mode")
    if mode is not None and mode.as_string() != "constant":
        raise Refused(f"it pads by the data ({mode.as_string()})")
    source = node.inputs[0]
    rank = reader.rank(source)
    pads, value = pads_of(node), _attribute(node, "value", 0.0)
    if "pads" not in node.attributes and len(node.inputs) > 1:
        fill = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        filled = len(node.inputs) > 2 and node.inputs[2] is not None
        if pads is None or (filled and fill is None):
            raise Refused("its padding is computed from the data")
        value = 0.0 if fill is None else float(fill.reshape(-1)[0])
    if rank is None or pads is None or source is None:
        raise Refused("its rank is unknown")
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        pads = _spread(node.inputs[3], pads, rank)
    if not any(pads):
        return _one(node, scalar_map(1.0))
    if value != 0:
        raise Refused(f"it pads with {value:g}, not 0")
    channels = reader.channels(source, 1)
    if min(pads) < 0 or rank < 3 or any((*pads[:2], *pads[rank : rank + 2])):
        raise Refused("it pads or crops other than around spatial axes")
    if channels is None:
        raise Refused("its channels are unknown")
    ones = (1,) * (rank - 2)
    spatial = (*pads[2:rank], *pads[rank + 2 :])
    geometry = Geometry(channels, channels, ones, ones, spatial, ones, channels)
    weight = np.ones((channels, 1, *ones))
    return _one(node, _native(_weighted(node, geometry, lambda: weight, None, 1)))


def pads_of(node: ir.Node) -> tuple[int, ...] | None:
    """The padding of a Pad as its attribute or a constant input gives it, or None."""
    pads = ints_attribute(node, "pads")
    if pads is None and len(node.inputs) > 1:
        held = constant(node.inputs[1])
        pads = None if held is None else tuple(int(n) for n in held)
    return pads


def repeated(node: ir.Node, rank: int | None) -> tuple[int, ...] | None:
    """The spatial padding of a Pad that repeats the data (reflect, edge, wrap), or None."""
    mode = node.attributes.get("mode")
    if mode is None or mode.as_string() == "constant" or rank is None or rank < 3:
        return None
    pads = pads_of(node) if len(node.inputs) < 4 else None
    if pads is None or len(pads) != 2 * rank or min(pads) < 0:
        return None
    if any((*pads[:2], *pads[rank : rank + 2])):
        return None
    return (*pads[2:rank], *pads[rank + 2 :])


def _spread(axes: ir.Value, pads: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Pads given for some axes, for all."""
    held = constant(axes)
    if held is None:
        raise Refused("its axes are computed from the data")
    full = [0] * 2 * rank
    for i, axis in enumerate(int(a) % rank for a in held):
        full[axis], full[axis + rank] = pads[i], pads[i + held.size]
    return tuple(full)


def _concat(node: ir.Node, reader: Reader) -> Expression:
    """Concat-13: each operand stands at its own channels, zeros at the others."""
    rank = reader.rank(node.outputs[0]) or reader.rank(node.inputs[0])
    if rank is None:
        raise Refused("its rank is unknown")
    axis = int_attribute(node, "axis", 1) % rank
    counts: list[int] = []
    for value in node.inputs:
        count = None if value is None else reader.channels(value, axis)
        if count is None or axis == 0 or constant(value) is not None or _overridable(value):
            raise Refused("an operand is constant, or its channels are unknown")
        counts.append(count)
    terms: list[Term] = []
    for value, count, begin in zip(
        node.inputs, counts, np.cumsum([0, *counts[:-1]]), strict=True
    ):
        assert value is not None
        rows = np.zeros((sum(counts), 1))
        make = partial(_selection, sum(counts), count, int(begin))
        m = _weighted(node, _matrix(rows.size, count), make, None, axis)
        terms.append(Term(value, _native(m)))
    return Expression(tuple(terms), node=node)


def _selection(out: int, inside: int, begin: int) -> NDArray[Any]:
    weight = np.zeros((out, inside))
    weight[begin : begin + inside] = np.eye(inside)
    return weight


_ENTRIES: Mapping[str, _Entry] = {
    "Add": _add,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Cast": _identity,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Div": _div,
    "Dropout": _dropout,
    "Gemm": _gemm,
    "Identity": _identity,
    "LeakyRelu": _leaky_relu,
    "MatMul": _mat_mul,
    "Mean": _mean,
    "Mul": _mul,
    "Neg": _neg,
    "PRelu": _p_relu,
    "Pad": _pad,
    "Sub": _sub,
    "Sum": _add,
}
