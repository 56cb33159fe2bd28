"""vntools inspect: plans by their sidecars, ONNX files by their nodes, and both floors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tests.pictures import noise
from vntools.base.artifacts import read_sidecar, write_sidecar_bytes
from vntools.bench.devices import device_named
from vntools.pipeline import peak
from vntools.pipeline.inspect import onnx_floor

Invoke = Callable[..., Result]


@pytest.fixture
def look(work: Path, invoke: Invoke) -> Callable[..., dict[str, Any]]:
    """``vntools inspect WORDS... --json`` in the folder of :func:`work`."""

    def call(*words: object) -> dict[str, Any]:
        result = invoke("inspect", *words, "--json")
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    return call


def test_an_onnx_file(look: Callable[..., dict[str, Any]]) -> None:
    found = look("net.onnx", "--batch", 4)
    assert (found["kind"], found["engine"], found["floor"]) == ("onnx", None, None)
    assert found["work"]["operations"] == {"fp32": 2 * 4 * found["graph"]["macs"]}
    assert found["work"]["weight_bytes"] == found["graph"]["bytes"]
    assert [y["name"] for y in found["work"]["layers"]][:2] == ["stem.0", "stem.1"]


def test_a_plan_is_held_against_the_graph_beside_it(
    work: Path, look: Callable[..., dict[str, Any]]
) -> None:
    found = look("net.plan", "--device", "t4")
    sidecar = read_sidecar(work / "net.plan")
    assert sidecar is not None
    assert found["engine"] == sidecar
    floor = found["floor"]
    assert floor["device"]["name"] == "T4"
    assert floor["batch"] == sidecar["profile"]["input"]["opt"][0]
    assert set(floor["operations"]) == {"fp16"}, "the types of the plan, not of its source"
    assert floor["input_bytes"] == 4 * 3 * 32 * 32, "its input stays float32"
    wide = onnx_floor(work / "net.onnx", floor["batch"], device_named("t4"))
    assert 2 * floor["weight_bytes"] == wide.work.weight_bytes
    assert floor["floor_ms"] < wide.ms
    assert 0 < floor["floor_ms"] <= floor["layered_ms"]


def test_a_plan_whose_graph_is_elsewhere(
    work: Path, look: Callable[..., dict[str, Any]], invoke: Invoke
) -> None:
    beside = look("net.plan", "--device", "t4")["floor"]
    (work / "elsewhere").mkdir()
    moved = shutil.move(work / "net.onnx", work / "elsewhere" / "graph.onnx")
    assert look("net.plan")["work"] is None
    assert look("net.plan", "--onnx", moved, "--device", "t4")["floor"] == beside
    result = invoke("inspect", "net.plan", "--device", "t4")
    assert result.exit_code == 2
    assert "error[inspect.typed]" in result.stderr


def test_the_typed_graph_gives_the_same_floor(
    work: Path, look: Callable[..., dict[str, Any]], invoke: Invoke
) -> None:
    words = ("--fp16", "--out", "kept.plan", "--keep-onnx", "typed.onnx")
    assert invoke("build-engine", "net.onnx", *words).exit_code == 0
    beside = look("kept.plan", "--device", "t4")["floor"]
    given = look("kept.plan", "--onnx", "typed.onnx", "--device", "t4")["floor"]
    assert given == beside
    # The same graph is not that of a plan of another precision.
    assert invoke("build-engine", "net.onnx", "--fp32", "--out", "wide.plan").exit_code == 0
    result = invoke("inspect", "wide.plan", "--onnx", "typed.onnx")
    assert (result.exit_code, "error[inspect.graph]" in result.stderr) == (2, True)


def test_an_int8_plan_needs_its_typed_graph(
    work: Path, look: Callable[..., dict[str, Any]], invoke: Invoke
) -> None:
    (work / "images").mkdir()
    for i in range(40):
        noise(40, 36, seed=i).save(work / "images" / f"{i:02}.png")
    words = ("--int8", "--calib", "images", "--out", "int8.plan", "--keep-onnx", "typed.onnx")
    assert invoke("build-engine", "net.onnx", *words).exit_code == 0
    assert look("int8.plan")["work"] is None
    layers = look("int8.plan", "--onnx", "typed.onnx")["work"]["layers"]
    asked = {c["conv"]: c["asked"] for c in look("int8.plan")["engine"]["convolutions"]}
    assert "int8" in asked.values()
    assert {y["name"]: y["precision"] for y in layers if y["operations"]} == asked
    wide = {y["name"]: y["weight_bytes"] for y in look("net.onnx")["work"]["layers"]}
    for layer in layers:
        if layer["precision"] == "int8":
            assert layer["weight_bytes"] < 0.4 * wide[layer["name"]], "scales and bias aside"


def test_the_text_says_what_binds(work: Path, invoke: Invoke) -> None:
    result = invoke("inspect", "net.plan", "--peak", 1, "--bandwidth", 1000)
    assert result.exit_code == 0, result.stderr
    for said in ("kernels: ", "precision fp16", "floor of the network: ", " binds ", "stem.0",
                 "1000 GB/s, 1 TFLOPS in fp16 (--peak and --bandwidth)"):  # fmt: skip
        assert said in result.stdout
    bare = invoke("inspect", "net.onnx").stdout
    assert "floor" not in bare
    assert "7 Conv" in bare


def test_limits_measured_here(
    look: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peak, "gpu_count", lambda: 0)
    monkeypatch.setattr(peak, "_SIDE", {"cpu": 128})
    monkeypatch.setattr(peak, "_COPY_BYTES", 1 << 20)
    monkeypatch.setattr(peak, "_LEAST_S", 0.0)
    found = look("net.onnx", "--measure-peak")["floor"]
    assert found["device"]["source"] == "measured by PyTorch on cpu"
    assert found["floor_ms"] > 0


def damage(sidecar: dict[str, Any]) -> None:
    del sidecar["profile"]


@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        (["nope.plan"], 66, "input.missing"),
        (["net.pth"], 2, "inspect.kind"),
        (["net.onnx", "--onnx", "net.onnx"], 2, "inspect.onnx"),
        (["net.plan", "--onnx", "training.onnx"], 2, "inspect.graph"),
        (["net.onnx", "--device", "RTX"], 2, "limit.device"),
        (["net.onnx", "--peak", "1"], 2, "limit.options"),
        (["net.onnx", "--device", "t4", "--measure-peak"], 2, "limit.options"),
        (["net.onnx", "--peak", "0", "--bandwidth", "1"], 2, "usage"),
        (["bare.plan"], 66, "inspect.sidecar"),
        (["changed.plan"], 65, "plan.sha256"),
        (["damaged.plan"], 65, "plan.manifest"),
    ],
)
def test_wrong_calls(
    work: Path, invoke: Invoke, words: list[str], status: int, code: str
) -> None:
    sidecar = read_sidecar(work / "net.plan")
    assert sidecar is not None
    for name in ("bare", "changed", "damaged"):
        shutil.copy(work / "net.plan", work / f"{name}.plan")
    changed = write_sidecar_bytes({**sidecar, "sha256": "0" * 64})
    (work / "changed.plan.json").write_bytes(changed)
    damage(sidecar)
    (work / "damaged.plan.json").write_bytes(write_sidecar_bytes(sidecar))
    result = invoke("inspect", *words, "--quiet")
    assert result.exit_code == status, result.stderr
    assert f"error[{code}]" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
