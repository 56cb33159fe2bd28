"""Which runner opens which file, and which cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vntools.base.errors import UsageFault
from vntools.engine import backend
from vntools.engine.plan import Trust
from vntools.pipeline.bench import RUNNERS, Artifact, open_artifact
from vntools.pipeline.listener import Mute

FILES: dict[str, dict[str, Any]] = {
    "onnx": {"onnx": Path("net.onnx")},
    "ckpt": {"ckpt": Path("net.pth")},
    "engine": {"engine": Path("net.plan"), "trust": Trust(any_plan=True)},
}


@pytest.fixture
def opened(work: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The class of the runner of a file, on a machine with or without a GPU."""

    def open_file(kind: str, *, gpus: int = 0, **fields: Any) -> str:
        monkeypatch.setattr(backend, "gpu_count", lambda: gpus)
        return type(open_artifact(Artifact(**FILES[kind], **fields), Mute())).__name__

    return open_file


@pytest.mark.parametrize(
    ("kind", "runner", "gpus", "device", "name"),
    [
        ("onnx", "auto", 0, "auto", "OnnxRunner"),
        ("onnx", "auto", 1, "auto", "OnnxCudaRunner"),
        ("onnx", "auto", 1, "cpu", "OnnxRunner"),
        ("onnx", "ort", 1, "auto", "OnnxRunner"),
        ("onnx", "ort", 0, "cpu", "OnnxRunner"),
        ("onnx", "ort-cuda", 0, "auto", "OnnxCudaRunner"),
        ("onnx", "ort-cuda", 1, "cuda", "OnnxCudaRunner"),
        ("onnx", "ort-tensorrt", 0, "auto", "OnnxTensorrtRunner"),
        ("onnx", "openvino", 1, "auto", "OpenvinoRunner"),
        ("ckpt", "auto", 0, "auto", "TorchRunner"),
        ("ckpt", "auto", 1, "auto", "TorchCudaRunner"),
        ("ckpt", "torch", 1, "auto", "TorchCudaRunner"),
        ("ckpt", "torch", 1, "cpu", "TorchRunner"),
        ("ckpt", "torch-compile", 0, "auto", "TorchCompileRunner"),
        ("ckpt", "torch-compile", 1, "auto", "TorchCompileCudaRunner"),
        ("ckpt", "torch-compile", 1, "cpu", "TorchCompileRunner"),
        ("ckpt", "torch-cuda-graph", 0, "auto", "TorchCudaGraphRunner"),
    ],
)
def test_each_runner_opens(
    opened: Callable[..., str], kind: str, runner: str, gpus: int, device: str, name: str
) -> None:
    assert opened(kind, gpus=gpus, runner=runner, device=device) == name


@pytest.mark.parametrize(
    ("kind", "fields", "code", "said"),
    [
        (
            "onnx",
            {"runner": "torch"},
            "bench.runner",
            "does not run in torch; give one of ort",
        ),
        ("ckpt", {"runner": "openvino"}, "bench.runner", "give one of torch, torch-compile"),
        ("ckpt", {"runner": "jax"}, "bench.runner", "does not run in jax"),
        ("onnx", {"runner": "jax"}, "bench.runner", "does not run in jax"),
        ("engine", {"runner": "ort"}, "bench.runner", "a plan does not run in ort"),
        ("engine", {"device": "cpu"}, "bench.device", "GPU only"),
        ("onnx", {"runner": "ort", "device": "cuda"}, "bench.runner", "not run on cuda"),
        ("onnx", {"runner": "openvino", "device": "cuda"}, "bench.runner", "not run on cuda"),
        (
            "onnx",
            {"runner": "ort-tensorrt", "device": "cpu"},
            "bench.runner",
            "not run on cpu",
        ),
        ("ckpt", {"runner": "torch-cuda-graph", "device": "cpu"}, "bench.runner", "on cpu"),
    ],
)
def test_no_file_runs_elsewhere_than_asked(
    opened: Callable[..., str], kind: str, fields: dict[str, str], code: str, said: str
) -> None:
    with pytest.raises(UsageFault, match=said) as e:
        opened(kind, gpus=1, **fields)
    assert e.value.code == code


def test_every_runner_is_tried_above() -> None:
    (mark,) = test_each_runner_opens.pytestmark  # pyright: ignore[reportFunctionMemberAccess] - set by pytest
    assert {case[1] for case in mark.args[1]} == {*RUNNERS, "auto"}
