"""vntools export --normalize, --input-type, --layout and --head, as a user calls them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import Result
from numpy.typing import NDArray

from tests.pipeline.conftest import SMALL, write_checkpoint
from vntools.base.artifacts import read_sidecar
from vntools.export.interface import Interface
from vntools.models.checkpoint import load_checkpoint, to_module

Invoke = Callable[..., Result]
CAMERA = ("--normalize", "imagenet", "--input-type", "uint8", "--layout", "nhwc")
FRAMES = np.random.default_rng(3).integers(256, size=(4, 32, 32, 3)).astype(np.uint8)


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a checkpoint in it."""
    monkeypatch.chdir(tmp_path)
    return write_checkpoint(tmp_path / "net.pth")


def exported(invoke: Invoke, *words: str) -> dict[str, Any]:
    result = invoke("export", "--ckpt", "net.pth", "--out", "net.onnx", *words, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def logits_of_frames() -> NDArray[np.float32]:
    """What the checkpoint says of the frames, prepared as torchvision prepares them."""
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    x = (torch.from_numpy(FRAMES).permute(0, 3, 1, 2).float().div(255) - mean) / std
    with torch.inference_mode():
        return to_module(load_checkpoint(Path("net.pth")))(x).numpy()


def test_it_eats_what_a_camera_gives(net: Path, invoke: Invoke) -> None:
    record = exported(invoke, *CAMERA)
    after = record["graph"]["after"]
    assert after["ops"] == {
        "Cast": 1, "Conv": 7, "Flatten": 1, "GlobalAveragePool": 1, "MaxPool": 1, "Relu": 3,
        "Transpose": 1,
    }  # fmt: skip
    assert after["parameters"] == SMALL.deploy_parameters()
    assert after["macs"] == SMALL.deploy_macs()
    assert record["verify"]["pytorch_relative_l2"] <= record["verify"]["allowed"] < 1e-5
    model = onnx.load("net.onnx")
    onnx.checker.check_model(model, full_check=True)
    (taken,) = model.graph.input
    assert taken.name == "input"
    assert taken.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_param or d.dim_value for d in taken.type.tensor_type.shape.dim] == [
        "batch", 32, 32, 3,
    ]  # fmt: skip
    session = onnxruntime.InferenceSession("net.onnx")
    got = np.asarray(session.run(["logits"], {"input": FRAMES})[0])
    want = logits_of_frames()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_the_metadata_say_what_the_host_still_does(net: Path, invoke: Invoke) -> None:
    said = json.loads(exported(invoke, *CAMERA)["metadata"]["vntools.preprocessing"])
    assert said["in_graph"] == ["scale", "normalize", "transpose"]
    assert said["on_host"] == ["decode", "resize", "crop"]
    assert (said["image_size"], said["crop_ratio"]) == (32, 0.875)
    other = exported(invoke, "--normalize", "0.5,0.25", "--force")
    said = json.loads(other["metadata"]["vntools.preprocessing"])
    assert (said["mean"], said["std"], said["values"]) == ([0.5] * 3, [0.25] * 3, "0..1")


def test_another_normalisation_than_in_training_is_said(net: Path, invoke: Invoke) -> None:
    words = ("export", "--ckpt", "net.pth", "--out", "net.onnx", "--normalize")
    result = invoke(*words, "0.5,0.5")
    assert result.exit_code == 0, result.stderr
    assert "export.normalize" in result.stderr
    assert "0.485" in result.stderr
    assert "export.normalize" not in invoke(*words, "imagenet").stderr


@pytest.mark.parametrize("words", [(), ("--no-merge",)], ids=["merged", "not merged"])
def test_top5(net: Path, invoke: Invoke, words: tuple[str, ...]) -> None:
    record = exported(invoke, *CAMERA, "--head", "top5", *words)
    assert record["verify"]["top1_agreement"] == 1.0
    session = onnxruntime.InferenceSession("net.onnx")
    assert [o.name for o in session.get_outputs()] == ["values", "indices"]
    values, indices = map(np.asarray, session.run(None, {"input": FRAMES}))
    want = Interface(head="top5").outputs(logits_of_frames())
    assert indices.tolist() == want["indices"].tolist()
    np.testing.assert_allclose(values, want["values"], rtol=1e-4)


