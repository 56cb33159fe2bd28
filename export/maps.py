"""Linear maps by their geometry, their numbers to come; and sums of them over values.

A plan is made of geometries alone: no weight is read before a plan is found worth its while.
"""

from __future__ import annotations

__all__ = [
    "Cost",
    "Expression",
    "Map",
    "Sizes",
    "Term",
    "added",
    "composed",
    "diagonal_map",
    "cropping",
    "expression_cost",
    "gathered",
    "map_cost",
    "scalar_map",
    "substituted",
]

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vntools.export.affine import (
    AffineConv,
    Array,
    Geometry,
    Refused,
    add,
    compose,
    crop,
    diagonal,
    lift,
    plan_add,
    plan_compose,
    widened,
)

Cost = tuple[int, int, int]
"""Multiply-accumulates of one sample, weights, nodes; compared in this order."""

Sizes = Mapping[ir.Value, tuple[int, ...]]
"""Static sizes of values, or such as they would have with dynamic axes at a nominal extent."""

_NOMINAL_EXTENT = 224
_MOST_STEPS = 1 << 12  # of a recipe: x + x, forty times over, has 2^40
_MOST_AXES = 5  # of a value that is convolved: batch, channels, three spatial ones
_UNWRITABLE = 1 << 20  # nodes: what no operator computes is never chosen


@dataclass(frozen=True)
class _Step:
    """A value that a rule makes of others."""

    rule: Callable[..., AffineConv]
    operands: tuple[_Recipe, ...]

    @cached_property
    def steps(self) -> int:
        """How many steps it takes, those that it shares counted each time."""
        return 1 + sum(o.steps for o in self.operands if isinstance(o, _Step))


_Recipe = _Step | Callable[[], AffineConv]


@dataclass(frozen=True)
class Map:
    """A linear map between values, along their channel axis.

    Attributes:
        geometry: over the spatial axes behind channel axis 1; without any, a matrix that acts
            on ``axis`` at every place of the others.
        axis: of the channels, counted from the front; from the end (negative) where the rank
            is unknown; None for a scalar, which acts along any.
        biased: whether its bias may be other than zero.
        recipe: how its numbers are made.
        value: of a channel affine: its numbers. Such a map is no convolution but element-wise.
        layer: name of the node whose weights it has.
        norm: a channel affine that is, or has taken up, a BatchNormalization; as such, with
            scale and shift, it is one node.
        turned: it acts on the transposed value (Gemm's transA).
        native: done by an operator without weights (AveragePool, Pad, Concat), at no
            multiply-accumulates.
    """

    geometry: Geometry
    axis: int | None
    biased: bool
    recipe: _Recipe
    value: AffineConv | None = None
    layer: str = ""
    native: bool = False
    norm: bool = False
    turned: bool = False

    @cached_property
    def is_identity(self) -> bool:
        """Whether it leaves everything as it is."""
        return (
            self.value is not None and not self.biased and bool((self.value.weight == 1).all())
        )

    @cached_property
    def scales(self) -> bool:
        """Whether a channel affine does more than shift."""
        return self.value is None or bool((self.value.weight != 1).any())

    def make(self) -> AffineConv:
        """Its numbers, in float64: weights are read, and let go, as they are needed."""
        todo: list[tuple[_Recipe, tuple[int, ...] | None]] = [(self.recipe, None)]
        made: list[AffineConv] = []
        while todo:
            recipe, order = todo.pop()
            if not isinstance(recipe, _Step):
                made.append(recipe())
            elif order is not None:
                first = len(made) - len(order)
                values = [made[first + order.index(i)] for i in range(len(order))]
                del made[first:]
                made.append(recipe.rule(*values))
            else:
                # What is itself made of others goes first, so that a chain of any length holds
                # one result and one operand at a time.
                operands = recipe.operands
                light = [not isinstance(r, _Step) for r in operands]
                order = tuple(sorted(range(len(operands)), key=light.__getitem__))
                todo.append((recipe, order))
                todo += [(operands[i], None) for i in reversed(order)]
        return made.pop()

    def without_bias(self) -> Map:
        """The map less its bias."""
        if not self.biased:
            return self
        if self.value is not None:
            bare = diagonal_map(self.value.weight[:, 0], None, self.axis)
            return replace(bare, norm=self.norm)
        return replace(self, biased=False, recipe=_Step(_unbiased, (self.recipe,)))

    def flattened(self) -> Map:
        """A 1x1 convolution, of which there is one place alone, as a matrix."""
        g = self.geometry
        geometry = Geometry(g.out_channels, g.in_channels, (), (), (), (), g.groups)
        return replace(self, geometry=geometry, recipe=_Step(_flattened, (self.recipe,)))


