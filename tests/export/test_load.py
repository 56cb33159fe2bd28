"""Anybody's ONNX file: what is read, what is refused, what is filled in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.graphs import feeds_of, onnx_bytes, parsed
from vntools.base.artifacts import sha256_bytes
from vntools.base.errors import DataFault, NoInput
from vntools.export.load import load_onnx, parse_onnx
from vntools.verify.float64 import evaluate

TEXT = """(float[n,3,8,8] x) => (float[n,4,8,8] y) <float[4,3,1,1] W>
{ a = Conv(x, W) y = Relu(a) }"""


def external(tensor: TensorProto) -> None:
    for name in ("raw_data", "float_data", "int64_data"):
        tensor.ClearField(name)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")


def outside(where: str) -> bytes:
    """A model that wants a tensor from another file."""
    inner = "{ c = Constant<value=float[3,1,1] {1.0, 2.0, 3.0}>() o = Add(x, c) }"
    text = {
        "an initializer": TEXT,
        "a constant": f"(float[n,3,8,8] x) => (float[n,3,8,8] o) {inner}",
        "a subgraph": "(float[n,3,8,8] x, bool k) => (float[n,3,8,8] y) { y = If<"
        f"then_branch = t () => (float[n,3,8,8] o) {inner},"
        "else_branch = e () => (float[n,3,8,8] p) { p = Sin(x) }>(k) }",
    }[where]
    model = parsed(text)
    if where == "an initializer":
        external(model.graph.initializer[0])
    else:
        node = model.graph.node[0]
        node = node if where == "a constant" else node.attribute[0].g.node[0]
        external(node.attribute[0].t)
    return model.SerializeToString()


def test_the_file_and_its_hash(tmp_path: Path) -> None:
    data = onnx_bytes(TEXT)
    (tmp_path / "m.onnx").write_bytes(data)
    model, digest = load_onnx(tmp_path / "m.onnx")
    assert digest == sha256_bytes(data)
    assert [n.op_type for n in model.graph] == ["Conv", "Relu"]
    with pytest.raises(NoInput):
        load_onnx(tmp_path / "none.onnx")


def test_shapes_are_inferred_and_what_is_known_stays() -> None:
    model = parse_onnx(onnx_bytes(TEXT))
    a = model.graph[0].outputs[0]
    assert [str(d) for d in a.shape or ()] == ["n", "4", "8", "8"]
    assert a.dtype is not None
    told = parsed(TEXT)
    told.graph.value_info.append(helper.make_tensor_value_info("a", 1, ["other", 4, 8, 8]))
    shape = parse_onnx(told.SerializeToString()).graph[0].outputs[0].shape
    assert [str(d) for d in shape or ()] == ["other", "4", "8", "8"]


def test_a_graph_whose_shapes_contradict_is_still_read() -> None:
    data = onnx_bytes(TEXT.replace("4,3,1,1", "4,2,1,1"))
    assert len(parse_onnx(data).graph) == 2


def test_local_functions_are_inlined() -> None:
    model = parsed(TEXT)
    body = [helper.make_node("Relu", ["p"], ["q"]), helper.make_node("Neg", ["q"], ["r"])]
    opsets = list(model.opset_import)
    model.functions.append(helper.make_function("mine", "Both", ["p"], ["r"], body, opsets))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.graph.node[1].CopyFrom(helper.make_node("Both", ["a"], ["y"], domain="mine"))
    ready = parse_onnx(model.SerializeToString())
    assert [n.op_type for n in ready.graph] == ["Conv", "Relu", "Neg"]
    assert not ready.functions
    assert np.all(evaluate(ready.graph, feeds_of(ready))["y"] <= 0)


def edited(old: str, new: str) -> bytes:
    assert old in TEXT
    return onnx_bytes(TEXT.replace(old, new))


def no_outputs() -> bytes:
    model = parsed(TEXT)
    del model.graph.output[:]
    return model.SerializeToString()


def unsorted() -> bytes:
    model = parsed(TEXT)
    first = model.graph.node.pop(0)
    model.graph.node.append(first)
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "onnx.empty"),
        (b"<html><body>404</body></html>", "onnx.format"),
        (b"\x80\x04\x95", "onnx.format"),
        (onnx_bytes(TEXT)[:-7], "onnx.format"),
        (
            helper.make_model(helper.make_graph([], "g", [], [])).SerializeToString(),
            "onnx.invalid",
        ),
        (no_outputs(), "onnx.invalid"),
        (unsorted(), "onnx.invalid"),
        (edited("Conv(x", "Conv(nowhere"), "onnx.invalid"),
        (edited("Relu", "NoSuchOperator"), "onnx.invalid"),
        (onnx_bytes(TEXT) + onnx_bytes(TEXT), "onnx.invalid"),
        (outside("an initializer"), "onnx.external"),
        (outside("a constant"), "onnx.external"),
        (outside("a subgraph"), "onnx.external"),
    ],
)
def test_what_is_refused(
    data: bytes, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(64))  # there, and yet not to be read
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataFault) as e:
        parse_onnx(data, Path("m.onnx"))
    assert e.value.code == code
    assert e.value.line().startswith("'m.onnx': ")
    assert "\n" not in e.value.line()


def test_what_is_refused_is_an_onnx_model_otherwise() -> None:
    """The checks above do not refuse the models that their cases are made of."""
    for data in (onnx_bytes(TEXT), edited("Relu", "Sin")):
        onnx.checker.check_model(data)
        parse_onnx(data)
