"""The float64 evaluator: against PyTorch in double, ONNX's reference, and ONNX Runtime."""

from __future__ import annotations

import copy
import tracemalloc
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

from tests.graphs import conv, feeds_of, graph, parsed, relative
from tests.networks import narrow, pixels, traced, training
from vntools.base.errors import DataFault
from vntools.export.load import parse_onnx
from vntools.models.arch import ARCHITECTURES
from vntools.verify.compare import relative_l2
from vntools.verify.float32 import run_float32
from vntools.verify.float64 import evaluate


@dataclass(frozen=True)
class Operator:
    """Nodes from x to y, the shape of x, constants, and the rank of y where it is another."""

    body: str
    shape: tuple[int, ...]
    constants: str = ""
    weights: dict[str, Any] = field(default_factory=dict[str, Any])
    rank: int | None = None

    def text(self) -> str:
        dims, names = (
            ",".join(map(str, self.shape)),
            ",".join("abcde"[: self.rank or len(self.shape)]),
        )
        declared = f"<{self.constants}>" if self.constants else ""
        return f"(float[{dims}] x) => (float[{names}] y) {declared} {{ {self.body} }}"


STATISTICS = "float[4] g, float[4] s, float[4] m, float[4] v"
IMAGE, ODD = (2, 3, 6, 7), (2, 3, 5, 7)
OPERATORS = {
    "batch norm": Operator(
        "y = BatchNormalization<epsilon=1.0e-3>(x, g, s, m, v)", (2, 4, 3, 3), STATISTICS
    ),
    "batch norm, default epsilon": Operator(
        "y = BatchNormalization(x, g, s, m, v)", (2, 4), STATISTICS, {"v": [1e-5] * 4}
    ),
    "leaky relu": Operator("y = LeakyRelu<alpha=0.25>(x)", (2, 9)),
    "leaky relu, default slope": Operator("y = LeakyRelu(x)", (2, 9)),
    "relu": Operator("y = Relu(x)", (2, 9)),
    "max pool": Operator("y = MaxPool<kernel_shape=[2,3], strides=[2,1]>(x)", IMAGE),
    "max pool, dilated": Operator(
        "y = MaxPool<kernel_shape=[2,2], dilations=[3,2]>(x)", IMAGE
    ),
    "max pool, padded": Operator(
        "y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,0,1,2]>(x)", IMAGE
    ),
    "max pool, ceil": Operator(
        "y = MaxPool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(x)", ODD
    ),
    "max pool, same": Operator(
        'y = MaxPool<kernel_shape=[3,3], strides=[2,2], auto_pad="SAME_UPPER">(x)', ODD
    ),
    "max pool, one axis": Operator("y = MaxPool<kernel_shape=[3]>(x)", (2, 3, 9)),
    "max pool, three axes": Operator("y = MaxPool<kernel_shape=[2,2,2]>(x)", (2, 1, 3, 4, 5)),
    "global average pool": Operator("y = GlobalAveragePool(x)", IMAGE),
    "mean": Operator(
        "y = ReduceMean<keepdims=0>(x, axes)",
        IMAGE,
        "int64[2] axes",
        {"axes": [2, -1]},
        rank=2,
    ),
    "average pool": Operator("y = AveragePool<kernel_shape=[2,2]>(x)", IMAGE),
    "gemm": Operator(
        "y = Gemm<alpha=0.5, beta=2.0, transB=1>(x, w, b)", (2, 5), "float[3,5] w, float[3] b"
    ),
    "matmul": Operator("y = MatMul(x, w)", (2, 4, 5), "float[5,3] w"),
    "flatten": Operator("y = Flatten<axis=1>(x)", (2, 3, 4), rank=2),
    "reshape": Operator("y = Reshape(x, s)", (2, 3, 4), "int64[2] s", {"s": [0, -1]}, rank=2),
    "softmax": Operator("y = Softmax<axis=1>(x)", (2, 7)),
    "clip": Operator("y = Clip(x, low)", (2, 7), "float low", {"low": 0.25}),
    "gather": Operator("y = Gather<axis=1>(x, at)", (2, 7), "int64[3] at", {"at": [6, 0, -1]}),
    "cast to integers and back": Operator("i = Cast<to=7>(x) y = Cast<to=1>(i)", (2, 7)),
    "cast like": Operator("i = Cast<to=6>(x) y = CastLike(i, x)", (2, 7)),
    "identity": Operator("a = Identity(x) b = Abs(a) y = Sqrt(b)", (2, 7)),
    "constants": Operator(
        "c = Constant<value_float=1.5>() d = Constant<value=float[2] {1.0, -3.0}>() "
        "e = Add(x, c) y = Mul(e, d)",
        (3, 2),
    ),
    "two outputs": Operator("a, b = Split<axis=1, num_outputs=2>(x) y = Sub(b, a)", (2, 6)),
    "the shape of a value": Operator("s = Shape(x) f = Cast<to=1>(s) y = Mul(x, f)", (4, 2)),
}


