"""Operators with windows in float64: convolutions, transposed ones, pooling, and resizing.

Convolutions: 1x1 as one matrix product over all samples, depthwise as products with band
matrices, others tap by tap. Pooling and resizing go axis by axis.
"""

from __future__ import annotations

__all__ = ["WINDOWS"]

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from vntools.export.affine import Array
from vntools.verify.float64_call import Call, Kernel, NotHere, Value

_TILE = 16  # places along a line that one product of a depthwise convolution writes
_CHANNELS = 32  # done together there: few enough for a core's own cache
_UNFOLDED_BYTES = 1 << 26


@dataclass(frozen=True)
class _Windows:
    """Where windows lie along each spatial axis; ``pads`` are all begins, then all ends."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]

    @classmethod
    def of(cls, call: Call, size: tuple[int, ...], kernel: tuple[int, ...]) -> _Windows:
        strides = call.ints("strides") or (1,) * len(size)
        dilations = call.ints("dilations") or (1,) * len(size)
        mode = call.text("auto_pad", "NOTSET")
        pads = (0,) * 2 * len(size)
        if mode == "NOTSET":
            pads = call.ints("pads") or pads
        elif mode != "VALID":
            total = [
                max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
                for n, k, s, d in zip(size, kernel, strides, dilations, strict=True)
            ]
            small, large = [t // 2 for t in total], [t - t // 2 for t in total]
            pads = (*small, *large) if mode == "SAME_UPPER" else (*large, *small)
        return cls(kernel, strides, dilations, pads)

    def ends(self, a: int) -> tuple[int, int]:
        """Padding before and behind an axis."""
        return self.pads[a], self.pads[a + len(self.kernel)]

    def reach(self, a: int) -> int:
        """From a window's first place to its last."""
        return self.dilations[a] * (self.kernel[a] - 1)

    def places(self, a: int, extent: int, *, ceil: bool = False) -> int:
        """How many windows an axis of ``extent`` has; none begins in the padding behind it."""
        before, behind = self.ends(a)
        free, stride = extent + before + behind - self.reach(a) - 1, self.strides[a]
        if not ceil:
            return free // stride + 1
        count = -(-free // stride) + 1
        return count - ((count - 1) * stride >= extent + before)


def _conv(call: Call) -> Array:
    """Conv-11 for x (n, c, ..), W (o, c / g, ..), any number of spatial axes."""
    x, w, bias = call.array(0), call.array(1), call.optional(2)
    axes, groups = w.ndim - 2, call.int("group", 1)
    at = _Windows.of(call, x.shape[2:], w.shape[2:])
    strides, dilations, pads = at.strides, at.dilations, at.pads
    dense = axes == 2 and strides == dilations == (1, 1)
    depthwise = dense and groups == w.shape[0] == x.shape[1] and min(pads) >= 0
    if any(pads) and not depthwise:
        x = _padded(x, pads)
    if depthwise:
        y = _depthwise(x, w, pads)
    elif math.prod(w.shape[2:]) == 1 and groups == 1:
        window = tuple(slice(None, None, s) for s in strides)
        y = _pointwise(x[(slice(None), slice(None), *window)], w)
    else:
        y = _tapwise(x, w, strides, dilations, groups)
    if bias is not None:
        y += bias.reshape((1, -1) + (1,) * axes)
    return y


def _padded(x: Value, pads: tuple[int, ...], filling: float = 0.0) -> Value:
    """Padded along its spatial axes, and cropped where a pad is negative."""
    axes = len(pads) // 2
    ends = list(zip(pads[:axes], pads[axes:], strict=True))
    inner = [
        slice(max(-p, 0), n - max(-q, 0)) for n, (p, q) in zip(x.shape[2:], ends, strict=True)
    ]
    grown = [(0, 0), (0, 0), *((max(p, 0), max(q, 0)) for p, q in ends)]
    return np.pad(x[(slice(None), slice(None), *inner)], grown, constant_values=filling)


def _pointwise(x: Array, w: Value) -> Array:
    """A 1x1 convolution as one product (o, c) @ (c, n p) over all samples and places."""
    n, c = x.shape[:2]
    places = x.shape[2:]
    if n == 1:
        columns = x.reshape(c, -1)
    else:
        columns = np.ascontiguousarray(x.reshape(n, c, -1).transpose(1, 0, 2)).reshape(c, -1)
    y = w.reshape(w.shape[0], c) @ columns
    return y.reshape(-1, n, math.prod(places)).transpose(1, 0, 2).reshape(n, -1, *places)


def _depthwise(x: Array, w: Value, pads: tuple[int, ...]) -> Array:
    """A dense depthwise convolution of x (n, c, h, w) at stride 1, as matrix products.

    Along a line the kernel is a band matrix: row i of it takes a tile of the padded line,
    (k - 1) wider than its result, to that result. One product does so for all lines of all
    samples of a channel, and the products of the kernel's rows are added. What straddles two
    samples is cut off at the end.
    """
    n, c, height, width = x.shape
    kh, kw = w.shape[2:]
    top, left, bottom, right = pads
    lines, columns = height + top + bottom, width + left + right
    oh, ow = lines - kh + 1, columns - kw + 1
    tile = min(ow, _TILE)
    out = np.empty((c, n, oh, ow))
    padded = np.zeros((_CHANNELS, n, lines, columns))
    bands = np.zeros((_CHANNELS, kh, tile + kw - 1, tile))
    for start in range(0, c, _CHANNELS):
        part = slice(start, start + _CHANNELS)
        m = len(w[part])
        padded[:m, :, top : top + height, left : left + width] = x[:, part].swapaxes(0, 1)
        for j in range(tile):
            bands[:m, :, j : j + kw, j] = w[part, 0]
        tall = padded[:m].reshape(m, n * lines, columns)
        for at in range(0, ow, tile):
            wide = min(tile, ow - at)
            taken, reach = n * lines - kh + 1, wide + kw - 1
            y = np.zeros((m, n * lines, wide))
            for i in range(kh):
                y[:, :taken] += (
                    tall[:, i : i + taken, at : at + reach] @ bands[:m, i, :reach, :wide]
                )
            out[part, :, :, at : at + wide] = y.reshape(m, n, lines, wide)[:, :, :oh]
    return out.swapaxes(0, 1)


def _tapwise(
    x: Array, w: Value, strides: tuple[int, ...], dilations: tuple[int, ...], groups: int
) -> Array:
    """Any convolution of padded x: a product per group over channels and taps together.

    Where the unfolded input would be large, a product per tap.
    """
    kernel = w.shape[2:]
    size = tuple(
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True)
    )
    n, places = x.shape[0], math.prod(size)
    windows = [
        tuple(
            slice(t * d, t * d + s * (m - 1) + 1, s)
            for t, d, s, m in zip(u, dilations, strides, size, strict=True)
        )
        for u in itertools.product(*map(range, kernel))
    ]
    weights = w.reshape(groups, w.shape[0] // groups, w.shape[1], -1)
    if 8 * n * x.shape[1] * len(windows) * places <= _UNFOLDED_BYTES:
        parts = [
            x[(slice(None), slice(None), *u)].reshape(n, x.shape[1], places) for u in windows
        ]
        columns = np.stack(parts, axis=2).reshape(n, groups, -1, places)
        y = weights.reshape(groups, weights.shape[1], -1) @ columns
        return y.reshape(n, -1, *size)
    y = np.zeros((n, groups, weights.shape[1], places))
    for t, window in enumerate(windows):
        part = x[(slice(None), slice(None), *window)].reshape(n, groups, -1, places)
        y += np.ascontiguousarray(weights[..., t]) @ part
    return y.reshape(n, -1, *size)


def _conv_transpose(call: Call) -> Array:
    """ConvTranspose-11 for x (n, c, ..), W (c, o / g, ..): every place adds its kernel."""
    x, w, bias = call.array(0), call.array(1), call.optional(2)
    axes, groups = w.ndim - 2, call.int("group", 1)
    kernel = w.shape[2:]
    strides = call.ints("strides") or (1,) * axes
    dilations = call.ints("dilations") or (1,) * axes
    extra = call.ints("output_padding") or (0,) * axes
    full = [
        s * (m - 1) + e + d * (k - 1) + 1
        for m, s, e, d, k in zip(x.shape[2:], strides, extra, dilations, kernel, strict=True)
    ]
    cuts = _cuts(call, x.shape[2:], full, strides)
    n, c = x.shape[:2]
    y = np.zeros((n, groups, w.shape[1], *map(max, full, (b for _, b in cuts))))
    columns = x.reshape(n, groups, c // groups, -1)
    rows = w.reshape(groups, c // groups, w.shape[1], -1)
    for t, tap in enumerate(itertools.product(*map(range, kernel))):
        at = tuple(
            slice(u * d, u * d + s * (m - 1) + 1, s)
            for u, d, s, m in zip(tap, dilations, strides, x.shape[2:], strict=True)
        )
        part = np.ascontiguousarray(rows[..., t].swapaxes(1, 2)) @ columns
        y[(..., *at)] += part.reshape(n, groups, w.shape[1], *x.shape[2:])
    y = y[(..., *(slice(a, b) for a, b in cuts))]
    y = y.reshape(n, -1, *y.shape[3:])
    return y if bias is None else y + bias.reshape((1, -1) + (1,) * axes)


def _cuts(
    call: Call, size: tuple[int, ...], full: list[int], strides: tuple[int, ...]
) -> list[tuple[int, int]]:
    """Which part of what a transposed convolution adds up is its output, per axis."""
    mode, wanted = call.text("auto_pad", "NOTSET"), call.ints("output_shape")
    if wanted is None and mode in ("NOTSET", "VALID"):
        pads = call.ints("pads") if mode == "NOTSET" else None
        pads = pads or (0,) * 2 * len(size)
        ends = zip(pads[: len(size)], pads[len(size) :], full, strict=True)
        return [(p, n - q) for p, q, n in ends]
    wanted = wanted or tuple(n * s for n, s in zip(size, strides, strict=True))
    cuts: list[tuple[int, int]] = []
    for n, f in zip(wanted[-len(size) :], full, strict=True):
        total = max(f - n, 0)
        begin = total // 2 if mode == "SAME_UPPER" else total - total // 2
        cuts.append((begin, begin + n))
    return cuts


def _max_pool(call: Call) -> Value:
    """MaxPool-12 without Indices."""
    if call.written() > 1 or call.array(0).dtype.kind != "f":
        raise NotHere
    return _pooled(call, np.maximum, -np.inf)[0]


def _average_pool(call: Call) -> Value:
    """AveragePool-19: a window counts its places within the input, or its padding too."""
    y, at = _pooled(call, np.add, 0.0)
    padded = call.int("count_include_pad", 0)
    for a, extent in enumerate(call.array(0).shape[2:]):
        before, behind = at.ends(a)
        line = np.full(before + extent + behind, float(bool(padded)))
        line[before : before + extent] = 1.0
        count = _along(line, np.add, 0.0, at, a, axis=0, places=y.shape[a + 2])
        y /= count.reshape((-1,) + (1,) * (y.ndim - a - 3))
    return y


def _pooled(call: Call, join: np.ufunc, filling: float) -> tuple[Value, _Windows]:
    x, kernel = call.array(0), call.ints("kernel_shape")
    if kernel is None or len(kernel) != x.ndim - 2:
        raise ValueError("kernel_shape does not fit the input")
    at = _Windows.of(call, x.shape[2:], kernel)
    ceil = bool(call.int("ceil_mode", 0)) and call.text("auto_pad", "NOTSET") == "NOTSET"
    places = [at.places(a, n, ceil=ceil) for a, n in enumerate(x.shape[2:])]
    y = _padded(x, at.pads, filling)
    for a, count in enumerate(places):
        y = _along(y, join, filling, at, a, axis=a + 2, places=count)
    return y, at


def _along(
    x: Value, join: np.ufunc, filling: float, at: _Windows, a: int, *, axis: int, places: int
) -> Value:
    """Windows of axis ``a`` joined into one value each; x is padded, but for the last one."""
    lead, stride = (slice(None),) * axis, at.strides[a]
    need = (places - 1) * stride + at.reach(a) + 1
    if need > x.shape[axis]:
        tail = [(0, 0)] * x.ndim
        tail[axis] = (0, need - x.shape[axis])
        x = np.pad(x, tail, constant_values=filling)
    y: Value | None = None
    for t in range(0, at.reach(a) + 1, at.dilations[a]):
        part = x[(*lead, slice(t, t + stride * (places - 1) + 1, stride))]
        y = part.copy() if y is None else join(y, part, out=y)
    assert y is not None
    return y


def _global_average_pool(call: Call) -> Value:
    x = call.array(0)
    return x.mean(axis=tuple(range(2, x.ndim)), keepdims=True)


def _global_max_pool(call: Call) -> Value:
    x = call.array(0)
    return x.max(axis=tuple(range(2, x.ndim)), keepdims=True)


def _resize(call: Call) -> Value:
    """Upsample-7 and -9, Resize-10 and newer; not antialiased, and without a region."""
    x, mode = call.array(0), call.text("mode", "nearest")
    old = call.version < 11
    default = "asymmetric" if old else "half_pixel"
    where = call.text("coordinate_transformation_mode", default)
    if where == "tf_crop_and_resize" or call.int("antialias", 0):
        raise NotHere
    if x.dtype.kind != "f" or mode not in ("nearest", "linear", "bilinear", "cubic"):
        raise NotHere
    axes = call.ints("axes") or tuple(range(x.ndim))
    for axis, scale, size in zip(axes, *_scales(call, x, axes), strict=True):
        n = x.shape[axis]
        if (size, scale) == (n, 1.0):
            continue
        places = _coordinates(where, n, size, scale)
        taps, weights = _taps(call, mode, places, n)
        parts = [x.take(np.clip(i, 0, n - 1), axis) for i in taps]
        shape = (-1,) + (1,) * (x.ndim - axis % x.ndim - 1)
        weighed = [p * w.reshape(shape) for p, w in zip(parts, weights, strict=True)]
        x = reduce(np.add, weighed)
    return x


def _scales(call: Call, x: Value, axes: tuple[int, ...]) -> tuple[list[float], list[int]]:
    """Scale and size of every axis in ``axes``."""
    scales = call.optional(1 if call.version < 11 else 2)
    if "scales" in call.node.attributes:
        scales = np.array(call.node.attributes["scales"].as_floats())
    old = [x.shape[a] for a in axes]
    if scales is not None and scales.size:
        given = [float(s) for s in scales]
        return given, [math.floor(n * s) for n, s in zip(old, given, strict=True)]
    sizes = [int(s) for s in call.array(3)]
    policy = call.text("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        choose = min if policy == "not_larger" else max
        scale = choose(s / n for s, n in zip(sizes, old, strict=True))
        return [scale] * len(old), [math.floor(scale * n + 0.5) for n in old]
    return [s / n for s, n in zip(sizes, old, strict=True)], sizes


def _coordinates(where: str, n: int, size: int, scale: float) -> Array:
    """Where the places of a resized axis lie on the axis as it was."""
    i = np.arange(size, dtype=np.float64)
    if where == "align_corners":
        return i * (n - 1) / (size - 1) if size > 1 else i * 0
    if where == "asymmetric":
        return i / scale
    if where == "tf_half_pixel_for_nn":
        return (i + 0.5) / scale
    if where == "pytorch_half_pixel" and size == 1:
        return i * 0
    if where == "half_pixel_symmetric":
        adjusted = size / (scale * n)
        return n / 2 * (1 - adjusted) + (i + 0.5) / scale - 0.5
    if where in ("half_pixel", "pytorch_half_pixel"):
        return (i + 0.5) / scale - 0.5
    raise NotHere


def _taps(call: Call, mode: str, at: Array, n: int) -> tuple[list[Any], list[Any]]:
    """Which places are read for each of ``at``, and with which weights."""
    if mode == "nearest":
        default = "floor" if call.version < 11 else "round_prefer_floor"
        rounded = {
            "floor": np.floor(at),
            "ceil": np.ceil(at),
            "round_prefer_floor": np.ceil(at - 0.5),
            "round_prefer_ceil": np.floor(at + 0.5),
        }[call.text("nearest_mode", default)]
        return [rounded.astype(np.int64)], [np.ones(len(at))]
    low = np.floor(at).astype(np.int64)
    rest = at - low
    if mode != "cubic":
        return [low, low + 1], [1 - rest, rest]
    a = call.float("cubic_coeff_a", -0.75)
    near = [((a + 2) * d - (a + 3)) * d * d + 1 for d in (rest, 1 - rest)]
    far = [((a * d - 5 * a) * d + 8 * a) * d - 4 * a for d in (rest + 1, 2 - rest)]
    taps, weights = [low - 1, low, low + 1, low + 2], [far[0], *near, far[1]]
    if call.int("exclude_outside", 0):
        weights = [
            np.where((t >= 0) & (t < n), w, 0.0) for t, w in zip(taps, weights, strict=True)
        ]
        total = sum(weights)
        weights = [w / total for w in weights]
    return taps, weights


WINDOWS: Mapping[str, Kernel] = {
    "AveragePool": _average_pool,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "GlobalAveragePool": _global_average_pool,
    "GlobalMaxPool": _global_max_pool,
    "MaxPool": _max_pool,
    "Resize": _resize,
    "Upsample": _resize,
}
