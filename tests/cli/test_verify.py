"""vntools verify: any two artifacts on the same inputs, and every way to be refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import Result
from onnx import numpy_helper
from PIL import Image

from tests.graphs import onnx_bytes
from tests.networks import exported as exported_graph
from tests.pipeline.conftest import SMALL, write_checkpoint
from vntools.engine.backend import gpu_count
from vntools.pipeline.bench import kind_of
from vntools.precision.floats import TOLERANCES, to_floats

Invoke = Callable[..., Result]
CPU = ("--device", "cpu", "--quiet")
CAMERA = ("--normalize", "imagenet", "--input-type", "uint8", "--layout", "nhwc")
LINEAR = "(float[n,6] x) => (float[n,4] y) <float[6,4] W> { y = MatMul(x, W) }"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with net.pth, exports of it with several borders, and images."""
    from click.testing import CliRunner

    from vntools.cli import vntools

    folder = tmp_path_factory.mktemp("verify")
    write_checkpoint(folder / "net.pth")
    exports: dict[str, tuple[str, ...]] = {
        "net": (),
        "training": ("--no-merge",),
        "camera": CAMERA,
        "unit": ("--normalize", "imagenet"),
        "softmax": ("--head", "softmax"),
        "top5": ("--head", "top5"),
        "one": ("--batch", "1"),
        "four": ("--batch", "4"),
    }
    for name, words in exports.items():
        command = ["export", "--ckpt", f"{folder}/net.pth", "--out", f"{folder}/{name}.onnx"]
        result = CliRunner().invoke(vntools, [*command, *words, "--quiet"])
        assert result.exit_code == 0, result.stderr
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for i in range(6):
        pixels = rng.integers(256, size=(40, 50, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
    return folder


@pytest.fixture
def work(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


@dataclass
class Run:
    """``vntools verify A --against B`` on a CPU."""

    invoke: Invoke

    def __call__(self, a: object, b: object, *words: object) -> dict[str, Any]:
        """The record of two that are the same."""
        result = self.invoke("verify", a, "--against", b, *CPU, "--json", *words)
        assert result.exit_code == 0, result.stderr + result.stdout
        record = json.loads(result.stdout)
        assert record["ok"]
        assert record["same"]
        return record

    def refused(
        self, a: object, b: object, code: str, status: int, *words: object
    ) -> dict[str, Any]:
        """The record of two that are refused, with one line that says why."""
        result = self.invoke("verify", a, "--against", b, *CPU, "--json", *words)
        record = json.loads(result.stdout)
        assert record["error"]["code"] == code, record
        assert result.exit_code == record["error"]["exit"] == status
        lines = result.stderr.splitlines()
        assert [line for line in lines if not line.startswith("warning[")] == lines[-1:]
        assert not record["ok"]
        return record


@pytest.fixture
def run(invoke: Invoke) -> Run:
    return Run(invoke)


def changed(source: Path, out: Path, change: Callable[[onnx.ModelProto], object]) -> Path:
    model = onnx.load(source)
    change(model)
    onnx.save(model, out)
    return out


def scaled(factor: float) -> Callable[[onnx.ModelProto], None]:
    """The weight of the last layer times ``factor`` in its first output."""

    def change(model: onnx.ModelProto) -> None:
        (tensor,) = [t for t in model.graph.initializer if t.name == "cls.2.weight"]
        weight = numpy_helper.to_array(tensor).copy()
        weight[0] *= factor
        tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))

    return change


def half(source: Path, out: Path, precision: str = "fp16", io_type: str = "fp32") -> Path:
    typed = to_floats(ir.load(source), precision, io_type=io_type).model
    out.write_bytes(ir.serde.serialize_model(typed).SerializeToString())
    return out


# ------------------------------------------------------------------------------- the same


def test_a_checkpoint_and_its_export(work: Path, run: Run) -> None:
    record = run("net.onnx", "net.pth")
    (logits,) = record["outputs"]
    assert logits["output"] == "logits"
    assert logits["samples"] == 16
    assert 0 < logits["relative_l2"] <= record["tolerance"]["relative_l2"] == 1e-5
    assert logits["max_abs"] > 0
    assert logits["cosine"] == pytest.approx(1, abs=1e-9)
    assert logits["top1_agreement"] == 1
    assert (record["feeds"], record["batch"]) == ("seeded", 8)
    assert (record["a"]["kind"], record["b"]["kind"]) == ("onnx", "ckpt")
    assert record["a"]["precision"] == record["tolerance"]["precision"] == "fp32"
    assert len(record["a"]["sha256"]) == 64


def test_either_way_round_and_at_any_batch(work: Path, run: Run) -> None:
    record = run("net.pth", "training.onnx", "--batch", 3, "--limit", 6)
    assert record["outputs"][0]["samples"] == 6
    assert record["batch"] == 3
    assert run("net.pth", "four.onnx")["batch"] == 4
    assert run("one.onnx", "net.pth", "--limit", 3)["outputs"][0]["samples"] == 3


def test_the_text(work: Path, invoke: Invoke) -> None:
    result = invoke("verify", "net.onnx", "--against", "net.pth", *CPU)
    assert result.exit_code == 0
    assert result.stdout.startswith("A  net.onnx  ONNX        fp32  onnxruntime-cpu\n")
    assert "\n16 samples, seeded, 8 at a time\n" in result.stdout
    assert "\noutput  relative L2   max abs      cosine  top-1 equal\nlogits " in result.stdout
    assert "allowed for fp32: relative L2 1.0e-05, the same top-1 (float32" in result.stdout
    assert result.stdout.endswith("\nthe same within that\n")


def test_a_narrow_published_network(tmp_path: Path, run: Run) -> None:
    model = exported_graph("vanillanet_8")
    (tmp_path / "net.onnx").write_bytes(ir.serde.serialize_model(model).SerializeToString())
    half(tmp_path / "net.onnx", tmp_path / "half.onnx")
    record = run(tmp_path / "half.onnx", tmp_path / "net.onnx", "--limit", 2)
    assert 1e-5 < record["outputs"][0]["relative_l2"] < 1e-2


@pytest.mark.parametrize("io_type", ["fp32", "fp16"])
def test_float16_has_its_own_tolerance(
    work: Path, run: Run, tmp_path: Path, io_type: str
) -> None:
    typed = half(work / "net.onnx", tmp_path / "half.onnx", io_type=io_type)
    record = run(typed, "net.onnx")
    assert record["tolerance"]["precision"] == "fp16"
    assert record["tolerance"]["relative_l2"] == TOLERANCES["fp16"].max_relative_l2
    assert record["outputs"][0]["relative_l2"] > 1e-5
    # It is not as near as float32 has to be.
    run.refused(typed, "net.onnx", "verify.mismatch", 1, "--tolerance", "1e-5")


def test_images_in_each_ones_own_way(work: Path, run: Run) -> None:
    record = run("camera.onnx", "net.pth", "--data", "images", "--batch", 4)
    assert record["feeds"] == "images"
    assert record["outputs"][0]["samples"] == 6
    assert run("camera.onnx", "unit.onnx", "--data", "images", "--limit", 2)["same"]


def test_padding_of_a_fixed_batch_is_not_counted(work: Path, run: Run) -> None:
    record = run("four.onnx", "net.pth", "--data", "images")
    assert (record["batch"], record["outputs"][0]["samples"]) == (4, 6)


def test_an_artifact_without_metadata_is_taken_as_the_other(
    work: Path, run: Run, tmp_path: Path
) -> None:
    def strip(model: onnx.ModelProto) -> None:
        del model.metadata_props[:]

    bare = changed(work / "unit.onnx", tmp_path / "bare.onnx", strip)
    assert run(bare, "unit.onnx", "--data", "images")["same"]
    plain = changed(work / "net.onnx", tmp_path / "plain.onnx", strip)
    assert run(plain, "camera.onnx", "--data", "images")["same"]
    run.refused(bare, "camera.onnx", "verify.mismatch", 1, "--data", "images")


def test_arrays_of_a_file(work: Path, run: Run, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((5, 3, 32, 32)).astype(np.float32)
    np.savez(tmp_path / "x.npz", input=x)
    record = run("net.onnx", "net.pth", "--data", tmp_path / "x.npz", "--batch", 2)
    assert record["outputs"][0]["samples"] == 5
    record = run("four.onnx", "net.pth", "--data", tmp_path / "x.npz")
    assert record["outputs"][0]["samples"] == 5
    words = ("--data", tmp_path / "x.npz")
    run.refused("unit.onnx", "net.pth", "verify.inputs", 2, *words)
    np.savez(tmp_path / "x.npz", input=x[:, :2])
    run.refused("net.onnx", "net.pth", "data.npz", 65, *words)


def test_integers_are_held_to_equality(work: Path, run: Run, tmp_path: Path) -> None:
    same = changed(work / "top5.onnx", tmp_path / "c.onnx", scaled(1))
    text = run.invoke(
        "verify", "top5.onnx", "--against", same, *CPU, "--data", "images"
    ).stdout
    assert "\n6 samples, from images, 8 at a time\n" in text
    assert "top-1 equal" not in text  # the indices are
    assert text.count("100.00%") == 1
    record = run("top5.onnx", changed(work / "top5.onnx", tmp_path / "a.onnx", scaled(1)))
    assert [o["equal"] for o in record["outputs"]] == [None, 1.0]

    def swap(model: onnx.ModelProto) -> None:
        (k,) = [n for n in model.graph.node if n.op_type == "TopK"]
        next(a for a in k.attribute if a.name == "largest").i = 0

    other = changed(work / "top5.onnx", tmp_path / "b.onnx", swap)
    words = ("--tolerance", "0.9999")  # which is of distances, and integers have none
    record = run.refused(other, "top5.onnx", "verify.mismatch", 1, *words)
    assert "indices: equal on 0.00%" in record["error"]["message"]


# ------------------------------------------------------------------------------ different


def test_a_broken_graph_is_refused_with_its_figures(
    work: Path, run: Run, invoke: Invoke, tmp_path: Path
) -> None:
    broken = changed(work / "net.onnx", tmp_path / "broken.onnx", scaled(1.01))
    record = run.refused(broken, "net.pth", "verify.mismatch", 1)
    assert not record["same"]
    assert record["outputs"][0]["relative_l2"] > 1e-5
    assert "relative L2" in record["error"]["message"]
    result = invoke("verify", broken, "--against", "net.pth", *CPU)
    assert result.exit_code == 1
    assert result.stdout.endswith("\ndifferent\n")
    assert "relative L2" in result.stdout
    # As allowed by hand; nothing less.
    run(broken, "net.pth", "--tolerance", "0.05")


def test_a_wrong_top1_within_the_tolerance(run: Run, tmp_path: Path) -> None:
    text = "(float[n,2] x) => (float[n,2] y) <float[2] b> { y = Add(x, b) }"
    files = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for file, b in zip(files, ([1e3, 1e3 - 1e-3], [1e3 - 1e-3, 1e3]), strict=True):
        zero = text.replace("Add(x, b)", "Add(t, b)").replace(
            "{", "{ z = Sub(x, x) t = Abs(z)"
        )
        file.write_bytes(onnx_bytes(zero, b=np.array(b)))
    record = run.refused(files[0], files[1], "verify.mismatch", 1)
    assert record["outputs"][0]["relative_l2"] < 1e-5
    assert "top-1 agrees on 0.00%" in record["error"]["message"]


OUTPUTS = {
    "y": "(float[n,6] x) => (float[n,6] y) { y = Abs(x) }",
    "z": "(float[n,6] x) => (float[n,6] z) { z = Abs(x) }",
    "yz": "(float[n,6] x) => (float[n,6] y, float[n,6] z) { y = Abs(x) z = Abs(x) }",
    "yw": "(float[n,6] x) => (float[n,6] y, float[n,6] w) { y = Abs(x) w = Abs(x) }",
    "int": "(float[n,6] x) => (int64[n,6] y) { y = Cast<to=7>(x) }",
    "two": "(float[n,6] x, float[n,6] u) => (float[n,6] y) { y = Add(x, u) }",
    "logits": "(float[n,6] x) => (float[n,6] logits) { logits = Abs(x) }",
    "byte": "(uint8[n,6] x) => (float[n,6] y) { y = Cast<to=1>(x) }",
    "wide": "(float[n,7] x) => (float[n,7] y) { y = Abs(x) }",
    "fixed": "(float[2,6] x) => (float[2,6] y) { y = Abs(x) }",
    "other": "(float[3,6] x) => (float[3,6] y) { y = Abs(x) }",
    "int4": "(float[n,6] x) => (float[n,6] y) <int4[6] q, float s> "
    "{ d = DequantizeLinear(q, s) y = Add(x, d) }",
}


@pytest.mark.parametrize(
    ("a", "b", "code", "status"),
    [
        ("y", "yz", "verify.outputs", 1),
        ("yz", "y", "verify.outputs", 1),
        ("yz", "yw", "verify.outputs", 1),
        ("y", "int", "verify.outputs", 1),
        ("y", "two", "verify.signature", 65),
        ("y", "byte", "verify.inputs", 2),
        ("y", "wide", "verify.inputs", 2),
        ("fixed", "other", "verify.batch", 2),
    ],
)
def test_what_does_not_correspond_is_refused(
    run: Run, tmp_path: Path, a: str, b: str, code: str, status: int
) -> None:
    for name in (a, b):
        (tmp_path / name).write_bytes(onnx_bytes(OUTPUTS[name]))
    run.refused(tmp_path / a, tmp_path / b, code, status)


def test_single_outputs_correspond_by_position(run: Run, tmp_path: Path) -> None:
    for name in ("y", "z", "fixed"):
        (tmp_path / name).write_bytes(onnx_bytes(OUTPUTS[name]))
    assert run(tmp_path / "y", tmp_path / "z")["outputs"][0]["output"] == "z"
    assert run(tmp_path / "y", tmp_path / "fixed")["batch"] == 2
    run.refused(tmp_path / "y", tmp_path / "fixed", "verify.batch", 2, "--batch", 3)


def test_heads_are_not_mixed_up(work: Path, run: Run) -> None:
    record = run.refused("net.pth", "softmax.onnx", "verify.head", 65)
    assert record["error"]["message"] == "one gives logits, the other probabilities"
    run.refused("softmax.onnx", "top5.onnx", "verify.head", 65)


def test_other_inputs_need_images(work: Path, run: Run) -> None:
    record = run.refused("camera.onnx", "net.pth", "verify.inputs", 2)
    assert "--data DIR" in record["error"]["hint"]
    record = run.refused("unit.onnx", "net.pth", "verify.inputs", 2)
    assert "values 0..1 against normalized" in record["error"]["message"]


def test_other_views_of_an_image_are_refused(work: Path, run: Run, tmp_path: Path) -> None:
    def crop(model: onnx.ModelProto) -> None:
        for p in model.metadata_props:
            p.value = p.value.replace('"crop_ratio": 0.875', '"crop_ratio": 0.5')

    other = changed(work / "net.onnx", tmp_path / "crop.onnx", crop)
    words = ("--data", "images")
    record = run.refused(other, "net.pth", "verify.preprocessing", 2, *words)
    assert "crop_ratio 0.5 against 0.875" in record["error"]["message"]
    run(other, "net.pth")


def test_data_that_is_not_there(work: Path, run: Run, tmp_path: Path) -> None:
    run.refused("net.onnx", "net.pth", "input.missing", 66, "--data", "nothing")
    run.refused("net.onnx", "net.pth", "data.empty", 65, "--data", tmp_path)
    (tmp_path / "bad.png").write_text("no image")
    record = run.refused("net.onnx", "net.pth", "verify.empty", 1, "--data", tmp_path)
    assert record["warnings"][0]["code"] == "data.bad_images"


def test_a_bad_image_is_left_out_of_both(work: Path, run: Run, tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes((work / "images" / f"{i}.png").read_bytes())
    (tmp_path / "1.png").write_text("no image")
    record = run("camera.onnx", "net.pth", "--data", tmp_path)
    assert record["outputs"][0]["samples"] == 2
    assert "1 of 3 images left out" in record["warnings"][0]["message"]


def test_a_type_without_a_tolerance_needs_one(run: Run, tmp_path: Path) -> None:
    weights = {"q": np.zeros(6), "s": np.ones(())}
    text = OUTPUTS["int4"].replace("int4", "int8")
    (tmp_path / "a").write_bytes(onnx_bytes(text, opset=21, **weights))
    (tmp_path / "b").write_bytes(onnx_bytes(text, opset=21, seed=1, **weights) + b"")
    with (tmp_path / "b").open("ab") as f:
        f.write(onnx.ModelProto(producer_name="b").SerializeToString())
    assert run(tmp_path / "a", tmp_path / "b")["tolerance"]["precision"] == "int8"

    def narrow(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].data_type = onnx.TensorProto.INT4
        model.graph.initializer[0].raw_data = bytes(3)

    changed(tmp_path / "a", tmp_path / "c", narrow)
    record = run.refused(tmp_path / "c", tmp_path / "b", "verify.tolerance", 2)
    assert "int4" in record["error"]["message"]
    run(tmp_path / "c", tmp_path / "b", "--tolerance", "1e-6")


def test_a_file_and_itself_prove_nothing(work: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(work / "net.onnx")
    run.refused("net.onnx", tmp_path / "link", "verify.same_file", 2)


# ---------------------------------------------------------------------------------- kinds


def test_kinds_are_told_by_content(work: Path, run: Run, tmp_path: Path) -> None:
    assert kind_of(Path("net.onnx")) == "onnx"
    assert kind_of(Path("net.pth")) == "ckpt"
    contents = {
        b"ftrt" + bytes(9): "engine",
        b"vtrt": "engine",
        b"\x80\x02}q": "ckpt",
        bytes(257) + b"ustar": "ckpt",
        b"\x08\x01\0\0\0\0\0\0{": "ckpt",
        b"\x08\x08\x12\x00": "onnx",
    }
    for content, kind in contents.items():
        (tmp_path / "model.onnx").write_bytes(content)
        assert kind_of(tmp_path / "model.onnx") == kind, content
    (tmp_path / "net.plan").write_bytes((work / "net.onnx").read_bytes())
    run(tmp_path / "net.plan", "net.pth")


@pytest.mark.parametrize("content", [b"", b"<html>", b"version https://git-lfs", b"PK"])
def test_another_kind_is_refused(work: Path, run: Run, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    run.refused(tmp_path / "a.onnx", "net.pth", "input.kind", 65)
    run.refused("net.pth", tmp_path / "a.onnx", "input.kind", 65)
    run.refused("net.pth", tmp_path / "nothing", "input.missing", 66)


def test_a_plan_without_a_gpu_ends_at_once(
    work: Path, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vntools.runtime.trt_runner.gpu_count", lambda: 0)
    (tmp_path / "net.plan").write_bytes(b"ftrt" + bytes(100))
    for a, b in (("net.plan", "net.pth"), ("net.pth", "net.plan")):
        paths = [tmp_path / p if p == "net.plan" else p for p in (a, b)]
        result = invoke("verify", paths[0], "--against", paths[1], "--quiet")
        assert result.exit_code == 69
        assert "error[gpu.none]: " in result.stderr
        assert "net.plan" in result.stderr


@pytest.mark.gpu
def test_a_plan_on_a_gpu(work: Path, run: Run, invoke: Invoke, tmp_path: Path) -> None:
    assert gpu_count()
    plan = tmp_path / "net.plan"
    result = invoke("build-engine", "net.onnx", "--fp16", "--out", plan, "--quiet")
    assert result.exit_code == 0, result.stderr
    assert run(plan, "net.pth")["tolerance"]["precision"] == "fp16"
    assert run(plan, "net.pth", "--data", "images")["outputs"][0]["samples"] == 6


@pytest.mark.parametrize(
    "words",
    [
        ["net.onnx"],
        ["--against", "net.onnx"],
        ["net.onnx", "--against", "net.pth", "--batch", "0"],
        ["net.onnx", "--against", "net.pth", "--tolerance", "1"],
        ["net.onnx", "--against", "net.pth", "--tolerance", "-1"],
    ],
)
def test_wrong_calls(work: Path, invoke: Invoke, words: list[str]) -> None:
    assert invoke("verify", *words).exit_code == 2
    assert SMALL.num_classes == 10
