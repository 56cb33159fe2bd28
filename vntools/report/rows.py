"""Measurements as lines of text, with the rows of trtexec 11."""

from __future__ import annotations

__all__ = ["layer_rows", "rows", "sweep_rows"]

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vntools.report.limits import floor_lines
from vntools.report.table import table

if TYPE_CHECKING:
    from vntools.bench.limits import Floor
    from vntools.bench.measure import Measurement
    from vntools.bench.statistics import Summary
    from vntools.pipeline.sweep import Measured


def rows(measurement: Measurement, floor: Floor | None = None) -> list[str]:
    """Protocol, performance summary and warnings; on a CPU without the rows of a GPU.

    Args:
        measurement: what was measured.
        floor: what the hardware could do, where it is known.
    """
    m, s = measurement, measurement.counted
    compute = m.summary(s.compute)
    on = "GPU " if m.on_gpu else ""
    times = [("Latency", m.latency_ms)]
    if m.on_gpu:
        times += [("Enqueue Time", s.enqueue), ("H2D Latency", s.h2d)]
    times += [(f"{on}Compute Time", s.compute)]
    if m.on_gpu:
        times += [("D2H Latency", s.d2h)]
    total_s = compute.mean_ms * len(s.compute) / 1000  # ms -> s
    latency = m.summary(m.latency_ms)
    return [
        m.protocol(),
        "=== Performance summary ===",
        f"Throughput: {m.throughput_qps:.6g} qps",
        f"Images/s: {m.images_per_s:.6g}",
        *(f"{name}: {_figures(m.summary(samples))}" for name, samples in times),
        f"Total Host Walltime: {m.walltime_s:.6g} s",
        f"Total {on}Compute Time: {total_s:.6g} s",
        f"Median: {latency.median_ms:.6g} ms{_interval(latency)}",
        f"Ended: {m.ended}, {m.samples.compute.size} queries",
        *([] if floor is None else floor_lines(floor, compute.median_ms)),
        *_telemetry(m.telemetry.to_record()),
        *(f"warning: {text}" for text in m.warnings()),
    ]


def sweep_rows(done: Sequence[Measured]) -> list[str]:
    """A table with a row for each batch, under the protocol of the first."""
    measurements = [one.measurement for one in done]
    percents = measurements[0].options.percentiles
    times = ["median ms", "noise", *(f"p{p:g} ms" for p in percents)]
    body = [["batch", *times, "qps", "images/s", "queries", "over floor"]]
    for m, over in ((one.measurement, one.over_floor) for one in done):
        latency = m.summary(m.latency_ms)
        noise = f"{m.noise_percent:.2g} %" if math.isfinite(m.noise_percent) else "unknown"
        body.append(
            [
                str(m.options.batch),
                f"{latency.median_ms:.6g}",
                noise,
                *(f"{value:.6g}" for value in latency.percentiles_ms.values()),
                f"{m.throughput_qps:.6g}",
                f"{m.images_per_s:.6g}",
                str(m.samples.compute.size),
                "" if over is None else f"{over:.3g}",
            ]
        )
    warned = (
        f"warning: batch {m.options.batch}: {w}" for m in measurements for w in m.warnings()
    )
    return [
        measurements[0].protocol(),
        table(body, align=">" * len(body[0])),
        *warned,
    ]


def layer_rows(layers: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of layers, the slowest first."""
    total_ms = sum(layer["ms"] for layer in layers) or 1.0
    body = [["layer", "median ms", "share", "over floor"]]
    for layer in sorted(layers, key=lambda one: -one["ms"]):
        floor_ms = layer["floor_ms"]
        over = f"{layer['ms'] / floor_ms:.3g}" if floor_ms else ""
        body.append(
            [layer["name"][-60:], f"{layer['ms']:.4g}", f"{layer['ms'] / total_ms:.1%}", over]
        )
    return ["=== Layers ===", table(body, align="<>>>")]


def _figures(summary: Summary) -> str:
    figures = [
        ("min", summary.min_ms),
        ("max", summary.max_ms),
        ("mean", summary.mean_ms),
        ("median", summary.median_ms),
        *((f"percentile({p:g}%)", value) for p, value in summary.percentiles_ms.items()),
    ]
    return ", ".join(f"{name} = {value:.6g} ms" for name, value in figures)


def _interval(summary: Summary) -> str:
    interval = summary.median_interval_ms
    if interval is None:
        return ", too few queries for an interval"
    return f", 95 % interval {interval[0]:.6g} to {interval[1]:.6g} ms"


def _telemetry(record: dict[str, Any]) -> list[str]:
    """The GPU while it was measured; nothing on a CPU."""
    if "throttle" not in record:
        absent = str(record["nvml"])
        return [f"GPU while measuring: NVML {absent}"] if absent.startswith("absent") else []
    units = {"sm_mhz": "SM {} MHz", "power_w": "{} W", "temperature_c": "{} °C"}
    told = [
        text.format(f"{record[name]['min']:.0f} to {record[name]['max']:.0f}")
        for name, text in units.items()
        if record[name]
    ]
    throttled = ", ".join(record["throttle"])
    return [
        "GPU while measuring: "
        + ", ".join([*told, f"throttled: {throttled}" if throttled else "not throttled"])
    ]
