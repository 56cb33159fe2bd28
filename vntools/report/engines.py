"""A built engine, as text."""

from __future__ import annotations

__all__ = ["engine_text", "int8_text"]

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from vntools.report.table import table

if TYPE_CHECKING:
    from vntools.pipeline.engine import EngineBuilt
    from vntools.pipeline.quantize import Int8Report


def engine_text(done: EngineBuilt) -> str:
    """What was built: backend, precision, profile, kernels, proof, files."""
    s = done.sidecar
    tf32 = " (TF32 allowed)" if s["precision"] == "fp32" else ""
    named = ", ".join(f"{c // 10}.{c % 10}" for c in s["compute_capabilities"])
    taken, given = _types(s["inputs"]), _types(s["outputs"])
    lines = [
        f"{s['flavour']} {s['version']}, compute capability {named or '8.0 and later'}",
        f"precision {s['precision']}{tf32}, inputs {taken}, outputs {given}",
    ]
    for name, shapes in s["profile"].items():
        span = ", ".join(f"{k} {'x'.join(map(str, v))}" for k, v in shapes.items())
        lines.append(f"{name}: {span}")
    types = Counter(k["type"] for k in s["kernels"])
    counted = ", ".join(f"{n} {t}" for t, n in types.most_common())
    lines.append(f"{len(s['kernels'])} kernels: {counted}")
    asked = Counter(c["asked"] for c in s["convolutions"])
    built = ", ".join(f"{n} in {name}" for name, n in asked.most_common())
    lines.append(f"convolutions built as asked: {built}")
    if done.int8 is not None:
        lines.append(int8_text(done.int8))
    if done.comparison is not None and done.tolerance is not None:
        c = done.comparison
        lines.append(
            f"relative L2 difference to float32 {c.relative_l2:.2e} (allowed "
            f"{done.tolerance.max_relative_l2:.0e}), top-1 equal on {c.top1_agreement:.0%} of "
            f"{c.samples} {'seeded inputs' if done.int8 is None else 'calibration images'} "
            "(ONNX Runtime)"
        )
    lines.append(
        f"wrote {done.out} ({s['bytes'] / 1e6:.1f} MB) in {done.seconds['total']:.1f} s"
    )
    return "\n".join(lines)


def int8_text(report: Int8Report) -> str:
    """Each layer's ranges and errors, what equalisation did, and what the budget tried."""
    header = ("layer", "", "built", "weight range", "weight error", "error alone")
    rows = [
        (
            layer.name,
            layer.role,
            "int8" if layer.int8 else "float",
            f"{layer.range_ratio:.3g}",
            f"{layer.weight_error:.1e}",
            "" if layer.error is None else f"{layer.error:.1e}",
        )
        for layer in report.layers
    ]
    held = "read from the cache" if report.cached else "calibrated"
    lines = [
        f"ranges ({report.method}) of {report.images} images, {held}",
        table([header, *rows], align="<<<>>>"),
    ]
    if report.equalized is not None:
        before, after = report.equalized
        what = (
            "not equalised"
            if report.alpha is None
            else f"equalised across layers, alpha {report.alpha:g}"
        )
        lines.append(f"{what}: relative L2 {before:.2e} without, {after:.2e} with")
    drop = "top-1 lost" if report.labelled else "top-1 differs"
    trade = [("INT8 layers", "of MACs", drop, "relative L2", "images")]
    trade += [
        (
            str(step.layers),
            "?" if step.mac_share is None else f"{step.mac_share:.1%}",
            "" if step.drop is None else f"{step.drop:.2f} points",
            f"{step.relative_l2:.2e}",
            str(step.images),
        )
        for step in report.steps
    ]
    lines.append(table(trade, align=">>>>>"))
    return "\n".join(lines)


def _types(tensors: Iterable[Mapping[str, str]]) -> str:
    """Their types, each once."""
    return ", ".join(dict.fromkeys(t["dtype"] for t in tensors))
