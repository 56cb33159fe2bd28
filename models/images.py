"""Image files of strangers as pixels, and pixels as inputs: the transform of evaluation.

The transform is torchvision's ``Resize``, ``CenterCrop``, ``ToTensor`` and ``Normalize`` over
Pillow, the field's usual one (and the paper's, appendix A), equal to it in every bit; so what
is calibrated with, verified with and measured on is what others measure on.
"""

from __future__ import annotations

__all__ = [
    "Listing",
    "evaluation_view",
    "list_images",
    "open_rgb",
    "resampling",
    "to_input",
]

import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vntools.base.errors import DataFault, IoFault, NoInput, from_os_error
from vntools.models.arch import Preprocessing

_SUFFIXES = (".jpg", ".jpeg", ".png")
_MAX_PIXELS = 50_000_000
_TOO_LARGE = "has more than 50 megapixels"
_MAX_ASPECT = 20
_MAX_WORK = 100 * _MAX_PIXELS
"""Pixels times scans of a JPEG: some seconds; what is published has about ten scans."""
_MOST_PIXELS_A_BYTE = 64 * 8
"""Of a JPEG: a Huffman code is a bit or more, and each 8x8 block has one. Else a file of 1 kB
that ends early is decoded as grey, for 600 MB."""
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Listing:
    """Image files below a folder.

    Attributes:
        files: JPEG and PNG by suffix, regular files, in the order of their paths' bytes.
        skipped: how many other entries there are: other suffixes, links to folders, pipes,
            links that lead nowhere.
        linked: how many of these are links to folders.
    """

    files: tuple[Path, ...]
    skipped: int
    linked: int

    def others(self) -> str:
        """How many are skipped, in words."""
        links = f", {self.linked} of them links to folders" if self.linked else ""
        return f"{self.skipped} other files are skipped{links}"

    def spread(self, limit: int | None) -> tuple[Path, ...]:
        """At most ``limit`` files, spread evenly over all; None is all."""
        found, count = len(self.files), min(len(self.files), limit or len(self.files))
        return tuple(self.files[i * found // count] for i in range(count))


def list_images(folder: Path, *, code: str = "data") -> Listing:
    """Image files of a folder and of its folders; links to folders are not followed.

    Args:
        folder: images, or a folder of them for each class, at any depth.
        code: what the codes of errors begin with.

    Raises:
        NoInput: ``CODE.missing``: no such folder.
        DataFault: ``CODE.empty``: it holds no image.
        NoPermission: a folder that cannot be listed.
    """
    if not folder.is_dir():
        raise NoInput(f"{code}.missing", "no such folder", path=folder)
    files: list[str] = []
    skipped, linked, folders = 0, 0, [os.fspath(folder)]
    while folders:
        listed = folders.pop()
        try:
            with os.scandir(listed) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif entry.name.lower().endswith(_SUFFIXES) and os.path.isfile(entry.path):
                        files.append(entry.path)
                    else:
                        skipped += 1
                        linked += os.path.isdir(entry.path)
        except OSError as e:
            raise from_os_error(e, listed, writing=False) from e
    if not files:
        others = f" and {skipped} other files" if skipped else ""
        why = f"looked for {' '.join(_SUFFIXES)}, found 0{others}"
        hint = "links to folders are not followed" if linked else ""
        raise DataFault(f"{code}.empty", why, hint=hint, path=folder)
    return Listing(tuple(map(Path, sorted(files, key=os.fsencode))), skipped, linked)


def open_rgb(path: Path) -> Image.Image:
    """A JPEG or PNG file as RGB, as torchvision's loader has it: no EXIF rotation.

    Grey, palette, alpha and CMYK are converted; of an animation, the first frame.

    Raises:
        DataFault: ``data.image``: damaged, not JPEG or PNG, of 16 bits a channel, beyond 50
            megapixels, more than 20 times as long as wide, or of hundreds of scans.
        IoFault: ``data.vanished``: it is no longer there.
        NoPermission: it cannot be read.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            return _decoded(file)
    except DataFault as e:
        raise DataFault("data.image", e.message, path=path) from e
    except FileNotFoundError as e:
        raise IoFault("data.vanished", "it was there and is gone", path=path) from e
    except Image.DecompressionBombError as e:
        raise DataFault("data.image", _TOO_LARGE, path=path) from e
    except Exception as e:
        # Pillow's errors on a damaged file have no common class, nor an errno.
        if isinstance(e, OSError) and e.errno:
            raise from_os_error(e, path, writing=False) from e
        raise DataFault("data.image", "cannot be read as JPEG or PNG", path=path) from e


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # of a pipe, which would wait for a writer


def _decoded(file: IO[bytes]) -> Image.Image:
    with Image.open(file, formats=("JPEG", "PNG")) as image:
        if image.width * image.height > _MAX_PIXELS:
            raise DataFault("data.image", _TOO_LARGE)
        if max(image.size) > _MAX_ASPECT * min(image.size):
            raise DataFault("data.image", f"is {image.width}x{image.height} pixels, too long")
        if image.format != "PNG":
            _check_jpeg(file, image.width * image.height)
        # The layouts of a PNG's pixels are called such as RGB;16B; Pillow clips what is grey.
        if any("16" in str(tile.args) for tile in image.tile):
            raise DataFault("data.image", "a PNG of 16 bits a channel")
        image.load()
        # What is transparent goes with the conversion; Pillow would warn of it.
        image.info.pop("transparency", None)
        return image.convert("RGB")


def _check_jpeg(file: IO[bytes], pixels: int) -> None:
    if pixels > _MOST_PIXELS_A_BYTE * os.fstat(file.fileno()).st_size:
        raise DataFault("data.image", "holds too little for its size")
    if pixels * _scans(file) > _MAX_WORK:
        raise DataFault("data.image", "has too many scans for its size")


def _scans(file: IO[bytes]) -> int:
    """Scans of a JPEG, or more: in a scan's own data FF is not followed by DA.

    Each costs a pass over all pixels, whatever its length (libjpeg-turbo's TJPARAM_SCANLIMIT).
    """
    at = file.tell()
    file.seek(0)
    found, last = 0, b""
    while block := file.read(_BLOCK_BYTES):
        found += (last + block).count(b"\xff\xda")
        last = block[-1:]
    file.seek(at)
    return found


def evaluation_view(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """The square that is measured on: shorter side resized, then the centre.

    torchvision's ``Resize(int(image_size / crop_ratio))`` and ``CenterCrop(image_size)``: the
    longer side becomes ``int(shorter * long / short)``, offsets are rounded half to even, and
    what is too small for the crop is padded with black.

    Raises:
        DataFault: ``data.image``: resized it would have more than 50 megapixels.
    """
    size = preprocessing.image_size
    shorter, short = int(size / preprocessing.crop_ratio), min(image.size)
    width, height = (
        shorter if side == short else int(shorter * side / short) for side in image.size
    )
    if width * height > _MAX_PIXELS:
        raise DataFault("data.image", f"resized to {width}x{height} it is too large")
    resized = image.resize((width, height), resampling(preprocessing))
    left, top = _start(width, size), _start(height, size)
    return resized.crop((left, top, left + size, top + size))


def _start(side: int, size: int) -> int:
    """Where the centre begins; negative where the image is padded."""
    return round((side - size) / 2) if side >= size else -((size - side) // 2)


def resampling(preprocessing: Preprocessing) -> Image.Resampling:
    """Pillow's filter of that name."""
    return Image.Resampling[preprocessing.interpolation.upper()]


def to_input(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """``ToTensor`` and ``Normalize``: ((x / 255) - mean) / std, in float32.

    Args:
        pixels: (n, height, width, 3).
        preprocessing: mean and standard deviation of each channel.

    Returns:
        (n, 3, height, width), contiguous.
    """
    mean, std = (np.asarray(v, np.float32) for v in (preprocessing.mean, preprocessing.std))
    scaled: NDArray[Any] = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))
