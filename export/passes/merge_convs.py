"""Two convolutions with nothing between become one."""

from __future__ import annotations

__all__ = ["MergeConvs"]

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from vntools.export.affine import (
    AffineConv,
    Refused,
    apply,
    channels_of,
    compose,
    macs,
    output_size,
    parameters_of,
    plan_compose,
)
from vntools.export.graph import (
    convolution,
    is_op,
    only_consumer,
    parameters,
    remove_dead,
    spatial_size,
)
from vntools.export.rewrite import (
    GraphPass,
    Record,
    Rewrite,
    Skip,
    exact,
    materialize,
    probe_error,
    probed_channels,
    set_convolution,
)

# Where height and width are dynamic, the cost is compared at this extent (pixels along each
# axis): far larger than any kernel, so that borders do not decide.
_NOMINAL_EXTENT = 224


@dataclass(frozen=True)
class MergeConvs(GraphPass):
    """Given:  y = Conv(Conv(x, W1, b1), W2, b2)     Result: y = Conv(x, W, b)

    W, b and the conditions are those of :func:`vntools.export.affine.compose`. Needs besides:
    the inner result is read once, by the outer Conv, and is no graph output; weights are
    constant; the merged convolution needs no more multiply-accumulates than the two (equal
    ones: no more weights).
    Source: Eq. 4 of the VanillaNet paper, in general form; ONNX Conv-11.
    """

    name: ClassVar[str] = "merge-convs"
    after: ClassVar[tuple[str, ...]] = ("drop-unit-leaky-relu", "fold-batchnorm")

    def rewrite(self, graph: ir.Graph) -> Iterator[Record]:
        """Merge from the input on, so that a chain of any length ends as one convolution."""
        for outer in list(graph):
            source = outer.inputs[0] if is_op(outer, "Conv") else None
            inner = source.producer() if source is not None else None
            if source is None or inner is None or not is_op(inner, "Conv"):
                continue
            try:
                if only_consumer(source) is not outer:
                    raise Refused(
                        "the first convolution's result is read elsewhere too, or is a graph "
                        "output"
                    )
                yield self._merge(graph, outer, inner)
            except Refused as e:
                yield Skip(self.name, outer.name or "", str(e))

    def _merge(self, graph: ir.Graph, outer: ir.Node, inner: ir.Node) -> Rewrite:
        cost = _judge(outer, inner)
        make_inner, make_outer = exact(inner), exact(outer)
        first, second = make_inner(), make_outer()
        new = compose(second, first)
        name = outer.name or ""
        rows = probed_channels(second, name)
        part = channels_of(second, rows)
        error = probe_error(
            lambda x: apply(part, apply(first, x)), channels_of(new, rows), name=name
        )
        outer.replace_input_with(0, inner.inputs[0])
        set_convolution(outer, lambda: compose(make_outer(), make_inner()), new)
        materialize(outer, new)
        constants = tuple(inner.inputs[1:])
        graph.remove(inner, safe=True)
        for value in constants:
            remove_dead(graph, value)
        return Rewrite(self.name, (inner.name or "", name), name, *cost, error)


def _judge(outer: ir.Node, inner: ir.Node) -> tuple[int, int, int | None, int | None]:
    """Parameters and MACs before and after an exact merge that is no dearer, by shapes."""
    first, second = convolution(inner, weights=False), convolution(outer, weights=False)
    plan = plan_compose(second, first)
    shape = (second.out_channels, first.in_channels // plan.groups, *plan.kernel)
    merged = AffineConv(
        np.broadcast_to(np.float64(0), shape),
        second.bias,
        plan.strides,
        plan.pads,
        plan.dilations,
        plan.groups,
    )
    size = spatial_size(inner.inputs[0], first.axes)
    extent = size or (_NOMINAL_EXTENT,) * first.axes
    before = macs(first, *extent) + macs(second, *output_size(first, extent))
    after = macs(merged, *extent)
    counts = parameters(inner) + parameters(outer), parameters_of(merged)
    if (after, counts[1]) > (before, counts[0]):
        raise Refused(
            f"one convolution would cost {after} multiply-accumulates and {counts[1]} "
            f"parameters, the two cost {before} and {counts[0]}"
        )
    return (*counts, before if size else None, after if size else None)
