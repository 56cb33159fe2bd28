"""vntools build-engine --int8, with real calibration and real TensorRT-RTX builds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import Result
from onnx import numpy_helper
from PIL import Image

from tests.pictures import noise
from vntools.base.artifacts import read_sidecar
from vntools.export.load import load_onnx
from vntools.precision import equalize
from vntools.precision.int8 import find_layers
from vntools.verify.float32 import run_float32

Invoke = Callable[..., Result]
INT8 = ("build-engine", "net.onnx", "--int8", "--calib", "images")


@pytest.fixture(autouse=True)
def images(work: Path) -> Path:
    """Forty noisy images of brightness and contrast of their own, in two class folders."""
    rng = np.random.default_rng(0)
    for i in range(40):
        path = work / "images" / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        low = rng.integers(0, 128, dtype=np.uint8)
        Image.fromarray(low + np.asarray(noise(40, 36, seed=i)) // 2).save(path)
    return work / "images"


def built(invoke: Invoke, *words: object) -> dict[str, Any]:
    result = invoke(*INT8, *words, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def asked(record: dict[str, Any]) -> dict[str, str]:
    return {c["conv"]: c["asked"] for c in record["engine"]["convolutions"]}


def test_the_plan_is_int8_where_it_should_be(invoke: Invoke, work: Path) -> None:
    record = built(invoke, "--keep-onnx", "typed.onnx")
    sidecar = read_sidecar(work / "net.plan")
    assert sidecar == record["engine"]
    roles = {v.name: v.role for v in find_layers(load_onnx(Path("net.onnx")).model.graph)}
    assert asked(record) == {
        name: "int8" if role == "dense" else "fp16" for name, role in roles.items()
    }
    assert all(
        c["weights"] == c["activations"] == [c["asked"]]
        for c in record["engine"]["convolutions"]
    )
    int8 = record["engine"]["int8"]
    assert (int8["images"], int8["method"], int8["cached"]) == (40, "minmax", False)
    (step,) = int8["steps"]
    assert step["layers"] == sum(role == "dense" for role in roles.values())
    assert 0 < step["relative_l2"] < 0.1
    assert 0 < record["verify"]["relative_l2"] < 0.1
    alone = {v["name"]: v["error"] for v in int8["layers"]}
    assert all((alone[name] is not None) == (role == "dense") for name, role in roles.items())


def test_the_typed_graph_runs_and_builds_again(invoke: Invoke, work: Path) -> None:
    """On its own, it gives the plan's answers and the same kernels."""
    record = built(invoke, "--keep-onnx", "typed.onnx")
    typed = (work / "typed.onnx").read_bytes()
    onnx.checker.check_model(typed, full_check=True)
    props = {p.key: p.value for p in onnx.load_from_string(typed).metadata_props}
    assert (props["vntools.stage"], props["vntools.precision"]) == ("typed", "int8")
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    (want,) = run_float32((work / "net.onnx").read_bytes(), [{"input": x}])
    (got,) = run_float32(typed, [{"input": x}])
    off = np.linalg.norm(got["logits"] - want["logits"]) / np.linalg.norm(want["logits"])
    assert 1e-4 < off < 0.3
    result = invoke("build-engine", "typed.onnx", "--json")
    assert result.exit_code == 0, result.stderr
    again = json.loads(result.stdout)
    assert asked(again) == asked(record)
    kernels = [k["type"] for k in record["engine"]["kernels"]]
    assert [k["type"] for k in again["engine"]["kernels"]] == kernels
    chosen = invoke("build-engine", "--fp16")
    assert "taking" not in chosen.stderr or "typed.onnx" not in chosen.stderr


@pytest.mark.parametrize(
    ("words", "want"),
    [
        (("--int8-depthwise",), {"dense": "int8", "depthwise": "int8", "head": "fp16"}),
        (("--int8-head",), {"dense": "int8", "depthwise": "fp16", "head": "int8"}),
        (("--bf16",), {"dense": "int8", "depthwise": "bf16", "head": "bf16"}),
        (("--fp32",), {"dense": "int8", "depthwise": "fp32", "head": "fp32"}),
    ],
)
def test_what_else_can_be_asked_for(
    invoke: Invoke, words: tuple[str, ...], want: dict[str, str]
) -> None:
    record = built(invoke, *words)
    roles = {v["name"]: v["role"] for v in record["engine"]["int8"]["layers"]}
    assert asked(record) == {name: want[role] for name, role in roles.items()}


