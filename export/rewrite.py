"""What a pass is, how passes are found and ordered, and what they leave behind."""

from __future__ import annotations

__all__ = [
    "Applied",
    "GraphPass",
    "Record",
    "Rewrite",
    "Skip",
    "apply_passes",
    "discover",
    "exact",
    "materialize",
    "probe_error",
    "probed_channels",
    "rewrite_model",
    "set_convolution",
    "take_over",
]

import importlib
import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vntools.base.errors import DataFault, InternalFault, VntoolsError, printable
from vntools.export.affine import AffineConv, Array, apply, channels_of
from vntools.export.graph import constant, convolution, remove_dead, unique_name

_EXACT = "vntools.exact"  # key of Node.meta: what makes a convolution's value before the cast
_PROBED_CHANNELS = 64


@dataclass(frozen=True)
class Rewrite:
    """A rewrite that happened.

    Attributes:
        rule: name of the pass.
        nodes: names of the nodes that went in.
        node: name of the node that came out.
        parameters_before, parameters_after: weights and biases of the region.
        macs_before, macs_after: multiply-accumulates of the region for one sample; None where
            the spatial size is dynamic.
        error: largest difference between the region before and after, evaluated in float64 on
            seeded random inputs, relative to the largest output; 0 where the rewrite moves no
            arithmetic.
    """

    rule: str
    nodes: tuple[str, ...]
    node: str
    parameters_before: int = 0
    parameters_after: int = 0
    macs_before: int | None = 0
    macs_after: int | None = 0
    error: float = 0.0

    def to_record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self) | {"nodes": list(self.nodes)}


@dataclass(frozen=True)
class Skip:
    """A rewrite that came near and did not happen, and why."""

    rule: str
    node: str
    reason: str

    def to_record(self) -> dict[str, str]:
        """As JSON."""
        return asdict(self)


Record = Rewrite | Skip


class GraphPass(ABC):
    """A rewriting of the top-level graph, in place.

    A pass is a frozen dataclass in a file of ``export/passes`` named as it is (``merge-convs``
    in ``merge_convs.py``); its options are fields. Applied twice it changes nothing more; it
    keeps names, shapes and types of the graph's inputs and outputs, never changes a shared
    constant in place, and never reaches across a second reader, a graph output, a subgraph or
    a foreign domain.
    """

    name: ClassVar[str]
    after: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def rewrite(self, graph: ir.Graph) -> Iterator[Record]:
        """Rewrite ``graph`` and yield what happened and what nearly did."""


@cache
def discover() -> tuple[GraphPass, ...]:
    """Every pass of ``export/passes``, default options, in an order that honours ``after``.

    Among those that may run next the first by name runs next, so the order is one and the
    same.
    """
    import vntools.export.passes as package

    found: dict[str, GraphPass] = {}
    for module in pkgutil.iter_modules(package.__path__):
        if module.name.startswith("_"):
            continue
        loaded = importlib.import_module(f"{package.__name__}.{module.name}")
        for _, cls in inspect.getmembers(loaded, inspect.isclass):
            if issubclass(cls, GraphPass) and cls.__module__ == loaded.__name__:
                if cls.name != module.name.replace("_", "-") or cls.name in found:
                    raise InternalFault(
                        "pass.name", f"pass {cls.name!r} does not stand in a file of its name"
                    )
                found[cls.name] = cls()
    ordered: list[GraphPass] = []
    while len(ordered) < len(found):
        done = {p.name for p in ordered}
        ready = sorted(n for n, p in found.items() if n not in done and done >= set(p.after))
        if not ready:
            raise InternalFault("pass.order", "the passes' order has a cycle or names no pass")
        ordered.append(found[ready[0]])
    return tuple(ordered)


@dataclass
class Applied:
    """What a run of passes did to a graph."""

    rewrites: list[Rewrite] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)


def apply_passes(
    graph: ir.Graph,
    passes: Sequence[GraphPass] | None = None,
    *,
    advance: Callable[[str], None] = lambda _: None,
) -> Applied:
    """Run ``passes`` (default: all that are found) over ``graph`` in place.

    Weights are cast to the graph's type at the end, once. ``advance`` is called with each
    record's rule as it comes.

    Raises:
        InternalFault: ``pass.failed``; the message names the pass and those that ran before
            it.
        DataFault: ``merge.overflow``, where a merged weight leaves the range of its type.
    """
    applied, done = Applied(), []
    for p in discover() if passes is None else passes:
        try:
            for record in p.rewrite(graph):
                if isinstance(record, Rewrite):
                    applied.rewrites.append(record)
                else:
                    applied.skips.append(record)
                advance(record.rule)
        except VntoolsError:
            raise
        except Exception as e:
            raise InternalFault(
                "pass.failed",
                f"pass {p.name} failed after {', '.join(done) or 'no other'}: "
                f"{type(e).__name__}: {printable(str(e))[:120]}",
                hint="rerun with --debug and report it",
            ) from e
        done.append(p.name)
    for node in graph:
        materialize(node)
        node.meta.pop(_EXACT, None)
    return applied


def rewrite_model(
    data: bytes, passes: Sequence[GraphPass] | None = None
) -> tuple[bytes, Applied]:
    """An ONNX model through ``passes``; the very ``data`` where nothing is rewritten.

    Raises:
        DataFault: as :func:`vntools.export.load.parse_onnx`.
        VntoolsError: as :func:`apply_passes`.
    """
    from vntools.export.load import parse_onnx

    model = parse_onnx(data)
    applied = apply_passes(model.graph, passes)
    if not applied.rewrites:
        return data, applied
    return ir.serde.serialize_model(model).SerializeToString(deterministic=True), applied


