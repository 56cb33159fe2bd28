"""Every region of linear nodes becomes the least work that computes it."""

from __future__ import annotations

__all__ = ["CollapseLinear"]

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from vntools.base.errors import InternalFault
from vntools.export.affine import Refused
from vntools.export.commute import Move, moves
from vntools.export.emit import Overflow, Writer
from vntools.export.graph import constant, is_op, remove_dead
from vntools.export.maps import Expression, Term
from vntools.export.probe import Probe
from vntools.export.probe_moves import passing_error
from vntools.export.region import Region, Settled
from vntools.export.rewrite import GraphPass, Record, Rewrite, Skip, take_over

_ROUNDS = 16
_EXACT = 1e-9  # of a region in float64, relative to its largest value


class _Unwritable(Exception):
    """An expression whose numbers cannot stand in the graph; the reason, for the user."""


@dataclass(frozen=True)
class CollapseLinear(GraphPass):
    """Given:  a value that linear nodes make of others     Result: the cheapest such nodes

    Linear nodes are the entries of :mod:`vntools.export.operators`; how they are put together
    says :class:`vntools.export.region.Region`. Every value that changes is evaluated before
    and after, in float64.

    Needs: constant weights, values that nothing else reads, no border at which the two differ
    (the conditions of each rule stand in :mod:`vntools.export.affine`), and no more
    multiply-accumulates, then weights, then nodes than before.
    Source: folding BatchNormalization (Eq. 2 of the VanillaNet paper) and merging two
    convolutions (Eq. 4) are instances; sums of branches as in RepVGG (Ding et al. 2021).
    """

    name: ClassVar[str] = "collapse-linear"
    after: ClassVar[tuple[str, ...]] = ("flatten", "global-average-pool", "split-sequence")

    def rewrite(self, graph: ir.Graph) -> Iterator[Record]:
        """Collapse the regions of a graph, and of the graphs within it."""
        imports = graph.opset_imports
        opset = imports.get("", imports.get("ai.onnx", 0))
        for part in (graph, *graph.subgraphs()):
            writer = Writer(part)
            _settle_constants(part, writer)
            _follow_shapes(part)
            kept: dict[Skip, None] = {}
            for _ in range(_ROUNDS):
                region = Region(part, opset)
                with np.errstate(all="ignore"):  # what is not finite is found by its probe
                    records = list(self._collapse(region, writer))
                kept |= {r: None for r in records if isinstance(r, Skip)}
                done = [r for r in records if isinstance(r, Rewrite)]
                if not done:
                    made = [self._move(region, writer, m) for m in list(moves(region))]
                    done = [r for r in made if r is not None]
                yield from done
                if not done:
                    for node, reason in region.skips.items():
                        kept[Skip(self.name, node.name or "", reason)] = None
                    break
            writer.settle_names()
            yield from kept

    def _collapse(self, region: Region, writer: Writer) -> Iterator[Record]:
        graph = region.graph
        now: dict[ir.Value, ir.Value] = {}
        dead: dict[ir.Value, None] = {}
        for settled in list(region.settle()):
            try:
                yield self._write(region, writer, settled, now)
            except _Unwritable as e:
                yield Skip(self.name, _name(settled.value), str(e))
            dead.update(dict.fromkeys(settled.gone))
        order = {v: i for i, v in enumerate(region.original)}
        remove_dead(graph, *sorted(dead, key=order.__getitem__))

    def _move(self, region: Region, writer: Writer, move: Move) -> Rewrite | None:
        graph, node = region.graph, move.node
        names = tuple(n.name or "" for n in (node, *(p.node for p in move.passed)))
        error = passing_error(move.passed, region.channels)
        if error is None:
            region.skips[node] = (
                "it could move, but no input is known that would show it right"
            )
            return None
        _require_exact(error, self.name, names)
        old = node.outputs[0]
        data = next(v for v in node.inputs if v is not None and constant(v) is None)
        if move.places[0][3] == -1:
            _swap(graph, node, move.passed[0].node, data)
            return Rewrite(self.name, names, node.name or "", error=error)
        if move.forwards:
            old.replace_all_uses_with(data)
            _reshape(data, move)
        parameters = 0
        for place, m, reader, index in move.places:
            at = data if place is old else place
            expression = Expression((Term(at, m),))
            nodes, count = writer.write(expression, at, [at], lambda *_: None)
            parameters += count
            before = reader if move.forwards else at.producer()
            assert before is not None
            (graph.insert_before if move.forwards else graph.insert_after)(before, nodes)
            made = nodes[-1].outputs[0]
            reader.replace_input_with(index, made)
            for use in tuple(at.uses()):
                if not move.forwards and is_op(use.node, "Shape"):
                    use.node.replace_input_with(use.idx, made)
        if not move.forwards:
            take_over(data, old) if old.is_graph_output() else old.replace_all_uses_with(data)
        held = _parameters(old)
        remove_dead(graph, old)
        return Rewrite(
            self.name, names, move.places[-1][2].name or "", held, parameters, error=error
        )

    def _write(
        self,
        region: Region,
        writer: Writer,
        settled: Settled,
        now: dict[ir.Value, ir.Value],
    ) -> Rewrite:
        old, expression = settled.value, settled.expression
        producer, graph = old.producer(), region.graph
        assert producer is not None
        names = tuple(_name(v) for v in settled.gone)
        held = sum(_parameters(v) for v in settled.gone)
        bases = [now.get(t.base, t.base) for t in expression.terms]
        leaving = [v.producer() for v in settled.gone]
        try:
            probe = Probe(region, settled)
            writer.release(leaving)
            nodes, parameters = writer.write(expression, old, bases, probe.see)
        except (Overflow, Refused) as e:
            writer.keep(leaving)
            raise _Unwritable(str(e)) from e
        if not nodes and old.is_graph_output() and bases[0].is_graph_output():
            raise _Unwritable("it would join two names of the graph")
        error = probe.error()
        if math.isnan(error):
            writer.keep(leaving)
            remove_dead(graph, *(v for n in nodes for v in n.inputs))
            raise _Unwritable("its numbers are not finite")
        _require_exact(error, self.name, names)
        if nodes:
            graph.insert_before(producer, nodes)
            now[old] = nodes[-1].outputs[0]
            take_over(now[old], old)
        else:
            now[old] = bases[0]
            if old.is_graph_output():
                take_over(now[old], old)
            else:
                old.replace_all_uses_with(now[old])
        static = all(_static(t.base) for t in expression.terms)
        return Rewrite(
            self.name,
            names,
            nodes[-1].name or "" if nodes else "",
            held,
            parameters,
            settled.before[0] if static else None,
            settled.after[0] if static else None,
            error,
        )


