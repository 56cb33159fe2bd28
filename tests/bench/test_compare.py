"""Runners side by side: turns, pairing, intervals and verdicts, on scripted times."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from vntools.base.errors import CheckFailed, UsageFault
from vntools.bench import compare as module
from vntools.bench.compare import Comparison, Verdict, compare, relate, verdict
from vntools.bench.measure import BenchOptions
from vntools.bench.stopping import Ended
from vntools.report.comparison import comparison_text
from vntools.runtime.nvml import Reading, Telemetry
from vntools.runtime.torch_runner import TorchRunner

OPTIONS = BenchOptions(warm_up_ms=0, duration_s=0, iterations=30)


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripted queries take no time: a turn is one that is not counted and one that is."""
    monkeypatch.setattr(module, "_TURN_S", 0)
    monkeypatch.setattr(module, "_SETTLE_S", 0)


def noisy(median_ms: float, *, spread: float = 0.02, seed: int = 0) -> Iterator[float]:
    rng = np.random.default_rng(seed)
    while True:
        yield float(median_ms * np.exp(spread * rng.standard_normal()))


def taken(
    runners: dict[str, Any], options: BenchOptions = OPTIONS, **kwargs: Any
) -> Comparison:
    return compare(runners, options, **kwargs)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.80, 0.85, Verdict.FASTER),
        (0.98, 0.999, Verdict.FASTER),
        (1.001, 1.3, Verdict.SLOWER),
        (0.995, 1.005, Verdict.SAME),
        (0.995, 0.999, Verdict.SAME),
        (1.001, 1.009, Verdict.SAME),
        (0.99, 1.01, Verdict.SAME),
        (0.98, 1.001, Verdict.UNCLEAR),
        (0.5, 2.0, Verdict.UNCLEAR),
    ],
)
def test_the_four_verdicts(low: float, high: float, said: Verdict):
    assert verdict(low, high, same=0.01) is said


@pytest.mark.parametrize(
    ("other_ms", "spread", "said"),
    [
        (10.0, 0.02, Verdict.FASTER),
        (40.0, 0.02, Verdict.SLOWER),
        (20.0, 0.001, Verdict.SAME),
        (20.0, 0.3, Verdict.UNCLEAR),
    ],
)
def test_scripted_runners_get_their_verdict(
    scripted: Any, other_ms: float, spread: float, said: Verdict
):
    first = scripted(noisy(20, spread=spread, seed=1))
    other = scripted(noisy(other_ms, spread=spread, seed=2))
    got = taken({"first": first, "other": other})
    a, b = got.contenders
    assert (a.name, b.name) == ("first", "other")
    assert a.relation is None
    assert b.relation is not None
    assert b.relation.verdict is said
    assert b.relation.low <= b.relation.ratio <= b.relation.high
    assert b.relation.ratio == pytest.approx(other_ms / 20, rel=3 * spread)
    assert b.median_ms == pytest.approx(other_ms, rel=3 * spread)


def test_what_drifts_for_both_cancels():
    drift = np.linspace(1, 3, 40)
    first = drift * np.array(
        [noise for noise, _ in zip(noisy(1, seed=3), drift, strict=False)]
    )
    other = 0.97 * drift
    paired = relate(other.tolist(), first.tolist(), same=0.01, seed=0)
    assert paired.verdict is Verdict.FASTER
    shuffled = np.random.default_rng(0).permutation(first)
    assert (
        relate(other.tolist(), shuffled.tolist(), same=0.01, seed=0).verdict is Verdict.UNCLEAR
    )


def test_every_round_has_every_runner_in_random_order(scripted: Any):
    orders: list[list[str]] = []
    for seed in (0, 0, 1):
        log: list[str] = []
        runners = {n: scripted([10.0], name=n, log=log) for n in ("a", "b", "c")}
        got = taken(runners, BenchOptions(0, 0, 12, seed=seed))
        assert {len(c.rounds_ms) for c in got.contenders} == {12}
        queries = log[-12 * 3 * 2 :]
        assert queries[::2] == queries[1::2]
        order = queries[::2]
        for i in range(0, 36, 3):
            assert sorted(order[i : i + 3]) == ["a", "b", "c"]
        assert len({tuple(order[i : i + 3]) for i in range(0, 36, 3)}) > 2
        orders.append(order)
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


