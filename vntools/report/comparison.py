"""A comparison side by side, as text."""

from __future__ import annotations

__all__ = ["comparison_text"]

from typing import TYPE_CHECKING

from vntools.base.errors import printable
from vntools.report.table import table

if TYPE_CHECKING:
    from vntools.bench.compare import Comparison, Contender


def comparison_text(done: Comparison) -> str:
    """Who ran how, then a row for each: median latency, ratio to the first, verdict."""
    first = done.contenders[0]
    rounds = len(first.rounds_ms)
    queries = sum(len(turn) for c in done.contenders for turn in c.rounds_ms)
    how = (
        f"batch {done.options.batch}, in one process, {rounds} rounds in random order, "
        f"{queries} queries, {_transfers(done)}same within {done.same:.2%}; {done.ended}"
    )
    rows = [("", "median ms", "ratio", "95 % interval", f"than {printable(first.name)}")]
    rows += [_row(c) for c in done.contenders]
    return "\n".join(
        [
            *(f"{printable(c.name)}: {_protocol(c)}" for c in done.contenders),
            how,
            "",
            table(rows, align="<>>><"),
            *_warnings(done),
        ]
    )


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


def _row(c: Contender) -> tuple[str, str, str, str, str]:
    median, found = f"{c.median_ms:.4g}", c.relation
    if found is None:
        return (printable(c.name), median, "1", "", "")
    interval = f"{found.low:.3f} to {found.high:.3f}"
    return (printable(c.name), median, f"{found.ratio:.3f}", interval, str(found.verdict))
