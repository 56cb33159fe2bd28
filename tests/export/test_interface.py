"""What is put around a traced network: its meaning, and that the passes absorb it exactly."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from tests.networks import traced
from vntools.base.errors import UsageFault
from vntools.export.interface import (
    HEADS,
    INPUT_TYPES,
    LAYOUTS,
    Interface,
    Normalization,
    parse_normalize,
)
from vntools.export.rewrite import apply_passes
from vntools.export.simplify import tidy
from vntools.verify.float64 import evaluate

NET = "vanillanet_5"
UNEVEN = Normalization((0.485, 0.25, 0.75), (0.229, 0.5, 0.125))
EVERY = [
    Interface(n, t, layout)
    for n, t, layout in itertools.product((None, UNEVEN), INPUT_TYPES, LAYOUTS)
    if n is not None or t != "uint8"
]


def around(interface: Interface) -> ir.Model:
    model = traced(NET)
    interface.add_to(model)
    return model


def images(model: ir.Model, batch: int = 2) -> NDArray[Any]:
    """Bytes, or floats in 0..1, in the layout of the model's input."""
    value = model.graph.inputs[0]
    assert value.shape is not None
    assert value.dtype is not None
    shape = (batch, *(int(d) for d in tuple(value.shape)[1:]))  # pyright: ignore[reportArgumentType]
    rng = np.random.default_rng(0)
    if value.dtype == ir.DataType.UINT8:
        return rng.integers(256, size=shape).astype(np.uint8)
    return rng.random(shape).astype(value.dtype.numpy())


def distance(got: NDArray[Any], want: NDArray[Any]) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def padded_stem(pads: tuple[int, ...]) -> ir.Model:
    """A biased 3x3 convolution and a ReLU, on 8x8 pixels."""
    rng = np.random.default_rng(0)

    def value(name: str, shape: tuple[int | str, ...]) -> ir.Value:
        return ir.Value(
            name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT)
        )

    held: list[ir.Value] = []
    for name, shape in (("stem.weight", (4, 3, 3, 3)), ("stem.bias", (4,))):
        array = rng.standard_normal(shape).astype(np.float32)
        held.append(value(name, shape))
        held[-1].const_value = ir.tensor(array, name=name)
    x, side = value("input", ("batch", 3, 8, 8)), 6 + 2 * pads[0]
    y, out = (value(n, ("batch", 4, side, side)) for n in ("stem.out", "logits"))
    nodes = [
        ir.node("Conv", [x, *held], {"pads": pads}, outputs=[y], name="stem"),
        ir.node("Relu", [y], outputs=[out], name="relu"),
    ]
    graph = ir.Graph(
        [x], [out], nodes=nodes, initializers=held, opset_imports={"": 20}, name="padded"
    )
    return ir.Model(graph, ir_version=10)


# ------------------------------------------------------------------------------ its meaning


def test_the_default_changes_nothing() -> None:
    before, after = traced(NET), around(Interface())
    assert [n.name for n in after.graph] == [n.name for n in before.graph]
    assert list(after.graph.initializers) == list(before.graph.initializers)
    assert after.graph.inputs[0].shape == before.graph.inputs[0].shape


@pytest.mark.parametrize("interface", EVERY, ids=str)
def test_the_graph_does_what_the_host_would(interface: Interface) -> None:
    model = around(interface)
    x = images(model)
    got = evaluate(model.graph, {"input": x})["logits"]
    network_input = interface.network_input(x)
    assert network_input.dtype == np.float32
    want = evaluate(traced(NET).graph, {"input": network_input})["logits"]
    assert distance(got, want) < 1e-6


def test_the_host_does_what_the_textbook_says() -> None:
    pixel = np.array([255, 0, 51], np.uint8).reshape(1, 1, 1, 3)
    got = Interface(UNEVEN, "uint8", "nhwc").network_input(pixel)
    want = [(1 - 0.485) / 0.229, (0 - 0.25) / 0.5, (0.2 - 0.75) / 0.125]
    np.testing.assert_allclose(got.reshape(3), want, rtol=1e-6)
    assert got.shape == (1, 3, 1, 1)


