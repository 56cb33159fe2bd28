"""One runner measured: definitions, the loop, warnings, record and rows."""

from __future__ import annotations

import json
import time
import tracemalloc
from typing import Any, Self

import numpy as np
import pytest
import torch

from vntools.base.errors import CheckFailed, InternalFault, UsageFault
from vntools.bench.measure import (
    BenchOptions,
    Measurement,
    Queries,
    _Threads,
    measure,
    random_feeds,
)
from vntools.bench.measurement import Samples
from vntools.bench.stopping import Ended
from vntools.report.rows import rows
from vntools.runtime.base import HostClock, Runner, TensorSpec
from vntools.runtime.torch_runner import TorchRunner

QUICK: dict[str, Any] = {"warm_up_ms": 0, "duration_s": 0, "iterations": 20}


def taken(runner: Any, **options: Any) -> Measurement:
    with runner:
        return measure(runner, BenchOptions(**(QUICK | options)))


# --- quantities


def test_latency_is_the_sum_and_every_sample_is_kept(scripted: Any):
    script = [1.0, 2.0, 4.0]
    m = taken(scripted(script, on_gpu=True, h2d_ms=0.25, d2h_ms=0.5), transfers=True)
    n = len(m.samples.compute)
    assert n >= 20
    assert len(m.samples.enqueue) == len(m.samples.h2d) == len(m.samples.d2h) == n
    # Four queries come before: one of run(), the rest of the warm-up; the script repeats.
    start = script.index(m.samples.compute[0])
    assert list(m.samples.compute) == [script[(start + i) % 3] for i in range(n)]
    assert m.latency_ms.tolist() == [c + 0.75 for c in m.samples.compute]


def test_without_transfers_copies_take_no_time_and_are_not_made(scripted: Any):
    runner = scripted([1.0], on_gpu=True, h2d_ms=9, d2h_ms=9)
    m = taken(runner)
    assert set(m.samples.h2d) == set(m.samples.d2h) == {0.0}
    assert m.latency_ms.tolist() == list(m.samples.compute)
    assert "upload" not in runner.calls
    assert runner.calls.count("download") == 1  # that of run(), before anything is measured


def test_throughput_is_queries_over_wall_time(scripted: Any):
    m = taken(scripted([1.0]), batch=4)
    assert m.throughput_qps == len(m.samples.compute) / m.walltime_s
    assert m.images_per_s == 4 * m.throughput_qps


# --- the loop


def test_the_loop_needs_the_iterations(scripted: Any):
    assert len(taken(scripted([1.0]), iterations=33).samples.compute) == 33


def test_the_loop_needs_the_duration(scripted: Any):
    m = taken(scripted([1.0]), iterations=1, duration_s=0.1)
    assert m.walltime_s >= 0.1
    assert len(m.samples.compute) > 1


def test_the_warm_up_is_by_time_and_not_counted(scripted: Any):
    runner = scripted([1.0])
    begin = time.perf_counter()
    m = taken(runner, iterations=5, warm_up_ms=100)
    assert time.perf_counter() - begin >= 0.1
    assert len(m.samples.compute) == 5
    assert runner.enqueued > 6


def test_on_a_gpu_one_query_is_ahead(scripted: Any):
    runner = scripted([1.0], on_gpu=True)
    Queries(runner, transfers=False).run(duration_s=0, at_least=3)
    steps = [c for c in runner.calls if c == "enqueue" or c.startswith("wait")]
    assert steps == [
        "enqueue",
        "enqueue",
        "wait 2",
        "enqueue",
        "wait 6",
        "enqueue",
        "wait 2",
        "wait 6",
    ]


def test_on_a_cpu_nothing_is_ahead(scripted: Any):
    runner = scripted([1.0])
    Queries(runner, transfers=False).run(duration_s=0, at_least=2)
    assert runner.calls[0] == "mark 8"
    assert runner.calls[1:] == ["mark 1", "enqueue", "mark 2", "wait 2"] * 2


def test_transfers_lie_outside_the_marks_of_compute(scripted: Any):
    runner = scripted([1.0], on_gpu=True)
    Queries(runner, transfers=True).run(duration_s=0, at_least=1)
    one = ["mark 0", "upload", "mark 1", "enqueue", "mark 2", "download", "mark 3"]
    assert runner.calls[1:8] == one
    assert runner.calls[15] == "wait 3"


