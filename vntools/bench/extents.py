"""The shapes of a graph's values at a batch."""

from __future__ import annotations

__all__ = ["Dims", "extents"]

from collections.abc import Callable

import onnx_ir as ir

from vntools.base.errors import DataFault, UsageFault
from vntools.export.graph import without_weights
from vntools.export.shapes import infer_shapes

Dims = Callable[[ir.Value], tuple[int, ...]]
"""The shape of a value."""


def extents(model: ir.Model, batch: int | None) -> tuple[int, Dims]:
    """The batch that a graph runs at, and the shapes that all values then have.

    Args:
        model: left as it is.
        batch: of a graph whose batch is dynamic; None is the graph's own, or 1.

    Raises:
        UsageFault: ``bench.batch``: the graph has another, fixed batch.
        DataFault: ``limit.shape``: an input's size depends on more than the batch; or, when
            its shape is asked for, a value's is not known.
    """
    light, held = without_weights(model)
    inputs = [v for v in light.graph.inputs if v.name not in held]
    batch = _fix_inputs(inputs, batch)
    light.graph.outputs.clear()  # what is an output keeps the shape that it declares
    for node in light.graph:
        for value in node.outputs:
            if value.shape is not None and not value.shape.is_static():
                value.shape = None
    infer_shapes(light)
    known = {v.name: v.shape for n in light.graph for v in n.outputs}
    known |= {
        v.name: v.shape for v in (*light.graph.inputs, *light.graph.initializers.values())
    }

    def dims(value: ir.Value) -> tuple[int, ...]:
        shape = known.get(value.name)
        if shape is None or not shape.is_static():
            raise DataFault(
                "limit.shape",
                f"the shape of {value.name!r} is {'unknown' if shape is None else shape}",
                hint="simplify the graph first: vntools simplify",
            )
        return tuple(shape.numpy())

    return batch, dims


def _fix_inputs(inputs: list[ir.Value], batch: int | None) -> int:
    """Give the inputs their batch.

    Raises:
        UsageFault: ``bench.batch``.
        DataFault: ``limit.shape``.
    """
    shapes = {v.name: tuple(v.shape) if v.shape is not None else () for v in inputs}
    leading = [s[0] for s in shapes.values() if s]
    named = {d.value for d in leading if not isinstance(d, int)}
    own = next((d for d in leading if isinstance(d, int)), 1)
    if batch is not None and not named and leading and batch != own:
        raise UsageFault("bench.batch", f"the graph is fixed at batch {own}, not {batch}")
    taken = batch or (1 if named else own)
    for value in inputs:
        shape = shapes[value.name]
        extents = [
            d if isinstance(d, int) else taken if at == 0 or d.value in named - {None} else d
            for at, d in enumerate(shape)
        ]
        if value.shape is None or not all(isinstance(d, int) for d in extents):
            raise DataFault(
                "limit.shape",
                f"input {value.name!r} is of any size: {value.shape}",
                hint="export the network with fixed sizes",
            )
        value.shape = ir.Shape(extents)
    return taken
