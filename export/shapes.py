"""Types and shapes of the values of a graph, as far as libraries can infer them."""

from __future__ import annotations

__all__ = ["infer_shapes"]

import contextlib
import logging
from collections.abc import Generator, Iterator
from functools import partial
from typing import TYPE_CHECKING

import onnx_ir as ir

from vntools.export.graph import without_weights

if TYPE_CHECKING:
    import onnx


def infer_shapes(model: ir.Model) -> str:
    """Fill in types and shapes, in subgraphs too; what is known already stays.

    By ONNX's own inference; where that leaves something open (a Reshape to a computed shape),
    by ONNX Runtime's symbolic one, which knows fewer operators and more arithmetic.

    Returns:
        What the checker says of types or shapes that contradict; empty if none do.
    """
    import onnx

    light, _ = without_weights(model)
    proto = ir.serde.serialize_model(light)
    contradiction = ""
    infer = partial(onnx.shape_inference.infer_shapes, proto, data_prop=True)
    try:
        proto = infer(check_type=True, strict_mode=True)
    except _failures() as e:
        contradiction = " ".join(str(e).split())[:200] or "shape inference failed"
        with contextlib.suppress(*_failures()):
            proto = infer()
    _fill(model.graph, proto.graph)
    if any(_open(value) for node in model.graph for value in node.outputs):
        symbolic = _symbolic(proto)
        if symbolic is not None:
            _fill(model.graph, symbolic.graph)
    return contradiction


def _failures() -> tuple[type[Exception], ...]:
    """What ONNX's inference raises; ValueError for a type that is in no tensor."""
    import onnx

    return onnx.shape_inference.InferenceError, ValueError, RuntimeError


def _open(value: ir.Value) -> bool:
    """Whether an extent of a value is neither known nor named; outputs stay as they are."""
    if value.shape is None:
        return True
    return not value.is_graph_output() and any(_unknown(d) for d in value.shape)


def _unknown(extent: int | ir.SymbolicDim) -> bool:
    """Whether an extent has no name but one that ONNX's inference makes up."""
    if isinstance(extent, int):
        return False
    return extent.value is None or extent.value.startswith("unk__")


def _symbolic(proto: onnx.ModelProto) -> onnx.ModelProto | None:
    """What ONNX Runtime's symbolic inference finds, where that is all.

    Its own ``infer_shapes`` would write a part of it to a file in the working directory.
    """
    try:
        from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

        class Inference(SymbolicShapeInference):
            def inferred(self, model: onnx.ModelProto) -> onnx.ModelProto | None:
                whole = False
                self._preprocess(model)
                while self.run_:
                    whole = self._infer_impl()
                self._update_output_from_vi()
                return self.out_mp_ if whole else None

        with _quiet():
            return Inference(2**31 - 1, True, False, 0).inferred(proto)
    except Exception:  # noqa: BLE001 - whatever it trips over: shapes only help
        return None


@contextlib.contextmanager
def _quiet() -> Generator[None, None, None]:
    """Without the warnings of a tool that is asked for as much as it can tell."""
    logger = logging.getLogger("onnxruntime.tools.symbolic_shape_infer")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _fill(graph: ir.Graph, inferred: onnx.GraphProto) -> None:
    known = {v.name: v for part in _parts(inferred) for v in part.value_info}
    for node in graph.all_nodes():
        for value in node.outputs:
            if value.name not in known or not (value.type is None or _open(value)):
                continue
            info = ir.serde.deserialize_value_info_proto(known[value.name], None)
            value.type = value.type or info.type
            if value.shape is None:
                value.shape = info.shape
            elif info.shape is not None and len(info.shape) == len(value.shape):
                value.shape = ir.Shape(
                    new if _unknown(old) else old
                    for old, new in zip(value.shape, info.shape, strict=True)
                )


def _parts(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph, and all graphs within it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for part in (attribute.g, *attribute.graphs):
                if part.node:
                    yield from _parts(part)
