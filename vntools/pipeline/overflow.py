"""Which layer of a typed graph it was whose values left the range of its type."""

from __future__ import annotations

__all__ = ["first_overflow", "left_range", "naming_layer"]

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vntools.base.errors import CheckFailed, quoted

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

_BETWEEN = ("Cast", "QuantizeLinear", "DequantizeLinear")


def naming_layer(
    fault: CheckFailed, made: ir.Model, feed: Mapping[str, NDArray[Any]]
) -> CheckFailed:
    """``fault``, with the first layer of ``made`` that is not finite for ``feed``, if any."""
    layer = first_overflow(made, feed)
    if not layer:
        return fault
    said, hint = left_range(layer)
    return CheckFailed(fault.code, f"{fault.message}; {said}", hint=hint)


def left_range(layer: str) -> tuple[str, str]:
    """What to say of a layer that overflows, and what to do about it."""
    return (
        f"{layer} is the first whose values leave the type's range",
        f"keep it in single precision: --fp32-layers {quoted(layer)}",
    )


def first_overflow(made: ir.Model, feed: Mapping[str, NDArray[Any]]) -> str:
    """Name of the first node whose output is not finite; empty where none is.

    Of a conversion it is the layer behind, which is the one that reads that type.
    """
    import numpy as np

    from vntools.export.graph import is_float
    from vntools.precision.floats import ROUNDED, emulated
    from vntools.verify.float32 import run_float32

    seen = emulated(made)
    graph = seen.graph
    shown = {
        v.name: (node.name or "").removesuffix(ROUNDED)
        for node in graph
        for v in node.outputs
        if is_float(v.dtype) and not v.is_graph_output()
    }
    graph.outputs.extend(v for node in graph for v in node.outputs if v.name in shown)
    (outputs,) = run_float32(seen, [feed])
    nodes = {node.name: node for node in made.graph}
    for name, layer in shown.items():
        if not np.isfinite(outputs[name or ""]).all():
            node = nodes.get(layer)
            while node is not None and node.op_type in _BETWEEN:
                node = next((use.node for use in node.outputs[0].uses()), None)
            return "" if node is None else node.name or ""
    return ""
