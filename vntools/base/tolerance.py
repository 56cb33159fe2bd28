"""How far a result may be from its reference: data with a reason."""

from __future__ import annotations

__all__ = ["Tolerance"]

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """How far outputs may be from their reference.

    Attributes:
        max_relative_l2: of each output, over the whole batch.
        same_top1: whether the largest logit of each sample must be the same one.
        why: where the bound comes from.
    """

    max_relative_l2: float
    same_top1: bool
    why: str
