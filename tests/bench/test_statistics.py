"""Percentiles, variation and intervals on synthetic samples."""

from __future__ import annotations

import json
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vntools.bench.statistics import Summary, median_interval, percentile


@pytest.mark.parametrize(
    ("n", "percent", "index"),
    [
        (1, 99, 0),
        (10, 90, 8),  # float64 would exclude floor(0.9999...) = 0 values
        (10, 95, 9),
        (10, 99, 9),
        (100, 90, 89),
        (100, 95, 94),
        (100, 99, 98),
        (1000, 99.9, 998),
        (7, 50, 3),
        (7, 100, 6),
        (7, 0, 0),
    ],
)
def test_percentiles_are_trtexecs(n: int, percent: float, index: int):
    ordered = [float(i) for i in range(n)]
    assert percentile(ordered, percent) == ordered[index]


samples = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=60)


@given(samples, st.integers(0, 1000), st.integers(0, 1000))
def test_percentiles_are_samples_and_rise(values: list[float], a: int, b: int):
    ordered = sorted(values)
    low, high = (percentile(ordered, p / 10) for p in sorted((a, b)))
    assert low in values
    assert low <= high <= ordered[-1]


@given(samples)
def test_a_summary_does_not_depend_on_the_order(values: list[float]):
    summary = Summary.of(values, (90, 99))
    assert summary == Summary.of(values[::-1], (90, 99))
    assert summary.min_ms <= summary.median_ms <= summary.max_ms
    assert summary.min_ms * 0.999 <= summary.mean_ms <= summary.max_ms * 1.001


def test_the_coefficient_of_variation_is_of_the_population():
    assert Summary.of([1, 3], ()).cov_percent == 50
    assert Summary.of([2, 2, 2], ()).cov_percent == 0
    assert Summary.of([0, 0], ()).cov_percent == 0
    values = [1.0, 2.0, 4.0, 9.0]
    mean = sum(values) / 4
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / 4)
    assert Summary.of(values, ()).cov_percent == pytest.approx(100 * deviation / mean)


def test_a_record_of_a_summary():
    record = Summary.of([4.0, 1.0, 2.0], (90, 99.9)).to_record()
    assert list(record) == [
        "min",
        "max",
        "mean",
        "median",
        "p90",
        "p99.9",
        "cov_pct",
        "median_interval",
    ]
    assert (record["min"], record["max"], record["median"]) == (1, 4, 2)
    json.dumps(record)


def test_an_interval_holds_the_median_and_shrinks():
    rng = np.random.default_rng(3)
    few = median_interval(rng.normal(10, 1, 20).tolist(), seed=0)
    many = median_interval(rng.normal(10, 1, 2000).tolist(), seed=0)
    assert few[0] < 10 < few[1]
    assert many[0] < 10 < many[1]
    assert many[1] - many[0] < (few[1] - few[0]) / 4


@pytest.mark.parametrize("n", [1, 2, 3, 10, 11, 40])
def test_an_interval_is_that_of_the_resamples(n: int):
    values = np.random.default_rng(n).exponential(1, n)
    picks = np.random.default_rng(9).integers(0, n, (20_000, n))
    medians = np.sort(np.median(values[picks], axis=1))
    low, high = median_interval(values.tolist(), seed=0)
    # The ends are quantiles of a finite number of resamples: 1.5 to 3.5 % hold them.
    assert medians[300] <= low <= medians[700]
    assert medians[-700] <= high <= medians[-300]


def test_an_interval_of_many_values_is_cheap():
    tracemalloc.start()
    median_interval(np.random.default_rng(0).normal(1, 0.1, 100_000), seed=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000


def test_an_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        low, high = median_interval(rng.exponential(1, 25).tolist(), seed=trial)
        hits += low <= math.log(2) <= high
    assert 0.88 <= hits / 200 <= 1


def test_an_interval_is_the_same_for_the_same_seed():
    values = np.random.default_rng(5).normal(1, 0.1, 30).tolist()
    assert median_interval(values, seed=1) == median_interval(values, seed=1)
    assert median_interval(values, seed=1) != median_interval(values, seed=2)


def test_equal_samples_have_an_interval_of_one_point():
    assert median_interval([2.0] * 5, seed=0) == (2.0, 2.0)
