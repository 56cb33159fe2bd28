"""Safetensors files: the header held against the file, the tensors mapped from it.

The library refuses holes, overlaps and trailing bytes; JSON readers differ on a key that
stands twice, which decides the weights, so the header is read strictly here before.
"""

from __future__ import annotations

__all__ = ["is_safetensors", "read_safetensors"]

import json
import math
import os
from collections.abc import Mapping
from typing import IO, Any, cast

from torch import Tensor

from vntools.base.errors import DataFault

_MAX_HEADER_BYTES = 8 << 20
_MAX_TEXT = 10_000  # characters of a value of __metadata__
_ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
_TEXTS = {"model"}  # the fields of __metadata__ that are no JSON


def is_safetensors(head: bytes) -> bool:
    """Whether a file begins as one does: a length below 4 GiB, then a JSON object."""
    return head[4:9] == b"\0\0\0\0{"


def read_safetensors(
    file: IO[bytes], known: frozenset[str]
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """The tensors of an open file, mapped, and the ``known`` fields of ``__metadata__``.

    Of the metadata ``model`` is a text, any other field JSON: ``"decay_epochs": "100"``.

    Raises:
        DataFault: ``ckpt.format`` (the header), ``ckpt.truncated``, ``ckpt.tensor`` (a type
            that weights do not have), ``ckpt.args`` (a field that is no JSON).
    """
    from safetensors import SafetensorError, safe_open

    metadata = _check_header(file)
    said = {k: _field(k, text) for k, text in metadata.items() if k in known}
    try:
        # The file that was looked over, whatever has its name by now.
        with safe_open(f"/proc/self/fd/{file.fileno()}", framework="pt") as opened:
            tensors: dict[str, Tensor] = {n: opened.get_tensor(n) for n in opened.keys()}  # noqa: SIM118
    except SafetensorError as e:
        raise DataFault("ckpt.format", "its safetensors header is damaged") from e
    return tensors, said


def _check_header(file: IO[bytes]) -> Mapping[str, object]:
    """``__metadata__``, once header and file agree."""
    file_bytes = os.fstat(file.fileno()).st_size
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > _MAX_HEADER_BYTES:
        raise DataFault("ckpt.format", f"its header is larger than {_MAX_HEADER_BYTES} bytes")
    text = file.read(length)
    if len(text) < length:
        raise DataFault("ckpt.truncated", "ends within its header", hint="fetch it again")
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as e:
        raise DataFault("ckpt.format", "its safetensors header is damaged") from e
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise DataFault("ckpt.format", "its __metadata__ is no object")
    spans = sorted(_span(name, held) for name, held in header.items())
    behind = 0
    for begin, end, name in spans:
        if begin != behind:
            raise DataFault("ckpt.format", f"{name} overlaps another tensor or leaves a hole")
        behind = end
    size_bytes = 8 + length + behind
    if file_bytes < size_bytes:
        why = f"has {file_bytes} of {size_bytes} bytes"
        raise DataFault("ckpt.truncated", why, hint="fetch it again")
    if file_bytes > size_bytes:
        raise DataFault("ckpt.format", f"{file_bytes - size_bytes} bytes follow its tensors")
    return cast("dict[str, object]", metadata)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys all differ."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _span(name: str, held: object) -> tuple[int, int, str]:
    """Begin and end of a tensor's bytes, which its type and shape fill."""
    match held:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end], **rest}:
            numbers = cast("list[object]", [*shape, begin, end])
            whole = all(type(n) is int and 0 <= n < 1 << 63 for n in numbers)
            if not whole or rest or len(shape) > 8:
                raise DataFault("ckpt.format", f"{name} has no sane shape and offsets")
            if dtype not in _ITEM_BYTES:
                raise DataFault("ckpt.tensor", f"{name} is a {dtype} tensor")
            if math.prod(shape) * _ITEM_BYTES[dtype] != end - begin:
                raise DataFault("ckpt.format", f"{name} has another size than its shape")
            return begin, end, name
        case _:
            raise DataFault("ckpt.format", f"{name} has no type, shape and offsets")


def _field(name: str, text: object) -> object:
    if not isinstance(text, str) or len(text) > _MAX_TEXT:
        raise DataFault("ckpt.args", f"args.{name} is no short text")
    if name in _TEXTS:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise DataFault("ckpt.args", f"args.{name} is no JSON") from e
