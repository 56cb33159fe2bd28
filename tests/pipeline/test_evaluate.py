"""vntools eval, as a user calls it, on a network whose answers are known.

The network tells classes by how red an image is: class k is red 20 k + 10.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import Result
from onnx import numpy_helper

from tests.conftest import ENTRY
from tests.graphs import parsed
from tests.pictures import noise, picture
from tests.pipeline.conftest import write_checkpoint
from vntools.base.artifacts import write_sidecar_bytes
from vntools.base.errors import DataFault
from vntools.export.interface import Interface
from vntools.models.arch import IMAGENET_MEAN, IMAGENET_STD
from vntools.pipeline import artifact_facts
from vntools.pipeline.bench import Artifact
from vntools.pipeline.evaluate import top_classes
from vntools.pipeline.labels import real_labels
from vntools.runtime.onnx_runner import OnnxRunner

Invoke = Callable[..., Result]
CLASSES = 10


def red(number: int) -> int:
    return 20 * number + 10


def network(path: Path, *, batch: str = "n", swap: tuple[int, int] | None = None) -> Path:
    """The network; ``swap`` gives two classes each other's output."""
    centres = (np.array([red(k) for k in range(CLASSES)]) / 255 - IMAGENET_MEAN[0]) / (
        IMAGENET_STD[0]
    )
    if swap is not None:
        centres[list(swap)] = centres[list(reversed(swap))]
    weight = np.zeros((3, CLASSES))
    weight[0] = 2 * centres
    model = parsed(
        f"(float[{batch},3,8,8] x) => (float[{batch},10] y) <float[3,10] W, float[10] B> "
        "{ p = GlobalAveragePool(x) f = Flatten(p) y = Gemm(f, W, B) }",
        W=weight,
        B=-(centres**2),
    )
    said = {
        "image_size": 8, "crop_ratio": 1.0, "mean": IMAGENET_MEAN, "std": IMAGENET_STD,
        "interpolation": "bicubic", **Interface().to_record(),
    }  # fmt: skip
    onnx.helper.set_model_props(model, {"vntools.preprocessing": json.dumps(said)})
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with net.onnx and val/CLASS/: three images of each class, two of them wrong.

    One image of class 0 is as red as class 1, one of class 9 as class 0.
    """
    monkeypatch.chdir(tmp_path)
    network(tmp_path / "net.onnx")
    wrong = {(0, 2): 1, (9, 2): 0}
    for k in range(CLASSES):
        for i in range(3):
            shown = wrong.get((k, i), k)
            picture(tmp_path / "val" / f"n{k}" / f"{i}.png", red=red(shown))
    return tmp_path


@pytest.fixture
def measured(invoke: Invoke) -> Callable[..., dict[str, Any]]:
    """The record of ``vntools eval --onnx net.onnx WORDS``."""

    def call(*words: object, onnx: str = "net.onnx", data: str = "val") -> dict[str, Any]:
        result = invoke(
            "eval", "--onnx", onnx, "--data", data, "--device", "cpu", "--json", *words
        )
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    return call


def refused(result: Result, code: str, status: int) -> None:
    assert f"error[{code}]" in result.stderr, result.stderr
    assert result.exit_code == status
    assert "Traceback" not in result.stderr


def test_top1_and_top5_are_counted_exactly(here: Path, invoke: Invoke) -> None:
    (here / "val" / "n3" / "notes.txt").touch()
    result = invoke("eval", "--onnx", "net.onnx", "--data", "val", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert "images: 30 found, 0 bad, 30 evaluated; 1 other files skipped" in result.stdout
    assert "top-1  93.33 % (28 of 30)" in result.stdout
    assert "top-5  96.67 % (29 of 30)" in result.stdout
    assert "bicubic, crop ratio 1, 8x8 RGB" in result.stdout


def test_the_record(here: Path, measured: Callable[..., dict[str, Any]]) -> None:
    found = measured("--crop-ratio", 0.5)
    assert (found["top1"], found["top5"]) == (28, 29)
    assert found["top1_percent"] == pytest.approx(100 * 28 / 30)
    assert found["images"] == {"found": 30, "skipped": 0, "bad": 0, "evaluated": 30}
    assert found["preprocessing"]["preprocessing"]["crop_ratio"] == 0.5
    assert "real_top1" not in found
    assert "compare" not in found


@pytest.mark.parametrize("batch", [1, 7, 30, 64])
def test_the_batch_changes_nothing(
    batch: int, here: Path, measured: Callable[..., dict[str, Any]]
) -> None:
    assert measured("--batch", batch, "--workers", 3)["top1"] == 28


def test_a_fixed_batch(
    here: Path, measured: Callable[..., dict[str, Any]], invoke: Invoke
) -> None:
    network(here / "fixed.onnx", batch="4")
    found = measured(onnx="fixed.onnx")
    assert (found["top1"], found["images"]["evaluated"]) == (28, 30)
    words = ("eval", "--onnx", "fixed.onnx", "--data", "val", "--device", "cpu")
    refused(invoke(*words, "--batch", 8), "eval.batch", 2)
    assert invoke(*words, "--batch", 4).exit_code == 0


def test_71_bad_images(here: Path, invoke: Invoke) -> None:
    (here / "val" / "n4" / "0.png").write_bytes(b"text")
    words = ("eval", "--onnx", "net.onnx", "--data", "val", "--device", "cpu")
    result = invoke(*words)
    refused(result, "data.image", 65)
    assert "0.png" in result.stderr
    assert "--skip-bad" in result.stderr
    result = invoke(*words, "--skip-bad")
    assert "30 found, 1 bad, 29 evaluated" in result.stdout
    assert "93.10 % (27 of 29)" in result.stdout
    assert "left out val/n4/0.png: cannot be read as JPEG or PNG" in result.stdout


@pytest.mark.parametrize("form", ["json", "lines"])
def test_83_a_class_map(
    form: str, here: Path, measured: Callable[..., dict[str, Any]]
) -> None:
    shutil.rmtree(here / "val" / "n2")
    (here / "val" / "n7").rename(here / "val" / "seven up")
    numbers = {f"n{k}": k for k in range(CLASSES)} | {"seven up": 7}
    lines = "\n".join(f"{name} {k}" for name, k in numbers.items())
    (here / "map").write_text(json.dumps(numbers) if form == "json" else lines + "\n\n")
    found = measured("--class-map", "map")
    assert (found["top1"], found["images"]["evaluated"]) == (25, 27)


@pytest.mark.parametrize(
    "text",
    ["", "n0", "n0 zero", "{", '{"n0": 1}', *(
        json.dumps({f"n{k}": number for k in range(CLASSES)})
        for number in (10, -1, "1", True, None, 1.0)
    )],
)  # fmt: skip
def test_a_class_map_that_is_none(text: str, here: Path, invoke: Invoke) -> None:
    (here / "map").write_text(text)
    words = ("eval", "--onnx", "net.onnx", "--data", "val", "--device", "cpu")
    refused(invoke(*words, "--class-map", "map"), "eval.class_map", 65)


def test_numbers_as_names_in_another_order_are_warned_of(here: Path, invoke: Invoke) -> None:
    for k in range(CLASSES):
        (here / "val" / f"n{k}").rename(here / "val" / str(k + 1))
    words = ("eval", "--onnx", "net.onnx", "--data", "val", "--device", "cpu")
    assert "warning[eval.classes]" in invoke(*words).stderr
    for k in range(CLASSES):
        (here / "val" / str(k + 1)).rename(here / "val" / f"{k + 1:02}")
    assert "warning" not in invoke(*words).stderr


def test_84_no_images_no_folder_no_class(here: Path, invoke: Invoke) -> None:
    def call(data: str, *words: str) -> Result:
        return invoke("eval", "--onnx", "net.onnx", "--data", data, "--device", "cpu", *words)

    (here / "none").mkdir()
    refused(call("none"), "eval.empty", 65)
    refused(call("nowhere"), "eval.missing", 66)
    picture(here / "flat" / "x.png")
    refused(call("flat"), "eval.labels", 65)
    refused(call("flat", "--compare", "net.onnx", "--min-top1", "50"), "eval.min_top1", 2)
    picture(here / "val" / "x.png")
    refused(call("val"), "eval.classes", 65)


def test_85_less_than_was_asked_for(here: Path, invoke: Invoke) -> None:
    words = ("eval", "--onnx", "net.onnx", "--data", "val", "--device", "cpu")
    result = invoke(*words, "--min-top1", 93.4)
    refused(result, "eval.below", 1)
    assert "93.33 % (28 of 30)" in result.stdout
    assert invoke(*words, "--min-top1", 93.3).exit_code == 0
    document = json.loads(invoke(*words, "--min-top1", 93.4, "--json").stdout)
    assert (document["ok"], document["top1"]) == (False, 28)


def real_folder(here: Path) -> list[list[int]]:
    """Four validation images of class 2, 3, 4 and 5 in one folder, and labels."""
    for number, k in enumerate((2, 3, 4, 5), start=1):
        picture(here / "flat" / f"ILSVRC2012_val_{number:08}.png", red=red(k))
    labels = [[2, 7], [], [1], [5]]
    (here / "real.json").write_text(json.dumps(labels))
    return labels


def test_real_labels_have_their_own_denominator(here: Path, invoke: Invoke) -> None:
    real_folder(here)
    words = ("eval", "--onnx", "net.onnx", "--data", "flat", "--device", "cpu")
    result = invoke(*words, "--real-labels", "real.json")
    assert result.exit_code == 0, result.stderr
    assert "4 evaluated" in result.stdout
    assert "ReaL: 3 with labels, 1 without left out" in result.stdout
    assert "ReaL top-1  66.67 % (2 of 3)" in result.stdout
    assert "\ntop-1" not in result.stdout


@pytest.mark.parametrize(
    "text", ["", "[", "{}", "[1, 2]", "null", '["a"]', "[[10]]", "[[], []]", "[[1]]"]
)
def test_real_labels_that_are_none(text: str, here: Path, invoke: Invoke) -> None:
    real_folder(here)
    (here / "real.json").write_text(text)
    words = ("eval", "--onnx", "net.onnx", "--data", "flat", "--device", "cpu")
    refused(invoke(*words, "--real-labels", "real.json"), "eval.real", 65)


@pytest.mark.parametrize("label", ["12", 1.5, True, None])
def test_real_labels_that_are_no_numbers(label: object, here: Path) -> None:
    (here / "real.json").write_text(json.dumps([[1], [label]]))
    with pytest.raises(DataFault, match="not a JSON list of lists of labels"):
        real_labels([], here / "real.json", 10)


def test_real_labels_by_the_number_in_the_name(here: Path) -> None:
    labels = real_folder(here)
    names = [here / f"ILSVRC2012_val_{n:08}.JPEG" for n in (4, 1)]
    assert real_labels(names, here / "real.json", 10) == [set(labels[3]), set(labels[0])]


def test_two_artifacts_on_the_same_images(here: Path, invoke: Invoke) -> None:
    network(here / "swapped.onnx", swap=(3, 4))
    words = ("eval", "--onnx", "net.onnx", "--data", "val", "--device", "cpu")
    result = invoke(*words, "--compare", "swapped.onnx")
    assert "93.33 % (28 of 30)  73.33 % (22 of 30)" in result.stdout
    assert "same top-1 on 80.00 % (24 of 30)" in result.stdout
    real_folder(here)
    found = json.loads(
        invoke(
            "eval", "--onnx", "net.onnx", "--data", "flat", "--device", "cpu", "--json",
            "--compare", "swapped.onnx",
        ).stdout
    )  # fmt: skip
    assert (found["compare"]["agreeing"], "top1" in found) == (2, False)


def test_precision_is_said_as_verify_says_it(
    here: Path, measured: Callable[..., dict[str, Any]]
) -> None:
    model = onnx.load(here / "net.onnx")
    grid = [numpy_helper.from_array(np.array(v), n)
            for n, v in (("s", np.float32(0.1)), ("z", np.int8(0)))]  # fmt: skip
    model.graph.initializer.extend(grid)
    model.graph.node[-1].output[0] = "g"
    for op, x, y in (("QuantizeLinear", "g", "q"), ("DequantizeLinear", "q", "y")):
        model.graph.node.append(onnx.helper.make_node(op, [x, "s", "z"], [y]))
    onnx.save(model, here / "int8.onnx")
    found = measured("--compare", "int8.onnx")
    assert (found["precision"], found["compare"]["precision"]) == ("fp32", "int8")


def test_a_plan_gets_batches_that_it_can_hold(
    here: Path, monkeypatch: pytest.MonkeyPatch, invoke: Invoke
) -> None:
    sizes: list[int] = []

    class Plan(OnnxRunner):
        def prepare(self, feeds: Mapping[str, Any]) -> None:
            sizes.append(len(feeds["x"]))
            super().prepare(feeds)

    def describe(artifact: Artifact, _: object) -> tuple[Plan, dict[str, str], None]:
        assert artifact.engine is not None
        said = onnx.load(here / "net.onnx").metadata_props
        return Plan((here / "net.onnx").read_bytes()), {p.key: p.value for p in said}, None

    monkeypatch.setattr(artifact_facts, "open_described", describe)
    (here / "net.plan").write_bytes(b"ftrt")
    profile = {"x": {"min": [1, 3, 8, 8], "opt": [1, 3, 8, 8], "max": [4, 3, 8, 8]}}
    record = {"schema": 1, "sha256": "0" * 64, "precision": "fp16", "profile": profile}
    (here / "net.plan.json").write_bytes(write_sidecar_bytes(record))
    result = invoke("eval", "--engine", "net.plan", "--data", "val", "--json")
    found = json.loads(result.stdout)
    assert (found["precision"], found["images"]["evaluated"]) == ("fp16", 30)
    assert sizes == [4] * 8


def test_names_cannot_write_to_the_terminal(here: Path, invoke: Invoke) -> None:
    (here / "net.onnx").rename(here / "\x1b[31mnet.onnx")
    (here / "val" / "n0" / os.fsdecode(b"\x1b[31m\xff.jpg")).write_bytes(b"none")
    words = ("--data", "val", "--skip-bad", "--device", "cpu")
    result = invoke("eval", "--onnx", "\x1b[31mnet.onnx", *words)
    assert result.exit_code == 0, result.stderr
    assert "\x1b" not in result.output
    assert "left out val/n0/\\x1b[31m\\udcff.jpg: cannot be read" in result.stdout


def test_a_checkpoint_its_exports_and_their_heads(
    here: Path, invoke: Invoke, measured: Callable[..., dict[str, Any]]
) -> None:
    write_checkpoint(here / "net.pth")
    shutil.rmtree(here / "val")
    for number in range(40):
        path = here / "val" / f"n{number % CLASSES}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(20 + 3 * number, 50, seed=number).point(
            [v // 3 + 80 for v in range(256)] * 3
        ).save(path)
    pixels = ("--normalize", "imagenet", "--input-type", "uint8", "--layout", "nhwc")
    for name, words in {
        "a": (),
        "b": (*pixels, "--head", "top5"),
        "c": ("--head", "softmax"),
    }.items():
        exported = invoke("export", "--ckpt", "net.pth", "--out", f"{name}.onnx", *words)
        assert exported.exit_code == 0, exported.stderr
    for other in ("net.pth", "b.onnx", "c.onnx"):
        found = measured("--compare", other, onnx="a.onnx")
        assert found["compare"]["agreement_percent"] >= 97.5
        assert abs(found["compare"]["top5"] - found["top5"]) <= 1
        assert found["preprocessing"]["preprocessing"]["image_size"] == 32


def test_train_and_val_folders(here: Path, measured: Callable[..., dict[str, Any]]) -> None:
    picture(here / "train" / "n0" / "x.png")
    assert measured(data=".")["images"]["found"] == 30


def test_the_largest_come_first_and_of_equals_the_lower_number() -> None:
    scores = np.array([[0, 3, 3, 9, 1, 2, 2]], np.float16)
    assert top_classes({"y": scores}).tolist() == [[3, 1, 2, 5, 6]]
    assert top_classes({"values": scores, "indices": np.array([[4, 2]])}).tolist() == [[4, 2]]
    levels = np.array([[0, 255, 1], [128, 0, 127]], np.uint8)
    assert top_classes({"y": levels}).tolist() == [[1, 2, 0], [0, 2, 1]]
    assert top_classes({"y": (levels ^ 128).view(np.int8)}).tolist() == [[1, 2, 0], [0, 2, 1]]


@pytest.mark.parametrize(
    ("words", "code", "status"),
    [
        (("--data", "val"), "bench.artifact", 2),
        (("--onnx", "nope.onnx", "--data", "val"), "input.missing", 66),
        (("--onnx", "net.onnx"), "usage", 2),
        (("--onnx", "net.onnx", "--data", "val", "--real-labels", "no"), "input.missing", 66),
        (("--onnx", "net.onnx", "--data", "val", "--compare", "no"), "input.missing", 66),
        (("--onnx", "wide.onnx", "--data", "val"), "eval.output", 65),
        (("--onnx", "two.onnx", "--data", "val"), "eval.output", 65),
        (("--onnx", "mean.onnx", "--data", "val"), "eval.output", 65),
        (("--onnx", "net.onnx", "--data", "val", "--compare", "few.onnx"), "eval.compare", 65),
        (("--onnx", "nan.onnx", "--data", "val"), "verify.nonfinite", 1),
        (("--engine", "net.plan", "--data", "val", "--device", "auto"), "gpu.none", 69),
    ],
)
def test_wrong_calls(
    words: tuple[str, ...], code: str, status: int, here: Path, invoke: Invoke,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("vntools.runtime.trt_runner.gpu_count", lambda: 0)
    texts = {
        "wide": "(float[n,3,8,8] x) => (float[n,3,8,8] y) { y = Relu(x) }",
        "two": "(float[n,3,8,8] x) => (float[n,10] y, float[n,192] f) <float[192,10] W> "
               "{ f = Flatten(x) y = MatMul(f, W) }",
        "mean": "(float[n,3,8,8] x) => (float[m,10] y) <float[192,10] W, int64[1] a = {0}> "
                "{ f = Flatten(x) g = MatMul(f, W) y = ReduceMean(g, a) }",
        "few": "(float[n,3,1,1] x) => (float[n,3] y) { y = Flatten(x) }",
        "nan": "(float[n,3,8,8] x) => (float[n,10] y) <float[192,10] W> "
               "{ r = Sqrt(x) f = Flatten(r) y = MatMul(f, W) }",
    }  # fmt: skip
    for name, text in texts.items():
        (here / f"{name}.onnx").write_bytes(parsed(text).SerializeToString())
    (here / "net.plan").write_bytes(b"ftrt")
    device = () if "--device" in words else ("--device", "cpu")
    refused(invoke("eval", *words, *device, "--quiet"), code, status)


def torchrun(here: Path, processes: int, *words: str) -> subprocess.CompletedProcess[str]:
    """``vntools eval`` by several processes on this machine."""
    return subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python",
            f"--nproc-per-node={processes}", *ENTRY, "eval", "--device", "cpu", *words,
        ],
        check=False, capture_output=True, text=True, timeout=120, cwd=here,
    )  # fmt: skip


def test_two_processes_count_as_one_does(
    here: Path, measured: Callable[..., dict[str, Any]]
) -> None:
    network(here / "swapped.onnx", swap=(3, 4))
    (here / "val" / "n4" / "0.png").write_bytes(b"")
    (here / "val" / "n4" / "1.png").write_bytes(b"")
    words = ("--compare", "swapped.onnx", "--skip-bad")
    alone = measured(*words)
    run = torchrun(here, 2, "--onnx", "net.onnx", "--data", "val", "--json", *words)
    assert run.returncode == 0, run.stderr
    both = json.loads(run.stdout)
    assert (alone.pop("processes"), both.pop("processes")) == (1, 2)
    assert {**both, "seconds": 0} == {**alone, "seconds": 0}
    assert len(both["bad"]) == 2


def test_more_processes_than_images_and_a_failing_one(here: Path) -> None:
    real_folder(here)
    for path in sorted((here / "flat").iterdir())[1:]:
        path.unlink()
    words = ("--onnx", "net.onnx", "--data", "flat")
    run = torchrun(here, 2, *words, "--real-labels", "real.json")
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("100.00 % (1 of 1)") == 1
    (here / "flat" / "ILSVRC2012_val_00000002.png").write_bytes(b"")
    run = torchrun(here, 2, *words, "--real-labels", "real.json")
    assert run.returncode != 0
    assert "error[data.image]" in run.stderr
    assert run.stdout == ""


@pytest.mark.parametrize(
    "changes",
    [{"WORLD_SIZE": "many"}, {"RANK": "2"}, {"LOCAL_RANK": "-1"}, {"LOCAL_RANK": ""}],
)
def test_an_environment_that_torchrun_did_not_make(
    changes: dict[str, str], here: Path, invoke: Invoke
) -> None:
    made = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    words = ("eval", "--onnx", "net.onnx", "--data", "val", "--device", "cpu")
    refused(invoke(*words, env=made | changes), "eval.ranks", 2)


def test_ctrl_c_ends_it_at_once(here: Path) -> None:
    for number in range(200):
        shutil.copy(here / "val" / "n0" / "0.png", here / "val" / "n0" / f"x{number}.png")
    noise(3000, 2500).save(here / "big.png", compress_level=0)
    for path in (here / "val").rglob("*.png"):
        path.unlink()
        os.link(here / "big.png", path)
    command = [*ENTRY, "eval", "--onnx", "net.onnx", "--data", "val", "--device", "cpu"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=here) as process:
        assert process.stderr is not None
        lines = Counter[str]()
        for line in process.stderr:
            lines[line.strip()] += 1
            if line.startswith("evaluate"):
                break
        time.sleep(0.3)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(30) == 130, (lines, rest)
        assert time.monotonic() - start < 2
        assert "ended by SIGINT" in rest


@pytest.mark.gpu
def test_a_plan_on_a_gpu(work: Path, invoke: Invoke) -> None:
    for number in range(20):
        path = work / "val" / f"n{number % CLASSES}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(40, 40, seed=number).save(path)
    words = (
        "eval",
        "--engine",
        "net.plan",
        "--data",
        "val",
        "--compare",
        "net.onnx",
        "--json",
    )
    result = invoke(*words)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["compare"]["agreement_percent"] >= 90
