"""``vntools models`` and ``vntools train``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vntools.models.arch import ARCHITECTURES
from vntools.models.checkpoint import load_checkpoint

QUICK = ("--dims", "4,8", "--strides", "2", "--act-num", 1, "--image-size", 8)
EPOCHS = ("--epochs", 2, "--decay-epochs", 1)


def test_models_are_listed(invoke: Callable[..., Any]) -> None:
    result = invoke("models")
    assert result.exit_code == 0
    header, *rows = result.stdout.splitlines()
    assert [row.split()[0] for row in rows] == list(ARCHITECTURES)
    assert header.split()[:3] == ["name", "depth", "params"]
    figures = "13 58.59 11.94 82.05 4.26 0.82 0.67"
    assert " ".join(rows[8].split()[:8]) == f"vanillanet_13 {figures}"
    assert "2048x7" in rows[8]
    assert rows[-1].endswith("1 38 19 1 1 1 1 1 1 10 1")


def test_models_as_json(invoke: Callable[..., Any]) -> None:
    document = json.loads(invoke("models", "--json").stdout)
    assert document["ok"]
    records = {r["name"]: r for r in document["architectures"]}
    assert set(records) == set(ARCHITECTURES)
    record = records["vanillanet_13"]
    assert record["depth"] == 13
    assert record["deploy"]["parameters"] == 58590184
    assert record["training"]["parameters"] == 107702240
    assert record["published"]["tensorrt_fp32_v100_ms"] == 3.69


def test_train_writes_a_checkpoint(invoke: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "net.pth"
    result = invoke("train", "--data", "digits", "--out", out, *QUICK, *EPOCHS, "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert [e["activation_lambda"] for e in document["epochs"]] == [0.0, 1.0]
    checkpoint = load_checkpoint(out)
    assert (checkpoint.arch.dims, checkpoint.arch.strides) == ((4, 8), (2,))
    assert (checkpoint.arch.activation_n, checkpoint.arch.image_size) == (1, 8)
    assert document["parameters"] == checkpoint.arch.training_parameters()


@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        (("--epochs", 3, "--decay-epochs", 3), 2, "train.epochs"),
        (("--dims", "4,8,8"), 2, "train.arch"),
        (("--image-size", 3), 2, "train.arch"),
        (("--dims", "4,x"), 2, "usage"),
        (("--lr", 0), 2, "usage"),
        (("--data", "absent"), 66, "data.missing"),
        (("--out", "absent/net.pth"), 73, "out.folder"),
    ],
)
def test_what_cannot_be_trained(
    words: tuple[object, ...],
    status: int,
    code: str,
    invoke: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke("train", "--data", "digits", "--out", "net.pth", *QUICK, *EPOCHS, *words)
    assert result.exit_code == status
    assert f"error[{code}]" in result.stderr
    assert list(tmp_path.iterdir()) == []