def test_layers_by_pattern(invoke: Invoke) -> None:
    record = built(invoke, "--fp16-layers", "stem.*", "--fp32-layers", "stages.1.conv")
    kinds = asked(record)
    assert kinds["stages.0.conv"] == "int8"
    assert kinds["stages.1.conv"] == "fp32"
    assert {kind for name, kind in kinds.items() if name.startswith("stem.")} == {"fp16"}


@pytest.mark.parametrize("method", ["entropy", "percentile"])
def test_other_ranges(invoke: Invoke, method: str) -> None:
    record = built(invoke, "--calib-method", method, "--calib-images", 33)
    int8 = record["engine"]["int8"]
    assert (int8["method"], int8["images"]) == (method, 33)


def test_ranges_are_read_from_the_cache(invoke: Invoke, work: Path) -> None:
    words = ("--calib-cache", "ranges.json")
    first = built(invoke, *words)["engine"]["int8"]
    cache = (work / "ranges.json").read_bytes()
    second = built(invoke, *words)["engine"]["int8"]
    assert (first["cached"], second["cached"]) == (False, True)
    assert {**first, "cached": True} == second, "and all that follows is the same"
    assert (work / "ranges.json").read_bytes() == cache
    other = built(invoke, *words, "--calib-method", "percentile")["engine"]["int8"]
    assert not other["cached"]
    assert (work / "ranges.json").read_bytes() != cache


def test_arrays_do_as_well_as_images(invoke: Invoke, work: Path) -> None:
    x = np.random.default_rng(0).standard_normal((40, 3, 32, 32)).astype(np.float32)
    np.savez(work / "batches.npz", input=x)
    assert built(invoke, "--calib", "batches.npz")["engine"]["int8"]["images"] == 40


def ruin(path: Path, layer: str, factor: int = 60) -> None:
    """One input channel of a layer becomes so many times as large, as its weights shrink."""
    model = onnx.load(path)
    held = {t.name: t for t in model.graph.initializer}
    by_output = {n.output[0]: n for n in model.graph.node}
    conv = next(n for n in model.graph.node if n.name == layer)
    before = by_output[conv.input[0]]
    assert before.op_type == "Conv"
    for name, axis, times in (
        (before.input[1], 0, factor),
        (before.input[2], 0, factor),
        (conv.input[1], 1, 1 / factor),
    ):
        array = numpy_helper.to_array(held[name]).copy()
        array[(slice(None),) * axis + (0,)] *= np.float32(times)
        held[name].CopyFrom(numpy_helper.from_array(array, name))
    onnx.save(model, path)


def test_equalisation_cures_a_ruined_range(invoke: Invoke, work: Path) -> None:
    ruin(work / "net.onnx", "stages.1.conv")
    with_it, without = built(invoke), built(invoke, "--no-equalize")
    cured, ruined = (r["engine"]["int8"] for r in (with_it, without))
    assert ruined["alpha"] is None
    assert ruined["equalized"] is None
    before, after = cured["equalized"]
    assert after < before / 5
    assert cured["alpha"] is not None
    assert with_it["verify"]["relative_l2"] < without["verify"]["relative_l2"] / 5


def test_what_is_broken_is_refused_with_its_layers(invoke: Invoke, work: Path) -> None:
    ruin(work / "net.onnx", "stages.1.conv", 1000)
    before = sorted(work.rglob("*"))
    result = invoke(*INT8, "--no-equalize", "--out", "new.plan")
    assert result.exit_code == 1
    assert "error[verify.mismatch]" in result.stderr
    assert "costliest: stages.1.conv," in result.stderr
    assert "stages.1.conv" in result.stdout, "the table is printed"
    assert sorted(work.rglob("*")) == before


def test_the_budget_gives_the_ruined_layer_up(invoke: Invoke, work: Path) -> None:
    ruin(work / "net.onnx", "stages.1.conv", 1000)
    words = ("--no-equalize", "--max-drop", 2)
    record = built(invoke, *words)
    int8 = record["engine"]["int8"]
    assert [s["layers"] for s in int8["steps"]][:2] == [3, 2]
    assert asked(record)["stages.1.conv"] == "fp16"
    assert asked(record)["stages.0.conv"] == "int8"
    assert int8["steps"][-1]["relative_l2"] < 0.1 < int8["steps"][0]["relative_l2"]
    assert built(invoke, *words)["engine"]["int8"] == int8, "the same choice again"