def _require_exact(error: float, rule: str, names: tuple[str, ...]) -> None:
    if error > _EXACT:
        raise InternalFault(
            "pass.inexact",
            f"{rule} at {names[-1]}: before and after differ by {error:.1e}",
            hint="report it, with the graph",
        )


def _settle_constants(graph: ir.Graph, writer: Writer) -> None:
    """Let no constant hang on data of which it needs the type or the static shape alone.

    So PyTorch's exporters write the zero bias of a convolution, CastLike(0, x), and the width
    of a head, Gather(Shape(x), 3).
    """
    for node in list(graph):
        if not is_op(node, "CastLike", "Gather", "Shape", "Slice"):
            continue
        old = node.outputs[0]
        hangs = any(v is not None and constant(v) is None for v in node.inputs)
        array = constant(old) if hangs and not old.is_graph_output() else None
        if array is not None:
            old.replace_all_uses_with(writer.constant(old.name or "constant", array))
            remove_dead(graph, old)


def _reshape(data: ir.Value, move: Move) -> None:
    """Shapes on the way of a map that changes the number of channels."""
    source, old = data.shape, move.node.outputs[0].shape
    for step in move.passed:
        value = step.node.outputs[0]
        if source is None or old is None or value.shape is None:
            continue
        if source[1:2] != old[1:2]:
            value.shape = ir.Shape([value.shape[0], source[1], *tuple(value.shape)[2:]])


def _follow_shapes(graph: ir.Graph) -> None:
    """Let a Shape read what a channel affine makes of a value rather than the value itself.

    It is the same, and the value may go then.
    """
    for node in list(graph):
        value = node.inputs[0] if is_op(node, "Shape") else None
        producer = value.producer() if value is not None else None
        if value is None or producer is None or producer.graph is not graph:
            continue
        others = [u.node for u in value.uses() if not is_op(u.node, "Shape")]
        if len(others) != 1 or not is_op(others[0], "BatchNormalization", "Identity"):
            continue
        if any(v is not value and v is not None and v.producer() for v in others[0].inputs):
            continue
        graph.insert_after(producer, others[0])
        for use in tuple(value.uses()):
            if is_op(use.node, "Shape"):
                use.node.replace_input_with(0, others[0].outputs[0])


def _swap(graph: ir.Graph, conv: ir.Node, pool: ir.Node, data: ir.Value) -> None:
    """Let a 1x1 convolution read the pool that it stood before."""
    first = ir.node(pool.op_type, [data], dict(pool.attributes.items()))
    inputs = [first.outputs[0] if v is data else v for v in conv.inputs]
    second = ir.node(conv.op_type, inputs, dict(conv.attributes.items()))
    first.name, second.name = pool.name, conv.name
    old = pool.outputs[0]
    pooled = first.outputs[0]
    pooled.name, pooled.type = f"{old.name}.pooled", old.type
    if old.shape is not None and data.shape is not None:
        pooled.shape = ir.Shape([old.shape[0], data.shape[1], *tuple(old.shape)[2:]])
    graph.insert_before(pool, [first, second])
    take_over(second.outputs[0], old)
    remove_dead(graph, old)


def _name(value: ir.Value) -> str:
    node = value.producer()
    return (node.name or "") if node is not None else ""


def _static(value: ir.Value) -> bool:
    """Whether all extents but the batch are known."""
    shape = value.shape
    return shape is not None and all(isinstance(d, int) for d in tuple(shape)[1:])


def _parameters(value: ir.Value) -> int:
    """Number of float constants that the node of a value reads."""
    node = value.producer()
    tensors = [] if node is None else [v.const_value for v in node.inputs if v is not None]
    return sum(t.size for t in tensors if t is not None and t.dtype.is_floating_point())
