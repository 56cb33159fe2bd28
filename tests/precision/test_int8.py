"""INT8 in the graph: the numbers, the places, and what TensorRT-RTX makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graphs import feeds_of, graph, relative
from tests.networks import exported, pixels
from vntools.base.errors import CheckFailed
from vntools.engine.backend import choose
from vntools.engine.build import BuildOptions, Built, build
from vntools.engine.precision import check_convolutions
from vntools.export.graph import constant
from vntools.export.naming import name_nodes
from vntools.precision.floats import emulated, to_floats, with_followers
from vntools.precision.int8 import find_layers, quantize, quantized, weight_error
from vntools.verify.float32 import run_float32

HALVES = [ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16]
NET = """(float[n,3,8,8] x) => (float[n,5] y)
<float[4,3,2,2] S, float[4] s, float[4,1,3,3] D, float[4] d, float[6,4,1,1] W, float[6] w,
 float[5,6,1,1] H, float[5] h>
{ [stem] a = Conv<strides=[2,2]>(x, S, s)
  [relu] b = Relu(a)
  [depthwise] c = Conv<group=4, pads=[1,1,1,1]>(b, D, d)
  [point] e = Conv(c, W, w)
  [pool] p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(e)
  [late] f = Relu(p)
  [mean] m = GlobalAveragePool(f)
  [head] g = Conv(m, H, h)
  [flat] y = Flatten(g) }"""


def ranges_of(model: ir.Model, feeds: list[dict[str, Any]]) -> dict[str, float]:
    """Largest magnitude of each layer's input, by the layer's name."""
    seen = model.clone()
    values = {v.name: v for node in seen.graph for v in node.outputs}
    layers = find_layers(model.graph)
    named = dict.fromkeys(layer.tensor for layer in layers)
    inner = [values[n] for n in named if n in values and not values[n].is_graph_output()]
    seen.graph.outputs.extend(inner)
    found: dict[str, float] = {}
    for feed in feeds:
        got = {**run_float32(seen, [feed])[0], **feed}
        for layer in layers:
            amax = float(np.abs(got[layer.tensor]).max())
            found[layer.name] = max(found.get(layer.name, 0.0), amax)
    return found


def int8(
    model: ir.Model, feeds: list[dict[str, Any]], *roles: str, rest: str = "fp32"
) -> ir.Model:
    layers = {layer.name: layer for layer in find_layers(model.graph)}
    amax = {n: a for n, a in ranges_of(model, feeds).items() if layers[n].role in roles}
    typed = model.clone() if rest == "fp32" else to_floats(model, rest).model
    return quantize(typed, model, amax, layers)


@settings(max_examples=60)
@given(
    st.integers(0, 2**32 - 1), st.floats(-20, 3), st.sampled_from(HALVES), st.integers(0, 1)
)
def test_weights_are_off_by_half_a_step_at_most(
    seed: int, exponent: float, dtype: ir.DataType, axis: int
) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((4, 5, 3, 3)) * 2.0**exponent).astype(np.float32)
    weight[(slice(None),) * axis + (2,)] = 0
    whole, scales = quantized(weight, axis, dtype)
    assert whole.dtype == np.int8
    assert np.abs(whole.astype(int)).max() <= 127
    assert scales.dtype == dtype.numpy()
    assert scales.shape == (weight.shape[axis],)
    steps = scales.astype(np.float64).reshape([-1 if i == axis else 1 for i in range(4)])
    assert np.all(np.abs(whole * steps - weight) <= steps * (0.5 + 1e-6))
    largest = np.abs(weight).max(axis=tuple(i for i in range(4) if i != axis))
    assert np.all(scales.astype(np.float64) * 127 >= largest * (1 - 1e-7)), "nothing is cut"
    tight = scales.astype(np.float64) * 127 <= largest * 1.02
    normal = float(np.finfo(np.float16).smallest_normal)
    assert tight[largest > 127 * normal].all()
    assert float(scales[2]) == 1.0
    assert 0 < weight_error(weight, axis, dtype) < 0.05 or exponent < -10


def test_layers_and_their_roles() -> None:
    found = {v.name: (v.role, v.tensor, v.macs) for v in find_layers(graph(NET).graph)}
    assert found == {
        "stem": ("dense", "x", 4 * 3 * 4 * 16),
        "depthwise": ("depthwise", "b", 4 * 9 * 16),
        "point": ("dense", "c", 6 * 4 * 16),
        "head": ("head", "m", 30),
    }


@pytest.mark.parametrize(
    ("body", "axis"),
    [
        ("y = Gemm<transB=1>(f, W, b)", 0),
        ("y = Gemm(f, V, b)", 1),
        ("q = MatMul(f, V) y = Add(q, b)", 1),
    ],
)
def test_a_head_may_be_a_matrix(body: str, axis: int) -> None:
    model = graph(
        "(float[n,4,2,2] x) => (float[n,3] y) <float[3,16] W, float[16,3] V, float[3] b>"
        f"{{ f = Flatten(x) {body} }}"
    )
    name_nodes(model.graph)
    (layer,) = find_layers(model.graph)
    assert (layer.role, layer.channel_axis) == ("head", axis)
    feeds = [feeds_of(model)]
    made = int8(model, feeds, "head")
    (want,), (got,) = run_float32(model, feeds), run_float32(made, feeds)
    assert 1e-5 < relative(got["y"], want["y"]) < 0.02


def test_where_the_pairs_stand() -> None:
    model = graph(NET)
    made = int8(model, [feeds_of(model)], "dense", rest="fp16")
    by_name = {n.name: n for n in made.graph}

    def chain(value: ir.Value | None) -> list[str]:
        path: list[str] = []
        while value is not None and (node := value.producer()) is not None:
            path.append(node.op_type)
            value = node.inputs[0]
        return path

    pair = ["DequantizeLinear", "QuantizeLinear"]
    assert chain(by_name["stem"].inputs[0]) == [*pair, "Cast"]
    assert chain(by_name["point"].inputs[0])[:3] == [*pair, "Conv"]
    for name in ("stem", "point"):
        assert chain(by_name[name].inputs[1]) == ["DequantizeLinear"]
        bias = by_name[name].inputs[2]
        assert bias is not None
        assert bias.dtype == ir.DataType.FLOAT16
        assert chain(bias) == []
    for name in ("depthwise", "head", "relu", "pool", "late", "mean"):
        for value in by_name[name].inputs:
            assert not {"QuantizeLinear", "DequantizeLinear"} & set(chain(value)[:1])
    zeros = [constant(n.inputs[2]) for n in made.graph if n.op_type.endswith("izeLinear")]
    assert len(zeros) == 6
    assert all(z is not None and not z.any() for z in zeros)
    held = {v.dtype for v in made.graph.initializers.values()}
    assert held == {ir.DataType.INT8, ir.DataType.FLOAT16}, "no float weight is left over"


def test_a_convolution_of_rounded_numbers() -> None:
    """The pair and the weights do what rounding by hand does."""
    model = graph(
        "(float[n,3,4,4] x) => (float[n,2,4,4] y) <float[2,3,1,1] W> { y = Conv(x, W) }"
    )
    model.graph[0].name = "conv"
    layer = find_layers(model.graph)[0]
    x = feeds_of(model)["x"]
    made = quantize(model.clone(), model, {"conv": 2.0}, {"conv": layer})
    held = model.graph.initializers["W"].const_value
    assert held is not None
    whole, scales = quantized(held.numpy(), 0, ir.DataType.FLOAT)
    step = np.float32(2.0 / 127)
    rounded = np.clip(np.rint(x / step), -128, 127) * step
    weights = (whole * scales.reshape(-1, 1, 1, 1))[:, :, 0, 0]
    want = np.einsum("oc,nchw->nohw", weights, rounded)
    (got,) = run_float32(made, [{"x": x}])
    np.testing.assert_allclose(got["y"], want, rtol=1e-5, atol=1e-5)


def test_what_is_shared_is_quantised_once() -> None:
    model = graph(
        "(float[n,3,4,4] x) => (float[n,2,4,4] y, float[n,2,4,4] z) <float[2,3,1,1] W>"
        "{ [one] a = Conv(x, W) [two] b = Conv(x, W) [end] y = Relu(a) [fin] z = Exp(b) }"
    )
    layers = {v.name: v for v in find_layers(model.graph)}
    made = quantize(model.clone(), model, dict.fromkeys(layers, 3.0), layers)
    kinds = [n.op_type for n in made.graph]
    assert (kinds.count("QuantizeLinear"), kinds.count("DequantizeLinear")) == (1, 2)
    assert kinds.count("Conv") == 2


@pytest.mark.parametrize("rest", ["fp32", "fp16", "bf16"])
def test_a_network_stays_close(rest: str) -> None:
    model = exported("vanillanet_6")
    feeds = [{"input": pixels("vanillanet_6", batch=3)}]
    made = int8(model, feeds, "dense", rest=rest)
    onnx.checker.check_model(ir.serde.serialize_model(made), full_check=rest != "bf16")
    (want,), (got,) = run_float32(model, feeds), run_float32(emulated(made), feeds)
    assert 1e-4 < relative(got["logits"], want["logits"]) < 0.05


def built(model: ir.Model, *capabilities: int) -> Built:
    data = ir.serde.serialize_model(model).SerializeToString()
    options = BuildOptions(choose("tensorrt-rtx"), compute_capabilities=capabilities)
    return build(data, options, progress=lambda *_: None)


@pytest.mark.parametrize("capability", [80, 89, 120])
@pytest.mark.parametrize(
    ("roles", "rest"),
    [(("dense",), "fp16"), (("dense",), "bf16"), (("dense", "depthwise", "head"), "fp16")],
)
def test_tensorrt_computes_in_int8(roles: tuple[str, ...], rest: str, capability: int) -> None:
    model = exported("vanillanet_6")
    made = int8(model, [{"input": pixels("vanillanet_6", batch=2)}], *roles, rest=rest)
    plan = built(made, capability)
    asked = {
        layer.name: "int8" if layer.role in roles else rest
        for layer in find_layers(model.graph)
    }
    reports = check_convolutions(asked, plan.kernels)
    assert [r.weights for r in reports if r.asked == "int8"].count(("int8",)) >= 5
    lied = {name: "fp16" if kind == "int8" else kind for name, kind in asked.items()}
    with pytest.raises(CheckFailed, match="were not built in fp16"):
        check_convolutions(lied, plan.kernels)


def test_tensorrt_keeps_a_layer_in_float32() -> None:
    """With the activation behind it; alone between two casts TensorRT-RTX demotes it."""
    model = exported("vanillanet_6")
    conv = next(n for n in model.graph if n.name == "stages.1.conv")
    kept = with_followers([conv])
    assert len(kept) > 1
    plan = built(to_floats(model, "fp16", fp32=kept).model, 89)
    asked = {layer.name: "fp16" for layer in find_layers(model.graph)}
    check_convolutions({**asked, "stages.1.conv": "fp32"}, plan.kernels)
