"""Reading a graph: what is constant, who reads what, symbolic shapes, and what it costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.graphs import graph, parsed
from vntools.export.graph import (
    constant,
    is_data,
    is_op,
    only_consumer,
    remove_dead,
    spatial_size,
    stats,
    symbolic_vector,
    without_weights,
)
from vntools.export.load import parse_onnx


def output(model: ir.Model, name: str) -> ir.Value:
    return next(v for n in model.graph for v in n.outputs if v.name == name)


CONSTANTS: dict[str, tuple[str, Any]] = {
    "a tensor": ("c = Constant<value=float[2] {1.0, 2.0}>()", [1, 2]),
    "a float": ("c = Constant<value_float=1.5>()", 1.5),
    "floats": ("c = Constant<value_floats=[1.5, 2.5]>()", [1.5, 2.5]),
    "an integer": ("c = Constant<value_int=3>()", 3),
    "integers": ("c = Constant<value_ints=[3, 4]>()", [3, 4]),
    "a cast of a constant": ("k = Constant<value_int=3>() c = Cast<to=1>(k)", 3.0),
    "like x, of a constant": ("k = Constant<value_int=3>() c = CastLike(k, x)", 3.0),
    "an expanded zero": (
        "z = Constant<value_float=0.0>() s = Constant<value_ints=[2, 2]>() c = Expand(z, s)",
        [[0, 0], [0, 0]],
    ),
    "a static shape": ("c = Shape<start=1>(x)", [4]),
    "arithmetic": ("k = Constant<value_float=2.0>() d = Mul(k, k) c = Sqrt(d)", 2.0),
    "an initializer": ("c = Neg(w)", [-1, -2, -3, -4]),
}


@pytest.mark.parametrize("what", CONSTANTS)
def test_what_is_constant(what: str) -> None:
    body, want = CONSTANTS[what]
    model = graph(
        f"(float[n,4] x) => (float[n,4] y) <float[4] w> {{ {body} y = Add(x, w) }}",
        w=[1, 2, 3, 4],
    )
    found = constant(output(model, "c"))
    assert found is not None
    assert np.array_equal(found, want)
    assert is_data(model.graph[-2])


@pytest.mark.parametrize(
    "body",
    [
        "c = Neg(x)",
        "c = Shape(x)",
        "c = Mul(x, w)",
        "k = Shape(x) c = Cast<to=1>(k)",
        "c = CastLike(x, w)",
        "c = RandomNormal<shape=[2]>()",
        "a, c = Split<axis=0, num_outputs=2>(w)",
        "c = test.Constant<value_float=1.0>()",
        # A weight of 2^26 elements and more is not made here.
        "z = Cast<to=1>(at) k = Constant<value_ints=[8192, 8193]>() c = Expand(z, k)",
        "k = Constant<value_ints=[8192, 8193]>() c = ConstantOfShape(k)",
    ],
)
def test_what_is_not(body: str) -> None:
    model = graph(
        f"(float[n,4] x) => (float[n,4] y) <float[4] w, int64 at>{{ {body} y = Add(x, w) }}",
        foreign="test",
    )
    assert constant(output(model, "c")) is None


def test_what_a_caller_may_override_is_not_constant() -> None:
    proto = parsed("(float[2] x) => (float[2] y) <float[2] w> { a = Neg(w) y = Add(x, a) }")
    assert constant(output(parse_onnx(proto.SerializeToString()), "a")) is not None
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, [2]))
    model = parse_onnx(proto.SerializeToString())
    assert constant(model.graph.initializers["w"]) is None
    assert constant(output(model, "a")) is None
    assert constant(None) is None


SHAPES: dict[str, tuple[str, list[int | str] | None]] = {
    "whole": ("c = Shape(x)", ["n", 4, 5]),
    "a part": ("c = Shape<start=0, end=-1>(x)", ["n", 4]),
    "one entry": ("s = Shape(x) i = Constant<value_int=0>() c = Gather(s, i)", ["n"]),
    "the last": ("s = Shape(x) i = Constant<value_ints=[-1]>() c = Gather(s, i)", [5]),
    "put together": (
        "s = Shape<end=1>(x) r = Constant<value_ints=[-1]>() c = Concat<axis=0>(s, r)",
        ["n", -1],
    ),
    "cast and reshaped": (
        "s = Shape<end=1>(x) i = Cast<to=6>(s) r = Constant<value_int=1>() c = Reshape(i, r)",
        ["n"],
    ),
    "computed": ("s = Shape(x) c = Mul(s, s)", None),
    "out of range": (
        "s = Shape(x) i = Constant<value_ints=[7]>() c = Gather(s, i)",
        None,
    ),
    "of floats": ("c = Constant<value_floats=[1.0, 2.0]>()", None),
    "of no known shape": ("a = test.Any(x) c = Shape(a)", None),
}


@pytest.mark.parametrize("what", SHAPES)
def test_what_a_shape_value_holds(what: str) -> None:
    body, want = SHAPES[what]
    model = graph(
        f"(float[n,4,5] x) => (float[n,4,5] y) {{ {body} y = Relu(x) }}", foreign="test"
    )
    assert symbolic_vector(output(model, "c")) == want


def test_who_reads_a_value_alone() -> None:
    model = graph(
        """(float[n,4] x, bool k) => (float[n,4] y, float[n,4] d, float[n,4] z)
        { a = Sin(x) b = Cos(a) c = Exp(b) d = Neg(c) e = Add(d, d) f = Mul(b, e) g = Tan(f)
          y = If<then_branch = t () => (float[n,4] o) { o = Sin(g) },
                 else_branch = s () => (float[n,4] p) { p = Cos(x) }>(k)
          z = Abs(e) }"""
    )
    readers = {n: only_consumer(output(model, n)) for n in "abcdefgy"}
    alone = {k: v.op_type for k, v in readers.items() if v is not None}
    assert alone == {"a": "Cos", "c": "Neg", "f": "Tan"}


def test_the_spatial_size_of_a_value() -> None:
    model = graph("(float[n,4,9,w] x, float[n,4,9] z) => (float[n,4,9,w] y) { y = Relu(x) }")
    assert spatial_size(model.graph.inputs[0], 2) is None
    assert spatial_size(model.graph.inputs[1], 1) == (9,)
    assert spatial_size(model.graph.inputs[1], 2) is None


def test_what_a_graph_costs() -> None:
    model = graph(
        """(float[n,4,9,8] x) => (float[n,5] y)
        <float[6,2,3,3] W, float[6] b, float[5,6] H, double[1] d, int64[2] s, float[9] unread>
        { zero = Constant<value_float=0.0>()
          [conv] a = Conv<group=2, strides=[2,2]>(x, W, b)
          m = GlobalAveragePool(a)
          f = Reshape(m, s)
          y = Gemm<transB=1>(f, H) }""",
        s=[0, -1],
    )
    found = stats(model.graph)
    assert found.ops == {"Conv": 1, "Gemm": 1, "GlobalAveragePool": 1, "Reshape": 1}
    assert found.nodes == 4
    assert found.parameters == 6 * 2 * 9 + 6 + 30
    assert found.size_bytes == 4 * found.parameters
    assert found.macs == 6 * 2 * 9 * (4 * 3) + 30
    assert found.to_record() == {
        "ops": found.ops,
        "nodes": 4,
        "parameters": found.parameters,
        "macs": found.macs,
        "bytes": found.size_bytes,
    }


def test_a_cost_that_depends_on_a_dynamic_size_is_not_known() -> None:
    text = "(float[n,4,h,w] x) => (float[n,4,i,j] y) <float[4,4,3,3] W> { y = Conv(x, W) }"
    assert stats(graph(text).graph).macs is None


def test_removing_what_nothing_reads() -> None:
    model = graph(
        """(float[n,4] x) => (float[n,4] y, float[n,4] kept) <float[4] w, float[4] v>
        { a = Mul(x, w) b = Add(a, v) kept = Neg(x) c = Add(b, kept) y = Add(x, v) }"""
    )
    remove_dead(model.graph, output(model, "c"))
    assert [n.op_type for n in model.graph] == ["Neg", "Add"]
    assert set(model.graph.initializers) == {"v"}
    for value in (output(model, "kept"), model.graph.inputs[0], None):
        remove_dead(model.graph, value)
    assert len(model.graph) == 2


def test_lending_the_large_weights() -> None:
    model = graph(
        "(float[n,300] x) => (float[n,300] y) <float[300] w, float[1] one>"
        "{ a = Mul(x, w) y = Add(a, one) }"
    )
    light, held = without_weights(model)
    assert set(held) == {"w"}
    assert held["w"] is model.graph.initializers["w"].const_value
    assert [v.name for v in light.graph.inputs] == ["x", "w"]
    assert set(light.graph.initializers) == {"one"}
    assert set(model.graph.initializers) == {"w", "one"}
    assert [v.name for v in model.graph.inputs] == ["x"]
    onnx.checker.check_model(ir.serde.serialize_model(light))


def test_an_operator_of_another_domain_is_another_operator() -> None:
    model = graph(
        "(float[n] x) => (float[n] y) { a = test.Relu(x) y = Relu(a) }", foreign="test"
    )
    assert [is_op(n, "Relu", "Sin") for n in model.graph] == [False, True]
    assert not is_op(None, "Relu")


def test_constant_diamonds_take_no_time() -> None:
    """v + v, forty times over: each value is folded once, and only so deep."""
    one = ir.Value(
        name="one",
        const_value=ir.tensor(np.ones(2, np.int64)),
        shape=ir.Shape([2]),
        type=ir.TensorType(ir.DataType.INT64),
    )
    n = ir.Value(name="n", shape=ir.Shape(["n"]), type=ir.TensorType(ir.DataType.INT64))
    graph = ir.Graph([n], [], nodes=[], initializers=[one], opset_imports={"": 20})
    known, unknown, joined = one, n, one
    for _ in range(40):
        for op, value in (("Add", known), ("Add", unknown), ("Concat", joined)):
            attributes = {"axis": 0} if op == "Concat" else {}
            graph.append(ir.node(op, [value, value], attributes))
        known, unknown, joined = (node.outputs[0] for node in list(graph)[-3:])
    assert constant(known) is None, "too deep to be a sub-graph that an exporter wrote"
    assert constant(unknown) is None
    assert symbolic_vector(joined) is None


def test_a_constant_that_broadcasting_blows_up_is_not_folded() -> None:
    def value(name: str, shape: tuple[int, ...]) -> ir.Value:
        array = np.ones(shape, np.float32)
        return ir.Value(name=name, const_value=ir.tensor(array), shape=ir.Shape(shape))

    add = ir.node("Add", [value("column", (1 << 14, 1)), value("row", (1, 1 << 14))])
    ir.Graph([], [], nodes=[add], opset_imports={"": 20})
    assert constant(add.outputs[0]) is None
