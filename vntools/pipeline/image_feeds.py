"""Images of a folder, or arrays of an .npz file, as batches of what an artifact takes."""

from __future__ import annotations

__all__ = ["Batch", "Feed", "Feeds", "ImageFeeds", "calibration_feeds"]

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vntools.base.errors import DataFault, NoInput, about
from vntools.base.provenance import host
from vntools.models.images import list_images, open_rgb
from vntools.pipeline.image_input import ImageInput
from vntools.pipeline.listener import Listener

if TYPE_CHECKING:
    from vntools.runtime.base import TensorSpec

Feed = dict[str, NDArray[Any]]
_TOLERATED = 0.01  # of the images for calibration may be bad
_FEW = 32


class Feeds(Protocol):
    """Batches by input name; every iteration starts anew and gives the same ones.

    Attributes:
        images: how many images (or samples) the last iteration gave; 0 before the first.
    """

    images: int

    def __iter__(self) -> Iterator[Feed]:
        """One pass over all batches."""
        ...


@dataclass(frozen=True)
class Batch:
    """Samples of some images.

    Attributes:
        feeds: for each of the inputs asked for, the samples by its name.
        indices: which of the files they are of; behind them there may be padding.
    """

    feeds: tuple[Feed, ...]
    indices: list[int]


_Samples = Future[tuple[NDArray[Any], ...]]
"""A sample for each of the inputs."""


class ImageFeeds:
    """Batches of image files, decoded by threads ahead of whoever takes them.

    A batch and an image for each thread are under way at a time, whatever the number of
    images; the order never depends on timing.

    Args:
        files: images.
        wants: the inputs that each batch is for; an image is decoded once for all of them.
        batch: how many images; bad ones are left out, so only the last may be incomplete.
        on_bad: called with the fault of each image that cannot be used, in their order; what
            it raises ends the iteration.
        pad: repeat the last image until the last batch is full.
        workers: threads; None is one a core.

    Raises:
        IoFault, NoPermission: while iterating: a file vanished or cannot be read.
    """

    def __init__(
        self,
        files: Sequence[Path],
        wants: Sequence[ImageInput],
        *,
        batch: int,
        on_bad: Callable[[DataFault], None],
        pad: bool = False,
        workers: int | None = None,
    ) -> None:
        self._files, self._wants, self._batch = files, wants, batch
        self._on_bad, self._pad = on_bad, pad
        self._workers = workers or int(host()["cores"])

    def __iter__(self) -> Generator[Batch, None, None]:
        """One pass over the files."""
        rows: list[tuple[NDArray[Any], ...]] = []
        indices: list[int] = []
        with closing(self._decoded()) as decoded:
            for index, future in decoded:
                try:
                    rows.append(future.result())
                except DataFault as e:
                    self._on_bad(e)
                    continue
                indices.append(index)
                if len(rows) == self._batch:
                    full = self._stacked(rows, indices)
                    rows, indices = [], []
                    yield full
        if rows:
            yield self._stacked(rows, indices)

    def _decoded(self) -> Generator[tuple[int, _Samples], None, None]:
        """Each file's number and samples, in order."""
        pool = ThreadPoolExecutor(self._workers, "decode")
        waiting: deque[tuple[int, _Samples]] = deque()
        try:
            for number, file in enumerate(self._files):
                waiting.append((number, pool.submit(self._samples, file)))
                if len(waiting) >= self._batch + self._workers:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            # After an error or a signal nothing is waited for.
            pool.shutdown(wait=False, cancel_futures=True)

    def _samples(self, file: Path) -> tuple[NDArray[Any], ...]:
        with about(file):
            image = open_rgb(file)
            return tuple(want.array(image) for want in self._wants)

    def _stacked(self, rows: list[tuple[NDArray[Any], ...]], indices: list[int]) -> Batch:
        if self._pad:
            rows = rows + rows[-1:] * (self._batch - len(rows))
        feeds = tuple(
            {want.name: np.stack([row[i] for row in rows])}
            for i, want in enumerate(self._wants)
        )
        return Batch(feeds, indices)


def calibration_feeds(
    path: Path,
    inputs: Sequence[TensorSpec],
    metadata: Mapping[str, str],
    *,
    batch: int,
    limit: int | None,
    listener: Listener,
) -> Feeds:
    """Batches to calibrate with: real images, or arrays of an .npz file.

    Args:
        path: a folder of images, or of folders of them; or an .npz file of arrays
            (n, ...) by input name (a single array needs no name), as the graph takes them.
        inputs: of the artifact.
        metadata: of the artifact; ``vntools.preprocessing`` says what images go through.
        batch: where the artifact leaves it open; where it does not, the last batch is filled
            up with its last sample.
        limit: the most images to take, spread evenly over the folders.
        listener: hears what is left out, and of few images.

    Raises:
        NoInput: ``calib.missing``: neither a folder nor an .npz file.
        DataFault: ``calib.empty``: no image; ``calib.npz``: not what the graph takes;
            ``data.input``, ``data.preprocessing``; while iterating ``calib.bad_images``: more
            than 1 % of the images cannot be used.
    """
    if path.is_file() and path.suffix.lower() == ".npz":
        from vntools.pipeline.npz_feeds import NpzFeeds

        feeds = NpzFeeds(path, inputs, batch=batch, limit=limit, code="calib")
        count = feeds.count
    elif not path.is_dir():
        raise NoInput(
            "calib.missing", "neither a folder of images nor an .npz file", path=path
        )
    else:
        want = ImageInput.of(inputs, metadata, listener)
        listing = list_images(path, code="calib")
        if listing.skipped:
            listener.note(f"{path}: {listing.others()}")
        files = listing.spread(limit)
        # In a seeded order, so that the first of them are not all of one class.
        chosen = [files[i] for i in np.random.default_rng(0).permutation(len(files))]
        count = len(chosen)
        feeds = _FolderFeeds(path, chosen, want, batch=batch, listener=listener)
    if count < _FEW:
        listener.warn("calib.few", f"{count} images are few for ranges; give {_FEW} or more")
    return feeds


class _FolderFeeds:
    """The calibration images of a folder."""

    def __init__(
        self,
        folder: Path,
        files: Sequence[Path],
        want: ImageInput,
        *,
        batch: int,
        listener: Listener,
    ) -> None:
        self.images = 0
        self._folder, self._files, self._want = folder, files, want
        self._batch, self._listener = want.batch or batch, listener
        self._told = False

    def __iter__(self) -> Iterator[Feed]:
        bad: list[DataFault] = []

        def on_bad(fault: DataFault) -> None:
            bad.append(fault)
            if len(bad) > _TOLERATED * len(self._files):
                raise DataFault(
                    "calib.bad_images",
                    f"of {len(self._files)} images more than 1 % cannot be used, the first "
                    f"is {bad[0].path}: {bad[0].message}",
                    hint="take them out",
                    path=self._folder,
                )

        whole = ImageFeeds(
            self._files,
            [self._want],
            batch=self._batch,
            on_bad=on_bad,
            pad=self._want.batch is not None,
        )
        images = 0
        for part in whole:
            images += len(part.indices)
            yield part.feeds[0]
        self.images = images
        if bad and not self._told:
            self._told = True
            self._listener.warn(
                "calib.bad_images",
                f"{len(bad)} of {len(self._files)} images left out, the first is "
                f"{bad[0].path}: {bad[0].message}",
            )