def test_progress_rises_to_at_most_one(scripted: Any):
    seen: list[float] = []
    with scripted([1.0]) as runner:
        measure(runner, BenchOptions(0, 0.35, 1), tick=seen.append)
    assert 1 <= len(seen) <= 4
    assert seen == sorted(seen)
    assert all(0 < part <= 1 for part in seen)


def grown_by(work: Any) -> int:
    """Bytes that were held at once, more than before."""
    tracemalloc.start()
    work()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_a_query_allocates_nothing(scripted: Any):
    with scripted([1.0]) as runner:
        runner.enqueue = lambda: None
        runner.clock.mark = runner.clock.wait = lambda slot: None
        runner.clock.elapsed_ms = lambda start, end: 1.0
        queries = Queries(runner, transfers=False)
        queries.run(duration_s=0, at_least=10)
        few, many = (
            grown_by(lambda n=n: queries.run(duration_s=0, at_least=n)) for n in (10, 6000)
        )
    assert (
        many - few < 6000 / 10
    )  # bytes; one that is kept for every query would be 16 or more


def test_memory_that_is_kept_would_show():
    kept: list[float] = []
    few, many = (
        grown_by(lambda n=n: kept.extend(float(i) for i in range(n))) for n in (10, 6000)
    )
    assert many - few > 6000 * 24


def test_samples_beyond_a_block_are_kept(scripted: Any):
    runner = scripted([1.0, 2.0, 3.0])
    runner.clock.elapsed_ms = lambda start, end: float(start)
    queries = Queries(runner, transfers=False)
    queries.run(duration_s=0, at_least=20_001)
    s = queries.samples
    assert s.compute.size == 20_001
    assert set(s.compute) == {1.0}
    assert (np.diff(s.enqueue_at) > 0).all()


# --- options and inputs


@pytest.mark.parametrize(
    "wrong",
    [
        {"warm_up_ms": -1},
        {"duration_s": -0.1},
        {"iterations": 0},
        {"batch": 0},
        {"percentiles": (90, 101)},
        {"streams": 0},
        {"max_noise_percent": 0},
        {"max_noise_percent": 1, "time_limit_s": 2},
        {"warm_up_ms": float("inf")},
        {"duration_s": float("nan")},
        {"duration_s": 1e300},
        {"time_limit_s": float("inf")},
        {"max_noise_percent": float("nan")},
    ],
)
def test_options_that_cannot_be_meant(wrong: dict[str, Any]):
    with pytest.raises(UsageFault) as e:
        BenchOptions(**wrong)
    assert e.value.code == "bench.options"


def test_the_defaults_are_trtexecs():
    options = BenchOptions()
    assert (options.warm_up_ms, options.duration_s, options.iterations) == (200, 3, 10)
    assert options.percentiles == (90, 95, 99)
    assert not options.transfers


def test_random_inputs_are_uniform_and_seeded():
    specs = (TensorSpec("x", ("n", 1000), "float32"), TensorSpec("i", ("n",), "int8"))
    feeds = random_feeds(specs, 8, seed=1)
    assert feeds["x"].shape == (8, 1000)
    assert feeds["x"].dtype == np.float32
    assert -1 <= feeds["x"].min() < -0.99
    assert 0.99 < feeds["x"].max() <= 1
    assert abs(feeds["x"].mean()) < 0.03
    assert feeds["i"].dtype == np.int8
    assert np.array_equal(feeds["x"], random_feeds(specs, 8, seed=1)["x"])
    assert not np.array_equal(feeds["x"], random_feeds(specs, 8, seed=2)["x"])


@pytest.mark.parametrize(("dtype", "low", "high"), [("uint8", 0, 255), ("bool", 0, 1)])
def test_random_inputs_of_other_types(dtype: str, low: int, high: int):
    x = random_feeds((TensorSpec("x", (4, 50), dtype),), 4, seed=0)["x"]
    assert str(x.dtype) == dtype
    assert low <= int(x.min()) < 0.9 * high < int(x.max()) <= high


