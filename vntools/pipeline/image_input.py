"""How an artifact wants its images: size, normalisation, layout and type of its input."""

from __future__ import annotations

__all__ = ["ImageInput"]

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vntools.base.errors import DataFault
from vntools.models.arch import Preprocessing
from vntools.models.images import evaluation_view, to_input
from vntools.pipeline.artifact_facts import PREPROCESSING
from vntools.pipeline.listener import Listener

if TYPE_CHECKING:
    from vntools.runtime.base import TensorSpec

_USUAL = Preprocessing(224, 0.875)
_LARGEST_SIZE = 4096  # pixels a side
_LEAST_CROP = 0.1
_CHANNELS = 3
_ORDER = {"nchw": (0, 1, 2), "nhwc": (1, 2, 0)}  # of the axes of (channel, height, width)
_WHERE = {"nchw": (0, 1, 2), "nhwc": (2, 0, 1)}  # channel, height and width are then
_VALUES = ("normalized", "0..1", "0..255")
_TYPES = ("uint8", "float16", "float32", "float64")


@dataclass(frozen=True)
class ImageInput:
    """How the one input of an artifact wants its images.

    Attributes:
        values: ``normalized``, ``0..1`` or ``0..255``: what is left to the graph.
        layout: ``nchw`` or ``nhwc``.
        batch: where it is fixed.
    """

    name: str
    dtype: str
    layout: str
    values: str
    preprocessing: Preprocessing
    batch: int | None

    @classmethod
    def of(
        cls,
        inputs: Sequence[TensorSpec],
        metadata: Mapping[str, str],
        listener: Listener,
        *,
        crop_ratio: float | None = None,
    ) -> ImageInput:
        """From an artifact's inputs and what its metadata says of them.

        Without metadata: float NCHW or bytes, ImageNet's mean and std, crop ratio 0.875.

        Raises:
            DataFault: ``data.input``: not one input of square RGB images;
                ``data.preprocessing``: metadata that says nothing sensible.
        """
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].dtype not in _TYPES:
            found = ", ".join(map(str, inputs))
            raise DataFault("data.input", f"images need one input of 4 axes, not {found}")
        spec = inputs[0]
        used, layout, values = _USUAL, "nchw", "normalized"
        if PREPROCESSING in metadata:
            used, layout, values = _said(metadata[PREPROCESSING])
        elif spec.dtype == "uint8":
            values = "0..255"
        if spec.dtype == "uint8" and values != "0..255":
            raise DataFault("data.preprocessing", f"bytes cannot hold {values} values")
        channels, *sides = (spec.shape[1 + axis] for axis in _WHERE[layout])
        sizes = {side for side in sides if isinstance(side, int)}
        if len(sizes) > 1 or (isinstance(channels, int) and channels != _CHANNELS):
            raise DataFault("data.input", f"{spec} does not hold square {layout} RGB images")
        size = sizes.pop() if sizes else used.image_size
        used = replace(used, image_size=size, crop_ratio=crop_ratio or used.crop_ratio)
        batch = spec.shape[0] if isinstance(spec.shape[0], int) else None
        made = cls(spec.name, spec.dtype, layout, values, used, batch)
        if PREPROCESSING not in metadata:
            listener.note(f"no metadata on preprocessing; taking {made.text()}")
        return made

    def text(self) -> str:
        """In a line."""
        p = self.preprocessing
        normal = (
            "" if self.values == "0..255" else f", mean {_short(p.mean)}, std {_short(p.std)}"
        )
        return (
            f"{p.interpolation}, crop ratio {p.crop_ratio:g}, {p.image_size}x{p.image_size} "
            f"RGB{normal}; {self.dtype} {self.layout.upper()}, {self.values}"
        )

    def to_record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def array(self, image: Image.Image) -> NDArray[Any]:
        """One image as a sample, without the batch axis.

        Raises:
            DataFault: ``data.image``, see :func:`vntools.models.images.evaluation_view`.
        """
        pixels = np.asarray(evaluation_view(image, self.preprocessing))
        if self.values == "normalized":
            planes: NDArray[Any] = to_input(pixels[None], self.preprocessing)[0]
        else:
            planes = pixels.transpose(2, 0, 1)
            if self.values == "0..1":
                planes = planes.astype(np.float32) / np.float32(255)
        return np.ascontiguousarray(planes.transpose(_ORDER[self.layout]), self.dtype)


def _short(numbers: Sequence[float]) -> str:
    return "/".join(f"{n:g}" for n in numbers)


def _said(text: str) -> tuple[Preprocessing, str, str]:
    """Preprocessing, layout and values, of metadata that a stranger may have written.

    Raises:
        DataFault: ``data.preprocessing``.
    """

    def triple(numbers: Any) -> tuple[float, float, float]:
        a, b, c = map(float, numbers)
        return a, b, c

    try:
        record = json.loads(text)
        used = Preprocessing(
            int(record["image_size"]),
            float(record["crop_ratio"]),
            triple(record["mean"]),
            triple(record["std"]),
            str(record["interpolation"]),
        )
        layout, values = record["layout"], record["values"]
        if not (
            1 <= used.image_size <= _LARGEST_SIZE
            and _LEAST_CROP <= used.crop_ratio <= 1
            and all(map(math.isfinite, used.mean))
            and all(math.isfinite(s) and s > 0 for s in used.std)
            and used.interpolation.upper() in Image.Resampling.__members__
            and layout in _ORDER
            and values in _VALUES
        ):
            raise ValueError
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as e:
        raise DataFault(
            "data.preprocessing",
            f"its metadata {PREPROCESSING} is not what vntools writes",
            hint="export it again",
        ) from e
    return used, layout, values
