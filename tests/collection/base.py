"""What a graph of the collection is, and the short text that it is written in."""

from __future__ import annotations

__all__ = ["Array", "Feeds", "Graph", "collapse", "dear", "keep"]

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from tests.graphs import parsed

Array = NDArray[Any]
Feeds = dict[str, Array]
Edit = Callable[[onnx.ModelProto], None]
Kind = Literal["collapse", "keep", "dear"]
Runs = Literal["everywhere", "float64", "nowhere"]

# What symbolic dimensions are, in turn: small maps, so that borders are most of them.
_SIZES: tuple[Mapping[str, int], ...] = (
    {"n": 1, "h": 5, "w": 4, "d": 3, "l": 6, "s": 4},
    {"n": 3, "h": 9, "w": 7, "d": 4, "l": 9, "s": 7},
)
_TOLERANCE = {"float": 2e-6, "double": 1e-12, "float16": 1e-2, "bfloat16": 8e-2}


@dataclass(frozen=True)
class Graph:
    """One small graph and what must become of it.

    Attributes:
        name: subject and case, unique.
        model: makes it.
        inputs: makes its feeds: two sizes where a dimension is symbolic.
        kind: "collapse" (exact and no dearer), "keep" (not exact, however tempting) or "dear"
            (exact, but it costs more).
        nodes: the most that may remain of each operator that costs; "A|B" is a sum. What is
            not named must be gone. None for "keep" and "dear": the very bytes stay, or the
            nodes whose names begin with "it" as they are.
        reason: regular expression of a Skip's reason that must be there; None where the pass
            may see no candidate at all.
        tolerance: largest relative difference of the outputs in float64, for the type that
            weights are cast to.
        cheaper: whether multiply-accumulates must fall.
        runs: "everywhere", in "float64" only (ONNX Runtime has not all of it on a CPU), or
            "nowhere" to the same result.
    """

    name: str
    model: Callable[[], onnx.ModelProto]
    inputs: Callable[[], tuple[Feeds, ...]]
    kind: Kind
    nodes: Mapping[str, int] | None
    reason: str | None
    tolerance: float = 1e-6
    cheaper: bool = False
    runs: Runs = "everywhere"


def collapse(name: str, body: str, nodes: str, held: str = "", **kwargs: Any) -> Graph:
    """A graph that must shrink to ``nodes``, as in ``"Conv:1 MatMul|Gemm:1"``."""
    counts = {op: int(n) for op, _, n in (part.partition(":") for part in nodes.split())}
    return _graph(name, body, held, "collapse", counts, kwargs.pop("reason", None), **kwargs)


def keep(
    name: str, body: str, reason: str | None = None, held: str = "", **kwargs: Any
) -> Graph:
    """A graph that a careless rule would rewrite and thereby change."""
    return _graph(name, body, held, "keep", None, reason, **kwargs)


def dear(name: str, body: str, reason: str | None, held: str = "", **kwargs: Any) -> Graph:
    """A graph whose rewriting would be exact and cost more."""
    return _graph(name, body, held, "dear", None, reason, **kwargs)


def _graph(
    name: str,
    body: str,
    held: str,
    kind: Kind,
    nodes: Mapping[str, int] | None,
    reason: str | None,
    *,
    cheaper: bool = False,
    runs: Runs = "everywhere",
    feeds: Mapping[str, object] | None = None,
    **given: Any,
) -> Graph:
    """Keyword arguments are those of :func:`_model`; ``feeds`` are inputs that are not
    drawn."""
    made = partial(_model, body, held, seed=sum(map(ord, name)), **given)
    return Graph(
        name,
        made,
        lambda: _inputs(made(), feeds or {}),
        kind,
        nodes,
        reason,
        _TOLERANCE[given.get("dtype", "float")],
        cheaper,
        runs,
    )


def _model(
    body: str,
    held: str,
    *,
    seed: int,
    x: str = "float[n,3,h,w] x",
    y: str = "y",
    dtype: str = "float",
    opset: int = 20,
    foreign: str = "",
    edit: Edit | None = None,
    **weights: Any,
) -> onnx.ModelProto:
    """``body`` as a model.

    ``bn1(c)`` in it is ``BatchNormalization(c, g1, s1, m1, v1)``. ``held`` declares what is
    constant: ``W:4,3,1,1``, ``a:`` (a scalar), ``bn1:4`` (all four), ``axes:2:int64``. Types
    of outputs are inferred unless ``y`` has them; ``edit`` has the last word.
    """
    declared = []
    for item in held.split():
        name, dims, kind = (*item.split(":"), dtype)[:3]
        found = re.fullmatch(r"bn(\d*)", name)
        names = [f"{c}{found[1]}" for c in "gsmv"] if found else [name]
        declared += [f"{kind}[{dims}] {n}" if dims else f"{kind} {n}" for n in names]
    body = re.sub(r"\bbn(\d*)\((\w+)\)", r"BatchNormalization(\2, g\1, s\1, m\1, v\1)", body)
    typed = "[" in y
    outputs = y if typed else ", ".join(f"{dtype}[] {name}" for name in y.split(", "))
    constants = f"<{', '.join(declared)}>" if declared else ""
    model = parsed(
        f"({x.replace('float[', f'{dtype}[')}) => ({outputs}) {constants} {{ {body} }}",
        seed=seed,
        opset=opset,
        foreign=foreign,
        **weights,
    )
    if not typed:
        _type_outputs(model)
    if edit is not None:
        edit(model)
    return model


def _type_outputs(model: onnx.ModelProto) -> None:
    """Shapes as an exporter writes them: what cannot be inferred has a name of its own."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    for output, info in zip(model.graph.output, inferred.graph.output, strict=True):
        kind = info.type.tensor_type
        if kind.HasField("shape"):
            dims = [
                d.dim_value if d.HasField("dim_value") else f"{output.name}_{i}"
                for i, d in enumerate(kind.shape.dim)
            ]
            output.CopyFrom(helper.make_tensor_value_info(output.name, kind.elem_type, dims))


def _inputs(model: onnx.ModelProto, given: Mapping[str, object]) -> tuple[Feeds, ...]:
    held = {t.name for t in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in held]
    dynamic = any(
        d.dim_param or i.type.tensor_type.elem_type == onnx.TensorProto.BOOL
        for i in inputs
        for d in i.type.tensor_type.shape.dim or [onnx.TensorShapeProto.Dimension()]
    )
    feeds = []
    for turn, sizes in enumerate(_SIZES[: 2 if dynamic else 1]):
        rng = np.random.default_rng(turn)
        feed: Feeds = {}
        for info in inputs:
            kind = info.type.tensor_type
            if info.name in given:
                dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
                feed[info.name] = np.asarray(given[info.name], dtype)
                continue
            dims = tuple(d.dim_value or sizes[d.dim_param] for d in kind.shape.dim)
            if kind.elem_type == onnx.TensorProto.BOOL:
                feed[info.name] = np.full(dims, bool(turn))
            else:
                dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
                feed[info.name] = rng.standard_normal(dims).astype(dtype)
        feeds.append(feed)
    return tuple(feeds)
