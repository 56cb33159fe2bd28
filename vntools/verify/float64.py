"""A float64 evaluator of ONNX graphs: the reference that every float32 graph is held against.

Weights are widened one layer at a time and values are freed behind their last reader, so
memory stays near that of the float32 model. What has windows, matrix products, elementwise
arithmetic, old forms of operators, and control flow are done here; the remaining operators run
through ONNX's reference implementation, at the graph's opset and with every float in float64,
or by the function that the standard defines them with. What is drawn at random is drawn from a
seed, the value's name, so that a graph before and after a rewriting draws the same.
"""

from __future__ import annotations

__all__ = ["evaluate", "random_nodes"]

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vntools.base.errors import DataFault
from vntools.export.graph import ONNX_DOMAINS, constant, int_attribute, ints_attribute
from vntools.verify.float64_arithmetic import ARITHMETIC
from vntools.verify.float64_call import Call, Kernel, NotHere, Value, wide
from vntools.verify.float64_forms import FORMS
from vntools.verify.float64_windows import WINDOWS

if TYPE_CHECKING:
    import onnx

_KERNELS: Mapping[str, Kernel] = {**ARITHMETIC, **FORMS, **WINDOWS}
_MOST_TURNS = 1 << 16  # of all loops: those that a network means end far sooner
_RANDOM = frozenset(
    (
        *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"),
        "RandomUniformLike",
    )
)
_INFERENCE_DROPOUT, _DROPOUT_BY_INPUT = 7, 12  # opsets


