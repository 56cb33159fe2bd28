"""A map before and behind an operator that it passes, in float64 on seeded random inputs."""

from __future__ import annotations

__all__ = ["Passing", "passing_error"]

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vntools.export.affine import Array, apply, lift, widened
from vntools.export.graph import constant, evaluated, ints_attribute
from vntools.export.maps import Map

_EXTENTS = (9, 10)  # of the axes that are not the channels'
_LARGEST = 1 << 22  # elements
_VIEWS = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class Passing:
    """An operator that a map passes.

    Attributes:
        node: the operator.
        inside: the map of each input that has one, by its index.
        outside: the map of the result that says the same.
    """

    node: ir.Node
    inside: dict[int, Map]
    outside: Map


def passing_error(
    passed: Sequence[Passing], channels: Callable[[ir.Value, int], int | None]
) -> float | None:
    """The largest difference that any of ``passed`` makes, relative to its largest result.

    Each operator runs on two sizes, once behind its inputs' maps and once before the map of
    its result. None where no input is known that it takes (a view to a computed shape).
    """
    worst = 0.0
    for step in passed:
        for extent in _EXTENTS:
            feeds = _feeds(step, extent, channels)
            error = None if feeds is None else _error(step, feeds)
            if error is None:
                return None
            worst = max(worst, error)
    return worst


def _error(step: Passing, feeds: list[NDArray[Any] | None]) -> float | None:
    mapped = [
        _apply(step.inside[i], x) if x is not None and i in step.inside else x
        for i, x in enumerate(feeds)
    ]
    first, second = evaluated(step.node, mapped), evaluated(step.node, feeds)
    if first is None or second is None:
        return None
    shape = step.node.outputs[0].shape
    if shape is not None and first.ndim != len(shape):  # ONNX's GlobalMaxPool over one axis
        return None
    second = _apply(step.outside, second)
    if first.shape != second.shape:
        return float("inf")
    largest = float(np.abs(first).max(initial=0.0))
    difference = float(np.abs(first - second).max(initial=0.0))
    return difference / largest if largest else difference


def _apply(m: Map, x: Array) -> Array:
    conv = m.make()
    if m.axis is None:
        return x * conv.weight[0, 0] + conv.bias[0]
    moved = np.moveaxis(x, m.axis, 1)
    if conv.axes != moved.ndim - 2:
        conv = lift(conv, moved.ndim - 2)
    return np.moveaxis(apply(conv, moved), 1, m.axis)


def _feeds(
    step: Passing, extent: int, channels: Callable[[ir.Value, int], int | None]
) -> list[NDArray[Any] | None] | None:
    """Random data for every input that is not constant, and those that are."""
    node = step.node
    rng = np.random.default_rng([extent, *(node.name or "").encode("utf-8", "replace")])
    feeds: list[NDArray[Any] | None] = []
    for i, value in enumerate(node.inputs):
        fixed = constant(value)
        if value is None or fixed is not None:
            feeds.append(
                fixed if fixed is None or fixed.dtype.kind in "iub" else widened(fixed)
            )
        elif i and node.op_type in _VIEWS:
            feeds.append(_target(step, feeds[0]))
        else:
            shape = _shape(step, i, value, extent, channels)
            if shape is None or math.prod(shape) > _LARGEST:
                return None
            feeds.append(rng.standard_normal(shape))
    return feeds


def _shape(
    step: Passing,
    index: int,
    value: ir.Value,
    extent: int,
    channels: Callable[[ir.Value, int], int | None],
) -> list[int] | None:
    if value.shape is None:
        return None
    m = step.inside.get(index)
    rank = len(value.shape)
    mapped = None if m is None or m.axis is None else m.axis % rank
    joined = (
        step.node.attributes["axis"].as_int() % rank if step.node.op_type == "Concat" else None
    )
    view = step.node.op_type in _VIEWS
    batch = 2
    if view and step.node.outputs[0].shape is not None:
        # So many that every static extent of the result divides them.
        batch *= math.prod(d for d in step.node.outputs[0].shape if isinstance(d, int))
    dims: list[int] = []
    for axis, extent_here in enumerate(value.shape):
        known = extent_here if isinstance(extent_here, int) else channels(value, axis)
        if axis == mapped and m is not None:
            dims.append(m.geometry.in_channels)
        elif axis == joined and known is None:
            return None
        elif known is not None and (view or known == 1 or axis == joined):
            dims.append(known)
        else:
            dims.append(batch if axis == 0 else max(extent, _least(step.node)))
    return dims


def _least(node: ir.Node) -> int:
    """The extent that shows a window whole, and padding on both sides."""
    kernel = ints_attribute(node, "kernel_shape") or (1,)
    dilations = ints_attribute(node, "dilations") or (1,)
    return 2 * max(kernel) * max(dilations) + 1


def _target(step: Passing, data: NDArray[Any] | None) -> NDArray[Any] | None:
    """What a view to a computed shape is given: the extents known, and one that follows."""
    node, m = step.node, step.outside
    shape = node.outputs[0].shape
    if shape is None or data is None:
        return None
    source = node.inputs[0]
    known = {
        str(d): n
        for d, n in zip(
            source.shape or () if source is not None else (), data.shape, strict=False
        )
        if not isinstance(d, int)
    }
    dims = [d if isinstance(d, int) else known.get(str(d), -1) for d in shape]
    if m.axis is not None:
        dims[m.axis] = m.geometry.out_channels
    return np.array(dims, np.int64) if dims.count(-1) <= 1 else None
