"""onnxsim over a graph: constants and shapes folded, nothing fused, weights not copied."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxsim
import pytest

from tests.graphs import feeds_of, graph, parsed, relative
from vntools.base.errors import InternalFault
from vntools.export.load import parse_onnx
from vntools.export.simplify import tidy
from vntools.verify.float64 import evaluate

TEXT = """(float[n,24,4,4] x) => (float[n,24,4,4] y, float[n,384] z)
<float[24,24,1,1] W, float[24] b, float[24] g, float[24] s, float[24] m, float[24] v>
{ zero = Constant<value=float {0.0}>()
  to = Constant<value=int64[1] {24}>()
  bias = Expand(zero, to)
  c = Conv(x, W, bias)
  y = BatchNormalization(c, g, s, m, v)
  shape = Shape(y)
  first = Constant<value=int64 {0}>()
  n1 = Gather(shape, first)
  axis = Constant<value=int64[1] {0}>()
  n2 = Unsqueeze(n1, axis)
  rest = Constant<value=int64[1] {-1}>()
  target = Concat<axis=0>(n2, rest)
  z = Reshape(y, target)
}"""


def test_it_tidies_and_fuses_nothing() -> None:
    model = graph(TEXT)
    tidied = tidy(model)
    ops = [n.op_type for n in tidied.graph if n.op_type != "Constant"]
    assert ops.count("Conv") == ops.count("BatchNormalization") == 1
    assert "Expand" not in ops
    want, got = (evaluate(m.graph, feeds_of(model)) for m in (model, tidied))
    assert all(relative(got[k], want[k]) < 1e-14 for k in ("y", "z"))


def test_the_border_stays_and_the_model_too() -> None:
    model = graph(TEXT)
    before = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    tidied = tidy(model)
    assert ir.serde.serialize_model(model).SerializeToString(deterministic=True) == before
    for a, b in zip(
        (*model.graph.inputs, *model.graph.outputs),
        (*tidied.graph.inputs, *tidied.graph.outputs),
        strict=True,
    ):
        assert (a.name, a.dtype) == (b.name, b.dtype)
        assert [str(d) for d in a.shape or ()] == [str(d) for d in b.shape or ()]
    assert tidied.opset_imports == model.opset_imports
    onnx.checker.check_model(
        ir.serde.serialize_model(tidied).SerializeToString(), full_check=True
    )


def test_large_weights_are_shared_and_not_copied() -> None:
    model = graph(TEXT)
    held = model.graph.initializers["W"].const_value
    assert held is not None
    assert tidy(model).graph.initializers["W"].const_value is held


def test_a_large_weight_that_nothing_reads_any_more_goes() -> None:
    model = graph(
        "(float[n,300] x) => (float[n,300] y) <float[300] w> { dead = Add(x, w) y = Relu(x) }"
    )
    tidied = tidy(model)
    assert [n.op_type for n in tidied.graph] == ["Relu"]
    assert not tidied.graph.initializers
    assert [v.name for v in tidied.graph.inputs] == ["x"]


@pytest.mark.parametrize("elements", [2, 300])
def test_what_a_caller_may_override_stays_an_input(elements: int) -> None:
    proto = parsed(
        f"(float[{elements}] x) => (float[{elements}] y) <float[{elements}] w, float[1] one>"
        "{ a = Add(w, one) y = Add(x, a) }",
        one=[1.0],
    )
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, [elements]))
    model = parse_onnx(proto.SerializeToString())
    tidied = tidy(model)
    assert [v.name for v in tidied.graph.inputs] == ["x", "w"]
    assert "w" in tidied.graph.initializers
    x, w = np.ones((2, elements), np.float32)
    for feeds in ({"x": x}, {"x": x, "w": w}):
        want, got = (evaluate(m.graph, feeds)["y"] for m in (model, tidied))
        assert relative(got, want) < 1e-6


def test_when_onnxsim_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(onnxsim, "simplify", fail)
    with pytest.raises(InternalFault, match=r"onnxsim failed: RuntimeError: first line$") as e:
        tidy(graph(TEXT))
    assert e.value.code == "onnxsim.failed"
