"""The joined bytes are those of the model, byte for byte once they are parsed."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.networks import exported
from vntools.base.errors import DataFault
from vntools.pipeline.serialize import _varint, serialize


def model_of(*tensors: ir.TensorProtocol) -> ir.Model:
    """A model without nodes that holds ``tensors``."""
    values = [
        ir.Value(
            name=t.name,
            shape=ir.Shape(t.shape.numpy()),
            type=ir.TensorType(t.dtype),
            const_value=t,
        )
        for t in tensors
    ]
    graph = ir.Graph([], [], nodes=[], initializers=values, opset_imports={"": 20}, name="g")
    return ir.Model(graph, ir_version=10)


def parsed_both_ways(model: ir.Model) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """(from our bytes, from protobuf's own) of the same model and metadata."""
    metadata = {"b": "1", "a": "2"}
    usual = model.clone()
    usual.metadata_props.clear()
    usual.metadata_props.update(metadata)
    want = ir.serde.serialize_model(usual)
    return onnx.load_from_string(serialize(model, metadata)), want


@pytest.mark.parametrize("name", ["vanillanet_5", "vanillanet_13_x1_5_ada_pool"])
def test_a_network_is_what_protobuf_would_write(name: str) -> None:
    got, want = parsed_both_ways(exported(name))
    assert got == want
    onnx.checker.check_model(got, full_check=True)


def test_weights_of_every_kind() -> None:
    rng = np.random.default_rng(0)
    wide = rng.standard_normal((40, 50))
    got, want = parsed_both_ways(
        model_of(
            ir.Tensor(wide.astype(np.float32), name="single", doc_string="kept"),
            ir.Tensor(wide.astype(np.float16), name="half"),
            ir.Tensor(wide, name="double"),
            ir.Tensor(wide.astype(np.float32).T, name="transposed"),
            ir.Tensor(np.arange(3000), name="integers"),
            ir.Tensor(np.array(1.5, np.float32), name="scalar"),
            ir.Tensor(np.zeros((0, 3), np.float32), name="empty"),
            ir.Tensor(
                wide.astype(np.float32).view(np.uint16), dtype=ir.DataType.BFLOAT16, name="b"
            ),
            ir.StringTensor(np.array([b"x"] * 2000), name="words"),
        )
    )
    assert got == want
    assert [t.name for t in got.graph.initializer][:2] == ["single", "half"]


def test_the_same_model_gives_the_same_bytes() -> None:
    one, other = (serialize(exported("vanillanet_5"), {"k": "v"}) for _ in range(2))
    assert one == other


def test_what_protobuf_cannot_hold_is_refused() -> None:
    huge = np.broadcast_to(np.float32(0), (1 << 29,))
    with pytest.raises(DataFault) as caught:
        serialize(model_of(ir.Tensor(huge, name="huge")), {})
    assert caught.value.code == "onnx.too_big"


@pytest.mark.parametrize(
    ("number", "octets"),
    [(0, "00"), (127, "7f"), (128, "8001"), (300, "ac02"), (1 << 31, "8080808008")],
)
def test_protobufs_integers(number: int, octets: str) -> None:
    assert _varint(number).hex() == octets
