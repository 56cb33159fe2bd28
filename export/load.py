"""An ONNX file of anybody's as a graph to work on."""

from __future__ import annotations

__all__ = ["Loaded", "admit", "load_onnx", "parse_onnx", "parse_stranger", "read_onnx"]

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import onnx_ir as ir

from vntools.base.artifacts import read_input, require_file, sha256_bytes
from vntools.base.errors import DataFault
from vntools.export.external import ExternalFiles
from vntools.export.gate import (
    check_attributes,
    check_functions,
    check_head,
    check_numbers,
    check_sizes,
    check_tensors,
    check_text,
    looks_like,
    tensors_of,
)
from vntools.export.shapes import infer_shapes

if TYPE_CHECKING:
    import onnx

_LARGEST_PROTOBUF = (1 << 31) - 1  # bytes
_LARGEST_INLINED = 1 << 30  # bytes


class Loaded(NamedTuple):
    """A model, the SHA-256 of its file, and the files beside it that its weights lie in."""

    model: ir.Model
    sha256: str
    files: Mapping[str, memoryview]


def read_onnx(path: Path) -> bytes:
    """The bytes of a file that is no larger than a protobuf message can be.

    Raises:
        NoInput, NoPermission: as :func:`vntools.base.artifacts.read_input`.
        DataFault: ``onnx.too_big``.
    """
    size = os.path.getsize(require_file(path))
    if size > _LARGEST_PROTOBUF:
        raise DataFault(
            "onnx.too_big",
            f"takes {size / 1e9:.1f} GB, protobuf holds 2",
            hint="save it with its weights as external data",
            path=path,
        )
    return read_input(path)


def load_onnx(path: Path) -> Loaded:
    """A model with shapes inferred and local functions inlined, and where it is from.

    Weights in files beside it are mapped and not copied.

    Raises:
        VntoolsError: as :func:`read_onnx` and :func:`parse_stranger`.
    """
    data = read_onnx(path)
    files = ExternalFiles(Path(os.path.realpath(path)).parent, path)
    return Loaded(parse_stranger(data, path, files=files), sha256_bytes(data), files.maps)


def parse_stranger(data: bytes, path: Path, *, files: ExternalFiles | None = None) -> ir.Model:
    """As :func:`parse_onnx`, and through the rest of the gate: numbers, types, sizes.

    Raises:
        DataFault: as :func:`parse_onnx`, :func:`vntools.export.gate.check_numbers` and
            :func:`vntools.export.gate.check_sizes`; ``onnx.invalid``: its types or shapes
            contradict each other.
    """
    return _examined(*_checked(data, path, files), path)


def admit(data: bytes, path: Path) -> onnx.ModelProto:
    """A stranger's model that lies in ``data`` alone, which another library may have then.

    Raises:
        DataFault: as :func:`parse_stranger`.
    """
    proto, held, lent = _checked(data, path, None)
    _examined(proto, held, lent, path)
    return proto


def parse_onnx(
    data: bytes, path: Path | None = None, *, files: ExternalFiles | None = None
) -> ir.Model:
    """The model in ``data``; weights in other files are read from ``files`` only.

    Raises:
        DataFault: ``onnx.empty``, ``onnx.format`` (no protobuf), ``onnx.opset``,
            ``onnx.shape`` (no rank), ``onnx.external`` (weights in other files, and these are
            not given or not as they must be), ``onnx.tensor``, ``onnx.attr`` (a stride of 0),
            ``onnx.op`` (sparse tensors), ``onnx.invalid`` (the checker refuses it),
            ``onnx.too_big`` (external tensors in attributes or subgraphs are beyond 1 GiB, or
                functions beyond what can be inlined).
    """
    return _graph(*_checked(data, path, files), path)[0]


def _examined(
    proto: onnx.ModelProto,
    held: Mapping[str, ir.TensorProtocol],
    lent: set[str],
    path: Path | None,
) -> ir.Model:
    """What :func:`_checked` gives as a model whose numbers, types and sizes hold."""
    model, contradiction = _graph(proto, held, lent, path)
    check_numbers(model, path)
    if contradiction:
        raise DataFault(
            "onnx.invalid", f"the ONNX checker refuses it: {contradiction}", path=path
        )
    check_sizes(model.graph, path)
    return model


def _graph(
    proto: onnx.ModelProto,
    held: Mapping[str, ir.TensorProtocol],
    lent: set[str],
    path: Path | None,
) -> tuple[ir.Model, str]:
    """What :func:`_checked` gives as a model, and what :func:`infer_shapes` finds wrong."""
    model = _deserialized(proto, path)
    for value in [v for v in model.graph.inputs if v.name in held]:
        value.const_value = held[value.name or ""]
        if value.name in lent:
            model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    if model.functions:
        _inline(model, path)
    return model, infer_shapes(model)


def _checked(
    data: bytes, path: Path | None, files: ExternalFiles | None
) -> tuple[onnx.ModelProto, dict[str, ir.TensorProtocol], set[str]]:
    """A model that ONNX's checker and the gate admit; the initializers taken out of it.

    These are inputs in it, if need be of its own: the last are their names.

    Raises:
        DataFault: as :func:`parse_onnx`.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not data:
        raise DataFault("onnx.empty", "is empty", path=path)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as e:
        raise DataFault(
            "onnx.format", f"not an ONNX model{looks_like(data)}", path=path
        ) from e
    if not proto.graph.node or not proto.graph.output:
        raise DataFault("onnx.invalid", "it holds no graph with nodes and outputs", path=path)
    check_head(proto, path)
    check_text(proto, path)
    check_functions(proto, path)
    nodes = [*proto.graph.node, *(n for f in proto.functions for n in f.node)]
    if proto.graph.sparse_initializer or any(map(_is_sparse, nodes)):
        raise DataFault("onnx.op", "it holds sparse tensors", path=path)
    check_tensors((*proto.graph.initializer, *tensors_of(nodes)), path)
    check_attributes(nodes, path, {t.name: t.dims for t in proto.graph.initializer})
    held = _take_external(proto, nodes, files, path)
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
    return proto, held, lent


def _is_sparse(node: onnx.NodeProto) -> bool:
    return any(
        a.HasField("sparse_tensor")
        or a.sparse_tensors
        or any(g.sparse_initializer or any(map(_is_sparse, g.node)) for g in (a.g, *a.graphs))
        for a in node.attribute
    )


def _deserialized(proto: onnx.ModelProto, path: Path | None) -> ir.Model:
    try:
        return ir.serde.deserialize_model(proto)
    except Exception as e:
        why = (str(e.__cause__ or e).splitlines() or [type(e).__name__])[0][:200]
        raise DataFault("onnx.invalid", f"it cannot be read: {why}", path=path) from e


def _take_external(
    proto: onnx.ModelProto,
    nodes: Iterable[onnx.NodeProto],
    files: ExternalFiles | None,
    path: Path | None,
) -> dict[str, ir.TensorProtocol]:
    """Take the main graph's external initializers out; the others are copied in.

    Raises:
        DataFault: ``onnx.external``, ``onnx.too_big``, ``onnx.invalid`` (a name twice).
    """
    import onnx

    def away(tensor: onnx.TensorProto) -> bool:
        return tensor.data_location == onnx.TensorProto.EXTERNAL

    inner, outer = (
        list(filter(away, tensors_of(nodes))),
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
