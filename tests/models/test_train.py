"""Deep training: what it saves can be loaded, and it learns."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vntools.base.errors import CannotCreate, CheckFailed
from vntools.models.arch import Architecture
from vntools.models.checkpoint import load_checkpoint, require_merged, to_module
from vntools.models.data import Images, digits
from vntools.models.schedule import TrainOptions
from vntools.models.train import EpochReport, top1_percent, train, write_checkpoint

ARCH = Architecture("vanillanet", (8, 8, 16), (2, 1), activation_n=1, image_size=16)


def few() -> tuple[Images, Images]:
    """160 digits to learn from and 40 to measure on."""
    images, _ = digits()
    return images._part(np.arange(160)), images._part(np.arange(160, 200))


def options(**changes: Any) -> TrainOptions:
    plain: dict[str, Any] = {"epochs": 3, "decay_epochs": 2, "batch_size": 32}
    return TrainOptions(ARCH, **(plain | changes))


@pytest.mark.parametrize("average", [0.9, None])
def test_what_is_saved_can_be_loaded_without_asking(
    average: float | None, tmp_path: Path
) -> None:
    training, test = few()
    trained = train(options(ema_decay=average, schedule="cosine"), training, test)
    path = tmp_path / "net.pth"
    write_checkpoint(trained, path, force=False)
    checkpoint = load_checkpoint(path)
    assert checkpoint.arch == trained.arch
    assert (checkpoint.arch.num_classes, checkpoint.arch.crop_ratio) == (10, 1.0)
    assert checkpoint.key_used == ("model" if average is None else "model_ema")
    assert (checkpoint.lambda_.value, checkpoint.lambda_.epoch) == (1.0, 2)
    assert checkpoint.lambda_.schedule == "cosine"
    assert checkpoint.preprocessing == replace(test.preprocessing, image_size=16)
    assert checkpoint.warnings == ()
    require_merged(checkpoint)
    measured = top1_percent(to_module(checkpoint), test, checkpoint.preprocessing)
    assert measured == trained.history[-1].top1_percent


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(b"other")
    trained = train(options(), *few())
    with pytest.raises(CannotCreate):
        write_checkpoint(trained, path, force=False)
    assert path.read_bytes() == b"other"


def test_every_epoch_is_reported_with_its_lambda() -> None:
    reports: list[EpochReport] = []
    trained = train(options(epochs=4, decay_epochs=2), *few(), on_epoch=reports.append)
    assert tuple(reports) == trained.history
    assert [r.activation_lambda for r in reports] == [0.0, 0.5, 1.0, 1.0]
    assert [r.epoch for r in reports] == [0, 1, 2, 3]
    assert all(math.isfinite(r.loss) for r in reports)


def test_the_same_seed_gives_the_same_network() -> None:
    weights = [
        train(options(seed=seed, epochs=1, decay_epochs=0), *few()).content["model"]
        for seed in (0, 0, 1)
    ]
    same, equal, other = (w["stem1.0.weight"] for w in weights)  # pyright: ignore[reportIndexIssue]
    assert torch.equal(same, equal)
    assert not torch.equal(same, other)


def test_a_loss_that_is_lost_ends_training() -> None:
    with pytest.raises(CheckFailed) as caught:
        train(options(learning_rate=1e30), *few())
    assert caught.value.code == "train.diverged"


def test_top1_counts_what_is_right() -> None:
    class Constant(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.eye(10)[3].expand(len(x), 10)

    _, test = digits()
    expected = 100 * float((test.labels == 3).mean())
    assert top1_percent(Constant(), test, test.preprocessing) == pytest.approx(expected)


@pytest.mark.slow
def test_a_network_learns_the_digits() -> None:
    arch = Architecture("vanillanet", (32, 64, 128), (2, 2), image_size=32)
    trained = train(TrainOptions(arch, epochs=6, decay_epochs=3), *digits())
    assert trained.history[-1].top1_percent > 95
