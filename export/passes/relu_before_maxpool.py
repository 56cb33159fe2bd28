"""ReLU goes in front of max pooling, where it can fuse into the convolution."""

from __future__ import annotations

__all__ = ["ReluBeforeMaxPool"]

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from vntools.export.graph import ints_attribute, is_op, only_consumer
from vntools.export.rewrite import GraphPass, Record, Rewrite, Skip


@dataclass(frozen=True)
class ReluBeforeMaxPool(GraphPass):
    """Given:  y = Relu(MaxPool(Conv(x)))            Result: y = MaxPool(Relu(Conv(x)))

    relu is monotone, so it commutes with a maximum, exactly in floating point; padding of a
    MaxPool is -infinity and never wins, as long as every window holds a real element.
    Needs: the pooled value and the convolution's result are each read once and are no graph
    outputs; MaxPool without Indices, and not both padded and dilated: such a window may hold
    nothing but padding.
    Source: ONNX MaxPool-12; TensorRT fuses a ReLU into the convolution in front of it, not
    into the pooling.
    """

    name: ClassVar[str] = "relu-before-maxpool"
    after: ClassVar[tuple[str, ...]] = ("collapse-linear",)

    def rewrite(self, graph: ir.Graph) -> Iterator[Record]:
        """Move every such Relu in front of its MaxPool."""
        for relu in list(graph):
            pooled = relu.inputs[0] if is_op(relu, "Relu") else None
            pool = pooled.producer() if pooled is not None else None
            if pooled is None or pool is None or not is_op(pool, "MaxPool"):
                continue
            source = pool.inputs[0]
            if source is None or not is_op(source.producer(), "Conv"):
                continue
            if only_consumer(pooled) is not relu or only_consumer(source) is not pool:
                reason = "a value in between is read elsewhere too, or is a graph output"
            elif len(pool.outputs) > 1:
                reason = "the pooling writes indices"
            elif any(d > 1 for d in ints_attribute(pool, "dilations") or ()) and _padded(pool):
                reason = "padded and dilated: a window may hold nothing but padding"
            else:
                yield self._swap(graph, relu, pool)
                continue
            yield Skip(self.name, relu.name or "", reason)

    def _swap(self, graph: ir.Graph, relu: ir.Node, pool: ir.Node) -> Rewrite:
        source, pooled, out = pool.inputs[0], pool.outputs[0], relu.outputs[0]
        assert source is not None
        graph.remove(relu)
        graph.insert_before(pool, relu)
        out.replace_all_uses_with(pooled, replace_graph_outputs=True)
        relu.replace_input_with(0, source)
        pool.replace_input_with(0, out)
        out.name, pooled.name = pooled.name, out.name
        out.shape, out.type, pooled.shape = source.shape, source.type, out.shape
        return Rewrite(self.name, (pool.name or "", relu.name or ""), relu.name or "")


def _padded(pool: ir.Node) -> bool:
    """Whether a MaxPool pads, or would for some size of its input."""
    padding = pool.attributes.get("auto_pad")
    mode = padding.as_string() if padding is not None else "NOTSET"
    return mode.startswith("SAME") or any(ints_attribute(pool, "pads") or ())
