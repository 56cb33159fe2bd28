"""The demo, whole: its own checks are the promise, here they are seen to have been made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from vntools.demo import MIN_FP16_AGREEMENT, MIN_TOP1_PERCENT

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


def test_it_keeps_nothing_in_a_folder_that_exists(tmp_path: Path, invoke: Invoke) -> None:
    result = invoke("demo", "--keep", tmp_path)
    assert result.exit_code == 73
    assert not list(tmp_path.iterdir())
