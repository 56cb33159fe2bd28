"""Comparing runners side by side: in one process, in turns, in random order."""

from __future__ import annotations

__all__ = [
    "Comparison",
    "Contender",
    "Relation",
    "Verdict",
    "compare",
    "relate",
    "require_not_slower",
    "verdict",
]

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from vntools.base.errors import CheckFailed, UsageFault, about
from vntools.bench.measure import BenchOptions, Queries, environment, start
from vntools.bench.statistics import median_interval
from vntools.bench.stopping import Ended, StoppingRule
from vntools.runtime.base import Runner
from vntools.runtime.nvml import Telemetry, slowdown, watch

_TURN_S = 0.05  # a turn of one runner: long against a switch, short against drift
_SETTLE_S = 0.005  # for which threads of the runner before may spin on
_LEAST_ROUNDS = 10  # the resamples of fewer ratios are too few to make an interval


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
        ended: what ended it.
        telemetry: the GPU meanwhile.
        environment: versions, host, and the GPU as NVML names it.
    """

    contenders: tuple[Contender, ...]
    options: BenchOptions
    same: float
    ended: Ended
    telemetry: Telemetry
    environment: dict[str, Any]

    @property
    def throttled(self) -> tuple[str, ...]:
        """Why the GPU was throttled in some of the rounds; a ratio of one round bears it."""
        readings = self.telemetry.readings
        return tuple(sorted({text for reading in readings for text in slowdown(reading)}))

    def require_not_slower(self) -> None:
        """Accept the first contender unless another one is faster.

        Raises:
            CheckFailed: ``bench.slower``.
        """
        first, *others = self.contenders
        related = {c.name: c.relation for c in others if c.relation is not None}
        require_not_slower(first.name, related)

    def to_record(self, *, samples: bool = False) -> dict[str, Any]:
        """JSON-ready; with ``samples`` every query too."""
        options = self.options
        return {
            "schema": 1,
            "batch": options.batch,
            "rounds": len(self.contenders[0].rounds_ms),
            "same": self.same,
            "ended": str(self.ended),
            "settings": {
                "transfers": options.transfers,
                "spin": options.spin,
                "warm_up_ms": options.warm_up_ms,
                "duration_s": options.duration_s,
                "iterations": options.iterations,
                "max_noise_pct": options.max_noise_percent,
                "seed": options.seed,
            },
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
                    **({"rounds_ms": [list(r) for r in c.rounds_ms]} if samples else {}),
                }
                for c in self.contenders
            ],
            "telemetry": self.telemetry.to_record(),
            "environment": self.environment,
        }


def require_not_slower(first: str, relations: Mapping[str, Relation]) -> None:
    """Accept ``first`` unless one of those related to it is faster.

    Raises:
        CheckFailed: ``bench.slower``.
    """
    for name, found in relations.items():
        if found.verdict is Verdict.FASTER:
            raise CheckFailed(
                "bench.slower",
                f"{first!r} against {name!r} is slower: "
                f"{1 / found.ratio:.3f} times its latency "
                f"(95 %: {1 / found.high:.3f} to {1 / found.low:.3f})",
            )


def compare(
    runners: Mapping[str, Runner],
    options: BenchOptions,
    *,
    same: float = 0.01,
    tick: Callable[[float], None] | None = None,
) -> Comparison:
    """Measure open runners in turns, and relate each to the first.

    In a round every runner has one turn, in random order: some milliseconds that are not
    counted (what ran before left its traces in caches and threads), then about 50 ms of
    queries. A round gives one ratio of medians for each runner, so what drifts slowly cancels;
    the interval is a bootstrap over rounds.

    Args:
        runners: open, by name; the first is the reference.
        options: ``duration_s`` is the least time for each runner and ``time_limit_s`` the
            most; ``iterations`` is the least number of rounds, of which there are ten at
            least; the noise is that of the ratios.
        same: see :func:`verdict`.
        tick: called after every round with the part of the least time that has passed.

    Raises:
        UsageFault: ``bench.unlike``: fewer than two runners, or a GPU against a CPU;
            ``bench.streams``: more than one; otherwise as
            :func:`vntools.bench.measure.measure`.
        CheckFailed: ``verify.nonfinite``.
    """
    if len(runners) < 2 or len({r.clock.on_gpu for r in runners.values()}) > 1:
        raise UsageFault("bench.unlike", "a comparison needs two runners on the same device")
    if options.streams > 1:
        raise UsageFault("bench.streams", "a comparison has one stream")
    for name, runner in runners.items():
        with about(name):
            start(runner, options)
    with watch(on_gpu=next(iter(runners.values())).clock.on_gpu) as telemetry:
        rounds, ended = _rounds(runners, options, tick)
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
        ended=ended,
        telemetry=telemetry,
        environment={**environment(), **({"gpu": telemetry.facts} if telemetry.facts else {})},
    )


def _rounds(
    runners: Mapping[str, Runner],
    options: BenchOptions,
    tick: Callable[[float], None] | None,
) -> tuple[dict[str, list[tuple[float, ...]]], Ended]:
    """Latencies of every query by runner and round, and what ended the rounds."""
    limits = options.rule
    rule = StoppingRule(
        limits.duration_s * len(runners),
        max(limits.iterations, _LEAST_ROUNDS),
        limits.max_noise_percent,
        limits.time_limit_s * len(runners),
    )
    names = list(runners)
    rounds: dict[str, list[tuple[float, ...]]] = {name: [] for name in names}
    medians: dict[str, list[float]] = {name: [] for name in names}
    rng = np.random.default_rng(options.seed)
    begin = time.perf_counter()
    while True:
        for index in rng.permutation(len(names)):
            name = names[index]
            turn = _take_turn(runners[name], options)
            rounds[name].append(turn)
            medians[name].append(statistics.median(turn))
        elapsed_s = time.perf_counter() - begin
        first = np.array(medians[names[0]])
        endings = {rule.ended(np.array(medians[n]) / first, elapsed_s) for n in names[1:]}
        if tick is not None:
            passed = elapsed_s / rule.duration_s if rule.duration_s else 1.0
            tick(min(1.0, passed, first.size / rule.iterations))
        if None not in endings:
            late = Ended.TIME_LIMIT in endings
            return rounds, Ended.TIME_LIMIT if late else next(e for e in endings if e)


def _take_turn(runner: Runner, options: BenchOptions) -> tuple[float, ...]:
    """Latencies of the queries of one turn, after some that are not counted."""
    settling = Queries(runner, transfers=options.transfers, spin=options.spin)
    settling.run(duration_s=_SETTLE_S, at_least=1)
    turn = Queries(runner, transfers=options.transfers, spin=options.spin)
    turn.run(duration_s=_TURN_S, at_least=1)
    return tuple(turn.samples.latency.tolist())


def relate(
    medians_ms: Sequence[float], first_ms: Sequence[float], *, same: float, seed: int
) -> Relation:
    """Relate the medians of paired rounds to those of the first runner."""
    ratios = [a / b for a, b in zip(medians_ms, first_ms, strict=True)]
    low, high = median_interval(ratios, seed=seed)
    return Relation(statistics.median(ratios), low, high, verdict(low, high, same=same))
