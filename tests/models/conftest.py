"""Small networks with random statistics, and checkpoint files of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vntools.models.arch import ARCHITECTURES, Architecture
from vntools.models.vanillanet import DeployVanillaNet, VanillaNet

SMALL = Architecture("small", (8, 12, 16), (2, 1), num_classes=5, image_size=32)


def randomize(network: nn.Module, *, seed: int = 0) -> nn.Module:
    """Weights of unit gain and BatchNorm statistics that matter, drawn from a seed."""
    draw = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=draw)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=draw)
            module.get_buffer("running_mean").normal_(generator=draw)
            module.get_buffer("running_var").uniform_(0.2, 2.0, generator=draw)
    return network.eval()


@pytest.fixture
def small() -> Architecture:
    return SMALL


@pytest.fixture
def narrow() -> Callable[[str], Architecture]:
    """A published architecture with 1/64 of its channels and 7 classes."""

    def call(name: str) -> Architecture:
        arch = ARCHITECTURES[name]
        return replace(arch, dims=tuple(d // 64 for d in arch.dims), num_classes=7)

    return call


@pytest.fixture
def network() -> Callable[..., nn.Module]:
    """A network of either form with random weights."""

    def call(arch: Architecture = SMALL, *, deploy: bool = False, seed: int = 0) -> nn.Module:
        return randomize(DeployVanillaNet(arch) if deploy else VanillaNet(arch), seed=seed)

    return call


@pytest.fixture
def namespace() -> Callable[..., argparse.Namespace]:
    """``args`` as training the small network leaves them, but for ``changes``."""

    def call(**changes: Any) -> argparse.Namespace:
        fields = {
            "model": SMALL.name,
            "decay_epochs": 100,
            "act_num": 3,
            "nb_classes": 5,
            "input_size": 32,
            "dims": SMALL.dims,
            "strides": SMALL.strides,
        }
        kept = {k: v for k, v in (fields | changes).items() if v is not ...}
        return argparse.Namespace(**kept)

    return call


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write an object with torch.save."""

    def call(content: object, name: str = "net.pth", **kwargs: Any) -> Path:
        torch.save(content, tmp_path / name, **kwargs)
        return tmp_path / name

    return call


@pytest.fixture
def checkpoint_file(
    network: Callable[..., nn.Module],
    namespace: Callable[..., argparse.Namespace],
    save: Callable[..., Path],
) -> Callable[..., Path]:
    """A released-format file of the small network.

    ``content`` adds to or replaces top-level entries (``...`` removes one), ``args`` changes
    fields of args, and ``edit`` may change the state dict in place.
    """

    def call(
        *,
        args: dict[str, Any] | None = None,
        edit: Callable[[dict[str, torch.Tensor]], object] | None = None,
        deploy: bool = False,
        **content: Any,
    ) -> Path:
        state = dict(network(deploy=deploy).state_dict())
        if edit is not None:
            edit(state)
        released = {"model": state, "epoch": 299, "args": namespace(**(args or {}))}
        whole = {k: v for k, v in (released | content).items() if v is not ...}
        return save(whole)

    return call
