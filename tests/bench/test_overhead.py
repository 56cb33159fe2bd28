"""What the harness adds to a query of a millisecond, against a bare loop in the same process.

Both loops take turns of some queries, so that what else the machine does falls on both; the
figure is a ratio of medians and holds on a busy machine.
"""

from __future__ import annotations

import hashlib
import time
from typing import Any

import numpy as np

from vntools.bench.measure import Queries

TURNS, QUERIES = 60, 10
_DATA = bytes(256)


def calibrated() -> int:
    """Rounds of hashing that take about a millisecond."""
    begin = time.perf_counter_ns()
    work(2000)
    return int(2000 * 1e6 / (time.perf_counter_ns() - begin))


def work(rounds: int) -> None:
    for _ in range(rounds):
        hashlib.sha256(_DATA).digest()


def ratio_of_medians(runner: Any, rounds: int) -> float:
    """Median of the harness over that of a bare loop of the same work."""
    queries = Queries(runner, transfers=False)
    bare: list[list[float]] = []
    clock = time.perf_counter_ns

    def bare_turn() -> None:
        times: list[float] = []
        for _ in range(QUERIES):
            begin = clock()
            work(rounds)
            times.append((clock() - begin) * 1e-6)
        bare.append(times)

    for turn in range(TURNS):
        first, second = bare_turn, lambda: queries.run(duration_s=0, at_least=QUERIES)
        if turn % 2:
            first, second = second, first
        first()
        second()
    mine = queries.samples.compute.reshape(TURNS, QUERIES)
    return float(np.median(np.median(mine, axis=1) / np.median(np.array(bare), axis=1)))


def timed(scripted: Any, enqueue: Any) -> Any:
    """A runner whose enqueue is ``enqueue``, timed by the host's clock."""
    from vntools.runtime.base import HostClock

    runner = scripted([1.0])
    runner.clock = HostClock()
    runner.enqueue = enqueue
    return runner


def test_the_harness_adds_at_most_one_percent(scripted: Any):
    rounds = calibrated()
    found = [ratio_of_medians(timed(scripted, lambda: work(rounds)), rounds) for _ in range(3)]
    assert sorted(found)[1] <= 1.01, found


def test_five_percent_more_would_show(scripted: Any):
    rounds = calibrated()
    runner = timed(scripted, lambda: work(round(1.05 * rounds)))
    assert ratio_of_medians(runner, rounds) > 1.02
