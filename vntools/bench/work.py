"""What a graph has to move and to multiply at a batch, whatever executes it.

The nodes are gathered into layers, as a runtime would fuse them:

- a Conv, Gemm, MatMul, pool, reduction or other node that is not elementwise begins a layer;
- an elementwise node, a normalisation by constants, a QuantizeLinear or a change of shape
  belongs to the last of the layers whose results it reads;
- a DequantizeLinear, and what is elementwise between an input and the first layer, is done by
  the layer that reads the result, which then reads the narrower type;
- Concat, Split and Slice move nothing: results are written where they are to lie.

A layer reads its weights, and each activation of other layers or of the graph's inputs, once,
and writes each activation that others read, once, all in the types that the graph has.
Operations are two for each multiply-add of Conv, ConvTranspose, Gemm, MatMul and their integer
forms, as the definition of the operator has them: Winograd's and other transforms may do with
fewer. Not counted: other arithmetic, work space, and the scales of quantised weights.
"""

from __future__ import annotations

__all__ = ["Layer", "Work", "work_of"]

import math
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from vntools.base.errors import DataFault
from vntools.bench.extents import Dims, extents
from vntools.export.graph import ONNX_DOMAINS, int_attribute, is_data, is_op

_VIEWS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"}
_ELEMENTWISE = _VIEWS | {
    *("Abs", "Add", "And", "BatchNormalization", "Cast", "CastLike", "Ceil", "Celu", "Clip"),
    *("Cos", "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater"),
    *("GreaterOrEqual", "HardSigmoid", "HardSwish", "LeakyRelu", "Less", "LessOrEqual", "Log"),
    *("Max", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow"),
    *("QuantizeLinear", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin"),
    *("Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh"),
    *("ThresholdedRelu", "Where", "Xor"),
}
_MOVES = {"Concat", "Split", "Slice"}
# The places of the two factors among a node's inputs.
_FACTORS = {
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "MatMul"), (0, 1)),
    **dict.fromkeys(("ConvInteger", "MatMulInteger"), (0, 1)),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul"), (0, 3)),
}
_PRECISIONS = {
    **dict.fromkeys(("INT8", "UINT8"), "int8"),
    **dict.fromkeys(("FLOAT8E4M3FN", "FLOAT8E5M2"), "fp8"),
    "FLOAT4E2M1": "fp4",
    "FLOAT16": "fp16",
    "BFLOAT16": "bf16",
}
_NARROW = ("int8", "fp8", "fp4")


@dataclass(frozen=True)
class Layer:
    """What is executed at once.

    Attributes:
        name: of the node that it begins with.
        ops: types of its nodes, in order.
        precision: that it multiplies in; what it computes in, where it does not multiply.
        weight_bytes: of its constants.
        read_bytes: of activations.
        written_bytes: of activations.
        operations: two for each multiply-add.
        makes: names of the values that its nodes make.
    """

    name: str
    ops: tuple[str, ...]
    precision: str
    weight_bytes: int
    read_bytes: int
    written_bytes: int
    operations: int
    makes: tuple[str, ...] = ()

    @property
    def moved_bytes(self) -> int:
        """All that it reads and writes."""
        return self.weight_bytes + self.read_bytes + self.written_bytes


@dataclass(frozen=True)
class Work:
    """What a graph has to do.

    Attributes:
        batch: samples at a time.
        layers: in the order of execution.
        weight_bytes: each constant once, whoever reads it.
        input_bytes: of the graph's inputs.
        output_bytes: of the graph's outputs.
    """

    batch: int
    layers: tuple[Layer, ...]
    weight_bytes: int
    input_bytes: int
    output_bytes: int

    @property
    def moved_bytes(self) -> int:
        """What has to be moved even if no activation ever left the chip."""
        return self.weight_bytes + self.input_bytes + self.output_bytes

    @property
    def operations(self) -> dict[str, int]:
        """Operations by precision."""
        found: dict[str, int] = {}
        for layer in self.layers:
            if layer.operations:
                found[layer.precision] = found.get(layer.precision, 0) + layer.operations
        return found


