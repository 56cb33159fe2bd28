"""The seal at the end of an ONNX file that vntools wrote."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vntools.base.artifacts import SEAL_KEY, hash_and_sealed, seal, sealed


@pytest.fixture
def model() -> bytes:
    """A serialised model with an initializer and a metadata property of its own."""
    weight = numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(3, 4), "w")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight]
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(proto, {"class_count": "4"})
    return proto.SerializeToString()


@pytest.fixture
def path(tmp_path: Path, model: bytes) -> Path:
    """A sealed file."""
    path = tmp_path / "m.onnx"
    path.write_bytes(model + seal(model))
    return path


def test_onnx_reads_the_seal_as_metadata(path: Path, model: bytes) -> None:
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    found = {p.key: p.value for p in proto.metadata_props}
    assert found == {"class_count": "4", SEAL_KEY: hashlib.sha256(model).hexdigest()}


def test_a_sealed_file_is_recognised(path: Path) -> None:
    assert sealed(path)


def test_every_changed_byte_breaks_the_seal(path: Path) -> None:
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert not sealed(path), at


@pytest.mark.parametrize("change", [lambda b: b + b"\0", lambda b: b[:-1], lambda b: b[1:]])
def test_a_longer_or_shorter_file_is_not_sealed(path: Path, change) -> None:
    path.write_bytes(change(path.read_bytes()))
    assert not sealed(path)


def test_another_tool_that_saves_the_model_again_breaks_the_seal(path: Path) -> None:
    proto = onnx.load(path)
    proto.producer_name = "another"
    onnx.save(proto, path)
    assert not sealed(path)


def test_no_seal(path: Path, model: bytes, tmp_path: Path) -> None:
    path.write_bytes(model)
    assert not sealed(path)
    path.write_bytes(b"")
    assert not sealed(path)
    assert not sealed(tmp_path)
    assert not sealed(tmp_path / "absent")
    os.mkfifo(tmp_path / "fifo")
    assert not sealed(tmp_path / "fifo")


def test_bytes_are_hashed_and_their_seal_is_held(model: bytes) -> None:
    whole = model + seal(model)
    for data, ours in ((whole, True), (model, False), (whole[1:], False), (b"", False)):
        assert hash_and_sealed(data) == (hashlib.sha256(data).hexdigest(), ours)
