"""A built engine, as text."""

from __future__ import annotations

__all__ = ["engine_text"]

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vntools.pipeline.engine import EngineBuilt


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
    lines.append(
        f"all {len(s['convolutions'])} convolutions were built in {s['precision']}, as asked"
    )
    if done.comparison is not None and done.tolerance is not None:
        c = done.comparison
        lines.append(
            f"relative L2 difference to float32 {c.relative_l2:.2e} (allowed "
            f"{done.tolerance.max_relative_l2:.0e}), top-1 equal on {c.top1_agreement:.0%} of "
            f"{c.samples} seeded inputs (ONNX Runtime)"
        )
    lines.append(
        f"wrote {done.out} ({s['bytes'] / 1e6:.1f} MB) in {done.seconds['total']:.1f} s"
    )
    return "\n".join(lines)


def _types(tensors: Iterable[Mapping[str, str]]) -> str:
    """Their types, each once."""
    return ", ".join(dict.fromkeys(t["dtype"] for t in tensors))