@pytest.mark.parametrize(
    ("shape", "code"),
    [((1, 3), "bench.batch"), (("n", "h"), "bench.shape"), ((2, "h"), "bench.shape")],
)
def test_inputs_that_cannot_be_made(shape: tuple[int | str, ...], code: str):
    with pytest.raises(UsageFault) as e:
        random_feeds((TensorSpec("x", shape, "float32"),), 2, seed=0)
    assert e.value.code == code


def test_a_cpu_has_no_transfers(scripted: Any):
    with pytest.raises(UsageFault) as e:
        taken(scripted([1.0]), transfers=True)
    assert e.value.code == "bench.transfers"


def test_an_output_that_is_not_finite_is_not_measured(scripted: Any):
    with pytest.raises(CheckFailed) as e:
        taken(scripted([1.0], value=np.nan))
    assert e.value.code == "verify.nonfinite"


# --- warnings


def warned(m: Measurement, word: str) -> bool:
    return any(word in text for text in m.warnings())


def with_enqueue(m: Measurement, enqueue_ms: float) -> Measurement:
    m.samples.enqueue[:] = enqueue_ms
    return m


@pytest.mark.parametrize(("enqueue_ms", "bound"), [(0.79, False), (0.8, False), (0.81, True)])
def test_enqueue_bound(scripted: Any, enqueue_ms: float, bound: bool):
    m = with_enqueue(taken(scripted([1.0], on_gpu=True)), enqueue_ms)
    assert warned(m, "enqueueing") is bound


def test_a_cpu_is_never_enqueue_bound(scripted: Any):
    assert not warned(with_enqueue(taken(scripted([1.0])), 5.0), "enqueueing")


@pytest.mark.parametrize(("copy_ms", "bound"), [(0.99, False), (1.0, True), (2.0, True)])
@pytest.mark.parametrize(
    ("side", "word"), [("h2d_ms", "to the GPU"), ("d2h_ms", "from the GPU")]
)
def test_copy_bound(scripted: Any, side: str, word: str, copy_ms: float, bound: bool):
    m = taken(scripted([1.0], on_gpu=True, **{side: copy_ms}), transfers=True)
    assert warned(m, word) is bound
    assert not warned(m, "from the GPU" if side == "h2d_ms" else "to the GPU")


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize(("spread", "unstable"), [(0.024, False), (0.026, True)])
def test_unstable(scripted: Any, on_gpu: bool, spread: float, unstable: bool):
    m = taken(scripted([1 - spread, 1 + spread], on_gpu=on_gpu))
    assert warned(m, "compute time is unstable") is unstable
    assert warned(m, "clocks") is (unstable and on_gpu)


def test_a_missing_graph_is_said(scripted: Any):
    m = taken(scripted([1.0], on_gpu=True, cuda_graph="not captured: CUDA_ERROR_X"))
    assert warned(m, "CUDA_ERROR_X")
    assert not warned(taken(scripted([1.0], on_gpu=True, cuda_graph="captured")), "graph;")


# --- record and rows


def test_the_record_of_a_gpu(scripted: Any):
    runner = scripted(
        [1.0], on_gpu=True, cuda_graph="captured", gpu={"name": "H100"}, sha256="ab"
    )
    record = taken(runner, batch=8).to_record()
    assert json.loads(json.dumps(record)) == record
    assert record["schema"] == 1
    assert record["batch"] == 8
    assert record["n_queries"] >= 20
    rows_of = {"latency_ms", "gpu_compute_ms", "enqueue_ms", "h2d_ms", "d2h_ms"}
    assert rows_of <= set(record)
    for row in rows_of:
        assert list(record[row]) == [
            "min",
            "max",
            "mean",
            "median",
            "p90",
            "p95",
            "p99",
            "cov_pct",
            "median_interval",
        ]
    assert record["settings"]["cuda_graph"]
    assert record["settings"]["spin"]
    assert record["settings"]["overlap"] == 1
    assert record["gpu"] == {"name": "H100"}
    assert record["engine"]["sha256"] == "ab"
    assert record["environment"]["versions"]["vntools"]


def test_the_record_of_a_cpu(scripted: Any):
    record = taken(scripted([1.0], threads=2)).to_record()
    json.dumps(record)
    assert "compute_ms" in record
    assert not {"gpu_compute_ms", "enqueue_ms", "h2d_ms", "d2h_ms"} & set(record)
    assert not record["settings"]["cuda_graph"]
    assert record["settings"]["overlap"] == 0


