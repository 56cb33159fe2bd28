"""Images made here: good ones, and the bad ones of strangers."""

from __future__ import annotations

__all__ = ["BAD", "noise", "picture", "png"]

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def noise(width: int, height: int, *, seed: int = 0) -> Image.Image:
    """An RGB image of uniform bytes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def picture(path: Path, *, red: int = 0, size: tuple[int, int] = (12, 9)) -> Path:
    """A file of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (red, 0, 0)).save(path)
    return path


def _chunk(kind: bytes, data: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + crc


def png(
    width: int, height: int, *, depth: int = 8, colour: int = 0, extra: bytes = b""
) -> bytes:
    """A black PNG of any header; ``colour`` is its colour type, ``extra`` further chunks."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = 1 + (width * channels * depth + 7) // 8
    data = zlib.compress(bytes(row * height), 1) if row * height < 1 << 26 else b""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = _chunk(b"IHDR", header) + extra + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")
    return _SIGNATURE + parts


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _wrong_crc() -> bytes:
    data = bytearray(_saved(noise(40, 30), "PNG"))
    data[len(data) // 2] ^= 1
    return bytes(data)


def _text_bomb() -> bytes:
    return png(4, 4, extra=_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 23))))


def _many_scans() -> bytes:
    whole = _saved(Image.new("RGB", (2000, 2000)), "JPEG", progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + last * 1300 + whole[-2:]


def _ends_early() -> bytes:
    """Of 49 megapixels by its header, which libjpeg fills with grey."""
    whole = bytearray(_saved(Image.new("RGB", (16, 16)), "JPEG", progressive=True))
    frame = whole.index(b"\xff\xc2")
    whole[frame + 5 : frame + 9] = struct.pack(">HH", 7000, 7000)
    return bytes(whole)


def _deep_behind_text() -> bytes:
    whole = png(8, 8, depth=16)
    start = len(_SIGNATURE)
    return whole[:start] + _chunk(b"tEXt", b"k\0v") + whole[start:]


BAD: dict[str, tuple[str, Callable[[], bytes]]] = {
    "71-truncated": ("x.jpg", lambda: _saved(noise(64, 64), "JPEG")[:1500]),
    "71-empty": ("x.jpg", lambda: b""),
    "71-text": ("x.jpg", lambda: b"this is no image\n"),
    "71-png-crc": ("x.png", _wrong_crc),
    "75-16-bit-grey": ("x.png", lambda: png(8, 8, depth=16)),
    "75-16-bit-rgb": ("x.png", lambda: png(8, 8, depth=16, colour=2)),
    "75-behind-text": ("x.png", _deep_behind_text),
    "77-bomb": ("x.png", lambda: png(60000, 60000)),
    "77-56-megapixels": ("x.png", lambda: png(8000, 7000, depth=1)),
    "77-100-megapixels": ("x.png", lambda: png(10000, 10000, depth=1)),
    "77-scans": ("x.jpg", _many_scans),
    "77-ends-early": ("x.jpg", _ends_early),
    "78-thin": ("x.png", lambda: png(1, 60000)),
    "79-text-bomb": ("x.png", _text_bomb),
    "80-postscript": ("x.jpg", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
}
"""Files that are not used: by row of the catalogue, a name and what makes the content."""