@pytest.mark.parametrize("head", ["softmax", "top5"])
def test_a_wrong_graph_is_refused_through_its_head(
    net: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    from vntools.verify import float32

    right = float32.run_float32

    def off(model: Any, feeds: Any) -> Any:
        """Probabilities a thousandth off, in the exported graph alone."""
        found = right(model, feeds)
        if isinstance(model, bytes):
            for y in found:
                for name in {"probabilities", "values"} & y.keys():
                    y[name] = y[name] * np.float32(1.001)
        return found

    monkeypatch.setattr(float32, "run_float32", off)
    result = invoke("export", "--ckpt", "net.pth", "--out", "net.onnx", "--head", head)
    assert result.exit_code == 1
    assert "verify.mismatch" in result.stderr
    assert not Path("net.onnx").exists()


def test_other_indices_are_refused(
    net: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vntools.verify import float32

    right = float32.run_float32

    def swapped(model: Any, feeds: Any) -> Any:
        found = right(model, feeds)
        if isinstance(model, bytes):
            found[-1]["indices"] = found[-1]["indices"][:, [0, 1, 2, 4, 3]]
        return found

    monkeypatch.setattr(float32, "run_float32", swapped)
    result = invoke("export", "--ckpt", "net.pth", "--out", "net.onnx", "--head", "top5")
    assert result.exit_code == 1
    assert "verify.mismatch" in result.stderr
    assert not Path("net.onnx").exists()


@pytest.mark.parametrize(
    ("words", "io"),
    [
        (("--fp32",), ["uint8", "float32", "int64"]),
        (("--fp16",), ["uint8", "float32", "int64"]),
        (("--fp16", "--io-type", "fp16"), ["uint8", "float16", "int64"]),
    ],
    ids=["fp32", "fp16", "fp16 outputs"],
)
def test_plans_keep_the_bytes(
    net: Path, invoke: Invoke, words: tuple[str, ...], io: list[str]
) -> None:
    exported(invoke, *CAMERA, "--head", "top5")
    result = invoke("build-engine", "net.onnx", "--max-batch", 2, *words)
    assert result.exit_code == 0, result.stderr
    assert "convolutions built as asked: 7 in" in result.stdout
    sidecar = read_sidecar("net.plan")
    assert sidecar is not None
    assert [t["dtype"] for t in sidecar["inputs"] + sidecar["outputs"]] == io
    assert sidecar["profile"]["input"]["max"] == [2, 32, 32, 3]
    assert json.loads(sidecar["model"]["preprocessing"])["values"] == "0..255"


def test_bench_feeds_bytes(net: Path, invoke: Invoke) -> None:
    exported(invoke, *CAMERA, "--head", "softmax")
    words = ("--onnx", "net.onnx", "--device", "cpu", "--duration", "0.05", "--warm-up", "1")
    result = invoke("bench", *words)
    assert result.exit_code == 0, result.stderr


def test_simplify_leaves_nothing_of_it_either(net: Path, invoke: Invoke) -> None:
    merged = exported(invoke, *CAMERA)["graph"]["after"]
    raw = exported(invoke, *CAMERA, "--no-merge", "--force")["graph"]["after"]
    assert raw["ops"]["Mul"] == raw["ops"]["Add"] == 1
    result = invoke("simplify", "net.onnx", "--out", "simplified.onnx", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["graph"]["after"] == merged


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--input-type", "uint8"), "add --normalize imagenet"),
        (("--normalize", "0.5"), "MEAN,STD"),
        (("--normalize", "124,116,104,58,57,57"), "divide mean and std by 255"),
        (("--normalize", "imagenet", "--input-type", "int8"), "'int8' is not one of"),
        (("--layout", "hwc"), "'hwc' is not one of"),
        (("--head", "top1"), "'top1' is not one of"),
    ],
)
def test_usage_errors(net: Path, invoke: Invoke, words: tuple[str, ...], said: str) -> None:
    result = invoke("export", "--ckpt", "net.pth", "--out", "net.onnx", *words, "--quiet")
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not Path("net.onnx").exists()
