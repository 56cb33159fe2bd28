"""What any ONNX graph is held against: the strongest comparison that it allows."""

from __future__ import annotations

__all__ = ["Way", "Witness", "find_witness", "sized_feeds"]

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vntools.base.errors import DataFault, InternalFault
from vntools.base.tolerance import Tolerance

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    from vntools.verify.compare import Comparison

Way = Literal["float64", "float64 alone", "ONNX Runtime alone", "regions alone"]
Feed = dict[str, "NDArray[Any]"]

_BATCHES = (1, 3)
# Pixels, where height or width is dynamic: two sizes, or smaller where these make too much.
_EXTENTS = (((224,), (160, 192)), ((64,), (32, 96)), ((16,), (8, 24)))
_LARGEST_FEED = 1 << 24  # elements, where a smaller size can be had
_MOST_ELEMENTS = 1 << 29
_BYTE = 256
_LONGEST_REASON = 100  # characters: two of them fit a line of 300

_NO_WITNESS = 0.1
"""ONNX Runtime's float32 is no witness where it is further than this from float64."""

_ALONE = {"FLOAT16": 1e-2, "BFLOAT16": 8e-2}
_ALONE_FLOAT32 = 1e-5
"""Rounding where nothing tells how much the graph itself has: of weights that are merged and
rounded to their type again, over some hundred layers."""


@dataclass(frozen=True)
class Witness:
    """What a rewritten graph is held against.

    Attributes:
        way: float32 in ONNX Runtime against float64; or, where one of the two cannot compute
            the graph as it came, the graph before and after in the other; or, where neither
            can, nothing but the probes of each rewritten region.
        feeds: inputs, at two sizes where one is dynamic.
        outputs: of the graph as it came, for each of ``feeds``.
        tolerance: how far from these the graph may be; None with regions alone.
        reason: why it is not the first way, and what that means; empty where it is.
    """

    way: Way
    feeds: list[Feed]
    outputs: list[Feed]
    tolerance: Tolerance | None
    reason: str = ""

    def check(self, written: bytes | ir.Model) -> Comparison | None:
        """Compare what was written with this; None with regions alone.

        Raises:
            CheckFailed: it is not the same.
            DataFault, InternalFault: it cannot be computed any more.
        """
        from vntools.export.load import parse_onnx
        from vntools.verify.compare import compare
        from vntools.verify.float32 import run_float32
        from vntools.verify.float64 import evaluate

        if self.tolerance is None:
            return None
        if self.way == "float64 alone":
            model = parse_onnx(written) if isinstance(written, bytes) else written
            got = [evaluate(model.graph, feed) for feed in self.feeds]
        else:
            got = run_float32(written, self.feeds)
        first = "the graph as it came" if self.way == "ONNX Runtime alone" else "float64"
        what = f"the simplified graph against {first}"
        found = compare(list(zip(got, self.outputs, strict=True)), what)
        return found.require(self.tolerance, what)


def find_witness(model: ir.Model) -> Witness:
    """The strongest witness that ``model`` allows, which is not changed.

    Raises:
        CheckFailed: its outputs are not finite, or all zero.
        DataFault: ``onnx.unsupported``: nothing runs it, though its operators are ONNX's own
            and its inputs have fixed sizes, so that what they are fed must fit;
            ``onnx.control_flow``: a loop does not end, in no library.
    """
    from vntools.verify.compare import FLOAT32_FACTOR, FLOAT32_FLOOR, compare
    from vntools.verify.float64 import evaluate, random_nodes

    try:
        feeds = sized_feeds(model)
    except DataFault as e:
        return _regions(f"{e.message}")
    exact, why = _each(lambda feed: evaluate(model.graph, feed), feeds)
    if exact:
        feeds = [feed for feed, _ in exact]
    want = [y for _, y in exact]
    sizes = "" if not why else f"only some sizes can be computed ({why}); "
    chance = random_nodes(model.graph)
    if chance and want:
        compare([(y, y) for y in want], "the graph as it came")
        return Witness(
            "float64 alone",
            feeds,
            want,
            _rounding(model),
            f"{sizes}{chance[0]} draws at random: compared in float64, with the same draws",
        )
    single, why_not = ([], "it draws at random") if chance else _float32(model, feeds)
    if not want:
        if not single:
            if _fits(model):
                raise DataFault("onnx.unsupported", f"{why}; {why_not}")
            return _regions(f"{why}; {why_not}")
        feeds, native = [f for f, _ in single], [y for _, y in single]
        compare([(y, y) for y in native], "the graph as it came")
        reason = f"{why}: compared in ONNX Runtime only, before and after"
        return Witness("ONNX Runtime alone", feeds, native, _rounding(model), reason)
    if len(single) == len(feeds):
        pairs = [(y, x) for (_, y), x in zip(single, want, strict=True)]
        noise = compare(pairs, "the unsimplified graph")
        if noise.relative_l2 <= _NO_WITNESS:
            bound = max(FLOAT32_FACTOR * noise.relative_l2, FLOAT32_FLOOR)
            same = noise.top1_agreement == 1.0
            rounding = "rounding of the unsimplified float32 graph in this run, times 8"
            tolerance = Tolerance(bound, same, rounding)
            return Witness("float64", feeds, want, tolerance, sizes.removesuffix("; "))
        why_not = f"ONNX Runtime is {noise.relative_l2:.1g} off"
    compare([(y, y) for y in want], "the graph as it came")
    reason = f"{sizes}{why_not}: compared in float64 only, before and after"
    return Witness("float64 alone", feeds, want, _rounding(model), reason)


