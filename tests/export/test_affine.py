"""The algebra against direct evaluation in float64: exact wherever it is not refused."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.graphs import conv as direct_conv
from vntools.export import affine
from vntools.export.affine import AffineConv, Refused

Array = NDArray[np.float64]
NO_MORE_THAN = 1e-12  # of the largest output: a few hundred roundings of 2^-53


def direct(conv: AffineConv, x: Array) -> Array:
    return direct_conv(
        x,
        conv.weight,
        conv.bias,
        strides=conv.strides,
        pads=conv.pads,
        dilations=conv.dilations,
        groups=conv.groups,
    )


def by_loops(conv: AffineConv, x: Array) -> Array:
    """The module's equation, one product after another."""
    size = affine.output_size(conv, x.shape[2:])
    y = np.empty((x.shape[0], conv.out_channels, *size))
    per_group = conv.out_channels // conv.groups
    for n, o, *place in itertools.product(*map(range, y.shape)):
        total = conv.bias[o]
        for m, *tap in itertools.product(*map(range, conv.weight.shape[1:])):
            at = [
                s * j - p + d * u
                for s, j, p, d, u in zip(
                    conv.strides, place, conv.pads, conv.dilations, tap, strict=False
                )
            ]
            if all(0 <= a < extent for a, extent in zip(at, x.shape[2:], strict=True)):
                channel = o // per_group * conv.weight.shape[1] + m
                total += conv.weight[(o, m, *tap)] * x[(n, channel, *at)]
        y[(n, o, *place)] = total
    return y


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def same(got: Array, want: Array) -> bool:
    return got.shape == want.shape and bool(
        np.abs(got - want).max(initial=0) <= NO_MORE_THAN * np.abs(want).max(initial=1)
    )


def smallest(conv: AffineConv) -> int:
    """The least extent, equal along all axes, that gives an output."""
    return max(1, *(conv.reach(a) + 1 - sum(conv.pad(a)) for a in range(conv.axes)))


