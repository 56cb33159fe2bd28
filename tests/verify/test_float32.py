"""ONNX Runtime in float32, over bytes and over a model in memory."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.graphs import feeds_of, graph, onnx_bytes, parsed, relative
from vntools.base.errors import InternalFault
from vntools.export.load import parse_onnx
from vntools.verify.float32 import run_float32
from vntools.verify.float64 import evaluate

TEXT = """(float[n,24,5,5] x) => (float[n,24,5,5] y, float[n,24,5,5] z)
<float[24,24,1,1] W, float[24] b, float[24,24,1,1] unused>
{ a = Conv(x, W, b) y = Relu(a) z = Sigmoid(a) }"""


def test_a_model_and_its_bytes_give_the_same() -> None:
    model = graph(TEXT)
    feeds = [feeds_of(model, batch=n, seed=n) for n in (1, 3)]
    lent = run_float32(model, feeds)
    read = run_float32(ir.serde.serialize_model(model).SerializeToString(), feeds)
    for a, b, feed in zip(lent, read, feeds, strict=True):
        assert list(a) == ["y", "z"]
        assert all(np.array_equal(a[k], b[k]) for k in a)
        assert relative(a["y"], evaluate(model.graph, feed)["y"]) < 1e-5
        assert a["y"].dtype == np.float32


def test_the_model_keeps_its_weights() -> None:
    model = graph(TEXT)
    before = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    run_float32(model, [feeds_of(model)])
    assert ir.serde.serialize_model(model).SerializeToString(deterministic=True) == before


def test_an_initializer_that_is_an_input_may_be_overridden() -> None:
    proto = parsed("(float[2] x) => (float[2] y) <float[2] w> { y = Add(x, w) }", w=[1, 2])
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, [2]))
    data = proto.SerializeToString()
    x = np.array([10, 20], np.float32)
    for model in (data, parse_onnx(data)):
        plain, fed = run_float32(model, [{"x": x}, {"x": x, "w": x}])
        assert np.array_equal(plain["y"], [11, 22])
        assert np.array_equal(fed["y"], [20, 40])


def test_what_cannot_run_is_our_own_error() -> None:
    data = onnx_bytes("(float[2] x) => (float[2] y) { y = test.Any(x) }", foreign="test")
    with pytest.raises(InternalFault, match="ONNX Runtime failed") as e:
        run_float32(data, [{"x": np.zeros(2, np.float32)}])
    assert e.value.code == "verify.run"
    with pytest.raises(InternalFault):
        run_float32(onnx_bytes(TEXT), [{"x": np.zeros((1, 3, 5, 5), np.float32)}])
