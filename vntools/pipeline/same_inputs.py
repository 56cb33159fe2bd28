"""The same inputs for two artifacts: seeded, or of images that each takes in its own way."""

from __future__ import annotations

__all__ = ["Inputs", "Shared", "paired", "same_inputs"]

import json
import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vntools.base.errors import DataFault, UsageFault, about, first_three
from vntools.pipeline.artifact_facts import PREPROCESSING, Facts, usual_batch
from vntools.pipeline.listener import Listener
from vntools.runtime.base import TensorSpec

if TYPE_CHECKING:
    from vntools.pipeline.image_input import ImageInput

Feed = Mapping[str, NDArray[Any]]
Pair = tuple[TensorSpec, TensorSpec]

_SEEDED = 16  # samples
_DYNAMIC_EXTENT = 224  # pixels, where height or width is dynamic
_CONVENTION = ("layout", "values")


class Shared(NamedTuple):
    """One batch: what A and B are given, and of how many samples; behind them is padding."""

    a: Feed
    b: Feed
    samples: int


@dataclass(frozen=True)
class Inputs:
    """Batches for A and B.

    Attributes:
        feeds: iterated once.
        batch: samples in each but the last.
        batches: how many there are.
    """

    feeds: Iterable[Shared]
    batch: int
    batches: int

    def __iter__(self) -> Iterator[Shared]:
        return iter(self.feeds)


def paired(a: Sequence[TensorSpec], b: Sequence[TensorSpec]) -> list[Pair] | None:
    """Tensors of the same name, or the only one of each; None where they do not correspond."""
    theirs = {s.name: s for s in b}
    if theirs.keys() == {s.name for s in a}:
        return [(s, theirs[s.name]) for s in a]
    return [(a[0], b[0])] if len(a) == len(b) == 1 else None


