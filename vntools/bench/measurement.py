"""What is asked of a measurement, and what it gave."""

from __future__ import annotations

__all__ = ["BenchOptions", "Measurement", "Samples"]

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vntools.base.errors import UsageFault
from vntools.bench.statistics import Summary, noise_percent
from vntools.bench.stopping import Ended, StoppingRule
from vntools.runtime.nvml import Telemetry, slowdown

_ENQUEUE_BOUND = 0.8  # of the median compute time
_UNSTABLE_PERCENT = 2.5
_MOST = 1e9  # of a time: 30 years of seconds


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
        spin: ask again and again whether a query has ended; else sleep until woken.
        streams: queries that run at the same time, each on memory of its own.
        max_noise_percent: measure on until the median is known to this; see
            :func:`vntools.bench.statistics.noise_percent`.
        time_limit_s: but no longer than this.
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
    spin: bool = True
    streams: int = 1
    max_noise_percent: float | None = None
    time_limit_s: float = 60
    seed: int = 0

    def __post_init__(self) -> None:
        rules = {
            f"a time or the noise is {_MOST:g} or more, or no number": all(
                x < _MOST
                for x in (
                    self.warm_up_ms,
                    self.duration_s,
                    self.time_limit_s,
                    self.max_noise_percent or 0,
                )
            ),
            "the warm-up is below 0 ms": self.warm_up_ms >= 0,
            "the duration is below 0 s": self.duration_s >= 0,
            "there must be at least one iteration": self.iterations >= 1,
            "the batch is below 1": self.batch >= 1,
            "a percentile lies outside 0 to 100": all(0 <= p <= 100 for p in self.percentiles),
            "there must be at least one stream": self.streams >= 1,
            "the noise must be above 0 %": self.max_noise_percent is None
            or self.max_noise_percent > 0,
            "the time limit is below the duration": self.max_noise_percent is None
            or self.time_limit_s >= self.duration_s,
        }
        for wrong, holds in rules.items():
            if not holds:
                raise UsageFault("bench.options", wrong)

    @property
    def rule(self) -> StoppingRule:
        """When to end."""
        noise, limit_s = self.max_noise_percent, self.time_limit_s
        return StoppingRule(
            self.duration_s,
            self.iterations,
            noise,
            limit_s if noise is not None else math.inf,
        )


@dataclass(frozen=True)
class Samples:
    """Milliseconds of every query, in the order of the queries.

    Attributes:
        enqueue_at: when the call began, on the host's clock, since the first run of queries.
        enqueue: length of the call.
        at: when its first copy or else its computing began, on the clock of its stream.
        h2d: length of the copies to the GPU; 0 without transfers.
        compute: length of the computing.
        d2h: length of the copies from the GPU; 0 without transfers.
    """

    enqueue_at: NDArray[np.float64]
    enqueue: NDArray[np.float64]
    at: NDArray[np.float64]
    h2d: NDArray[np.float64]
    compute: NDArray[np.float64]
    d2h: NDArray[np.float64]

    @property
    def latency(self) -> NDArray[np.float64]:
        """H2D + compute + D2H."""
        return self.h2d + self.compute + self.d2h

    def where(self, chosen: NDArray[np.bool_]) -> Samples:
        """Some of them."""
        return Samples(*(column[chosen] for column in self._columns()))

    def shifted(self, by_ms: float) -> Samples:
        """The same queries on a clock that began ``by_ms`` earlier."""
        return replace(self, enqueue_at=self.enqueue_at + by_ms, at=self.at + by_ms)

    @staticmethod
    def joined(parts: Iterable[Samples]) -> Samples:
        """The queries of several streams, by the time they were enqueued."""
        columns = [np.concatenate(c) for c in zip(*(p._columns() for p in parts), strict=True)]
        order = np.argsort(columns[0], kind="stable")
        return Samples(*(column[order] for column in columns))

    def to_record(self) -> dict[str, list[float]]:
        """JSON-ready, every query."""
        return {f"{f.name}_ms": getattr(self, f.name).tolist() for f in fields(self)}

    def _columns(self) -> list[NDArray[np.float64]]:
        return [getattr(self, f.name) for f in fields(self)]


