"""vntools bench, as a user calls it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Invoke = Callable[..., Result]
QUICK = ("--duration", "0.05", "--warm-up", "1")


def test_onnx_has_trtexecs_rows(work: Path, invoke: Invoke) -> None:
    result = invoke("bench", "--onnx", "net.onnx", "--device", "cpu", *QUICK)
    assert result.exit_code == 0, result.stderr
    for row in ("Throughput: ", "Images/s: ", "Latency: min = ", "Compute Time: ", "Host"):
        assert row in result.stdout
    assert "GPU" not in result.stdout
    assert "percentile(99%)" in result.stdout


def test_checkpoint_as_json(work: Path, invoke: Invoke) -> None:
    words = ("--ckpt", "net.pth", "--device", "cpu", "--batch", 2, "--threads", 1, *QUICK)
    result = invoke("bench", *words, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["batch"] == 2
    assert found["images_per_s"] == pytest.approx(2 * found["throughput_qps"])
    assert found["latency_ms"]["min"] <= found["latency_ms"]["median"]
    assert found["latency_ms"]["p99"] <= found["latency_ms"]["max"]


def test_an_engine_without_a_gpu_ends_at_once(
    work: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vntools.runtime.trt_runner.gpu_count", lambda: 0)
    result = invoke("bench", "--engine", "net.plan")
    assert result.exit_code == 69
    assert "gpu.none" in result.stderr
    assert "GPU" in result.stderr


@pytest.mark.gpu
def test_an_engine_on_a_gpu(work: Path, invoke: Invoke) -> None:
    result = invoke("bench", "--engine", "net.plan", *QUICK)
    assert result.exit_code == 0, result.stderr
    assert "GPU Compute Time: " in result.stdout


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ([], 2),
        (["--onnx", "net.onnx", "--ckpt", "net.pth"], 2),
        (["--onnx", "nope.onnx"], 66),
        (["--engine", "nope.plan"], 66),
        (["--onnx", "net.pth", "--device", "cpu"], 65),
        (["--engine", "net.plan", "--device", "cpu"], 2),
        (["--onnx", "net.onnx", "--percentile", "much"], 2),
    ],
)
def test_wrong_calls(work: Path, invoke: Invoke, words: list[str], status: int) -> None:
    result = invoke("bench", *words, "--quiet")
    assert result.exit_code == status, result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
