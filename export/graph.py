"""Reading an ONNX graph: constants, uses, symbolic shapes, and costs."""

from __future__ import annotations

__all__ = [
    "ONNX_DOMAINS",
    "GraphStats",
    "add_initializer",
    "constant",
    "evaluated",
    "free_name",
    "int_attribute",
    "is_data",
    "is_float",
    "ints_attribute",
    "is_op",
    "node_macs",
    "only_consumer",
    "remove_dead",
    "spatial_size",
    "stats",
    "symbolic_vector",
    "unique_name",
    "value_names",
    "without_weights",
]

import itertools
import math
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

ONNX_DOMAINS = ("", "ai.onnx")
_NEWEST_OPSET = 20  # of a subgraph, which does not say
# Operators that are no function of their inputs, or whose result may be far larger than they.
_NEVER_FOLDED = frozenset(
    (
        *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"),
        *("RandomUniformLike", "Dropout", "QuantizeLinear", "DequantizeLinear", "If", "Loop"),
        *("Scan", "SequenceMap", "Tile", "Resize", "Upsample", "Range", "Pad", "OneHot"),
    )
)
# Above this many elements a folded constant is no scalar, shape or channel vector but a weight
# that somebody computes in the graph; such weights stay small in practice, and the bound keeps
# a hostile Expand from filling the memory.
_LARGEST_FOLDED = 1 << 26
_FLOATS = (
    ir.DataType.FLOAT,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
    ir.DataType.DOUBLE,
)
_DEEPEST_FOLD = 32  # nodes above each other; sub-graphs of constants are shallow
_LONGEST_SHAPE = 64  # entries; tensors have far fewer axes
_LARGEST_SMALL = 256
_LARGEST_MATRICES_BYTES = 256 << 20
_OF_DATA = "vntools.of_data"  # what is kept with a value
_KEEPS_SYMBOLS = ("Cast", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze")

_Symbols = dict[ir.Value, list[int | str] | None]
_Memo = tuple[_Symbols, dict[ir.Value, NDArray[Any] | None]]


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """Whether ``node`` is one of ``op_types`` of the ONNX domain itself."""
    return node is not None and node.domain in ONNX_DOMAINS and node.op_type in op_types


def is_float(dtype: ir.DataType | None) -> bool:
    """Whether a type is one that networks compute in: float16, bfloat16, float32, float64."""
    return dtype in _FLOATS


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """The array that ``value`` always holds, or None.

    Initializers that a caller may override (they are graph inputs too) are not constant.
    Sub-graphs of constants are folded, and ``CastLike(constant, x)`` needs only the type of x:
    it is how PyTorch's exporter writes the zero bias of a convolution that has none.
    """
    return _fold(value, {}, _DEEPEST_FOLD)


def _fold(
    value: ir.Value | None, memo: dict[ir.Value, NDArray[Any] | None], depth: int
) -> NDArray[Any] | None:
    """:func:`constant`, each value of a sub-graph once and no deeper than ``depth``."""
    if value is None or value.is_graph_input() or depth == 0:
        return None
    if value.const_value is not None:
        return value.const_value.numpy()
    if value not in memo:
        node = value.producer()
        memo[value] = (
            None if node is None or _of_data(value) else _fold_node(node, memo, depth - 1)
        )
    return memo[value]


def _of_data(value: ir.Value) -> bool:
    """Whether an input of the graph, or a node that is never folded, goes into ``value``.

    The answer is kept with the value: no rewriting makes data of a constant, or a constant of
    data. So a network of any depth is walked through once.
    """
    path = [(value, iter(_sources(value)))]
    while path:
        at, sources = path[-1]
        known = at.meta.get(_OF_DATA)
        if known is None:
            known = _is_source_of_data(at)
            below = None if known else next(sources, None)
            if below is not None:
                path.append((below, iter(_sources(below))))
                continue
        at.meta[_OF_DATA] = known
        if known:
            for above, _ in path:
                above.meta[_OF_DATA] = True
            break
        path.pop()
    return bool(value.meta[_OF_DATA])


def _sources(value: ir.Value) -> list[ir.Value]:
    """The inputs of a value's node by whose contents it is made."""
    node = value.producer()
    if node is None or node.op_type == "Shape":
        return []
    inputs = node.inputs[:1] if node.op_type == "CastLike" else node.inputs
    return [v for v in inputs if v is not None]


def _is_source_of_data(value: ir.Value) -> bool:
    node = value.producer()
    if value.is_graph_input() or node is None:
        return value.is_graph_input() or value.const_value is None
    known = node.domain in ONNX_DOMAINS and node.op_type not in _NEVER_FOLDED
    return not known or len(node.outputs) > 1


def _fold_node(
    node: ir.Node, memo: dict[ir.Value, NDArray[Any] | None], depth: int
) -> NDArray[Any] | None:
    if node.op_type == "Constant":
        return _constant_attribute(node)
    if node.op_type == "Shape":
        dims = _shape_slice(node)
        fixed = dims is not None and all(isinstance(d, int) for d in dims)
        return np.array(dims, np.int64) if fixed else None
    if node.op_type == "CastLike":
        array, like = _fold(node.inputs[0], memo, depth), node.inputs[1]
        if array is None or like is None or like.dtype is None:
            return None
        return array.astype(like.dtype.numpy())
    if node.op_type in ("Gather", "Slice"):
        picked = _picked(node, memo, depth)
        if picked is not None:
            return picked
    arrays = [None if v is None else _fold(v, memo, depth) for v in node.inputs]
    if any(a is None and v is not None for a, v in zip(arrays, node.inputs, strict=True)):
        return None
    return evaluated(node, arrays)


def _picked(
    node: ir.Node, memo: dict[ir.Value, NDArray[Any] | None], depth: int
) -> NDArray[Any] | None:
    """Static extents that a node picks from a shape of which others are dynamic."""
    dims = _symbols(node.inputs[0], ({}, memo), depth)
    if node.op_type == "Slice":
        part = None if dims is None else _sliced(node, dims, memo, depth)
        fixed = part is not None and all(isinstance(d, int) for d in part)
        return np.array(part, np.int64) if fixed else None
    places = _fold(node.inputs[1], memo, depth)
    if places is None or dims is None or places.size > _LONGEST_SHAPE:
        return None
    if any(not -len(dims) <= i < len(dims) for i in places.reshape(-1)):
        return None
    found = [dims[int(i)] for i in places.reshape(-1)]
    if not all(isinstance(d, int) for d in found):
        return None
    return np.array(found, np.int64).reshape(places.shape)


def _sliced(
    node: ir.Node,
    dims: list[int | str],
    memo: dict[ir.Value, NDArray[Any] | None],
    depth: int,
) -> list[int | str] | None:
    """What a Slice-13 takes of a vector."""
    given = [None if v is None else _fold(v, memo, depth) for v in node.inputs[1:]]
    missing = any(
        a is None and v is not None for a, v in zip(given, node.inputs[1:], strict=True)
    )
    if missing or len(given) < 2:
        return None
    numbers = [1 if a is None else int(a.reshape(-1)[0]) for a in given if a is None or a.size]
    step = numbers[3] if len(given) == 4 and len(numbers) == 4 else 1
    return dims[numbers[0] : numbers[1] : step] if step > 0 else None


def _constant_attribute(node: ir.Node) -> NDArray[Any] | None:
    for name, attribute in node.attributes.items():
        if name == "value":
            return attribute.as_tensor().numpy()
        if name in ("value_float", "value_floats"):
            return np.array(attribute.value, np.float32)
        if name in ("value_int", "value_ints"):
            return np.array(attribute.value, np.int64)
    return None


def evaluated(node: ir.Node, arrays: Sequence[NDArray[Any] | None]) -> NDArray[Any] | None:
    """One node over arrays, by ONNX's own reference implementation; None where it fails."""
    from onnx.reference import ReferenceEvaluator

    if node.op_type in ("Expand", "ConstantOfShape"):
        shapes = [tuple(int(d) for d in a.reshape(-1)) for a in arrays[-1:] if a is not None]
    else:
        shapes = [a.shape for a in arrays if a is not None]
    extents = (max(map(abs, dims)) for dims in itertools.zip_longest(*shapes, fillvalue=1))
    if math.prod(extents) > _LARGEST_FOLDED:  # more than broadcasting them can make
        return None
    feeds = {
        v.name: a
        for v, a in zip(node.inputs, arrays, strict=True)
        if v is not None and v.name is not None and a is not None
    }
    try:
        (result,) = ReferenceEvaluator(_model_of(node)).run(None, feeds)
    except Exception:  # noqa: BLE001 - the reference lacks the operator in this form
        return None
    return np.asarray(result)


def _model_of(node: ir.Node) -> onnx.ModelProto:
    """A node as a model of its own, at the opset that it is of."""
    import onnx

    graph = node.graph
    imports = dict(graph.opset_imports) if graph is not None else {}
    version = node.version or imports.get("", imports.get("ai.onnx"))
    made = onnx.helper.make_graph(
        [ir.serde.serialize_node(node)],
        "node",
        [onnx.ValueInfoProto(name=v.name) for v in node.inputs if v is not None],
        [onnx.ValueInfoProto(name=v.name) for v in node.outputs],
    )
    opsets = [onnx.helper.make_opsetid("", version or _NEWEST_OPSET)]
    return onnx.helper.make_model(made, opset_imports=opsets)


def _shape_slice(node: ir.Node) -> list[int | str] | None:
    """What a Shape node yields, with names for symbolic dimensions; None where unknown."""
    source = node.inputs[0]
    if source is None or source.shape is None:
        return None
    dims = [d if isinstance(d, int) else d.value for d in source.shape]
    begin = int_attribute(node, "start", 0)
    end = int_attribute(node, "end", len(dims))
    dims = dims[begin:end]
    return None if any(d is None for d in dims) else [d for d in dims if d is not None]


def symbolic_vector(value: ir.Value | None) -> list[int | str] | None:
    """The integers that a shape value holds, with names where they are symbolic dimensions.

    Follows what exporters put between Shape and Reshape: Gather, Squeeze, Unsqueeze, Reshape,
    Concat, Cast and Identity.
    """
    return _symbols(value, ({}, {}), _DEEPEST_FOLD)


def _symbols(value: ir.Value | None, memo: _Memo, depth: int) -> list[int | str] | None:
    """:func:`symbolic_vector`, each value once, no deeper than ``depth``."""
    if value is None or depth == 0:
        return None
    symbols, constants = memo
    if value not in symbols:
        fixed = _fold(value, constants, depth)
        if fixed is not None:
            integers = fixed.dtype.kind in "iu" and fixed.size <= _LONGEST_SHAPE
            symbols[value] = [int(d) for d in fixed.reshape(-1)] if integers else None
        else:
            found = _node_symbols(value.producer(), memo, depth - 1)
            symbols[value] = (
                found if found is not None and len(found) <= _LONGEST_SHAPE else None
            )
    return symbols[value]


def _node_symbols(node: ir.Node | None, memo: _Memo, depth: int) -> list[int | str] | None:
    if node is None or node.domain not in ONNX_DOMAINS or not node.inputs:
        return None
    if node.op_type == "Shape":
        return _shape_slice(node)
    if node.op_type == "Concat":
        if len(node.inputs) > _LONGEST_SHAPE:
            return None
        parts = [_symbols(v, memo, depth) for v in node.inputs]
        return None if any(p is None for p in parts) else [d for p in parts for d in p or ()]
    if node.op_type not in _KEEPS_SYMBOLS:
        return None
    source = _symbols(node.inputs[0], memo, depth)
    if source is None:
        return None
    if node.op_type in ("Squeeze", "Unsqueeze", "Cast", "Identity"):
        return source
    if node.op_type == "Slice":
        return _sliced(node, source, memo[1], depth)
    at = _symbols(node.inputs[1], memo, depth) if len(node.inputs) > 1 else None
    if node.op_type == "Reshape":
        return source if at in ([-1], [1]) else None
    if node.op_type == "Gather" and at is not None:
        inside = all(isinstance(i, int) and -len(source) <= i < len(source) for i in at)
        return [source[int(i)] for i in at] if inside else None
    return None


def only_consumer(value: ir.Value) -> ir.Node | None:
    """The one node of the same graph that reads ``value``, once.

    None where a graph output, a subgraph or a second reader needs it too.
    """
    uses = tuple(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    node, producer = uses[0].node, value.producer()
    return node if producer is None or node.graph is producer.graph else None


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute, or its default."""
    return node.attributes[name].as_int() if name in node.attributes else default


def ints_attribute(node: ir.Node, name: str) -> tuple[int, ...] | None:
    """An attribute that is a list of integers, or None where it is absent."""
    return tuple(node.attributes[name].as_ints()) if name in node.attributes else None


def spatial_size(value: ir.Value | None, axes: int) -> tuple[int, ...] | None:
    """The static spatial size of a (batch, channels, ..) value, or None."""
    if value is None or value.shape is None or len(value.shape) != axes + 2:
        return None
    dims = tuple(value.shape)[2:]
    return tuple(int(d) for d in dims) if all(isinstance(d, int) for d in dims) else None  # pyright: ignore[reportArgumentType]


def unique_name(graph: ir.Graph, wanted: str) -> str:
    """``wanted``, or ``wanted_1`` and so on where a value, even a subgraph's, is called so."""
    return free_name(wanted, value_names(graph))


def value_names(graph: ir.Graph) -> set[str | None]:
    """Names of all values, those of subgraphs too."""
    taken = {v.name for n in graph.all_nodes() for v in n.outputs}
    for part in (graph, *graph.subgraphs()):
        taken |= set(part.initializers) | {v.name for v in part.inputs}
    return taken


def free_name(wanted: str, taken: Container[str | None]) -> str:
    """``wanted``, or ``wanted_1`` and so on where that is taken."""
    name, i = wanted, 0
    while name in taken:
        i += 1
        name = f"{wanted}_{i}"
    return name


def add_initializer(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """A new initializer; no value of the graph has its name yet."""
    tensor = ir.Tensor(array, name=name)
    value = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def remove_dead(graph: ir.Graph, *values: ir.Value | None) -> None:
    """Remove what only ever made ``values``, nodes and initializers, if nothing reads them."""
    todo = list(values)
    held: dict[ir.Value, None] = {}  # looked at once, at last: thousands may have read one
    while todo:
        value = todo.pop()
        if value is None or value.is_graph_output() or value.is_graph_input():
            continue
        if value.is_initializer():
            held[value] = None
            continue
        if value.uses():
            continue
        node = value.producer()
        if node is None or node.graph is not graph:
            continue
        if any(v.uses() or v.is_graph_output() for v in node.outputs):
            continue
        todo += node.inputs
        graph.remove(node, safe=True)
    for value in held:
        owner = value.graph or graph
        if not value.uses() and value.name is not None and value.name in owner.initializers:
            del owner.initializers[value.name]


@dataclass(frozen=True)
class GraphStats:
    """What a graph consists of and costs.

    Attributes:
        ops: nodes by type.
        parameters: elements of its float constants.
        macs: multiply-accumulates of Conv, Gemm and MatMul for one sample; None where a size
            that they depend on is dynamic.
        size_bytes: size of its float constants.
    """

    ops: dict[str, int]
    parameters: int
    macs: int | None
    size_bytes: int

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return sum(self.ops.values())

    def to_record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "ops": self.ops,
            "nodes": self.nodes,
            "parameters": self.parameters,
            "macs": self.macs,
            "bytes": self.size_bytes,
        }


def stats(graph: ir.Graph) -> GraphStats:
    """Count a graph; constants (sub-graphs of them too) are data, not nodes."""
    live = [n for n in graph if not is_data(n)]
    tensors: dict[int, tuple[int, int]] = {}
    for value in _constants(live):
        if (
            value.dtype is not None
            and value.dtype.is_floating_point()
            and value.shape is not None
        ):
            size = math.prod(d for d in value.shape if isinstance(d, int))
            tensors[id(value)] = (size, math.ceil(size * value.dtype.itemsize))
    total: int | None = 0
    for node in live:
        cost = node_macs(node)
        total = None if total is None or cost is None else total + cost
    return GraphStats(
        dict(sorted(Counter(n.op_type for n in live).items())),
        sum(n for n, _ in tensors.values()),
        total,
        sum(b for _, b in tensors.values()),
    )


def is_data(node: ir.Node) -> bool:
    """Whether a node only prepares constants or shapes, and so costs nothing at run time."""
    if len(node.outputs) != 1:
        return False
    value = node.outputs[0]
    return constant(value) is not None or symbolic_vector(value) is not None


def _constants(nodes: Iterable[ir.Node]) -> Iterable[ir.Value]:
    for node in nodes:
        for value in node.inputs:
            if value is not None and value.const_value is not None:
                yield value


def node_macs(node: ir.Node) -> int | None:
    """Multiply-accumulates of one sample; None where sizes are unknown."""
    if is_op(node, "Conv"):
        shape = node.inputs[1].shape if node.inputs[1] is not None else None
        if shape is None or not all(isinstance(d, int) for d in shape):
            return None
        axes = len(shape) - 2
        size = spatial_size(node.outputs[0], axes)
        if size is None:
            return None
        return math.prod(int(d) for d in shape) * math.prod(size)  # pyright: ignore[reportArgumentType]
    if is_op(node, "Gemm", "MatMul"):
        shape = node.inputs[1].shape if node.inputs[1] is not None else None
        out = node.outputs[0].shape
        if shape is None or out is None or not all(isinstance(d, int) for d in shape):
            return None
        if node.inputs[1] is not None and node.inputs[1].const_value is None:
            return None
        rows = [d for d in tuple(out)[1:-1] if isinstance(d, int)]
        return math.prod(int(d) for d in shape) * math.prod(rows)  # pyright: ignore[reportArgumentType]
    return 0


def without_weights(
    model: ir.Model, *, keep_matrices: bool = False
) -> tuple[ir.Model, dict[str, ir.TensorProtocol]]:
    """A copy of ``model`` whose large initializers are inputs, and those initializers by name.

    Other libraries then work on a graph of a few kilobytes and copy no weight. Constants of up
    to 256 elements (axes, shapes, scalars) stay, and so may take part in folding; initializers
    that are inputs too have no fixed value, so they lend theirs at any size. With
    ``keep_matrices`` vectors and matrices stay as well, while all of them take at most 256 MB:
    a MatMul and an Add become one Gemm only where their constants are seen.
    """
    light, held = model.clone(), dict[str, ir.TensorProtocol]()
    small = [
        v.const_value.nbytes
        for v in light.graph.initializers.values()
        if v.const_value is not None and len(v.const_value.shape) <= 2
    ]
    kept_rank = 2 if keep_matrices and sum(small) <= _LARGEST_MATRICES_BYTES else -1
    for name, value in list(light.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or value.is_graph_output():
            continue
        large = math.prod(tensor.shape.numpy()) > _LARGEST_SMALL
        if value.is_graph_input() or (large and len(tensor.shape) > kept_rank):
            held[name] = tensor
            del light.graph.initializers[name]
            value.const_value = None
            if not value.is_graph_input():
                value.type, value.shape = (
                    ir.TensorType(tensor.dtype),
                    ir.Shape(tensor.shape.numpy()),
                )
                light.graph.inputs.append(value)
    return light, held
