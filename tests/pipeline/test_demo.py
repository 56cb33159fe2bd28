"""The demo, whole: its own checks are the promise, here they are seen to have been made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from vntools import demo
from vntools.base.errors import CheckFailed
from vntools.demo import MIN_FP16_AGREEMENT, MIN_TOP1_PERCENT
from vntools.pipeline.listener import Mute

Invoke = Callable[..., Result]


@pytest.mark.slow
def test_the_demo_goes_all_the_way(tmp_path: Path, invoke: Invoke) -> None:
    result = invoke("demo", "--keep", tmp_path / "kept", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["top1_percent"]["checkpoint"] >= MIN_TOP1_PERCENT
    assert found["agreement"]["exported"] == 1.0
    assert found["agreement"]["fp16"] >= MIN_FP16_AGREEMENT
    assert found["kernels"]["merged"] < found["kernels"]["training"]
    assert found["plan_bytes"]["merged"] < found["plan_bytes"]["training"]
    assert found["latency"]["contenders"][1]["relation"]["verdict"] == "faster"
    assert {p.name for p in (tmp_path / "kept").iterdir()} == {
        "digits.pth", "digits.onnx", "digits.plan", "digits.plan.json",
        "digits-training.onnx", "digits-training.plan", "digits-training.plan.json",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("answers", "code"),
    [
        ({"checkpoint": [1, 1], "exported": [1, 1], "fp16": [1, 1]}, "demo.top1"),
        ({"checkpoint": [0, 1], "exported": [0, 2], "fp16": [0, 1]}, "demo.agreement"),
        ({"checkpoint": [0, 1], "exported": [0, 1], "fp16": [2, 2]}, "demo.agreement"),
    ],
)
def test_a_promise_that_does_not_hold_is_a_failure(
    answers: dict[str, list[int]], code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parts scripted: what is held is what is made of their answers."""

    class Digits:
        labels = np.array([0, 1])

    for part in ("export", "build_engine"):
        monkeypatch.setattr(demo, part, lambda *_: None)
    monkeypatch.setattr(demo, "_train", lambda *_: Digits())
    monkeypatch.setattr(
        demo, "_answers", lambda *_: {k: np.array(v) for k, v in answers.items()}
    )
    with pytest.raises(CheckFailed) as e:
        demo.run_demo(tmp_path, Mute())
    assert e.value.code == code


def test_it_keeps_nothing_in_a_folder_that_exists(tmp_path: Path, invoke: Invoke) -> None:
    result = invoke("demo", "--keep", tmp_path)
    assert result.exit_code == 73
    assert not list(tmp_path.iterdir())
