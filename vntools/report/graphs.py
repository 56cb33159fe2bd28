"""Graphs before and after, as text."""

from __future__ import annotations

__all__ = ["exported_text", "op_table"]

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vntools.report.table import table

if TYPE_CHECKING:
    from vntools.export.graph import GraphStats
    from vntools.export.rewrite import Rewrite
    from vntools.pipeline.export import Exported

_MOST_REWRITES = 50


def op_table(before: GraphStats, after: GraphStats) -> str:
    """Each operator's count before and after, then nodes, parameters, MACs and size."""
    names = sorted(before.ops.keys() | after.ops.keys())
    rows = [(n, str(before.ops.get(n, 0)), str(after.ops.get(n, 0))) for n in names]
    rows += [
        ("nodes", str(before.nodes), str(after.nodes)),
        ("parameters", f"{before.parameters:,}", f"{after.parameters:,}"),
        ("MACs", _count(before.macs), _count(after.macs)),
        ("weights, MB", f"{before.size_bytes / 1e6:.1f}", f"{after.size_bytes / 1e6:.1f}"),
    ]
    return table([("", "before", "after"), *rows], align="<>>")


def exported_text(done: Exported) -> str:
    """What an export or a simplification did: rewrites, op table, proof, file."""
    lines = [_rewrite_line(r) for r in done.rewrites[:_MOST_REWRITES]]
    if more := done.rewrites[_MOST_REWRITES:]:
        lines.append(f"  and {len(more):,} more (--json lists all)")
    lines += _skip_lines(done)
    lines += ["", op_table(done.before, done.after), ""]
    lines.append(_proof_line(done))
    if done.pytorch is not None:
        lines.append(
            f"relative L2 difference to PyTorch's float32 {done.pytorch.relative_l2:.2e}"
        )
    lines.append(
        f"wrote {done.out} ({done.size_bytes / 1e6:.1f} MB) in {done.seconds['total']:.1f} s"
    )
    return "\n".join(lines)


def _proof_line(done: Exported) -> str:
    c, tolerance = done.comparison, done.tolerance
    if c is None or tolerance is None:
        worst = max((r.error for r in done.rewrites), default=0.0)
        return f"not run as a whole; rewritten regions differ by {worst:.2e} at most"
    against = (
        "itself in ONNX Runtime" if done.verified_by == "ONNX Runtime alone" else "float64"
    )
    top1 = (
        f", top-1 equal on {c.top1_agreement:.0%} of {c.samples} seeded inputs"
        if c.samples
        else ""
    )
    return (
        f"relative L2 error against {against} {c.relative_l2:.2e} "
        f"(allowed {tolerance.max_relative_l2:.2e}), largest difference {c.max_abs:.2e}{top1}"
    )


def _rewrite_line(r: Rewrite) -> str:
    moved = f"  {r.rule}: {' + '.join(r.nodes)}" + (f" -> {r.node}" if r.node else "")
    if not r.parameters_before:
        return moved
    return (
        f"{moved}; parameters {r.parameters_before:,} -> {r.parameters_after:,}, "
        f"MACs {_count(r.macs_before)} -> {_count(r.macs_after)}, error {r.error:.1e}"
    )


def _skip_lines(done: Exported) -> Sequence[str]:
    by_rule: dict[str, list[str]] = {}
    for s in done.skips:
        by_rule.setdefault(s.rule, []).append(f"{s.node}: {s.reason}")
    return [
        f"  {rule}: {len(reasons)} left alone, the first {reasons[0]}"
        for rule, reasons in by_rule.items()
    ]


def _count(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"