def _flattened(conv: AffineConv) -> AffineConv:
    weight = conv.weight.reshape(conv.weight.shape[:2])
    return AffineConv.of(weight, conv.bias, groups=conv.groups)


def _unbiased(conv: AffineConv) -> AffineConv:
    return replace(conv, bias=np.zeros(conv.out_channels))


def diagonal_map(scale: NDArray[Any], shift: NDArray[Any] | None, axis: int | None) -> Map:
    """The map y = scale x + shift, (channels,) each; axis None: one number for all.

    Raises:
        Refused: there are no channels.
    """
    if not scale.size:
        raise Refused("it has no channels")
    value = diagonal(widened(scale), None if shift is None else widened(shift))
    return Map(value.geometry, axis, bool(value.bias.any()), lambda: value, value)


def scalar_map(scale: float, shift: float = 0.0) -> Map:
    """The map y = scale x + shift along any axis."""
    return diagonal_map(np.array([scale]), np.array([shift]), None)


def cropping(channels: int, pads: tuple[int, ...]) -> Map:
    """What takes spatial padding off again."""
    value = crop(channels, pads)
    return Map(value.geometry, 1, False, lambda: value)


def _meet(left: Map, right: Map, channels: tuple[int, int]) -> tuple[Map, Map]:
    """Two maps on the same axis, over as many spatial axes; scalars get ``channels``."""
    if left.axis is None and right.axis is None:
        return left, right
    axis = left.axis if left.axis is not None else right.axis
    sides: list[Map] = []
    spatial = max(left.geometry.axes, right.geometry.axes)
    for side, count in zip((left, right), channels, strict=True):
        m = side
        if m.axis is None:
            assert m.value is not None
            bias = np.full(count, m.value.bias[0])
            m = diagonal_map(np.full(count, m.value.weight[0, 0]), bias, axis)
        if m.axis != axis:
            raise Refused("they act along different axes")
        if m.geometry.axes != spatial:
            if m.geometry.axes or axis != 1:
                raise Refused("they act along different axes")
            ones, zeros = (1,) * spatial, (0,) * 2 * spatial
            geometry = replace(
                m.geometry, kernel=ones, strides=ones, pads=zeros, dilations=ones
            )
            recipe = _Step(partial(lift, axes=spatial), (m.recipe,))
            m = replace(m, geometry=geometry, recipe=recipe, value=None)
        sides.append(m)
    return sides[0], sides[1]


def composed(outer: Map, inner: Map) -> Map:
    """``outer`` behind ``inner``: see :func:`vntools.export.affine.compose`.

    Raises:
        Refused: a condition does not hold.
    """
    if outer.is_identity and (outer.axis is None or inner.axis == outer.axis):
        return replace(inner, native=False)
    if inner.is_identity and (inner.axis is None or inner.axis == outer.axis):
        return replace(outer, native=False)
    channels = outer.geometry.in_channels, inner.geometry.out_channels
    left, right = _meet(outer, inner, (channels[1], channels[0]))
    if outer.turned:
        raise Refused("it transposes its data")
    plan = plan_compose(left.geometry, right.geometry, biased=right.biased)
    axis = left.axis
    if left.value is not None and right.value is not None:
        both = compose(left.value, right.value)
        made = diagonal_map(both.weight[:, 0], both.bias, axis)
        return replace(made, norm=outer.norm or inner.norm)
    return Map(
        plan,
        axis,
        left.biased or right.biased,
        _composed(left, right),
        layer=outer.layer or inner.layer,
        turned=inner.turned,
    )


def _composed(left: Map, right: Map) -> _Recipe:
    """How ``left`` behind ``right`` is made: a channel affine scales weights, not products."""
    recipe = right.recipe
    if left.geometry.diagonal and isinstance(recipe, _Step) and recipe.rule is compose:
        outer, inner = recipe.operands
        return _Step(compose, (_Step(compose, (left.recipe, outer)), inner))
    return _Step(compose, (left.recipe, recipe))