@st.composite
def convs(
    draw: st.DrawFn,
    *,
    axes: int | None = None,
    in_channels: int | None = None,
    out_channels: int | None = None,
    strides: tuple[int, ...] | None = None,
    largest_pad: int = 3,
    biased: bool | None = None,
) -> AffineConv:
    n = axes or draw(st.integers(1, 3))
    channels = in_channels or draw(st.sampled_from((1, 2, 4)))
    divisors = [g for g in (1, 2, 4) if channels % g == 0 and (out_channels or g) % g == 0]
    groups = draw(st.sampled_from(divisors))
    out = out_channels or groups * draw(st.integers(1, 2))
    ints = st.integers

    def per_axis(element: st.SearchStrategy[int], times: int = 1) -> tuple[int, ...]:
        return tuple(draw(st.lists(element, min_size=n * times, max_size=n * times)))

    kernel = per_axis(ints(1, 3 if n < 3 else 2))
    shape = (out, channels // groups, *kernel)
    with_bias = draw(st.booleans()) if biased is None else biased
    seed = draw(ints(0, 99))
    return AffineConv(
        normal(*shape, seed=seed),
        normal(out, seed=seed + 1) if with_bias else np.zeros(out),
        strides or per_axis(ints(1, 3 if n < 3 else 2)),
        per_axis(ints(0, largest_pad), 2),
        per_axis(ints(1, 2)),
        groups,
    )


@settings(max_examples=60)
@given(convs(), st.integers(0, 2))
def test_apply_is_the_equation(conv: AffineConv, extra: int) -> None:
    x = normal(2, conv.in_channels, *(smallest(conv) + extra + a for a in range(conv.axes)))
    want = by_loops(conv, x)
    assert same(affine.apply(conv, x), want)
    assert same(direct(conv, x), want), "the tests' own reference"
    assert affine.output_size(conv, x.shape[2:]) == want.shape[2:]


@settings(max_examples=60)
@given(convs(), st.integers(0, 3))
def test_macs_are_the_products_that_the_equation_has(conv: AffineConv, extra: int) -> None:
    size = (smallest(conv) + extra,) * conv.axes
    y = direct(conv, normal(1, conv.in_channels, *size))
    assert affine.macs(conv, *size) == y.size * math.prod(conv.weight.shape[1:])
    assert affine.parameters_of(conv) == conv.weight.size + conv.out_channels


def test_macs_where_nothing_fits_are_none() -> None:
    assert affine.macs(AffineConv.of(np.ones((2, 3, 5, 5))), 2, 9) == 0


@settings(max_examples=60)
@given(convs())
def test_scale_channels_is_an_affine_map_behind(conv: AffineConv) -> None:
    scale, shift = normal(2, conv.out_channels)
    x = normal(2, conv.in_channels, *(smallest(conv) + 2,) * conv.axes)
    column = (-1, *(1,) * conv.axes)
    want = direct(conv, x) * scale.reshape(column) + shift.reshape(column)
    assert same(direct(affine.scale_channels(conv, scale, shift), x), want)


@settings(max_examples=60)
@given(convs(), st.data())
def test_channels_of_is_a_part_of_an_ungrouped_convolution(
    conv: AffineConv, data: st.DataObject
) -> None:
    rows = np.array(
        data.draw(st.lists(st.integers(0, conv.out_channels - 1), min_size=1, unique=True))
    )
    part = affine.channels_of(conv, rows)
    if conv.groups > 1:
        assert part is conv
    else:
        x = normal(1, conv.in_channels, *(smallest(conv) + 1,) * conv.axes)
        assert same(direct(part, x), direct(conv, x)[:, rows])


@dataclass(frozen=True)
class Pair:
    inner: AffineConv
    outer: AffineConv

    def one_after_the_other(self, x: Array) -> Array:
        return direct(self.outer, direct(self.inner, x))

    def inputs(self) -> list[Array]:
        """Inputs of so many successive extents that every remainder of the strides occurs."""
        first = smallest(self.inner)
        while min(affine.output_size(self.inner, (first,) * self.inner.axes)) < smallest(
            self.outer
        ):
            first += 1
        steps = max(s * t for s, t in zip(self.inner.strides, self.outer.strides, strict=True))
        extents = range(first, first + steps + max(self.inner.pads) + 2)
        return [
            normal(1, self.inner.in_channels, *(n,) * self.inner.axes, seed=n) for n in extents
        ]


@st.composite
def pairs(draw: st.DrawFn, *, axes: int | None = None, **inner_kwargs: Any) -> Pair:
    inner = draw(convs(axes=axes, **inner_kwargs))
    largest_pad = draw(st.sampled_from((0, 2)))
    return Pair(
        inner,
        draw(convs(axes=inner.axes, in_channels=inner.out_channels, largest_pad=largest_pad)),
    )


def forced(pair: Pair) -> AffineConv:
    """The composition as it is without padding, and the padding that it would have."""
    inner, outer = pair.inner, pair.outer
    unpadded = affine.compose(replace(outer, pads=(0,) * 2 * outer.axes), inner)
    pads = [
        p + s * q for p, q, s in zip(inner.pads, outer.pads, inner.strides * 2, strict=True)
    ]
    return replace(unpadded, pads=tuple(pads))


@settings(max_examples=120)
@given(pairs())
def test_compose_is_exact_or_refused(pair: Pair) -> None:
    try:
        one = affine.compose(pair.outer, pair.inner)
    except Refused:
        return
    for x in pair.inputs():
        assert same(direct(one, x), pair.one_after_the_other(x))


def reads_every_padded_place(conv: AffineConv) -> bool:
    return all(
        conv.strides[a] == 1 or (conv.dilations[a] == 1 and conv.strides[a] <= conv.kernel[a])
        for a in range(conv.axes)
    )


@settings(max_examples=200)
@given(pairs(axes=1, largest_pad=5), st.booleans())
def test_compose_is_refused_only_where_an_input_shows_the_difference(
    pair: Pair, biased: bool
) -> None:
    if not biased:
        inner = replace(pair.inner, bias=np.zeros(pair.inner.out_channels))
        pair = replace(pair, inner=inner)
    if not reads_every_padded_place(pair.outer):
        return
    differs = any(
        not same(direct(forced(pair), x), pair.one_after_the_other(x)) for x in pair.inputs()
    )
    try:
        affine.compose(pair.outer, pair.inner)
        refused = False
    except Refused:
        refused = True
    assert refused == differs


POINT, TRIPLE = (4, 3, 1, 1), (4, 3, 3, 3)


@pytest.mark.parametrize(
    ("inner", "outer", "reason"),
    [
        (
            {"shape": POINT, "bias": True},
            {"pads": (1, 1, 1, 1)},
            "the first convolution's bias",
        ),
        (
            {"shape": POINT, "bias": True},
            {"pads": (0, 0, 0, 1)},
            "the first convolution's bias",
        ),
        ({"shape": TRIPLE}, {"pads": (1, 1, 1, 1)}, "would still reach its input"),
        ({"shape": TRIPLE, "pads": (2, 2, 1, 2)}, {"pads": (0, 0, 1, 0)}, "still reach"),
        ({"shape": TRIPLE, "pads": (1, 2, 2, 2)}, {"pads": (1, 0, 0, 0)}, "still reach"),
        ({"shape": TRIPLE, "pads": (2, 2, 2, 2)}, {"pads": (1, 1, 1, 1)}, None),
        ({"shape": TRIPLE, "pads": (2, 2, 0, 0)}, {"pads": (1, 1, 0, 0)}, None),
        ({"shape": TRIPLE, "pads": (1, 1, 2, 2), "strides": (2, 2)}, {"pads": (1,) * 4}, None),
        (
            {"shape": TRIPLE, "pads": (0, 0, 2, 2), "strides": (2, 2)},
            {"pads": (1,) * 4},
            "still",
        ),
        ({"shape": POINT}, {"pads": (1, 1, 1, 1)}, None),
        ({"shape": POINT, "bias": True, "pads": (1, 1, 1, 1)}, {}, None),
    ],
)
def test_compose_at_the_border(
    inner: dict[str, Any], outer: dict[str, Any], reason: str | None
) -> None:
    def make(shape: tuple[int, ...], *, bias: bool = False, **kwargs: Any) -> AffineConv:
        return AffineConv.of(normal(*shape), normal(shape[0]) if bias else None, **kwargs)

    pair = Pair(make(**inner), make((2, 4, 3, 3), bias=True, **outer))
    differences = [
        not same(direct(forced(pair), x), pair.one_after_the_other(x)) for x in pair.inputs()
    ]
    assert any(differences) == (reason is not None)
    if reason is None:
        affine.compose(pair.outer, pair.inner)
    else:
        with pytest.raises(Refused, match=reason):
            affine.compose(pair.outer, pair.inner)


def test_two_pointwise_convolutions_are_a_matrix_product() -> None:
    inner = AffineConv.of(normal(5, 3, 1, 1), normal(5))
    outer = AffineConv.of(normal(2, 5, 1, 1, seed=1), normal(2, seed=1))
    one = affine.compose(outer, inner)
    assert same(one.weight[:, :, 0, 0], outer.weight[:, :, 0, 0] @ inner.weight[:, :, 0, 0])
    assert same(one.bias, outer.weight[:, :, 0, 0] @ inner.bias + outer.bias)


def test_nested_groups_stay_grouped() -> None:
    inner = AffineConv.of(normal(8, 2, 3, 3), groups=4)
    outer = AffineConv.of(normal(6, 4, 1, 1), groups=2)
    one = affine.compose(outer, inner)
    assert (one.groups, one.weight.shape) == (2, (6, 4, 3, 3))
    x = normal(1, 8, 5, 5)
    assert same(direct(one, x), direct(outer, direct(inner, x)))


def test_compose_refuses_what_does_not_fit() -> None:
    with pytest.raises(Refused, match="does not read what"):
        affine.compose(AffineConv.of(normal(2, 5, 1, 1)), AffineConv.of(normal(4, 3, 1, 1)))
    with pytest.raises(Refused, match="does not read what"):
        affine.compose(AffineConv.of(normal(2, 4, 1)), AffineConv.of(normal(4, 3, 1, 1)))


@st.composite
def branches(draw: st.DrawFn) -> tuple[AffineConv, AffineConv]:
    """Two convolutions of one input; half of the time of equal output size."""
    channels: dict[str, Any] = {"in_channels": 4, "out_channels": 4}
    left = draw(convs(axes=draw(st.integers(1, 2)), **channels))
    right = draw(convs(axes=left.axes, strides=left.strides, **channels))
    if draw(st.booleans()):
        pads = list(right.pads)
        for a in range(left.axes):
            more = right.reach(a) - left.reach(a) + sum(left.pad(a))
            if more >= 0:
                pads[a], pads[a + left.axes] = more // 2, more - more // 2
        right = replace(right, pads=tuple(pads))
    return left, right


@settings(max_examples=200)
@given(branches())
def test_add_is_exact_or_refused_for_a_reason(both: tuple[AffineConv, AffineConv]) -> None:
    left, right = both
    extents = range(max(map(smallest, both)), max(map(smallest, both)) + 7)
    inputs = [normal(1, left.in_channels, *(n,) * left.axes, seed=n) for n in extents]
    results = [(direct(left, x), direct(right, x)) for x in inputs]
    try:
        one = affine.add(left, right)
    except Refused:
        # Equal shapes at all of these extents would make the strides and sizes equal.
        assert any(a.shape != b.shape for a, b in results)
        return
    for x, (a, b) in zip(inputs, results, strict=True):
        assert same(direct(one, x), a + b)


def test_add_covers_identity_average_and_dilation() -> None:
    """All of them in one sum, as of RepVGG and its kin; the hull is no larger than need be."""
    dense = AffineConv.of(normal(4, 4, 3, 3), normal(4), pads=(1, 1, 1, 1))
    pooled = affine.average(4, (3, 3), strides=(1, 1), pads=(1, 1, 1, 1))
    dilated = AffineConv.of(normal(4, 2, 3, 3), pads=(2,) * 4, dilations=(2, 2), groups=2)
    parts = [dense, affine.identity(4), pooled, dilated]
    one = parts[0]
    for part in parts[1:]:
        one = affine.add(one, part)
    x = normal(2, 4, 6, 7)
    assert same(direct(one, x), x + sum(direct(p, x) for p in (dense, pooled, dilated)))
    assert (one.kernel, one.dilations, one.pads) == ((5, 5), (1, 1), (2,) * 4)
    lattice = affine.add(dilated, affine.identity(4))
    assert (lattice.kernel, lattice.dilations) == ((3, 3), (2, 2))


@pytest.mark.parametrize(
    ("right", "reason"),
    [
        (AffineConv.of(normal(5, 3, 1, 1)), "channels"),
        (AffineConv.of(normal(4, 3, 1, 1), strides=(2, 2)), "strides differ"),
        (AffineConv.of(normal(4, 3, 3, 3), pads=(1, 1, 1, 0)), "output sizes differ"),
    ],
)
def test_add_says_why_not(right: AffineConv, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        affine.add(AffineConv.of(normal(4, 3, 1, 1)), right)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_identity_and_average(axes: int) -> None:
    x = normal(2, 3, *(6,) * axes)
    assert np.array_equal(direct(affine.identity(3, axes=axes), x), x)
    pooled = direct(affine.average(3, (2,) * axes), x)
    blocks = x.reshape(2, 3, *(3, 2) * axes)
    assert same(pooled, blocks.mean(axis=tuple(range(3, 3 + 2 * axes, 2))))


def test_a_convolution_that_cannot_be() -> None:
    good: dict[str, Any] = {"weight": normal(4, 3, 1, 1), "bias": normal(4)}
    wrongs: list[dict[str, Any]] = [
        {"strides": (1,)},
        {"pads": (0, 0)},
        {"strides": (0, 1)},
        {"pads": (-1, 0, 0, 0)},
        {"dilations": (1, 0)},
        {"groups": 3},
        {"bias": normal(3)},
        {"weight": normal(4, 3)},
    ]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=r"fit|start at"):
            AffineConv.of(**(good | wrong))


def test_values_are_widened_once() -> None:
    weight = normal(4, 3, 1, 1).astype(np.float32)
    conv = AffineConv.of(weight, None)
    assert conv.weight.dtype == conv.bias.dtype == np.float64
    assert np.array_equal(conv.weight, weight)