@dataclass
class _Group:
    nodes: list[ir.Node] = field(default_factory=list[ir.Node])
    reads: dict[ir.Value, None] = field(default_factory=dict[ir.Value, None])
    writes: dict[ir.Value, None] = field(default_factory=dict[ir.Value, None])
    weights: dict[ir.Value, None] = field(default_factory=dict[ir.Value, None])


def work_of(model: ir.Model, batch: int | None = None) -> Work:
    """What a graph without control flow has to do; the model is left as it is.

    Args:
        model: with types inferred, as :func:`vntools.export.load.parse_onnx` gives it.
        batch: of a graph whose batch is dynamic; None is the graph's own, or 1.

    Raises:
        UsageFault: ``bench.batch``: the graph has another, fixed batch.
        DataFault: ``limit.shape``: an extent depends on more than the batch;
            ``limit.operator``: an operator of another domain.
    """
    foreign = [n for n in model.graph if n.domain not in ONNX_DOMAINS]
    if foreign:
        what = f"{foreign[0].domain}.{foreign[0].op_type}"
        raise DataFault("limit.operator", f"nobody knows what {what} moves and multiplies")
    batch, dims = extents(model, batch)
    grouping = _Grouping(model.graph)
    layers = tuple(_layer(g, dims) for g in grouping.groups)
    weights = {v: None for g in grouping.groups for v in g.weights}
    inputs = [v for v in model.graph.inputs if not v.is_initializer()]
    return Work(
        batch,
        layers,
        sum(_size(v, dims) for v in weights),
        sum(_size(v, dims) for v in inputs),
        sum(_size(v, dims) for v in model.graph.outputs),
    )


class _Grouping:
    """The layers of a graph: which nodes, and what each reads and writes."""

    def __init__(self, graph: ir.Graph) -> None:
        self.groups: list[_Group] = []
        self._fixed: set[ir.Value] = set(graph.initializers.values())
        self._of: dict[ir.Value, int | None] = {}  # by value; None is before every layer
        self._free: set[ir.Value] = set()  # shapes, which nobody loads
        for node in graph:
            self._place(node)
        for own, group in enumerate(self.groups):
            for value in (v for node in group.nodes for v in node.inputs if v is not None):
                self._read(value, own)
        for value in graph.outputs:
            self._give(value)

    def _place(self, node: ir.Node) -> None:
        given = [v for v in node.inputs if v is not None]
        if node.op_type == "Constant" or (given and all(v in self._fixed for v in given)):
            self._fixed.update(node.outputs)
            return
        if is_data(node):
            self._free.update(node.outputs)
            return
        data = [v for v in given if v not in self._fixed and v not in self._free]
        before = [i for i in (self._of.get(v) for v in data) if i is not None]
        own: int | None = max(before, default=None)
        if node.op_type in _ELEMENTWISE:
            prologue = own is None and len(data) == 1
            own = self._begin() if own is None and not prologue else own
        elif node.op_type not in _MOVES and node.op_type != "DequantizeLinear":
            own = self._begin()
        for value in node.outputs:
            self._of[value] = own
        if own is not None and not _elsewhere(node):
            self.groups[own].nodes.append(node)

    def _begin(self) -> int:
        self.groups.append(_Group())
        return len(self.groups) - 1

    def _read(self, value: ir.Value, own: int) -> None:
        """Have a layer load a value, unless it made it itself."""
        if value in self._free:
            return
        source, group = self._stored(value), self.groups[own]
        if source in self._fixed:
            group.weights[source] = None
            return
        node = source.producer()
        if node is None or self._of.get(source) != own:
            group.reads[source] = None
            self._written(source, own)
        elif _elsewhere(node):  # a part of it may be of other layers
            for part in node.inputs[: None if node.op_type == "Concat" else 1]:
                if part is not None:
                    self._read(part, own)

    def _give(self, value: ir.Value) -> None:
        """Have an output of the graph written; what no layer does is a layer of its own."""
        node = value.producer()
        if node is None or _elsewhere(node) or self._of.get(value, -1) is not None:
            self._written(value, None)
        else:
            self.groups.append(_Group([node], {self._stored(value): None}, {value: None}))

    def _stored(self, value: ir.Value) -> ir.Value:
        """The value that is loaded where ``value`` is wanted."""
        node = value.producer()
        while node is not None and node.op_type != "Constant":
            fixed_view = value in self._fixed and node.op_type in _VIEWS
            before = value not in self._fixed and self._of.get(value, -1) is None
            inner = node.op_type == "DequantizeLinear" or fixed_view or before
            data = [v for v in node.inputs if v is not None and v not in self._free]
            if not inner or node.op_type in _MOVES or not data:
                break
            loaded = [v for v in data if v not in self._fixed]
            value = data[0] if not loaded or node.op_type == "DequantizeLinear" else loaded[0]
            node = value.producer()
        return value

    def _written(self, value: ir.Value, reader: int | None) -> None:
        """Have the layer that makes ``value`` write it, through what moves nothing."""
        node = value.producer()
        if node is None or value in self._fixed or value in self._free:
            return
        if _elsewhere(node):
            for part in node.inputs[: None if node.op_type == "Concat" else 1]:
                if part is not None:
                    self._written(self._stored(part), reader)
            return
        own = self._of.get(value)
        if own is not None and own != reader:
            self.groups[own].writes[value] = None


