"""What is said of a list of times: trtexec's figures, and intervals of a median."""

from __future__ import annotations

__all__ = ["RESAMPLES", "Summary", "median_interval", "percentile"]

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

RESAMPLES = 4000
"""Bootstrap resamples: the ends of a 95 % interval then rest on 100 of them each."""


def percentile(ordered: Sequence[float], percent: float) -> float:
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
    """

    min_ms: float
    max_ms: float
    mean_ms: float
    median_ms: float
    cov_percent: float
    percentiles_ms: dict[float, float]

    @classmethod
    def of(cls, samples_ms: Sequence[float], percents: Sequence[float]) -> Summary:
        """The figures of at least one sample."""
        ordered = sorted(samples_ms)
        mean = float(np.mean(ordered))
        return cls(
            min_ms=ordered[0],
            max_ms=ordered[-1],
            mean_ms=mean,
            median_ms=float(np.median(ordered)),
            cov_percent=100 * float(np.std(ordered)) / mean if mean else 0.0,
            percentiles_ms={p: percentile(ordered, p) for p in percents},
        )

    def to_record(self) -> dict[str, float]:
        """JSON-ready; percentiles as ``p90``."""
        return {
            "min": self.min_ms,
            "max": self.max_ms,
            "mean": self.mean_ms,
            "median": self.median_ms,
            **{f"p{p:g}": value for p, value in self.percentiles_ms.items()},
            "cov_pct": self.cov_percent,
        }


def median_interval(values: Sequence[float], *, seed: int) -> tuple[float, float]:
    """A 95 % interval of the median of ``values`` by the percentile bootstrap.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    array = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(0, array.size, (RESAMPLES, array.size))
    low, high = np.quantile(np.median(array[picks], axis=1), (0.025, 0.975))
    return float(low), float(high)
