"""A comparison side by side, as text."""

from __future__ import annotations

__all__ = ["comparison_text", "relations_text"]

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vntools.base.errors import printable
from vntools.report.table import table

if TYPE_CHECKING:
    from vntools.bench.compare import Comparison, Contender, Relation


def comparison_text(done: Comparison) -> str:
    """Who ran how, then a row for each: median latency, ratio to the first, verdict."""
    first = done.contenders[0]
    rounds = len(first.rounds_ms)
    queries = sum(len(turn) for c in done.contenders for turn in c.rounds_ms)
    how = (
        f"batch {done.options.batch}, in one process, {rounds} rounds in random order, "
        f"{queries} queries, {_transfers(done)}same within {done.same:.2%}; {done.ended}"
    )
    medians = {c.name: c.median_ms for c in done.contenders}
    relations = {c.name: c.relation for c in done.contenders if c.relation is not None}
    return "\n".join(
        [
            *(f"{printable(c.name)}: {_protocol(c)}" for c in done.contenders),
            how,
            "",
            relations_text(medians, relations),
            *_warnings(done),
        ]
    )


def relations_text(medians_ms: Mapping[str, float], relations: Mapping[str, Relation]) -> str:
    """A row for each name: its median, and how it relates to the first."""
    first, *others = medians_ms
    rows = [
        ("", "median ms", "ratio", "95 % interval", f"than {printable(first)}"),
        (printable(first), f"{medians_ms[first]:.4g}", "1", "", ""),
    ]
    for name in others:
        found = relations[name]
        rows.append(
            (
                printable(name),
                f"{medians_ms[name]:.4g}",
                f"{found.ratio:.3f}",
                f"{found.low:.3f} to {found.high:.3f}",
                str(found.verdict),
            )
        )
    return table(rows, align="<>>><")


def _warnings(done: Comparison) -> list[str]:
    if not done.throttled:
        return []
    return [f"warning: the GPU was throttled at times: {', '.join(done.throttled)}"]


def _transfers(done: Comparison) -> str:
    return "transfers included, " if done.options.transfers else ""


def _protocol(c: Contender) -> str:
    d = c.details
    parts = [
        f"{c.backend} {d.get('version', '')}".strip(),
        str(d.get("precision", "precision unknown")),
        *([f"{d['threads']} threads"] if "threads" in d else []),
        *([f"CUDA graph {d['cuda_graph']}"] if "cuda_graph" in d else []),
        *([f"on {d['gpu']['name']}"] if "gpu" in d else []),
    ]
    return ", ".join(parts)