def _elsewhere(node: ir.Node) -> bool:
    """Whether a node is no work of the layer that it follows."""
    return node.op_type in _MOVES or node.op_type == "DequantizeLinear"


def _layer(group: _Group, dims: Dims) -> Layer:
    multiplying = [n for n in group.nodes if n.op_type in _FACTORS]
    first = multiplying[0] if multiplying else group.nodes[0]
    return Layer(
        first.name or first.op_type,
        tuple(n.op_type for n in group.nodes),
        _precision(first),
        sum(_size(v, dims) for v in group.weights),
        sum(_size(v, dims) for v in group.reads),
        sum(_size(v, dims) for v in group.writes),
        sum(2 * _macs(n, dims) for n in multiplying),
        tuple(v.name for n in group.nodes for v in n.outputs if v.name),
    )


def _precision(node: ir.Node) -> str:
    """What a node multiplies in: a type of eight bits only where both factors have it."""
    kinds = [_kind(node.inputs[i]) for i in _FACTORS.get(node.op_type, ())]
    if kinds and kinds[0] in _NARROW and set(kinds) == {kinds[0]}:
        return kinds[0]
    made = node.outputs[0].dtype
    kind = _PRECISIONS.get(made.name, "fp32") if made is not None else "fp32"
    return "fp32" if kind == "fp4" else kind


def _kind(value: ir.Value | None) -> str:
    node = None if value is None else value.producer()
    while node is not None and (is_op(node, "DequantizeLinear") or node.op_type in _VIEWS):
        value = node.inputs[0]
        node = None if value is None else value.producer()
    if value is None or value.dtype is None:
        return ""
    return _PRECISIONS.get(value.dtype.name, "fp32")


def _macs(node: ir.Node, dims: Dims) -> int:
    """Multiply-adds of one node, padding counted as data."""
    left, right = (node.inputs[i] for i in _FACTORS[node.op_type])
    assert left is not None
    assert right is not None
    made, weight = math.prod(dims(node.outputs[0])), dims(right)
    if node.op_type == "ConvTranspose":
        return math.prod(dims(left)) * math.prod(weight[1:])
    if "Conv" in node.op_type:
        return made * math.prod(weight[1:])
    if node.op_type == "Gemm":
        return made * weight[1 if int_attribute(node, "transB", 0) else 0]
    return made * dims(left)[-1]


def _size(value: ir.Value, dims: Dims) -> int:
    """Bytes of a value; of a constant that it holds, as it is held."""
    tensor: Any = value.const_value
    kind = tensor.dtype if tensor is not None else value.dtype
    if kind is None or kind in (ir.DataType.UNDEFINED, ir.DataType.STRING):
        raise DataFault(
            "limit.shape",
            f"{value.name!r} is no tensor of a known type",
            hint="simplify the graph first: vntools simplify",
        )
    shape = tuple(tensor.shape.numpy()) if tensor is not None else dims(value)
    return math.ceil(math.prod(shape) * kind.itemsize)
