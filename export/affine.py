"""The algebra of linear regions: biased convolutions as values, in float64, numpy alone.

Between two non-linearities everything is an affine convolution

    y[o, j] = b[o] + sum_{m, u} W[o, m, u] x[m + group offset, s j - p + d u]

with x zero outside its extent, j and u running over any number of spatial axes: none at all
for a matrix product. The rules below are pure functions; each states its equation, its shapes
and the condition under which it is exact, and raises :class:`Refused` with the reason where it
is not. The one cast to float32 is the caller's.
"""

from __future__ import annotations

__all__ = [
    "AffineConv",
    "Array",
    "Geometry",
    "Refused",
    "add",
    "apply",
    "average",
    "compose",
    "crop",
    "diagonal",
    "lift",
    "plan_add",
    "plan_compose",
    "same_pads",
    "scale_channels",
    "widened",
]

import itertools
import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Refused(Exception):
    """A rule does not hold here; the text is the reason, for the user."""


@dataclass(frozen=True)
class Geometry:
    """Everything of an affine convolution but its numbers: enough for its cost.

    Attributes:
        out_channels, in_channels: of y and of x.
        kernel: taps along each spatial axis; empty for a matrix product.
        strides: s, one per spatial axis.
        pads: zeros in front of and behind each axis: (begin_1 .. begin_n, end_1 .. end_n), as
            in ONNX Conv.
        dilations: d, one per spatial axis.
        groups: number of groups.
        output_padding: None for a convolution; of a transposed one, what its attribute says.
            There y[o, s j - p + d u] += W[o, m, u] x[m, j].
        auto_pad: SAME_UPPER or SAME_LOWER where the padding follows from the input's size;
            ``pads`` are zeros then.

    Source: ONNX Conv-11 and ConvTranspose-11, whose attributes these are.
    """

    out_channels: int
    in_channels: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int = 1
    output_padding: tuple[int, ...] | None = None
    auto_pad: str | None = None

    @property
    def axes(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel)

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.out_channels * (self.in_channels // self.groups) * math.prod(self.kernel)

    @property
    def pointwise(self) -> bool:
        """Whether every place of y is made of the same place of x, and of no other."""
        plain = self.output_padding is None and self.auto_pad is None
        return plain and {*self.kernel, *self.strides} <= {1} and not any(self.pads)

    @property
    def diagonal(self) -> bool:
        """Whether every channel of every place is made of itself alone."""
        return self.pointwise and self.groups == self.out_channels == self.in_channels

    def reach(self, axis: int) -> int:
        """Extent of the dilated kernel less one: d (k - 1)."""
        return self.dilations[axis] * (self.kernel[axis] - 1)

    def pad(self, axis: int) -> tuple[int, int]:
        """Padding (before, behind) along a spatial axis."""
        return self.pads[axis], self.pads[axis + self.axes]

    def output_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Spatial size of y for x of spatial ``size``.

        floor((n + p - d (k - 1) - 1) / s) + 1; transposed, s (n - 1) + d (k - 1) + 1 - p and
        the output padding.
        """
        if self.auto_pad is not None:
            return tuple(-(-n // s) for n, s in zip(size, self.strides, strict=True))
        if self.output_padding is not None:
            return tuple(
                self.strides[a] * (n - 1) + self.reach(a) + 1 - sum(self.pad(a)) + extra
                for a, (n, extra) in enumerate(zip(size, self.output_padding, strict=True))
            )
        return tuple(
            (n + sum(self.pad(a)) - self.reach(a) - 1) // self.strides[a] + 1
            for a, n in enumerate(size)
        )

    def macs(self, size: tuple[int, ...]) -> int:
        """Multiply-accumulates of one sample of spatial ``size``."""
        places = size if self.output_padding is not None else self.output_size(size)
        return self.weights * math.prod(max(n, 0) for n in places)


@dataclass(frozen=True)
class AffineConv:
    """An affine convolution over n spatial axes; attributes as of :class:`Geometry`.

    Attributes:
        weight: (out, in / groups, k_1 .. k_n), float64, or of another float type: the rules
            compute in float64. A transposed convolution's has the same order.
        bias: (out,), float64.
    """

    weight: NDArray[Any]
    bias: Array
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int = 1
    output_padding: tuple[int, ...] | None = None
    auto_pad: str | None = None

    def __post_init__(self) -> None:
        n = self.weight.ndim - 2
        extra = self.output_padding
        if (
            n < 0
            or len(self.strides) != n
            or len(self.dilations) != n
            or len(self.pads) != 2 * n
            or (extra is not None and len(extra) != n)
        ):
            raise ValueError(f"attributes do not fit a kernel of shape {self.weight.shape}")
        if (
            self.groups < 1
            or self.out_channels % self.groups
            or self.bias.shape != (self.out_channels,)
        ):
            raise ValueError("groups or bias do not fit the output channels")
        if min((*self.strides, *self.dilations), default=1) < 1:
            raise ValueError("strides and dilations start at 1")
        if min((*self.pads, *(extra or ())), default=0) < 0:
            raise ValueError("pads start at 0")

    @staticmethod
    def of(
        weight: NDArray[Any],
        bias: NDArray[Any] | None = None,
        *,
        strides: tuple[int, ...] | None = None,
        pads: tuple[int, ...] | None = None,
        dilations: tuple[int, ...] | None = None,
        groups: int = 1,
        output_padding: tuple[int, ...] | None = None,
    ) -> AffineConv:
        """A convolution from arrays of any float type; what is left out has ONNX's default."""
        n = weight.ndim - 2
        return AffineConv(
            weight,
            np.zeros(weight.shape[0]) if bias is None else np.asarray(bias, np.float64),
            strides or (1,) * n,
            pads or (0,) * 2 * n,
            dilations or (1,) * n,
            groups,
            output_padding,
        )

    @staticmethod
    def shaped(geometry: Geometry, weight: NDArray[Any], bias: Array) -> AffineConv:
        """The convolution of a geometry."""
        g = geometry
        return AffineConv(
            weight,
            bias,
            g.strides,
            g.pads,
            g.dilations,
            g.groups,
            g.output_padding,
            g.auto_pad,
        )

    @cached_property
    def geometry(self) -> Geometry:
        """Its geometry."""
        return Geometry(
            self.out_channels,
            self.in_channels,
            self.kernel,
            self.strides,
            self.pads,
            self.dilations,
            self.groups,
            self.output_padding,
            self.auto_pad,
        )

    @property
    def out_channels(self) -> int:
        """Channels of y."""
        return self.weight.shape[0]

    @property
    def in_channels(self) -> int:
        """Channels of x."""
        return self.weight.shape[1] * self.groups

    @property
    def kernel(self) -> tuple[int, ...]:
        """Taps along each spatial axis."""
        return self.weight.shape[2:]

    @property
    def axes(self) -> int:
        """Number of spatial axes."""
        return self.weight.ndim - 2


def widened(array: NDArray[Any]) -> Array:
    """``array`` in float64; itself, where it is so already."""
    return array.astype(np.float64, copy=False)


def lift(conv: AffineConv, axes: int) -> AffineConv:
    """A matrix product as a 1x1 convolution over ``axes`` spatial axes."""
    if conv.axes == axes:
        return conv
    if conv.axes:
        raise Refused(f"it has {conv.axes} spatial axes, not {axes}")
    weight = conv.weight.reshape(conv.weight.shape + (1,) * axes)
    return AffineConv.of(weight, conv.bias, groups=conv.groups)


def apply(conv: AffineConv, x: Array) -> Array:
    """Evaluate y of shape (n, out, ..) for x of shape (n, in, ..), tap by tap."""
    size = conv.geometry.output_size(x.shape[2:])
    n, g, places = x.shape[0], conv.groups, math.prod(size)
    w = conv.weight.reshape(g, -1, *conv.weight.shape[1:])
    x = np.asarray(x, np.float64)
    taps = list(itertools.product(*map(range, conv.kernel)))
    if conv.output_padding is not None:
        return _apply_transposed(conv, x, size)
    if conv.auto_pad is not None:
        pads = same_pads(conv.auto_pad, x.shape[2:], conv.kernel, conv.strides, conv.dilations)
        return apply(replace(conv, pads=pads, auto_pad=None), x)
    edges = [(0, 0), (0, 0), *(conv.geometry.pad(a) for a in range(conv.axes))]
    padded = np.pad(x, edges) if any(conv.pads) else x
    y = np.zeros((n, g, conv.out_channels // g, places))
    for u in taps:
        window = tuple(
            slice(t * d, t * d + s * (m - 1) + 1, s)
            for t, d, s, m in zip(u, conv.dilations, conv.strides, size, strict=True)
        )
        part = padded[(slice(None), slice(None), *window)].reshape(n, g, -1, places)
        _accumulate(y, w[(..., *u)], part)
    return y.reshape(n, -1, *size) + conv.bias.reshape((1, -1) + (1,) * conv.axes)


def same_pads(
    mode: str,
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
) -> tuple[int, ...]:
    """What auto_pad SAME_UPPER or SAME_LOWER pads an input of spatial ``size``.

    So much that ceil(n / s) places come out; the odd one behind, or in front.
    """
    totals = [
        max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
        for n, k, s, d in zip(size, kernel, strides, dilations, strict=True)
    ]
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return (*small, *large) if mode == "SAME_UPPER" else (*large, *small)


def _accumulate(y: Array, tap: NDArray[Any], part: Array) -> None:
    """Add to y (n, g, o, p): tap (g, o, i) part (n, g, i, p)."""
    if tap.shape[2] == 1:
        # One channel a group: a product per channel, where matmul would loop over 1x1
        # matrices.
        y += tap * part
        return
    y += widened(tap) @ part


def _apply_transposed(conv: AffineConv, x: Array, size: tuple[int, ...]) -> Array:
    n, g = x.shape[0], conv.groups
    w = conv.weight.reshape(g, -1, *conv.weight.shape[1:])
    rows = x.reshape(n, g, -1, math.prod(x.shape[2:]))
    extent = [
        s * (m - 1) + d * (k - 1) + 1 + extra + 1
        for s, m, d, k, extra in zip(
            conv.strides,
            x.shape[2:],
            conv.dilations,
            conv.kernel,
            conv.output_padding or (),
            strict=True,
        )
    ]
    full = np.zeros((n, conv.out_channels, *extent))
    for u in itertools.product(*map(range, conv.kernel)):
        y = np.zeros((n, g, conv.out_channels // g, rows.shape[-1]))
        _accumulate(y, w[(..., *u)], rows)
        window = tuple(
            slice(t * d, t * d + s * (m - 1) + 1, s)
            for t, d, s, m in zip(u, conv.dilations, conv.strides, x.shape[2:], strict=True)
        )
        full[(slice(None), slice(None), *window)] += y.reshape(n, -1, *x.shape[2:])
    cut = tuple(slice(p, p + m) for p, m in zip(conv.pads, size, strict=False))
    return full[(slice(None), slice(None), *cut)] + conv.bias.reshape(
        (1, -1) + (1,) * conv.axes
    )


def scale_channels(conv: AffineConv, scale: Array, shift: Array) -> AffineConv:
    """A per-channel affine map behind a convolution, folded into it.

    Given:  y = scale * (W * x + b) + shift        Result: y = W' * x + b'
    W'[o] = scale[o] W[o],  b' = scale b + shift;  scale, shift (out,)
    Needs: nothing; the map acts behind the padding, or on what a transposed convolution has
    summed. BatchNormalization in inference mode is scale = gamma / sqrt(var + eps), shift =
    beta - mean scale; a scale of zero is as good as any.
    Source: Eq. 2 of the VanillaNet paper; Ioffe & Szegedy 2015, sec. 3.1.
    """
    rows = conv.weight.reshape(conv.out_channels, -1)
    weight = np.multiply(rows, scale[:, np.newaxis], dtype=np.float64)
    return replace(
        conv, weight=weight.reshape(conv.weight.shape), bias=conv.bias * scale + shift
    )


def _scale_inputs(conv: AffineConv, scale: Array, shift: Array) -> AffineConv:
    """A per-channel affine map before a convolution, folded into it (see :func:`compose`).

    W'[o, i] = W[o, i] scale[i],  b' = b + sum_{i, u} W[o, i, u] shift[i]
    """
    g, i = conv.groups, conv.weight.shape[1]
    w = conv.weight.reshape(g, -1, i, math.prod(conv.kernel))
    weight = np.multiply(w, scale.reshape(g, 1, i, 1), dtype=np.float64)
    bias = conv.bias
    if shift.any():
        taps = w.sum(axis=3, dtype=np.float64)
        bias = bias + (taps @ shift.reshape(g, i, 1)).reshape(-1)
    return replace(conv, weight=weight.reshape(conv.weight.shape), bias=bias)


def plan_compose(outer: Geometry, inner: Geometry, *, biased: bool) -> Geometry:
    """The geometry of ``compose(outer, inner)``, without the matrix products.

    Args:
        outer: over as many spatial axes as ``inner``.
        inner: what comes first.
        biased: whether the inner bias may be other than zero.

    Raises:
        Refused: the composition is no convolution, or not exact at the border.
    """
    if outer.axes != inner.axes or outer.in_channels != inner.out_channels:
        raise Refused("the outer convolution does not read what the inner one writes")
    groups = math.gcd(inner.groups, outer.groups)
    if any(g.output_padding is not None or g.auto_pad is not None for g in (inner, outer)):
        return _plan_around(outer, inner, groups, biased=biased)
    for a in range(inner.axes):
        front, behind = outer.pad(a)
        if not (front or behind):
            continue
        if biased:
            raise Refused(
                f"pads={list(outer.pads)}: zero padding would replace the first convolution's "
                "bias at the border"
            )
        begin, end = inner.pad(a)
        reads_front = front and begin < inner.reach(a) - inner.strides[a] + 1
        if reads_front or (behind and end < inner.reach(a)):
            raise Refused(
                f"pads={list(outer.pads)}: beyond the border the first convolution's kernel "
                "would still reach its input, where the second one reads zeros"
            )
    kernel, dilations = [], []
    for a in range(inner.axes):
        apart = inner.strides[a] * outer.dilations[a]  # the outer kernel's taps, in x
        lattice = (inner.dilations[a], inner.kernel[a]), (apart, outer.kernel[a])
        step = math.gcd(*(d for d, k in lattice if k > 1)) or 1
        reach = inner.reach(a) + inner.strides[a] * outer.reach(a)
        kernel.append(reach // step + 1)
        dilations.append(step)
    stretched = (*inner.strides, *inner.strides)
    return Geometry(
        outer.out_channels,
        inner.in_channels,
        tuple(kernel),
        tuple(s * t for s, t in zip(inner.strides, outer.strides, strict=True)),
        tuple(p + s * q for p, q, s in zip(inner.pads, outer.pads, stretched, strict=True)),
        tuple(dilations),
        groups,
    )


def _plan_around(outer: Geometry, inner: Geometry, groups: int, *, biased: bool) -> Geometry:
    """One of the two is transposed or pads by its input's size; the other one is 1x1."""
    if outer.pointwise:
        kept = inner
    elif inner.pointwise:
        kept = outer
        if biased and outer.auto_pad is not None:
            raise Refused("zero padding would replace the first one's bias at the border")
        if biased:
            raise Refused(
                "a transposed convolution spreads the first one's bias unevenly: its output "
                "places are covered by different taps"
            )
    else:
        raise Refused(
            "a transposed convolution, or padding by the input's size, merges with 1x1 "
            "convolutions only"
        )
    return replace(
        kept,
        out_channels=outer.out_channels,
        in_channels=inner.in_channels,
        groups=groups,
    )


def compose(outer: AffineConv, inner: AffineConv) -> AffineConv:
    """Two convolutions with nothing between as one.

    Given:  y = W2 * (W1 * x + b1) + b2            Result: y = W * x + b
    W[o, i, d1 u1 + s1 d2 u2] += sum_m W2[o, m, u2] W1[m, i, u1],  b = b2 + sum_{m, u2} W2 b1,
    taps on the lattice of step gcd(d1, s1 d2); stride s1 s2, padding p1 + s1 p2; groups
    gcd(g1, g2), because blocks of channels nest. For two 1x1 convolutions, and for two matrix
    products, it is the matrix product W2 W1.
    Needs, per axis: the outer convolution is unpadded; or the inner one's bias is zero and its
    kernel touches no input at the places that the outer one pads: p1 >= d1 (k1 - 1) - s1 + 1
    in front, p1 >= d1 (k1 - 1) behind (an unpadded 1x1 kernel qualifies). There a convolution
    that read on beyond its border would give the zero that the training graph has.
    Proof: place j of the middle, virtual or not, is b1 + sum_u W1[u] x0[s1 j - p1 + d1 u] with
    x0 = x continued by zeros. The merged convolution reads it at every j, the training graph
    reads zero at j < 0 and j >= n1. They agree for all x if b1 = 0 and no tap of a virtual
    place meets x: the last tap of place -1 lies at -s1 - p1 + d1 (k1 - 1) < 0; the first of
    place n1 at s1 n1 - p1 >= n, which p1 >= d1 (k1 - 1) gives for every n.
    A transposed convolution merges with 1x1 ones: behind it always, before it where their bias
    is zero (its sub-pixels are covered by unequal numbers of taps, the border by fewer).
    Source: Eq. 4 of the VanillaNet paper, in general form.

    Raises:
        Refused: a condition does not hold.
    """
    plan = plan_compose(outer.geometry, inner.geometry, biased=bool(inner.bias.any()))
    if outer.geometry.diagonal:
        return scale_channels(inner, widened(outer.weight).reshape(-1), outer.bias)
    if inner.geometry.diagonal:
        return _scale_inputs(outer, widened(inner.weight).reshape(-1), inner.bias)
    g = plan.groups
    w1, w2 = _regroup(inner, g), _regroup(outer, g)
    point = (...,) + (0,) * inner.axes
    if math.prod(inner.kernel) == math.prod(outer.kernel) == 1:
        reach, out = w2[point], w2[point] @ w1[point]
    else:
        reach = w2.reshape(*w2.shape[:3], -1).sum(axis=3)
        out = _scatter(outer, inner, plan, w2, w1)
    carried = reach @ inner.bias.reshape(g, -1, 1)
    return AffineConv.shaped(
        plan,
        out.reshape(outer.out_channels, -1, *plan.kernel),
        outer.bias + carried.reshape(-1),
    )


def _scatter(
    outer: AffineConv, inner: AffineConv, plan: Geometry, w2: Array, w1: Array
) -> Array:
    """Sum the products of all pairs of taps into their places: (groups, out, in, ..)."""
    out = np.zeros((plan.groups, w2.shape[1], w1.shape[2], *plan.kernel))
    around = plan.output_padding is not None or plan.auto_pad is not None
    for u1 in itertools.product(*map(range, inner.kernel)):
        for u2 in itertools.product(*map(range, outer.kernel)):
            at = tuple(
                t1 + t2 if around else (d1 * t1 + s1 * d2 * t2) // step
                for d1, t1, s1, d2, t2, step in zip(
                    inner.dilations,
                    u1,
                    inner.strides,
                    outer.dilations,
                    u2,
                    plan.dilations,
                    strict=True,
                )
            )
            out[(..., *at)] += w2[(..., *u2)] @ w1[(..., *u1)]
    return out


def _regroup(conv: AffineConv, groups: int) -> Array:
    """Weights as (groups, out / groups, in / groups, ..) for a divisor of ``conv.groups``."""
    fine = conv.groups // groups
    o, i = conv.out_channels // conv.groups, conv.weight.shape[1]
    split = conv.weight.reshape(groups, fine, o, i, *conv.kernel)
    if fine == 1:
        return widened(split[:, 0])
    wide = np.zeros((groups, fine, o, fine, i, *conv.kernel))
    for f in range(fine):
        wide[:, f, :, f] = split[:, f]
    return wide.reshape(groups, fine * o, fine * i, *conv.kernel)


def plan_add(left: Geometry, right: Geometry) -> Geometry:
    """The geometry of ``add(left, right)``.

    Raises:
        Refused: a condition of :func:`add` does not hold.
    """
    return _lay(left, right)[0]


def _lay(left: Geometry, right: Geometry) -> tuple[Geometry, list[tuple[int, int]]]:
    """The common geometry of two branches, and where each begins in it, per axis."""
    if (left.in_channels, left.out_channels) != (right.in_channels, right.out_channels):
        raise Refused("the branches differ in their channels: one may broadcast")
    if left.strides != right.strides:
        raise Refused(f"strides differ, so may sizes: {left.strides} and {right.strides}")
    if left.output_padding != right.output_padding:
        raise Refused("a transposed convolution and another do not add up to one")
    if left.auto_pad != right.auto_pad:
        raise Refused("the branches' padding differs with the input's size")
    kernel, pads_begin, pads_end, dilations, offsets = [], [], [], [], []
    if left.auto_pad is not None:
        if (left.kernel, left.dilations) != (right.kernel, right.dilations):
            raise Refused("the branches' padding differs with the input's size")
        common = replace(left, groups=math.gcd(left.groups, right.groups))
        return common, [(0, 0)] * left.axes
    for a in range(left.axes):
        if left.reach(a) - sum(left.pad(a)) != right.reach(a) - sum(right.pad(a)):
            raise Refused("the branches' output sizes differ")
        begin = max(left.pad(a)[0], right.pad(a)[0])
        shifts = (begin - left.pad(a)[0], begin - right.pad(a)[0])
        reach = max(s + c.reach(a) for s, c in zip(shifts, (left, right), strict=True))
        steps = [c.dilations[a] for c in (left, right) if c.kernel[a] > 1] + [max(shifts)]
        step = math.gcd(*steps) or 1
        kernel.append(reach // step + 1)
        dilations.append(step)
        offsets.append(shifts)
        pads_begin.append(begin)
        pads_end.append(reach - (left.reach(a) - sum(left.pad(a))) - begin)
    common = replace(
        left,
        kernel=tuple(kernel),
        pads=(*pads_begin, *pads_end),
        dilations=tuple(dilations),
        groups=math.gcd(left.groups, right.groups),
    )
    return common, offsets


def add(left: AffineConv, right: AffineConv) -> AffineConv:
    """Two parallel branches of one input as one convolution.

    Given:  y = (W1 * x + b1) + (W2 * x + b2)      Result: y = W * x + b
    Both kernels are laid on their common lattice, shifted by the difference of their paddings
    (so a smaller kernel is centred in the larger), and added; groups gcd(g1, g2), padding the
    larger. Needs: equal strides and channels, and per axis the same output size for every
    input size: d1 (k1 - 1) - p1 = d2 (k2 - 1) - p2, front and back padding taken together.
    Proof: tap u of a branch reads x0 at s j - p + d u; with p' = max p it is tap (p' - p + d
    u) of the common lattice, whatever x is. Sums of transposed convolutions need the same.
    Source: RepVGG (Ding et al. 2021), sec. 3.3.

    Raises:
        Refused: a condition does not hold.
    """
    plan, offsets = _lay(left.geometry, right.geometry)
    g = plan.groups
    out = np.zeros((left.out_channels, left.in_channels // g, *plan.kernel))
    for side, conv in enumerate((left, right)):
        lattice = tuple(
            slice(
                shift[side] // d,
                shift[side] // d + conv.geometry.reach(a) // d + 1,
                max(conv.dilations[a] // d, 1),
            )
            for a, (shift, d) in enumerate(zip(offsets, plan.dilations, strict=True))
        )
        w = _regroup(conv, g).reshape(out.shape[0], out.shape[1], *conv.kernel)
        out[(slice(None), slice(None), *lattice)] += w
    return AffineConv.shaped(plan, out, left.bias + right.bias)


def diagonal(scale: Array, shift: Array | None = None) -> AffineConv:
    """A per-channel affine map as a matrix with one channel a group."""
    return AffineConv.of(scale.reshape(-1, 1), shift, groups=scale.size)


def crop(channels: int, pads: tuple[int, ...]) -> AffineConv:
    """What takes padding off again: one tap, as far from the border as the padding goes.

    Args:
        channels: of the padded value.
        pads: (begin_1 .. begin_n, end_1 .. end_n).

    Convolutions over a value padded by repetition (reflect, edge) and over the value itself
    meet so: the second ones never read padding.
    """
    axes = len(pads) // 2
    kernel = tuple(b + e + 1 for b, e in zip(pads[:axes], pads[axes:], strict=True))
    weight = np.zeros((channels, 1, *kernel))
    weight[(slice(None), 0, *pads[:axes])] = 1
    return AffineConv.of(weight, groups=channels)


def average(
    channels: int,
    kernel: tuple[int, ...],
    *,
    strides: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
) -> AffineConv:
    """Average pooling that counts its padding, as a depthwise convolution with weight 1 / k.

    Needs: count_include_pad=1 or no padding, ceil_mode=0. Source: ONNX AveragePool-19.
    """
    weight = np.full((channels, 1, *kernel), 1 / math.prod(kernel))
    return AffineConv.of(weight, strides=strides or kernel, pads=pads, groups=channels)