def exact(node: ir.Node, channels: NDArray[np.intp] | None = None) -> Callable[[], AffineConv]:
    """What makes a Conv node's float64 value: as an earlier rewrite left it, before any cast.

    The value outlives the node's own weights, and is made anew at each call. With ``channels``
    it has only those output channels (as :func:`vntools.export.affine.channels_of`).

    Raises:
        Refused: as :func:`vntools.export.graph.convolution`.
    """
    thunk: Callable[[], AffineConv] | None = node.meta.get(_EXACT)
    if thunk is not None:
        return thunk if channels is None else lambda: channels_of(thunk(), channels)
    shape, weight = convolution(node, weights=False), constant(node.inputs[1])
    assert weight is not None
    if channels is not None:
        shape = channels_of(shape, channels)
        weight = weight[channels] if shape.groups == 1 else weight
    return lambda: replace(shape, weight=weight.astype(np.float64))


def set_convolution(node: ir.Node, exact: Callable[[], AffineConv], shape: AffineConv) -> None:
    """Give a Conv node new weights, bias and attributes: those of what ``exact`` makes.

    ``shape`` has its geometry and bias. The float64 value is made anew whenever it is needed,
    so that a later rewrite starts from it and not from a rounded copy, and is held for one
    node at a time; the one cast is made when the passes are done, or by :func:`materialize`.
    New initializers are made: others may share the old ones.
    """
    graph, weight = node.graph, node.inputs[1]
    assert isinstance(graph, ir.Graph)
    assert weight is not None
    dtype = ir.DataType.DOUBLE if weight.dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT
    stem = (weight.name or node.name or "conv").removesuffix(".weight")
    old = tuple(node.inputs[1:])
    node.resize_inputs(1)
    for value in old:
        remove_dead(graph, value)
    node.resize_inputs(3)
    weight_tensor = ir.LazyTensor(
        lambda: ir.tensor(_cast(exact().weight, dtype, node)),
        dtype,
        ir.Shape(shape.weight.shape),
    )
    bias_tensor = ir.tensor(_cast(shape.bias, dtype, node))
    for i, (part, tensor) in enumerate(
        (("weight", weight_tensor), ("bias", bias_tensor)), start=1
    ):
        value = ir.Value(
            name=unique_name(graph, f"{stem}.{part}"),
            shape=ir.Shape(tensor.shape.numpy()),
            type=ir.TensorType(dtype),
            const_value=tensor,
        )
        graph.register_initializer(value)
        node.replace_input_with(i, value)
    node.meta[_EXACT] = exact
    node.attributes.pop("auto_pad", None)
    for name, numbers in (
        ("kernel_shape", shape.kernel),
        ("strides", shape.strides),
        ("pads", shape.pads),
        ("dilations", shape.dilations),
    ):
        node.attributes[name] = ir.AttrInt64s(name, numbers)
    node.attributes["group"] = ir.AttrInt64("group", shape.groups)


def materialize(node: ir.Node, value: AffineConv | None = None) -> None:
    """Cast what :func:`set_convolution` gave a Conv node, now; ``value`` if it is at hand.

    Raises:
        DataFault: ``merge.overflow``, where a weight leaves the range of the graph's type.
    """
    thunk: Callable[[], AffineConv] | None = node.meta.get(_EXACT)
    weight = node.inputs[1] if thunk is not None else None
    if thunk is None or weight is None or not isinstance(weight.const_value, ir.LazyTensor):
        return
    array = (value or thunk()).weight
    weight.const_value = ir.tensor(
        _cast(array, weight.const_value.dtype, node), name=weight.name
    )


def _cast(array: Array, dtype: ir.DataType, node: ir.Node) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(array, dtype.numpy())
    ends = narrow.min(initial=0), narrow.max(initial=0)
    if not np.isfinite(ends).all() and np.isfinite(array).all():
        raise DataFault(
            "merge.overflow", f"the merged weights of {node.name} overflow {dtype.name}"
        )
    return narrow


def probed_channels(conv: AffineConv, name: str) -> NDArray[np.intp]:
    """Output channels of an ungrouped convolution to evaluate: all, or 64 drawn by ``name``.

    They do not depend on one another, so a part of them is a fair sample; a grouped
    convolution is evaluated whole.
    """
    if conv.groups > 1 or conv.out_channels <= _PROBED_CHANNELS:
        return np.arange(conv.out_channels)
    drawn = _seeded(name).choice(conv.out_channels, _PROBED_CHANNELS, replace=False)
    return np.sort(drawn)


def probe_error(before: Callable[[Array], Array], after: AffineConv, *, name: str) -> float:
    """Largest difference between a region and its replacement on a seeded random input.

    The input is as small as the kernel allows with two places along each axis, so every tap
    and both borders take part. The difference is relative to the largest output.
    """
    size = [
        max(after.reach(a) + 1 - sum(after.pad(a)), 1) + after.strides[a]
        for a in range(after.axes)
    ]
    x = _seeded(name).standard_normal((1, after.in_channels, *size))
    want, got = before(x), apply(after, x)
    if want.shape != got.shape:
        return float("inf")
    scale = float(np.abs(want).max(initial=0.0))
    error = float(np.abs(want - got).max(initial=0.0))
    return error if scale == 0 else error / scale


def _seeded(name: str) -> np.random.Generator:
    return np.random.default_rng(list(name.encode("utf-8", "replace")))


def take_over(value: ir.Value, old: ir.Value) -> None:
    """Let ``value`` stand wherever ``old`` did, under its name, as a graph output too."""
    name = old.name
    value.shape, value.type = old.shape, old.type
    old.replace_all_uses_with(value, replace_graph_outputs=True)
    old.name, value.name = None, name
