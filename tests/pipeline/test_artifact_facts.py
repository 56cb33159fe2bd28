"""What a file says of itself: precision, preprocessing, batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.graphs import parsed
from vntools.base.artifacts import sidecar_path, write_sidecar_bytes
from vntools.base.errors import DataFault
from vntools.pipeline.artifact_facts import facts_of

HALF = "(float[n,2] x) => (float[n,2] y) {{ h = Cast<to={to}>(x) y = Cast<to=1>(h) }}"
GRAPHS: dict[str, tuple[str, str]] = {
    "plain": ("(float[n,2] x) => (float[n,2] y) <float[2] b> { y = Add(x, b) }", "fp32"),
    "double": ("(double[n,2] x) => (double[n,2] y) <double[2] b> { y = Add(x, b) }", "fp32"),
    "cast to half": (HALF.format(to=10), "fp16"),
    "cast to bfloat16": (HALF.format(to=16), "bf16"),
    "half weight": (
        "(float[n,2] x) => (float[n,2] y) <float16[2] b> { c = Cast<to=1>(b) y = Add(x, c) }",
        "fp16",
    ),
    "both halves": (
        (
            "(float[n,2] x) => (float[n,2] y) <float16[2] b> "
            "{ c = Cast<to=1>(b) h = Cast<to=16>(x) w = Cast<to=1>(h) y = Add(w, c) }"
        ),
        "bf16",
    ),
    "quantized": (
        (
            "(float[n,2] x) => (float[n,2] y) <float s, int8 z> "
            "{ q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"
        ),
        "int8",
    ),
    "bytes": ("(uint8[n,2] x) => (float[n,2] y) { y = Cast<to=1>(x) }", "fp32"),
    "int8 weight alone": (
        "(float[n,2] x) => (float[n,2] y) <int8[2] b> { c = Cast<to=1>(b) y = Add(x, c) }",
        "fp32",
    ),
}


def precision_of(model: onnx.ModelProto) -> str:
    return facts_of(Path("net"), "onnx", {}, model).precision


@pytest.mark.parametrize("name", GRAPHS)
def test_the_precision_of_a_graph(name: str) -> None:
    text, precision = GRAPHS[name]
    assert precision_of(parsed(text, opset=21)) == precision


def test_subgraphs_and_functions_count() -> None:
    model = parsed(GRAPHS["plain"][0])
    half = numpy_helper.from_array(np.ones(2, np.float16), "h")
    inner = helper.make_graph([], "then", [], [], [half])
    model.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=inner))
    assert precision_of(model) == "fp16"
    model = parsed(GRAPHS["plain"][0])
    model.graph.node.append(helper.make_node("Constant", [], ["k"], value=half))
    assert precision_of(model) == "fp16"
    model = parsed(GRAPHS["plain"][0])
    cast = helper.make_node("Cast", ["a"], ["b"], to=onnx.TensorProto.BFLOAT16)
    model.functions.append(helper.make_function("d", "F", ["a"], ["b"], [cast], []))
    assert precision_of(model) == "bf16"
    model = parsed(GRAPHS["plain"][0])
    weight = np.ones(2, ml_dtypes.float8_e4m3fn)
    model.graph.initializer.append(numpy_helper.from_array(weight, "f"))
    assert precision_of(model) == "float8e4m3fn"


def test_what_the_metadata_says_of_images(tmp_path: Path) -> None:
    for text, said in (("{", None), ("[1]", None), ('{"layout": "nhwc"}', {"layout": "nhwc"})):
        facts = facts_of(tmp_path, "ckpt", {"vntools.preprocessing": text})
        assert (facts.precision, facts.preprocessing) == ("fp32", said)
    assert facts_of(tmp_path, "ckpt", {}).preprocessing is None


def test_a_plan_says_it_in_its_sidecar(tmp_path: Path) -> None:
    plan = tmp_path / "net.plan"
    bare = facts_of(plan, "engine", {})
    assert (bare.precision, bare.batches) == ("as built", None)
    record: dict[str, Any] = {
        "schema": 1,
        "sha256": "0" * 64,
        "precision": "int8",
        "profile": {"input": {"min": [2, 3], "opt": [2, 3], "max": [4, 3]}},
    }
    sidecar_path(plan).write_bytes(write_sidecar_bytes(record))
    facts = facts_of(plan, "engine", {})
    assert (facts.precision, facts.batches) == ("int8", (2, 4))
    for profile in ([], {"input": []}, {"input": {"min": [], "max": []}}):
        sidecar_path(plan).write_bytes(write_sidecar_bytes(record | {"profile": profile}))
        with pytest.raises(DataFault, match="names no batches") as e:
            facts_of(plan, "engine", {})
        assert e.value.code == "plan.manifest"
