"""Types as asked for, put into the graph and proved: float16, bfloat16, INT8 and mixtures."""

from __future__ import annotations

__all__ = ["TypedGraph", "typed"]

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from vntools.base.errors import CheckFailed, UsageFault, first_three, quoted
from vntools.export.graph import is_op
from vntools.pipeline.listener import Listener, Stopwatch
from vntools.pipeline.overflow import first_overflow, naming_layer
from vntools.pipeline.quantize import Int8Refused, to_int8

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    from vntools.base.tolerance import Tolerance
    from vntools.pipeline.engine import EngineOptions
    from vntools.pipeline.quantize import Int8Report
    from vntools.verify.compare import Comparison

Feeds = Sequence[dict[str, "NDArray[Any]"]]


@dataclass(frozen=True)
class TypedGraph:
    """A typed graph and how far it is from the float32 one.

    Attributes:
        model: the graph.
        convolutions: the precision of each Conv by its name, in the graph's order.
        comparison: with the float32 graph in ONNX Runtime; on calibration images for INT8, on
            seeded inputs otherwise. None where nothing was typed.
        tolerance: what was allowed.
        int8: what became INT8, and what that costs.
    """

    model: ir.Model
    convolutions: dict[str, str]
    comparison: Comparison | None = None
    tolerance: Tolerance | None = None
    int8: Int8Report | None = None


def typed(
    model: ir.Model, options: EngineOptions, sha256: str, listener: Listener, phase: Stopwatch
) -> TypedGraph:
    """Give ``model`` the types that ``options`` ask for, within their tolerance.

    Raises:
        UsageFault: ``engine.layers``: a pattern names no layer.
        DataFault, CheckFailed: as :mod:`vntools.precision` and
            :mod:`vntools.pipeline.quantize`.
    """
    from vntools.precision.pools import fix_pools

    fix_pools(model.graph)
    convs = {n.name or "": _own_type(n) for n in model.graph if n.op_type == "Conv"}
    if options.precision == "fp32":
        return TypedGraph(model, convs)
    from vntools.precision.floats import (
        HALVES,
        TOLERANCES,
        in_opset,
        to_floats,
        with_followers,
    )
    from vntools.precision.int8 import OPSET, TOLERANCE

    rest = options.rest if options.precision == "int8" else options.precision
    if options.precision == "int8" or "int8" in convs.values():
        model = in_opset(model, OPSET)
    wide = _matching(model.graph, options.fp32_layers, "--fp32-layers")
    kept = with_followers(wide)

    def floats(graph: ir.Model, io_type: str) -> ir.Model:
        if rest not in HALVES:
            return graph.clone()
        made = to_floats(graph, rest, io_type=io_type, fp32=kept)
        if made.subnormal and io_type == options.io_type:
            lost[:] = [made.subnormal, made.flushed]
        return made.model

    lost: list[int] = []
    if options.precision == "int8":
        assert options.int8 is not None
        half = _matching(model.graph, options.fp16_layers, "--fp16-layers")
        found = to_int8(
            model,
            options.int8,
            floats,
            listener,
            phase,
            sha256=sha256,
            io_type=options.io_type,
            floats=kept | {n.name or "" for n in half},
        )
        made, layers, report, tolerance = found.model, found.layers, found.report, TOLERANCE
        feeds: Feeds = found.feeds
    else:
        from vntools.pipeline.references import seeded_feeds

        with phase(f"type {rest}"):
            made = floats(model, options.io_type)
        layers, report, tolerance = frozenset[str](), None, TOLERANCES[rest]
        feeds = seeded_feeds(model)
    if lost:
        listener.note(
            f"{lost[0]} weights lie below {rest}'s normal range and lose bits, {lost[1]} of "
            "them become zero"
        )
    with phase("verify"):
        comparison = _compared(made, model, feeds, options.precision)
        if report is not None and not comparison.relative_l2 <= tolerance.max_relative_l2:
            overflow = first_overflow(made, feeds[0])
            raise Int8Refused("verify.mismatch", report, overflow=overflow)
        comparison.require(tolerance, _what(options.precision))
    # What came in another type than float32 keeps it.
    types = {
        name: "int8"
        if name in layers
        else "fp32"
        if name in kept
        else rest
        if own == "fp32"
        else own
        for name, own in convs.items()
    }
    return TypedGraph(made, types, comparison, tolerance, report)


def _own_type(conv: ir.Node) -> str:
    """The precision of a convolution in a graph as it came."""
    weight = conv.inputs[1]
    made_by = [v.producer() if v is not None else None for v in conv.inputs[:2]]
    if all(is_op(node, "DequantizeLinear") for node in made_by):
        return "int8"
    names = {"FLOAT16": "fp16", "BFLOAT16": "bf16"}
    return names.get(weight.dtype.name if weight and weight.dtype else "", "fp32")


def _matching(graph: ir.Graph, patterns: Sequence[str], option: str) -> list[ir.Node]:
    """Nodes whose name is like one of ``patterns``.

    Raises:
        UsageFault: ``engine.layers``.
    """
    nodes = list(graph)
    for pattern in patterns:
        if not any(fnmatchcase(n.name or "", pattern) for n in nodes):
            names = first_three(n.name or "" for n in nodes if n.op_type == "Conv")
            raise UsageFault(
                "engine.layers",
                f"{option} {quoted(pattern)} names no layer",
                hint=f"layers are called {names}",
            )
    return [n for n in nodes if any(fnmatchcase(n.name or "", p) for p in patterns)]


def _compared(made: ir.Model, model: ir.Model, feeds: Feeds, precision: str) -> Comparison:
    """The typed graph against the float32 one.

    Raises:
        CheckFailed: ``verify.*``.
    """
    from vntools.precision.floats import emulated
    from vntools.verify.compare import compare
    from vntools.verify.float32 import run_float32

    narrow = {v.name: v.dtype.numpy() for v in made.graph.inputs if v.dtype is not None}
    given = [{k: _rounded(v, narrow[k]) for k, v in f.items()} for f in feeds]
    want = run_float32(model, feeds)
    got = run_float32(emulated(made), given)
    try:
        return compare(list(zip(got, want, strict=True)), _what(precision))
    except CheckFailed as e:
        if e.code != "verify.nonfinite":
            raise
        raise naming_layer(e, made, given[0]) from e


def _what(precision: str) -> str:
    return f"the {precision} graph against the float32 one"


def _rounded(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Float32 as the graph's input holds it, in float32 again; others as they are."""
    return array if array.dtype == dtype else array.astype(dtype).astype(array.dtype)
