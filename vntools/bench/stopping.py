"""When a measurement has been long enough: a rule that knows times and samples, no device."""

from __future__ import annotations

__all__ = ["Ended", "StoppingRule"]

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from vntools.bench.statistics import noise_percent

_GROWTH = 1.25  # of the time between two looks, so that looking costs little


class Ended(StrEnum):
    """Which condition ended a measurement."""

    DURATION = "duration and iterations reached"
    NOISE = "noise below the limit"
    TIME_LIMIT = "time limit reached"


@dataclass(frozen=True)
class StoppingRule:
    """Duration and iterations first; then the noise or the time limit, where one is asked for.

    Attributes:
        duration_s: least measured time.
        iterations: least number of queries.
        max_noise_percent: see :func:`vntools.bench.statistics.noise_percent`; None ends when
            duration and iterations are reached.
        time_limit_s: the noise is not waited for longer.
    """

    duration_s: float
    iterations: int
    max_noise_percent: float | None = None
    time_limit_s: float = 60

    def next_look_s(self, elapsed_s: float) -> float:
        """Measured time at which to ask again, after ``elapsed_s`` were not enough."""
        if elapsed_s < self.duration_s:
            return self.duration_s
        return min(
            max(elapsed_s * _GROWTH, elapsed_s + 0.05), max(self.time_limit_s, elapsed_s)
        )

    def ended(self, latency_ms: NDArray[np.float64], elapsed_s: float) -> Ended | None:
        """Which condition ends the measurement now, or None.

        Args:
            latency_ms: of every query so far, in their order.
            elapsed_s: measured time so far.
        """
        if elapsed_s < self.duration_s or latency_ms.size < self.iterations:
            return None
        if self.max_noise_percent is None:
            return Ended.DURATION
        if noise_percent(latency_ms) < self.max_noise_percent:
            return Ended.NOISE
        return Ended.TIME_LIMIT if elapsed_s >= self.time_limit_s else None
