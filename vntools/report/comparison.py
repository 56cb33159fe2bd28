"""A comparison side by side, as text."""

from __future__ import annotations

__all__ = ["comparison_text", "how_measured", "protocol", "relations_text", "warnings_of"]

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vntools.base.errors import printable
from vntools.report.table import table

if TYPE_CHECKING:
    from vntools.bench.compare import Comparison, Contender, Relation


def comparison_text(done: Comparison) -> str:
    """Who ran how, then a row for each: median latency, ratio to the first, verdict."""
    medians = {c.name: c.median_ms for c in done.contenders}
    relations = {c.name: c.relation for c in done.contenders if c.relation is not None}
    return "\n".join(
        [
            *(f"{printable(c.name)}: {protocol(c)}" for c in done.contenders),
            how_measured(done),
            "",
            relations_text(medians, relations),
            *warnings_of(done),
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


def how_measured(done: Comparison) -> str:
    """The settings that all had, and what ended it."""
    rounds = len(done.contenders[0].rounds_ms)
    queries = sum(len(turn) for c in done.contenders for turn in c.rounds_ms)
    return (
        f"batch {done.options.batch}, in one process, {rounds} rounds in random order, "
        f"{queries} queries, {_on_gpu(done)}same within {done.same:.2%}; {done.ended}"
    )


def warnings_of(done: Comparison) -> list[str]:
    """What makes the figures mean less."""
    if not done.throttled:
        return []
    return [f"warning: the GPU was throttled at times: {', '.join(done.throttled)}"]


def _on_gpu(done: Comparison) -> str:
    if "gpu" not in done.contenders[0].details:
        return ""
    wait = "spin" if done.options.spin else "blocking"
    transfers = "transfers included" if done.options.transfers else "no data transfers"
    return f"{wait} wait, {transfers}, "


def protocol(c: Contender) -> str:
    """Who runs it, and how."""
    d = c.details
    parts = [
        f"{c.backend} {d.get('version', '')}".strip(),
        str(d.get("precision", "precision unknown")),
        *([f"{d['threads']} threads"] if "threads" in d else []),
        *([f"CUDA graph {d['cuda_graph']}"] if "cuda_graph" in d else []),
        *([f"on {d['gpu']['name']}"] if "gpu" in d else []),
    ]
    return ", ".join(parts)