def test_the_first_query_of_a_turn_is_not_counted(scripted: Any):
    # run() and the warm-up are one query each; then a turn is a cold and a warm one.
    cold = iter([1.0] * 2 + [100.0, 1.0] * 10)
    got = taken({"a": scripted(cold), "b": scripted([1.0])}, BenchOptions(0, 0, 10))
    assert got.contenders[0].rounds_ms == ((1.0,),) * 10


def test_a_turn_lasts_and_then_ends(scripted: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_TURN_S", 0.02)
    begin = time.perf_counter()
    got = taken({n: scripted([1.0]) for n in "ab"}, BenchOptions(0, 0, 3))
    assert time.perf_counter() - begin >= 6 * 0.02
    assert all(len(turn) > 2 for c in got.contenders for turn in c.rounds_ms)


def test_latency_on_a_gpu_is_the_sum(scripted: Any):
    a = scripted([1.0], on_gpu=True, h2d_ms=0.5, d2h_ms=0.25)
    b = scripted([1.0], on_gpu=True)
    got = taken({"a": a, "b": b}, BenchOptions(0, 0, 10, transfers=True))
    assert got.contenders[0].median_ms == 1.75
    assert got.contenders[1].relation is not None
    assert got.contenders[1].relation.ratio == pytest.approx(1 / 1.75)


def test_the_duration_is_for_each(scripted: Any):
    seen: list[float] = []
    runners = {n: scripted([1000.0]) for n in ("a", "b")}
    got = taken(runners, BenchOptions(0, 0.05, 1), tick=seen.append)
    assert len(seen) == len(got.contenders[0].rounds_ms)
    assert seen[-1] == 1
    assert seen == sorted(seen)


def test_a_record(scripted: Any):
    got = taken({"a": scripted([2.0], threads=2), "b": scripted([1.0])}).to_record()
    assert json.loads(json.dumps(got)) == got
    assert got["schema"] == 1
    assert got["rounds"] == 30
    assert [c["name"] for c in got["contenders"]] == ["a", "b"]
    assert got["contenders"][0]["relation"] is None
    assert got["contenders"][1]["relation"] == {
        "ratio": 0.5,
        "low": 0.5,
        "high": 0.5,
        "verdict": "faster",
    }


def test_unlike_devices_and_lone_runners_are_not_compared(scripted: Any):
    for runners in (
        {"a": scripted([1.0])},
        {"a": scripted([1.0]), "b": scripted([1.0], on_gpu=True)},
    ):
        with pytest.raises(UsageFault) as e:
            taken(runners)
        assert e.value.code == "bench.unlike"


def test_an_output_that_is_not_finite_is_not_compared(scripted: Any):
    with pytest.raises(CheckFailed):
        taken({"a": scripted([1.0]), "b": scripted([1.0], value=np.inf)})


class Sleep(torch.nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return x


def test_real_runners_side_by_side():
    # A factor of fifteen, so that a busy machine does not blur it.
    with TorchRunner(Sleep(0.015), (3,)) as slow, TorchRunner(Sleep(0.001), (3,)) as quick:
        got = taken({"slow": slow, "quick": quick}, BenchOptions(0, 0, 12))
    assert got.contenders[1].relation is not None
    assert got.contenders[1].relation.verdict is Verdict.FASTER


# --- ends, refusals, the exit


def test_ten_rounds_at_least(scripted: Any):
    # One ratio has an interval of no width, and would always be faster or slower.
    got = taken({"a": scripted([1.0]), "b": scripted([0.9])}, BenchOptions(0, 0, 1))
    assert len(got.contenders[0].rounds_ms) == 10


@pytest.mark.parametrize(
    ("spread", "limit_s", "ended"),
    [
        (0.001, 60, Ended.NOISE),
        (0.5, 0.05, Ended.TIME_LIMIT),
    ],
)
def test_what_ended_it(scripted: Any, spread: float, limit_s: float, ended: Ended):
    options = BenchOptions(0, 0, 1, max_noise_percent=0.5, time_limit_s=limit_s)
    runners = {
        "a": scripted(noisy(20, spread=spread, seed=1)),
        "b": scripted(noisy(20, spread=spread, seed=2)),
    }
    got = taken(runners, options)
    assert got.ended is ended
    assert got.to_record()["ended"] == str(ended)


def test_the_noise_is_waited_for(scripted: Any):
    def rounds(max_noise_percent: float) -> int:
        options = BenchOptions(0, 0, 1, max_noise_percent=max_noise_percent)
        runners = {n: scripted(noisy(20, spread=0.05, seed=ord(n))) for n in "ab"}
        return len(taken(runners, options).contenders[0].rounds_ms)

    assert rounds(10) < rounds(2)


def test_several_streams_are_not_compared(scripted: Any):
    with pytest.raises(UsageFault) as e:
        taken({n: scripted([1.0]) for n in "ab"}, BenchOptions(0, 0, 1, streams=2))
    assert e.value.code == "bench.streams"


def test_a_fault_names_its_runner(scripted: Any):
    with pytest.raises(CheckFailed, match="'second'"):
        taken({"first": scripted([1.0]), "second": scripted([1.0], value=np.nan)})


def test_every_query_on_request(scripted: Any):
    got = taken({"a": scripted([2.0]), "b": scripted([1.0])})
    assert "rounds_ms" not in got.to_record()["contenders"][0]
    record = got.to_record(samples=True)
    assert json.loads(json.dumps(record)) == record
    assert record["contenders"][1]["rounds_ms"] == [[1.0]] * 30


def test_the_first_fails_if_it_is_slower(scripted: Any):
    got = taken({"a": scripted([2.0]), "b": scripted([1.0])})
    with pytest.raises(CheckFailed, match=r"'a' against 'b' is slower: 2.000 times") as e:
        got.require_not_slower()
    assert e.value.code == "bench.slower"
    for other_ms in (2.0, 3.0):
        taken({"a": scripted([2.0]), "b": scripted([other_ms])}).require_not_slower()


def test_any_of_several_fails(scripted: Any):
    got = taken({"a": scripted([2.0]), "b": scripted([3.0]), "c": scripted([1.0])})
    with pytest.raises(CheckFailed, match="'c'"):
        got.require_not_slower()


def test_a_throttled_gpu_is_said(scripted: Any, monkeypatch: pytest.MonkeyPatch):
    def watched(reasons: int) -> Comparison:
        seen = Telemetry({"name": "H100"}, [Reading(0, None, None, None, None, reasons)])
        monkeypatch.setattr(module, "watch", lambda *, on_gpu: nullcontext(seen))
        return taken({n: scripted([1.0], on_gpu=True) for n in "ab"})

    free, slow = watched(0), watched(0x40)
    assert free.throttled == ()
    assert "throttled" not in comparison_text(free)
    assert slow.throttled == ("hardware thermal slowdown",)
    assert comparison_text(slow).endswith("at times: hardware thermal slowdown")
    assert slow.to_record()["telemetry"]["throttle"] == ["hardware thermal slowdown"]
    assert slow.environment["gpu"] == {"name": "H100"}


def test_the_text(scripted: Any):
    runners = {"a.onnx": scripted([2.0], threads=2), "b.onnx": scripted([1.0], threads=2)}
    lines = comparison_text(taken(runners)).splitlines()
    assert lines[0] == "a.onnx: scripted 1.0, float32, 2 threads"
    assert "30 rounds in random order, 60 queries" in lines[2]
    assert lines[2].endswith("same within 1.00%; duration and iterations reached")
    assert lines[4].split() == [
        "median",
        "ms",
        "ratio",
        "95",
        "%",
        "interval",
        "than",
        "a.onnx",
    ]
    assert lines[5].split() == ["a.onnx", "2", "1"]
    assert lines[6].split() == ["b.onnx", "1", "0.500", "0.500", "to", "0.500", "faster"]
