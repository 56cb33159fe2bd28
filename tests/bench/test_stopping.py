"""When a measurement ends, on streams of samples made from seeds; no device, no clock."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vntools.bench.statistics import drift_interval, noise_percent
from vntools.bench.stopping import Ended, StoppingRule


def stream(n: int, *, spread: float, drift: float = 0.0, seed: int = 0) -> np.ndarray:
    """Latencies around 1 ms; ``drift`` moves the level of 1000 queries at a time."""
    rng = np.random.default_rng(seed)
    level = np.repeat(rng.normal(0, drift, n // 1000 + 1), 1000)[:n]
    return 1 + level + rng.normal(0, spread, n)


def ended_after(rule: StoppingRule, samples: np.ndarray, *, per_s: int) -> tuple[Ended, float]:
    """What a measurement of ``per_s`` queries a second would do, without measuring."""
    at_s = rule.duration_s
    for _ in range(1000):
        if (why := rule.ended(samples[: int(at_s * per_s)], at_s)) is not None:
            return why, at_s
        later_s = rule.next_look_s(at_s)
        assert later_s > at_s
        at_s = later_s
    raise AssertionError("it never ends")


def test_without_a_limit_the_duration_and_the_iterations_end_it():
    rule = StoppingRule(3, 10)
    assert rule.ended(np.ones(9), 5) is None
    assert rule.ended(np.ones(10), 2.9) is None
    assert rule.ended(np.ones(10), 3) is Ended.DURATION


def test_a_quiet_stream_ends_with_the_duration():
    rule = StoppingRule(1, 10, max_noise_percent=1, time_limit_s=30)
    assert ended_after(rule, stream(30_000, spread=0.01), per_s=1000) == (Ended.NOISE, 1)


def test_a_loud_stream_goes_on_until_it_is_known():
    rule = StoppingRule(1, 10, max_noise_percent=1, time_limit_s=60)
    samples = stream(60_000, spread=0.3)
    why, at_s = ended_after(rule, samples, per_s=1000)
    assert why is Ended.NOISE
    assert 2 < at_s < 60
    assert noise_percent(samples[: int(at_s * 1000)]) < 1 < noise_percent(samples[:1000])


def test_a_hopeless_stream_ends_with_the_time_limit_and_says_so():
    rule = StoppingRule(1, 10, max_noise_percent=0.01, time_limit_s=7)
    assert ended_after(rule, stream(7000, spread=0.5), per_s=1000) == (Ended.TIME_LIMIT, 7)


def test_five_queries_are_never_known():
    assert noise_percent(np.ones(5)) == math.inf
    assert noise_percent(np.ones(6)) == 0
    rule = StoppingRule(1, 1, max_noise_percent=50, time_limit_s=9)
    assert rule.ended(np.ones(5), 2) is None
    assert rule.ended(np.ones(6), 2) is Ended.NOISE
    assert rule.ended(np.ones(5), 9) is Ended.TIME_LIMIT


def test_the_time_between_looks_grows():
    rule = StoppingRule(1, 1, max_noise_percent=1, time_limit_s=100)
    at_s, looks = 1.0, 0
    while at_s < 100:
        at_s, looks = rule.next_look_s(at_s), looks + 1
    assert at_s == 100
    assert looks < 30


def covered(**how: float) -> float:
    """How often the interval of a drifting run holds the level that it drifts around."""
    hits = 0
    for seed in range(100):
        interval = drift_interval(stream(30_000, spread=0.02, seed=seed, **how))
        assert interval is not None
        hits += interval[0] <= 1 <= interval[1]
    return hits / 100


@pytest.mark.parametrize("drift", [0.0, 0.05])
def test_an_interval_of_a_run_holds_the_median_though_it_drifts(drift: float):
    assert covered(drift=drift) >= 0.88


def test_an_interval_over_single_queries_would_not():
    hits = 0
    for seed in range(100):
        ordered = np.sort(stream(30_000, spread=0.02, drift=0.05, seed=seed))
        half = int(0.98 * math.sqrt(30_000))
        hits += ordered[15_000 - half] <= 1 <= ordered[15_000 + half]
    assert hits < 50


@pytest.mark.parametrize("n", [6, 25, 100, 599])
def test_an_interval_of_few_queries_covers_as_often_as_it_says(n: int):
    rng = np.random.default_rng(n)
    hits = 0
    for _ in range(300):
        interval = drift_interval(rng.exponential(1, n))
        assert interval is not None
        hits += interval[0] <= math.log(2) <= interval[1]
    assert hits / 300 >= 0.92


def test_an_interval_of_many_is_cheap():
    import time

    samples = stream(100_000, spread=0.1)
    begin = time.process_time()
    drift_interval(samples)
    assert time.process_time() - begin < 0.5


def test_noise_is_half_the_interval_over_the_median():
    low, high = drift_interval(samples := stream(5000, spread=0.2)) or (0, 0)
    assert noise_percent(samples) == pytest.approx(100 * (high - low) / 2 / np.median(samples))
