"""A small network's checkpoint, and what the chain makes of it, once per session."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from tests.models.conftest import randomize
from vntools.cli import vntools
from vntools.models.arch import Architecture
from vntools.models.vanillanet import VanillaNet

SMALL = Architecture("small", (16, 32, 64), (2, 1), num_classes=10, image_size=32)


def write_checkpoint(path: Path, arch: Architecture = SMALL, **changes: Any) -> Path:
    """A released-format checkpoint of seeded weights; ``changes`` are to its keys."""
    network = randomize(VanillaNet(arch))
    args = argparse.Namespace(
        model=arch.name,
        decay_epochs=100,
        act_num=arch.activation_n,
        nb_classes=arch.num_classes,
        input_size=arch.image_size,
        dims=arch.dims,
        strides=arch.strides,
    )
    content = {"model_ema": network.state_dict(), "epoch": 299, "args": args} | changes
    torch.save({k: v for k, v in content.items() if v is not None}, path)
    return path


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with net.pth, net.onnx, training.onnx, net.plan and the commands' records."""
    folder = tmp_path_factory.mktemp("made")
    write_checkpoint(folder / "net.pth")
    commands = {
        "net": ["export", "--ckpt", "net.pth", "--out", "net.onnx"],
        "training": ["export", "--ckpt", "net.pth", "--out", "training.onnx", "--no-merge"],
        "plan": ["build-engine", "net.onnx", "--fp16"],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, words in commands.items():
            result = CliRunner().invoke(vntools, [*words, "--json"])
            assert result.exit_code == 0, result.stderr
            (folder / f"{name}.json").write_text(result.stdout)
    return folder


@pytest.fixture
def work(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what was made, and the working folder."""
    for path in made.iterdir():
        shutil.copy2(path, tmp_path / path.name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def record(made: Path) -> Callable[[str], dict[str, Any]]:
    """The JSON document of a command of :func:`made`."""
    return lambda name: json.loads((made / f"{name}.json").read_text())
