"""lambda of Eq. 1: how deep training moves it from 0 to 1, and what a checkpoint says of it."""

from __future__ import annotations

__all__ = ["LambdaInfo", "Schedule", "lambda_at", "lambda_of"]

import math
from dataclasses import dataclass
from typing import Literal

Schedule = Literal["linear", "cosine"]


def lambda_at(epoch: int, decay_epochs: int, *, schedule: Schedule = "linear") -> float:
    """lambda during epoch ``epoch`` (counted from 0) of ``decay_epochs`` deep-training epochs.

    Linear: e / E (the paper's sec. 3.1); cosine: 0.5 (1 - cos(pi e / E)). Exactly 1 from e = E on,
    and where E is 0.
    """
    if epoch >= decay_epochs:
        return 1.0
    part = max(epoch, 0) / decay_epochs
    return part if schedule == "linear" else 0.5 * (1 - math.cos(math.pi * part))


@dataclass(frozen=True)
class LambdaInfo:
    """lambda of a checkpoint and what it was worked out from.

    Attributes:
        value: lambda; None for a deploy form, which has no fading activation.
        epoch: the last finished epoch, counted from 0, where the file says it.
        decay_epochs: deep-training epochs, where the file says it.
        assumed: nothing in the file says lambda; it is taken for 1.
    """

    value: float | None
    epoch: int | None = None
    decay_epochs: int | None = None
    schedule: Schedule = "linear"
    assumed: bool = False

    def describe(self) -> str:
        """lambda and its origin, in a few words."""
        if self.value is None:
            return "deploy form"
        if self.assumed:
            return "lambda assumed to be 1"
        if not self.decay_epochs:
            return "lambda = 1, no deep-training epochs"
        return f"lambda = {self.value:.4g}, epoch {self.epoch} of decay_epochs {self.decay_epochs}"


def lambda_of(
    epoch: object, decay_epochs: int | None, *, schedule: Schedule, has_args: bool
) -> LambdaInfo:
    """lambda of a training-form checkpoint, from its ``epoch`` and ``args``.

    The released code stores in ``epoch`` the number, counted from 0, of the epoch that has just been
    trained, and trains epoch e with lambda(e). So the weights in a file go with lambda(epoch), and
    are mergeable from ``epoch == decay_epochs`` on; one epoch earlier they are not.

    Args:
        epoch: what the file holds: an int, 'best', 'best-ema', nothing (None), or anything.
        decay_epochs: ``args.decay_epochs``; None where absent.
        has_args: whether the file holds ``args`` at all.
    """
    number = epoch if type(epoch) is int else None
    if decay_epochs == 0 or (decay_epochs is None and has_args and number is not None):
        return LambdaInfo(1.0, number, decay_epochs, schedule)
    if number is None or decay_epochs is None:
        return LambdaInfo(1.0, number, decay_epochs, schedule, assumed=True)
    value = lambda_at(number, decay_epochs, schedule=schedule)
    return LambdaInfo(value, number, decay_epochs, schedule)
