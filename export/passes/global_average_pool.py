"""A mean over all spatial axes is written as the pooling that it is."""

from __future__ import annotations

__all__ = ["GlobalAveragePool"]

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from vntools.export.graph import constant, int_attribute, ints_attribute, is_op, remove_dead
from vntools.export.rewrite import GraphPass, Record, Rewrite, take_over

_MOST_AXES = 5  # no runtime pools over more than three spatial ones
_POOLED = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16)


@dataclass(frozen=True)
class GlobalAveragePool(GraphPass):
    """Given:  y = ReduceMean(x) over all axes from the third on, keepdims=1
    Result: y = GlobalAveragePool(x);  x (n, c, d_1 .. d_k)

    Needs: constant axes, the rank of x known and at most 5, its type a float (ReduceMean takes
    integers too).
    Source: ONNX ReduceMean-18 (axes as an input) and -13 (as an attribute),
    GlobalAveragePool-1.
    """

    name: ClassVar[str] = "global-average-pool"

    def rewrite(self, graph: ir.Graph) -> Iterator[Record]:
        """Rename every such ReduceMean."""
        for node in list(graph):
            if not is_op(node, "ReduceMean") or not int_attribute(node, "keepdims", 1):
                continue
            x = node.inputs[0]
            rank = len(x.shape) if x is not None and x.shape is not None else 0
            axes = _axes(node)
            if (
                x is None
                or not 3 <= rank <= _MOST_AXES
                or axes is None
                or x.dtype not in _POOLED
            ):
                continue
            if sorted(a % rank for a in axes) != list(range(2, rank)):
                continue
            new = ir.Node("", "GlobalAveragePool", [x], name=node.name)
            graph.insert_before(node, new)
            take_over(new.outputs[0], node.outputs[0])
            inputs = tuple(node.inputs[1:])
            graph.remove(node, safe=True)
            for value in inputs:
                remove_dead(graph, value)
            yield Rewrite(self.name, (node.name or "",), new.name or "")


def _axes(node: ir.Node) -> tuple[int, ...] | None:
    given = ints_attribute(node, "axes")
    if given is not None or len(node.inputs) < 2:
        return given
    array = constant(node.inputs[1])
    return None if array is None else tuple(int(a) for a in array.reshape(-1))
