"""An ONNX file of anybody's as a graph to work on."""

from __future__ import annotations

__all__ = ["Loaded", "load_onnx", "parse_onnx", "refuse_control_flow", "refuse_training"]

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import onnx_ir as ir

from vntools.base.artifacts import read_input, require_file, sha256_bytes
from vntools.base.errors import DataFault
from vntools.export.external import ExternalFiles
from vntools.export.graph import int_attribute, is_op
from vntools.export.shapes import infer_shapes

if TYPE_CHECKING:
    import onnx


_LARGEST_EXTENT = 1 << 31
_LARGEST_PROTOBUF = (1 << 31) - 1  # bytes
_LARGEST_INLINED = 1 << 30  # bytes


class Loaded(NamedTuple):
    """A model, the SHA-256 of its file, and the files beside it that its weights lie in."""

    model: ir.Model
    sha256: str
    files: Mapping[str, memoryview]


def load_onnx(path: Path) -> Loaded:
    """A model with shapes inferred and local functions inlined, and where it is from.

    Weights in files beside it are mapped and not copied.

    Raises:
        NoInput, NoPermission: as :func:`vntools.base.artifacts.read_input`.
        DataFault: as :func:`parse_onnx`; ``onnx.too_big``, where the file itself is beyond the
            2 GiB that protobuf can hold.
    """
    size = os.path.getsize(require_file(path))
    if size > _LARGEST_PROTOBUF:
        raise DataFault(
            "onnx.too_big",
            f"takes {size / 1e9:.1f} GB, protobuf holds 2",
            hint="save it with its weights as external data",
            path=path,
        )
    data = read_input(path)
    files = ExternalFiles(Path(os.path.realpath(path)).parent, path)
    return Loaded(parse_onnx(data, path, files=files), sha256_bytes(data), files.maps)


def parse_onnx(
    data: bytes, path: Path | None = None, *, files: ExternalFiles | None = None
) -> ir.Model:
    """The model in ``data``; weights in other files are read from ``files`` only.

    Raises:
        DataFault: ``onnx.empty``, ``onnx.format`` (no protobuf), ``onnx.external`` (weights in
            other files, and these are not given or not as they must be), ``onnx.attr`` (a
            stride of 0), ``onnx.invalid`` (the checker refuses it), ``onnx.too_big`` (external
            tensors in attributes or subgraphs are beyond 1 GiB).
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not data:
        raise DataFault("onnx.empty", "is empty", path=path)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as e:
        raise DataFault("onnx.format", "not an ONNX model", path=path) from e
    held = _take_external(proto, files, path)
    if not proto.graph.node or not proto.graph.output:
        raise DataFault("onnx.invalid", "it holds no graph with nodes and outputs", path=path)
    lent = _lend(proto.graph, held)
    try:
        onnx.checker.check_model(
            proto.SerializeToString() if files and files.maps else data, full_check=False
        )
    except onnx.checker.ValidationError as e:
        why = str(e).splitlines()[0]
        raise DataFault(
            "onnx.invalid", f"the ONNX checker refuses it: {why}", path=path
        ) from e
    _check_attributes(proto.graph.node, path)
    model = ir.serde.deserialize_model(proto)
    for value in [v for v in model.graph.inputs if v.name in held]:
        value.const_value = held[value.name or ""]
        if value.name in lent:
            model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    if model.functions:
        _inline(model, path)
    infer_shapes(model)
    return model


def _take_external(
    proto: onnx.ModelProto, files: ExternalFiles | None, path: Path | None
) -> dict[str, ir.TensorProtocol]:
    """Take the main graph's external initializers out; the others are copied in.

    Raises:
        DataFault: ``onnx.external``, ``onnx.too_big``, ``onnx.invalid`` (a name twice).
    """
    import onnx

    def away(tensor: onnx.TensorProto) -> bool:
        return tensor.data_location == onnx.TensorProto.EXTERNAL

    nodes = (*proto.graph.node, *(n for f in proto.functions for n in f.node))
    inner, outer = (
        list(filter(away, _tensors(nodes))),
        list(filter(away, proto.graph.initializer)),
    )
    if not inner and not outer:
        return {}
    if files is None:
        raise DataFault(
            "onnx.external",
            "its weights lie in other files",
            hint="save it as one file: onnx.save(onnx.load(path), new_path)",
            path=path,
        )
    if sum(len(files.bytes_of(t)) for t in inner) > _LARGEST_INLINED:
        raise DataFault("onnx.too_big", "its constants in subgraphs are too large", path=path)
    for tensor in inner:
        files.inline(tensor)
    names = [t.name for t in proto.graph.initializer]
    if len(set(names)) < len(names):
        raise DataFault("onnx.invalid", "it holds two initializers of one name", path=path)
    held = {t.name: files.tensor(t) for t in outer}
    kept = [t for t in proto.graph.initializer if t.name not in held]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    return held


def _lend(graph: onnx.GraphProto, held: Mapping[str, ir.TensorProtocol]) -> set[str]:
    """Make initializers that were taken out inputs; the names of those that were not one."""
    import onnx

    lent = held.keys() - {v.name for v in graph.input}
    for name in held:
        if name in lent:
            tensor = held[name]
            info = onnx.helper.make_tensor_value_info(
                name, int(tensor.dtype), list(tensor.shape.numpy())
            )
            graph.input.append(info)
    return lent


def _inline(model: ir.Model, path: Path | None) -> None:
    from onnx_ir.passes.common import InlinePass

    try:
        InlinePass()(model)
    except Exception as e:
        why = str(e.__cause__ or e).splitlines()[0][:200]
        raise DataFault(
            "onnx.invalid", f"its functions cannot be inlined: {why}", path=path
        ) from e


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


def refuse_training(graph: ir.Graph, path: Path) -> None:
    """Refuse a BatchNormalization in training mode, which no engine has.

    Raises:
        DataFault: ``onnx.bn_training``.
    """
    for node in graph:
        if is_op(node, "BatchNormalization") and int_attribute(node, "training_mode", 0):
            raise DataFault(
                "onnx.bn_training",
                f"BatchNormalization {node.name!r} is in training mode",
                hint="export the network with model.eval()",
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
            for part in (attribute.g, *attribute.graphs):
                _check_attributes(part.node, path)


def _tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    """Tensors in the attributes of ``nodes`` and in their subgraphs."""
    for attribute in (a for node in nodes for a in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for part in (attribute.g, *attribute.graphs):
            yield from part.initializer
            yield from _tensors(part.node)