def same_inputs(
    specs: tuple[Sequence[TensorSpec], Sequence[TensorSpec]],
    facts: tuple[Facts, Facts],
    data: Path | None,
    listener: Listener,
    *,
    batch: int | None,
    limit: int | None,
) -> Inputs:
    """The same inputs for both, as each takes them.

    Without a folder of images both have to take the same numbers, but for the width of
    floats: then the narrower holds them exactly.

    Raises:
        DataFault: ``verify.signature``: the inputs do not correspond; ``data.empty``,
            ``data.npz``, ``data.input``, ``data.preprocessing``: of images and arrays.
        UsageFault: ``verify.inputs``, ``verify.preprocessing``, ``verify.batch``: they cannot
            be given the same.
    """
    pairs = paired(*specs)
    if not pairs:
        named = [first_three(s.name for s in side) or "none" for side in specs]
        raise DataFault(
            "verify.signature", f"the inputs do not correspond: {named[0]} against {named[1]}"
        )
    size, whole = _batch(pairs, facts, batch)
    apart = _apart(pairs, facts)
    if data is not None and data.is_dir():
        wants = _wants(pairs, facts, listener, alike=not apart)
        return _of_images(data, wants, listener, batch=size, pad=whole, limit=limit)
    if apart:
        raise UsageFault(
            "verify.inputs",
            f"they do not take the same inputs: {apart}",
            hint="--data DIR gives each its own, from the same images",
        )
    if data is not None:
        return _of_arrays(data, pairs, batch=size, pad=whole, limit=limit)
    total = limit or _SEEDED
    size = size if whole else min(size, total)
    count = max(total // size, 1)
    return Inputs(_seeded(pairs, size, count, samples=min(size, total)), size, count)


def _batch(
    pairs: Sequence[Pair], facts: Sequence[Facts], asked: int | None
) -> tuple[int, bool]:
    """How many samples at a time, and whether no batch can be smaller.

    Raises:
        UsageFault: ``verify.batch``.
    """
    for pair in pairs:
        extents = [s.shape[0] for s in pair if s.shape and isinstance(s.shape[0], int)]
        if len(set(extents)) > 1:
            raise UsageFault(
                "verify.batch",
                f"A is fixed at batch {extents[0]}, B at batch {extents[1]}",
                hint="export both with the same batch, or with a dynamic one",
            )
        if extents:
            if asked not in (None, extents[0]):
                raise UsageFault(
                    "verify.batch",
                    f"fixed at batch {extents[0]}, not {asked}",
                    hint=f"use --batch {extents[0]}",
                )
            return int(extents[0]), True
    least = max((f.batches[0] for f in facts if f.batches is not None), default=1)
    return asked or usual_batch(facts), least > 1


def _apart(pairs: Sequence[Pair], facts: tuple[Facts, Facts]) -> str:
    """Why the two cannot be given the same numbers; empty where they can."""
    for a, b in pairs:
        floats = a.dtype.startswith("float") and b.dtype.startswith("float")
        clash = len(a.shape) != len(b.shape) or any(
            isinstance(x, int) and isinstance(y, int) and x != y
            for x, y in zip(a.shape, b.shape, strict=True)
        )
        if clash or (a.dtype != b.dtype and not floats):
            return f"{a} against {b}"
    first, second = (f.preprocessing for f in facts)
    if first is not None and second is not None:
        for key in _CONVENTION:
            if first.get(key) != second.get(key):
                return f"{key} {first.get(key)} against {second.get(key)}"
    return ""


# ----------------------------------------------------------------------------------- images


def _wants(
    pairs: Sequence[Pair], facts: tuple[Facts, Facts], listener: Listener, *, alike: bool
) -> list[ImageInput]:
    """How each takes an image; one that says nothing is taken to be as the other.

    Raises:
        UsageFault: ``verify.preprocessing``: they look at different parts of an image.
        DataFault: ``data.input``, ``data.preprocessing``.
    """
    from vntools.pipeline.image_input import ImageInput

    wants: list[ImageInput] = []
    for i, own in enumerate(facts):
        with about(own.path):
            metadata = _borrowed(pairs[0][i], own, facts[1 - i], alike=alike)
            wants.append(ImageInput.of([p[i] for p in pairs], metadata, listener))
    for key in ("image_size", "crop_ratio", "interpolation"):
        a, b = (getattr(w.preprocessing, key) for w in wants)
        if a != b:
            raise UsageFault(
                "verify.preprocessing",
                f"{key} {a} against {b}: they do not look at the same part of an image",
                hint="without --data both get the same seeded inputs",
            )
    return wants


def _borrowed(spec: TensorSpec, own: Facts, other: Facts, *, alike: bool) -> Mapping[str, str]:
    """An artifact's metadata, or where it has none what the other's says of it."""
    said = other.preprocessing
    if own.preprocessing is not None or said is None:
        return own.metadata
    if not alike:
        values = "0..255" if spec.dtype == "uint8" else "normalized"
        said = {**said, "layout": "nchw", "values": values}
    return {PREPROCESSING: json.dumps(said)}


def _of_images(
    folder: Path,
    wants: Sequence[ImageInput],
    listener: Listener,
    *,
    batch: int,
    pad: bool,
    limit: int | None,
) -> Inputs:
    """Each image decoded once for both; those that cannot be used are left out of both.

    Raises:
        DataFault: ``data.empty``: no image.
    """
    from vntools.models.images import list_images
    from vntools.pipeline.image_feeds import ImageFeeds

    chosen = list_images(folder).spread(limit)
    count = len(chosen)

    def batches() -> Generator[Shared, None, None]:
        bad: list[DataFault] = []
        whole = ImageFeeds(chosen, wants, batch=batch, on_bad=bad.append, pad=pad)
        for part in whole:
            yield Shared(part.feeds[0], part.feeds[1], len(part.indices))
        if bad:
            listener.warn(
                "data.bad_images",
                f"{len(bad)} of {count} images left out, {bad[0].path} among them: "
                f"{bad[0].message}",
            )

    return Inputs(batches(), batch, math.ceil(count / batch))


# ----------------------------------------------------------------------------------- arrays


def _common(pair: Pair) -> TensorSpec:
    """What both take: the narrower type, and every extent that one of them fixes."""
    a, b = pair
    dtype = min(a.dtype, b.dtype, key=lambda name: np.dtype(name).itemsize)
    shape = tuple(
        x if isinstance(x, int) else y for x, y in zip(a.shape, b.shape, strict=True)
    )
    return TensorSpec(a.name, shape, dtype)


def _shared(pairs: Sequence[Pair], feed: Feed, samples: int) -> Shared:
    """Arrays by A's names as each side takes them."""
    a, b = (
        {pair[i].name: feed[pair[0].name].astype(pair[i].dtype) for pair in pairs}
        for i in (0, 1)
    )
    return Shared(a, b, samples)


def _of_arrays(
    path: Path, pairs: Sequence[Pair], *, batch: int, pad: bool, limit: int | None
) -> Inputs:
    """Arrays of an .npz file by A's names.

    Raises:
        NoInput: ``input.missing``, ``input.not_regular``.
        DataFault: ``data.npz``.
    """
    from vntools.pipeline.npz_feeds import NpzFeeds

    specs = [_common(p) for p in pairs]
    if pad:
        specs = [replace(s, shape=(batch, *s.shape[1:])) if s.shape else s for s in specs]
    arrays = NpzFeeds(path, specs, batch=batch, limit=limit, code="data")
    shared = (
        _shared(pairs, feed, min(batch, arrays.count - i * batch))
        for i, feed in enumerate(arrays)
    )
    return Inputs(shared, batch, math.ceil(arrays.count / batch))


def _seeded(
    pairs: Sequence[Pair], batch: int, count: int, *, samples: int
) -> Iterator[Shared]:
    """Bytes are uniform, truth values even, all others standard normal."""
    rng = np.random.default_rng(0)
    specs = [_common(p) for p in pairs]
    for _ in range(count):
        feed: dict[str, NDArray[Any]] = {}
        for spec in specs:
            shape = [
                extent if isinstance(extent, int) else _DYNAMIC_EXTENT if axis else batch
                for axis, extent in enumerate(spec.shape)
            ]
            values = {"uint8": 256, "bool": 2}.get(spec.dtype)
            drawn: Any = (
                rng.standard_normal(shape)
                if values is None
                else rng.integers(values, size=shape)
            )
            feed[spec.name] = np.asarray(drawn).astype(spec.dtype)
        yield _shared(pairs, feed, samples)
