"""Moving linear maps past operators that they commute with, to where they can be absorbed.

One entry an operator: what a map on one side of it is on the other. A move is made only where
a linear operator waits at its end that takes the map up exactly.
"""

from __future__ import annotations

__all__ = ["Move", "moves"]

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from vntools.export.affine import Array, Refused
from vntools.export.graph import constant, int_attribute, ints_attribute, is_op
from vntools.export.maps import Map, Term, composed, diagonal_map, map_cost
from vntools.export.operators import pads_of
from vntools.export.probe_moves import Passing
from vntools.export.region import Region

_FARTHEST = 16  # operators that a map may pass
_Step = Callable[[ir.Node, Map, int, bool, Region], Map]


@dataclass(frozen=True)
class Move:
    """A map that may move.

    Attributes:
        node: what computes it now.
        passed: operators that it passes.
        places: for each of the new maps the value that it is of, the map, and the node and
            the index of the input that is to read its result; the index is -1 where a pool
            and the 1x1 convolution before it change places.
        forwards: towards the output of the graph.
    """

    node: ir.Node
    passed: tuple[Passing, ...]
    places: tuple[tuple[ir.Value, Map, ir.Node, int], ...]
    forwards: bool


def moves(region: Region) -> Iterator[Move]:
    """Maps of ``region`` that are worth moving; none touches another's nodes."""
    taken: set[ir.Node] = set()
    for value, expression in region.original.items():
        node = value.producer()
        if node is None or len(expression.terms) != 1 or expression.constants:
            continue
        term = expression.terms[0]
        m = term.map
        if m.native or m.is_identity:
            continue
        found = _forwards(region, node, value, term)
        if found is None and m.value is not None:
            found = _backwards(region, node, term)
        if found is None:
            continue
        touched = {found.node, *(p.node for p in found.passed), *(p[2] for p in found.places)}
        touched |= {n for p in found.places if (n := p[0].producer()) is not None}
        if not touched & taken:
            taken |= touched
            yield found


def _forwards(region: Region, node: ir.Node, value: ir.Value, term: Term) -> Move | None:
    """A channel affine, or a 1x1 map where a pool or a Flatten waits, towards the output."""
    m = term.map
    if m.value is None and not (m.geometry.pointwise and m.axis == 1):
        return None
    places: list[tuple[ir.Value, Map, ir.Node, int]] = []
    passed: list[Passing] = []
    todo: list[tuple[ir.Value, Map, int]] = [(value, m, 0)]
    while todo:
        at, carried, depth = todo.pop()
        if at.is_graph_output() or not at.uses() or depth > _FARTHEST:
            return None
        for use in at.uses():
            reader = use.node
            if reader.graph is not region.graph or reader in [p.node for p in passed]:
                return None
            if is_op(reader, "Shape") and carried.value is not None:
                continue
            try:
                if reader.op_type in _STEPS and reader.domain in ("", "ai.onnx"):
                    through = _STEPS[reader.op_type](reader, carried, use.idx, True, region)
                    passed.append(Passing(reader, {use.idx: carried}, through))
                    if at is value and carried.value is None and _shrinks(region, reader):
                        return _pool_first(node, reader, at, through)
                    todo.append((reader.outputs[0], through, depth + 1))
                    continue
                if not _absorbs(region, reader, at, carried, term.base):
                    return None
            except Refused as e:
                if passed or reader.op_type in _STEPS:
                    _note(region, node, m, e)
                return None
            places.append((at, carried, reader, use.idx))
    if not passed:
        return None
    return Move(node, tuple(passed), tuple(places), True)


def _note(region: Region, node: ir.Node, m: Map, why: Refused) -> None:
    """Say why a channel affine stays; of other maps nobody expects that they move."""
    if m.value is not None and node not in region.skips:
        region.skips[node] = str(why)


def _pool_first(node: ir.Node, pool: ir.Node, at: ir.Value, m: Map) -> Move | None:
    """A 1x1 convolution behind the pool that it stands before."""
    if len(at.uses()) != 1:
        return None
    return Move(node, (Passing(pool, {0: m}, m),), ((pool.outputs[0], m, pool, -1),), True)