def test_a_byte_is_cast_before_anything_else() -> None:
    model = around(Interface(UNEVEN, "uint8", "nhwc"))
    assert [n.op_type for n in model.graph][:4] == ["Cast", "Transpose", "Add", "Mul"]
    (value,) = model.graph.inputs
    assert (value.name, value.dtype) == ("input", ir.DataType.UINT8)
    assert value.shape is not None
    assert str(value.shape[0]) == "batch"
    assert list(value.shape)[1:] == [64, 64, 3]


@pytest.mark.parametrize("head", HEADS)
def test_heads(head: str) -> None:
    interface = Interface(head=head)
    model = around(interface)
    x = images(model, 4)
    got = evaluate(model.graph, {"input": x})
    want = interface.outputs(evaluate(traced(NET).graph, {"input": x})["logits"])
    names = {"logits": ["logits"], "softmax": ["probabilities"], "top5": ["values", "indices"]}
    assert [v.name for v in model.graph.outputs] == list(got) == list(want) == names[head]
    for value in model.graph.outputs:
        assert value.name is not None
        assert value.shape is not None
        assert got[value.name].shape[1:] == tuple(value.shape)[1:]
        np.testing.assert_allclose(got[value.name], want[value.name], rtol=1e-9)
    if head == "top5":
        assert model.graph.outputs[1].dtype == ir.DataType.INT64
        assert np.array_equal(got["indices"], want["indices"])
        assert (np.diff(got["values"]) <= 0).all()


def test_top5_of_a_network_that_is_sure_of_itself() -> None:
    """All but one probability are nothing in float32; the classes are chosen by logit."""
    import onnxruntime

    logits, out = (
        ir.Value(name=n, shape=ir.Shape((1, 10)), type=ir.TensorType(ir.DataType.FLOAT))
        for n in ("input", "logits")
    )
    node = ir.node("Identity", [logits], outputs=[out], name="network")
    graph = ir.Graph([logits], [out], nodes=[node], opset_imports={"": 20}, name="sure")
    model = ir.Model(graph, ir_version=10)
    Interface(head="top5").add_to(model)
    session = onnxruntime.InferenceSession(ir.serde.serialize_model(model).SerializeToString())
    sure = np.array([[0, 900, 100, 300, 200, 0, 400, 0, 0, 0]], np.float32)
    values, indices = session.run(None, {"input": sure})
    assert np.asarray(indices).tolist() == [[1, 6, 3, 4, 2]]
    assert np.asarray(values).tolist() == [[1, 0, 0, 0, 0]]


def test_probabilities_are_compared_by_their_logarithms() -> None:
    interface = Interface(head="softmax")
    sure, wrong = (interface.outputs(np.array([[20.0, v, 0.0]])) for v in (1.0, 2.0))
    assert distance(wrong["probabilities"], sure["probabilities"]) < 1e-7, (
        "a wrong logit hides"
    )
    a, b = (interface.compared(y)["probabilities"] for y in (wrong, sure))
    assert distance(a, b) > 1e-2
    nothing = interface.compared({"probabilities": np.zeros((1, 2), np.float32)})
    assert np.isfinite(nothing["probabilities"]).all()
    indices = np.arange(5)
    assert interface.compared({"indices": indices})["indices"] is indices


def test_the_record_says_what_is_left_to_the_host() -> None:
    said = Interface(UNEVEN, "uint8", "nhwc").to_record()
    assert said["in_graph"] == ["scale", "normalize", "transpose"]
    assert said["on_host"] == ["decode", "resize", "crop"]
    assert said["values"] == "0..255"
    said = Interface(UNEVEN).to_record()
    assert said["in_graph"] == ["normalize"]
    assert said["on_host"][-2:] == ["scale", "transpose"]
    assert said["values"] == "0..1"
    said = Interface().to_record()
    assert said["in_graph"] == []
    assert said["values"] == "normalized"


# ------------------------------------------------------------------------------ the passes


