"""Two sets of outputs side by side, and the gates that a comparison has to pass."""

from __future__ import annotations

__all__ = ["FLOAT32_FACTOR", "FLOAT32_FLOOR", "Comparison", "compare", "relative_l2"]

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vntools.base.errors import CheckFailed
from vntools.base.tolerance import Tolerance

FLOAT32_FACTOR = 8.0
"""A rewritten float32 graph may be this many times as far from float64 as the unsimplified
one: rounding depends on the order of sums, a wrong rewrite is off by orders of magnitude
    more."""

FLOAT32_FLOOR = 1e-7
"""The least that is allowed, about 2^-23: a graph that happens to be exact proves no bound."""

Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Comparison:
    """How far outputs are from their reference; the worst over all outputs and inputs.

    Attributes:
        relative_l2: ||got - want|| / ||want||.
        max_abs: largest absolute difference.
        top1_agreement: share of samples whose largest entry is the same one, of the outputs
            that are (samples, classes); a dense map has ties within rounding. Where outputs
            are integers, the share of samples for which these are the same.
        samples: how many samples that share is of.
    """

    relative_l2: float
    max_abs: float
    top1_agreement: float
    samples: int

    def to_record(self, tolerance: Tolerance) -> dict[str, float]:
        """As JSON, with what was allowed."""
        return {
            "relative_l2": self.relative_l2,
            "max_abs": self.max_abs,
            "top1_agreement": self.top1_agreement,
            "allowed": tolerance.max_relative_l2,
        }

    def require(self, tolerance: Tolerance, what: str) -> Comparison:
        """This comparison, if it is within ``tolerance``.

        Raises:
            CheckFailed: ``verify.mismatch``.
        """
        # Written so that a NaN fails.
        if not self.relative_l2 <= tolerance.max_relative_l2:
            raise CheckFailed(
                "verify.mismatch",
                f"{what}: relative L2 error {self.relative_l2:.2e}, allowed "
                f"{tolerance.max_relative_l2:.2e}",
                hint="nothing was written",
            )
        if tolerance.same_top1 and not self.top1_agreement == 1.0:
            raise CheckFailed(
                "verify.mismatch",
                f"{what}: top-1 agrees on {self.top1_agreement:.1%} of {self.samples} samples",
                hint="nothing was written",
            )
        return self


def relative_l2(got: NDArray[Any], want: NDArray[Any]) -> float:
    """||got - want|| / ||want|| in float64; both (n, ..)."""
    want64 = want.astype(np.float64, copy=False)
    return float(np.linalg.norm((got - want64).ravel()) / np.linalg.norm(want64.ravel()))


def compare(pairs: Sequence[tuple[Outputs, Outputs]], what: str) -> Comparison:
    """Compare (got, want) output by output; an output that is a sequence part by part.

    Raises:
        CheckFailed: ``verify.empty`` (nothing to compare), ``verify.shape`` (an output is
            missing or has another shape), ``verify.nonfinite``, ``verify.zero`` (every
            reference is zero, which proves nothing).
    """
    worst_l2 = worst_abs = 0.0
    same = samples = 0
    zero, telling = "", False
    for got, want in pairs:
        listed = any(_is_listed(y) for y in want.values())
        for name, value, reference in _parts(got, want):
            if value is None or value.shape != reference.shape:
                found = "is missing" if value is None else f"has shape {value.shape}"
                raise CheckFailed(
                    "verify.shape", f"{what}: {name} {found}, expected {reference.shape}"
                )
            if _is_listed(reference):
                # Indices: a sample's are the same or they are not; they have no distance.
                alike = np.atleast_1d(value == reference)
                alike = alike.reshape(len(alike), -1).all(axis=1)
                same, samples = same + int(alike.sum()), samples + alike.size
                telling = True
                continue
            if not (np.isfinite(value).all() and np.isfinite(reference).all()):
                raise CheckFailed("verify.nonfinite", f"{what}: {name} is not finite")
            apart = float(np.abs(value - reference).max(initial=0.0))
            worst_abs = max(worst_abs, apart)
            if np.any(reference):
                worst_l2 = max(worst_l2, relative_l2(value, reference))
                telling = True
            else:
                worst_l2, zero = max(worst_l2, apart), zero or name
            if reference.ndim == 2 and reference.size and not listed:
                agree = value.argmax(axis=1) == reference.argmax(axis=1)
                same, samples = same + int(agree.sum()), samples + agree.size
    if not telling and zero:
        raise CheckFailed("verify.zero", f"{what}: the reference of {zero} is zero")
    if not telling:
        raise CheckFailed("verify.empty", f"{what}: there is no output to compare")
    return Comparison(worst_l2, worst_abs, same / samples if samples else 1.0, samples)


def _is_listed(value: Any) -> bool:
    """Whether an output holds integers, truth values or words."""
    return not isinstance(value, list) and value.dtype.kind not in "fc"


def _parts(
    got: Outputs, want: Outputs
) -> Iterator[tuple[str, NDArray[Any] | None, NDArray[Any]]]:
    """Name, value and reference of every array; the values of a sequence are numbered."""
    for name, reference in want.items():
        value: Any = got.get(name)
        if not isinstance(reference, list):
            yield name, value, reference
            continue
        values: list[Any] = value if isinstance(value, list) else []
        if len(values) > len(reference):
            yield name, np.zeros(len(values)), np.zeros(len(reference))
        for i, part in enumerate(reference):
            yield f"{name}[{i}]", values[i] if i < len(values) else None, part