def _shrinks(region: Region, node: ir.Node) -> bool:
    """Whether a pool's result has fewer places than its input."""
    source = node.inputs[0]
    before, after = (region.sizes.get(v) for v in (source, node.outputs[0]) if v is not None)
    if is_op(node, "GlobalAveragePool"):
        return before is not None and math.prod(before[2:]) > 1
    if not is_op(node, "AveragePool"):
        return False
    return max(ints_attribute(node, "strides") or (1,)) > 1 and after is not None


def _absorbs(region: Region, reader: ir.Node, at: ir.Value, m: Map, before: ir.Value) -> bool:
    """Whether a linear operator takes a map before it up, and costs no more."""
    expression = region.original.get(reader.outputs[0])
    if expression is None or len(expression.terms) != 1 or expression.terms[0].base is not at:
        return False
    outer = expression.terms[0].map
    if outer.native or outer.value is not None:  # another affine moves backwards to it
        return False
    both = composed(outer, m)
    if m.value is not None:
        return True
    if both.geometry.weights > outer.geometry.weights + m.geometry.weights:
        return False
    apart = map_cost(before, m, region.sizes), map_cost(at, outer, region.sizes)
    return map_cost(at, both, region.sizes)[0] <= apart[0][0] + apart[1][0]


def _backwards(region: Region, node: ir.Node, term: Term) -> Move | None:
    """A channel affine towards the input."""
    places: list[tuple[ir.Value, Map, ir.Node, int]] = []
    passed: list[Passing] = []
    todo: list[tuple[ir.Value, Map, ir.Node, int, int]] = [(term.base, term.map, node, 0, 0)]
    while todo:
        at, carried, reader, index, depth = todo.pop()
        producer = at.producer()
        if (
            producer is None
            or producer.graph is not region.graph
            or at.is_graph_output()
            or sum(not is_op(u.node, "Shape") for u in at.uses()) != 1
            or depth > _FARTHEST
        ):
            return None
        try:
            if producer.op_type in _STEPS and producer.domain in ("", "ai.onnx"):
                inside: dict[int, Map] = {}
                inputs = range(len(producer.inputs)) if producer.op_type == "Concat" else (0,)
                for i in inputs:
                    source = producer.inputs[i]
                    if source is None:
                        return None
                    through = _STEPS[producer.op_type](producer, carried, i, False, region)
                    inside[i] = through
                    todo.append((source, through, producer, i, depth + 1))
                passed.append(Passing(producer, inside, carried))
                continue
            expression = region.original.get(at)
            if expression is None or len(expression.terms) != 1 or expression.constants:
                return None
            inner = expression.terms[0].map
            if inner.native:
                return None
            composed(carried, inner)
        except Refused as e:
            if passed or producer.op_type in _STEPS:
                _note(region, node, term.map, e)
            return None
        places.append((at, carried, reader, index))
    return Move(node, tuple(passed), tuple(places), False) if passed else None


def _require_diagonal(m: Map) -> tuple[Array, Array]:
    if m.value is None:
        raise Refused("only channel affines pass")
    return m.value.weight[:, 0], m.value.bias


def _positive_scale(
    _node: ir.Node, m: Map, _index: int, _forward: bool, _region: Region
) -> Map:
    """Relu-14, LeakyRelu-16, PRelu-16: f(a x) = a f(x) for a >= 0, channel by channel."""
    scale, _ = _require_diagonal(m)
    if m.biased or (scale < 0).any():
        raise Refused("only a scale that is not negative passes")
    return m


def _maximum(node: ir.Node, m: Map, _index: int, _forward: bool, _region: Region) -> Map:
    """MaxPool-22, GlobalMaxPool-22: max(a x + c) = a max(x) + c for a >= 0."""
    scale, _ = _require_diagonal(m)
    if (scale < 0).any() or m.axis not in (None, 1):
        raise Refused("only a scale that is not negative passes")
    if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        raise Refused("its indices are read too")
    return m


