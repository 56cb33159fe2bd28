"""Measuring one runner, with the quantities and the protocol of trtexec 11.

A query is one batch. GPU Compute Time lies between two events around the enqueue call; H2D and
D2H Latency between events around the copies, which follow each other in one stream (trtexec
calls that exposed DMA), and are 0 without transfers; Latency is the sum of the three; Enqueue
Time is the host's clock around the call. One query is enqueued ahead, so that a GPU need not
wait for the host. On a CPU there are no copies, nothing runs ahead, Latency is Compute Time.

Source: TensorRT 11.1, samples/common/sampleInference.cpp and sampleReporting.cpp.
"""

from __future__ import annotations

__all__ = [
    "BenchOptions",
    "Measurement",
    "Queries",
    "environment",
    "measure",
    "random_feeds",
    "start",
]

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vntools.base.errors import UsageFault
from vntools.base.provenance import host, versions
from vntools.bench.measurement import BenchOptions, Measurement, Samples
from vntools.runtime.base import MARKS, Runner, TensorSpec

_MARKS_OF_A_QUERY = MARKS // 2  # start of H2D, start and end of compute, end of D2H
_TICK_NS = 100_000_000  # between two calls of a progress callback


def random_feeds(
    inputs: Sequence[TensorSpec], batch: int, *, seed: int
) -> dict[str, NDArray[Any]]:
    """Inputs as trtexec makes them: uniform in [-1, 1]; integers in [-128, 127]; booleans.

    Raises:
        UsageFault: ``bench.batch``: the artifact has another, fixed batch; ``bench.shape``: an
            axis other than the batch is dynamic.
    """
    rng = np.random.default_rng(seed)
    feeds: dict[str, NDArray[Any]] = {}
    for spec in inputs:
        first, *rest = spec.shape or (1,)
        if isinstance(first, int) and first != batch and spec.shape:
            raise UsageFault(
                "bench.batch",
                f"input {spec.name!r} is fixed at batch {first}, not {batch}",
                hint=f"measure it with --batch {first}",
            )
        if not all(isinstance(extent, int) for extent in rest):
            raise UsageFault("bench.shape", f"more than the batch is dynamic in {spec}")
        shape = (batch, *map(int, rest)) if spec.shape else ()
        dtype = np.dtype(spec.dtype)
        if dtype.kind == "f":
            values = rng.uniform(-1, 1, shape)
        elif dtype.kind == "b":
            values = rng.integers(0, 2, shape)
        else:
            values = rng.integers(*((0, 256) if dtype.kind == "u" else (-128, 128)), shape)
        feeds[spec.name] = np.asarray(values).astype(dtype)
    return feeds


class Queries:
    """Starts queries on a prepared runner and collects their times.

    Args:
        runner: open and prepared.
        transfers: copy inputs and outputs in every query.

    Attributes:
        samples: one of each quantity a query; nothing else is kept.
    """

    def __init__(self, runner: Runner, *, transfers: bool) -> None:
        self.samples = Samples()
        self._runner = runner
        self._clock = runner.clock
        self._transfers = transfers
        self._depth = 2 if runner.clock.on_gpu else 1
        self._enqueue_ms = [0.0] * self._depth

    def run(
        self, *, duration_s: float, at_least: int, tick: Callable[[float], None] | None = None
    ) -> float:
        """Query until ``duration_s`` have passed and ``at_least`` queries have ended.

        Args:
            duration_s: least time.
            at_least: least number of queries.
            tick: called about ten times a second with the part of the time that has passed.

        Returns:
            Seconds from the start of the first query to the end of the last.
        """
        clock = time.perf_counter_ns
        begin = clock()
        end = begin + int(duration_s * 1e9)  # s -> ns
        next_tick = begin + _TICK_NS
        for slot in range(self._depth):
            self._start(slot)
        count, slot = 0, 0
        while True:
            self._collect(slot)
            count += 1
            now = clock()
            if count >= at_least and now >= end:
                break
            if tick is not None and now >= next_tick:
                tick(min(1.0, (now - begin) / max(1, end - begin)))
                next_tick = now + _TICK_NS
            self._start(slot)
            slot = (slot + 1) % self._depth
        for ahead in range(1, self._depth):
            self._collect((slot + ahead) % self._depth)
        return (clock() - begin) * 1e-9  # ns -> s

    def _start(self, slot: int) -> None:
        """Enqueue one query between its marks."""
        runner, clock = self._runner, self._clock
        mark = slot * _MARKS_OF_A_QUERY
        if self._transfers:
            clock.mark(mark)
            runner.upload()
        clock.mark(mark + 1)
        begin = time.perf_counter_ns()
        runner.enqueue()
        self._enqueue_ms[slot] = (time.perf_counter_ns() - begin) * 1e-6  # ns -> ms
        clock.mark(mark + 2)
        if self._transfers:
            runner.download()
            clock.mark(mark + 3)

    def _collect(self, slot: int) -> None:
        """Wait for one query and keep its times."""
        clock, samples = self._clock, self.samples
        mark = slot * _MARKS_OF_A_QUERY
        clock.wait(mark + (3 if self._transfers else 2))
        samples.h2d.append(clock.elapsed_ms(mark, mark + 1) if self._transfers else 0.0)
        samples.compute.append(clock.elapsed_ms(mark + 1, mark + 2))
        samples.d2h.append(clock.elapsed_ms(mark + 2, mark + 3) if self._transfers else 0.0)
        samples.enqueue.append(self._enqueue_ms[slot])


def start(runner: Runner, options: BenchOptions) -> None:
    """Prepare a runner with random inputs, look at its outputs once, and warm it up.

    Raises:
        UsageFault: ``bench.batch``, ``bench.shape``, or ``bench.transfers`` on a CPU.
        CheckFailed: ``verify.nonfinite``.
    """
    if options.transfers and not runner.clock.on_gpu:
        raise UsageFault("bench.transfers", "a CPU has no data transfers to include")
    runner.run(random_feeds(runner.inputs, options.batch, seed=options.seed))
    warm_up = Queries(runner, transfers=options.transfers)
    warm_up.run(duration_s=options.warm_up_ms / 1000, at_least=1)


def measure(
    runner: Runner, options: BenchOptions, *, tick: Callable[[float], None] | None = None
) -> Measurement:
    """Measure an open runner.

    Args:
        runner: open; it is prepared here.
        options: how.
        tick: progress; see :meth:`Queries.run`.

    Raises:
        UsageFault: ``bench.batch``, ``bench.shape``, ``bench.transfers``, ``plan.profile``.
        CheckFailed: ``verify.nonfinite``: an output holds NaN or infinity.
    """
    start(runner, options)
    queries = Queries(runner, transfers=options.transfers)
    walltime_s = queries.run(
        duration_s=options.duration_s, at_least=options.iterations, tick=tick
    )
    return Measurement(
        backend=runner.backend,
        details=dict(runner.details),
        on_gpu=runner.clock.on_gpu,
        options=options,
        samples=queries.samples,
        walltime_s=walltime_s,
        environment=environment(),
    )


def environment() -> dict[str, Any]:
    """Versions and host, as they stand with a result."""
    packages = ("numpy", "torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "pycuda")
    return {"versions": versions(*packages), "host": host()}
