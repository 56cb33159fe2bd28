"""Deep training as numbers: its options, and the lambda of Eq. 1 that it moves from 0 to 1."""

from __future__ import annotations

__all__ = ["LambdaInfo", "Schedule", "TrainOptions", "lambda_at", "lambda_of"]

import math
from dataclasses import dataclass
from typing import Literal

from vntools.base.errors import UsageFault
from vntools.models.arch import Architecture

Schedule = Literal["linear", "cosine"]


@dataclass(frozen=True)
class TrainOptions:
    """What is trained, and how.

    Attributes:
        arch: the network; classes and crop ratio will be those of the data.
        epochs: passes over the data, more than ``decay_epochs``.
        decay_epochs: epochs in which lambda grows from 0 towards 1.
        schedule: how lambda grows.
        batch_size: images a step.
        learning_rate: its highest value, behind the warm-up.
        weight_decay: of convolution weights.
        warmup_epochs: in which the learning rate grows linearly.
        label_smoothing: the part of the target that is spread over all classes.
        ema_decay: of the averaged weights, a step; None for no average.
        seed: of initial weights, order and cropping.

    Raises:
        UsageFault: ``train.epochs``: training would end below lambda = 1.
    """

    arch: Architecture
    epochs: int = 12
    decay_epochs: int = 8
    schedule: Schedule = "linear"
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    warmup_epochs: int = 1
    label_smoothing: float = 0.1
    ema_decay: float | None = 0.98
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.decay_epochs < self.epochs:
            raise UsageFault(
                "train.epochs",
                f"{self.epochs} epochs with {self.decay_epochs} of decay end below lambda = 1",
                hint="give more --epochs than --decay-epochs",
            )


def lambda_at(epoch: int, decay_epochs: int, *, schedule: Schedule = "linear") -> float:
    """The lambda of epoch e = ``epoch``, counted from 0, of E = ``decay_epochs``.

    Linear: e / E (the paper's sec. 3.1); cosine: 0.5 (1 - cos(pi e / E)). Exactly 1 from e = E
    on, and where E is 0.
    """
    if epoch >= decay_epochs:
        return 1.0
    part = max(epoch, 0) / decay_epochs
    return part if schedule == "linear" else 0.5 * (1 - math.cos(math.pi * part))


@dataclass(frozen=True)
class LambdaInfo:
    """The lambda of a checkpoint and what it was worked out from.

    Attributes:
        value: lambda; None for a deploy form, which has no fading activation.
        epoch: the last finished epoch, counted from 0, where the file tells.
        decay_epochs: deep-training epochs, where the file tells.
        schedule: how lambda grew.
        assumed: nothing in the file tells lambda; it is taken for 1.
    """

    value: float | None
    epoch: int | None = None
    decay_epochs: int | None = None
    schedule: Schedule = "linear"
    assumed: bool = False


def lambda_of(
    epoch: object, decay_epochs: int | None, *, schedule: Schedule, has_args: bool
) -> LambdaInfo:
    """The lambda of a training-form checkpoint, from its ``epoch`` and ``args``.

    The released code stores in ``epoch`` the number, counted from 0, of the epoch that was
    trained last, and trains epoch e with lambda(e). So the weights in a file go with
    lambda(epoch): mergeable from ``epoch == decay_epochs`` on, and not one epoch before.

    Args:
        epoch: what the file holds: an int, 'best', 'best-ema', None where absent, or anything.
        decay_epochs: ``args.decay_epochs``; None where absent.
        schedule: how lambda grew.
        has_args: whether the file holds ``args`` at all.
    """
    number = epoch if isinstance(epoch, int) and type(epoch) is int else None
    if decay_epochs == 0 or (decay_epochs is None and has_args and number is not None):
        return LambdaInfo(1.0, number, decay_epochs, schedule)
    if number is None or decay_epochs is None:
        return LambdaInfo(1.0, number, decay_epochs, schedule, assumed=True)
    value = lambda_at(number, decay_epochs, schedule=schedule)
    return LambdaInfo(value, number, decay_epochs, schedule)
