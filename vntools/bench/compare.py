"""Comparing runners side by side: in one process, in turns, in random order."""

from __future__ import annotations

__all__ = ["Comparison", "Contender", "Relation", "Verdict", "compare", "relate", "verdict"]

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from vntools.base.errors import UsageFault
from vntools.bench.measure import BenchOptions, Queries, environment, start
from vntools.bench.statistics import median_interval
from vntools.runtime.base import Runner

_TURN_S = 0.05  # a turn of one runner: long against a switch, short against drift


class Verdict(StrEnum):
    """What a comparison says of a runner, against the first."""

    FASTER = "faster"
    SLOWER = "slower"
    SAME = "same"
    UNCLEAR = "unclear"


def verdict(low: float, high: float, *, same: float) -> Verdict:
    """The verdict of a 95 % interval of the ratio of two times.

    Args:
        low: lower end; below 1 is faster.
        high: upper end.
        same: ratios within 1 +- ``same`` count as equal.
    """
    if 1 - same <= low and high <= 1 + same:
        return Verdict.SAME
    if high < 1:
        return Verdict.FASTER
    if low > 1:
        return Verdict.SLOWER
    return Verdict.UNCLEAR


@dataclass(frozen=True)
class Relation:
    """A runner against the first one.

    Attributes:
        ratio: median over the rounds of its latency over that of the first; below 1 is faster.
        low: lower end of the 95 % interval of ``ratio``.
        high: upper end.
        verdict: what follows.
    """

    ratio: float
    low: float
    high: float
    verdict: Verdict


@dataclass(frozen=True)
class Contender:
    """One of the runners compared.

    Attributes:
        name: what the caller calls it.
        backend: of the runner.
        details: of the runner.
        rounds_ms: latency of every query, round by round.
        median_ms: median over the rounds of the median latency of a round.
        relation: to the first contender; None for that one.
    """

    name: str
    backend: str
    details: dict[str, Any]
    rounds_ms: tuple[tuple[float, ...], ...]
    median_ms: float
    relation: Relation | None


@dataclass(frozen=True)
class Comparison:
    """Runners measured side by side; the first is what the others are held against.

    Attributes:
        contenders: in the caller's order.
        options: how they were measured.
        same: see :func:`verdict`.
        environment: versions and host.
    """

    contenders: tuple[Contender, ...]
    options: BenchOptions
    same: float
    environment: dict[str, Any]

    def to_record(self) -> dict[str, Any]:
        """JSON-ready, without the single queries."""
        return {
            "schema": 1,
            "batch": self.options.batch,
            "rounds": len(self.contenders[0].rounds_ms),
            "same": self.same,
            "contenders": [
                {
                    "name": c.name,
                    "backend": c.backend,
                    "details": c.details,
                    "n_queries": sum(map(len, c.rounds_ms)),
                    "median_ms": c.median_ms,
                    "relation": None
                    if c.relation is None
                    else {
                        "ratio": c.relation.ratio,
                        "low": c.relation.low,
                        "high": c.relation.high,
                        "verdict": str(c.relation.verdict),
                    },
                }
                for c in self.contenders
            ],
            "environment": self.environment,
        }


def compare(
    runners: Mapping[str, Runner],
    options: BenchOptions,
    *,
    same: float = 0.01,
    tick: Callable[[float], None] | None = None,
) -> Comparison:
    """Measure open runners in turns, and relate each to the first.

    In a round every runner has one turn, in random order: a query that is not counted (what
    ran before left its traces in caches and threads), then about 50 ms of queries. A round
    gives one ratio of medians for each runner, so what drifts slowly cancels; the interval is
    a bootstrap over rounds.

    Args:
        runners: open, by name; the first is the reference.
        options: ``duration_s`` is the least time for each runner, ``iterations`` the least
            number of rounds.
        same: see :func:`verdict`.
        tick: called after every round with the part of the time that has passed.

    Raises:
        UsageFault: ``bench.unlike``: fewer than two runners, or a GPU against a CPU; otherwise
            as :func:`vntools.bench.measure.measure`.
        CheckFailed: ``verify.nonfinite``.
    """
    if len(runners) < 2 or len({r.clock.on_gpu for r in runners.values()}) > 1:
        raise UsageFault("bench.unlike", "a comparison needs two runners on the same device")
    for runner in runners.values():
        start(runner, options)
    rounds: dict[str, list[tuple[float, ...]]] = {name: [] for name in runners}
    rng = np.random.default_rng(options.seed)
    least_s = options.duration_s * len(runners)
    begin = time.perf_counter()
    while True:
        for index in rng.permutation(len(runners)):
            name = list(runners)[index]
            rounds[name].append(_take_turn(runners[name], options))
        done = min(
            (time.perf_counter() - begin) / least_s if least_s else 1.0,
            len(rounds[next(iter(runners))]) / options.iterations,
        )
        if tick is not None:
            tick(min(1.0, done))
        if done >= 1:
            break
    medians = {n: [statistics.median(turn) for turn in r] for n, r in rounds.items()}
    first = medians[next(iter(runners))]
    return Comparison(
        contenders=tuple(
            Contender(
                name=name,
                backend=runner.backend,
                details=dict(runner.details),
                rounds_ms=tuple(rounds[name]),
                median_ms=statistics.median(medians[name]),
                relation=relate(medians[name], first, same=same, seed=options.seed)
                if medians[name] is not first
                else None,
            )
            for name, runner in runners.items()
        ),
        options=options,
        same=same,
        environment=environment(),
    )


def _take_turn(runner: Runner, options: BenchOptions) -> tuple[float, ...]:
    """Latencies of the queries of one turn, after one that is not counted."""
    turn = Queries(runner, transfers=options.transfers)
    turn.run(duration_s=_TURN_S, at_least=2)
    s = turn.samples
    return tuple(map(sum, zip(s.h2d[1:], s.compute[1:], s.d2h[1:], strict=True)))


def relate(
    medians_ms: Sequence[float], first_ms: Sequence[float], *, same: float, seed: int
) -> Relation:
    """Relate the medians of paired rounds to those of the first runner."""
    ratios = [a / b for a, b in zip(medians_ms, first_ms, strict=True)]
    low, high = median_interval(ratios, seed=seed)
    return Relation(statistics.median(ratios), low, high, verdict(low, high, same=same))
