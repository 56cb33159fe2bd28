"""lambda of Eq. 1 over the epochs, and what a checkpoint tells of it."""

from __future__ import annotations

import pytest

from vntools.base.errors import UsageFault
from vntools.models.arch import ARCHITECTURES
from vntools.models.schedule import LambdaInfo, Schedule, TrainOptions, lambda_at, lambda_of


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_lambda_runs_from_0_to_exactly_1(schedule: Schedule) -> None:
    values = [lambda_at(e, 100, schedule=schedule) for e in range(120)]
    assert values[0] == 0
    assert values[:101] == sorted(values[:101])
    assert values[99] < 1
    assert set(values[100:]) == {1.0}


def test_lambda_by_schedule() -> None:
    assert lambda_at(40, 100) == 0.4
    assert lambda_at(40, 100, schedule="cosine") == pytest.approx(0.3454915)
    assert lambda_at(99, 100, schedule="cosine") == pytest.approx(0.9997533)
    assert lambda_at(0, 0) == 1


def of(epoch: object, decay_epochs: int | None, *, has_args: bool = True) -> LambdaInfo:
    return lambda_of(epoch, decay_epochs, schedule="linear", has_args=has_args)


@pytest.mark.parametrize(
    ("epoch", "decay_epochs", "value"),
    [(100, 100, 1.0), (299, 100, 1.0), (99, 100, 0.99), (0, 100, 0.0), (-3, 100, 0.0)],
)
def test_lambda_is_that_of_the_last_epoch(epoch: int, decay_epochs: int, value: float) -> None:
    assert of(epoch, decay_epochs) == LambdaInfo(value, epoch, decay_epochs)


@pytest.mark.parametrize(
    ("epoch", "decay_epochs"), [(7, None), (7, 0), (None, 0), ("best", 0)]
)
def test_without_deep_training_lambda_is_1(epoch: object, decay_epochs: int | None) -> None:
    info = of(epoch, decay_epochs)
    assert info.value == 1
    assert not info.assumed


@pytest.mark.parametrize("epoch", [None, "best", "best-ema", True, 40.0, [40]])
def test_an_epoch_that_tells_nothing_is_assumed_to_be_the_last(epoch: object) -> None:
    assert of(epoch, 100) == LambdaInfo(1.0, None, 100, assumed=True)


def test_without_args_lambda_is_assumed() -> None:
    assert of(40, None, has_args=False).assumed
    assert of(None, None, has_args=False).assumed


@pytest.mark.parametrize(("epochs", "decay_epochs"), [(8, 8), (8, 9), (1, 1), (5, -1)])
def test_training_that_would_end_below_1_is_refused(epochs: int, decay_epochs: int) -> None:
    arch = ARCHITECTURES["vanillanet_5"]
    TrainOptions(arch, epochs=9, decay_epochs=8)
    TrainOptions(arch, epochs=1, decay_epochs=0)
    with pytest.raises(UsageFault, match="below lambda = 1") as caught:
        TrainOptions(arch, epochs=epochs, decay_epochs=decay_epochs)
    assert caught.value.code == "train.epochs"
