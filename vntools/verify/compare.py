"""Two sets of outputs side by side, and the gates that a comparison has to pass."""

from __future__ import annotations

__all__ = [
    "FLOAT32_FACTOR",
    "FLOAT32_FLOOR",
    "Comparison",
    "Difference",
    "Tally",
    "compare",
    "relative_l2",
]

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vntools.base.errors import CheckFailed, first_three
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


@dataclass(frozen=True)
class Difference:
    """How far one output is from its reference, over all batches; None where it has no such.

    Attributes:
        output: its name.
        samples: how many were compared.
        relative_l2: ||got - want|| / ||want|| of the batch where it is largest.
        max_abs: largest absolute difference.
        cosine: of the angle between the two, of the batch where it is smallest.
        top1_agreement: share of samples whose largest entry is the same one, of an output
            (samples, classes); beside integers, which then are the classes, None.
        equal: share of samples that are the same, of integers and truth values.
    """

    output: str
    samples: int
    relative_l2: float | None = None
    max_abs: float | None = None
    cosine: float | None = None
    top1_agreement: float | None = None
    equal: float | None = None

    def beyond(self, tolerance: Tolerance) -> str:
        """What is beyond ``tolerance``, in words; empty where nothing is.

        Integers have no distance: they must be equal whatever is allowed.
        """
        if self.relative_l2 is None:
            if self.equal == 1.0:
                return ""
            return f"{self.output}: equal on {self.equal or 0:.2%} of {self.samples} samples"
        # Written so that a NaN fails.
        if not self.relative_l2 <= tolerance.max_relative_l2:
            return (
                f"{self.output}: relative L2 {self.relative_l2:.2e}, allowed "
                f"{tolerance.max_relative_l2:.2e}"
            )
        if tolerance.same_top1 and self.top1_agreement not in (None, 1.0):
            return (
                f"{self.output}: top-1 agrees on {self.top1_agreement:.2%} of "
                f"{self.samples} samples"
            )
        return ""

    def to_record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass
class _Sum:
    """What :class:`Tally` has seen of one output."""

    samples: int = 0
    relative_l2: float = 0.0
    max_abs: float = 0.0
    cosine: float = 1.0
    top1: int | None = None
    equal: int | None = None
    telling: bool = False


class Tally:
    """Differences output by output, gathered batch by batch in bounded memory."""

    def __init__(self) -> None:
        self._sums: dict[str, _Sum] = {}

    def add(self, got: Outputs, want: Outputs) -> None:
        """Take a batch: outputs (samples, ...) by name, the same names on both sides.

        Raises:
            CheckFailed: ``verify.outputs`` (one is missing, or is integer on one side only),
                ``verify.shape``, ``verify.empty`` (an output without values),
                ``verify.nonfinite``.
        """
        if got.keys() != want.keys():
            alone = first_three(sorted(got.keys() ^ want.keys()))
            raise CheckFailed("verify.outputs", f"on one side only: {alone}")
        ranked = any(map(_is_listed, want.values()))
        for name, reference in want.items():
            value = got[name]
            if value.shape != reference.shape:
                raise CheckFailed(
                    "verify.shape", f"{name} has shape {value.shape}, not {reference.shape}"
                )
            if not reference.size:
                raise CheckFailed("verify.empty", f"{name} has no values: {value.shape}")
            if _is_listed(value) != _is_listed(reference):
                raise CheckFailed(
                    "verify.outputs", f"{name} is {value.dtype}, not {reference.dtype}"
                )
            total = self._sums.setdefault(name, _Sum())
            total.samples += len(np.atleast_1d(reference))
            if _is_listed(reference):
                alike = np.atleast_1d(value == reference)
                rows = alike.reshape(len(alike), -1).all(axis=1)
                total.equal = (total.equal or 0) + int(rows.sum())
                total.telling = True
            else:
                _add_floats(total, name, value, reference)
                if reference.ndim == 2 and not ranked:
                    agree = value.argmax(axis=1) == reference.argmax(axis=1)
                    total.top1 = (total.top1 or 0) + int(agree.sum())

    def differences(self) -> tuple[Difference, ...]:
        """What was gathered, output by output.

        Raises:
            CheckFailed: ``verify.empty`` (nothing was compared), ``verify.zero`` (every
                reference was zero, which proves nothing).
        """
        if not self._sums:
            raise CheckFailed("verify.empty", "there was nothing to compare")
        if not any(s.telling for s in self._sums.values()):
            raise CheckFailed("verify.zero", f"{first_three(self._sums)}: zero everywhere")
        return tuple(_difference(name, s) for name, s in self._sums.items())


def _add_floats(total: _Sum, name: str, value: NDArray[Any], reference: NDArray[Any]) -> None:
    got, want = value.astype(np.float64), reference.astype(np.float64)
    if not (np.isfinite(got).all() and np.isfinite(want).all()):
        raise CheckFailed("verify.nonfinite", f"{name} is not finite")
    apart = float(np.abs(got - want).max())
    total.max_abs = max(total.max_abs, apart)
    if want.any():
        total.telling = True
        total.relative_l2 = max(total.relative_l2, relative_l2(got, want))
        norms = float(np.linalg.norm(got.ravel()) * np.linalg.norm(want.ravel()))
        angle = float(np.vdot(got, want)) / norms if norms else 0.0
        total.cosine = min(total.cosine, angle)
    else:
        total.relative_l2 = max(total.relative_l2, apart)


def _difference(name: str, s: _Sum) -> Difference:
    if s.equal is not None:
        return Difference(name, s.samples, equal=s.equal / s.samples)
    top1 = None if s.top1 is None else s.top1 / s.samples
    return Difference(name, s.samples, s.relative_l2, s.max_abs, s.cosine, top1)
