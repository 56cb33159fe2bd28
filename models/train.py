"""Deep training (sec. 3.1): the activation between two convolutions fades while a network trains.

A small loop for small networks, not the paper's 300 epochs of ImageNet: AdamW, label smoothing,
linear warm-up and cosine decay of the learning rate, optionally an average of the weights. The
last epochs run at lambda = 1, so that what is saved can be merged.
"""

from __future__ import annotations

__all__ = [
    "EpochReport",
    "TrainOptions",
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
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from vntools.base.artifacts import published
from vntools.base.errors import CheckFailed, UsageFault
from vntools.models.arch import Architecture, Preprocessing
from vntools.models.data import Images
from vntools.models.schedule import Schedule, lambda_at
from vntools.models.vanillanet import VanillaNet, initialize

_TEST_BATCH = 256
_SLOWER = "give a smaller --lr"


@dataclass(frozen=True)
class TrainOptions:
    """What is trained, and how.

    Attributes:
        arch: the network; its number of classes is the data's.
        preprocessing: what images go through; its size is the network's.
        epochs: passes over the data; more than ``decay_epochs``.
        decay_epochs: epochs in which lambda grows from 0 to 1.
        schedule: how lambda grows.
        batch_size: images a step.
        learning_rate: its highest value, behind the warm-up.
        weight_decay: of the convolutions' weights.
        warmup_epochs: in which the learning rate grows linearly.
        label_smoothing: the part of the target that is spread over all classes.
        ema_decay: of the averaged weights, a step; None for no average.
        seed: of initial weights, order and cropping.
    """

    arch: Architecture
    preprocessing: Preprocessing
    epochs: int = 20
    decay_epochs: int = 14
    schedule: Schedule = "linear"
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    warmup_epochs: int = 1
    label_smoothing: float = 0.1
    ema_decay: float | None = 0.98
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs <= self.decay_epochs or self.decay_epochs < 0:
            raise UsageFault(
                "train.epochs",
                f"{self.epochs} epochs with {self.decay_epochs} of decay end below lambda = 1",
                hint="give more --epochs than --decay-epochs",
            )


@dataclass(frozen=True)
class EpochReport:
    """How one epoch went; ``top1_percent`` is that of the weights that will be used."""

    epoch: int
    activation_lambda: float
    loss: float
    top1_percent: float
    seconds: float


@dataclass(frozen=True)
class Trained:
    """A trained network: the content of a checkpoint in the released format, and its history."""

    options: TrainOptions
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
    arch = replace(options.arch, num_classes=len(training.classes))
    options = replace(options, arch=arch)
    rng = np.random.default_rng(options.seed)
    network = VanillaNet(arch, activation_lambda=0.0)
    initialize(network, generator=torch.Generator().manual_seed(options.seed))
    average = None if options.ema_decay is None else copy.deepcopy(network)
    history: list[EpochReport] = []
    optimizer = _optimizer(network, options)
    for epoch in range(options.epochs):
        start = time.perf_counter()
        value = lambda_at(epoch, options.decay_epochs, schedule=options.schedule)
        network.set_lambda(value)
        loss = _train_epoch(network, average, optimizer, training, options, epoch, rng)
        if not math.isfinite(loss):
            raise CheckFailed("train.diverged", f"the loss is {loss} in epoch {epoch}", hint=_SLOWER)
        used = network if average is None else average
        used.set_lambda(value)
        top1 = top1_percent(used, test, options.preprocessing)
        seconds = time.perf_counter() - start
        history.append(EpochReport(epoch, value, loss, top1, seconds))
        on_epoch(history[-1])
    return Trained(options, _content(network, average, options), tuple(history))


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


def _optimizer(network: VanillaNet, options: TrainOptions) -> torch.optim.Optimizer:
    """AdamW, with weight decay on convolution weights alone."""
    weights = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim == 1]
    groups = [{"params": weights}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=options.weight_decay)


def _train_epoch(
    network: VanillaNet,
    average: VanillaNet | None,
    optimizer: torch.optim.Optimizer,
    images: Images,
    options: TrainOptions,
    epoch: int,
    rng: np.random.Generator,
) -> float:
    """One pass over the images; the mean loss of its steps."""
    network.train()
    losses: list[float] = []
    order = rng.permutation(len(images))
    size = min(options.batch_size, len(images))
    steps = len(images) // size
    for step in range(steps):
        indices = order[step * size : (step + 1) * size]
        x = torch.from_numpy(images.batch(indices, options.preprocessing, augment=rng))
        y = torch.from_numpy(images.labels[indices])
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(options, epoch + step / steps)
        loss = functional.cross_entropy(network(x), y, label_smoothing=options.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if average is not None and options.ema_decay is not None:
            # The first steps count more, or the initial weights would stay in for epochs.
            done = epoch * steps + step
            decay = min(options.ema_decay, (1 + done) / (10 + done))
            _update_average(average, network, decay=decay)
    return float(np.mean(losses))


def _learning_rate(options: TrainOptions, epoch: float) -> float:
    """Linear warm-up, then half a cosine down to 0 at the end; ``epoch`` may lie inside one."""
    warmup = options.warmup_epochs
    if epoch < warmup:
        return options.learning_rate * epoch / warmup
    part = (epoch - warmup) / (options.epochs - warmup)
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * part))


def _update_average(average: VanillaNet, network: VanillaNet, *, decay: float) -> None:
    """Move the averaged weights and statistics towards the present ones by 1 - ``decay``."""
    pairs = zip(average.state_dict().values(), network.state_dict().values(), strict=True)
    for mean, value in pairs:
        if mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)


def _content(
    network: VanillaNet, average: VanillaNet | None, options: TrainOptions
) -> dict[str, object]:
    """A checkpoint in the released format, with what that format lacks beside its ``args``."""
    arch, preprocessing = options.arch, options.preprocessing
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
        crop_ratio=preprocessing.crop_ratio,
        mean=preprocessing.mean,
        std=preprocessing.std,
    )
    content: dict[str, object] = {"model": network.state_dict()}
    if average is not None:
        content["model_ema"] = average.state_dict()
    return content | {"epoch": options.epochs - 1, "args": args}


def write_checkpoint(trained: Trained, path: str | os.PathLike[str], *, force: bool) -> None:
    """Write a trained network, whole or not at all.

    Raises:
        CannotCreate, NoPermission, IoFault: as ``vntools.base.artifacts.published``.
    """
    with published(path, force=force) as file:
        torch.save(trained.content, file)
