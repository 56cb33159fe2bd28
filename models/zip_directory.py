"""The directory of a zip archive, such that no two readers can read it differently.

Python's zipfile checks what torch relies on; but the two find the directory by different
fields, compare names differently and disagree on what follows an archive. What both must
agree on is required here: the directory ends where its end record begins, names differ in
more than case, records lie one behind the other.
"""

from __future__ import annotations

__all__ = ["Record", "read_records"]

import struct
import zipfile
from dataclasses import dataclass
from typing import IO

from vntools.base.errors import DataFault

_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_UTF_8 = 1 << 11  # among the flags: a name's encoding
_LOCAL = struct.Struct("<4s5H3L2H")


@dataclass(frozen=True)
class Record:
    """A record of the archive, stored as it is.

    Attributes:
        name: without the archive's top folder.
        entry: as zipfile has it.
        offset: of its data in the file.
    """

    name: str
    entry: zipfile.ZipInfo
    offset: int


def read_records(archive: zipfile.ZipFile, file: IO[bytes], size_bytes: int) -> list[Record]:
    """The records of an archive of ``torch.save``, all of whose places are known to be sane.

    Args:
        archive: of the same file.
        file: the file itself.
        size_bytes: of the file.

    Raises:
        DataFault: ``ckpt.compressed``, ``ckpt.record``, ``ckpt.zip_layout``.
    """
    entries = archive.infolist()
    if _directory(file, size_bytes) != (archive.start_dir, len(entries)):
        raise DataFault("ckpt.zip_layout", "its zip directory is not at its end")
    top = entries[0].filename.partition("/")[0] + "/" if entries else ""
    for e in entries:
        if e.compress_type != zipfile.ZIP_STORED or e.flag_bits & 1:
            why = f"record {e.filename} is compressed or encrypted"
            raise DataFault("ckpt.compressed", why, hint="re-save it with torch.save")
        leaves = ".." in e.filename.split("/") or not e.filename.startswith(top)
        if leaves or top == "/" or e.filename != e.orig_filename:
            raise DataFault("ckpt.zip_layout", f"record name {e.filename} leaves the archive")
    # torch finds records by name without regard to case.
    if len({e.filename.lower() for e in entries}) != len(entries):
        raise DataFault("ckpt.zip_layout", "has a record twice")
    offsets = _offsets(entries, file, archive.start_dir)
    return [Record(e.filename.removeprefix(top), e, offsets[e.filename]) for e in entries]


def _directory(file: IO[bytes], size_bytes: int) -> tuple[int, int]:
    """Offset of the directory and its number of entries, as its end records have them.

    Raises:
        DataFault: ``ckpt.zip_layout``: the records contradict each other or the file.
    """
    end_at = size_bytes - _END.size
    signature, *_, count, size, offset, comment = _END.unpack(_read(file, end_at, _END.size))
    locator_at = end_at - _LOCATOR.size
    large = _read(file, locator_at, _LOCATOR.size) if locator_at >= 0 else b""
    if large.startswith(b"PK\x06\x07"):
        _, _, end_at, _ = _LOCATOR.unpack(large)
        if end_at != locator_at - _END_64.size:
            raise DataFault("ckpt.zip_layout", "its zip directory has two ends")
        found = _END_64.unpack(_read(file, end_at, _END_64.size))
        small, (*_, count, size, offset) = (count, size, offset), found
        limits = (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
        both = zip(small, (count, size, offset), limits, strict=True)
        if found[0] != b"PK\x06\x06" or any(s not in (v, limit) for s, v, limit in both):
            raise DataFault("ckpt.zip_layout", "its zip directory has two ends")
    if signature != b"PK\x05\x06" or comment or offset + size != end_at:
        raise DataFault("ckpt.zip_layout", "its zip directory is not at its end")
    return offset, count


def _offsets(
    entries: list[zipfile.ZipInfo], file: IO[bytes], start_dir: int
) -> dict[str, int]:
    """Where the data of each record are: behind the one before it and before the directory.

    Raises:
        DataFault: ``ckpt.record``: they are not, or there is not such a record.
    """
    offsets: dict[str, int] = {}
    behind = 0
    for e in sorted(entries, key=lambda e: e.header_offset):
        fits = e.file_size == e.compress_size and behind <= e.header_offset < start_dir
        if fits:
            local = _LOCAL.unpack(_read(file, e.header_offset, _LOCAL.size))
            name = file.read(local[-2])
            offsets[e.filename] = file.tell() + local[-1]
            behind = offsets[e.filename] + e.file_size
            encoding = "utf-8" if e.flag_bits & _UTF_8 else "cp437"
            fits = local[0] == b"PK\x03\x04" and name == e.filename.encode(encoding)
        if not fits or behind > start_dir:
            what = f"record {e.filename} is not where the zip directory has it"
            raise DataFault("ckpt.record", what, hint="fetch it again")
    return offsets


def _read(file: IO[bytes], at: int, count: int) -> bytes:
    file.seek(at)
    return file.read(count)
