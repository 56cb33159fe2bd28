"""Names after the layers, the same whatever the tensors were called before."""

from __future__ import annotations

import re

import onnx
import onnx_ir as ir

from tests.graphs import feeds_of, graph, onnx_bytes, relative, text_of
from vntools.export.load import parse_onnx
from vntools.export.naming import rename
from vntools.verify.float64 import evaluate

TEXT = """(float[n,3,8,8] image) => (float[n,4] scores)
<float[4,3,1,1] first_weight, float[4] b, float[4,4,1,1] second_weight, int64[2] at,
 float[4] c>
{ v1 = Conv(image, first_weight, b)
  v2 = Relu(v1)
  v3 = Conv(v2, second_weight)
  v4 = Relu(v3)
  v5 = Gather<axis=2>(v4, at)
  v6 = Gather<axis=3>(v5, at)
  v7 = GlobalAveragePool(v6)
  v8 = Flatten<axis=1>(v7)
  scores = Mul(v8, c)
}"""
NAMED = """\
image float[n,3,8,8] => scores float[n,4]
[layers.first] layers.first.out float[n,4,8,8] = \
Conv<>(image, layers.first.weight, layers.first.bias)
[relu_0] relu_0.out float[n,4,8,8] = Relu<>(layers.first.out)
[layers.second] layers.second.out float[n,4,8,8] = Conv<>(relu_0.out, layers.second.weight)
[relu_1] relu_1.out float[n,4,8,8] = Relu<>(layers.second.out)
[gather_0] gather_0.out float[n,4,2,8] = Gather<axis=2>(relu_1.out, gather_0.input1)
[gather_1] gather_1.out float[n,4,2,2] = Gather<axis=3>(gather_0.out, gather_0.input1)
[globalaveragepool_0] globalaveragepool_0.out float[n,4,1,1] = \
GlobalAveragePool<>(gather_1.out)
[flatten_0] flatten_0.out float[n,4] = Flatten<axis=1>(globalaveragepool_0.out)
[mul_0] scores float[n,4] = Mul<>(flatten_0.out, mul_0.input1)
initializer gather_0.input1 int64[2]
initializer layers.first.bias float[4]
initializer layers.first.weight float[4,3,1,1]
initializer layers.second.weight float[4,4,1,1]
initializer mul_0.input1 float[4]
"""


def load(text: str = TEXT, at: str = "at") -> ir.Model:
    return parse_onnx(onnx_bytes(text, **{at: [0, 1]}).replace(b"_weight", b".weight"))


def layer(module: str) -> str:
    return f"layers.{module}"


def test_names_follow_the_layers() -> None:
    model = load()
    want = evaluate(model.graph, feeds_of(model))["scores"]
    rename(model.graph, layer)
    assert text_of(model.graph) == NAMED
    data = ir.serde.serialize_model(model).SerializeToString()
    onnx.checker.check_model(data, full_check=True)
    again = parse_onnx(data)
    got = evaluate(again.graph, {"image": feeds_of(again)["image"]})["scores"]
    assert relative(got, want) == 0


def test_earlier_names_do_not_matter() -> None:
    other = re.sub(r"\bat\b", "indices", re.sub(r"\bv([1-8])", r"value_\1", TEXT))
    for model in (load(), load(other, "indices")):
        rename(model.graph, layer)
        assert text_of(model.graph) == NAMED


def test_a_name_that_is_taken_stays_with_its_owner() -> None:
    model = graph(
        "(float[n,4,8,8] x) => (float[n,4,8,8] y) <float[4,4,1,1] W, float[4] relu_0_input1>"
        "{ a = Relu(x) b = Conv(a, W, relu_0_input1) y = Mul(b, b) }"
    )
    rename(model.graph, lambda module: module)
    onnx.checker.check_model(
        ir.serde.serialize_model(model).SerializeToString(), full_check=True
    )
    assert "W.weight" in model.graph.initializers


def test_layers_that_share_their_weights_have_two_names() -> None:
    model = graph(
        "(float[n,4,8,8] x) => (float[n,4,8,8] y) <float[4,4,1,1] W>"
        "{ a = Conv(x, W) b = Relu(a) y = Conv(b, W) }"
    )
    rename(model.graph, layer)
    assert [node.name for node in model.graph] == ["layers.W", "relu_0", "conv_0"]