def test_a_budget_of_labelled_images(invoke: Invoke, work: Path) -> None:
    for folder in "0123456789":
        (work / "labelled" / folder).mkdir(parents=True)
        noise(33, 40, seed=int(folder)).save(work / "labelled" / folder / "a.png")
    record = built(invoke, "--max-drop", 100, "--eval-data", "labelled")
    (step,) = record["engine"]["int8"]["steps"]
    assert step["images"] == 10
    assert record["engine"]["int8"]["labelled"] is True
    (work / "whole" / "train").mkdir(parents=True)
    (work / "labelled").rename(work / "whole" / "val")
    again = built(invoke, "--max-drop", 100, "--eval-data", "whole")
    assert again["engine"]["int8"]["steps"] == [step], "val, where train is beside it"


def test_a_budget_out_of_reach_publishes_nothing(invoke: Invoke, work: Path) -> None:
    for layer in ("stages.0.conv", "stages.1.conv"):
        ruin(work / "net.onnx", layer, 1000)
    before = sorted(work.rglob("*"))
    hard = (
        *INT8, "--no-equalize", "--fp16-layers", "stem.*", "--max-drop", 5,
        "--out", "new.plan", "--keep-onnx", "new.onnx",
    )  # fmt: skip
    result = invoke(*hard)
    assert result.exit_code == 1, result.stderr
    assert "error[int8.budget]" in result.stderr
    assert "INT8 layers" in result.stdout, "the trade is printed"
    assert sorted(work.rglob("*")) == before
    document = json.loads(invoke(*hard, "--json").stdout)
    assert document["error"]["code"] == "int8.budget"
    assert [s["layers"] for s in document["int8"]["steps"]] == [2, 1]


@pytest.mark.parametrize(
    ("words", "code", "status"),
    [
        (("--int8",), "calib.required", 2),
        (("--calib", "images"), "engine.option", 2),
        (("--int8-head", "--fp16"), "engine.option", 2),
        (("--max-drop", 0), "engine.option", 2),
        (("--calib-method", "minmax"), "engine.option", 2),
        (("--fp16", "--no-equalize"), "engine.option", 2),
        ((*INT8[2:], "--calib-cache", "nowhere/ranges.json"), "out.folder", 73),
        ((*INT8[2:], "--calib-cache", "new.plan"), "engine.out_twice", 2),
        ((*INT8[2:], "--keep-onnx", "new.plan.json"), "engine.out_twice", 2),
        ((*INT8[2:], "--eval-data", "images"), "engine.option", 2),
        ((*INT8[2:], "--class-map", "images"), "engine.option", 2),
        (("--fp32-layers", "stem.*"), "engine.option", 2),
        (("--fp16", "--fp16-layers", "stem.*"), "engine.option", 2),
        (("--fp16", "--bf16"), "engine.precision_twice", 2),
        ((*INT8[2:], "--fp16-layers", "nothing*"), "engine.layers", 2),
        ((*INT8[2:], "--fp16-layers", "*"), "int8.layers", 65),
        ((*INT8[2:], "--bf16", "--io-type", "fp16"), "engine.io_type", 2),
        (("--int8", "--calib", "nowhere"), "calib.missing", 66),
        (("--int8", "--calib", "empty"), "calib.empty", 65),
        ((*INT8[2:], "--max-drop", 1, "--eval-data", "images"), "eval.classes", 65),
    ],
)
def test_what_cannot_be_meant(
    invoke: Invoke, work: Path, words: tuple[object, ...], code: str, status: int
) -> None:
    (work / "empty").mkdir()
    result = invoke("build-engine", "net.onnx", "--out", "new.plan", *words)
    assert (result.exit_code, f"error[{code}]" in result.stderr) == (status, True), (
        result.stderr
    )
    assert not (work / "new.plan").exists()


