"""What types the weights of a serialised ONNX model have, read off the wire.

ONNX Runtime does not say, and parsing the model a second time would hold its weights twice.
Fields are those of onnx.proto: ModelProto.graph 7; GraphProto.initializer 5;
TensorProto.data_type 2, data_location 14. Wire types: 0 varint, 1 eight bytes,
2 length-delimited, 5 four bytes.
"""

from __future__ import annotations

__all__ = ["weight_bytes"]

from collections.abc import Iterator

from vntools.base.errors import DataFault

_NAMES = {
    1: "float32", 2: "uint8", 3: "int8", 5: "int16", 6: "int32", 7: "int64", 9: "bool",
    10: "float16", 11: "float64", 16: "bfloat16", 17: "float8", 21: "uint4", 22: "int4",
}  # fmt: skip


def weight_bytes(model: bytes) -> dict[str, int]:
    """Serialised bytes of the initializers of the main graph, by element type, largest first.

    Raises:
        DataFault: ``onnx.external``: an initializer lies in another file, which nothing here
            may open; ``onnx.invalid``: this is no protobuf message.
    """
    sizes: dict[str, int] = {}
    try:
        for field, graph in _fields(memoryview(model)):
            if field != 7 or not isinstance(graph, memoryview):
                continue
            for inner, tensor in _fields(graph):
                if inner != 5 or not isinstance(tensor, memoryview):
                    continue
                scalars = {n: v for n, v in _fields(tensor) if isinstance(v, int)}
                if scalars.get(14) == 1:
                    raise DataFault(
                        "onnx.external",
                        "its weights lie in another file",
                        hint="save it as one file, with the weights inside",
                    )
                name = _NAMES.get(scalars.get(2, 0), "other")
                sizes[name] = sizes.get(name, 0) + len(tensor)
    except (IndexError, ValueError) as e:
        raise DataFault("onnx.invalid", "not an ONNX model, or one cut short") from e
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field; a length-delimited value is a view, never a copy."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            length, at = _varint(message, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(kind)
        if at + length > len(message):
            raise IndexError(at)
        if kind == 2:
            yield tag >> 3, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError(at)
