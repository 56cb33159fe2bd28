"""An ONNX file of anybody's as a graph to work on."""

from __future__ import annotations

__all__ = ["load_onnx", "parse_onnx", "refuse_control_flow"]

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from vntools.base.artifacts import read_input, sha256_bytes
from vntools.base.errors import DataFault
from vntools.export.graph import without_weights

if TYPE_CHECKING:
    import onnx


_LARGEST_EXTENT = 1 << 31


def load_onnx(path: Path) -> tuple[ir.Model, str]:
    """A model with shapes inferred, local functions inlined, and the SHA-256 of its file.

    Raises:
        NoInput, NoPermission: as :func:`vntools.base.artifacts.read_input`.
        DataFault: as :func:`parse_onnx`.
    """
    data = read_input(path)
    return parse_onnx(data, path), sha256_bytes(data)


def parse_onnx(data: bytes, path: Path | None = None) -> ir.Model:
    """The model in ``data``.

    Raises:
        DataFault: ``onnx.empty``, ``onnx.format`` (no protobuf), ``onnx.external`` (weights in
            other files), ``onnx.attr`` (a stride of 0), ``onnx.invalid`` (the checker refuses
            it).
    """
    import onnx
    from google.protobuf.message import DecodeError
    from onnx_ir.passes.common import InlinePass

    if not data:
        raise DataFault("onnx.empty", "is empty", path=path)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as e:
        raise DataFault("onnx.format", "not an ONNX model", path=path) from e
    nodes = (*proto.graph.node, *(n for f in proto.functions for n in f.node))
    held = (*proto.graph.initializer, *_tensors(nodes))
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in held):
        raise DataFault(
            "onnx.external",
            "its weights lie in other files",
            hint="save it as one file: onnx.save(onnx.load(path), new_path)",
            path=path,
        )
    if not proto.graph.node or not proto.graph.output:
        raise DataFault("onnx.invalid", "it holds no graph with nodes and outputs", path=path)
    try:
        onnx.checker.check_model(data, full_check=False)
    except onnx.checker.ValidationError as e:
        why = str(e).splitlines()[0]
        raise DataFault(
            "onnx.invalid", f"the ONNX checker refuses it: {why}", path=path
        ) from e
    _check_attributes(proto.graph.node, path)
    model = ir.serde.deserialize_model(proto)
    if model.functions:
        InlinePass()(model)
    _infer_shapes(model)
    return model


def refuse_control_flow(graph: ir.Graph, path: Path) -> None:
    """Refuse nodes that hold a subgraph: types and kernels are followed in one graph only.

    Raises:
        DataFault: ``onnx.control_flow``.
    """
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    for node in graph:
        if any(a.type in kinds for a in node.attributes.values()):
            raise DataFault(
                "onnx.control_flow",
                f"{node.op_type} {node.name!r} holds a subgraph",
                path=path,
            )


def _check_attributes(nodes: Iterable[onnx.NodeProto], path: Path | None) -> None:
    """Extents that no checker looks at and that native code divides by.

    Raises:
        DataFault: ``onnx.attr``.
    """
    for node in nodes:
        for attribute in node.attribute:
            numbers = {
                "group": [attribute.i],
                **dict.fromkeys(("strides", "dilations", "kernel_shape"), attribute.ints),
            }.get(attribute.name, ())
            if any(not 1 <= n < _LARGEST_EXTENT for n in numbers):
                what = f"{attribute.name} of {node.op_type} {node.name!r}"
                raise DataFault("onnx.attr", f"{what} is {list(numbers)}", path=path)


def _tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    """Tensors in the attributes of ``nodes`` and in their subgraphs."""
    for attribute in (a for node in nodes for a in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for part in (attribute.g, *attribute.graphs):
            yield from part.initializer
            yield from _tensors(part.node)


def _infer_shapes(model: ir.Model) -> None:
    """Fill in types and shapes that ONNX can infer; what is known already stays."""
    import onnx

    light, _ = without_weights(model)
    try:
        inferred = onnx.shape_inference.infer_shapes(
            ir.serde.serialize_model(light), data_prop=True
        )
    except onnx.shape_inference.InferenceError:
        return
    known = {v.name: v for v in inferred.graph.value_info}
    for node in model.graph:
        for value in node.outputs:
            if value.name in known and (value.shape is None or value.type is None):
                info = ir.serde.deserialize_value_info_proto(known[value.name], None)
                value.type = value.type or info.type
                value.shape = value.shape or info.shape