def test_the_rows_of_a_gpu_are_trtexecs(scripted: Any):
    m = taken(
        scripted([1.0], on_gpu=True, cuda_graph="captured", gpu={"name": "H100"}), batch=2
    )
    lines = rows(m)
    assert lines[0] == (
        "scripted 1.0, on H100, float32, batch 2, CUDA graph captured, spin wait, "
        "no data transfers, 1 stream, 1 query ahead, warm-up 0 ms, at least 0 s and 20 queries"
    )
    names = [line.partition(":")[0] for line in lines[2:]]
    assert names[:9] == [
        "Throughput",
        "Images/s",
        "Latency",
        "Enqueue Time",
        "H2D Latency",
        "GPU Compute Time",
        "D2H Latency",
        "Total Host Walltime",
        "Total GPU Compute Time",
    ]
    assert lines[7] == (
        "GPU Compute Time: min = 1 ms, max = 1 ms, mean = 1 ms, median = 1 ms, "
        "percentile(90%) = 1 ms, percentile(95%) = 1 ms, percentile(99%) = 1 ms"
    )
    assert lines[6].startswith("H2D Latency: min = 0 ms")
    total = len(m.samples.compute) / 1000
    assert f"Total GPU Compute Time: {total:.6g} s" in lines


def test_the_rows_of_a_cpu_know_no_gpu(scripted: Any):
    lines = rows(taken(scripted([1.0, 2.0], threads=2)))
    names = [line.partition(":")[0] for line in lines[2:]]
    assert names == [
        "Throughput",
        "Images/s",
        "Latency",
        "Compute Time",
        "Total Host Walltime",
        "Total Compute Time",
        "Median",
        "Ended",
        "warning",
    ]
    assert "2 threads" in lines[0]
    text = "\n".join(lines)
    assert not any(word in text for word in ("GPU", "CUDA", "H2D", "D2H", "Enqueue"))
    assert lines[4].removeprefix("Latency") == lines[5].removeprefix("Compute Time")


def test_the_protocol_says_that_transfers_are_included(scripted: Any):
    m = taken(scripted([1.0], on_gpu=True), transfers=True)
    assert "transfers included, exposed" in m.protocol()


# --- streams


class Sleeper(Runner):
    """A CPU runner that sleeps, so that streams can overlap; it counts itself and siblings."""

    def __init__(self, rate: float = 0.005) -> None:
        self.backend, self.details = "sleeper", {"precision": "float32", "threads": 1}
        self.inputs = self.outputs = (TensorSpec("x", ("batch",), "float32"),)
        self.clock = HostClock()
        self.rate = rate
        self.closed = 0
        self.children: list[Sleeper] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.closed += 1

    def sibling(self) -> Sleeper:
        self.children.append(Sleeper(self.rate))
        return self.children[-1]

    def prepare(self, feeds: Any) -> None:
        self.x = feeds["x"]

    def enqueue(self) -> None:
        time.sleep(self.rate)

    def results(self) -> dict[str, Any]:
        return {"x": self.x}

    def upload(self) -> None: ...
    def download(self) -> None: ...
    def synchronize(self) -> None: ...


def test_streams_of_a_cpu_run_at_the_same_time():
    with Sleeper() as runner:
        one = measure(runner, BenchOptions(0, 0.3, 5))
        three = measure(runner, BenchOptions(0, 0.3, 5, streams=3))
    assert [c.closed for c in runner.children] == [1, 1]
    assert three.throughput_qps > 2 * one.throughput_qps
    assert three.throughput_qps == three.samples.compute.size / three.walltime_s
    assert (np.diff(three.samples.enqueue_at) >= 0).all()
    assert 0 <= three.samples.enqueue_at[0] < 1
    assert "3 streams" in three.protocol()
    assert warned(three, "several streams")
    assert not warned(one, "several streams")
    assert three.to_record()["settings"]["streams"] == 3


