"""Measuring one runner, with the quantities and the protocol of trtexec 11.

A query is one batch. GPU Compute Time lies between two events around the enqueue call; H2D and
D2H Latency between events around the copies, which follow each other in one stream (trtexec
calls that exposed DMA), and are 0 without transfers; Latency is the sum of the three; Enqueue
Time is the host's clock around the call. One query is enqueued ahead, so that a GPU need not
wait for the host. On a CPU there are no copies, nothing runs ahead, Latency is Compute Time.

With several streams every stream has its own query ahead: on a GPU one thread feeds them in
turn, on a CPU each has a thread of its own.

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
    "throttled",
]

import time
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Barrier
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vntools.base.errors import UsageFault
from vntools.base.provenance import host, versions
from vntools.bench.measurement import BenchOptions, Measurement, Samples
from vntools.bench.stopping import Ended
from vntools.runtime.base import ORIGIN, Runner, TensorSpec
from vntools.runtime.nvml import Reading, Telemetry, slowdown, watch

_MARKS_OF_A_QUERY = 4  # start of H2D, start and end of compute, end of D2H
_COLUMNS = len(Samples.__dataclass_fields__)
_BLOCK = array("d", bytes(8 * _COLUMNS * 8192))  # what a table of samples grows by
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
    """Starts queries on prepared runners and collects their times, 48 bytes a query.

    Args:
        runners: open and prepared; more than one are streams, fed in turn.
        transfers: copy inputs and outputs in every query.
        spin: how to wait; see :class:`vntools.runtime.base.Clock`.

    Attributes:
        begin_ns: when the first run began, by ``time.perf_counter_ns``.
    """

    def __init__(self, *runners: Runner, transfers: bool, spin: bool = True) -> None:
        self.begin_ns = 0
        self._runners = runners
        self._transfers = transfers
        self._table = _BLOCK[:]
        self._filled = 0
        for runner in runners:
            runner.clock.spin = spin
        depth = 2 if runners[0].clock.on_gpu else 1
        self._slots = [
            (runner, runner.clock, ahead * _MARKS_OF_A_QUERY)
            for ahead in range(depth)
            for runner in runners
        ]
        self._begun_ns = [0] * len(self._slots)
        self._enqueued_ns = [0] * len(self._slots)
        self._run_ms = 0.0

    @property
    def samples(self) -> Samples:
        """A copy of what was collected so far."""
        rows = np.frombuffer(self._table, count=self._filled).reshape(-1, _COLUMNS)
        return Samples(*(np.array(column) for column in rows.T))

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
        for runner in self._runners:
            runner.clock.mark(ORIGIN)
        begin = clock()
        self.begin_ns = self.begin_ns or begin
        self._run_ms = (begin - self.begin_ns) * 1e-6  # ns -> ms
        end = begin + int(duration_s * 1e9)  # s -> ns
        next_tick = begin + _TICK_NS
        depth = len(self._slots)
        for slot in range(depth):
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
            slot = (slot + 1) % depth
        for ahead in range(1, depth):
            self._collect((slot + ahead) % depth)
        return (clock() - begin) * 1e-9  # ns -> s

    def _start(self, slot: int) -> None:
        """Enqueue one query between its marks."""
        runner, clock, mark = self._slots[slot]
        if self._transfers:
            clock.mark(mark)
            runner.upload()
        clock.mark(mark + 1)
        self._begun_ns[slot] = time.perf_counter_ns()
        runner.enqueue()
        self._enqueued_ns[slot] = time.perf_counter_ns()
        clock.mark(mark + 2)
        if self._transfers:
            runner.download()
            clock.mark(mark + 3)

    def _collect(self, slot: int) -> None:
        """Wait for one query and keep its times."""
        _, clock, mark = self._slots[slot]
        moved = self._transfers
        clock.wait(mark + (3 if moved else 2))
        elapsed, table, at = clock.elapsed_ms, self._table, self._filled
        if at == len(table):
            table.extend(_BLOCK)
        begun = self._begun_ns[slot]
        table[at] = (begun - self.begin_ns) * 1e-6  # ns -> ms
        table[at + 1] = (self._enqueued_ns[slot] - begun) * 1e-6
        table[at + 2] = self._run_ms + elapsed(ORIGIN, mark if moved else mark + 1)
        table[at + 3] = elapsed(mark, mark + 1) if moved else 0.0
        table[at + 4] = elapsed(mark + 1, mark + 2)
        table[at + 5] = elapsed(mark + 2, mark + 3) if moved else 0.0
        self._filled = at + _COLUMNS


class _Threads:
    """Queries on several CPU runners at once, a thread each; used as :class:`Queries` are."""

    def __init__(self, runners: Sequence[Runner]) -> None:
        self._streams = [Queries(runner, transfers=False) for runner in runners]

    @property
    def begin_ns(self) -> int:
        """When the first stream began."""
        return min(q.begin_ns for q in self._streams)

    @property
    def samples(self) -> Samples:
        """Those of all streams, by the time they were enqueued."""
        parts = [q.samples.shifted((q.begin_ns - self.begin_ns) * 1e-6) for q in self._streams]
        return Samples.joined(parts)

    def run(
        self, *, duration_s: float, at_least: int, tick: Callable[[float], None] | None = None
    ) -> float:
        """See :meth:`Queries.run`; every stream needs the duration and the queries."""
        barrier = Barrier(len(self._streams))

        def run(stream: int) -> tuple[float, float]:
            barrier.wait()
            begin = time.perf_counter()
            self._streams[stream].run(
                duration_s=duration_s, at_least=at_least, tick=None if stream else tick
            )
            return begin, time.perf_counter()

        with ThreadPoolExecutor(len(self._streams)) as pool:
            times = list(pool.map(run, range(len(self._streams))))
        return max(end for _, end in times) - min(begin for begin, _ in times)


def start(runner: Runner, options: BenchOptions) -> None:
    """Prepare a runner with random inputs, look at its outputs once, and warm it up.

    Raises:
        UsageFault: ``bench.batch``, ``bench.shape``, or ``bench.transfers`` on a CPU.
        CheckFailed: ``verify.nonfinite``.
    """
    if options.transfers and not runner.clock.on_gpu:
        raise UsageFault("bench.transfers", "a CPU has no data transfers to include")
    runner.run(random_feeds(runner.inputs, options.batch, seed=options.seed))
    warm_up = Queries(runner, transfers=options.transfers, spin=options.spin)
    warm_up.run(duration_s=options.warm_up_ms / 1000, at_least=1)


def measure(
    runner: Runner, options: BenchOptions, *, tick: Callable[[float], None] | None = None
) -> Measurement:
    """Measure an open runner.

    Args:
        runner: open; it is prepared here, and its siblings where more streams are asked for.
        options: how.
        tick: progress; see :meth:`Queries.run`.

    Raises:
        UsageFault: ``bench.batch``, ``bench.shape``, ``bench.transfers``, ``bench.streams``,
            ``plan.profile``.
        CheckFailed: ``verify.nonfinite``: an output holds NaN or infinity.
    """
    on_gpu = runner.clock.on_gpu
    with ExitStack() as stack:
        runners = [runner]
        start(runner, options)
        for _ in range(1, options.streams):
            runners.append(runner.sibling())
            stack.push(runners[-1])
            start(runners[-1], options)
        queries = (
            _Threads(runners)
            if options.streams > 1 and not on_gpu
            else Queries(*runners, transfers=options.transfers, spin=options.spin)
        )
        with watch(on_gpu=on_gpu) as telemetry:
            walltime_s, ended = _until_ended(queries, options, telemetry, tick)
    samples = queries.samples
    facts = {"gpu": telemetry.facts} if telemetry.facts else {}
    return Measurement(
        backend=runner.backend,
        details=dict(runner.details),
        on_gpu=on_gpu,
        options=options,
        samples=samples,
        throttled=throttled(samples, queries.begin_ns, telemetry.readings),
        walltime_s=walltime_s,
        ended=ended,
        telemetry=telemetry,
        environment={**environment(), **facts},
    )


def _until_ended(
    queries: Queries | _Threads,
    options: BenchOptions,
    telemetry: Telemetry,
    tick: Callable[[float], None] | None,
) -> tuple[float, Ended]:
    """Query until the stopping rule says so; seconds of querying, and what ended it.

    The rule is asked between two runs of queries, so that it does not disturb them.
    """
    rule = options.rule
    elapsed_s, look_s, missing = 0.0, rule.duration_s, rule.iterations
    while True:
        elapsed_s += queries.run(
            duration_s=look_s - elapsed_s, at_least=max(1, missing), tick=tick
        )
        samples = queries.samples
        slow = throttled(samples, queries.begin_ns, telemetry.readings)
        ended = rule.ended(samples.latency[~slow], elapsed_s)
        if ended is None and elapsed_s >= rule.time_limit_s:
            ended = Ended.TIME_LIMIT
        if ended is not None:
            return elapsed_s, ended
        look_s, missing, tick = rule.next_look_s(elapsed_s), 0, None


def throttled(
    samples: Samples, begin_ns: int, readings: Sequence[Reading]
) -> NDArray[np.bool_]:
    """Which queries to set aside: those enqueued next to a reading that says throttled.

    A query between two readings counts as throttled if either does. Where more than half
    would go, none does: then the throttled GPU is what is measured.
    """
    slow = np.array([bool(slowdown(r)) for r in readings])
    if not slow.any():
        return np.zeros(samples.compute.size, dtype=np.bool_)
    at_ms = (np.array([r.at_ns for r in readings]) - begin_ns) * 1e-6  # ns -> ms
    after = np.searchsorted(at_ms, samples.enqueue_at)
    last = slow.size - 1
    found = slow[np.clip(after - 1, 0, last)] | slow[np.clip(after, 0, last)]
    return found if 2 * np.count_nonzero(found) <= found.size else np.zeros_like(found)


def environment() -> dict[str, Any]:
    """Versions and host, as they stand with a result."""
    packages = ("numpy", "torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "pycuda")
    return {"versions": versions(*packages), "host": host()}
