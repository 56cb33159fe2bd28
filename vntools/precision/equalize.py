"""Cross-layer equalisation by powers of two: ranges that merging made, moved out of the way.

A positive factor a channel commutes with ReLU, pooling and a depthwise convolution. So the
rows of one convolution can be divided, and the input channels of the next multiplied, by

    s[c] = 2^round(log2(a[c]^alpha / w[c]^(1 - alpha)))

with a[c] the largest magnitude of channel c in front of the second convolution and w[c] that
of its weights. Powers of two only move exponents, so the network computes the same float32
numbers bit for bit as long as no product falls below 2^-126.

Source: Nagel et al. 2019, arXiv 1906.04721, sec. 4.1; alpha and the ranges of activations from
Xiao et al. 2022, arXiv 2211.10438, Eq. 4.
"""

from __future__ import annotations

__all__ = [
    "Chain",
    "Equalized",
    "Moved",
    "equalize",
    "find_chains",
    "rescaled",
    "weight_range_ratio",
]

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vntools.base.errors import InternalFault
from vntools.export.graph import constant, int_attribute, ints_attribute, is_op, only_consumer
from vntools.export.rewrite import Skip

_RULE = "equalize"
_COMMUTING = (
    *("Relu", "LeakyRelu", "PRelu", "Identity"),
    *("MaxPool", "GlobalMaxPool", "AveragePool", "GlobalAveragePool"),
)
_LARGEST = 65504.0  # of float16
_TINY = float(np.finfo(np.float32).smallest_normal)
# The largest weight of a channel stays above this, so that in float16 it and its INT8 scale, a
# 127th of it, are normal, and what falls below 2^-14 is off by less than the largest itself.
_SMALLEST = 2.0**-7
_FARTHEST = 32  # binary places by which all channels may shift together

Array = NDArray[Any]
Channels = Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Chain:
    """Two convolutions between which a positive factor a channel can move.

    Attributes:
        producer: the convolution whose output channels are divided.
        depthwise: depthwise convolutions in between; their biases are divided too.
        consumer: the dense convolution whose input channels are multiplied.
        tensors: every value from the producer's output to the consumer's input; the factors
            divide them all.
    """

    producer: ir.Node
    depthwise: tuple[ir.Node, ...]
    consumer: ir.Node
    tensors: tuple[ir.Value, ...]


@dataclass(frozen=True)
class Moved:
    """Factors that moved along a chain.

    Attributes:
        producer, consumer: names of the convolutions.
        tensors: names of the tensors in between, whose channel c was divided by
            2^exponents[c]; the last is the consumer's input.
        exponents: one a channel; 0 where a channel stayed as it was.
    """

    producer: str
    consumer: str
    tensors: tuple[str, ...]
    exponents: tuple[int, ...]


@dataclass(frozen=True)
class Equalized:
    """A graph behind equalisation.

    Attributes:
        model: the new model; weights that did not change are shared with the old one.
        moved: what changed, in the order of the graph.
        skips: convolutions from which nothing moved, and why.
    """

    model: ir.Model
    moved: tuple[Moved, ...]
    skips: tuple[Skip, ...]


def find_chains(graph: ir.Graph) -> tuple[list[Chain], list[Skip]]:
    """Every chain of a float32 graph, and each other convolution with what is in its way.

    A depthwise convolution that no chain passes may begin one itself.
    """
    chains: list[Chain] = []
    skips: list[Skip] = []
    passed: set[ir.Node] = set()
    for node in graph:
        if not is_op(node, "Conv") or node in passed:
            continue
        found = _chain_from(node)
        if isinstance(found, str):
            skips.append(Skip(_RULE, node.name or "", found))
        else:
            chains.append(found)
            passed.update(found.depthwise)
    return chains, skips


def _chain_from(producer: ir.Node) -> Chain | str:
    """The chain that begins at a convolution, or why there is none."""
    reason = _unfit(producer, 1) or _unfit(producer, 2)
    tensors: list[ir.Value] = [producer.outputs[0]]
    depthwise: list[ir.Node] = []
    while not reason:
        at = tensors[-1]
        node = only_consumer(at)
        if at.is_graph_output():
            reason = f"{at.name} is an output of the graph"
        elif node is None:
            reason = f"{at.name} is not read by one node alone"
        elif node.inputs[0] is not at:
            reason = f"{at.name} is no data input of {_called(node)}"
        elif not is_op(node, "Conv"):
            reason = _in_the_way(node)
        elif int_attribute(node, "group", 1) == 1:
            reason = _unfit(node, 1)
            if not reason:
                return Chain(producer, tuple(depthwise), node, tuple(tensors))
        else:
            reason = _unfit(node, 2) if _is_depthwise(node) else f"{_called(node)} has groups"
            depthwise.append(node)
        if node is not None:
            tensors.append(node.outputs[0])
    return reason


