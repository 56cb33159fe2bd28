"""The algebra of linear regions: biased convolutions as values, in float64, numpy alone.

Between two non-linearities everything is an affine convolution

    y[o, j] = b[o] + sum_{m, u} W[o, m, u] x[m + group offset, s j - p + d u]

with x zero outside its extent, j and u running over any number of spatial axes. The rules
below are pure functions; each states its equation, its shapes and the condition under which it
is exact, and raises :class:`Refused` with the reason where it is not. The one cast to float32
is the caller's.
"""

from __future__ import annotations

__all__ = [
    "AffineConv",
    "Refused",
    "add",
    "apply",
    "average",
    "channels_of",
    "compose",
    "identity",
    "macs",
    "output_size",
    "parameters_of",
    "plan_compose",
    "scale_channels",
]

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Refused(Exception):
    """A rule does not hold here; the text is the reason, for the user."""


@dataclass(frozen=True)
class AffineConv:
    """An affine convolution over n spatial axes.

    Attributes:
        weight: (out, in / groups, k_1 .. k_n), float64.
        bias: (out,), float64.
        strides: s, one per spatial axis.
        pads: zeros in front of and behind each axis: (begin_1 .. begin_n, end_1 .. end_n), as
            in ONNX Conv.
        dilations: d, one per spatial axis.
        groups: number of groups.

    Source: ONNX Conv-11, whose attributes these are.
    """

    weight: Array
    bias: Array
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int = 1

    def __post_init__(self) -> None:
        n = self.weight.ndim - 2
        if (
            n < 1
            or len(self.strides) != n
            or len(self.dilations) != n
            or len(self.pads) != 2 * n
        ):
            raise ValueError(f"attributes do not fit a kernel of shape {self.weight.shape}")
        if (
            self.groups < 1
            or self.out_channels % self.groups
            or self.bias.shape != (self.out_channels,)
        ):
            raise ValueError("groups or bias do not fit the output channels")
        if min(self.strides + self.dilations) < 1 or min(self.pads) < 0:
            raise ValueError("strides and dilations start at 1, pads at 0")

    @staticmethod
    def of(
        weight: NDArray[Any],
        bias: NDArray[Any] | None = None,
        *,
        strides: tuple[int, ...] | None = None,
        pads: tuple[int, ...] | None = None,
        dilations: tuple[int, ...] | None = None,
        groups: int = 1,
    ) -> AffineConv:
        """A convolution from arrays of any float type; what is left out has ONNX's default."""
        n = weight.ndim - 2
        return AffineConv(
            np.asarray(weight, np.float64),
            np.zeros(weight.shape[0]) if bias is None else np.asarray(bias, np.float64),
            strides or (1,) * n,
            pads or (0,) * 2 * n,
            dilations or (1,) * n,
            groups,
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

    def reach(self, axis: int) -> int:
        """Extent of the dilated kernel less one: d (k - 1)."""
        return self.dilations[axis] * (self.kernel[axis] - 1)

    def pad(self, axis: int) -> tuple[int, int]:
        """Padding (before, behind) along a spatial axis."""
        return self.pads[axis], self.pads[axis + self.axes]


def output_size(conv: AffineConv, size: tuple[int, ...]) -> tuple[int, ...]:
    """Spatial size of y for x of spatial ``size``: floor((n + p - d (k - 1) - 1) / s) + 1."""
    return tuple(
        (n + sum(conv.pad(a)) - conv.reach(a) - 1) // conv.strides[a] + 1
        for a, n in enumerate(size)
    )


def macs(conv: AffineConv, *size: int) -> int:
    """Multiply-accumulates of one sample of spatial ``size`` (height, width for two axes)."""
    return conv.weight.size * math.prod(max(n, 0) for n in output_size(conv, size))


def parameters_of(conv: AffineConv) -> int:
    """Number of weights and biases."""
    return conv.weight.size + conv.bias.size


def apply(conv: AffineConv, x: Array) -> Array:
    """Evaluate y of shape (n, out, ..) for x of shape (n, in, ..), tap by tap."""
    edges = [(0, 0), (0, 0)] + [conv.pad(a) for a in range(conv.axes)]
    padded = np.pad(np.asarray(x, np.float64), edges)
    size = output_size(conv, x.shape[2:])
    n, g = x.shape[0], conv.groups
    y = np.zeros((n, g, conv.out_channels // g, math.prod(size)))
    w = conv.weight.reshape(g, -1, *conv.weight.shape[1:])
    for u in itertools.product(*map(range, conv.kernel)):
        window = tuple(
            slice(t * d, t * d + s * (m - 1) + 1, s)
            for t, d, s, m in zip(u, conv.dilations, conv.strides, size, strict=True)
        )
        part = padded[(slice(None), slice(None), *window)].reshape(n, g, -1, math.prod(size))
        tap = w[(..., *u)]
        # One channel a group: a product per channel, where matmul would loop over 1x1
        # matrices.
        y += tap * part if tap.shape[2] == 1 else tap @ part
    return y.reshape(n, -1, *size) + conv.bias.reshape((1, -1) + (1,) * conv.axes)


def channels_of(conv: AffineConv, channels: NDArray[np.intp]) -> AffineConv:
    """The part of an ungrouped convolution that writes ``channels``; any other one whole."""
    if conv.groups > 1:
        return conv
    return replace(conv, weight=conv.weight[channels], bias=conv.bias[channels])


def scale_channels(conv: AffineConv, scale: Array, shift: Array) -> AffineConv:
    """A per-channel affine map behind a convolution, folded into it.

    Given:  y = scale * (W * x + b) + shift        Result: y = W' * x + b'
    W'[o] = scale[o] W[o],  b' = scale b + shift;  scale, shift (out,)
    Needs: nothing; the map acts behind the padding. BatchNormalization in inference mode is
    scale = gamma / sqrt(var + eps), shift = beta - mean scale.
    Source: Eq. 2 of the VanillaNet paper; Ioffe & Szegedy 2015, sec. 3.1.
    """
    rows = conv.weight.reshape(conv.out_channels, -1) * scale[:, np.newaxis]
    return replace(
        conv, weight=rows.reshape(conv.weight.shape), bias=conv.bias * scale + shift
    )


@dataclass(frozen=True)
class _Geometry:
    """Everything of a convolution but its numbers: enough for its cost."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int


def plan_compose(outer: AffineConv, inner: AffineConv) -> _Geometry:
    """The geometry of ``compose(outer, inner)``, without the matrix products.

    Raises:
        Refused: the composition is no convolution, or not exact at the border.
    """
    if outer.axes != inner.axes or outer.in_channels != inner.out_channels:
        raise Refused("the outer convolution does not read what the inner one writes")
    biased = bool(np.any(inner.bias))
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
    return _Geometry(
        tuple(kernel),
        tuple(s * t for s, t in zip(inner.strides, outer.strides, strict=True)),
        tuple(p + s * q for p, q, s in zip(inner.pads, outer.pads, stretched, strict=True)),
        tuple(dilations),
        math.gcd(inner.groups, outer.groups),
    )


def compose(outer: AffineConv, inner: AffineConv) -> AffineConv:
    """Two convolutions with nothing between as one.

    Given:  y = W2 * (W1 * x + b1) + b2            Result: y = W * x + b
    W[o, i, d1 u1 + s1 d2 u2] += sum_m W2[o, m, u2] W1[m, i, u1],  b = b2 + sum_{m, u2} W2 b1,
    taps on the lattice of step gcd(d1, s1 d2); stride s1 s2, padding p1 + s1 p2; groups
    gcd(g1, g2), because blocks of channels nest. For two 1x1 convolutions it is the matrix
    product W2 W1.
    Needs, per axis: the outer convolution is unpadded; or the inner one's bias is zero and its
    kernel touches no input at the places that the outer one pads: p1 >= d1 (k1 - 1) - s1 + 1
    in front, p1 >= d1 (k1 - 1) behind (an unpadded 1x1 kernel qualifies). There a convolution
    that read on beyond its border would give the zero that the training graph has.
    Source: Eq. 4 of the VanillaNet paper, in general form.

    Raises:
        Refused: a condition does not hold.
    """
    plan = plan_compose(outer, inner)
    g = plan.groups
    w1, w2 = _regroup(inner, g), _regroup(outer, g)
    if math.prod(inner.kernel) == math.prod(outer.kernel) == 1:
        point = (...,) + (0,) * inner.axes
        reach, out = w2[point], w2[point] @ w1[point]
    else:
        reach, out = (
            w2.reshape(*w2.shape[:3], -1).sum(axis=3),
            _scatter(outer, inner, plan, w2, w1),
        )
    carried = reach @ inner.bias.reshape(g, -1, 1)
    return AffineConv(
        out.reshape(outer.out_channels, -1, *plan.kernel),
        outer.bias + carried.reshape(-1),
        plan.strides,
        plan.pads,
        plan.dilations,
        g,
    )


def _scatter(
    outer: AffineConv, inner: AffineConv, plan: _Geometry, w2: Array, w1: Array
) -> Array:
    """Sum the products of all pairs of taps into their places: (groups, out, in, ..)."""
    out = np.zeros((plan.groups, w2.shape[1], w1.shape[2], *plan.kernel))
    for u1 in itertools.product(*map(range, inner.kernel)):
        for u2 in itertools.product(*map(range, outer.kernel)):
            at = tuple(
                (d1 * t1 + s1 * d2 * t2) // step
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
        return split[:, 0]
    wide = np.zeros((groups, fine, o, fine, i, *conv.kernel))
    for f in range(fine):
        wide[:, f, :, f] = split[:, f]
    return wide.reshape(groups, fine * o, fine * i, *conv.kernel)


def add(left: AffineConv, right: AffineConv) -> AffineConv:
    """Two parallel branches of one input as one convolution.

    Given:  y = (W1 * x + b1) + (W2 * x + b2)      Result: y = W * x + b
    Both kernels are laid on their common lattice, shifted by the difference of their paddings
    (so a smaller kernel is centred in the larger), and added; groups gcd(g1, g2), padding the
    larger. Needs: equal strides and channels, and per axis the same output size for every
    input size: d1 (k1 - 1) - p1 = d2 (k2 - 1) - p2, front and back padding taken together.
    Source: RepVGG (Ding et al. 2021), sec. 3.3.

    Raises:
        Refused: a condition does not hold.
    """
    if (left.in_channels, left.out_channels) != (right.in_channels, right.out_channels):
        raise Refused("the branches differ in their channels")
    if left.strides != right.strides:
        raise Refused(f"strides differ: {left.strides} and {right.strides}")
    kernel, pads_begin, pads_end, dilations, offsets = [], [], [], [], []
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
    g = math.gcd(left.groups, right.groups)
    out = np.zeros((left.out_channels, left.in_channels // g, *kernel))
    for side, conv in enumerate((left, right)):
        w = _regroup(conv, g).reshape(out.shape[0], out.shape[1], *conv.kernel)
        lattice = tuple(
            slice(
                shift[side] // d,
                shift[side] // d + conv.reach(a) // d + 1,
                max(conv.dilations[a] // d, 1),
            )
            for a, (shift, d) in enumerate(zip(offsets, dilations, strict=True))
        )
        out[(slice(None), slice(None), *lattice)] += w
    return AffineConv(
        out,
        left.bias + right.bias,
        left.strides,
        (*pads_begin, *pads_end),
        tuple(dilations),
        g,
    )


def identity(channels: int, *, axes: int = 2) -> AffineConv:
    """A bare skip as a depthwise 1x1 convolution with weight 1."""
    return AffineConv.of(np.ones((channels, 1) + (1,) * axes), groups=channels)


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
