"""A reshape that only flattens becomes Flatten, without the shape arithmetic behind it."""

from __future__ import annotations

__all__ = ["WriteFlatten"]

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from vntools.export.graph import int_attribute, is_op, remove_dead, symbolic_vector
from vntools.export.rewrite import GraphPass, Record, Rewrite, take_over


@dataclass(frozen=True)
class WriteFlatten(GraphPass):
    """Given:  y = Reshape(x, [batch, c d_1 .. d_k])   Result: y = Flatten(x, axis=1)
    x (batch, c, d_1 .. d_k); the first entry may be computed by Shape, Gather, Concat and the
    like.

    Needs: the shape's first entry is x's own first dimension (by number or by symbol, or 0,
    which copies it), the other one -1 or the product of the rest; or the first entry is -1,
    the other that product.
    Source: ONNX Reshape-14, Flatten-13.
    """

    name: ClassVar[str] = "flatten"

    def rewrite(self, graph: ir.Graph) -> Iterator[Record]:
        """Replace every such Reshape, and what only computed its shape."""
        for node in list(graph):
            # Before opset 5 the shape was an attribute.
            x = node.inputs[0] if is_op(node, "Reshape") and len(node.inputs) > 1 else None
            if x is None or x.shape is None or not _flattens(node, x):
                continue
            new = ir.Node("", "Flatten", [x], [ir.AttrInt64("axis", 1)], name=node.name)
            graph.insert_before(node, new)
            shape = node.inputs[1]
            take_over(new.outputs[0], node.outputs[0])
            graph.remove(node, safe=True)
            remove_dead(graph, shape)
            yield Rewrite(self.name, (node.name or "",), new.name or "")


def _flattens(node: ir.Node, x: ir.Value) -> bool:
    target = symbolic_vector(node.inputs[1])
    assert x.shape is not None
    dims = [d if isinstance(d, int) else d.value for d in x.shape]
    rest = dims[1:]
    if target is None or len(target) != 2 or len(dims) < 2:
        return False
    if not all(isinstance(d, int) and d > 0 for d in rest):
        return False
    size = math.prod(d for d in rest if isinstance(d, int))
    first, second = target
    if first == -1:
        return second == size
    copied = first == 0 and not int_attribute(node, "allowzero", 0)
    return (copied or (first != 0 and first == dims[0])) and second in (-1, size)