@pytest.mark.parametrize("interface", EVERY, ids=str)
def test_an_unpadded_stem_absorbs_it(interface: Interface) -> None:
    model = around(interface)
    x = images(model)
    want = evaluate(model.graph, {"input": x})["logits"]
    plain = traced(NET)
    for m in (model, plain):
        apply_passes(m.graph)
    moved = [n.op_type for n in model.graph if n.op_type in ("Cast", "Transpose")]
    assert moved == ["Cast"] * (interface.input_type != "fp32") + ["Transpose"] * (
        interface.layout == "nhwc"
    )
    kept = [n.op_type for n in model.graph if n.op_type not in ("Cast", "Transpose")]
    assert kept == [n.op_type for n in plain.graph], "nothing is left of Mul and Add"
    got = evaluate(model.graph, {"input": x})["logits"]
    assert distance(got, want) < 3e-7, "float32 weights, and nothing else"


def test_a_padded_stem_keeps_the_shift_and_says_why() -> None:
    model = padded_stem((1, 1, 1, 1))
    Interface(UNEVEN, "uint8", "nhwc").add_to(model)
    x = images(model)
    want = evaluate(model.graph, {"input": x})["logits"]
    applied = apply_passes(model.graph)
    ops = [n.op_type for n in tidy(model).graph]
    assert ops == ["Cast", "Transpose", "Add", "Conv", "Relu"], "the scale is in the stem"
    reasons = [s.reason for s in applied.skips if s.node == "stem"]
    assert len(reasons) == 1
    assert "zero padding" in reasons[0]
    assert distance(evaluate(model.graph, {"input": x})["logits"], want) < 1e-6


def test_without_padding_the_same_stem_keeps_nothing() -> None:
    model = padded_stem((0, 0, 0, 0))
    Interface(UNEVEN, "uint8", "nhwc").add_to(model)
    applied = apply_passes(model.graph)
    assert [n.op_type for n in model.graph] == ["Cast", "Transpose", "Conv", "Relu"]
    assert not [s for s in applied.skips if s.node == "stem"]


def test_a_padded_stem_absorbs_a_pure_scale() -> None:
    model = padded_stem((1, 1, 1, 1))
    Interface(Normalization((0.0,) * 3, UNEVEN.std), "uint8").add_to(model)
    x = images(model)
    want = evaluate(model.graph, {"input": x})["logits"]
    apply_passes(model.graph)
    assert [n.op_type for n in model.graph] == ["Cast", "Conv", "Relu"]
    assert distance(evaluate(model.graph, {"input": x})["logits"], want) < 3e-7


# ------------------------------------------------------------------------------ refusals


def test_bytes_need_a_normalisation() -> None:
    with pytest.raises(UsageFault, match="--normalize imagenet") as caught:
        Interface(input_type="uint8")
    assert caught.value.code == "export.normalize"


def test_top5_needs_five_classes() -> None:
    model = traced(NET)
    logits = model.graph.outputs[0]
    logits.shape = ir.Shape(("batch", 4))
    with pytest.raises(UsageFault, match="4 classes") as caught:
        Interface(head="top5").add_to(model)
    assert caught.value.code == "export.head"


@pytest.mark.parametrize(
    ("text", "mean", "std"),
    [
        ("0.5,0.25", (0.5,) * 3, (0.25,) * 3),
        ("0,1", (0.0,) * 3, (1.0,) * 3),
        ("0.1, 0.2, 0.3, 1, 2, 3", (0.1, 0.2, 0.3), (1.0, 2.0, 3.0)),
    ],
)
def test_normalisations(text: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    assert parse_normalize(text) == Normalization(mean, std)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is not imagenet"),
        ("ImageNet21k", "is not imagenet"),
        ("0.5", "is not imagenet"),
        ("0.5,0.5,0.5", "is not imagenet"),
        ("0.5,0.5,0.5,0.5", "is not imagenet"),
        ("0.5,x", "is not imagenet"),
        ("nan,1", "is not imagenet"),
        ("0.5,inf", "is not imagenet"),
        ("0.5,0", "std 0 is not positive"),
        ("0.5,0.5,0.5,1,1,-1", "is not positive"),
        ("123.7,116.3,103.5,58.4,57.1,57.4", "divide mean and std by 255"),
        ("-0.1,1", "beyond 0..1"),
    ],
)
def test_what_is_no_normalisation(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_normalize(text)
