"""Which layers can be INT8 within a budget of accuracy: measured, group after group."""

from __future__ import annotations

__all__ = ["Judge", "Labelled", "Measured", "Probe", "Step", "Trial", "answers", "choose"]

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vntools.base.errors import CheckFailed
from vntools.pipeline.overflow import naming_layer

if TYPE_CHECKING:
    import onnx_ir as ir

    from vntools.pipeline.image_feeds import Feeds
    from vntools.precision.int8 import Layer

Feed = Mapping[str, NDArray[Any]]

_MOST_RELATIVE_L2 = 0.1
"""Where no labels tell, the outputs may be so far from float32's."""
_KEPT_BYTES = 1 << 28  # of inputs and float32 outputs that are held for the comparisons
_GROUPS = 10


@dataclass(frozen=True)
class Trial:
    """A float32 graph, and what 127 stands for in the input of each of its layers, by name."""

    model: ir.Model
    layers: Mapping[str, Layer]
    amax: Mapping[str, float]

    def graph(self, names: Iterable[str]) -> ir.Model:
        """With these layers in INT8, all else in float32."""
        from vntools.precision.int8 import quantize

        chosen = {name: self.amax[name] for name in names}
        return quantize(self.model.clone(), self.model, chosen, self.layers)


@dataclass(frozen=True)
class Measured:
    """How far outputs are from the float32 graph's.

    Attributes:
        relative_l2: ||got - want|| / ||want|| of the worst output, over all images.
        disagreement: points of images whose top-1 is another; None where outputs are no
            classes.
        images: how many.
    """

    relative_l2: float
    disagreement: float | None
    images: int


class Probe:
    """Inputs, and the outputs of the float32 graph for them.

    Args:
        model: the float32 graph.
        feeds: batches of inputs; as many are taken as a quarter of a GiB holds.

    Attributes:
        feeds: the inputs.
        images: how many there are.
    """

    def __init__(self, model: ir.Model, feeds: Feeds) -> None:
        from vntools.verify.float32 import stream_float32

        self.feeds: list[dict[str, NDArray[Any]]] = []
        self._want: list[dict[str, NDArray[Any]]] = []

        def kept() -> Iterator[Feed]:
            for feed in feeds:
                self.feeds.append(dict(feed))
                yield feed

        self._rows: list[int] = []
        size = 0
        for want in stream_float32(model, kept()):
            self._want.append(want)
            arrays = (*self.feeds[-1].values(), *want.values())
            size += sum(a.nbytes for a in arrays)
            self._rows.append(len(arrays[0]))
            if size >= _KEPT_BYTES:
                break
        else:
            self._rows[-1] -= sum(self._rows) - feeds.images  # what fills the last batch
        self.images = sum(self._rows)

    def first(self, images: int) -> list[dict[str, NDArray[Any]]]:
        """Inputs: as many whole batches as hold ``images``, or all."""
        before = accumulate(self._rows, initial=0)
        return [f for f, seen in zip(self.feeds, before, strict=False) if seen < images]

    def measure(self, model: ir.Model, *, images: int | None = None) -> Measured:
        """A typed graph's outputs against the float32 graph's.

        Args:
            model: the typed graph.
            images: how many are enough, of whole batches; None is all.

        Raises:
            CheckFailed: ``verify.nonfinite``, ``verify.zero``.
        """
        off: dict[str, float] = {}
        norm: dict[str, float] = {}
        differ, seen, classes = 0, 0, True
        batches = zip(self.feeds, _run(model, self.feeds), self._want, strict=True)
        for (feed, whole, expected), rows in zip(batches, self._rows, strict=True):
            got, want = _rows_of(whole, feed, rows), _rows_of(expected, feed, rows)
            seen += rows
            for name, y in want.items():
                if y.dtype.kind != "f":
                    continue
                x = got[name].astype(np.float64)
                if not np.isfinite(x).all():
                    fault = CheckFailed(
                        "verify.nonfinite", f"the INT8 graph: {name} is not finite"
                    )
                    raise naming_layer(fault, model, feed)
                off[name] = off.get(name, 0.0) + float(np.square(x - y).sum())
                norm[name] = norm.get(name, 0.0) + float(np.square(y, dtype=np.float64).sum())
            ours, theirs = answers(got), answers(want)
            classes = classes and ours is not None and theirs is not None
            if ours is not None and theirs is not None:
                differ += int((ours != theirs).sum())
            if images is not None and seen >= images:
                break
        if not norm:
            raise CheckFailed("verify.zero", "no output is of floats, to tell how far it is")
        if not any(norm.values()):
            raise CheckFailed("verify.zero", "the float32 graph's outputs are zero")
        worst = max((off[n] / norm[n]) ** 0.5 for n in norm if norm[n])
        points = 100 * differ / seen if classes else None
        return Measured(worst, points, seen)


