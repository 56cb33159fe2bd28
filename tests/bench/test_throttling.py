"""Throttled queries: found by the readings beside them, counted and set aside."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from vntools.bench.measure import (
    BenchOptions,
    Measurement,
    _until_ended,
    measure,
    throttled,
)
from vntools.bench.measurement import Samples
from vntools.bench.stopping import Ended
from vntools.report.rows import rows
from vntools.runtime.nvml import Reading, Telemetry

THERMAL, IDLE, POWER_CAP = 0x20, 0x01, 0x04


def samples(n: int) -> Samples:
    """A query a millisecond."""
    at = np.arange(n, dtype=np.float64)
    return Samples(at, at * 0, at, at * 0, at * 0 + 1, at * 0)


def reading(at_ms: float, reasons: int | None) -> Reading:
    return Reading(1000 + int(at_ms * 1e6), 1500, 2600, 300.0, 60, reasons)


def flags(n: int, *readings: tuple[float, int | None]) -> list[int]:
    found = throttled(samples(n), 1000, [reading(*r) for r in readings])
    return np.flatnonzero(found).tolist()


def test_a_query_is_throttled_if_a_reading_beside_it_is():
    near = flags(10, (-0.5, 0), (2.5, 0), (4.5, THERMAL), (6.5, 0), (9.5, 0))
    assert near == [3, 4, 5, 6]


@pytest.mark.parametrize("reasons", [0, None, IDLE, 0x02, 0x100])
def test_clocks_that_somebody_chose_are_no_throttling(reasons: int | None):
    assert flags(10, (0, reasons), (9, reasons)) == []


@pytest.mark.parametrize("reasons", [POWER_CAP, 0x08, THERMAL, 0x40, 0x80, IDLE | THERMAL])
def test_the_others_are(reasons: int):
    assert flags(10, (-1, 0), (6.5, 0), (7.5, 0), (8.5, reasons)) == [8, 9]


def test_without_readings_nothing_is_set_aside():
    assert flags(10) == []


def test_where_most_would_go_none_does():
    assert flags(10, (-1, THERMAL), (4.5, 0), (20, 0)) == [0, 1, 2, 3, 4]
    assert flags(10, (-1, THERMAL), (5.5, 0), (20, 0)) == []


def taken(scripted: Any, script: list[float]) -> Measurement:
    with scripted(script, on_gpu=True) as runner:
        return measure(runner, BenchOptions(0, 0, 20))


def with_readings(m: Measurement, aside: list[bool], *reasons: int) -> Measurement:
    telemetry = Telemetry({"name": "H100"}, [reading(i, r) for i, r in enumerate(reasons)])
    return replace(m, throttled=np.array(aside), telemetry=telemetry)


def test_rows_are_of_the_queries_that_count_and_the_others_are_kept(scripted: Any):
    plain = taken(scripted, [1.0])
    n = plain.samples.compute.size
    plain.samples.compute[:3] = 5.0
    m = with_readings(plain, [True] * 3 + [False] * (n - 3), 0, THERMAL)
    record = m.to_record(samples=True)
    assert record["latency_ms"]["max"] == 1
    assert record["n_queries"] == n
    assert record["n_throttled"] == 3
    assert record["samples"]["compute_ms"][:4] == [5, 5, 5, 1]
    assert record["samples"]["throttled"][:4] == [True, True, True, False]
    assert record["telemetry"]["throttle"] == ["software thermal slowdown"]
    text = "\n".join(rows(m))
    assert f"3 of {n} queries are set aside" in text
    assert "throttled: software thermal slowdown" in text
    assert with_readings(plain, [False] * n, 0).to_record()["latency_ms"]["max"] == 5


def test_a_gpu_that_is_always_throttled_is_said(scripted: Any):
    plain = taken(scripted, [1.0])
    m = with_readings(plain, [False] * plain.samples.compute.size, POWER_CAP, POWER_CAP)
    assert "too often to set it aside" in "\n".join(m.warnings())


def test_a_gpu_that_is_not_throttled_is_said(scripted: Any):
    plain = taken(scripted, [1.0])
    m = with_readings(plain, [False] * plain.samples.compute.size, 0, IDLE)
    assert "SM 1500 to 1500 MHz, 300 to 300 W, 60 to 60 °C, not throttled" in "\n".join(
        rows(m)
    )
    assert not any("throttled" in w for w in m.warnings())


def test_the_rule_looks_at_the_queries_that_count():
    """Throttled queries are loud and the others quiet: the noise of the latter ends it."""
    loud = np.random.default_rng(0).uniform(1, 9, 2000)
    kept = replace(samples(2000), compute=np.where(np.arange(2000) < 900, loud, 1.0))
    slow = [reading(-1, THERMAL), reading(899.5, 0), reading(900.5, 0), reading(3000, 0)]

    class Once:
        begin_ns, samples = 1000, kept

        def run(self, *, duration_s: float, at_least: int, tick: Any = None) -> float:
            return 1.0

    once: Any = Once()
    options = BenchOptions(0, 0, 5, max_noise_percent=0.5, time_limit_s=1)
    quiet = _until_ended(once, options, Telemetry({}, slow), None)
    assert quiet == (1.0, Ended.NOISE)
    every = _until_ended(once, options, Telemetry({}, []), None)
    assert every == (1.0, Ended.TIME_LIMIT)
