"""A region before and after, evaluated in float64 on seeded random inputs."""

from __future__ import annotations

__all__ = ["Probe"]

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vntools.export.affine import AffineConv, Array, Refused, apply, lift, widened
from vntools.export.maps import Map, Term
from vntools.export.region import Region, Settled

_LARGEST_EXTENT = 64
_LARGEST_FEED = 1 << 24  # elements
_SAMPLED = 64  # output channels
_WIDENED = 512  # output channels whose weights are in float64 at a time

Rows = NDArray[np.intp] | None


class Probe:
    """Random inputs of two sizes for what a value is to be computed from.

    As small as shows every tap, the interior and both borders: per spatial axis one output
    place more than padding reaches from either side, and one more place in the second size.
    Constants that lie on more than the channel axis are left out on either side.

    Args:
        region: where the value is from.
        settled: the value, and how it is to be computed.
    """

    def __init__(self, region: Region, settled: Settled) -> None:
        self._region, self._settled = region, settled
        name = settled.value.name or ""
        self._rng = np.random.default_rng(list(name.encode("utf-8", "replace")))
        gone = settled.gone
        maps = [t.map for v in gone for t in region.original[v].terms]
        self._axes = max(m.geometry.axes for m in maps)
        self._apart = len({m.axis for m in maps if m.axis is not None}) > 1
        self._channels = self._known_channels()
        feeds = [self._feed(extra) for extra in (0, 1)]
        self._feeds = {base: [feed[base] for feed in feeds] for base in feeds[0]}
        self._rows = self._sample()
        self._after: list[Array] = []

    def see(self, term: Term, conv: AffineConv) -> None:
        """Take the part that ``term`` has, by its numbers ``conv``."""
        parts = self._apply(term.map, conv, self._feeds[term.base], self._rows, whole=True)
        before = self._after or [np.zeros(())] * len(parts)
        self._after = [a + b for a, b in zip(before, parts, strict=True)]

    def error(self) -> float:
        """The largest difference, relative to the largest value on the way.

        Infinite where the shapes differ; not a number where a value is not finite.
        """
        wanted, largest = self._before()
        worst = 0.0
        for want, got in zip(wanted, self._after, strict=True):
            if want.shape != got.shape:
                return float("inf")
            difference = float(np.abs(want - got).max(initial=0.0))
            if not math.isfinite(difference):
                return float("nan")
            worst = max(worst, difference / largest if largest else difference)
        return worst

    def _sample(self) -> Rows:
        """Output channels to look at: all, or 64; they do not depend on one another."""
        count = self._channels.get(self._settled.value, 2)
        if self._apart or count <= _SAMPLED:
            return None
        return np.sort(self._rng.choice(count, _SAMPLED, replace=False))

    def _before(self) -> tuple[list[Array], float]:
        """The value as the graph stands, and the largest number on the way."""
        gone, original = self._settled.gone, self._region.original
        sampled, left = {self._settled.value}, Counter[ir.Value]()
        for value in reversed(gone):
            for term in original[value].terms:
                left[term.base] += 1
                # Only what is read channel by channel, and no otherwise, is wanted in part.
                apart = value in sampled and _channelwise(term.map)
                if apart and term.base not in self._feeds:
                    sampled.add(term.base)
        for value in reversed(gone):
            for term in original[value].terms:
                if value not in sampled or not _channelwise(term.map):
                    sampled.discard(term.base)
        values, largest = dict(self._feeds), 0.0
        for value in gone:
            total: list[Array] = []
            for term in original[value].terms:
                rows = self._rows if value in sampled else None
                parts = self._apply(
                    term.map,
                    term.map.make(),
                    values[term.base],
                    rows,
                    whole=term.base not in sampled,
                )
                total = [a + b for a, b in zip(total, parts, strict=True)] if total else parts
                left[term.base] -= 1
                if not left[term.base]:
                    del values[term.base]
            largest = max(largest, *(float(np.abs(t).max(initial=0.0)) for t in total))
            values[value] = total
        return values[self._settled.value], largest

    def _apply(
        self, m: Map, conv: AffineConv, xs: list[Array], rows: Rows, *, whole: bool
    ) -> list[Array]:
        """Output channels ``rows`` of a map; ``whole`` where ``xs`` have all channels."""
        if rows is not None and _channelwise(m):
            xs = [x[:, rows] for x in xs] if whole else xs
            if m.axis is not None:
                weight, bias = conv.weight[rows], conv.bias[rows]
                conv = replace(conv, weight=weight, bias=bias, groups=rows.size)
            rows = None
        if m.axis is None:
            return [x * conv.weight[0, 0] + conv.bias[0] for x in xs]
        if self._apart:
            moved = [x if conv.axes else np.moveaxis(x, m.axis, 1) for x in xs]
            ys = [apply(lift(conv, x.ndim - 2), x) for x in moved]
            return ys if conv.axes else [np.moveaxis(y, 1, m.axis) for y in ys]
        conv = lift(conv, self._axes)
        if conv.groups > 1:
            ys = [apply(conv, x) for x in xs]
            return ys if rows is None else [y[:, rows] for y in ys]
        if rows is not None:
            conv = replace(conv, weight=conv.weight[rows], bias=conv.bias[rows])
        parts: list[list[Array]] = []
        for row in range(0, conv.out_channels, _WIDENED):
            part = slice(row, row + _WIDENED)
            some = replace(conv, weight=widened(conv.weight[part]), bias=conv.bias[part])
            parts.append([apply(some, x) for x in xs])
        return [np.concatenate(ys, axis=1) for ys in zip(*parts, strict=True)]

    def _feed(self, extra: int) -> dict[ir.Value, Array]:
        terms = self._settled.expression.terms
        gone = dict.fromkeys(self._settled.gone)
        bases = dict.fromkeys(
            t.base for v in gone for t in self._region.original[v].terms if t.base not in gone
        )
        feed: dict[ir.Value, Array] = {}
        sizes = self._sizes(terms, extra)
        for base in bases:
            if self._apart:
                shape = (2, *self._region.sizes[base][1:])
            else:
                shape = (2, self._channels.get(base, 2), *sizes.get(base, (3,) * self._axes))
            if math.prod(shape) > _LARGEST_FEED:
                raise Refused("what would show it takes too much memory")
            feed[base] = self._rng.standard_normal(shape)
        for base, (padded, pads) in self._region.padded.items():
            if base in feed and padded in feed:
                inner = tuple(
                    slice(pads[a], feed[padded].shape[a + 2] - pads[a + self._axes])
                    for a in range(self._axes)
                )
                feed[base] = feed[padded][(slice(None), slice(None), *inner)]
        return feed

    def _known_channels(self) -> dict[ir.Value, int]:
        """Channels of values, by the maps that read and make them; scalars keep them."""
        original = self._region.original
        known: dict[ir.Value, int] = {}
        before = -1
        while len(known) > before:
            before = len(known)
            for value in (*self._settled.gone, *reversed(self._settled.gone)):
                for term in original[value].terms:
                    g = term.map.geometry
                    if term.map.axis is not None:
                        known[term.base], known[value] = g.in_channels, g.out_channels
                    elif value in known:
                        known[term.base] = known[value]
                    elif term.base in known:
                        known[value] = known[term.base]
        return known

    def _sizes(self, terms: tuple[Term, ...], extra: int) -> dict[ir.Value, tuple[int, ...]]:
        """Spatial sizes of the bases that give one output size."""
        found: dict[ir.Value, tuple[int, ...]] = {t.base: () for t in terms}
        for a in range(self._axes):
            spread = [
                -(-max(t.map.geometry.pad(a)) // t.map.geometry.strides[a])
                for t in terms
                if t.map.geometry.axes
            ]
            start = 2 * max(spread, default=0) + 2 + extra
            for places in range(start, start + _LARGEST_EXTENT):
                sizes = self._extents(terms, a, places, extra)
                if sizes is not None:
                    break
            else:
                raise Refused("no input size is known to show it")
            found = {base: (*size, sizes[base]) for base, size in found.items()}
        return found

    def _extents(
        self, terms: tuple[Term, ...], a: int, places: int, extra: int
    ) -> dict[ir.Value, int] | None:
        """Extents of the bases along an axis at which all terms give ``places`` outputs."""
        sizes: dict[ir.Value, int] = {}
        for term in terms:
            size = self._input(term.map, a, places, extra)
            if size is None:
                return None
            sizes[term.base] = max(sizes.get(term.base, 0), size)
        for term in terms:
            g, size = term.map.geometry, sizes[term.base]
            if places != (g.output_size((size,) * g.axes)[a] if g.axes else size):
                return None
        return sizes

    def _input(self, m: Map, a: int, places: int, extra: int) -> int | None:
        """The extent of the input that gives ``places`` outputs along an axis, if one does."""
        g = m.geometry
        if not g.axes:
            return places
        if g.auto_pad is not None:
            return g.strides[a] * places - (g.strides[a] - 1 if extra else 0)
        net = g.reach(a) + 1 - sum(g.pad(a))
        if g.output_padding is not None:
            steps, rest = divmod(places - net - g.output_padding[a], g.strides[a])
            return None if rest or steps < 0 else steps + 1
        size = g.strides[a] * (places - 1) + net + (g.strides[a] - 1 if extra else 0)
        return size if size >= 1 else None


def _channelwise(m: Map) -> bool:
    """Whether every output channel is made of the same input channel alone."""
    g = m.geometry
    return m.value is not None or g.groups == g.in_channels == g.out_channels
