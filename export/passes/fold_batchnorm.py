"""BatchNormalization behind a convolution becomes part of it."""

from __future__ import annotations

__all__ = ["FoldBatchNorm"]

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from vntools.export.affine import Array, Refused, apply, macs, scale_channels
from vntools.export.graph import (
    convolution,
    int_attribute,
    is_op,
    only_consumer,
    operands,
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
    probe_error,
    probed_channels,
    set_convolution,
    take_over,
)


@dataclass(frozen=True)
class FoldBatchNorm(GraphPass):
    """Given:  y = BatchNormalization(Conv(x, W, b), gamma, beta, mean, var)
    Result: y = Conv(x, W', b'),  W'[o] = s[o] W[o],  b' = (b - mean) s + beta,
    s = gamma / sqrt(var + eps);  W (o, i/g, ..), the rest (o,)

    Needs: training_mode=0 and one output (until opset 14, more meant training); the
    convolution's result read once, by the BatchNormalization, and no graph output; all
    constants really constant; var + eps > 0. Source: Eq. 2 of the VanillaNet paper; Ioffe &
    Szegedy 2015, sec. 3.1; ONNX BatchNormalization-15.
    """

    name: ClassVar[str] = "fold-batchnorm"

    def rewrite(self, graph: ir.Graph) -> Iterator[Record]:
        """Fold every BatchNormalization that follows a convolution."""
        for node in list(graph):
            if is_op(node, "BatchNormalization"):
                try:
                    yield self._fold(graph, node)
                except Refused as e:
                    yield Skip(self.name, node.name or "", str(e))

    def _fold(self, graph: ir.Graph, norm: ir.Node) -> Rewrite:
        source = norm.inputs[0]
        conv = source.producer() if source is not None else None
        if source is None or conv is None or not is_op(conv, "Conv"):
            raise Refused("its input is not the result of a Conv")
        if only_consumer(source) is not norm:
            raise Refused(
                "the convolution's result is read elsewhere too, or is a graph output"
            )
        if int_attribute(norm, "training_mode", 0) or any(v.name for v in norm.outputs[1:]):
            raise Refused("training mode: it normalises by the data")
        if (norm.version or graph.opset_imports.get("", 0)) < 9:
            raise Refused(
                "before opset 9 its attributes decide whether it is in training mode"
            )
        arrays = operands(norm, 1, 2, 3, 4)
        if arrays is None:
            raise Refused("its statistics or parameters are not constant")
        gamma, beta, mean, var = (a.astype(np.float64) for a in arrays)
        epsilon = (
            norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else 1e-5
        )
        if not np.all(var + epsilon > 0):
            raise Refused("var + epsilon is not positive")
        shape = convolution(conv, weights=False)
        if any(a.shape != shape.bias.shape for a in (gamma, beta, mean, var)):
            raise Refused("its statistics do not fit the convolution's channels")
        unfolded, before = exact(conv), parameters(conv) + 4 * gamma.size
        scale = gamma / np.sqrt(var + epsilon)
        shift = beta - mean * scale
        name = norm.name or ""
        rows = probed_channels(shape, name)
        part = exact(conv, rows)()
        statistics = tuple(a[rows] for a in (gamma, beta, mean, var + epsilon))
        error = probe_error(
            lambda x: _normalize(apply(part, x), *statistics),
            scale_channels(part, scale[rows], shift[rows]),
            name=name,
        )
        size = spatial_size(conv.inputs[0], shape.axes)
        cost = None if size is None else macs(shape, *size)
        names = (conv.name or "", name)
        folded = replace(shape, bias=shape.bias * scale + shift)
        set_convolution(conv, lambda: scale_channels(unfolded(), scale, shift), folded)
        take_over(conv.outputs[0], norm.outputs[0])
        constants = tuple(norm.inputs[1:])
        graph.remove(norm, safe=True)
        for value in constants:
            remove_dead(graph, value)
        after = parameters(conv)
        return Rewrite(self.name, names, names[0], before, after, cost, cost, error)


def _normalize(y: Array, gamma: Array, beta: Array, mean: Array, spread: Array) -> Array:
    """BatchNormalization as its definition has it; spread is var + eps."""
    column = (1, -1) + (1,) * (y.ndim - 2)
    scaled = (y - mean.reshape(column)) / np.sqrt(spread).reshape(column)
    return scaled * gamma.reshape(column) + beta.reshape(column)