def _average(node: ir.Node, m: Map, _index: int, _forward: bool, _region: Region) -> Map:
    """GlobalAveragePool-22, AveragePool-22: a mean commutes with any map of the channels.

    With padding that counts, or a last window that is cut off, only without bias: there the
    numbers that are averaged do not sum up to one.
    """
    if m.axis not in (None, 1):
        raise Refused("it averages along that axis")
    mode = node.attributes.get("auto_pad")
    padded = any(ints_attribute(node, "pads") or ()) or (
        mode is not None and mode.as_string().startswith("SAME")
    )
    counted = padded and int_attribute(node, "count_include_pad", 0)
    if m.biased and (counted or int_attribute(node, "ceil_mode", 0)):
        raise Refused("it averages the zeros of its padding too")
    return m


def _reduce_mean(node: ir.Node, m: Map, _index: int, forward: bool, _region: Region) -> Map:
    """ReduceMean-18 over other axes than the map's."""
    axes = ints_attribute(node, "axes")
    if axes is None and len(node.inputs) > 1:
        held = constant(node.inputs[1])
        axes = None if held is None else tuple(int(a) for a in held.reshape(-1))
    source = node.inputs[0]
    if axes is None or source is None or source.shape is None:
        raise Refused("its axes are unknown")
    rank = len(source.shape)
    reduced = sorted(a % rank for a in axes)
    if m.value is None:
        if forward and not int_attribute(node, "keepdims", 1) and reduced == [*range(2, rank)]:
            return m.flattened()
        raise Refused("only channel affines pass")
    if m.axis is None:
        return m
    kept = int_attribute(node, "keepdims", 1)
    axis = m.axis % rank if forward else m.axis
    left = [a for a in range(rank) if kept or a not in reduced]
    other = left.index(axis) if forward and axis in left else left[axis] if not forward else -1
    if other < 0 or (axis if forward else other) in reduced:
        raise Refused("it averages along that axis")
    return replace(m, axis=other)


def _transpose(node: ir.Node, m: Map, _index: int, forward: bool, _region: Region) -> Map:
    """Transpose-21."""
    _require_diagonal(m)
    perm = ints_attribute(node, "perm")
    source = node.inputs[0]
    if m.axis is None:
        return m
    if perm is None:
        if source is None or source.shape is None:
            raise Refused("its rank is unknown")
        perm = tuple(reversed(range(len(source.shape))))
    axis = m.axis % len(perm)
    return replace(m, axis=perm.index(axis) if forward else perm[axis])


def _reshape(node: ir.Node, m: Map, _index: int, forward: bool, _region: Region) -> Map:
    """Reshape-21, Flatten-21, Squeeze-21, Unsqueeze-21 that keep the channel axis whole.

    A channel axis that is merged with the axes behind it is repeated over them.
    """
    source, target = node.inputs[0], node.outputs[0]
    if m.axis is None and m.value is not None:
        return m
    if source is None or source.shape is None or target.shape is None or m.axis is None:
        raise Refused("its shape is unknown")
    here, there = tuple(source.shape), tuple(target.shape)
    if not forward:
        here, there = there, here
    axis = m.axis % len(here)
    known = m.geometry.out_channels  # a map of channels never broadcasts
    if m.value is None:
        return _unfolded(m, here, there, axis)
    for other in range(len(there)):
        size = there[other]
        if size == known and (
            _same(here[axis + 1 :], there[other + 1 :]) or _same(here[:axis], there[:other])
        ):
            return replace(m, axis=other)
    return _merged(m, here, there, axis) if forward else _split(m, here, there, axis)


def _unfolded(m: Map, here: tuple[object, ...], there: tuple[object, ...], axis: int) -> Map:
    """A 1x1 convolution of a single place is a matrix."""
    if axis != 1 or any(n != 1 for n in here[2:]) or len(there) != 2:
        raise Refused("only channel affines pass")
    if m.geometry.groups != 1 or not m.geometry.pointwise:
        raise Refused("only dense 1x1 convolutions are matrices")
    return m.flattened()


def _merged(m: Map, here: tuple[object, ...], there: tuple[object, ...], axis: int) -> Map:
    scale, shift = _require_diagonal(m)
    for other in range(len(there)):
        size = there[other]
        if not isinstance(size, int) or size % scale.size:
            continue
        times, count, end = size // scale.size, 1, axis + 1
        while end < len(here) and count < times:
            extent = here[end]
            if not isinstance(extent, int):
                break
            count, end = count * extent, end + 1
        behind = _same(here[end:], there[other + 1 :])
        if count == times and (behind or _same(here[:axis], there[:other])):
            return diagonal_map(np.repeat(scale, times), np.repeat(shift, times), other)
    raise Refused("it does not keep the channel axis")


