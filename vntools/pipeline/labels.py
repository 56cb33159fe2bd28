"""What images are of: class folders, and ReaL, ImageNet's reassessed validation labels."""

from __future__ import annotations

__all__ = ["class_numbers", "labelled_files", "real_labels"]

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vntools.base.artifacts import read_input
from vntools.base.errors import DataFault, first_three
from vntools.models.images import Listing, list_images
from vntools.pipeline.listener import Listener

_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})\.\w+")


def labelled_files(data: Path, listener: Listener) -> tuple[Path, Listing]:
    """The folder of the images (``val`` where ``train`` is beside it), and these."""
    if (data / "train").is_dir() and (data / "val").is_dir():
        data /= "val"
        listener.note(f"taking {data}")
    listing = list_images(data, code="eval")
    if listing.linked:
        listener.note(f"{data}: {listing.others()}")
    return data, listing


def class_numbers(
    files: Sequence[Path],
    root: Path,
    classes: int,
    listener: Listener,
    *,
    class_map: Path | None = None,
) -> NDArray[np.int64] | None:
    """The class of each image, from the first folder below ``root`` that it is in.

    Folders are numbered in the order of their names' bytes, as ImageNet's classes are.

    Args:
        files: images below ``root``.
        root: the folder of class folders.
        classes: how many outputs the network has.
        listener: hears of names that are numbers in another order.
        class_map: says the number of each folder: a JSON object, or lines ``folder number``.

    Returns:
        (len(files),), or None where all images lie in ``root`` itself.

    Raises:
        DataFault: ``eval.classes``: other folders than classes; ``eval.class_map``.
    """
    parts = [file.relative_to(root).parts for file in files]
    loose = sum(len(p) == 1 for p in parts)
    if loose == len(parts) and class_map is None:
        return None
    if loose:
        raise DataFault("eval.classes", f"{loose} images lie in no class folder", path=root)
    folders = sorted({p[0] for p in parts}, key=os.fsencode)
    if class_map is not None:
        numbers = _read_map(class_map, folders, classes)
    else:
        if len(folders) != classes:
            raise DataFault(
                "eval.classes",
                f"{len(folders)} class folders, {classes} outputs",
                hint="--class-map FILE says which output each folder is",
                path=root,
            )
        numbers = {folder: number for number, folder in enumerate(folders)}
        if all(f.isdecimal() for f in folders) and folders != sorted(folders, key=int):
            listener.warn(
                "eval.classes",
                f"class folders are numbered in the order of their names, {folders[1]!r} is "
                "class 1; --class-map FILE says otherwise",
            )
    return np.array([numbers[p[0]] for p in parts], np.int64)


def _read_map(path: Path, folders: Sequence[str], classes: int) -> dict[str, int]:
    """Numbers of ``folders``.

    Raises:
        NoInput: no such file.
        DataFault: ``eval.class_map``.
    """
    text = os.fsdecode(read_input(path))
    try:
        if text.lstrip().startswith("{"):
            numbers: dict[str, Any] = json.loads(text)
        else:
            lines = [line.rsplit(maxsplit=1) for line in text.splitlines() if line.strip()]
            numbers = {folder.strip(): int(number) for folder, number in lines}
    except (ValueError, RecursionError) as e:
        raise DataFault(
            "eval.class_map",
            "neither a JSON object nor lines of a folder and its number",
            path=path,
        ) from e
    lost = [f for f in folders if f not in numbers]
    if lost:
        raise DataFault("eval.class_map", f"no number for {first_three(lost)}", path=path)
    for folder in folders:
        if type(numbers[folder]) is not int or not 0 <= numbers[folder] < classes:
            raise DataFault(
                "eval.class_map",
                f"{folder} is {numbers[folder]!r}, not one of the {classes} outputs",
                path=path,
            )
    return numbers


def real_labels(files: Sequence[Path], path: Path, classes: int) -> list[frozenset[int]]:
    """The ReaL labels of images of ImageNet's validation set; some have none.

    Args:
        files: named ``ILSVRC2012_val_00000001.JPEG`` and so on.
        path: ``real.json``: a list of labels for each image, the first for number 1.
        classes: how many outputs the network has.

    Raises:
        NoInput: no such file.
        DataFault: ``eval.real``: not such a file, or other images.

    Source: Beyer et al. 2020, Are we done with ImageNet?
    """
    try:
        lists = json.loads(read_input(path))
        known = [frozenset(labels) for labels in lists]
        if not all(type(label) is int for labels in known for label in labels):
            raise TypeError
    except (ValueError, TypeError, RecursionError) as e:
        raise DataFault("eval.real", "not a JSON list of lists of labels", path=path) from e
    largest = max((max(labels) for labels in known if labels), default=-1)
    if not 0 <= largest < classes:
        raise DataFault(
            "eval.real",
            f"its labels go up to {largest}, there are {classes} outputs",
            path=path,
        )
    found: list[frozenset[int]] = []
    for file in files:
        match = _VALIDATION.fullmatch(file.name)
        if match is None or not 1 <= int(match[1]) <= len(known):
            raise DataFault(
                "eval.real",
                f"its name is not that of one of the {len(known)} images with ReaL labels",
                hint="these are ILSVRC2012_val_00000001.JPEG and so on",
                path=file,
            )
        found.append(known[int(match[1]) - 1])
    return found
