"""Images to train and measure on: scikit-learn's digits, or a folder with a folder per class.

Both are RGB images that go through the same preprocessing, so what is trained on, calibrated
with and measured is made of the same pixels.
"""

from __future__ import annotations

__all__ = ["Images", "digits", "image_folder"]

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vntools.base.errors import DataFault
from vntools.base.optional import require
from vntools.models.arch import Preprocessing
from vntools.models.images import (
    evaluation_view,
    list_images,
    open_rgb,
    resampling,
    to_input,
)

_TEST_PART = 0.2
_SPLIT_SEED = 0


@dataclass(frozen=True)
class Images:
    """Labelled images, opened when they are asked for.

    Attributes:
        openers: one for each image; returns it in RGB.
        labels: (len(openers),) class numbers.
        classes: class names, in the order of the numbers.
        preprocessing: what such images usually go through.
    """

    openers: Sequence[Callable[[], Image.Image]]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.openers)

    def batch(
        self,
        indices: Sequence[int] | NDArray[np.int64],
        preprocessing: Preprocessing,
        *,
        augment: np.random.Generator | None = None,
    ) -> NDArray[np.float32]:
        """Preprocessed images, (len(indices), 3, image_size, image_size) float32.

        Args:
            indices: which images.
            preprocessing: what they go through.
            augment: where given, a random crop is taken and not the centre.

        Raises:
            DataFault: ``data.image``: an image cannot be read.
        """
        size = preprocessing.image_size
        pixels = np.empty((len(indices), size, size, 3), np.uint8)
        for row, index in zip(pixels, indices, strict=True):
            image = self.openers[index]()
            if augment is None:
                row[...] = np.asarray(evaluation_view(image, preprocessing))
            else:
                row[...] = np.asarray(_random(image, preprocessing, augment))
        return to_input(pixels, preprocessing)

    def split(self) -> tuple[Images, Images]:
        """A training part, and a fifth for testing: the same images every time."""
        order = np.random.default_rng(_SPLIT_SEED).permutation(len(self))
        tests = round(len(self) * _TEST_PART)
        return self._part(order[tests:]), self._part(order[:tests])

    def _part(self, indices: NDArray[np.int64]) -> Images:
        openers = [self.openers[i] for i in indices]
        return replace(self, openers=openers, labels=self.labels[indices])


def digits() -> tuple[Images, Images]:
    """Scikit-learn's 1797 handwritten digits of 8x8 pixels: a training and a test part.

    Source: Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits, UCI.

    Raises:
        Unavailable: scikit-learn is not installed.
    """
    found = require("sklearn.datasets", extra="demo").load_digits()
    grey = np.rint(found.images * (255 / 16)).astype(np.uint8)  # its values run from 0 to 16
    openers = [partial(Image.fromarray(g).convert, "RGB") for g in grey]
    usual = Preprocessing(32, 1.0, mean=(0.3, 0.3, 0.3), std=(0.38, 0.38, 0.38))
    return Images(openers, found.target.astype(np.int64), tuple("0123456789"), usual).split()


def image_folder(path: str | os.PathLike[str]) -> tuple[Images, Images]:
    """JPEG and PNG images in one folder per class: a training and a test part.

    The parts are the subfolders ``train`` and ``val`` where both exist; else a fifth of the
    images is kept for testing. Classes are numbered in the order of their names.

    Raises:
        NoInput: ``data.missing``: no such folder.
        DataFault: ``data.empty``: a class without images; ``data.classes``: unlike in val,
            images in no class folder, or links to folders, which are not followed.
    """
    root = Path(path)
    if not ((root / "train").is_dir() and (root / "val").is_dir()):
        return _read_folder(root).split()
    training, test = _read_folder(root / "train"), _read_folder(root / "val")
    if training.classes != test.classes:
        raise DataFault("data.classes", "train and val hold different classes", path=path)
    return training, test


def _read_folder(root: Path) -> Images:
    listing = list_images(root)
    if listing.linked:
        # A class would be missing, and training would not notice.
        raise DataFault("data.classes", "links to folders are not followed", path=root)
    parts = [file.relative_to(root).parts for file in listing.files]
    if any(len(p) == 1 for p in parts):
        raise DataFault("data.classes", "images lie in no class folder", path=root)
    folders = sorted((d.name for d in root.iterdir() if d.is_dir()), key=os.fsencode)
    empty = sorted(set(folders).difference(p[0] for p in parts))
    if len(folders) < 2 or empty:
        why = f"no image in {empty[0]}" if empty else f"{len(folders)} class folders"
        looked = "two or more folders, each with .jpg, .jpeg or .png files, are needed"
        raise DataFault("data.empty", why, hint=looked, path=root)
    numbers = {name: number for number, name in enumerate(folders)}
    labels = np.array([numbers[p[0]] for p in parts], np.int64)
    openers = [partial(open_rgb, file) for file in listing.files]
    return Images(openers, labels, tuple(folders), Preprocessing(224, 0.875))


def _random(
    image: Image.Image, preprocessing: Preprocessing, rng: np.random.Generator
) -> Image.Image:
    """A view to train on: 60 to 100 % of the image's area, from anywhere in it."""
    part = rng.uniform(0.6, 1) ** 0.5
    width, height = image.width * part, image.height * part
    left = rng.uniform(0, image.width - width)
    top = rng.uniform(0, image.height - height)
    size = preprocessing.image_size
    box = (left, top, left + width, top + height)
    return image.resize((size, size), resampling(preprocessing), box=box)
