"""One runner measured: definitions, the loop, warnings, record and rows."""

from __future__ import annotations

import json
import time
import tracemalloc
from array import array
from typing import Any

import numpy as np
import pytest
import torch

from vntools.base.errors import CheckFailed, UsageFault
from vntools.bench.measure import BenchOptions, Measurement, Queries, measure, random_feeds
from vntools.report.rows import rows
from vntools.runtime.base import TensorSpec
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
    assert runner.calls == ["mark 1", "enqueue", "mark 2", "wait 2"] * 2


def test_transfers_lie_outside_the_marks_of_compute(scripted: Any):
    runner = scripted([1.0], on_gpu=True)
    Queries(runner, transfers=True).run(duration_s=0, at_least=1)
    one = ["mark 0", "upload", "mark 1", "enqueue", "mark 2", "download", "mark 3"]
    assert runner.calls[:7] == one
    assert runner.calls[14] == "wait 3"


def test_progress_rises_to_at_most_one(scripted: Any):
    seen: list[float] = []
    with scripted([1.0]) as runner:
        measure(runner, BenchOptions(0, 0.35, 1), tick=seen.append)
    assert 1 <= len(seen) <= 4
    assert seen == sorted(seen)
    assert all(0 < part <= 1 for part in seen)


def test_a_query_costs_four_numbers_of_memory(scripted: Any):
    with scripted([1.0]) as runner:
        runner.enqueue = lambda: None
        runner.clock.mark = runner.clock.wait = lambda slot: None
        runner.clock.elapsed_ms = lambda start, end: 1.0
        queries = Queries(runner, transfers=False)
        queries.run(duration_s=0, at_least=10)
        tracemalloc.start()
        queries.run(duration_s=0, at_least=4000)
        grown, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert grown / 4000 < 4 * 8 * 1.3 + 8


# --- options and inputs


@pytest.mark.parametrize(
    "wrong",
    [
        {"warm_up_ms": -1},
        {"duration_s": -0.1},
        {"iterations": 0},
        {"batch": 0},
        {"percentiles": (90, 101)},
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
    m.samples.enqueue[:] = array("d", [enqueue_ms]) * len(m.samples.enqueue)
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
        "warning",
    ]
    assert "2 threads" in lines[0]
    text = "\n".join(lines)
    assert not any(word in text for word in ("GPU", "CUDA", "H2D", "D2H", "Enqueue"))
    assert lines[4].removeprefix("Latency") == lines[5].removeprefix("Compute Time")


def test_the_protocol_says_that_transfers_are_included(scripted: Any):
    m = taken(scripted([1.0], on_gpu=True), transfers=True)
    assert "transfers included, exposed" in m.protocol()


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
