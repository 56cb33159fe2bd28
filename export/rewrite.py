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
    "rewrite_model",
    "take_over",
]

import importlib
import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any, ClassVar

import onnx_ir as ir

from vntools.base.errors import InternalFault, VntoolsError, printable


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

    A pass is a frozen dataclass in a file of ``export/passes`` named as it is
    (``collapse-linear`` in ``collapse_linear.py``); its options are fields. Applied twice it
    changes nothing more; it keeps names, shapes and types of the graph's inputs and outputs,
    never changes a shared constant in place, and never reaches across a second reader, a graph
    output, a subgraph or a foreign domain.
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

    ``advance`` is called with each record's rule as it comes.

    Raises:
        InternalFault: ``pass.failed``; the message names the pass and those that ran before
            it.
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


def take_over(value: ir.Value, old: ir.Value) -> None:
    """Let ``value`` stand wherever ``old`` did, under its name, as a graph output too."""
    name = old.name
    value.shape, value.type = old.shape, old.type
    old.replace_all_uses_with(value, replace_graph_outputs=True)
    old.name, value.name = None, name