def _rows_of(outputs: Mapping[str, NDArray[Any]], feed: Feed, rows: int) -> dict[str, Any]:
    """Outputs for the first ``rows`` samples of ``feed``."""
    batch = len(next(iter(feed.values())))
    return {k: y[:rows] if y.shape[:1] == (batch,) else y for k, y in outputs.items()}


def _run(model: ir.Model, feeds: Iterable[Feed]) -> Iterator[dict[str, Any]]:
    from vntools.precision.floats import emulated
    from vntools.verify.float32 import stream_float32

    return stream_float32(emulated(model), feeds)


def answers(outputs: Mapping[str, NDArray[Any]]) -> NDArray[np.int64] | None:
    """The class of each sample, (n,): of indices the first, else of scores the largest."""
    pages = [y for y in outputs.values() if y.ndim == 2]
    for y in pages:
        if y.dtype.kind in "iu":
            return y[:, 0].astype(np.int64)
    return pages[0].argmax(axis=1) if len(pages) == 1 else None


@dataclass(frozen=True)
class Labelled:
    """Labelled images: batches of inputs with the classes of their samples.

    A batch may be filled up behind its labelled samples.
    """

    batches: Callable[[], Iterable[tuple[Feed, NDArray[np.int64]]]]

    def top1(self, model: ir.Model) -> tuple[int, int]:
        """Of how many images the class is found, and how many images there are."""
        labels: list[NDArray[np.int64]] = []

        def feeds() -> Iterator[Feed]:
            for feed, of_batch in self.batches():
                labels.append(of_batch)
                yield feed

        right = images = 0
        for i, outputs in enumerate(_run(model, feeds())):
            found = answers(outputs)
            if found is None:
                raise CheckFailed("eval.outputs", "its outputs are no classes")
            right += int((found[: len(labels[i])] == labels[i]).sum())
            images += len(labels[i])
        return right, images


@dataclass(frozen=True)
class Step:
    """One choice of INT8 layers, measured.

    Attributes:
        layers: how many are INT8.
        mac_share: their part of the multiply-accumulates of all layers; None where sizes are
            unknown.
        drop: points of top-1 lost on labelled images, or of disagreement with the float32
            graph; None where outputs are no classes.
        relative_l2: of the outputs to the float32 graph's, on the calibration images.
        images: what ``drop`` is of.
    """

    layers: int
    mac_share: float | None
    drop: float | None
    relative_l2: float
    images: int


class Judge:
    """Measures a typed graph and says whether it is within the budget.

    Args:
        model: the float32 graph.
        probe: of calibration images.
        max_drop: points; None allows anything.
        labelled: images that the points are of; without, they are points of disagreement, and
            relative L2 is held to 10 %.
    """

    def __init__(
        self,
        model: ir.Model,
        probe: Probe,
        max_drop: float | None,
        *,
        labelled: Labelled | None = None,
    ) -> None:
        self._probe, self._max_drop, self._labelled = probe, max_drop, labelled
        self._right = labelled.top1(model)[0] if labelled else 0

    def measure(self, model: ir.Model) -> Measured:
        """Relative L2, points lost, and of how many images."""
        found = self._probe.measure(model)
        if self._labelled is None:
            return found
        right, images = self._labelled.top1(model)
        # One rounding, so that 5 images of 1000 are 0.5 points whatever the others are.
        return Measured(found.relative_l2, 100 * (self._right - right) / images, images)

    def allows(self, found: Measured) -> bool:
        """Whether the budget holds."""
        if self._max_drop is None:
            return True
        if found.disagreement is not None and not found.disagreement <= self._max_drop:
            return False
        return self._labelled is not None or found.relative_l2 <= _MOST_RELATIVE_L2


def choose(
    order: Sequence[str],
    layers: Mapping[str, Layer],
    judge: Judge,
    build: Callable[[Sequence[str]], ir.Model],
    advance: Callable[..., None],
) -> tuple[list[str], list[Step]]:
    """Give up layers from the costliest on, a tenth at a time, until the budget holds.

    Args:
        order: names of the layers that may be INT8, the costliest first.
        layers: all layers of the graph, by name.
        judge: measures and allows.
        build: the typed graph with such INT8 layers.
        advance: called for every step.

    Returns:
        The layers that are INT8 in the end, none if no choice was allowed; and every step.
    """
    group = -(-len(order) // _GROUPS)
    steps: list[Step] = []
    for start in range(0, len(order), group):
        kept = list(order[start:])
        found = judge.measure(build(kept))
        steps.append(
            Step(
                len(kept),
                _share(kept, layers),
                found.disagreement,
                found.relative_l2,
                found.images,
            )
        )
        advance(1, -(-len(order) // group))
        if judge.allows(found):
            return kept, steps
    return [], steps


def _share(names: Iterable[str], layers: Mapping[str, Layer]) -> float | None:
    macs = {name: layer.macs for name, layer in layers.items()}
    known = [m for m in macs.values() if m is not None]
    if len(known) < len(macs) or not sum(known):
        return None
    return sum(macs[name] or 0 for name in names) / sum(known)
