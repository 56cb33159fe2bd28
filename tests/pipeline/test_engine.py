"""vntools build-engine, with real TensorRT-RTX builds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import Result
from onnx import numpy_helper

from vntools.base.artifacts import read_sidecar
from vntools.engine.kernels import Kernel
from vntools.pipeline import engine as engine_module

Invoke = Callable[..., Result]
Record = Callable[[str], dict[str, Any]]


def test_the_sidecar_says_what_was_built(made: Path, record: Record) -> None:
    sidecar = read_sidecar(made / "net.plan")
    assert sidecar is not None
    assert sidecar == record("plan")["engine"]
    assert sidecar["sha256"] == hashlib.sha256((made / "net.plan").read_bytes()).hexdigest()
    onnx_digest = hashlib.sha256((made / "net.onnx").read_bytes()).hexdigest()
    assert sidecar["source"] == {"name": "net.onnx", "sha256": onnx_digest}
    assert (sidecar["flavour"], sidecar["precision"], sidecar["io_type"]) == (
        "tensorrt-rtx", "fp16", "fp32",
    )  # fmt: skip
    assert sidecar["profile"]["input"]["max"] == [8, 3, 32, 32]
    assert [i["dtype"] for i in sidecar["inputs"]] == ["float32"]
    assert len(sidecar["convolutions"]) == 7
    assert all(c["weights"] == ["fp16"] for c in sidecar["convolutions"])
    assert sidecar["model"]["classes"] == "10"
    assert "sha256" not in sidecar["model"], "that of the source is said above"


def test_the_typed_graph_was_verified(record: Record) -> None:
    verify = record("plan")["verify"]
    assert 0 < verify["relative_l2"] < verify["allowed"]


def test_fewer_kernels_than_in_training(work: Path, invoke: Invoke, record: Record) -> None:
    result = invoke("build-engine", "training.onnx", "--fp16", "--json")
    assert result.exit_code == 0, result.stderr
    training = json.loads(result.stdout)["engine"]
    merged = record("plan")["engine"]
    assert len(merged["kernels"]) < len(training["kernels"])
    assert merged["bytes"] < training["bytes"]


def test_a_rebuild_replaces_what_vntools_wrote(work: Path, invoke: Invoke) -> None:
    """TensorRT-RTX does not promise the same bytes; all that is said of them is the same."""
    before = read_sidecar("net.plan")
    assert invoke("build-engine", "net.onnx", "--fp16").exit_code == 0
    after = read_sidecar("net.plan")
    assert before is not None
    assert after is not None
    unlike = {key for key in before if before[key] != after[key]}
    assert unlike <= {"sha256", "bytes"}


def test_the_bar_is_that_of_the_outermost_phase() -> None:
    moved: list[tuple[int, int]] = []
    progress = engine_module._outermost(lambda n, total: moved.append((n, total)))
    for step in (
        ("all", 0, 3),
        ("a part", 0, 9),
        ("all", 1, 3),
        ("a part", 9, 9),
        ("all", 3, 3),
    ):
        progress(*step)
    progress("all", 3, 3)
    assert moved == [(0, 3), (1, 3), (2, 3), (0, 3)]


def test_a_plan_of_any_name_is_rebuilt(work: Path, invoke: Invoke) -> None:
    for _ in range(2):
        result = invoke("build-engine", "net.onnx", "--saveEngine", "net.engine")
        assert result.exit_code == 0, result.stderr
    (work / "net.engine.json").write_text("{}")
    assert invoke("build-engine", "net.onnx", "--saveEngine", "net.engine").exit_code == 73


def test_fp32_is_the_default_and_tf32_is_said(work: Path, invoke: Invoke) -> None:
    result = invoke("build-engine", "net.onnx", "--out", "wide.plan", "--max-batch", 2)
    assert result.exit_code == 0, result.stderr
    assert "precision fp32 (TF32 allowed)" in result.stdout
    sidecar = read_sidecar("wide.plan")
    assert sidecar is not None
    assert sidecar["profile"]["input"]["max"][0] == 2


def test_fp16_inputs_and_trtexecs_spellings(work: Path, invoke: Invoke) -> None:
    result = invoke(
        "build-engine", "net.onnx", "--fp16", "--io-type", "fp16", "--saveEngine", "half.plan",
        "--memPoolSize", "workspace:1G", "--builderOptimizationLevel", 2,
        "--compute-capability", "8.0", "--compute-capability", "SM89",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    sidecar = read_sidecar("half.plan")
    assert sidecar is not None
    assert [t["dtype"] for t in sidecar["inputs"] + sidecar["outputs"]] == ["float16"] * 2
    assert sidecar["compute_capabilities"] == [80, 89]
    assert sidecar["mem_pool_size"] == {"workspace": 1024.0}


def test_what_the_builder_warns_of_is_said(
    work: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vntools.engine.build as module

    true = module.build
    monkeypatch.setattr(
        module,
        "build",
        lambda *a, **k: replace(true(*a, **k), warnings=("odd\x1b[1m", "odd\x1b[1m", "even")),
    )
    result = invoke("build-engine", "net.onnx", "--fp16")
    assert result.exit_code == 0
    said = [line for line in result.stderr.splitlines() if line.startswith("warning")]
    assert said == ["warning[engine.warning]: odd\\x1b[1m", "warning[engine.warning]: even"]


def test_the_one_file_here_is_taken(work: Path, invoke: Invoke) -> None:
    Path("training.onnx").unlink()
    onnx.save(onnx.load("net.onnx"), "foreign.onnx")
    with Path("foreign.onnx").open("ab") as f:
        f.write(b"\x72\x00")  # an empty metadata entry: valid, but no longer ours
    result = invoke("build-engine", "--fp16", "--out", "one.plan")
    assert result.exit_code == 0, result.stderr
    assert "taking net.onnx" in result.stderr


def test_with_several_or_none_it_asks_for_one(
    work: Path, invoke: Invoke, tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    several = invoke("build-engine", "--fp16")
    assert several.exit_code == 2
    assert "error[engine.model]" in several.stderr
    assert "net.onnx, training.onnx" in several.stderr
    monkeypatch.chdir(tmp_path_factory.mktemp("bare"))
    none = invoke("build-engine", "--fp16")
    assert none.exit_code == 2
    assert "vntools export" in none.stderr


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["nope.onnx"], 66, "nope.onnx"),
        (["net.pth"], 65, "net.pth"),
        (["net.onnx", "--fp16", "--fp32"], 2, "exclude"),
        (["net.onnx", "--io-type", "fp16"], 2, "--fp16"),
        (["net.onnx", "--timing-cache", "t.cache"], 2, "timing"),
        (["net.onnx", "--backend", "tensorrt"], 69, "GPU"),
        (["net.onnx", "--min-batch", "4", "--max-batch", "2"], 2, "batch"),
        (["net.onnx", "--compute-capability", "nine"], 2, "nine"),
        (["net.onnx", "--mem-pool-size", "workspace"], 2, "workspace"),
        (["net.onnx", "--out", "net.onnx"], 2, "overwrite"),
        (["net.onnx", "--out", "mine.txt"], 73, "--force"),
    ],
)
def test_wrong_calls(
    work: Path, invoke: Invoke, words: list[str], status: int, said: str
) -> None:
    (work / "mine.txt").write_text("mine")
    before = {p.name: p.read_bytes() for p in work.iterdir()}
    result = invoke("build-engine", *words, "--quiet")
    assert (result.exit_code, said in result.stderr) == (status, True), result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert {p.name: p.read_bytes() for p in work.iterdir()} == before


def test_a_weight_beyond_fp16_is_refused_by_name(work: Path, invoke: Invoke) -> None:
    model = onnx.load("net.onnx")
    for tensor in model.graph.initializer:
        if tensor.name == "stages.1.conv.weight":
            array = numpy_helper.to_array(tensor).copy()
            array[0, 0, 0, 0] = 1e5
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, "large.onnx")
    result = invoke("build-engine", "large.onnx", "--fp16")
    assert result.exit_code == 65
    assert "fp16.overflow" in result.stderr
    assert "stages.1.conv" in result.stderr
    assert not Path("large.plan").exists()


def test_the_precision_gate_closes(
    work: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A builder that answers with FP32 kernels: nothing may be published."""
    import vntools.engine.build as module

    true = module.from_log

    def widened(messages: Any) -> tuple[Kernel, ...]:
        from dataclasses import replace

        wide = {"fp16": "fp32"}

        def wider(tensors: Any) -> Any:
            return tuple(replace(t, dtype=wide.get(t.dtype, t.dtype)) for t in tensors)

        return tuple(
            replace(k, inputs=wider(k.inputs), constants=wider(k.constants))
            for k in true(messages)
        )

    monkeypatch.setattr(module, "from_log", widened)
    result = invoke("build-engine", "net.onnx", "--fp16", "--out", "gate.plan")
    assert result.exit_code == 1
    assert "engine.precision" in result.stderr
    assert not Path("gate.plan").exists()


def test_a_file_that_is_no_model_is_not_taken_as_the_reference(
    work: Path, invoke: Invoke
) -> None:
    (work / "foreign.onnx").write_bytes(b"<html>")
    result = invoke("build-engine", "foreign.onnx")
    assert result.exit_code == 65
    assert "taken as the reference" not in result.stderr
