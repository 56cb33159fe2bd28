"""What is said of a list of times: trtexec's figures, and intervals of a median."""

from __future__ import annotations

__all__ = [
    "RESAMPLES",
    "Summary",
    "drift_interval",
    "median_interval",
    "noise_percent",
    "percentile",
]

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 4000
"""Bootstrap resamples: the ends of a 95 % interval then rest on 100 of them each."""

_BLOCKS = 30  # of a measurement; the interval of their medians has 95.7 % coverage
_LEAST_BLOCK = 20  # queries


def percentile(ordered: Sequence[float] | NDArray[np.float64], percent: float) -> float:
    """The value that trtexec 11 calls percentile ``percent``, of ascending ``ordered`` values.

    ordered[max(n - 1 - floor((1 - percent/100) n), 0)], worked out in exact fractions: in
    float64, 90 % of ten values would exclude 0.9999... of one, hence none.

    Source: TensorRT 11.1, samples/common/sampleReporting.cpp, findPercentile.
    """
    n = len(ordered)
    excluded = math.floor((1 - Fraction(str(percent)) / 100) * n)
    return ordered[max(n - 1 - excluded, 0)]


@dataclass(frozen=True)
class Summary:
    """One row of a result.

    Attributes:
        cov_percent: population standard deviation over the mean.
        percentiles_ms: by percent.
        median_interval_ms: see :func:`drift_interval`.
    """

    min_ms: float
    max_ms: float
    mean_ms: float
    median_ms: float
    cov_percent: float
    percentiles_ms: dict[float, float]
    median_interval_ms: tuple[float, float] | None

    @classmethod
    def of(
        cls, samples_ms: Sequence[float] | NDArray[np.float64], percents: Sequence[float]
    ) -> Summary:
        """The figures of at least one sample, in the order of measuring."""
        samples = np.asarray(samples_ms, dtype=np.float64)
        ordered = np.sort(samples)
        mean = float(ordered.mean())
        return cls(
            min_ms=float(ordered[0]),
            max_ms=float(ordered[-1]),
            mean_ms=mean,
            median_ms=float(np.median(ordered)),
            cov_percent=100 * float(ordered.std()) / mean if mean else 0.0,
            percentiles_ms={p: float(percentile(ordered, p)) for p in percents},
            median_interval_ms=drift_interval(samples),
        )

    def to_record(self) -> dict[str, float | list[float] | None]:
        """JSON-ready; percentiles as ``p90``."""
        interval = self.median_interval_ms
        return {
            "min": self.min_ms,
            "max": self.max_ms,
            "mean": self.mean_ms,
            "median": self.median_ms,
            **{f"p{p:g}": value for p, value in self.percentiles_ms.items()},
            "cov_pct": self.cov_percent,
            "median_interval": None if interval is None else list(interval),
        }


def median_interval(
    values: Sequence[float] | NDArray[np.float64], *, seed: int
) -> tuple[float, float]:
    """A 95 % interval of the median of independent ``values`` by the percentile bootstrap.

    The resamples are not made: the median of a resample of n values is that of n uniform
    draws looked up in the ordered values, and medians of uniform draws are of the Beta
    distribution. So 10^5 values cost no more than sorting them.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n, rng = ordered.size, np.random.default_rng(seed)
    half = n // 2
    if n % 2:
        lower = upper = rng.beta(half + 1, half + 1, RESAMPLES)
    else:  # the upper of the two in the middle is the least of the half above the lower
        lower = rng.beta(half, half + 1, RESAMPLES)
        upper = lower + (1 - lower) * (1 - rng.random(RESAMPLES) ** (1 / half))
    at = np.minimum(np.array([lower, upper]) * n, n - 1).astype(np.int64)
    low, high = np.quantile(ordered[at].mean(axis=0), (0.025, 0.975))
    return float(low), float(high)


def drift_interval(samples: NDArray[np.float64]) -> tuple[float, float] | None:
    """A 95 % interval of the median of the latencies of one run, in their order; None below 6.

    Queries that follow each other are alike, because clocks and caches drift, and an interval
    over single queries would be far too narrow. So the run is cut into 30 blocks, and the
    interval is that of the medians of the blocks, by order statistics: exact for independent
    blocks of whatever distribution. A run of fewer than 600 queries is not cut.

    Source: David & Nagaraja 2003, Order Statistics, section 7.1.
    """
    values = samples
    if samples.size >= _BLOCKS * _LEAST_BLOCK:
        values = np.array([np.median(block) for block in np.array_split(samples, _BLOCKS)])
    rank = _rank(values.size)
    if rank is None:
        return None
    ordered = np.sort(values)
    return float(ordered[rank]), float(ordered[-1 - rank])


@functools.cache
def _rank(n: int) -> int | None:
    """How many of ``n`` ordered values lie below a 95 % interval of their median.

    The most k with P(B(n, 1/2) <= k) <= 2.5 %; None where even the whole range covers less.
    """
    below, k = 1, 0  # below = sum of C(n, i) to i = k
    if 40 * below > 2**n:  # 1/40 is 2.5 %
        return None
    while 40 * (grown := below + math.comb(n, k + 1)) <= 2**n:
        below, k = grown, k + 1
    return k


def noise_percent(samples: NDArray[np.float64]) -> float:
    """Half the width of :func:`drift_interval` over the median; infinite without interval."""
    interval = drift_interval(samples)
    median = float(np.median(samples)) if samples.size else 0.0
    if interval is None or not median:
        return math.inf
    return 50 * (interval[1] - interval[0]) / median
