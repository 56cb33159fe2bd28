"""A tensor that is split into a sequence to be taken apart again is split at once."""

from __future__ import annotations

__all__ = ["SplitSequence"]

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from vntools.export.graph import (
    add_initializer,
    constant,
    int_attribute,
    is_op,
    remove_dead,
    unique_name,
)
from vntools.export.rewrite import GraphPass, Record, Rewrite, take_over
from vntools.export.shapes import infer_shapes

_IR_VERSION = 10  # of the model that shapes are inferred for


@dataclass(frozen=True)
class SplitSequence(GraphPass):
    """Given:  s = SplitToSequence(x, sizes), y_i = SequenceAt(s, i)
    Result: y_0, y_1, .. = Split(x, sizes)

    So PyTorch's exporter writes a split, and no shape is inferred behind it.
    Needs: constant sizes, or one size for all parts of an axis of known extent; every reader
    of s a SequenceAt with a constant index; opset 13, before which Split took its sizes as an
    attribute.
    Source: ONNX SplitToSequence-11, SequenceAt-11, Split-13.
    """

    name: ClassVar[str] = "split-sequence"

    def rewrite(self, graph: ir.Graph) -> Iterator[Record]:
        """Replace every such split."""
        if graph.opset_imports.get("", 0) < 13:
            return
        found = [n for n in graph if is_op(n, "SplitToSequence") and len(n.inputs) > 1]
        done = [r for r in (self._split(graph, node) for node in found) if r is not None]
        if done:
            infer_shapes(ir.Model(graph, ir_version=_IR_VERSION))
        yield from done

    def _split(self, graph: ir.Graph, node: ir.Node) -> Rewrite | None:
        sizes, parts = _sizes(node), node.outputs[0]
        if sizes is None or parts.is_graph_output():
            return None
        readers: list[tuple[ir.Node, int]] = []
        for use in parts.uses():
            at = constant(use.node.inputs[1]) if is_op(use.node, "SequenceAt") else None
            if at is None or use.node.graph is not graph:
                return None
            if not -len(sizes) <= int(at.reshape(-1)[0]) < len(sizes):
                return None
            readers.append((use.node, int(at.reshape(-1)[0]) % len(sizes)))
        axis = int_attribute(node, "axis", 0)
        name = unique_name(graph, f"{parts.name}.sizes")
        given = add_initializer(graph, name, np.array(sizes, np.int64))
        new = ir.Node(
            "",
            "Split",
            [node.inputs[0], given],
            [ir.AttrInt64("axis", axis)],
            num_outputs=len(sizes),
            name=node.name,
        )
        graph.insert_before(node, new)
        source = node.inputs[0]
        for i, value in enumerate(new.outputs):
            value.name = f"{parts.name}.{i}"
            value.type = source.type if source is not None else None
            if source is not None and source.shape is not None:
                dims = list(source.shape)
                dims[axis] = sizes[i]
                value.shape = ir.Shape(dims)
        names = [node.name or ""]
        for reader, i in readers:
            old, names = reader.outputs[0], [*names, reader.name or ""]
            if old.is_graph_output():
                take_over(new.outputs[i], old)
            else:
                old.replace_all_uses_with(new.outputs[i])
        for reader, _ in readers:
            remove_dead(graph, reader.outputs[0])
        return Rewrite(self.name, tuple(names), node.name or "")


def _sizes(node: ir.Node) -> list[int] | None:
    """The extents of the parts."""
    given, source = constant(node.inputs[1]), node.inputs[0]
    if given is None or given.ndim == 1:
        return None if given is None else [int(n) for n in given]
    axis = int_attribute(node, "axis", 0)
    shape = None if source is None else source.shape
    whole = shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None
    if not isinstance(whole, int) or int(given) < 1:
        return None
    return [min(int(given), whole - begin) for begin in range(0, whole, int(given))]
