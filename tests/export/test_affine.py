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
    return affine.apply(conv, x)


def by_loops(conv: AffineConv, x: Array) -> Array:
    """The module's equations, one product after another."""
    pads = conv.pads if conv.auto_pad is None else padding(conv, x.shape[2:])
    y = np.zeros((x.shape[0], conv.out_channels, *conv.geometry.output_size(x.shape[2:])))
    transposed = conv.output_padding is not None
    few, many = (x, y) if transposed else (y, x)
    per_group = conv.out_channels // conv.groups
    for *place, o, m in itertools.product(
        *map(range, (*few.shape[2:], conv.out_channels, conv.weight.shape[1]))
    ):
        channel = o // per_group * conv.weight.shape[1] + m
        for tap in itertools.product(*map(range, conv.kernel)):
            at = [
                s * j - p + d * u
                for s, j, p, d, u in zip(
                    conv.strides, place, pads[: conv.axes], conv.dilations, tap, strict=True
                )
            ]
            if all(0 <= a < extent for a, extent in zip(at, many.shape[2:], strict=True)):
                out, into = (at, place) if transposed else (place, at)
                product = conv.weight[(o, m, *tap)] * x[(slice(None), channel, *into)]
                y[(slice(None), o, *out)] += product
    return y + conv.bias.reshape(1, -1, *[1] * conv.axes)


def padding(conv: AffineConv, size: tuple[int, ...]) -> tuple[int, ...]:
    """SAME_UPPER and SAME_LOWER as ONNX Conv-11 has them."""
    ends: list[tuple[int, int]] = []
    for n, s, k, d in zip(size, conv.strides, conv.kernel, conv.dilations, strict=True):
        total = max((math.ceil(n / s) - 1) * s + (k - 1) * d + 1 - n, 0)
        small, large = total // 2, total - total // 2
        ends.append((small, large) if conv.auto_pad == "SAME_UPPER" else (large, small))
    return (*(e[0] for e in ends), *(e[1] for e in ends))


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def same(got: Array, want: Array) -> bool:
    return got.shape == want.shape and bool(
        np.abs(got - want).max(initial=0) <= NO_MORE_THAN * np.abs(want).max(initial=1)
    )


def smallest(conv: AffineConv) -> int:
    """The least extent, equal along all axes, that gives an output."""
    n = 1
    while min(conv.geometry.output_size((n,) * conv.axes), default=1) < 1:
        n += 1
    return n


def drawn(conv: AffineConv, extra: int, *, batch: int = 1) -> Array:
    """An input, ``extra`` larger than the smallest."""
    size = (smallest(conv) + extra,) * conv.axes
    return normal(batch, conv.in_channels, *size, seed=extra)


MODES = ("plain", "plain", "transposed", "SAME_UPPER", "SAME_LOWER")


