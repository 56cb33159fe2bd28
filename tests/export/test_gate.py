"""What the gate lets through, and what it does not, beside the catalogue's rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.graphs import graph, onnx_bytes, parsed
from vntools.base.errors import DataFault
from vntools.export import gate
from vntools.export.gate import check_buildable, check_numbers, check_sizes
from vntools.export.load import admit, parse_onnx, parse_stranger

PATH = Path("m.onnx")
INF = float("inf")


def code_of(data: bytes) -> str:
    """What the whole gate says; empty if it lets the file through."""
    try:
        parse_stranger(data, PATH)
    except DataFault as e:
        return e.code if e.path == str(PATH) else "of no file"
    return ""


@pytest.mark.parametrize(
    ("body", "value", "code"),
    [
        # masks and bounds
        ("y = Add(x, c)", -INF, ""),
        ("y = Min(x, c)", INF, ""),
        ("k = Sqrt(c) y = Min(x, k)", INF, ""),
        # weights
        ("y = Mul(x, c)", INF, "onnx.nonfinite"),
        ("a = Add(x, c) y = Mul(a, c)", -INF, "onnx.nonfinite"),
        ("y = MatMul(x, c)", INF, "onnx.nonfinite"),
        # never a number
        ("y = Add(x, c)", np.nan, "onnx.nonfinite"),
        ("y = Identity(x)", np.nan, "onnx.nonfinite"),
        ("y = Mul(x, c)", 3.4e38, ""),
    ],
)
@pytest.mark.parametrize("kind", ["float", "float16", "double"])
def test_infinities(body: str, value: float, code: str, kind: str) -> None:
    value = 6e4 if kind == "float16" and 1e38 < value < INF else value
    text = f"({kind}[3,3] x) => ({kind}[3,3] y) <{kind}[3,3] c> {{ {body} }}"
    assert code_of(onnx_bytes(text, c=np.full((3, 3), value))) == code


def test_numbers_in_subgraphs_functions_and_constants() -> None:
    nan = numpy_helper.from_array(np.array([np.nan], np.float32), "k")
    text = "(float[1] x, bool c) => (float[1] y) { y = If<then_branch = t () => (float[1] o) \
        { o = Abs(x) }, else_branch = e () => (float[1] p) { p = Neg(x) }>(c) }"
    model = parsed(text)
    assert code_of(model.SerializeToString()) == ""
    model.graph.node[0].attribute[0].g.initializer.append(nan)
    assert code_of(model.SerializeToString()) == "onnx.nonfinite"

    model = parsed("(float[1] x) => (float[1] y) { y = Relu(x) }")
    body = [helper.make_node("Constant", [], ["k"], value=nan),
            helper.make_node("Add", ["p", "k"], ["q"])]  # fmt: skip
    model.opset_import.add(domain="mine", version=1)
    model.functions.append(
        helper.make_function("mine", "F", ["p"], ["q"], body, [helper.make_opsetid("", 20)])
    )
    data = model.SerializeToString()
    assert code_of(data) == "onnx.nonfinite"
    with pytest.raises(DataFault, match="'k'"):
        admit(data, PATH)


BN = """(float[1,4,8,8] x) => (float[1,4,8,8] y)
<float[4] g, float[4] s, float[4] m, float[4] v>
{ y = BatchNormalization<epsilon=0.5>(x, g, s, m, v) }"""


@pytest.mark.parametrize(("variance", "code"), [(-0.25, ""), (-0.5, "onnx.bn_stats"), (0, "")])
def test_variances_with_epsilon(variance: float, code: str) -> None:
    assert code_of(onnx_bytes(BN, v=np.array([1, variance, 1, 1]))) == code


def typed(kind: int, field: str, values: list[int], dims: list[int]) -> bytes:
    model = parsed("(float[2] x) => (float[2] y) { y = Relu(x) }")
    tensor = TensorProto(name="k", data_type=kind, dims=dims)
    getattr(tensor, field).extend(values)
    model.graph.initializer.append(tensor)
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (TensorProto.FLOAT, "float_data"),
        (TensorProto.DOUBLE, "double_data"),
        (TensorProto.INT64, "int64_data"),
        (TensorProto.FLOAT16, "int32_data"),
        (TensorProto.INT8, "int32_data"),
    ],
)
def test_elements_in_fields_of_their_type(kind: int, field: str) -> None:
    assert code_of(typed(kind, field, [1, 2], [2])) == ""
    assert code_of(typed(kind, field, [1, 2, 3], [2])) == "onnx.tensor"
    assert code_of(typed(kind, field, [1], [2])) == "onnx.tensor"
    assert code_of(typed(kind, field, [], [])) == "onnx.invalid"
    assert code_of(typed(TensorProto.UNDEFINED, field, [1, 2], [2])) == "onnx.tensor"


def test_types_that_contradict() -> None:
    text = "(float[1,3] x) => (int64[1,3] y) { y = Relu(x) }"
    assert code_of(onnx_bytes(text)) == "onnx.invalid"
    assert len(parse_onnx(onnx_bytes(text)).graph) == 1


def test_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = graph("(float[n,3,8,8] x) => (float[n,3,16,16] y) <float[4] s> "
                  "{ y = Resize(x, , s) }", s=np.array([1, 1, 2, 2]))  # fmt: skip
    monkeypatch.setattr(gate, "_MOST_ELEMENTS", 3 * 16 * 16)
    check_sizes(model.graph, PATH)
    monkeypatch.setattr(gate, "_MOST_ELEMENTS", 3 * 16 * 16 - 1)
    with pytest.raises(DataFault, match="value 'y'") as e:
        check_sizes(model.graph, PATH)
    assert e.value.code == "onnx.tensor"
    monkeypatch.setattr(gate, "_MOST_ELEMENTS", 3 * 8 * 8 - 1)
    with pytest.raises(DataFault, match="value 'x'"):
        check_sizes(model.graph, PATH)


@pytest.mark.parametrize("opset", [13, 20])
def test_what_an_engine_is_built_from(opset: int) -> None:
    model = graph("(float[n,3] x) => (float[n,3] y) { y = Relu(x) }", opset=opset)
    check_buildable(model, PATH)
    check_numbers(model, PATH)


def test_an_old_opset_is_not_built() -> None:
    model = graph("(float[n,3] x) => (float[n,3] y) { y = Relu(x) }", opset=12)
    with pytest.raises(DataFault, match="opset is 12, supported are 13 to") as e:
        check_buildable(model, PATH)
    assert e.value.code == "onnx.opset"


def test_what_another_library_gets_is_the_model_itself() -> None:
    data = onnx_bytes(BN, v=np.ones(4))
    assert admit(data, PATH) == onnx.load_model_from_string(data)