def added(left: Map, right: Map) -> Map:
    """The sum of two maps of one value: see :func:`vntools.export.affine.add`.

    Raises:
        Refused: a condition does not hold.
    """
    a, b = _meet(left, right, (right.geometry.out_channels, left.geometry.out_channels))
    if a.turned != b.turned:
        raise Refused("one of them transposes its data")
    plan = plan_add(a.geometry, b.geometry)
    if a.value is not None and b.value is not None:
        both = add(a.value, b.value)
        made = diagonal_map(both.weight[:, 0], both.bias, a.axis)
        return replace(made, norm=left.norm or right.norm)
    recipe = _Step(add, (a.recipe, b.recipe))
    if recipe.steps > _MOST_STEPS:
        raise Refused("it is a sum of too many parts")
    larger = a if a.geometry.weights >= b.geometry.weights and a.value is None else b
    return Map(
        plan,
        a.axis,
        a.biased or b.biased,
        recipe,
        layer=larger.layer or a.layer or b.layer,
        turned=a.turned,
    )


@dataclass(frozen=True)
class Term:
    """A map of a value."""

    base: ir.Value
    map: Map


@dataclass(frozen=True)
class Expression:
    """A sum of maps over values, and of constants that lie on more than the channel axis.

    Attributes:
        terms: at least one.
        constants: arrays that broadcast against the sum.
        node: what computes it as the graph stands; None for one that was changed.
    """

    terms: tuple[Term, ...]
    constants: tuple[Array, ...] = ()
    node: ir.Node | None = None

    @property
    def carrier(self) -> Term | None:
        """The term whose operator can take all biases: a Conv, a transposed one, a Gemm."""
        for term in self.terms:
            m = term.map
            if m.value is None and (
                m.geometry.axes or (m.axis == 1 and _rank(term.base) == 2)
            ):
                return term
        return None

    @property
    def biased(self) -> bool:
        """Whether a bias of any term may be other than zero."""
        return any(t.map.biased for t in self.terms)


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)


def map_cost(base: ir.Value, m: Map, sizes: Sizes) -> tuple[int, int]:
    """Multiply-accumulates and weights."""
    if m.value is not None:
        return 0, 0
    size = sizes.get(base)
    if m.geometry.axes:
        if size is None or len(size) != m.geometry.axes + 2:
            size = (1, 1) + (_NOMINAL_EXTENT,) * m.geometry.axes
        return m.geometry.macs(size[2:]), m.geometry.weights
    rows = 1
    if size is not None and m.axis is not None:
        rows = math.prod(
            n for a, n in enumerate(size) if a != m.axis % len(size) and (a or m.axis == 0)
        )
    return m.geometry.weights * rows, m.geometry.weights


def expression_cost(expression: Expression, sizes: Sizes) -> Cost:
    """What computing an expression costs."""
    work = [
        map_cost(t.base, t.map, sizes)
        for t in expression.terms
        if not (t.map.native and expression.node is not None)
    ]
    nodes = 1 if expression.node is not None else _nodes(expression)
    return sum(m for m, _ in work), sum(w for _, w in work), nodes


def _nodes(expression: Expression) -> int:
    """Nodes that :mod:`vntools.export.emit` would write."""
    terms = expression.terms
    negative = [
        t.map.value is not None and bool((t.map.value.weight == -1).all()) for t in terms
    ]
    carrier = expression.carrier
    gemm = carrier is not None and not carrier.map.geometry.axes
    constants = 0 if gemm else len(expression.constants)
    nodes = len(terms) + constants - 1 + all(negative)
    nodes += sum(t.map.scales and not n for t, n in zip(terms, negative, strict=True))
    if any(not _writable(t) for t in terms):
        nodes += _UNWRITABLE
    if expression.biased and carrier is None:
        only = terms[0].map
        nodes += not (len(terms) == 1 and only.norm and only.axis == 1 and only.scales)
    return nodes


def _writable(term: Term) -> bool:
    """Whether a matrix acts on an axis that an operator has for it."""
    m, rank = term.map, _rank(term.base)
    if m.value is not None or m.geometry.axes:
        return True
    if m.axis == 1 and rank is not None and rank <= _MOST_AXES:
        return True
    return m.axis in (-1, -2) or (rank is not None and m.axis in (rank - 1, rank - 2))