@st.composite
def convs(
    draw: st.DrawFn,
    *,
    axes: int | None = None,
    in_channels: int | None = None,
    out_channels: int | None = None,
    strides: tuple[int, ...] | None = None,
    largest_pad: int = 3,
    modes: tuple[str, ...] = ("plain",),
    pointwise: bool = False,
) -> AffineConv:
    n = draw(st.integers(0, 3)) if axes is None else axes
    channels = in_channels or draw(st.sampled_from((1, 2, 4)))
    divisors = [g for g in (1, 2, 4) if channels % g == 0 and (out_channels or g) % g == 0]
    groups = draw(st.sampled_from(divisors))
    out = out_channels or groups * draw(st.integers(1, 2))
    mode = draw(st.sampled_from(modes))
    ints = st.integers
    largest = 1 if pointwise else 3 if n < 3 else 2

    def per_axis(element: st.SearchStrategy[int], times: int = 1) -> tuple[int, ...]:
        return tuple(draw(st.lists(element, min_size=n * times, max_size=n * times)))

    kernel = per_axis(ints(1, largest))
    seed = draw(ints(0, 99))
    automatic = mode.startswith("SAME")
    none = pointwise or automatic
    pads = (0,) * 2 * n if none else per_axis(ints(0, largest_pad), 2)
    strides = strides or per_axis(ints(1, largest))
    dilations = per_axis(ints(1, 2))
    if mode == "transposed":  # pads of at most the reach: there is always an output
        reach = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        pads = tuple(min(p, r // 2) for p, r in zip(pads, reach * 2, strict=True))
    return AffineConv(
        normal(out, channels // groups, *kernel, seed=seed),
        normal(out, seed=seed + 1) if draw(st.booleans()) else np.zeros(out),
        strides,
        pads,
        dilations,
        groups,
        per_axis(ints(0, 1)) if mode == "transposed" else None,
        mode if automatic else None,
    )


@settings(max_examples=80)
@given(convs(modes=MODES), st.integers(0, 2))
def test_apply_is_the_equation(conv: AffineConv, extra: int) -> None:
    x = drawn(conv, extra, batch=2)
    want = by_loops(conv, x)
    assert same(direct(conv, x), want)
    if conv.axes and conv.output_padding is None and conv.auto_pad is None:
        named = {k: getattr(conv, k) for k in ("strides", "pads", "dilations", "groups")}
        assert same(direct_conv(x, conv.weight, conv.bias, **named), want), "the tests' own"


@settings(max_examples=60)
@given(convs(modes=MODES), st.integers(0, 3))
def test_macs_are_the_products_that_the_equation_has(conv: AffineConv, extra: int) -> None:
    x = drawn(conv, extra)
    places = x if conv.output_padding is not None else direct(conv, x)
    count = math.prod(places.shape[2:]) * conv.weight.size
    assert conv.geometry.macs(x.shape[2:]) == count
    assert conv.geometry.weights == conv.weight.size


def test_macs_where_nothing_fits_are_none() -> None:
    assert AffineConv.of(np.ones((2, 3, 5, 5))).geometry.macs((2, 9)) == 0


def test_what_is_pointwise_and_what_diagonal() -> None:
    point = AffineConv.of(normal(4, 4, 1, 1))
    assert point.geometry.pointwise
    assert not point.geometry.diagonal
    assert affine.diagonal(normal(4)).geometry.diagonal
    others = [
        AffineConv.of(normal(4, 4, 1, 1), strides=(1, 2)),
        AffineConv.of(normal(4, 4, 1, 1), pads=(0, 0, 1, 0)),
        AffineConv.of(normal(4, 4, 1, 2)),
        AffineConv.of(normal(4, 4, 1, 1), output_padding=(0, 0)),
        replace(point, auto_pad="SAME_UPPER"),
    ]
    assert not any(c.geometry.pointwise for c in others)


@settings(max_examples=60)
@given(convs(modes=MODES))
def test_scale_channels_is_an_affine_map_behind(conv: AffineConv) -> None:
    scale, shift = normal(2, conv.out_channels)
    x = drawn(conv, 2, batch=2)
    column = (-1, *(1,) * conv.axes)
    want = direct(conv, x) * scale.reshape(column) + shift.reshape(column)
    assert same(direct(affine.scale_channels(conv, scale, shift), x), want)
    behind = affine.lift(affine.diagonal(scale, shift), conv.axes)
    assert same(direct(affine.compose(behind, conv), x), want)


@settings(max_examples=60)
@given(convs(largest_pad=0), st.booleans())
def test_a_channel_affine_before_goes_in(conv: AffineConv, shifted: bool) -> None:
    scale, shift = normal(2, conv.in_channels)
    before = affine.lift(affine.diagonal(scale, shift if shifted else None), conv.axes)
    x = drawn(conv, 2, batch=2)
    assert same(direct(affine.compose(conv, before), x), direct(conv, direct(before, x)))


@pytest.mark.parametrize("axes", [0, 1, 2, 3])
def test_a_lifted_matrix_acts_on_every_place(axes: int) -> None:
    matrix = AffineConv.of(normal(6, 2), normal(6), groups=2)
    x = normal(2, 4, *range(2, 2 + axes))
    rows = np.moveaxis(x, 1, -1)
    got = direct(affine.lift(matrix, axes), x)
    assert same(np.moveaxis(got, 1, -1).reshape(-1, 6), direct(matrix, rows.reshape(-1, 4)))
    with pytest.raises(Refused, match="2 spatial axes, not 3"):
        affine.lift(AffineConv.of(normal(4, 3, 1, 1)), 3)


@settings(max_examples=40)
@given(st.integers(1, 3), st.data())
def test_a_crop_takes_padding_off(axes: int, data: st.DataObject) -> None:
    ends = st.lists(st.integers(0, 3), min_size=2 * axes, max_size=2 * axes)
    pads = tuple(data.draw(ends))
    x = normal(2, 3, *(4,) * axes)
    edges = [(0, 0), (0, 0), *zip(pads[:axes], pads[axes:], strict=True)]
    for mode in ("edge", "reflect", "wrap"):
        padded = np.pad(x, edges, mode=mode)  # type: ignore[call-overload]
        assert np.array_equal(direct(affine.crop(3, pads), padded), x)


@dataclass(frozen=True)
class Pair:
    inner: AffineConv
    outer: AffineConv

    def one_after_the_other(self, x: Array) -> Array:
        return direct(self.outer, direct(self.inner, x))

    def inputs(self) -> list[Array]:
        """Inputs of so many successive extents that every remainder of the strides occurs."""
        first, axes = smallest(self.inner), self.inner.axes
        while axes and min(self.middle(first)) < smallest(self.outer):
            first += 1
        strides = zip(self.inner.strides, self.outer.strides, strict=True)
        steps = max((s * t for s, t in strides), default=1)
        several = steps + max(self.inner.pads, default=0) + 2
        if axes == 3:
            several = min(several, 3)  # small, but time is short
        return [
            normal(1, self.inner.in_channels, *(n,) * axes, seed=n)
            for n in range(first, first + several)
        ]

    def middle(self, extent: int) -> tuple[int, ...]:
        return self.inner.geometry.output_size((extent,) * self.inner.axes)


@st.composite
def pairs(draw: st.DrawFn, *, axes: int | None = None, **inner_kwargs: Any) -> Pair:
    inner = draw(convs(axes=axes, **inner_kwargs))
    largest_pad = draw(st.sampled_from((0, 2)))
    return Pair(
        inner,
        draw(convs(axes=inner.axes, in_channels=inner.out_channels, largest_pad=largest_pad)),
    )


@st.composite
def pairs_with_a_point(draw: st.DrawFn, modes: tuple[str, ...]) -> Pair:
    """One of the two is 1x1, the other one of ``modes``."""
    axes, first = draw(st.integers(1, 2)), draw(st.booleans())
    kinds: list[dict[str, Any]] = [{"modes": modes}, {"pointwise": True}]
    one, two = kinds if first else kinds[::-1]
    inner = draw(convs(axes=axes, **one))
    return Pair(inner, draw(convs(axes=axes, in_channels=inner.out_channels, **two)))


def forced(pair: Pair) -> AffineConv:
    """The composition as it is without padding, and the padding that it would have."""
    inner, outer = pair.inner, pair.outer
    unpadded = affine.compose(replace(outer, pads=(0,) * 2 * outer.axes), inner)
    pads = [
        p + s * q for p, q, s in zip(inner.pads, outer.pads, inner.strides * 2, strict=True)
    ]
    return replace(unpadded, pads=tuple(pads))


@settings(max_examples=150)
@given(pairs())
def test_compose_is_exact_or_refused(pair: Pair) -> None:
    try:
        one = affine.compose(pair.outer, pair.inner)
    except Refused:
        return
    plan = affine.plan_compose(
        pair.outer.geometry, pair.inner.geometry, biased=bool(pair.inner.bias.any())
    )
    # The dilation of a single tap says nothing.
    assert replace(one.geometry, dilations=plan.dilations) == plan
    assert all(one.geometry.reach(a) == plan.reach(a) for a in range(plan.axes))
    for x in pair.inputs():
        assert same(direct(one, x), pair.one_after_the_other(x))


def unevenly(pair: Pair) -> AffineConv:
    """The composition with the inner bias carried as if every place read all taps."""
    free = replace(pair.inner, bias=np.zeros(pair.inner.out_channels))
    taps = pair.outer.weight.reshape(*pair.outer.weight.shape[:2], -1).sum(axis=2)
    carried = direct(
        AffineConv.of(taps, pair.outer.bias, groups=pair.outer.groups),
        pair.inner.bias[np.newaxis],
    )
    return replace(affine.compose(pair.outer, free), bias=carried[0])


def reads_evenly(conv: AffineConv) -> bool:
    """Whether every place of the result reads all taps: padding ends where all overlap."""
    g = conv.geometry
    if conv.auto_pad is not None:
        return not any(map(g.reach, range(g.axes)))
    return (
        set(g.strides) <= {1}
        and not any(conv.output_padding or ())
        and all(p >= g.reach(a) for a in range(g.axes) for p in g.pad(a))
    )


@settings(max_examples=200)
@given(pairs_with_a_point(MODES[2:]))
def test_a_point_beside_a_transposed_or_self_padding_one(pair: Pair) -> None:
    """Exact; or refused, for the bias: only where every place reads all taps in vain."""
    inputs = pair.inputs()
    try:
        one = affine.compose(pair.outer, pair.inner)
    except Refused:
        assert pair.inner.bias.any()
        differs = any(
            not same(direct(unevenly(pair), x), pair.one_after_the_other(x)) for x in inputs
        )
        assert differs or reads_evenly(pair.outer)
        return
    for x in inputs:
        assert same(direct(one, x), pair.one_after_the_other(x))


@pytest.mark.parametrize("other", ["before", "behind"])
@pytest.mark.parametrize("kind", [{"output_padding": (0, 0)}, {"auto_pad": "SAME_UPPER"}])
def test_two_larger_kernels_one_of_them_transposed_are_left(
    other: str, kind: dict[str, Any]
) -> None:
    """Conservative: some of these would be convolutions too."""
    plain = AffineConv.of(normal(4, 4, 3, 3))
    special = replace(plain, **kind)
    pair = (plain, special) if other == "before" else (special, plain)
    with pytest.raises(Refused, match="merges with 1x1"):
        affine.compose(*pair)


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
    modes = (draw(st.sampled_from(MODES)),)
    left = draw(convs(axes=draw(st.integers(0, 2)), modes=modes, **channels))
    right = draw(convs(axes=left.axes, strides=left.strides, modes=modes, **channels))
    if draw(st.booleans()):
        right = replace(right, output_padding=left.output_padding)
        if left.auto_pad is not None:
            weight = normal(*right.weight.shape[:2], *left.kernel, seed=1)
            right = replace(right, weight=weight, dilations=left.dilations)
            return left, right
        pads = list(right.pads)
        for a in range(left.axes):
            more = right.geometry.reach(a) - left.geometry.reach(a) + sum(left.geometry.pad(a))
            if more >= 0:
                pads[a], pads[a + left.axes] = more // 2, more - more // 2
        right = replace(right, pads=tuple(pads))
    return left, right


def conservative(left: AffineConv, right: AffineConv) -> bool:
    """What ``add`` states that it leaves although it might do it.

    Transposed branches of unequal output padding, whose kernels may make up for it; and
    kernels that differ where the padding follows from the input's size.
    """
    automatic = left.auto_pad is not None
    unlike = (left.kernel, left.dilations) != (right.kernel, right.dilations)
    return left.output_padding != right.output_padding or (automatic and unlike)


@settings(max_examples=200)
@given(branches())
def test_add_is_exact_or_refused_for_a_reason(both: tuple[AffineConv, AffineConv]) -> None:
    left, right = both
    extents = range(max(map(smallest, both)), max(map(smallest, both)) + 7)
    if not left.axes:
        extents = range(1)
    inputs = [normal(1, left.in_channels, *(n,) * left.axes, seed=n) for n in extents]
    results = [(direct(left, x), direct(right, x)) for x in inputs]
    try:
        one = affine.add(left, right)
    except Refused:
        # Equal shapes at all of these extents would make the strides and sizes equal.
        assert any(a.shape != b.shape for a, b in results) or conservative(left, right)
        return
    assert one.geometry == affine.plan_add(left.geometry, right.geometry)
    for x, (a, b) in zip(inputs, results, strict=True):
        assert same(direct(one, x), a + b)


def test_add_covers_identity_average_and_dilation() -> None:
    """All of them in one sum, as of RepVGG and its kin; the hull is no larger than need be."""
    dense = AffineConv.of(normal(4, 4, 3, 3), normal(4), pads=(1, 1, 1, 1))
    pooled = affine.average(4, (3, 3), strides=(1, 1), pads=(1, 1, 1, 1))
    skip = affine.lift(affine.diagonal(np.ones(4)), 2)
    dilated = AffineConv.of(normal(4, 2, 3, 3), pads=(2,) * 4, dilations=(2, 2), groups=2)
    parts = [dense, skip, pooled, dilated]
    one = parts[0]
    for part in parts[1:]:
        one = affine.add(one, part)
    x = normal(2, 4, 6, 7)
    assert same(direct(one, x), x + sum(direct(p, x) for p in (dense, pooled, dilated)))
    assert (one.kernel, one.dilations, one.pads) == ((5, 5), (1, 1), (2,) * 4)
    lattice = affine.add(dilated, skip)
    assert (lattice.kernel, lattice.dilations) == ((3, 3), (2, 2))


@pytest.mark.parametrize(
    ("right", "reason"),
    [
        (AffineConv.of(normal(5, 3, 1, 1)), "channels"),
        (AffineConv.of(normal(4, 3, 1, 1), strides=(2, 2)), "strides differ"),
        (AffineConv.of(normal(4, 3, 3, 3), pads=(1, 1, 1, 0)), "output sizes differ"),
        (AffineConv.of(normal(4, 3, 1, 1), output_padding=(0, 0)), "transposed"),
        (replace(AffineConv.of(normal(4, 3, 1, 1)), auto_pad="SAME_UPPER"), "input's size"),
    ],
)
def test_add_says_why_not(right: AffineConv, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        affine.add(AffineConv.of(normal(4, 3, 1, 1)), right)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_an_average_pools(axes: int) -> None:
    x = normal(2, 3, *(6,) * axes)
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
        {"weight": normal(4, 3), "strides": (1, 1)},
        {"weight": normal(4)},
        {"output_padding": (0,)},
        {"output_padding": (0, -1)},
    ]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=r"fit|start at"):
            AffineConv.of(**(good | wrong))


def test_rules_compute_in_float64_whatever_the_weights_are() -> None:
    """A float32 weight is widened where it is used, and not copied before."""
    narrow = normal(4, 4, 1, 1).astype(np.float32)
    conv, wide = AffineConv.of(narrow), AffineConv.of(narrow.astype(np.float64))
    assert conv.weight is narrow
    x, scale = normal(1, 4, 5, 5), normal(4)
    assert np.array_equal(direct(conv, x), direct(wide, x))
    for rule in (
        lambda c: affine.compose(c, c),
        lambda c: affine.add(c, c),
        lambda c: affine.scale_channels(c, scale, scale),
    ):
        one = rule(conv)
        assert one.weight.dtype == np.float64
        assert np.array_equal(one.weight, rule(wide).weight)
