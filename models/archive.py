"""The file of a checkpoint: looked over before torch reads it, and mapped rather than read.

``torch.load(weights_only=True)`` alone checks neither sizes nor CRCs, and allows globals that
return uninitialised memory. So the zip directory and the names in the pickle are checked
first. Weights stay on disk until they are used, and are then held against the file's CRCs.
"""

from __future__ import annotations

__all__ = ["Archive", "open_archive"]

import argparse
import os
import pickletools
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch

from vntools.base.artifacts import require_file
from vntools.base.errors import DataFault, from_os_error

_MAX_PICKLE_BYTES = 64 << 20
_DTYPES = (
    "Float",
    "Half",
    "BFloat16",
    "Double",
    "Long",
    "Int",
    "Short",
    "Char",
    "Byte",
    "Bool",
)
_ALLOWED_GLOBALS = {
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "argparse.Namespace",
    *(f"torch.{dtype}Storage" for dtype in _DTYPES),
}
# Opcodes that import or call by other ways than GLOBAL and REDUCE; torch.save writes none.
_REFUSED_OPCODES = {"EXT1", "EXT2", "EXT4", "INST", "NEWOBJ_EX", "OBJ", "STACK_GLOBAL"}
_DAMAGED = "the file is damaged (fetch it again), or was saved without checksums"
_RESAVE = 're-save the weights alone: torch.save({"model": state_dict}, ...)'


@dataclass(frozen=True)
class Archive:
    """A checkpoint's contents, its tensors mapped from the file.

    Attributes:
        path: the file.
        content: what was saved; tensors read their bytes when they are used.
        records: (size in bytes, CRC-32) of every record of the file.
    """

    path: Path
    content: object
    records: frozenset[tuple[int, int]]

    def check_storage(self, name: str, tensor: torch.Tensor) -> None:
        """Hold the stored bytes of a tensor against the CRCs of the file's records.

        A storage that claims another size than its record has matches no CRC either.

        Raises:
            DataFault: ``ckpt.crc``.
        """
        raw = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).numpy()
        if (raw.size, zlib.crc32(raw.data)) not in self.records:
            raise DataFault(
                "ckpt.crc",
                f"the bytes of {name} fail their CRC",
                hint=_DAMAGED,
            )


def open_archive(path: str | os.PathLike[str]) -> Archive:
    """Check a file that torch.save wrote, and map it.

    Raises:
        NoInput: absent, or no regular file.
        NoPermission: unreadable.
        DataFault: ``ckpt.empty``, ``.truncated``, ``.format``, ``.legacy``, ``.compressed``,
            ``.zip_layout``, ``.record``, ``.crc`` or ``.unsafe``.
    """
    source = require_file(path)
    try:
        with source.open("rb") as file:
            _check_kind(file)
            records = _check_records(file)
        return Archive(source, _map(source), records)
    except OSError as e:
        raise from_os_error(e, path, writing=False) from e
    except DataFault as e:
        raise DataFault(e.code, e.message, hint=e.hint, path=path) from e


def _check_kind(file: IO[bytes]) -> None:
    """Tell a zip archive from what is often found in its place."""
    head = file.read(1024)
    text = head.lstrip().lower()
    if head.startswith(b"PK\x03\x04"):
        return
    if not head:
        raise DataFault("ckpt.empty", "is empty", hint="the download did not finish")
    if text.startswith(b"version https://git-lfs"):
        raise DataFault("ckpt.format", "is a git-lfs pointer", hint="run: git lfs pull")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise DataFault("ckpt.format", "is an HTML page", hint="check the download's address")
    # A bare pickle starts with its protocol opcode; a tar file has its mark at byte 257.
    if head[:1] == b"\x80" or head[257:262] == b"ustar":
        raise DataFault(
            "ckpt.legacy",
            "is in the format of torch before 1.6, which has no checksums",
            hint="re-save it with a newer torch",
        )
    raise DataFault("ckpt.format", "is not a checkpoint that torch.save wrote")


def _check_records(file: IO[bytes]) -> frozenset[tuple[int, int]]:
    """(size, CRC-32) of every record, once the zip directory and the pickle look sane."""
    size_bytes = os.fstat(file.fileno()).st_size
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            _check_layout(entries, size_bytes)
            pickle = next(e for e in entries if e.filename.endswith("/data.pkl"))
            if pickle.file_size > _MAX_PICKLE_BYTES:
                raise DataFault("ckpt.zip_layout", "its pickle is larger than 64 MiB")
            _check_globals(archive.read(pickle))
    except zipfile.BadZipFile as e:
        if "CRC" in str(e):
            raise DataFault("ckpt.crc", "its pickle fails its CRC", hint=_DAMAGED) from e
        why = "ends early or has a damaged zip directory"
        raise DataFault("ckpt.truncated", why, hint="fetch it again") from e
    except (NotImplementedError, ValueError, EOFError, struct.error, RuntimeError) as e:
        raise DataFault("ckpt.zip_layout", "its zip directory is damaged") from e
    return frozenset((e.file_size, e.CRC) for e in entries)


def _check_layout(entries: list[zipfile.ZipInfo], size_bytes: int) -> None:
    """Records are stored as they are, each once, inside the file and inside the archive."""
    names = [e.filename for e in entries]
    for e in entries:
        if e.compress_type != zipfile.ZIP_STORED or e.flag_bits & 1:
            why = f"record {e.filename} is compressed or encrypted"
            raise DataFault("ckpt.compressed", why, hint="re-save it with torch.save")
        if e.file_size != e.compress_size or e.header_offset + e.file_size > size_bytes:
            raise DataFault("ckpt.record", f"record {e.filename} does not fit into the file")
        if e.filename.startswith("/") or ".." in e.filename.split("/"):
            raise DataFault("ckpt.zip_layout", f"record name {e.filename} leaves the archive")
    if len(set(names)) != len(names) or sum(n.endswith("/data.pkl") for n in names) != 1:
        raise DataFault("ckpt.zip_layout", "has a record twice, or not just one data.pkl")
    if sum(e.file_size for e in entries) > size_bytes:
        raise DataFault("ckpt.record", "its records overlap")


def _check_globals(pickle: bytes) -> None:
    """Refuse a pickle that names anything beyond tensors, dicts and argparse.Namespace."""
    try:
        for opcode, argument, _ in pickletools.genops(pickle):
            found = ""
            if opcode.name == "GLOBAL":
                found = str(argument).replace(" ", ".")
            elif opcode.name in _REFUSED_OPCODES:
                found = f"something by the pickle opcode {opcode.name}"
            if found and found not in _ALLOWED_GLOBALS:
                raise DataFault("ckpt.unsafe", f"asks to import {found}", hint=_RESAVE)
    except (ValueError, IndexError) as e:
        raise DataFault("ckpt.format", "its pickle is damaged") from e


def _map(path: Path) -> object:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, mmap=True, weights_only=True, map_location="cpu")
    except OSError:
        raise
    # What torch raises on a damaged pickle has no common class, and advises unsafe loading.
    except Exception as e:
        raise DataFault("ckpt.format", "cannot be read as a checkpoint") from e
