"""Names for nodes and tensors; those of an exported network are the same from either form."""

from __future__ import annotations

__all__ = ["name_nodes", "rename", "rename_initializer"]

from collections import Counter
from collections.abc import Callable

import onnx_ir as ir


def name_nodes(graph: ir.Graph) -> None:
    """Name what has no name, somebody else's or one that no terminal should be given.

    Messages, logs and kernels go by names.
    """
    taken: set[str] = set()
    given = {node.name for node in graph}
    for i, node in enumerate(graph):
        if not node.name or not node.name.isprintable() or node.name in taken:
            node.name = f"{node.op_type}_{i}"
            while node.name in given:
                node.name += "_"
        taken.add(node.name)


def rename(graph: ir.Graph, layer: Callable[[str], str]) -> None:
    """Name convolutions after their layer, other nodes by type, tensors by their first node.

    Args:
        graph: its inputs and outputs keep their names.
        layer: from the module that a convolution's weight had in the training form to the name
            its layer is to have.
    """
    numbers: Counter[str] = Counter()
    moved: set[ir.Value] = set()
    layers: set[str] = set()  # two of equal weights may share them
    for node in graph:
        weight = node.inputs[1] if node.op_type == "Conv" else None
        own = ""
        if weight is not None and weight.is_initializer() and weight.name:
            own = layer(weight.name.removesuffix(".weight"))
        if own and own not in layers:
            layers.add(own)
            node.name = own
            for value, part in zip(node.inputs[1:], ("weight", "bias"), strict=False):
                if value is not None and value.is_initializer() and len(value.uses()) == 1:
                    rename_initializer(graph, value, f"{node.name}.{part}")
        else:
            node.name = f"{node.op_type.lower()}_{numbers[node.op_type]}"
            numbers[node.op_type] += 1
            for i, value in enumerate(node.inputs):
                if value is not None and value.is_initializer() and value not in moved:
                    rename_initializer(graph, value, f"{node.name}.input{i}")
                    moved.add(value)
        for value in node.outputs:
            if not value.is_graph_output():
                value.name = f"{node.name}.out"


def rename_initializer(graph: ir.Graph, value: ir.Value, name: str) -> None:
    """Rename an initializer, unless another one has the name."""
    if name in graph.initializers or value.name is None:
        return
    del graph.initializers[value.name]
    value.name = name
    if value.const_value is not None:
        value.const_value.name = name
    graph.register_initializer(value)
