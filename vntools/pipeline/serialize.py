"""The bytes of an ONNX model, its weights copied into them once, or into a file of theirs."""

from __future__ import annotations

__all__ = ["DATA_KEY", "move_weights", "serialize", "too_big"]

import hashlib
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any

from vntools.base.errors import DataFault

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

_LARGEST_PROTOBUF = (1 << 31) - (1 << 20)  # bytes, with room for the graph
_LARGEST_SMALL = 1 << 10  # bytes
_ALIGNMENT = 1 << 12  # bytes: of a page, so that weights can be mapped
DATA_KEY = "vntools.data_sha256"
# Tags of protobuf's wire format, for fields of bytes: ModelProto.graph = 7,
# GraphProto.initializer = 5, TensorProto.raw_data = 9.
_GRAPH, _INITIALIZER, _RAW_DATA = b"\x3a", b"\x2a", b"\x4a"


def serialize(model: ir.Model, metadata: Mapping[str, str]) -> bytes:
    """``model`` with ``metadata`` as protobuf; the same model gives the same bytes.

    Protobuf's own way copies each weight three times. Here the messages around the weights are
    serialized without them, and all is joined: a message's fields may stand in any order. The
    model's large weights are gone from it then.

    Raises:
        DataFault: ``onnx.too_big``: beyond the 2 GiB that protobuf can hold.
    """
    import onnx_ir as ir

    graph = model.graph
    if too_big(model):
        size = _weight_bytes(graph)
        raise DataFault(
            "onnx.too_big", f"its weights take {size / 1e9:.1f} GB, protobuf holds 2"
        )
    model.metadata_props.clear()
    model.metadata_props.update(metadata)
    taken = _take_weights(graph)
    proto = ir.serde.serialize_model(model)
    weights: list[bytes | memoryview] = []  # whole entries, or a head and its data
    for tensor in proto.graph.initializer:
        array = taken.get(tensor.name)
        if array is not None:
            tensor.ClearField("raw_data")
        entry = tensor.SerializeToString(deterministic=True)
        if array is None:
            weights.append(_INITIALIZER + _varint(len(entry)) + entry)
            continue
        entry += _RAW_DATA + _varint(array.nbytes)
        head = _INITIALIZER + _varint(len(entry) + array.nbytes) + entry
        weights += [head, array.reshape(-1).view("u1").data]
    del proto.graph.initializer[:]
    rest = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    graph_size = len(rest) + sum(map(len, weights))
    head = proto.SerializeToString(deterministic=True) + _GRAPH + _varint(graph_size)
    return b"".join([head, rest, *weights])


def too_big(model: ir.Model) -> bool:
    """Whether a model with its weights inside is beyond what protobuf can hold."""
    return _weight_bytes(model.graph) >= _LARGEST_PROTOBUF


def _weight_bytes(graph: ir.Graph) -> int:
    """Bytes of initializers and constants that a serialised graph holds inside."""
    import onnx_ir as ir

    tensors = [v.const_value for v in graph.initializers.values()]
    tensors += [
        a.as_tensor()
        for node in graph.all_nodes()
        for a in node.attributes.values()
        if a.type == ir.AttributeType.TENSOR
    ]
    inside = (t for t in tensors if t is not None and not isinstance(t, ir.ExternalTensor))
    return sum(t.nbytes for t in inside)


def move_weights(model: ir.Model, file: IO[bytes], location: str) -> str:
    """Write the large initializers of ``model`` to ``file``; their SHA-256, all together.

    What is left of each in the model is where it lies: in ``location`` beside the model. No
    weight is copied on its way, and none that this held is needed any more.
    """
    import onnx_ir as ir

    digest, at = hashlib.sha256(), 0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= _LARGEST_SMALL:
            continue
        if tensor.dtype == ir.DataType.STRING:
            continue
        for part in (bytes(-at % _ALIGNMENT), _raw(tensor)):
            file.write(part)
            digest.update(part)
            at += len(part)
        value.const_value = ir.ExternalTensor(
            location,
            at - tensor.nbytes,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=value.name or "",
        )
    return digest.hexdigest()


def _raw(tensor: ir.TensorProtocol) -> bytes | memoryview:
    """A tensor's elements as ONNX stores them; where they lie so already, no copy."""
    array = tensor.numpy()
    plain = array.flags.c_contiguous and array.dtype.isnative
    if plain and array.nbytes == tensor.nbytes:
        return array.reshape(-1).view("u1").data
    return tensor.tobytes()


def _take_weights(graph: ir.Graph) -> dict[str, NDArray[Any]]:
    """Large initializers of plain floats by name; what is left of each has no data."""
    import onnx_ir as ir

    class Dataless(ir.Tensor[Any]):
        def tobytes(self) -> bytes:
            return b""

    taken: dict[str, NDArray[Any]] = {}
    for name, value in graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= _LARGEST_SMALL:
            continue
        if isinstance(tensor, ir.ExternalTensor):
            continue
        if tensor.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE):
            array = tensor.numpy()
            if array.flags.c_contiguous and array.dtype.isnative:
                taken[name] = array
                value.const_value = Dataless(
                    array, dtype=tensor.dtype, name=tensor.name, doc_string=tensor.doc_string
                )
    return taken


def _varint(number: int) -> bytes:
    """Protobuf's integer: seven bits a byte, lowest first, the top bit where more follow."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])