def _called(node: ir.Node) -> str:
    return f"{node.op_type} {node.name or ''}".rstrip()


def _unfit(node: ir.Node, index: int) -> str:
    """Why the weight or bias of a convolution cannot be scaled; empty where it can."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return "" if index == 2 else f"{_called(node)} has no weight"
    tensor = value.const_value
    if tensor is None or not value.is_initializer() or value.is_graph_input():
        return f"{value.name} is no constant initializer"
    if tensor.dtype != ir.DataType.FLOAT:
        return f"{value.name} is {tensor.dtype.name}, not FLOAT"
    if len(value.uses()) > 1 or value.is_graph_output():
        return f"{value.name} is needed elsewhere too"
    return ""


def _is_depthwise(node: ir.Node) -> bool:
    """Whether a convolution makes each output channel of the input channel of its number."""
    weight = node.inputs[1]
    shape = None if weight is None else weight.shape
    return shape is not None and tuple(shape)[:2] == (int_attribute(node, "group", 1), 1)


def _in_the_way(node: ir.Node) -> str:
    """Why a positive factor a channel does not pass an operator; empty where it does."""
    if is_op(node, "Pad"):
        return _pad_in_the_way(node)
    if is_op(node, "Add", "Concat", "Sum"):
        return f"{_called(node)} joins another branch"
    if not is_op(node, *_COMMUTING):
        return f"a positive factor does not pass {_called(node)}"
    padding = node.attributes.get("auto_pad")
    padded = any(ints_attribute(node, "pads") or ()) or (
        padding is not None and padding.as_string().startswith("SAME")
    )
    dilated = any(d > 1 for d in ints_attribute(node, "dilations") or ())
    if is_op(node, "MaxPool") and padded and dilated:
        return f"{_called(node)} is padded and dilated: a window may hold nothing but padding"
    return ""


def _pad_in_the_way(node: ir.Node) -> str:
    """As :func:`_in_the_way`, of a Pad-18: zeros and copies on the spatial axes may stand."""
    given = dict(enumerate(node.inputs))
    pads, fill = constant(given.get(1)), constant(given.get(2))
    if pads is None or given.get(3) is not None:
        return f"{_called(node)} does not say what it pads"
    if pads.reshape(2, -1)[:, :2].any():
        return f"{_called(node)} pads channels"
    if given.get(2) is not None and (fill is None or fill.any()):
        return f"{_called(node)} pads with a value other than 0"
    return ""


def equalize(model: ir.Model, channels: Channels, *, alpha: float) -> Equalized:
    """``model`` with the ranges of its convolutions' inputs evened out; itself left as it is.

    Factors are powers of two up to a common one, which lets no tensor of ``channels`` grow. An
    exponent stops where a weight would leave float32's normal range, a weight or bias would
    overflow float16, or the largest weight of a channel would fall below 2^-7. A channel that
    is always 0, or that the consumer ignores, keeps its factor of 1.

    Args:
        model: a float32 graph.
        channels: largest magnitude of each channel (axis 1) by tensor name; a chain whose last
            tensor is not among them is skipped. Of other tensors of a chain they keep the
            growth in bounds.
        alpha: how much of the range goes from activations (1: all) into weights (0: none),
            0 to 1; one half gives both the same.

    Raises:
        InternalFault: ``equalize.channels``: ``channels`` are of other channel counts.
    """
    even = model.clone()
    chains, skips = find_chains(even.graph)
    moved: list[Moved] = []
    # From the last to the first: a consumer's rows are even before its columns are looked at.
    for chain in reversed(chains):
        exponents = _exponents(chain, channels, alpha)
        if isinstance(exponents, str):
            skips.append(Skip(_RULE, chain.producer.name or "", exponents))
            continue
        _multiply(chain.producer, 1, -exponents)
        for node in (chain.producer, *chain.depthwise):
            _multiply(node, 2, -exponents)
        _multiply(chain.consumer, 1, exponents, axis=1)
        moved.append(
            Moved(
                chain.producer.name or "",
                chain.consumer.name or "",
                tuple(v.name or "" for v in chain.tensors),
                tuple(exponents.tolist()),
            )
        )
    return Equalized(even, tuple(reversed(moved)), tuple(skips))


def _exponents(chain: Chain, channels: Channels, alpha: float) -> NDArray[np.int32] | str:
    """log2 of a chain's factors, or why nothing moves."""
    weight = _rows(chain.consumer, 1, axis=1)
    known = {
        v: np.asarray(channels[v.name], np.float64)
        for v in chain.tensors
        if v.name is not None and v.name in channels
    }
    for value, ranges in known.items():
        if ranges.shape != (len(weight),):
            raise InternalFault(
                "equalize.channels",
                f"{value.name} has {len(weight)} channels, not {ranges.size}",
            )
    a = known.pop(chain.tensors[-1], None)
    if a is None:
        return f"no ranges are known of {chain.tensors[-1].name}"
    w = np.abs(weight).max(axis=1, initial=0).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        wanted = np.rint(alpha * np.log2(a) - (1 - alpha) * np.log2(w))
        live = np.isfinite(np.log2(a) + np.log2(w))
    if not live.any():
        return f"no channel of {chain.tensors[-1].name} is alive"
    wanted[~live] = 0
    low, high = _bounds(chain, weight, known.values())
    low, high = np.where(live, low, 0), np.where(live, high, 0)
    after = np.ldexp(a, -wanted.astype(np.int32))[live].max()
    wanted[live] += np.ceil(np.log2(after / a[live].max()))
    shift = min(range(_FARTHEST), key=lambda k: _cut(wanted + k, low, high)[live].sum())
    exponents = np.clip(wanted + shift, low, high).astype(np.int32)
    return exponents if exponents.any() else f"{chain.tensors[-1].name} is even as it is"


