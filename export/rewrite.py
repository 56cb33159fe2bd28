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
    "probe_error",
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
from vntools.export import affine as algebra
from vntools.export.affine import AffineConv
from vntools.export.graph import constant, convolution, remove_dead, unique_name

_AFFINE = "vntools.affine"  # key of Node.meta: a convolution's exact value, before the cast


@dataclass(frozen=True)
class Rewrite:
    """A rewrite that happened.

    Attributes:
        rule: name of the pass.
        nodes: names of the nodes that went in.
        node: name of the node that came out.
        parameters_before, parameters_after: weights and biases of the region.
        macs_before, macs_after: multiply-accumulates of the region for one sample; None where the
            spatial size is dynamic.
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

    A pass is a frozen dataclass in a file of ``export/passes`` named as it is (``merge-convs`` in
    ``merge_convs.py``); its options are fields. Applied twice it changes nothing more; it keeps
    names, shapes and types of the graph's inputs and outputs, never changes a shared constant in
    place, and never reaches across a second reader, a graph output, a subgraph or a foreign domain.
    """

    name: ClassVar[str]
    after: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def rewrite(self, graph: ir.Graph) -> Iterator[Record]:
        """Rewrite ``graph`` and yield what happened and what nearly did."""


@cache
def discover() -> tuple[GraphPass, ...]:
    """Every pass of ``export/passes`` with its default options, in an order that honours ``after``.

    Among those that may run next the first by name runs next, so the order is one and the same.
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

    ``advance`` is called with each record's rule as it comes.

    Raises:
        InternalFault: ``pass.failed``; the message names the pass and those that ran before it.
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
        node.meta.pop(_AFFINE, None)
    return applied


def exact(node: ir.Node) -> Callable[[], AffineConv]:
    """What makes a Conv node's float64 value: as an earlier rewrite left it, before any cast.

    The value outlives the node's own weights, and is made anew at each call.

    Raises:
        Refused: as :func:`vntools.export.graph.convolution`.
    """
    thunk: Callable[[], AffineConv] | None = node.meta.get(_AFFINE)
    if thunk is not None:
        return thunk
    shape, weight = convolution(node, weights=False), constant(node.inputs[1])
    return lambda: replace(shape, weight=np.asarray(weight, np.float64))


def set_convolution(node: ir.Node, exact: Callable[[], AffineConv], like: AffineConv) -> None:
    """Give a Conv node new weights, bias and attributes.

    ``like`` is cast to the graph's type, once. ``exact`` makes it anew in float64, so that a later
    rewrite starts from it and not from the rounded copy, while float64 weights are held for one
    node at a time. New initializers are made: others may share the old ones.
    """
    graph, weight = node.graph, node.inputs[1]
    assert isinstance(graph, ir.Graph) and weight is not None
    dtype = ir.DataType.DOUBLE if weight.dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT
    stem = (weight.name or node.name or "conv").removesuffix(".weight")
    old = tuple(node.inputs[1:])
    node.resize_inputs(1)
    for value in old:
        remove_dead(graph, value)
    node.resize_inputs(3)
    for i, (part, array) in enumerate((("weight", like.weight), ("bias", like.bias)), start=1):
        tensor = ir.tensor(_cast(array, dtype, node))
        value = ir.Value(
            name=unique_name(graph, f"{stem}.{part}"),
            shape=tensor.shape,
            type=ir.TensorType(dtype),
            const_value=tensor,
        )
        graph.register_initializer(value)
        node.replace_input_with(i, value)
    node.meta[_AFFINE] = exact
    node.attributes.pop("auto_pad", None)
    for name, numbers in (
        ("kernel_shape", like.kernel),
        ("strides", like.strides),
        ("pads", like.pads),
        ("dilations", like.dilations),
    ):
        node.attributes[name] = ir.AttrInt64s(name, numbers)
    node.attributes["group"] = ir.AttrInt64("group", like.groups)


def _cast(array: algebra.Array, dtype: ir.DataType, node: ir.Node) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(array, dtype.numpy())
    if not np.isfinite(narrow).all() and np.isfinite(array).all():
        raise DataFault("merge.overflow", f"the merged weights of {node.name} overflow {dtype.name}")
    return narrow


def probe_error(
    before: Callable[[algebra.Array], algebra.Array], after: AffineConv, *, name: str
) -> float:
    """Largest difference between a region and its replacement on a seeded random input.

    The input is as small as the kernel allows with two places along each axis, so every tap and
    both borders take part. Relative to the largest output.
    """
    seed = np.frombuffer(name.encode("utf-8", "replace")[:64].ljust(4, b"\0"), np.uint8)
    rng = np.random.default_rng(seed)
    size = [
        max(after.reach(a) + 1 - sum(after.pad(a)), 1) + after.strides[a] for a in range(after.axes)
    ]
    x = rng.standard_normal((1, after.in_channels, *size))
    want, got = before(x), algebra.apply(after, x)
    if want.shape != got.shape:
        return float("inf")
    scale = float(np.abs(want).max(initial=0.0))
    error = float(np.abs(want - got).max(initial=0.0))
    return error if scale == 0 else error / scale


def take_over(value: ir.Value, old: ir.Value) -> None:
    """Let ``value`` stand wherever ``old`` did, under its name, as a graph output too."""
    name = old.name
    value.shape, value.type = old.shape, old.type
    old.replace_all_uses_with(value, replace_graph_outputs=True)
    old.name, value.name = None, name