def _split(m: Map, here: tuple[object, ...], there: tuple[object, ...], axis: int) -> Map:
    """A map of merged axes, where it is one of the first of them alone."""
    scale, shift = _require_diagonal(m)
    for other in range(len(there)):
        size = there[other]
        if not isinstance(size, int) or scale.size % size:
            continue
        if not _same(here[:axis], there[:other]):
            continue
        rows = scale.reshape(size, -1), shift.reshape(size, -1)
        if all((r == r[:, :1]).all() for r in rows):
            return diagonal_map(rows[0][:, 0], rows[1][:, 0], other)
    raise Refused("it does not keep the channel axis")


def _same(left: tuple[object, ...], right: tuple[object, ...]) -> bool:
    """Whether two runs of axes have as many elements, dynamic ones alike."""
    sides: list[tuple[int, list[str]]] = []
    for run in (left, right):
        fixed = math.prod(n for n in run if isinstance(n, int))
        names = [_symbol(n) for n in run if not isinstance(n, int)]
        if None in names:
            return False
        sides.append((fixed, sorted(n for n in names if n is not None)))
    return sides[0] == sides[1]


def _symbol(extent: object) -> str | None:
    return extent.value if isinstance(extent, ir.SymbolicDim) else None


def _concat(node: ir.Node, m: Map, index: int, forward: bool, region: Region) -> Map:
    """Concat-13: a part of the channels on one side, all of them on the other."""
    scale, shift = _require_diagonal(m)
    out = node.outputs[0]
    if out.shape is None:
        raise Refused("its rank is unknown")
    axis = int_attribute(node, "axis", 1) % len(out.shape)
    if m.axis is not None and m.axis % len(out.shape) != axis:
        if forward and len(node.inputs) > 1:
            raise Refused("only a part of it is mapped")
        return m
    counts = [None if v is None else region.channels(v, axis) for v in node.inputs]
    if any(n is None for n in counts):
        raise Refused("its channels are unknown")
    ends = np.cumsum([n for n in counts if n is not None])
    begin, end = int(ends[index]) - int(counts[index] or 0), int(ends[index])
    if not forward:
        if m.axis is None:
            return m
        return diagonal_map(scale[begin:end], shift[begin:end], axis)
    whole, moved = np.ones(int(ends[-1])), np.zeros(int(ends[-1]))
    whole[begin:end], moved[begin:end] = scale, shift
    return diagonal_map(whole, moved, axis)


def _pad(node: ir.Node, m: Map, _index: int, _forward: bool, _region: Region) -> Map:
    """Pad-21 that repeats the data: every place is one of the input's."""
    mode = node.attributes.get("mode")
    if m.axis not in (None, 1):
        raise Refused("it pads along that axis")
    if mode is None or mode.as_string() == "constant":
        _require_diagonal(m)  # other maps meet it as linear nodes
        fill = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        given = len(node.inputs) > 2 and node.inputs[2] is not None
        value = node.attributes["value"].as_float() if "value" in node.attributes else 0.0
        if m.biased or (given and (fill is None or fill.any())) or value:
            raise Refused("its padding is not mapped")
    source = node.inputs[0]
    pads = pads_of(node)
    if pads is None or source is None or source.shape is None or len(node.inputs) > 3:
        raise Refused("its padding is unknown")
    rank = len(source.shape)
    if len(pads) != 2 * rank or pads[1] or pads[1 + rank]:
        raise Refused("it pads the channels")
    return m


_STEPS: Mapping[str, _Step] = {
    "AveragePool": _average,
    "Concat": _concat,
    "Flatten": _reshape,
    "GlobalAveragePool": _average,
    "GlobalMaxPool": _maximum,
    "LeakyRelu": _positive_scale,
    "MaxPool": _maximum,
    "PRelu": _positive_scale,
    "Pad": _pad,
    "ReduceMean": _reduce_mean,
    "Relu": _positive_scale,
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}
