"""What is asked of a measurement, and what it gave."""

from __future__ import annotations

__all__ = ["BenchOptions", "Measurement", "Samples"]

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vntools.base.errors import UsageFault
from vntools.bench.statistics import Summary

_ENQUEUE_BOUND = 0.8  # of the median compute time
_UNSTABLE_PERCENT = 2.5


@dataclass(frozen=True)
class BenchOptions:
    """How to measure; the defaults are those of trtexec 11.

    Attributes:
        warm_up_ms: queries of this time are not counted.
        duration_s: least measured time; ``iterations`` must be reached too.
        iterations: least number of queries.
        percentiles: which to report, in percent.
        batch: images in a query.
        transfers: copy inputs and outputs in every query.
        seed: of the random inputs.

    Raises:
        UsageFault: ``bench.options``.
    """

    warm_up_ms: float = 200
    duration_s: float = 3
    iterations: int = 10
    percentiles: tuple[float, ...] = (90, 95, 99)
    batch: int = 1
    transfers: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        rules = {
            "the warm-up is below 0 ms": self.warm_up_ms >= 0,
            "the duration is below 0 s": self.duration_s >= 0,
            "there must be at least one iteration": self.iterations >= 1,
            "the batch is below 1": self.batch >= 1,
            "a percentile lies outside 0 to 100": all(0 <= p <= 100 for p in self.percentiles),
        }
        for wrong, holds in rules.items():
            if not holds:
                raise UsageFault("bench.options", wrong)


@dataclass(frozen=True)
class Samples:
    """Milliseconds of every query, in the order of the queries."""

    h2d: array[float] = field(default_factory=lambda: array("d"))
    compute: array[float] = field(default_factory=lambda: array("d"))
    d2h: array[float] = field(default_factory=lambda: array("d"))
    enqueue: array[float] = field(default_factory=lambda: array("d"))


@dataclass(frozen=True)
class Measurement:
    """What one run of queries gave.

    Attributes:
        backend: of the runner.
        details: of the runner.
        on_gpu: whether compute times lie between events on a GPU.
        options: what was asked for.
        samples: every query after the warm-up.
        walltime_s: from the first of them to the end of the last.
        environment: versions and host.
    """

    backend: str
    details: dict[str, Any]
    on_gpu: bool
    options: BenchOptions
    samples: Samples
    walltime_s: float
    environment: dict[str, Any]

    @property
    def latency_ms(self) -> NDArray[np.float64]:
        """H2D + compute + D2H of every query."""
        s = self.samples
        return np.asarray(s.h2d) + np.asarray(s.compute) + np.asarray(s.d2h)

    @property
    def throughput_qps(self) -> float:
        """Queries a second of wall time."""
        return len(self.samples.compute) / self.walltime_s

    @property
    def images_per_s(self) -> float:
        """Throughput times batch."""
        return self.throughput_qps * self.options.batch

    def summary(self, samples_ms: Sequence[float] | NDArray[np.float64]) -> Summary:
        """The row of one quantity, with the percentiles asked for."""
        return Summary.of(np.asarray(samples_ms).tolist(), self.options.percentiles)

    def protocol(self) -> str:
        """Artifact, device, settings and warm-up in one line; it stands with every result."""
        details, options = self.details, self.options
        gpu = details.get("gpu", {}).get("name")
        parts = [
            f"{self.backend} {details.get('version', '')}".strip(),
            *([f"on {gpu}"] if gpu else []),
            str(details.get("precision", "precision unknown")),
            *([f"{details['threads']} threads"] if "threads" in details else []),
            f"batch {options.batch}",
        ]
        if self.on_gpu:
            parts += [
                f"CUDA graph {details.get('cuda_graph', 'not used')}",
                "spin wait",
                "transfers included, exposed" if options.transfers else "no data transfers",
                "1 stream, 1 query ahead",
            ]
        parts.append(f"warm-up {options.warm_up_ms:g} ms")
        parts.append(f"at least {options.duration_s:g} s and {options.iterations} queries")
        return ", ".join(parts)

    def warnings(self) -> tuple[str, ...]:
        """What makes the figures mean less than they seem to: trtexec's conditions."""
        found = self._gpu_warnings() if self.on_gpu else []
        cov_percent = self.summary(self.samples.compute).cov_percent
        if cov_percent > _UNSTABLE_PERCENT:
            what, how = ("GPU compute", "lock the clocks")
            if not self.on_gpu:
                what, how = ("compute", "end other work")
            found.append(
                f"{what} time is unstable, its coefficient of variation is "
                f"{cov_percent:.1f} %; {how}, or measure longer"
            )
        return tuple(found)

    def _gpu_warnings(self) -> list[str]:
        found: list[str] = []
        graph = str(self.details.get("cuda_graph", ""))
        if graph.startswith("not captured"):
            found.append(f"there is no CUDA graph; {graph}")
        compute_ms = float(np.median(self.samples.compute))
        if np.median(self.samples.enqueue) > _ENQUEUE_BOUND * compute_ms:
            found.append(
                "enqueueing takes nearly as long as the GPU computes, so the throughput may "
                "be the host's and not the GPU's; a CUDA graph or a larger batch helps"
            )
        for samples, way in ((self.samples.h2d, "to"), (self.samples.d2h, "from")):
            if np.median(samples) >= compute_ms:
                found.append(
                    f"the copies {way} the GPU take as long as it computes, so they may bound "
                    "the throughput; measure without transfers"
                )
        return found

    def to_record(self) -> dict[str, Any]:
        """The summary as one JSON document."""
        s = self.samples
        times = {"latency_ms": self.latency_ms}
        if self.on_gpu:
            times |= {"gpu_compute_ms": s.compute, "enqueue_ms": s.enqueue}
            times |= {"h2d_ms": s.h2d, "d2h_ms": s.d2h}
        else:
            times |= {"compute_ms": s.compute}
        return {
            "schema": 1,
            "throughput_qps": self.throughput_qps,
            "images_per_s": self.images_per_s,
            "batch": self.options.batch,
            **{name: self.summary(samples).to_record() for name, samples in times.items()},
            "walltime_s": self.walltime_s,
            "n_queries": len(s.compute),
            "settings": self._settings(),
            "engine": {"backend": self.backend, **_without_gpu(self.details)},
            "gpu": self.details.get("gpu"),
            "environment": self.environment,
            "protocol": self.protocol(),
            "warnings": list(self.warnings()),
        }

    def _settings(self) -> dict[str, Any]:
        options = self.options
        return {
            "cuda_graph": self.details.get("cuda_graph") == "captured",
            "spin": self.on_gpu,
            "transfers": options.transfers,
            "streams": 1,
            "overlap": 1 if self.on_gpu else 0,
            "warm_up_ms": options.warm_up_ms,
            "duration_s": options.duration_s,
            "iterations": options.iterations,
            "seed": options.seed,
        }


def _without_gpu(details: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in details.items() if name != "gpu"}
