"""A float32 run of an ONNX graph in ONNX Runtime, to be held against float64."""

from __future__ import annotations

__all__ = ["run_float32", "stream_float32"]

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vntools.base.errors import InternalFault
from vntools.export.graph import without_weights

if TYPE_CHECKING:
    import onnx

Arrays = Mapping[str, NDArray[Any]]

_LARGEST_PART = 4096
"""Nodes: the time to open a graph grows with the square of its initializers."""

_MOSTLY_WEIGHTS = 1 << 26  # bytes


def run_float32(
    model: ir.Model | bytes, feeds: Sequence[Arrays]
) -> list[dict[str, NDArray[Any]]]:
    """Outputs of ``model`` for each of ``feeds``.

    A model in memory lends its weights as inputs, so they are not copied; of bytes, those very
    bytes are run.

    Raises:
        InternalFault: ``verify.run``: ONNX Runtime cannot run it.
    """
    import onnxruntime as ort

    options = _options()
    lent: dict[str, NDArray[Any]] = {}
    if isinstance(model, bytes):
        names, parts = _parts_of_file(model)
    else:
        names = [v.name or "" for v in model.graph.outputs]
        # Nothing to fold without the weights, and the search takes long on a large graph.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        light, held = without_weights(model)
        parts = (p.SerializeToString() for p in _parts(ir.serde.serialize_model(light)))
        lent = {name: tensor.numpy() for name, tensor in held.items()}
    known: list[dict[str, Any]] = [{**lent, **feed} for feed in feeds]
    try:
        for part in parts:
            session = ort.InferenceSession(part, options, providers=["CPUExecutionProvider"])
            made = [o.name for o in session.get_outputs()]
            names = names or made
            used = [i.name for i in session.get_inputs()]
            for values in known:
                given = {k: values[k] for k in used if k in values}
                values.update(zip(made, session.run(made, given), strict=True))
    except Exception as e:
        raise _failed(e) from e
    return [{name: _arrays(values[name]) for name in names} for values in known]


def stream_float32(model: ir.Model, feeds: Iterable[Arrays]) -> Iterator[dict[str, Any]]:
    """As :func:`run_float32`, one after another, in one session, for as many as there are."""
    import onnxruntime as ort

    options = _options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    light, held = without_weights(model)
    lent = {name: tensor.numpy() for name, tensor in held.items()}
    names = [v.name or "" for v in model.graph.outputs]
    data = ir.serde.serialize_model(light).SerializeToString()
    try:
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as e:
        raise _failed(e) from e
    used = {i.name for i in session.get_inputs()}
    lent = {k: v for k, v in lent.items() if k in used}
    for feed in feeds:
        try:
            run = session.run(names, {**lent, **feed})
        except Exception as e:
            raise _failed(e) from e
        yield dict(zip(names, map(_arrays, run), strict=True))


def _options() -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4  # what fails is raised
    options.enable_cpu_mem_arena = False
    # Other work goes on beside this run; its threads must not spin while they wait.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _failed(error: Exception) -> InternalFault:
    why = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return InternalFault("verify.run", f"ONNX Runtime failed: {why}")


def _arrays(value: Any) -> Any:
    """An output as an array, or as the list of them that a sequence is."""
    return list(map(np.asarray, value)) if isinstance(value, list) else np.asarray(value)


def _parts_of_file(data: bytes) -> tuple[list[str], Iterable[bytes]]:
    """As :func:`_parts`, and names of outputs; a file that is mostly weights stays whole."""
    import onnx

    if len(data) <= _MOSTLY_WEIGHTS:
        model = onnx.ModelProto.FromString(data)
        if len(model.graph.node) > _LARGEST_PART:
            parts = (part.SerializeToString() for part in _parts(model))
            return [v.name for v in model.graph.output], parts
    return [], [data]


def _parts(model: onnx.ModelProto) -> Iterator[onnx.ModelProto]:
    """``model`` cut into graphs that run one after another."""
    import onnx

    graph = model.graph
    nodes = list(graph.node)
    if len(nodes) <= _LARGEST_PART:
        yield model
        return
    chunks = [nodes[i : i + _LARGEST_PART] for i in range(0, len(nodes), _LARGEST_PART)]
    infos = {v.name: v for v in (*graph.input, *graph.value_info, *graph.output)}
    weights = {t.name: t for t in graph.initializer}
    free = {v.name for v in graph.input}
    made = [{name for node in chunk for name in node.output} for chunk in chunks]
    last = {v.name for v in graph.output}
    later = [last]
    for chunk in reversed(chunks[1:]):
        later.append(later[-1] | set(_read(chunk)))
    made[-1] |= last.difference(*made)  # inputs and weights that are outputs
    for chunk, own in zip(chunks, made, strict=True):
        outputs = sorted(own & later.pop())
        given = free | weights.keys()
        read = dict.fromkeys((*_read(chunk), *(n for n in outputs if n in given)))
        part = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
        part.graph.name = graph.name
        part.graph.node.extend(chunk)
        part.graph.initializer.extend(weights[n] for n in read if n in weights)
        outer = (n for n in read if n in free or not (n in own or n in weights))
        part.graph.input.extend(infos[n] for n in outer)
        part.graph.output.extend(infos[n] for n in outputs)
        yield part


def _read(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    """Names that nodes read, or that their subgraphs read and do not make."""
    for node in nodes:
        yield from filter(None, node.input)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                made = {v.name for v in (*inner.input, *inner.initializer)}
                made.update(name for n in inner.node for name in n.output)
                yield from (n for n in _read(inner.node) if n not in made)
                yield from (v.name for v in inner.output if v.name not in made)