def _fits(model: ir.Model) -> bool:
    """Whether seeded inputs are what the graph is for, and all operators are ONNX's own."""
    from vntools.export.graph import ONNX_DOMAINS, is_float

    free = (v for v in model.graph.inputs if not v.is_initializer())
    for value in free:
        inner = tuple(value.shape or ())[1:]
        if not is_float(value.dtype) or not all(isinstance(d, int) for d in inner):
            return False
    return all(node.domain in ONNX_DOMAINS for node in model.graph.all_nodes())


def _regions(why: str) -> Witness:
    reason = f"{why}: only the rewritten regions were compared, each by itself"
    return Witness("regions alone", [], [], None, reason)


def _each(compute: Any, feeds: list[Feed]) -> tuple[list[tuple[Feed, Feed]], str]:
    """What can be computed of ``feeds``, and why some cannot."""
    done: list[tuple[Feed, Feed]] = []
    why = ""
    for feed in feeds:
        try:
            done.append((feed, compute(feed)))
        except (DataFault, InternalFault) as e:
            if e.code == "onnx.control_flow":
                raise
            why = why or e.message[:_LONGEST_REASON]
    return done, why


def _float32(model: ir.Model, feeds: list[Feed]) -> tuple[list[tuple[Feed, Feed]], str]:
    """All feeds in ONNX Runtime, in one session if that can be."""
    from vntools.verify.float32 import run_float32

    try:
        return list(zip(feeds, run_float32(model, feeds), strict=True)), ""
    except InternalFault:
        return _each(lambda feed: run_float32(model, [feed])[0], feeds)


def _rounding(model: ir.Model) -> Tolerance:
    """For a comparison of a graph with itself, by the narrowest type of its weights."""
    held = [v.dtype.name for v in model.graph.initializers.values() if v.dtype is not None]
    bound = max((_ALONE.get(name, _ALONE_FLOAT32) for name in held), default=_ALONE_FLOAT32)
    return Tolerance(bound, same_top1=False, why="rounding of merged weights to their type")


def sized_feeds(model: ir.Model) -> list[Feed]:
    """Seeded inputs of batch 1 and 3, other dynamic axes at two sizes; one where all is fixed.

    Floats are standard normal, bytes 0 to 255, other integers 0 or 1 (which index anything),
    single integers 1 and 2. A single truth value is true first and false then.

    Raises:
        DataFault: ``onnx.shape``: an input is no tensor, has no rank or is too large.
    """
    import numpy as np
    import onnx_ir as ir

    rng = np.random.default_rng(0)
    inputs = [v for v in model.graph.inputs if not v.is_initializer() and v.name]
    for value in inputs:
        known = isinstance(value.type, ir.TensorType) and value.shape is not None
        if not known or value.dtype in (None, ir.DataType.STRING, ir.DataType.UNDEFINED):
            raise DataFault("onnx.shape", f"input {value.name!r} has no type or rank")
    kinds = {v.dtype.numpy().kind for v in inputs if v.dtype is not None}
    fixed = all(isinstance(d, int) for v in inputs for d in v.shape or ())
    turns = (0,) if fixed and not kinds & set("biu") else (0, 1)
    shapes: list[list[tuple[int, ...]]] = []
    largest = 0
    for extents in _EXTENTS:
        shapes = [_shapes(inputs, _BATCHES[turn], extents[turn]) for turn in turns]
        largest = max((math.prod(dims) for sized in shapes for dims in sized), default=0)
        if largest <= _LARGEST_FEED:
            break
    else:
        if largest > _MOST_ELEMENTS:
            raise DataFault("onnx.shape", f"an input takes over {_MOST_ELEMENTS} elements")
    return [
        {
            v.name or "": _drawn(
                rng, np.dtype((v.dtype or ir.DataType.FLOAT).numpy()), dims, turn
            )
            for v, dims in zip(inputs, sized, strict=True)
        }
        for turn, sized in zip(turns, shapes, strict=True)
    ]


def _shapes(
    inputs: list[ir.Value], batch: int, extents: tuple[int, ...]
) -> list[tuple[int, ...]]:
    """Shapes with numbers for names, the same one for the same name."""
    numbers: dict[object, int] = {}
    for value in inputs:
        for axis, d in enumerate(value.shape or ()):
            name = getattr(d, "value", None) or (value.name, axis)
            if axis == 0 and not isinstance(d, int):
                numbers[name] = batch
    sized: list[tuple[int, ...]] = []
    for value in inputs:
        dims: list[int] = []
        for axis, d in enumerate(value.shape or ()):
            name = getattr(d, "value", None) or (value.name, axis)
            extent = extents[len(numbers) % len(extents)]
            dims.append(d if isinstance(d, int) else numbers.setdefault(name, extent))
        sized.append(tuple(dims))
    return sized


def _drawn(
    rng: np.random.Generator, dtype: np.dtype[Any], dims: tuple[int, ...], turn: int
) -> NDArray[Any]:
    import numpy as np

    single = math.prod(dims) == 1
    if dtype.kind == "b":
        return np.full(dims, not turn) if single else rng.random(dims) < 0.5
    if dtype == np.uint8:
        return rng.integers(_BYTE, size=dims).astype(dtype)
    if dtype.kind in "iu":
        drawn = np.full(dims, 1 + turn) if single else rng.integers(2, size=dims)
        return drawn.astype(dtype)
    return np.asarray(rng.standard_normal(dims)).astype(dtype)
