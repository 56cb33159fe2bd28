"""The demo's table, as text."""

from __future__ import annotations

__all__ = ["demo_text"]

from typing import TYPE_CHECKING

from vntools.report.table import table

if TYPE_CHECKING:
    from vntools.demo import DemoResult


def demo_text(r: DemoResult) -> str:
    """Accuracy, operators, sizes, latency and kernels, training against exported graph."""
    before, after = r.merged.before, r.merged.after
    was, now = r.latency.contenders
    relation = now.relation
    ratio = ""
    if relation is not None:
        ratio = f"{relation.ratio:.2f} [{relation.low:.2f}, {relation.high:.2f}]"
    kernels = [str(len(p.sidecar["kernels"])) for p in (r.training_plan, r.merged_plan)]
    plans = [f"{p.sidecar['bytes'] / 1e6:.2f}" for p in (r.training_plan, r.merged_plan)]
    top1 = r.top1_percent
    rows = [
        ("", "checkpoint", "exported", "exported, FP16"),
        (f"top-1 on {r.images} test images, %", *(f"{top1[k]:.2f}" for k in top1)),
        (
            "answers as the checkpoint, %",
            "",
            *(f"{100 * a:.2f}" for a in r.agreement.values()),
        ),
        ("", "", "", ""),
        ("", "training graph", "exported graph", "ratio [95 %]"),
        ("nodes", str(before.nodes), str(after.nodes), ""),
        ("Conv", str(before.ops["Conv"]), str(after.ops["Conv"]), ""),
        ("parameters", f"{before.parameters:,}", f"{after.parameters:,}", ""),
        ("MACs", f"{before.macs:,}", f"{after.macs:,}", ""),
        (
            "ONNX, MB",
            f"{r.training.size_bytes / 1e6:.2f}",
            f"{r.merged.size_bytes / 1e6:.2f}",
            "",
        ),
        ("CPU latency, batch 1, ms", f"{was.median_ms:.3f}", f"{now.median_ms:.3f}", ratio),
        ("FP16 plan, MB", *plans, ""),
        ("kernels in the FP16 plan", *kernels, ""),
    ]
    lines = [table(rows, align="<>>>")]
    s = r.merged_plan.sidecar
    details = was.details
    lines += [
        "",
        (
            f"latency: ONNX Runtime {details['version']}, {details['threads']} threads, "
            f"interleaved rounds; {relation.verdict if relation else ''}"
        ),
        f"plans: {s['flavour']} {s['version']}, built ahead of time, not run here",
    ]
    return "\n".join(lines)
