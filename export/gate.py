"""What must hold of anybody's ONNX file before any other library sees it.

ONNX's checker passes weights that are not numbers, BatchNormalization of negative variance,
tensors with bytes to spare, types that do not exist and strides of 0; native code that is
given them computes nonsense, divides by zero or reads beyond its memory.
"""

from __future__ import annotations

__all__ = [
    "check_attributes",
    "check_buildable",
    "check_functions",
    "check_head",
    "check_numbers",
    "check_sizes",
    "check_tensors",
    "check_text",
    "looks_like",
    "refuse_control_flow",
    "tensors_of",
]

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from vntools.base.errors import DataFault
from vntools.export.external import size_of
from vntools.export.graph import ONNX_DOMAINS, constant, int_attribute, is_op

if TYPE_CHECKING:
    import onnx
    from google.protobuf.message import Message

_LARGEST_EXTENT = 1 << 31
_MOST_BYTES = 1 << 62  # of a tensor: the arithmetic of native code does not overflow
_MOST_ELEMENTS = 1 << 29  # of a value between nodes: 2 GiB of float32
_MOST_NODES = 1 << 16  # of functions, each in the place of its calls
_OLDEST_OPSET = 13  # that an engine is built from
_WINDOWS = frozenset(
    (
        *("Conv", "ConvInteger", "ConvTranspose", "QLinearConv", "DeformConv", "MaxPool"),
        *("AveragePool", "LpPool", "MaxUnpool"),
    )
)
_PRODUCTS = frozenset(
    (
        *("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "Mul"),
        *("QuantizeLinear", "DequantizeLinear", "LayerNormalization", "PRelu"),
    )
)
"""Operators that multiply by their constants; an infinity elsewhere is a mask or a bound."""

_FIRST_BYTES = {
    b"<": "an HTML or XML page",
    b"version https://git-lfs": "a git-lfs pointer: run git lfs pull",
    b"PK\x03\x04": "a zip archive, as checkpoints are",
    b"\x80": "a pickle, as checkpoints are",
}


def looks_like(data: bytes) -> str:
    """What a file is that is no ONNX model, as a part of a message; empty if nobody knows."""
    start = data[:64].lstrip()
    found = (what for head, what in _FIRST_BYTES.items() if start.startswith(head))
    return ", it looks like " + what if (what := next(found, "")) else ""


def check_head(proto: onnx.ModelProto, path: Path | None) -> None:
    """The model says which ONNX it is written in, and how many axes go in and out.

    Raises:
        DataFault: ``onnx.opset``, ``onnx.shape``.
    """
    import onnx

    if proto.ir_version > onnx.IR_VERSION:
        raise DataFault(
            "onnx.opset",
            f"is of IR version {proto.ir_version}, this onnx knows {onnx.IR_VERSION}",
            hint="update onnx",
            path=path,
        )
    ours = [o.version for o in proto.opset_import if o.domain in ONNX_DOMAINS]
    if not ours or min(ours) < 1:
        raise DataFault(
            "onnx.opset", f"its opset is {min(ours, default='missing')}", path=path
        )
    for value in (*proto.graph.input, *proto.graph.output):
        kind = value.type
        if kind.HasField("tensor_type") and not kind.tensor_type.HasField("shape"):
            raise DataFault("onnx.shape", f"{value.name!r} has no rank", path=path)
        if any(d.dim_value < 0 for d in kind.tensor_type.shape.dim):
            raise DataFault("onnx.shape", f"{value.name!r} has an extent below 0", path=path)


def check_functions(proto: onnx.ModelProto, path: Path | None) -> None:
    """Local functions stay small once each call is replaced by what it calls.

    Forty of two calls each are a file of 3 kB and 2^40 nodes, which ONNX's checker visits.

    Raises:
        DataFault: ``onnx.too_big``; ``onnx.invalid``: a function calls itself.
    """
    calls = {(f.domain, f.name, f.overload): Counter(_called(f.node)) for f in proto.functions}
    sizes: dict[tuple[str, str, str], int] = {}
    try:
        for key in TopologicalSorter(calls).static_order():
            inner = calls.get(key)
            sizes[key] = 1 if inner is None else sum(n * sizes[k] for k, n in inner.items())
    except CycleError as e:
        raise DataFault("onnx.invalid", "a function of it calls itself", path=path) from e
    called = (sizes[key] for key in _called(proto.graph.node) if key in calls)
    if sum(sizes[key] for key in calls) + sum(called) > _MOST_NODES:
        what = f"its functions call each other: they are over {_MOST_NODES} nodes"
        raise DataFault("onnx.too_big", what, path=path)


def _called(nodes: Iterable[onnx.NodeProto]) -> Iterator[tuple[str, str, str]]:
    """What ``nodes`` and those in their subgraphs call, as functions are named."""
    for node in nodes:
        yield node.domain, node.op_type, node.overload
        for attribute in node.attribute:
            for part in (attribute.g, *attribute.graphs):
                yield from _called(part.node)


def check_text(message: Message, path: Path | None) -> None:
    """Every name is UTF-8; protobuf hands over as bytes what is not.

    Raises:
        DataFault: ``onnx.invalid``.
    """
    for field, value in message.ListFields():
        inner = field.message_type is not None
        if not inner and field.type != field.TYPE_STRING:
            continue
        for part in value if field.is_repeated else (value,):
            if inner:
                check_text(part, path)
            elif isinstance(part, bytes):
                what = f"the {field.name} {part[:50]!r} in it is not UTF-8"
                raise DataFault("onnx.invalid", what, path=path)


def check_tensors(tensors: Iterable[onnx.TensorProto], path: Path | None) -> None:
    """Types that exist, extents that can be, and as many bytes as these take.

    Raises:
        DataFault: ``onnx.tensor``.
    """
    import onnx

    for tensor in tensors:
        why, dims = "", list(tensor.dims)
        size = size_of(tensor)
        if size is None and tensor.data_type != onnx.TensorProto.STRING:
            why = f"is of type {tensor.data_type} and shape {dims}"
        elif math.prod(dims) >= _MOST_BYTES or (size or 0) >= _MOST_BYTES:
            why = f"has shape {dims}, which is too large"
        elif tensor.data_location == onnx.TensorProto.EXTERNAL:
            continue
        elif tensor.HasField("raw_data"):
            if size is not None and len(tensor.raw_data) != size:
                why = f"of shape {dims} holds {len(tensor.raw_data)} bytes, not {size}"
        elif not _readable(tensor):
            why = f"does not hold the elements of its shape {dims}"
        if why:
            raise DataFault("onnx.tensor", f"tensor {tensor.name!r} {why}", path=path)


def _readable(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor whose elements lie in fields of their type has all of them."""
    try:
        return ir.serde.deserialize_tensor(tensor).numpy().shape == tuple(tensor.dims)
    except (TypeError, ValueError, OverflowError):
        return False


def check_attributes(
    nodes: Iterable[onnx.NodeProto], path: Path | None, shapes: Mapping[str, Sequence[int]]
) -> None:
    """Extents that no checker looks at and that native code divides by.

    Args:
        nodes: of a graph or function.
        path: of the model, for messages.
        shapes: of initializers.

    Raises:
        DataFault: ``onnx.attr``.
    """
    for node in nodes:
        for attribute in node.attribute:
            numbers = {
                "group": [attribute.i],
                **dict.fromkeys(("strides", "dilations", "kernel_shape"), attribute.ints),
            }.get(attribute.name, ())
            wrong = any(not 1 <= n < _LARGEST_EXTENT for n in numbers)
            if attribute.name == "group" and node.op_type in ("Conv", "ConvTranspose"):
                weight = shapes.get(node.input[1]) if len(node.input) > 1 else None
                wrong = wrong or bool(weight and weight[0] % attribute.i)
            if wrong:
                what = f"{attribute.name} of {node.op_type} {node.name!r}"
                raise DataFault("onnx.attr", f"{what} is {list(numbers)}", path=path)
            for part in (attribute.g, *attribute.graphs):
                check_attributes(part.node, path, shapes)


def check_sizes(graph: ir.Graph, path: Path | None) -> None:
    """Channels fit, and no value fills the memory, as far as extents are known.

    Raises:
        DataFault: ``onnx.tensor``; ``onnx.attr``: groups that do not fit the channels.
    """
    for node in graph.all_nodes():
        if is_op(node, "Conv"):
            _check_channels(node, path)
    made = (value for node in graph.all_nodes() for value in node.outputs)
    for value in (*graph.inputs, *made):
        known = [d for d in value.shape or () if isinstance(d, int)]
        if math.prod(known) > _MOST_ELEMENTS and not value.is_initializer():
            what = f"value {value.name!r} of shape {known} would have {math.prod(known):.1g}"
            raise DataFault("onnx.tensor", f"{what} elements", path=path)


def _check_channels(node: ir.Node, path: Path | None) -> None:
    """A convolution reads as many channels as its input has.

    Raises:
        DataFault: ``onnx.attr``.
    """
    x, weight = (v and v.shape for v in node.inputs[:2])
    if x is None or weight is None or min(len(x), len(weight)) < 2:
        return
    group = int_attribute(node, "group", 1)
    given, read = x[1], weight[1]
    if isinstance(given, int) and isinstance(read, int) and read * group != given:
        what = f"Conv {node.name!r} of group {group} reads {read * group} channels of {given}"
        raise DataFault("onnx.attr", what, path=path)


def check_numbers(model: ir.Model, path: Path | None) -> None:
    """Constants are numbers, and a BatchNormalization divides by a real root.

    Those that something is multiplied by are finite too, and no window crops what it reads.

    Raises:
        DataFault: ``onnx.nonfinite``, ``onnx.bn_stats``; ``onnx.attr``: pads below 0, or a
            node outside all functions has an attribute of one.
    """
    for graph in (model.graph, *(f.graph for f in model.functions.values())):
        for part in (graph, *graph.subgraphs()):
            for value in part.initializers.values():
                if value.const_value is not None:
                    _check_constant(value.const_value, [value], value.name, path)
        for node in graph.all_nodes():
            for attribute in node.attributes.values():
                if attribute.is_ref() and graph is model.graph:
                    what = f"{attribute.name} of {node.op_type} {node.name!r}"
                    raise DataFault("onnx.attr", f"{what} is of a function", path=path)
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    _check_constant(
                        attribute.as_tensor(),
                        node.outputs,
                        node.name or node.outputs[0].name,
                        path,
                    )
            if is_op(node, "BatchNormalization"):
                _check_statistics(node, path)
            pads = node.attributes.get("pads") if node.op_type in _WINDOWS else None
            if pads is not None and not pads.is_ref():
                _check_pads(node, pads.as_ints(), path)


def _check_pads(node: ir.Node, pads: Sequence[int], path: Path | None) -> None:
    """A window does not crop what it reads: no engine does, and few libraries.

    Raises:
        DataFault: ``onnx.attr``.
    """
    if any(not 0 <= n < _LARGEST_EXTENT for n in pads):
        what = f"pads of {node.op_type} {node.name!r} is {list(pads)}"
        raise DataFault("onnx.attr", what, path=path)


def _check_constant(
    tensor: ir.TensorProtocol, values: Iterable[ir.Value], name: str | None, path: Path | None
) -> None:
    """A tensor that ``values`` are made of: no NaN, and no infinity that is multiplied by.

    Raises:
        DataFault: ``onnx.nonfinite``.
    """
    if not tensor.dtype.is_floating_point():
        return
    array = tensor.numpy()
    if np.isfinite(array).all():
        return
    multiplied = any(u.node.op_type in _PRODUCTS for v in values for u in v.uses())
    count = int(np.isnan(array).sum())
    if multiplied:
        count = int(array.size - np.isfinite(array).sum())
    if count:
        what = f"{count} of {array.size} numbers of {name!r} are"
        kinds = "not finite" if multiplied else "NaN"
        raise DataFault("onnx.nonfinite", f"{what} {kinds}", path=path)


def _check_statistics(node: ir.Node, path: Path | None) -> None:
    """A BatchNormalization whose variance and epsilon have a real root.

    Raises:
        DataFault: ``onnx.bn_stats``.
    """
    given = node.attributes.get("epsilon")
    if given is not None and given.is_ref():
        return  # in a function: of the node that calls it
    epsilon = 1e-5 if given is None else given.as_float()
    if not 0 < epsilon < math.inf:
        raise DataFault(
            "onnx.bn_stats",
            f"epsilon of BatchNormalization {node.name!r} is {epsilon:g}",
            path=path,
        )
    variance = node.inputs[4] if len(node.inputs) > 4 else None
    array = None if variance is None else constant(variance)
    if array is not None and array.size and array.min() + epsilon <= 0:
        raise DataFault(
            "onnx.bn_stats",
            f"a variance of BatchNormalization {node.name!r} is {float(array.min()):g}",
            path=path,
        )


def check_buildable(model: ir.Model, path: Path) -> None:
    """What an engine can be built from: known operators, no subgraph, nothing in training.

    Raises:
        DataFault: ``onnx.opset``, ``onnx.op``, ``onnx.control_flow``, ``onnx.bn_training``,
            ``onnx.shape`` (an input whose size is open in more than the batch).
    """
    import onnx

    newest = onnx.defs.onnx_opset_version()
    opset = model.opset_imports.get("", 0)
    if not _OLDEST_OPSET <= opset <= newest:
        raise DataFault(
            "onnx.opset",
            f"its opset is {opset}, supported are {_OLDEST_OPSET} to {newest}",
            path=path,
        )
    for node in model.graph:
        if node.domain not in ONNX_DOMAINS:
            raise DataFault(
                "onnx.op",
                f"{node.op_type} {node.name!r} is of the domain {node.domain!r}",
                path=path,
            )
    for value in model.graph.inputs:
        fixed = value.shape is not None and all(isinstance(d, int) for d in value.shape[1:])
        if not fixed and not value.is_initializer():
            raise DataFault(
                "onnx.shape",
                f"input {value.name!r} has shape {value.shape}; only the batch may be open",
                hint="export it at a fixed image size",
                path=path,
            )
    refuse_control_flow(model.graph, path)
    for node in model.graph:
        if is_op(node, "BatchNormalization") and int_attribute(node, "training_mode", 0):
            raise DataFault(
                "onnx.bn_training",
                f"BatchNormalization {node.name!r} is in training mode",
                hint="export the network with model.eval()",
                path=path,
            )


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


def tensors_of(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    """Tensors in the attributes of ``nodes`` and in their subgraphs."""
    for attribute in (a for node in nodes for a in node.attribute):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for part in (attribute.g, *attribute.graphs):
            yield from part.initializer
            yield from tensors_of(part.node)
