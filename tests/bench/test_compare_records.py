"""Results of two runs: compared where everything is alike, else refused by name."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from vntools.base.errors import DataFault, UsageFault
from vntools.bench.compare import Verdict
from vntools.bench.compare_records import compare_records
from vntools.bench.measure import BenchOptions, measure


@pytest.fixture
def record(scripted: Any) -> Callable[..., dict[str, Any]]:
    """The record of a measurement, as it is after a journey through a file."""

    def make(*compute_ms: float, on_gpu: bool = False, **options: Any) -> dict[str, Any]:
        details = {"gpu": {"name": "H100", "cc": "9.0"}} if on_gpu else {"threads": 2}
        given: dict[str, Any] = {"warm_up_ms": 0, "duration_s": 0, "iterations": 40} | options
        with scripted(list(compute_ms), on_gpu=on_gpu, **details) as runner:
            done = measure(runner, BenchOptions(**given))
        return json.loads(json.dumps(done.to_record()))

    return make


@pytest.mark.parametrize(
    ("other_ms", "said"),
    [
        ((0.5, 0.502), Verdict.FASTER),
        ((2.0, 2.002), Verdict.SLOWER),
        ((1.0, 1.001), Verdict.SAME),
        ((0.7, 1.5), Verdict.UNCLEAR),
    ],
)
def test_like_runs_are_related(record: Any, other_ms: tuple[float, float], said: Verdict):
    found = compare_records(record(1.0, 1.002), record(*other_ms))
    assert found.verdict is said
    assert found.low <= found.ratio <= found.high


def test_the_interval_holds_both_intervals(record: Any):
    a, b = record(1.0, 1.2), record(2.0, 2.2)
    a["latency_ms"] |= {"median": 1.0, "median_interval": [0.9, 1.1]}
    b["latency_ms"] |= {"median": 2.0, "median_interval": [1.8, 2.2]}
    found = compare_records(a, b)
    assert (found.low, found.ratio, found.high) == pytest.approx((1.8 / 1.1, 2, 2.2 / 0.9))


def test_how_long_was_measured_is_no_difference(record: Any):
    compare_records(record(1.0), record(1.0, iterations=80, warm_up_ms=1, seed=3))


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("environment", "host", "cpu"), "another", "host.cpu"),
        (("environment", "host", "cores"), 3, "host.cores"),
        (("environment", "versions", "onnxruntime-gpu"), "0.1", "onnxruntime-gpu"),
        (("environment", "versions", "new"), "2", "versions.new None and 2"),
        (("environment", "gpu"), {"driver": "1"}, "gpu.driver"),
        (("batch",), 8, "batch 1 and 8"),
        (("engine", "threads"), 4, "threads 2 and 4"),
        (("settings", "transfers"), True, "transfers"),
        (("settings", "cuda_graph"), True, "cuda_graph"),
        (("telemetry", "throttle"), ["hardware slowdown"], "throttling"),
        (("settings", "streams"), 2, "streams"),
        (("gpu",), {"name": "A100"}, "gpu None and A100"),
    ],
)
def test_unlike_runs_are_refused_by_name(
    record: Any, path: tuple[str, ...], value: Any, named: str
):
    a, b = record(1.0), record(1.0)
    compare_records(a, b)
    inner = b
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    for pair in ((a, b), (b, a)):
        with pytest.raises(UsageFault) as e:
            compare_records(*pair)
        assert e.value.code == "bench.unlike"
    with pytest.raises(UsageFault, match=named):
        compare_records(a, b)


def test_a_gpu_and_a_cpu(record: Any):
    with pytest.raises(UsageFault, match="gpu None and H100"):
        compare_records(record(1.0), record(1.0, on_gpu=True))
    compare_records(record(1.0, on_gpu=True), record(1.0, on_gpu=True))


@pytest.mark.parametrize("damage", ["latency_ms", "environment", "settings", "batch"])
def test_what_is_no_record_is_refused(record: Any, damage: str):
    a = record(1.0)
    b = copy.deepcopy(a)
    del a[damage], b[damage]
    with pytest.raises(DataFault) as e:
        compare_records(a, b)
    assert e.value.code == "bench.record"


def test_too_few_queries_have_no_interval(record: Any):
    with pytest.raises(DataFault, match="interval"):
        compare_records(record(1.0, iterations=3), record(1.0))