def substituted(
    reader: Expression,
    base: ir.Value,
    inner: Expression,
    sizes: Sizes,
    *,
    same_size: bool,
    channels: Callable[[ir.Value, int], int | None],
) -> Expression:
    """``reader`` with ``inner`` in the place of ``base``, branches of one value added up.

    Args:
        reader: the expression of a value.
        base: a value that it reads.
        inner: the expression of that one.
        sizes: for the costs.
        same_size: whether all terms of ``inner`` are known to have one size: if not, a sum
            may broadcast, and only maps that act on every place alone pass through it.
        channels: the extent of a value along an axis, where it is known.

    Raises:
        Refused: a condition does not hold.
    """
    terms: list[Term] = []
    constants = list(reader.constants)
    for term in reader.terms:
        if term.base is not base:
            terms.append(term)
            continue
        outer = term.map
        if len(inner.terms) + len(inner.constants) > 1 and not (
            outer.geometry.pointwise or same_size
        ):
            raise Refused("the operands of a sum may differ in size")
        for i, part in enumerate(inner.terms):
            if len(inner.terms) > 1 and part.map.axis is None and outer.axis is not None:
                found = channels(part.base, outer.axis)
                if found != outer.geometry.in_channels:
                    raise Refused("the operands of a sum may differ in their channels")
            terms.append(
                Term(part.base, composed(outer if i == 0 else outer.without_bias(), part.map))
            )
        constants += [_constant_through(outer, c, base) for c in inner.constants]
    made = Expression(tuple(gathered(terms, sizes)), tuple(_summed(constants)))
    axes = {_from_the_front(t) for t in made.terms if t.map.biased and t.map.axis is not None}
    if len(axes | ({1} if made.carrier is not None and axes else set())) > 1:
        raise Refused("their biases lie on different axes")
    return made


def _from_the_front(term: Term) -> int | None:
    """The axis of a term's channels, from the front where the rank is known."""
    axis, rank = term.map.axis, _rank(term.base)
    return axis if axis is None or rank is None else axis % rank


def _summed(constants: Iterable[Array]) -> list[Array]:
    """Constants that lie alike, as one."""
    found: dict[tuple[int, ...], Array] = {}
    for c in constants:
        found[c.shape] = found[c.shape] + c if c.shape in found else c
    return list(found.values())


def _constant_through(outer: Map, c: Array, base: ir.Value) -> Array:
    """A map, less its bias, of a constant that broadcasts against ``base``."""
    if outer.value is not None and outer.axis is None:
        return c * outer.value.weight[0, 0]
    rank = _rank(base)
    if rank is None or outer.axis is None or outer.geometry.axes:
        raise Refused("a constant map stands between them")
    axis = outer.axis % rank - rank
    if outer.value is not None:
        return c * outer.value.weight.reshape((-1,) + (1,) * (-axis - 1))
    if c.ndim < -axis or c.shape[axis] != outer.geometry.in_channels:
        raise Refused("a constant map stands between them")
    weight = widened(outer.make().weight)
    if outer.geometry.groups != 1:
        raise Refused("a constant map stands between them")
    return np.moveaxis(np.moveaxis(c, axis, -1) @ weight.T, -1, axis)


def gathered(terms: list[Term], sizes: Sizes) -> list[Term]:
    """Terms of one value added up wherever that costs no more; the order stays."""
    apart: dict[ir.Value, list[Term]] = {}
    for term in terms:
        apart.setdefault(term.base, []).append(term)
    if len(apart) == len(terms):
        return terms
    left = [t for some in apart.values() for t in _gathered(some, sizes)]
    order = {id(t): i for i, t in enumerate(terms)}
    return sorted(left, key=lambda t: order.get(id(t), order[id(apart[t.base][0])]))


def _gathered(terms: list[Term], sizes: Sizes) -> list[Term]:
    left = list(terms)
    while True:
        best: tuple[tuple[int, int], int, int, Map] | None = None
        for j in range(1, len(left)):
            for i in range(j):
                try:
                    both = added(left[i].map, left[j].map)
                except Refused:
                    continue
                base = left[i].base
                apart = [map_cost(base, m, sizes) for m in (left[i].map, left[j].map)]
                whole = map_cost(base, both, sizes)
                gain = (
                    whole[0] - apart[0][0] - apart[1][0],
                    whole[1] - apart[0][1] - apart[1][1],
                )
                if gain <= (0, 0) and (best is None or gain < best[0]):
                    best = gain, i, j, both
        if best is None:
            return left
        _, i, j, both = best
        left[i] = Term(left[i].base, both)
        del left[j]