@pytest.mark.parametrize("words", [("--bf16",), ("--fp16", "--fp32-layers", "stages.0.*")])
def test_float_types(invoke: Invoke, words: tuple[str, ...]) -> None:
    result = invoke("build-engine", "net.onnx", *words, "--json")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    kinds = asked(record)
    if words == ("--bf16",):
        assert set(kinds.values()) == {"bf16"}
    else:
        assert {k for k, v in kinds.items() if v == "fp32"} == {
            "stages.0.conv",
            "stages.0.act",
        }
    assert record["verify"]["relative_l2"] > 1e-5


def test_a_budget_is_a_number(invoke: Invoke) -> None:
    result = invoke(*INT8, "--max-drop", "nan")
    assert result.exit_code == 2
    assert "nan is no number of points" in result.stderr


def test_weights_of_constant_nodes(invoke: Invoke, work: Path) -> None:
    """As weights that are initializers, and none is left beside its int8."""
    plain = ("--no-equalize", "--keep-onnx", "typed.onnx")
    usual = built(invoke, *plain)["engine"]["int8"]["layers"]
    model = onnx.load("net.onnx")
    for tensor in model.graph.initializer:
        node = onnx.helper.make_node("Constant", [], [tensor.name], value=tensor)
        model.graph.node.insert(0, node)
    del model.graph.initializer[:]
    onnx.save(model, "net.onnx")
    layers = built(invoke, *plain)["engine"]["int8"]["layers"]
    assert [v["error"] for v in layers] == [v["error"] for v in usual]
    nodes = onnx.load("typed.onnx").graph.node
    read = {name for node in nodes for name in node.input}
    assert all(node.output[0] in read for node in nodes if node.op_type == "Constant")


def test_a_graph_with_pairs_keeps_them_in_a_float_type(invoke: Invoke, work: Path) -> None:
    """Also in an opset whose scales are float32."""
    record = built(invoke, "--fp32", "--keep-onnx", "typed.onnx")
    model = onnx.load("typed.onnx")
    model.opset_import[0].version = 13
    onnx.save(model, "pairs.onnx")
    result = invoke("build-engine", "pairs.onnx", "--fp16", "--json")
    assert result.exit_code == 0, result.stderr
    halves = {name: t.replace("fp32", "fp16") for name, t in asked(record).items()}
    assert asked(json.loads(result.stdout)) == halves
    assert "int8" in halves.values()
    refused = invoke("build-engine", "pairs.onnx", *INT8[2:])
    assert "error[int8.layers]" in refused.stderr


def test_one_balance_that_moves_nothing_does_not_end_the_others(
    invoke: Invoke, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ruin(work / "net.onnx", "stages.1.conv")
    whole = equalize.equalize

    def some(model: Any, channels: Any, *, alpha: float) -> equalize.Equalized:
        if alpha == 0.25:
            return equalize.Equalized(model, (), ())
        return whole(model, channels, alpha=alpha)

    monkeypatch.setattr(equalize, "equalize", some)
    assert built(invoke)["engine"]["int8"]["alpha"] in (0.5, 0.75)


def test_a_layer_that_overflows_is_named(invoke: Invoke, work: Path) -> None:
    """Its weights fit float16, its sums do not; kept in float32, the graph is fine."""
    model = onnx.load("net.onnx")
    held = {t.name: t for t in model.graph.initializer}
    for name, factor in (("stages.0.conv", 4e4), ("stages.0.act", 1 / 4e4)):
        conv = next(n for n in model.graph.node if n.name == name)
        array = numpy_helper.to_array(held[conv.input[1]]) * np.float32(factor)
        scaled = numpy_helper.from_array(array, conv.input[1])
        held[conv.input[1]].CopyFrom(scaled)
    onnx.save(model, "net.onnx")
    # Behind QuantizeLinear it is finite again, and wrong.
    for more, code in ((), "verify.mismatch"), (("--max-drop", 1), "verify.nonfinite"):
        named = invoke(*INT8, "--no-equalize", *more)
        assert (named.exit_code, code in named.stderr) == (1, True), named.stderr
        assert "--fp32-layers 'stages.0.conv'" in named.stderr
    words = ("build-engine", "net.onnx", "--fp16")
    result = invoke(*words)
    assert (result.exit_code, "verify.nonfinite" in result.stderr) == (1, True), result.stderr
    assert "--fp32-layers 'stages.0.conv'" in result.stderr
    kept = invoke(*words, "--fp32-layers", "stages.0.conv", "--fp32-layers", "stages.0.act")
    assert kept.exit_code == 0, kept.stderr
