"""Regions of linear nodes between non-linear borders, and the least work for them."""

from __future__ import annotations

__all__ = ["Region", "Settled"]

from collections.abc import Iterator
from dataclasses import dataclass, replace

import onnx_ir as ir

from vntools.export.affine import Refused
from vntools.export.graph import is_data
from vntools.export.maps import (
    Cost,
    Expression,
    Term,
    added,
    composed,
    cropping,
    expression_cost,
    gathered,
    substituted,
)
from vntools.export.operators import Reader, read, repeated

_PATIENCE = 6  # values that may go in vain before the search for a better sum ends
_CANDIDATES = 16  # values looked at for the cheapest one to go
_SWEEPS = 4
_NOMINAL_EXTENT = 224  # of a dynamic axis, where costs are compared
_OTHER_EXTENTS = (3, 16)  # where they may be no higher: padding is much of a small map
_ATTEMPTS = 4


@dataclass(frozen=True)
class Settled:
    """A value that is to be computed otherwise than it is.

    Attributes:
        value: the value.
        expression: how it is to be computed.
        gone: values that went into it, in the order of the graph; itself last.
        before, after: what the region cost and costs.
    """

    value: ir.Value
    expression: Expression
    gone: tuple[ir.Value, ...]
    before: Cost
    after: Cost