def evaluate(graph: ir.Graph, feeds: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Outputs of ``graph`` for ``feeds``, all floating-point arithmetic in float64.

    Args:
        graph: a graph without local functions; initializers of any float type.
        feeds: an array for each input that is no initializer.

    Raises:
        DataFault: ``onnx.op``, where an operator is of a foreign domain or unknown to ONNX's
            reference implementation, or does not fit its inputs; ``onnx.control_flow``, where
            a loop does not end; ``onnx.invalid``, where a value is read before it is written.
    """
    run = _Run(graph.opset_imports)
    for value in graph.inputs:
        if value.name is not None and value.name in feeds:
            run.values[value] = wide(feeds[value.name])
    with np.errstate(all="ignore"):  # what is not finite is seen in the outputs
        outputs = run.graph(graph)
    return {v.name or "": a for v, a in zip(graph.outputs, outputs, strict=True)}


def random_nodes(graph: ir.Graph) -> list[str]:
    """Names of the nodes, in subgraphs too, whose results are drawn at random."""
    opset = _opset(graph.opset_imports, "")
    return [n.name or n.op_type for n in graph.all_nodes() if _is_random(n, opset)]


def _is_random(node: ir.Node, opset: int) -> bool:
    if node.domain not in ONNX_DOMAINS or node.op_type != "Dropout":
        return node.domain in ONNX_DOMAINS and node.op_type in _RANDOM
    if opset < _INFERENCE_DROPOUT:
        return not int_attribute(node, "is_test", 0)
    training = node.inputs[2] if len(node.inputs) > 2 else None
    if opset < _DROPOUT_BY_INPUT or training is None:
        return False
    fixed = constant(training)
    return fixed is None or bool(fixed.any())


def _opset(imports: Mapping[str, int], domain: str) -> int:
    if domain in ONNX_DOMAINS:
        return imports.get("", imports.get("ai.onnx", 1))
    return imports.get(domain, 1)


def _subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, its subgraphs included."""
    yield from (v for v in node.inputs if v is not None)
    for inner in _subgraphs(node):
        yield from inner.outputs
        for below in inner:
            yield from _reads(below)


class _Run:
    """Values that have been computed and not yet read by all; of outer graphs and inner."""

    def __init__(self, imports: Mapping[str, int]) -> None:
        self.imports = imports
        self.values: dict[ir.Value, Any] = {}
        self.turns = 0

    def graph(self, graph: ir.Graph) -> list[Any]:
        """Outputs of a graph whose inputs have been given; its values are gone then."""
        left = Counter(v for node in graph for v in _reads(node))
        left.update(graph.outputs)
        mine = set(graph.inputs)
        for node in graph:
            # No name holds the widened weights of a layer while those of the next are made.
            outputs = self._node(node, [v and self._read(v) for v in node.inputs])
            self.values.update(zip(node.outputs, outputs, strict=False))
            mine.update(node.outputs)
            for v in _reads(node):
                left[v] -= 1
                if not left[v] and v in mine:
                    self.values.pop(v, None)
        results = [self._read(v) for v in graph.outputs]
        for v in mine:
            self.values.pop(v, None)
        return results

    def _read(self, value: ir.Value) -> Any:
        if value in self.values:
            return self.values[value]
        if value.const_value is None:
            raise DataFault(
                "onnx.invalid", f"value {value.name!r} is read before it is written"
            )
        return wide(value.const_value.numpy())

    def _node(self, node: ir.Node, inputs: list[Any]) -> Sequence[Any]:
        version = node.version or _opset(self.imports, node.domain)
        ours = node.domain in ONNX_DOMAINS
        try:
            if ours and node.op_type in ("If", "Loop", "Scan"):
                return getattr(self, f"_{node.op_type.lower()}")(node, inputs)
            kernel = _KERNELS.get(node.op_type) if ours else None
            if kernel is not None:
                try:
                    result = kernel(Call(node, inputs, version))
                    return result if isinstance(result, tuple) else (result,)
                except NotHere:
                    pass
            return self._by_reference(node, inputs, version)
        except DataFault:
            raise
        except Exception as e:
            what = f"{node.op_type} {node.name!r}"
            why = f"{type(e).__name__}: {e}"
            raise DataFault("onnx.op", f"{what} cannot be evaluated: {why}") from e

    def _by_reference(self, node: ir.Node, inputs: list[Any], version: int) -> Sequence[Any]:
        """Through ONNX's reference implementation, or by the function that defines it."""
        from onnx.reference import ReferenceEvaluator

        proto = ir.serde.serialize_node(node)
        feeds = {name: a for name, a in zip(proto.input, inputs, strict=True) if name}
        imports = {**self.imports, node.domain: version}
        try:
            found = ReferenceEvaluator(_model_of(proto, feeds, imports)).run(None, feeds)
        except Exception:
            body = _definition(proto, inputs, version)
            if body is None:
                raise
            return self._call(body, inputs)
        return [wide(a) for a in found]

    def _call(self, body: onnx.FunctionProto, inputs: list[Any]) -> list[Any]:
        function = ir.serde.deserialize_function(body)
        inner = _Run({o.domain: o.version for o in body.opset_import})
        inner.values.update(
            (v, a) for v, a in zip(function.inputs, inputs, strict=False) if a is not None
        )
        return inner.graph(function.graph)

    def _if(self, node: ir.Node, inputs: list[Any]) -> list[Any]:
        branch = "then_branch" if np.all(inputs[0]) else "else_branch"
        return self.graph(node.attributes[branch].as_graph())

    def _loop(self, node: ir.Node, inputs: list[Any]) -> list[Any]:
        """Loop-11: trip count and condition (either may be absent), then what it carries."""
        body = node.attributes["body"].as_graph()
        most = _MOST_TURNS + 1 if inputs[0] is None else int(np.asarray(inputs[0]).item())
        going = inputs[1] is None or bool(np.all(inputs[1]))
        carried, turn = inputs[2:], 0
        stacks: list[list[Any]] = [[] for _ in body.outputs[1 + len(carried) :]]
        while going and turn < most:
            if self.turns == _MOST_TURNS:
                why = f"Loop {node.name!r} takes over {_MOST_TURNS} turns"
                raise DataFault("onnx.control_flow", why)
            self.turns += 1
            given = (np.int64(turn), np.bool_(going), *carried)
            self.values.update(zip(body.inputs, map(_held, given), strict=True))
            again, *rest = self.graph(body)
            going, carried = bool(np.all(again)), rest[: len(carried)]
            for stack, one in zip(stacks, rest[len(carried) :], strict=True):
                stack.append(one)
            turn += 1
        ends = body.outputs[1 + len(carried) :]
        return [*carried, *(_stacked(s, v) for s, v in zip(stacks, ends, strict=True))]

    def _scan(self, node: ir.Node, inputs: list[Any]) -> list[Any]:
        """Scan-9: over slices of its last inputs, along any axes and in either direction."""
        if _opset(self.imports, "") < 9:
            raise DataFault("onnx.op", f"Scan {node.name!r} is older than opset 9")
        body = node.attributes["body"].as_graph()
        count = int_attribute(node, "num_scan_inputs", 1)
        carried, scanned = inputs[:-count], inputs[-count:]
        ends = body.outputs[len(carried) :]
        axes = ints_attribute(node, "scan_input_axes") or (0,) * count
        back = ints_attribute(node, "scan_input_directions") or (0,) * count
        slices = [
            np.moveaxis(x, axis, 0)[:: -1 if b else 1]
            for x, axis, b in zip(scanned, axes, back, strict=True)
        ]
        stacks: list[list[Any]] = [[] for _ in ends]
        for parts in zip(*slices, strict=True):
            self.values.update(zip(body.inputs, (*carried, *parts), strict=True))
            rest = self.graph(body)
            carried = rest[: len(carried)]
            for stack, one in zip(stacks, rest[len(carried) :], strict=True):
                stack.append(one)
        axes = ints_attribute(node, "scan_output_axes") or (0,) * len(ends)
        back = ints_attribute(node, "scan_output_directions") or (0,) * len(ends)
        found = [
            np.moveaxis(_stacked(s[:: -1 if b else 1], v), 0, axis)
            for s, v, axis, b in zip(stacks, ends, axes, back, strict=True)
        ]
        return [*carried, *found]


def _held(value: Any) -> Any:
    return np.asarray(value) if isinstance(value, np.generic) else value


def _stacked(parts: Sequence[Any], value: ir.Value) -> Value:
    """What a body's output was in every turn, along a new first axis."""
    if parts:
        return np.stack(parts)
    dims = () if value.shape is None else tuple(value.shape)
    kind = np.float64 if value.dtype is None else value.dtype.numpy()
    return wide(np.zeros((0, *(d if isinstance(d, int) else 0 for d in dims)), kind))


def _model_of(
    proto: onnx.NodeProto, names: Iterable[str], imports: Mapping[str, int]
) -> onnx.ModelProto:
    """A node as a model of its own: only so does the reference heed its opset."""
    import onnx

    made = onnx.helper.make_graph(
        [proto],
        "node",
        [onnx.ValueInfoProto(name=name) for name in names],
        [onnx.ValueInfoProto(name=name) for name in proto.output if name],
    )
    opsets = [onnx.helper.make_opsetid(d, v) for d, v in imports.items()]
    return onnx.helper.make_model(made, opset_imports=opsets)


def _definition(
    proto: onnx.NodeProto, inputs: list[Any], version: int
) -> onnx.FunctionProto | None:
    """The function that the standard defines an operator with, its attributes filled in."""
    import onnx

    try:
        schema: Any = onnx.defs.get_schema(proto.op_type, version, proto.domain)
    except onnx.defs.SchemaError:
        return None
    if schema.has_context_dependent_function:
        # An input that is left out has an empty type.
        types = [b"" if a is None else _type_of(a) for a in inputs]
        data = schema.get_context_dependent_function(proto.SerializeToString(), types)
        body = onnx.FunctionProto.FromString(data)
    elif schema.has_function:
        body = onnx.FunctionProto()
        body.CopyFrom(schema.function_body)
    else:
        return None
    if not body.opset_import:
        body.opset_import.add(domain="", version=version)
    given = {a.name: a for a in proto.attribute}
    for name, attribute in schema.attributes.items():
        if attribute.default_value.name:
            given.setdefault(name, attribute.default_value)
    for node in body.node:
        for attribute in list(node.attribute):
            if wanted := attribute.ref_attr_name:
                name = attribute.name
                node.attribute.remove(attribute)
                if wanted in given:
                    node.attribute.add().CopyFrom(given[wanted])
                    node.attribute[-1].name = name
    return body


def _type_of(array: Any) -> bytes:
    import onnx

    a = np.asarray(array)
    kind = onnx.helper.np_dtype_to_tensor_dtype(a.dtype)
    return onnx.helper.make_tensor_type_proto(kind, a.shape).SerializeToString()
