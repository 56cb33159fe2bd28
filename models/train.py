"""Deep training (sec. 3.1): the activation between two convolutions fades as a network learns.

A small loop for small networks, not the paper's 300 epochs of ImageNet: AdamW, label
smoothing, a learning rate with linear warm-up and cosine decay, averaged weights. The last
epochs run at lambda = 1, so what is saved can be merged.
"""

from __future__ import annotations

__all__ = [
    "EpochReport",
    "Trained",
    "top1_percent",
    "train",
    "write_checkpoint",
]

import argparse
import copy
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from vntools.base.artifacts import published
from vntools.base.errors import CheckFailed
from vntools.models.arch import Architecture, Preprocessing
from vntools.models.data import Images
from vntools.models.schedule import TrainOptions, lambda_at
from vntools.models.vanillanet import VanillaNet, initialize

_TEST_BATCH = 256


@dataclass(frozen=True)
class EpochReport:
    """How an epoch went; ``top1_percent`` is that of the weights that a loader will prefer."""

    epoch: int
    activation_lambda: float
    loss: float
    top1_percent: float
    seconds: float


@dataclass(frozen=True)
class Trained:
    """A trained network: the content of its checkpoint, and how training went."""

    arch: Architecture
    content: dict[str, object]
    history: tuple[EpochReport, ...]


def train(
    options: TrainOptions,
    training: Images,
    test: Images,
    *,
    on_epoch: Callable[[EpochReport], object] = lambda _: None,
) -> Trained:
    """Deep-train a network, and measure it on ``test`` after every epoch.

    Args:
        options: what is trained, and how.
        training: images to learn from; the last incomplete batch of an epoch is left out.
        test: images that are only measured on.
        on_epoch: called after every epoch.

    Raises:
        CheckFailed: ``train.diverged``: the loss is no longer finite.
    """
    usual = training.preprocessing
    arch = replace(
        options.arch, num_classes=len(training.classes), crop_ratio=usual.crop_ratio
    )
    options = replace(options, arch=arch)
    preprocessing = replace(usual, image_size=arch.image_size)
    run = _Run(options, preprocessing)
    history: list[EpochReport] = []
    for epoch in range(options.epochs):
        start = time.perf_counter()
        value = lambda_at(epoch, options.decay_epochs, schedule=options.schedule)
        loss = run.train_epoch(training, epoch, activation_lambda=value)
        if not math.isfinite(loss):
            why = f"the loss is {loss} in epoch {epoch}"
            raise CheckFailed("train.diverged", why, hint="give a smaller --lr")
        top1 = top1_percent(run.average or run.network, test, preprocessing)
        seconds = time.perf_counter() - start
        history.append(EpochReport(epoch, value, loss, top1, seconds))
        on_epoch(history[-1])
    return Trained(arch, _content(run), tuple(history))


def top1_percent(network: nn.Module, images: Images, preprocessing: Preprocessing) -> float:
    """Per cent of ``images`` whose largest logit is that of their label."""
    network.eval()
    right = 0
    with torch.inference_mode():
        for start in range(0, len(images), _TEST_BATCH):
            indices = np.arange(start, min(start + _TEST_BATCH, len(images)))
            x = torch.from_numpy(images.batch(indices, preprocessing))
            right += int((network(x).argmax(1).numpy() == images.labels[indices]).sum())
    return 100 * right / len(images)


def write_checkpoint(trained: Trained, path: str | os.PathLike[str], *, force: bool) -> None:
    """Write a trained network, whole or not at all.

    Raises:
        CannotCreate, NoPermission, IoFault: as :func:`vntools.base.artifacts.published`.
    """
    with published(path, force=force) as file:
        torch.save(trained.content, file)


@dataclass
class _Run:
    """What changes while a network is trained."""

    options: TrainOptions
    preprocessing: Preprocessing
    network: VanillaNet = field(init=False)
    average: VanillaNet | None = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    rng: np.random.Generator = field(init=False)
    steps_done: int = 0

    def __post_init__(self) -> None:
        o = self.options
        self.rng = np.random.default_rng(o.seed)
        self.network = VanillaNet(o.arch)
        initialize(self.network, generator=torch.Generator().manual_seed(o.seed))
        self.average = None if o.ema_decay is None else copy.deepcopy(self.network)
        weights = [p for p in self.network.parameters() if p.ndim > 1]
        others = [p for p in self.network.parameters() if p.ndim == 1]
        groups = [{"params": weights}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=o.weight_decay)

    def train_epoch(self, images: Images, epoch: int, *, activation_lambda: float) -> float:
        """One pass over the images; the mean loss of its steps."""
        for network in filter(None, (self.network, self.average)):
            network.set_lambda(activation_lambda)
        self.network.train()
        order = self.rng.permutation(len(images))
        size = min(self.options.batch_size, len(images))
        steps = len(images) // size
        losses: list[float] = []
        for step in range(steps):
            indices = order[step * size : (step + 1) * size]
            x = torch.from_numpy(images.batch(indices, self.preprocessing, augment=self.rng))
            y = torch.from_numpy(images.labels[indices])
            losses.append(self._step(x, y, _learning_rate(self.options, epoch + step / steps)))
        return float(np.mean(losses))

    def _step(self, x: torch.Tensor, y: torch.Tensor, learning_rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        smoothing = self.options.label_smoothing
        loss = functional.cross_entropy(self.network(x), y, label_smoothing=smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.steps_done += 1
        if self.average is not None and self.options.ema_decay is not None:
            # The average follows closely at first, or it would long keep the initial weights.
            early = self.steps_done / (9 + self.steps_done)
            _follow(self.average, self.network, decay=min(self.options.ema_decay, early))
        return loss.item()


def _follow(average: VanillaNet, network: VanillaNet, *, decay: float) -> None:
    """Move averaged weights and statistics towards the present ones by 1 - ``decay``."""
    present = network.state_dict()
    for name, mean in average.state_dict().items():
        if mean.is_floating_point():
            mean.lerp_(present[name], 1 - decay)
        else:
            mean.copy_(present[name])


def _learning_rate(options: TrainOptions, epoch: float) -> float:
    """Linear warm-up, then half a cosine down to 0; ``epoch`` may lie inside one."""
    warmup = min(options.warmup_epochs, options.epochs - 1)
    if epoch < warmup:
        return options.learning_rate * epoch / warmup
    part = (epoch - warmup) / (options.epochs - warmup)
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * part))


def _content(run: _Run) -> dict[str, object]:
    """A checkpoint in the released format, with what that format lacks beside its ``args``."""
    options, arch = run.options, run.options.arch
    args = argparse.Namespace(
        model=arch.name,
        decay_epochs=options.decay_epochs,
        decay_linear=options.schedule == "linear",
        act_num=arch.activation_n,
        nb_classes=arch.num_classes,
        input_size=arch.image_size,
        epochs=options.epochs,
        batch_size=options.batch_size,
        lr=options.learning_rate,
        seed=options.seed,
        dims=arch.dims,
        strides=arch.strides,
        adaptive=arch.adaptive,
        stem_stride=arch.stem_stride,
        stem_padding=arch.stem_padding,
        crop_ratio=arch.crop_ratio,
        mean=run.preprocessing.mean,
        std=run.preprocessing.std,
    )
    averaged = {} if run.average is None else {"model_ema": run.average.state_dict()}
    return {
        "model": run.network.state_dict(),
        **averaged,
        "epoch": options.epochs - 1,
        "args": args,
    }
