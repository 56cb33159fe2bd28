"""Small graphs and the TensorRT-RTX of this machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vntools.engine.backend import Backend, load

NUMPY = {"fp32": np.float32, "fp16": np.float16}
ONNX = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16}


class GraphBuilder:
    """Nodes of a chain, each in the type of what it reads; convolutions cast that."""

    def __init__(self, precision: str, odd: tuple[str, ...], io: str) -> None:
        self.precision, self.odd = precision, odd
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.types = {"input": io}
        self.rng = np.random.default_rng(0)

    def node(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name, **attributes))
        self.types[f"{name}_out"] = self.types[inputs[0]]
        return f"{name}_out"

    def cast(self, x: str, name: str, precision: str) -> str:
        if self.types[x] == precision:
            return x
        y = self.node("Cast", [x], name, to=ONNX[precision])
        self.types[y] = precision
        return y

    def conv(self, x: str, name: str, shape: tuple[int, ...], **attributes: Any) -> str:
        """A convolution in the graph's precision, or in the other one where it is odd."""
        other = {"fp16": "fp32", "fp32": "fp16"}[self.precision]
        precision = other if name in self.odd else self.precision
        for suffix, dims in (("w", shape), ("b", shape[:1])):
            values = (0.1 * self.rng.standard_normal(dims)).astype(NUMPY[precision])
            self.initializers.append(numpy_helper.from_array(values, f"{name}.{suffix}"))
        x = self.cast(x, f"{name}_cast", precision)
        return self.node("Conv", [x, f"{name}.w", f"{name}.b"], name, **attributes)


def make_chain(
    precision: str = "fp16",
    *,
    io: str = "fp32",
    batch: str | int = "batch",
    width: int = 16,
    channels: int = 3,
    odd: tuple[str, ...] = (),
) -> onnx.ModelProto:
    """A VanillaNet-like chain on 32x32 images, in one precision but for ``odd`` convolutions.

    Stem, ReLU, depthwise, 1x1, ReLU, pool, depthwise, mean, head; ``width`` channels inside.
    """
    g = GraphBuilder(precision, odd, io)
    x = g.conv("input", "stem", (width, channels, 4, 4), strides=[4, 4])
    x = g.node("Relu", [x], "relu")
    x = g.conv(x, "depthwise", (width, 1, 7, 7), pads=[3] * 4, group=width)
    x = g.node("Relu", [g.conv(x, "pointwise", (width, width, 1, 1))], "relu_1")
    x = g.node("MaxPool", [x], "pool", kernel_shape=[2, 2], strides=[2, 2])
    x = g.conv(x, "depthwise_1", (width, 1, 7, 7), pads=[3] * 4, group=width)
    x = g.node("GlobalAveragePool", [x], "mean")
    x = g.node("Flatten", [g.conv(x, "head", (10, width, 1, 1))], "flat")
    x = g.cast(x, "cast_out", io)
    graph = helper.make_graph(
        g.nodes,
        "chain",
        [helper.make_tensor_value_info("input", ONNX[io], [batch, channels, 32, 32])],
        [helper.make_tensor_value_info(x, ONNX[io], [batch, 10])],
        g.initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture
def chain() -> Callable[..., onnx.ModelProto]:
    return make_chain


@pytest.fixture
def convs_of() -> Callable[..., dict[str, str]]:
    """The convolutions of a graph, all asked for in one precision."""

    def convs(model: onnx.ModelProto, precision: str) -> dict[str, str]:
        return {n.name: precision for n in model.graph.node if n.op_type == "Conv"}

    return convs


@pytest.fixture(scope="session")
def rtx() -> Backend:
    return load("tensorrt-rtx")
