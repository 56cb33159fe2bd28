"""Global average pooling over a map of fixed size, as the pooling that it is."""

from __future__ import annotations

__all__ = ["fix_pools"]

import onnx_ir as ir

from vntools.export.graph import is_op


def fix_pools(graph: ir.Graph) -> None:
    """Make an AveragePool of every GlobalAveragePool whose map has a fixed size, in place.

    The two are equal; of the first TensorRT-RTX (1.7.1) makes one kernel of its library, of
    the second a transposition and a mean that it generates.

    Source: ONNX operators AveragePool and GlobalAveragePool.
    """
    for node in graph:
        value = node.inputs[0] if is_op(node, "GlobalAveragePool") else None
        if value is None or value.shape is None:
            continue
        size = [d for d in tuple(value.shape)[2:] if isinstance(d, int)]
        if size and len(size) == len(value.shape) - 2:
            node.op_type = "AveragePool"
            node.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", size)