class Region:
    """All linear regions of one graph: what every linear value is, and what it might be.

    A value that only linear nodes read may go: its expression is put into theirs, where that
    is exact and the whole costs no more. Sums gather branches of one value on the way, so that
    a low-rank path beside a convolution costs nothing, and alone is what it was. The search is
    greedy, in the order of the graph, with a few steps of patience for what pays only later.

    Args:
        graph: any graph or subgraph; it is read, not changed.
        opset: the version of the ONNX domain.
    """

    def __init__(self, graph: ir.Graph, opset: int) -> None:
        self.graph = graph
        self.sizes: dict[ir.Value, tuple[int, ...]] = {}
        self._other_sizes = tuple(dict[ir.Value, tuple[int, ...]]() for _ in _OTHER_EXTENTS)
        self.skips: dict[ir.Node, str] = {}
        self.padded: dict[ir.Value, tuple[ir.Value, tuple[int, ...]]] = {}
        self.original: dict[ir.Value, Expression] = {}
        self._reader = Reader(opset, self.channels, self.rank)
        self._read()
        self._fixed: set[ir.Value] = set()  # dearer than they were, on small maps
        self._begin()
        self._needed = {v for v in self.original if self._is_needed(v)}
        self._index = {v: i for i, v in enumerate(self.original)}

    def _begin(self) -> None:
        """Everything is what it is in the graph."""
        self.expressions = dict(self.original)
        self._parents: dict[ir.Value, tuple[ir.Value, ...]] = {}
        self._readers: dict[ir.Value, set[ir.Value]] = {v: set() for v in self.original}
        for value, expression in self.original.items():
            for term in expression.terms:
                if term.base in self._readers:
                    self._readers[term.base].add(value)

    def channels(self, value: ir.Value, axis: int) -> int | None:
        """The extent of a value along an axis, where it is known."""
        shape = value.shape
        if shape is not None and -len(shape) <= axis < len(shape):
            extent = shape[axis]
            if isinstance(extent, int):
                return extent
        expression = self.original.get(value)
        if expression is not None:
            for term in expression.terms:
                if term.map.axis == axis:
                    return term.map.geometry.out_channels
        return None

    def rank(self, value: ir.Value) -> int | None:
        """The number of axes of a value, where it is known."""
        if value.shape is not None:
            return len(value.shape)
        expression = self.original.get(value)
        axes = (
            max((t.map.geometry.axes for t in expression.terms), default=0)
            if expression
            else 0
        )
        return axes + 2 if axes else None

    def settle(self) -> Iterator[Settled]:
        """Search, and yield what is to be computed otherwise, in the order of the graph."""
        found: list[Settled] = []
        for _ in range(_ATTEMPTS):
            self._search()
            found = list(self._settled())
            dearer = {s.value for s in found if self._is_dearer(s)}
            if not dearer:
                break
            self._fixed |= dearer
            self._begin()
        yield from (s for s in found if s.value not in self._fixed)

    def _is_dearer(self, settled: Settled) -> bool:
        """Whether a dynamic size makes a value cost more than it did."""
        for sizes in self._other_sizes:
            before = sum(expression_cost(self.original[v], sizes)[0] for v in settled.gone)
            if expression_cost(settled.expression, sizes)[0] > before:
                return True
        return False

    def _search(self) -> None:
        for value in list(self.original):
            if value in self.expressions:
                self._improve(value)
        for _ in range(_SWEEPS):
            again: set[ir.Value] = set()
            for value in reversed(list(self.expressions)):
                if value in self.expressions and value not in self._needed:
                    again |= self._dissolve(value)
            if not again:
                break
            for value in sorted(again, key=self._index.__getitem__):
                if value in self.expressions:
                    self._improve(value)

    def _settled(self) -> Iterator[Settled]:
        for value, expression in self.expressions.items():
            if expression is not self.original[value]:
                gone = self._origin(value)
                whole = [expression_cost(self.original[v], self.sizes) for v in gone]
                before = sum(c[0] for c in whole), sum(c[1] for c in whole), len(whole)
                after = expression_cost(expression, self.sizes)
                yield Settled(value, expression, gone, before, after)

    def _read(self) -> None:
        for value in self.graph.inputs:
            self._size(value, None)
        for node in self.graph:
            source = next((v for v in node.inputs if v is not None), None)
            for value in node.outputs:
                self._size(value, source)
            if not node.outputs or is_data(node):
                continue
            if node.op_type == "Pad" and source is not None:
                pads = repeated(node, self.rank(source))
                if pads is not None:
                    self.padded[source] = node.outputs[0], pads
            try:
                expression = read(node, self._reader)
            except Refused as e:
                self.skips[node] = str(e)
                continue
            if expression is not None:
                self.original[node.outputs[0]] = expression
                self._measure(node.outputs[0], expression)

    def _size(self, value: ir.Value, source: ir.Value | None) -> None:
        """A static size, or a nominal one like that of the node's first input."""
        if value.shape is None:
            return
        for sizes, extent in self._all_sizes():
            like = sizes.get(source) if source is not None else None
            if like is None or len(like) != len(value.shape):
                like = (extent,) * len(value.shape)
            sizes[value] = tuple(
                d if isinstance(d, int) else n for d, n in zip(value.shape, like, strict=True)
            )

    def _all_sizes(self) -> Iterator[tuple[dict[ir.Value, tuple[int, ...]], int]]:
        yield self.sizes, _NOMINAL_EXTENT
        yield from zip(self._other_sizes, _OTHER_EXTENTS, strict=True)

    def _measure(self, value: ir.Value, expression: Expression) -> None:
        """The nominal size of what a convolution makes of a nominal size."""
        m, base = expression.terms[0].map, expression.terms[0].base
        for sizes, _ in self._all_sizes():
            size = sizes.get(base)
            if m.geometry.axes and size is not None and len(size) == m.geometry.axes + 2:
                made = m.geometry.output_size(size[2:])
                sizes[value] = (size[0], m.geometry.out_channels, *made)

    def _is_needed(self, value: ir.Value) -> bool:
        """Whether a graph output, a subgraph or a node that is not linear reads a value."""
        if value.is_graph_output():
            return True
        for use in value.uses():
            outputs = use.node.outputs
            if use.node.graph is not self.graph or outputs[0] not in self.original:
                return True
        return not value.uses()

    def _same_size(self, value: ir.Value) -> bool:
        """Whether all operands of a sum are known to have one size."""
        expression = self.original[value]
        shapes = {
            None if t.base.shape is None else tuple(str(d) for d in t.base.shape)
            for t in expression.terms
        }
        unknown = any(s is None or "None" in s for s in shapes)
        return len(expression.terms) == 1 or (
            len(shapes) == 1 and not unknown and not expression.constants
        )

    def _put(self, reader: Expression, value: ir.Value) -> Expression:
        """``reader`` with the expression of ``value`` in its place."""
        new = substituted(
            reader,
            value,
            self.expressions[value],
            self.sizes,
            same_size=self._same_size(value),
            channels=self.channels,
        )
        return self._on_padded(new) if self.padded else new

    def _on_padded(self, expression: Expression) -> Expression:
        """Terms of a value that another term reads padded, as terms of the padded value."""
        bases = {t.base for t in expression.terms}
        terms = list(expression.terms)
        for i, term in enumerate(terms):
            if term.base not in self.padded or not term.map.geometry.pointwise:
                continue
            padded, pads = self.padded[term.base]
            scalar = term.map.axis is None
            count = self.channels(term.base, 1) if scalar else term.map.geometry.in_channels
            if padded in bases and count:
                terms[i] = Term(padded, composed(term.map, cropping(count, pads)))
        new = replace(expression, terms=tuple(gathered(terms, self.sizes)))
        return min(expression, new, key=self._cost)

    def _cost(self, expression: Expression) -> Cost:
        return expression_cost(expression, self.sizes)

    def _improve(self, value: ir.Value) -> None:
        """Put values that only ``value`` reads into it, as long as that pays in the end."""
        if value in self._fixed:
            return
        state = self.expressions[value]
        plain = replace(state, node=None)
        cheaper = state.node is not None and self._cost(plain) < self._cost(state)
        if cheaper and self._may_vanish(value, plain):
            self._commit(value, plain, [])
            state = plain
        gone: list[ir.Value] = []
        total: Cost = (0, 0, 0)
        best: tuple[Cost, Expression, int] | None = None
        vain = 0
        while vain < _PATIENCE:
            step = self._cheapest(value, state, gone)
            if step is None:
                break
            change, base, state = step
            gone.append(base)
            total = _plus(total, change)
            vain += 1
            fits = self._may_vanish(value, state)
            if fits and total < (best[0] if best is not None else (0, 0, 0)):
                best, vain = (total, state, len(gone)), 0
        if best is not None:
            self._commit(value, best[1], gone[: best[2]])
        elif gone:
            self._explain(value, state, gone)
        if self.expressions[value].constants and self.expressions[value].node is not None:
            self._skip(value, "a constant lies on more than the channel axis", weak=True)

    def _cheapest(
        self, value: ir.Value, state: Expression, gone: list[ir.Value]
    ) -> tuple[Cost, ir.Value, Expression] | None:
        """The value whose going costs least: the change, the value, and the new expression."""
        best: tuple[Cost, ir.Value, Expression] | None = None
        around = {value, *gone}
        now, seen = self._cost(state), 0
        for base in dict.fromkeys(t.base for t in state.terms):
            if base not in self.expressions:
                continue
            node = value.producer()
            assert node is not None
            try:
                new = self._put(state, base)
            except Refused as e:
                self.skips[node] = str(e)
                continue
            spent = _plus(now, self._cost(self.expressions[base]))
            change = _plus(self._cost(new), spent, sign=-1)
            if base in self._needed or not self._readers[base] <= around:
                if change < (0, 0, 0):
                    self.skips.setdefault(
                        node,
                        "the first one's result is read elsewhere too, or is a graph output",
                    )
                continue
            if best is None or change < best[0]:
                best = change, base, new
            seen += 1
            if seen == _CANDIDATES:
                break
        return best

    def _dissolve(self, value: ir.Value) -> set[ir.Value]:
        """Put a value into all of its readers, if that pays; those readers."""
        readers = self._readers[value]
        if not readers or readers & self._fixed:
            return set()
        total = _plus((0, 0, 0), self._cost(self.expressions[value]), sign=-1)
        made: dict[ir.Value, Expression] = {}
        for reader in readers:
            old = self.expressions[reader]
            try:
                new = self._put(old, value)
            except Refused as e:
                node = reader.producer()
                assert node is not None
                self.skips[node] = str(e)
                return set()
            if not self._may_vanish(reader, new):
                return set()
            made[reader] = new
            total = _plus(total, _plus(self._cost(new), self._cost(old), sign=-1))
        if total >= (0, 0, 0):
            if total[:2] > (0, 0) and len(self.expressions[value].terms) == 1:
                for reader in readers:
                    self._skip(
                        reader,
                        "the first one, put into every reader, would cost "
                        f"{total[0]} multiply-accumulates and {total[1]} weights more",
                    )
            return set()
        for reader, new in made.items():
            self._commit(reader, new, [value])
        return set(made)

    def _commit(self, value: ir.Value, new: Expression, gone: list[ir.Value]) -> None:
        for term in self.expressions[value].terms:
            if term.base in self._readers:
                self._readers[term.base].discard(value)
        self.expressions[value] = new
        for term in new.terms:
            if term.base in self._readers:
                self._readers[term.base].add(value)
        for base in gone:
            if not self._readers[base]:
                for term in self.expressions.pop(base).terms:
                    if term.base in self._readers:
                        self._readers[term.base].discard(base)
        self._parents[value] = (*self._parents.get(value, ()), *gone)
        node = value.producer()
        if node is not None:
            self.skips.pop(node, None)

    def _origin(self, value: ir.Value) -> tuple[ir.Value, ...]:
        """Values that went into one, and itself, in the order of the graph."""
        found, todo = {value}, [value]
        while todo:
            for parent in self._parents.get(todo.pop(), ()):
                if parent not in found:
                    found.add(parent)
                    todo.append(parent)
        return tuple(sorted(found, key=self._index.__getitem__))

    def _may_vanish(self, value: ir.Value, new: Expression) -> bool:
        """Whether a bare identity may go: it may not where it joins two names of the graph."""
        if not _is_bare(new) or not value.is_graph_output():
            return True
        base = new.terms[0].base
        while (
            base.producer() is not None
            and not base.is_graph_output()
            and base in self.expressions
            and _is_bare(self.expressions[base])
        ):
            base = self.expressions[base].terms[0].base
        return (
            base.producer() is not None
            and not base.is_graph_output()
            and base.graph is self.graph
        )

    def _skip(self, value: ir.Value, reason: str, *, weak: bool = False) -> None:
        node = value.producer()
        assert node is not None
        if not weak or node not in self.skips:
            self.skips[node] = reason

    def _explain(self, value: ir.Value, state: Expression, gone: list[ir.Value]) -> None:
        """Say why nothing came of putting ``gone`` into ``value``."""
        terms = state.terms
        for j, right in enumerate(terms):
            for left in terms[:j]:
                if left.base is right.base:
                    try:
                        added(left.map, right.map)
                    except Refused as e:
                        self._skip(value, str(e), weak=True)
                        return
        before = self._cost(self.expressions[value])
        for base in gone:
            before = _plus(before, self._cost(self.expressions[base]))
        after = self._cost(self._whole(state))
        if after[:2] > before[:2]:
            self._skip(
                value,
                f"one operator would cost {after[0]} multiply-accumulates and {after[1]} "
                f"weights, they cost {before[0]} and {before[1]}",
            )
        elif len(terms) > 1 and not self._same_size(value):
            self._skip(value, "the operands of a sum may differ in size", weak=True)

    def _whole(self, state: Expression) -> Expression:
        """All terms of one value added up, whatever it costs."""
        terms: dict[ir.Value, Term] = {}
        for term in state.terms:
            if term.base in terms:
                term = Term(term.base, added(terms[term.base].map, term.map))  # noqa: PLW2901
            terms[term.base] = term
        return replace(state, terms=tuple(terms.values()), node=None)


def _is_bare(expression: Expression) -> bool:
    """Whether an expression is a value as it is."""
    only = expression.terms[0].map
    return len(expression.terms) == 1 and not expression.constants and only.is_identity


def _plus(left: Cost, right: Cost, *, sign: int = 1) -> Cost:
    return (
        left[0] + sign * right[0],
        left[1] + sign * right[1],
        left[2] + sign * right[2],
    )
