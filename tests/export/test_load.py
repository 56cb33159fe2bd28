"""Anybody's ONNX file: what is read, what is refused, what is filled in."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.graphs import feeds_of, onnx_bytes, parsed
from vntools.base.artifacts import sha256_bytes
from vntools.base.errors import DataFault, NoInput
from vntools.export import load
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
    model, digest, files = load_onnx(tmp_path / "m.onnx")
    assert digest == sha256_bytes(data)
    assert not files
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


def test_shapes_that_nobody_can_infer_leave_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = """
        <ir_version: 10, opset_import: ["" : 21, "far" : 1]>
        g (float[2, 3] x) => (float[N, M] y) { a = far.Away(x) b = Relu(a) y = Add(b, b) }
    """
    parse_onnx(onnx.parser.parse_model(text).SerializeToString())
    assert not list(tmp_path.iterdir())


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


# Weights in files beside the model.


def beside(folder: Path, location: str = "weights.bin", **entries: str) -> Path:
    """A model whose weight of 4x3 floats lies at ``location``, 8 bytes into the file."""
    folder.mkdir(exist_ok=True)
    model = parsed(TEXT)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in ({"location": location, "offset": "8"} | entries).items():
        tensor.external_data.add(key=key, value=value)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


WEIGHTS = bytes(8) + np.arange(12, dtype=np.float32).tobytes()


@pytest.mark.parametrize("location", ["weights.bin", "deep/er/weights.bin"])
def test_weights_beside_the_model_are_mapped(tmp_path: Path, location: str) -> None:
    file = tmp_path / location
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(WEIGHTS)
    model, _, files = load_onnx(beside(tmp_path, location, length="48"))
    held = model.graph.initializers["W"].const_value
    assert held is not None
    assert np.array_equal(held.numpy().ravel(), np.arange(12))
    assert not held.numpy().flags.owndata
    assert not held.numpy().flags.writeable
    assert [v.name for v in model.graph.inputs] == ["x"]
    assert bytes(files[location]) == WEIGHTS
    assert evaluate(model.graph, feeds_of(model))["y"].shape == (2, 4, 8, 8)


def test_weights_that_are_inputs_too_stay_inputs(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(WEIGHTS)
    path = beside(tmp_path)
    model = onnx.load(path, load_external_data=False)
    model.graph.input.append(helper.make_tensor_value_info("W", 1, [4, 3, 1, 1]))
    path.write_bytes(model.SerializeToString())
    graph = load_onnx(path).model.graph
    assert [v.name for v in graph.inputs] == ["x", "W"]
    assert graph.inputs[1].is_initializer()


@pytest.mark.parametrize("where", ["a constant", "a subgraph"])
def test_constants_beside_the_model_are_copied_in(tmp_path: Path, where: str) -> None:
    model = onnx.load_from_string(outside(where))
    node = model.graph.node[0]
    node = node if where == "a constant" else node.attribute[0].g.node[0]
    external(node.attribute[0].t)
    (tmp_path / "weights.bin").write_bytes(np.array([5, 6, 7], np.float32).tobytes())
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    graph = load_onnx(tmp_path / "m.onnx").model.graph
    feeds = {"x": np.zeros((1, 3, 8, 8), np.float32), "k": np.array(True)}
    (found,) = evaluate(
        graph, {v.name or "": feeds[v.name or ""] for v in graph.inputs}
    ).values()
    assert np.array_equal(found[0, :, 0, 0], [5, 6, 7])


@pytest.mark.parametrize(
    "location",
    ["", ".", "..", "../weights.bin", "deep/../weights.bin", "/etc/passwd", "deep//w", "w\0"],
)
def test_a_location_that_leaves_the_folder(tmp_path: Path, location: str) -> None:
    (tmp_path / "weights.bin").write_bytes(WEIGHTS)
    with pytest.raises(DataFault, match="outside the model's folder") as e:
        load_onnx(beside(tmp_path / "in", location))
    assert e.value.code == "onnx.external"


@pytest.mark.parametrize("how", ["link", "folder link", "hard link", "folder", "fifo", "none"])
def test_a_location_that_is_no_file_of_its_own(tmp_path: Path, how: str) -> None:
    folder, real = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    real.mkdir()
    (real / "weights.bin").write_bytes(WEIGHTS)
    location = "deep/weights.bin" if how == "folder link" else "weights.bin"
    target = folder / "weights.bin"
    if how == "link":
        target.symlink_to(real / "weights.bin")
    elif how == "folder link":
        (folder / "deep").symlink_to(real)
    elif how == "hard link":
        target.hardlink_to(real / "weights.bin")
    elif how == "folder":
        target.mkdir()
    elif how == "fifo":
        os.mkfifo(target)
    with pytest.raises(DataFault) as e:
        load_onnx(beside(folder, location))
    assert e.value.code == "onnx.external"
    assert bool(e.value.hint) == (how != "none")


@pytest.mark.parametrize(
    "entries",
    [
        {"offset": "12"},
        {"offset": "-8"},
        {"offset": "x"},
        {"length": "47"},
        {"length": "52", "offset": "0"},
        {"length": "-1"},
    ],
)
def test_sizes_that_do_not_fit(tmp_path: Path, entries: dict[str, str]) -> None:
    (tmp_path / "weights.bin").write_bytes(WEIGHTS)
    with pytest.raises(DataFault, match="does not hold tensor 'W'") as e:
        load_onnx(beside(tmp_path, **entries))
    assert e.value.code == "onnx.external"


def test_a_model_that_protobuf_cannot_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "_LARGEST_PROTOBUF", 100)
    (tmp_path / "m.onnx").write_bytes(onnx_bytes(TEXT))
    with pytest.raises(DataFault, match="protobuf holds 2") as e:
        load_onnx(tmp_path / "m.onnx")
    assert e.value.code == "onnx.too_big"
