"""Checkpoints of seeded weights, where only sizes and times count."""

from __future__ import annotations

__all__ = ["write_seeded"]

import argparse
import os

import torch
from torch import nn

from vntools.models.arch import ARCHITECTURES, Architecture
from vntools.models.vanillanet import VanillaNet, initialize


def write_seeded(path: str | os.PathLike[str], arch: Architecture) -> None:
    """A checkpoint in the released format, with seeded weights and plausible statistics."""
    draw = torch.Generator().manual_seed(0)
    network = VanillaNet(arch)
    initialize(network, generator=draw)
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            part.weight.data.normal_(0, part.weight[0].numel() ** -0.5, generator=draw)
        if isinstance(part, nn.BatchNorm2d):
            part.get_buffer("running_mean").normal_(0, 0.1, generator=draw)
            part.get_buffer("running_var").uniform_(0.5, 2, generator=draw)
    weights = network.state_dict()
    average = {k: v.clone() for k, v in weights.items()}
    args = argparse.Namespace(
        model=arch.name, decay_epochs=100, act_num=arch.activation_n,
        nb_classes=arch.num_classes, input_size=arch.image_size,
    )  # fmt: skip
    if arch.name not in ARCHITECTURES:
        args.dims, args.strides = arch.dims, arch.strides
    torch.save({"model": weights, "model_ema": average, "epoch": 299, "args": args}, path)
