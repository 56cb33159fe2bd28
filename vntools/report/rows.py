"""A measurement as lines of text, with the rows of trtexec 11."""

from __future__ import annotations

__all__ = ["rows"]

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vntools.bench.measure import Measurement
    from vntools.bench.statistics import Summary


def rows(measurement: Measurement) -> list[str]:
    """Protocol, performance summary and warnings; on a CPU without the rows of a GPU."""
    m, s = measurement, measurement.samples
    compute = m.summary(s.compute)
    on = "GPU " if m.on_gpu else ""
    times = [("Latency", m.latency_ms)]
    if m.on_gpu:
        times += [("Enqueue Time", s.enqueue), ("H2D Latency", s.h2d)]
    times += [(f"{on}Compute Time", s.compute)]
    if m.on_gpu:
        times += [("D2H Latency", s.d2h)]
    total_s = compute.mean_ms * len(s.compute) / 1000  # ms -> s
    return [
        m.protocol(),
        "=== Performance summary ===",
        f"Throughput: {m.throughput_qps:.6g} qps",
        f"Images/s: {m.images_per_s:.6g}",
        *(f"{name}: {_figures(m.summary(samples))}" for name, samples in times),
        f"Total Host Walltime: {m.walltime_s:.6g} s",
        f"Total {on}Compute Time: {total_s:.6g} s",
        *(f"warning: {text}" for text in m.warnings()),
    ]


def _figures(summary: Summary) -> str:
    figures = [
        ("min", summary.min_ms),
        ("max", summary.max_ms),
        ("mean", summary.mean_ms),
        ("median", summary.median_ms),
        *((f"percentile({p:g}%)", value) for p, value in summary.percentiles_ms.items()),
    ]
    return ", ".join(f"{name} = {value:.6g} ms" for name, value in figures)