@dataclass(frozen=True)
class Measurement:
    """What one run of queries gave.

    Attributes:
        backend: of the runner.
        details: of the runner.
        on_gpu: whether compute times lie between events on a GPU.
        options: what was asked for.
        samples: every query after the warm-up.
        throttled: which of them are set aside; see :func:`vntools.bench.measure.throttled`.
        walltime_s: from the first of them to the end of the last, without the pauses in which
            the stopping rule looked.
        ended: what ended the measurement.
        telemetry: the GPU meanwhile.
        environment: versions and host.
    """

    backend: str
    details: dict[str, Any]
    on_gpu: bool
    options: BenchOptions
    samples: Samples
    throttled: NDArray[np.bool_]
    walltime_s: float
    ended: Ended
    telemetry: Telemetry
    environment: dict[str, Any]

    @property
    def counted(self) -> Samples:
        """The queries that were not set aside; every row but the throughput is of these."""
        return self.samples.where(~self.throttled) if self.throttled.any() else self.samples

    @property
    def latency_ms(self) -> NDArray[np.float64]:
        """H2D + compute + D2H of every query that counts."""
        return self.counted.latency

    @property
    def throughput_qps(self) -> float:
        """Queries a second of wall time, throttled or not."""
        return self.samples.compute.size / self.walltime_s

    @property
    def images_per_s(self) -> float:
        """Throughput times batch."""
        return self.throughput_qps * self.options.batch

    @property
    def noise_percent(self) -> float:
        """See :func:`vntools.bench.statistics.noise_percent`; infinite below six queries."""
        return noise_percent(self.latency_ms)

    def summary(self, samples_ms: NDArray[np.float64]) -> Summary:
        """The row of one quantity, with the percentiles asked for."""
        return Summary.of(samples_ms, self.options.percentiles)

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
                "spin wait" if options.spin else "blocking wait",
                "transfers included, exposed" if options.transfers else "no data transfers",
            ]
        if self.on_gpu or options.streams > 1:
            each = " each" if options.streams > 1 else ""
            streams = f"{options.streams} stream{'s' * (options.streams > 1)}"
            parts.append(f"{streams}, 1 query ahead{each}" if self.on_gpu else streams)
        parts.append(f"warm-up {options.warm_up_ms:g} ms")
        parts.append(f"at least {options.duration_s:g} s and {options.iterations} queries")
        if options.max_noise_percent is not None:
            parts.append(
                f"until noise below {options.max_noise_percent:g} % "
                f"or {options.time_limit_s:g} s"
            )
        return ", ".join(parts)

    def warnings(self) -> tuple[str, ...]:
        """What makes the figures mean less than they seem to: trtexec's conditions."""
        found = self._gpu_warnings() if self.on_gpu else []
        if self.options.streams > 1:
            found.append(
                "the latencies of several streams hold time in which other streams worked; "
                "the throughput is what counts"
            )
        if self.ended is Ended.TIME_LIMIT:
            found.append(
                f"the time limit came before the noise was low enough: "
                f"{self.noise_percent:.2g} %, not {self.options.max_noise_percent:g} %"
            )
        cov_percent = self.summary(self.counted.compute).cov_percent
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
        reasons = {text for r in self.telemetry.readings for text in slowdown(r)}
        if reasons:
            aside = int(np.count_nonzero(self.throttled))
            found.append(
                f"the GPU was throttled ({', '.join(sorted(reasons))}); "
                + (
                    f"{aside} of {self.throttled.size} queries are set aside"
                    if aside
                    else "too often to set it aside, so the figures are of a throttled GPU"
                )
            )
        graph = str(self.details.get("cuda_graph", ""))
        if graph.startswith("not captured"):
            found.append(f"there is no CUDA graph; {graph}")
        compute_ms = float(np.median(self.counted.compute))
        if np.median(self.counted.enqueue) > _ENQUEUE_BOUND * compute_ms:
            found.append(
                "enqueueing takes nearly as long as the GPU computes, so the throughput may "
                "be the host's and not the GPU's; a CUDA graph or a larger batch helps"
            )
        for samples, way in ((self.counted.h2d, "to"), (self.counted.d2h, "from")):
            if np.median(samples) >= compute_ms:
                found.append(
                    f"the copies {way} the GPU take as long as it computes, so they may bound "
                    "the throughput; measure without transfers"
                )
        return found

    def to_record(self, *, samples: bool = False) -> dict[str, Any]:
        """The summary as one JSON document; with ``samples`` every query too."""
        s = self.counted
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
            **{name: self.summary(values).to_record() for name, values in times.items()},
            "walltime_s": self.walltime_s,
            "n_queries": self.samples.compute.size,
            "n_throttled": int(np.count_nonzero(self.throttled)),
            "noise_pct": self.noise_percent if math.isfinite(self.noise_percent) else None,
            "ended": str(self.ended),
            "settings": self._settings(),
            "engine": {"backend": self.backend, **_without_gpu(self.details)},
            "gpu": self.details.get("gpu"),
            "telemetry": self.telemetry.to_record(),
            "environment": self.environment,
            "protocol": self.protocol(),
            "warnings": list(self.warnings()),
            **(self._every_query() if samples else {}),
        }

    def _every_query(self) -> dict[str, Any]:
        columns = self.samples.to_record()
        latency_ms = self.samples.latency.tolist()
        return {
            "samples": {
                **columns,
                "latency_ms": latency_ms,
                "throttled": self.throttled.tolist(),
            }
        }

    def _settings(self) -> dict[str, Any]:
        options = self.options
        return {
            "cuda_graph": self.details.get("cuda_graph") == "captured",
            "spin": self.on_gpu and options.spin,
            "transfers": options.transfers,
            "streams": options.streams,
            "overlap": 1 if self.on_gpu else 0,
            "warm_up_ms": options.warm_up_ms,
            "duration_s": options.duration_s,
            "iterations": options.iterations,
            "max_noise_pct": options.max_noise_percent,
            "time_limit_s": options.time_limit_s,
            "seed": options.seed,
        }


def _without_gpu(details: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in details.items() if name != "gpu"}