def _cut(wanted: Array, low: Array, high: Array) -> Array:
    """By how much each exponent is out of bounds."""
    return np.abs(wanted - np.clip(wanted, low, high))


def _bounds(chain: Chain, weight: Array, ranges: Iterable[Array]) -> tuple[Array, Array]:
    """Least (at most 0) and greatest (at least 0) exponents of a chain's channels."""
    divided = [_places(_rows(chain.producer, 1))]
    # A bias's own rounding in float16, at most 2^-25, is nothing beside that of the channel.
    biased = (chain.producer, *chain.depthwise)
    divided += [_places(_rows(node, 2), smallest=0.0) for node in biased]
    up, down = _places(weight)
    for grow, shrink in divided:
        up, down = np.minimum(up, shrink), np.minimum(down, grow)
    for a in ranges:
        with np.errstate(divide="ignore", invalid="ignore"):
            down = np.fmin(down, np.floor(np.log2(a.max() / a)))
    return -down, up


def _rows(node: ir.Node, index: int, *, axis: int = 0) -> Array:
    """A weight or bias, (channels, others); without columns where there is no such input."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or value.const_value is None:
        return np.empty((0, 0), np.float32)
    array = np.moveaxis(value.const_value.numpy(), axis, 0)
    return array.reshape(len(array), -1)


def _places(rows: Array, *, smallest: float = _SMALLEST) -> tuple[Array, Array]:
    """Binary places by which each of ``rows`` may grow, and shrink: zeros any, NaN none."""
    if not rows.size:
        return np.array(np.inf), np.array(np.inf)
    size = np.abs(rows).astype(np.float64)
    largest, least = size.max(axis=1), np.where(size == 0, np.inf, size).min(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        grow = np.log2(_LARGEST / largest)
        shrink = np.log2(np.minimum(largest / smallest, least / _TINY))
    shrink[largest == 0] = np.inf
    return np.fmax(np.floor(grow), 0), np.fmax(np.floor(shrink), 0)


def _multiply(node: ir.Node, index: int, exponents: Array, *, axis: int = 0) -> None:
    """Multiply a weight or bias by 2^exponents along ``axis``."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or value.const_value is None:
        return
    array = value.const_value.numpy()
    places = exponents.reshape(-1, *(1,) * (array.ndim - 1 - axis))
    value.const_value = ir.Tensor(np.ldexp(array, places), name=value.name)


def rescaled(channels: Channels, moved: Iterable[Moved]) -> dict[str, tuple[float, ...]]:
    """Ranges of the equalised network from those of the one before, exactly.

    All tensors of a chain follow, not its last alone; the largest of a tensor's channels is
    what min-max calibration would find. Ranges cut by entropy or percentile do not follow.
    """
    after = dict(channels)
    for move in moved:
        for name in after.keys() & set(move.tensors):
            divided = np.ldexp(np.asarray(after[name], np.float64), -np.array(move.exponents))
            after[name] = tuple(divided.tolist())
    return after


def weight_range_ratio(weight: Array) -> float:
    """Largest over smallest range of a weight's output channels, (out, in, ..).

    1 is even; channels of zeros are left out, and a weight of nothing else is even.
    """
    ranges = np.abs(weight.reshape(len(weight), -1)).max(axis=1, initial=0)
    live = ranges[ranges > 0]
    return float(live.max() / live.min()) if live.size else 1.0
