"""An activation that deep training has faded to the identity goes."""

from __future__ import annotations

__all__ = ["DropUnitLeakyRelu"]

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from vntools.export.graph import is_op
from vntools.export.rewrite import GraphPass, Record, Rewrite, Skip, take_over


@dataclass(frozen=True)
class DropUnitLeakyRelu(GraphPass):
    """Given:  y = LeakyRelu(x) with alpha = 1        Result: y = x

    The fading activation A'(x) = (1 - lambda) relu(x) + lambda x is a leaky ReLU of slope
    lambda; at lambda = 1 it is the identity.
    Needs: alpha exactly 1 (an absent alpha means 0.01); x and y not both at the graph's
    border.
    Source: Eq. 1 of the VanillaNet paper; ONNX LeakyRelu-16.
    """

    name: ClassVar[str] = "drop-unit-leaky-relu"

    def rewrite(self, graph: ir.Graph) -> Iterator[Record]:
        """Drop every LeakyRelu whose slope is exactly 1."""
        for node in list(graph):
            if not is_op(node, "LeakyRelu"):
                continue
            alpha = node.attributes["alpha"].as_float() if "alpha" in node.attributes else 0.01
            x, y = node.inputs[0], node.outputs[0]
            if alpha != 1.0:
                yield Skip(self.name, node.name or "", f"its slope is {alpha:g}, not 1")
            elif x is None or (
                y.is_graph_output() and (x.is_graph_output() or not x.producer())
            ):
                yield Skip(
                    self.name, node.name or "", "it stands between the graph's own names"
                )
            else:
                names = (node.name or "",)
                if y.is_graph_output():
                    take_over(x, y)
                else:
                    y.replace_all_uses_with(x)
                graph.remove(node, safe=True)
                yield Rewrite(self.name, names, "")