def in_double(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with every float32 a float64, its constants the same numbers."""
    text = model.SerializeToString()
    wide = onnx.load_model_from_string(text)
    for info in (*wide.graph.input, *wide.graph.output):
        info.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    held = [*wide.graph.initializer]
    for node in wide.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == onnx.TensorProto.FLOAT:
                attribute.i = onnx.TensorProto.DOUBLE
            if attribute.name == "value_float":
                tensor = onnx.numpy_helper.from_array(np.array(attribute.f))
                attribute.CopyFrom(onnx.helper.make_attribute("value", tensor))
            held += [attribute.t] if attribute.HasField("t") else []
    for tensor in held:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(
                onnx.numpy_helper.from_array(array.astype(np.float64), tensor.name)
            )
    return wide


@pytest.mark.parametrize("what", OPERATORS)
def test_an_operator(what: str) -> None:
    operator = OPERATORS[what]
    proto = parsed(operator.text(), **operator.weights)
    model = parse_onnx(proto.SerializeToString())
    feeds = feeds_of(model)
    got = evaluate(model.graph, feeds)["y"]
    assert got.dtype == np.float64
    doubles = {k: v.astype(np.float64) for k, v in feeds.items()}
    (want,) = map(np.asarray, ReferenceEvaluator(in_double(proto)).run(None, doubles))
    # A default is a float there and a double here.
    assert relative(got, want) < (1e-7 if "default" in what else 1e-14)
    (single,) = run_float32(model, [feeds])
    assert relative(single["y"], got) < 1e-5


CONVOLUTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "pointwise": ((2, 4, 5, 6), (3, 4, 1, 1), {}),
    "pointwise, one sample": ((1, 4, 5, 6), (3, 4, 1, 1), {}),
    "pointwise, strided": ((2, 4, 5, 6), (3, 4, 1, 1), {"strides": (2, 3)}),
    "pointwise, padded": ((2, 4, 5, 6), (3, 4, 1, 1), {"pads": (1, 0, 2, 1)}),
    "pointwise, grouped": ((2, 4, 5, 6), (6, 2, 1, 1), {"groups": 2}),
    "pointwise, one axis": ((2, 4, 5), (3, 4, 1), {}),
    "pointwise, three axes": ((2, 4, 2, 3, 4), (3, 4, 1, 1, 1), {}),
    "depthwise": ((2, 4, 9, 8), (4, 1, 7, 7), {"groups": 4, "pads": (3, 3, 3, 3)}),
    "depthwise, uneven": ((2, 3, 9, 8), (3, 1, 2, 3), {"groups": 3, "pads": (0, 1, 2, 0)}),
    "depthwise, in tiles": (
        (2, 35, 6, 37),
        (35, 1, 3, 4),
        {"groups": 35, "pads": (1, 2, 1, 1)},
    ),
    "depthwise, one tap": ((2, 3, 5, 5), (3, 1, 1, 1), {"groups": 3}),
    "depthwise, one channel": ((2, 1, 5, 5), (1, 1, 3, 3), {"pads": (1, 1, 1, 1)}),
    "depthwise, strided": ((2, 4, 9, 8), (4, 1, 3, 3), {"groups": 4, "strides": (2, 2)}),
    "depthwise, dilated": ((2, 4, 9, 8), (4, 1, 3, 3), {"groups": 4, "dilations": (2, 3)}),
    "depthwise, multiplied": ((2, 4, 9, 8), (8, 1, 3, 3), {"groups": 4}),
    "depthwise, one axis": ((2, 4, 9), (4, 1, 3), {"groups": 4}),
    "stem": ((2, 3, 16, 16), (5, 3, 4, 4), {"strides": (4, 4)}),
    "dense": ((2, 3, 9, 8), (5, 3, 3, 2), {"strides": (1, 2), "pads": (2, 1, 0, 1)}),
    "dense, dilated": ((2, 3, 9, 8), (5, 3, 3, 2), {"dilations": (2, 3)}),
    "dense, grouped": ((2, 6, 9, 8), (4, 3, 3, 3), {"groups": 2, "strides": (2, 1)}),
    "dense, one axis": ((2, 3, 9), (5, 3, 4), {"strides": (2,), "pads": (1, 2)}),
    "dense, three axes": ((1, 2, 4, 5, 6), (3, 2, 2, 3, 2), {"pads": (1, 0, 0, 0, 1, 1)}),
}


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("what", CONVOLUTIONS)
def test_a_convolution(what: str, biased: bool) -> None:
    shape, weight, attributes = CONVOLUTIONS[what]
    dims = ["float[" + ",".join(map(str, s)) + "]" for s in (shape, weight, weight[:1])]
    listed = ", ".join(
        f"{'group' if k == 'groups' else k}={list(v) if isinstance(v, tuple) else v}"
        for k, v in attributes.items()
    )
    written = f"<{listed}>" if listed else ""
    letters = ",".join("abcde"[: len(shape)])
    declared, inputs = (f", {dims[2]} b", "x, W, b") if biased else ("", "x, W")
    model = graph(
        f"({dims[0]} x) => (float[{letters}] y) <{dims[1]} W{declared}>"
        f"{{ y = Conv{written}({inputs}) }}"
    )
    feeds = feeds_of(model)
    held = [
        v.const_value.numpy().astype(np.float64)
        for v in model.graph.initializers.values()
        if v.const_value
    ]
    want = conv(feeds["x"].astype(np.float64), *held, **attributes)
    assert relative(evaluate(model.graph, feeds)["y"], want) < 1e-14


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 3)])
def test_padding_by_the_inputs_size(mode: str, strides: tuple[int, int]) -> None:
    model = graph(
        f"(float[2,3,7,8] x) => (float[a,b,c,d] y) <float[4,3,4,2] W>"
        f'{{ y = Conv<auto_pad="{mode}", strides={list(strides)}>(x, W) }}'
    )
    feeds = feeds_of(model)
    (want,) = run_float32(model, [feeds])
    assert relative(evaluate(model.graph, feeds)["y"], want["y"]) < 1e-6


def test_padding_by_the_inputs_size_counts_the_dilated_kernel() -> None:
    model = graph(
        "(float[2,3,7,8] x) => (float[2,4,7,8] y) <float[4,3,3,2] W>"
        '{ y = Conv<auto_pad="SAME_LOWER", dilations=[2,3]>(x, W) }'
    )
    feeds = feeds_of(model)
    W = model.graph.initializers["W"].const_value
    assert W is not None
    want = conv(feeds["x"], W.numpy(), dilations=(2, 3), pads=(2, 2, 2, 1))
    assert relative(evaluate(model.graph, feeds)["y"], want) < 1e-6


def test_what_pooling_found_where() -> None:
    model = graph(
        "(float[1,2,4,4] x) => (float[1,2,2,2] y, int64[1,2,2,2] i)"
        "{ y, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x) }"
    )
    feeds = feeds_of(model)
    got = evaluate(model.graph, feeds)
    assert np.array_equal(feeds["x"].reshape(-1)[got["i"]], got["y"])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_whole_network_is_that_of_pytorch_in_double(name: str) -> None:
    module = copy.deepcopy(training(name)).double()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eps = float(np.float32(part.eps))  # as ONNX has it
    image = pixels(name, batch=2)
    with torch.inference_mode():
        want = module(torch.from_numpy(image).double()).numpy()
    got = evaluate(traced(name).graph, {"input": image})["logits"]
    assert got.shape == (2, narrow(name).num_classes)
    assert relative_l2(got, want) <= 1e-13


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_a_graph_in_a_narrow_type_is_not_rounded(kind: str) -> None:
    model = graph(
        f"({kind}[2,3,4,4] x) => ({kind}[2,2,1,1] y, float[2,3,4,4] z)"
        f"<{kind}[2,3,1,1] W, {kind}[2] b, {kind}[1] one>"
        "{ a = Conv(x, W, b) c = Relu(a) y = GlobalAveragePool(c)"
        " d = Add(x, one) z = Cast<to=1>(d) }",
        one=[2.0**-20],
    )
    feeds = feeds_of(model)
    got = evaluate(model.graph, feeds)
    x = feeds["x"].astype(np.float64)
    W, b = (model.graph.initializers[k].const_value for k in ("W", "b"))
    assert W is not None
    assert b is not None
    y = conv(x, W.numpy().astype(np.float64), b.numpy().astype(np.float64))
    assert relative(got["y"], np.maximum(y, 0).mean((2, 3), keepdims=True)) < 1e-14
    assert np.array_equal(got["z"], x + 2.0**-20)
    assert got["y"].dtype == got["z"].dtype == np.float64


def test_arithmetic_on_constants_alone_is_in_float64_too() -> None:
    """Nothing of it is rounded to the type that the constants are stored in."""
    third = np.array([[1 / 3, -1 / 3]], np.float32)
    model = graph(
        "(float[1,2] x) => (float[1,2] y) <float[1,2] c>"
        "{ a = LeakyRelu<alpha=0.3>(c) y = Add(x, a) }",
        c=third,
    )
    got = evaluate(model.graph, {"x": np.zeros((1, 2), np.float32)})["y"]
    wide = third.astype(np.float64)
    assert np.array_equal(got, np.where(wide < 0, wide * float(np.float32(0.3)), wide))


def test_an_initializer_that_is_an_input_may_be_overridden() -> None:
    model = parsed("(float[2] x) => (float[2] y) <float[2] w> { y = Add(x, w) }", w=[1, 2])
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, [2]))
    ready = parse_onnx(model.SerializeToString())
    x = np.array([10, 20], np.float32)
    assert np.array_equal(evaluate(ready.graph, {"x": x})["y"], [11, 22])
    assert np.array_equal(evaluate(ready.graph, {"x": x, "w": x})["y"], [20, 40])


BETWEEN = "(float[2] x) => (float[n] y)"


@pytest.mark.parametrize(
    ("text", "code", "kwargs"),
    [
        (f"{BETWEEN} {{ y = test.Any(x) }}", "onnx.op", {"foreign": "test"}),
        (f"{BETWEEN} {{ y = test.Relu(x) }}", "onnx.op", {"foreign": "test"}),
        (f"{BETWEEN} <int64[1] i> {{ y = Gather(x, i) }}", "onnx.op", {"i": [5]}),
        (f"{BETWEEN} <float[3] i> {{ y = Add(x, i) }}", "onnx.op", {}),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    text: str, code: str, kwargs: dict[str, Any]
) -> None:
    model = graph(text, **kwargs)
    with pytest.raises(DataFault) as e:
        evaluate(model.graph, feeds_of(model))
    assert e.value.code == code


def test_a_feed_that_is_missing_is_named() -> None:
    model = graph("(float[2] x, float[2] z) => (float[2] y) { y = Add(x, z) }")
    with pytest.raises(DataFault, match="'z' is read before it is written"):
        evaluate(model.graph, {"x": np.zeros(2, np.float32)})


def peak(model: Any) -> int:
    """Bytes that an evaluation holds at most."""
    feeds = feeds_of(model)
    evaluate(model.graph, feeds)  # what is imported on the way does not count
    tracemalloc.start()
    try:
        evaluate(model.graph, feeds)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_values_are_freed_behind_their_last_reader() -> None:
    elements = 1 << 16
    steps = " ".join(f"v{i + 1} = Relu(v{i})" for i in range(12))
    text = f"(float[{elements}] v0) => (OUT float[{elements}] v12) {{ {steps} }}"
    held = peak(graph(text.replace("OUT", "")))
    assert held < 3.5 * 8 * elements
    # The measurement sees what is kept.
    every = "".join(f"float[{elements}] v{i}, " for i in range(1, 12))
    assert peak(graph(text.replace("OUT", every))) > 11 * 8 * elements


def test_weights_are_widened_one_layer_at_a_time() -> None:
    c, layers = 320, 6
    declared = ", ".join(f"float[{c},{c},1,1] W{i}" for i in range(layers))
    steps = " ".join(f"v{i + 1} = Conv(v{i}, W{i})" for i in range(layers))
    model = graph(
        f"(float[1,{c},1,1] v0) => (float[1,{c},1,1] v{layers}) <{declared}> {{ {steps} }}"
    )
    # The widest moment: a layer in float32 and in float64. Two layers would be twice as much.
    assert peak(model) < 1.8 * 8 * c * c