def test_the_clock_of_all_streams_is_that_of_the_first_to_begin():
    one = [np.array([float(i)]) for i in range(6)]
    early, late = Samples(*one), Samples(*one).shifted(0.5)
    both = Samples.joined([late, early])
    assert both.enqueue_at.tolist() == [0, 0.5]
    assert both.at.tolist() == [2, 2.5]
    assert both.compute.tolist() == [4, 4]
    threads = _Threads([Sleeper(0), Sleeper(0)])
    threads.run(duration_s=0, at_least=1)
    first, second = threads._streams
    first.begin_ns = second.begin_ns + 7_000_000
    assert threads.begin_ns == second.begin_ns
    assert threads.samples.enqueue_at.max() == first.samples.enqueue_at[0] + 7


def test_a_stream_that_fails_ends_the_measurement():
    runner = Sleeper()

    def sibling() -> Sleeper:
        other = Sleeper()
        calls = iter(range(5))

        def enqueue() -> None:
            if next(calls) == 4:
                raise InternalFault("runner.failed", "it fell")

        other.enqueue = enqueue
        return other

    runner.sibling = sibling
    with pytest.raises(InternalFault, match="it fell"):
        measure(runner, BenchOptions(0, 0.05, 5, streams=2))


def test_a_backend_with_one_stream_says_so(scripted: Any):
    with pytest.raises(UsageFault) as e:
        taken(scripted([1.0]), streams=2)
    assert e.value.code == "bench.streams"


# --- the end


def test_noise_ends_it_or_the_time_limit_and_it_is_said(scripted: Any):
    quiet = taken(scripted([1.0]), max_noise_percent=1)
    assert quiet.ended is Ended.NOISE
    assert "Ended: noise below the limit" in "\n".join(rows(quiet))
    loud = taken(
        scripted(np.random.default_rng(0).uniform(1, 2, 997).tolist()),
        max_noise_percent=1e-9,
        time_limit_s=0.3,
        duration_s=0.05,
    )
    assert loud.ended is Ended.TIME_LIMIT
    assert 0.3 <= loud.walltime_s < 1
    assert warned(loud, "time limit")
    assert "until noise below 1e-09 % or 0.3 s" in loud.protocol()
    assert loud.to_record()["ended"] == "time limit reached"
    assert taken(scripted([1.0])).ended is Ended.DURATION


def test_times_go_on_over_the_pauses_in_which_the_rule_looks():
    with Sleeper(0.001) as runner:
        m = measure(runner, BenchOptions(0, 0.05, 5, max_noise_percent=1e-9, time_limit_s=0.2))
    assert (np.diff(m.samples.enqueue_at) > 0).all()
    assert (np.diff(m.samples.at) > 0).all()
    assert np.abs(m.samples.at - m.samples.enqueue_at).max() < 20


def test_the_samples_are_in_the_record_where_asked_for(scripted: Any):
    m = taken(scripted([1.0, 2.0]))
    assert "samples" not in m.to_record()
    held = json.loads(json.dumps(m.to_record(samples=True)))["samples"]
    assert held["latency_ms"] == m.samples.latency.tolist()
    assert len(held["throttled"]) == m.samples.compute.size


@pytest.mark.parametrize(("spin", "said"), [(True, "spin wait"), (False, "blocking wait")])
def test_the_protocol_says_how_the_host_waits(scripted: Any, spin: bool, said: str):
    runner = scripted([1.0], on_gpu=True)
    m = taken(runner, spin=spin)
    assert said in m.protocol()
    assert runner.clock.spin is spin
    assert m.to_record()["settings"]["spin"] is spin


# --- for real


class Sleep(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.002)
        return x


def test_a_real_runner_is_timed():
    m = taken(TorchRunner(Sleep(), (3,)), iterations=10)
    assert m.backend == "pytorch-cpu"
    assert min(m.samples.compute) >= 2
    assert sum(m.samples.compute) <= m.walltime_s * 1000


@pytest.mark.gpu
def test_a_gpu_is_timed_by_events():
    from vntools.runtime.torch_runner import TorchCudaRunner

    runner = TorchCudaRunner(torch.nn.Conv2d(3, 64, 3), (3, 224, 224))
    m = taken(runner, iterations=100, transfers=True)
    assert m.on_gpu
    assert min(m.samples.compute) > 0
    assert min(m.samples.h2d) > 0
    assert sum(m.samples.compute) <= m.walltime_s * 1000
