"""The file of a checkpoint: looked over before torch reads it, and mapped rather than read.

``torch.load(weights_only=True)`` alone checks neither sizes nor CRCs, and a small pickle can
make it allocate without bound. So the zip directory and the pickle are checked first. Weights
stay on disk until they are used, and are then held against the file's CRCs. Torch is given the
file that was checked, by its descriptor: another that takes its name meanwhile is not seen.
"""

from __future__ import annotations

__all__ = ["Archive", "open_archive"]

import argparse
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import torch

from vntools.base.artifacts import identity, open_regular
from vntools.base.errors import DataFault, about
from vntools.models.pickle_program import StorageClaim, check_pickle
from vntools.models.safetensors_file import is_safetensors, read_safetensors
from vntools.models.zip_directory import Record, read_records

_MAX_BYTES = 8 << 30
_MAX_PICKLE_BYTES = 64 << 20
_DAMAGED = "the file is damaged (fetch it again), or was saved without checksums"
_RESAVE = 're-save the weights alone: torch.save({"model": state_dict}, ...)'


@dataclass(frozen=True)
class Archive:
    """A checkpoint's contents, its tensors mapped from the file.

    Attributes:
        path: the file.
        content: what was saved; tensors read their bytes when they are used.
        metadata: what a safetensors file says of its weights; None for a file of torch.save,
            which has that in ``content``.
        identity: of the open file that it was read from; see
            :func:`vntools.base.artifacts.identity`.
        records: (size in bytes, CRC-32) of every record, by the offset of its data in the
            file; a safetensors file has none.
    """

    path: Path
    content: object
    identity: tuple[int, ...]
    metadata: Mapping[str, object] | None = None
    records: Mapping[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]])

    def check_storages(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Hold the stored bytes of tensors against the CRCs of their records, if any.

        Each by its place in the file: records of zeros, which damage makes too, are many.

        Raises:
            DataFault: ``ckpt.crc``.
        """
        storages = {t.untyped_storage().data_ptr(): (n, t) for n, t in tensors.items()}
        if not self.records or not storages:
            return
        start = _file_start(next(iter(storages)))

        def check(address: int) -> None:
            name, tensor = storages[address]
            raw = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).numpy()
            if (raw.size, zlib.crc32(raw.data)) != self.records.get(address - start):
                what = f"the bytes of {name} fail their CRC"
                raise DataFault("ckpt.crc", what, hint=_DAMAGED)

        with ThreadPoolExecutor(max_workers=2) as pool:
            list(pool.map(check, storages))


def _file_start(address: int) -> int:
    """Where in memory the mapped file starts of which ``address`` is a part."""
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            span, _, offset = line.split()[:3]
            begin, end = (int(a, 16) for a in span.split("-"))
            if begin <= address < end:
                return begin - int(offset, 16)
    raise DataFault("ckpt.format", "its tensors are not mapped from the file")


def open_archive(
    path: str | os.PathLike[str], metadata: frozenset[str] = frozenset()
) -> Archive:
    """Check a file that torch.save wrote, or a safetensors file, and map it.

    Args:
        path: the file, told by its content.
        metadata: the fields of a safetensors file's ``__metadata__`` that are wanted.

    Raises:
        NoInput: absent, or no regular file.
        NoPermission: unreadable.
        DataFault: ``ckpt.empty``, ``.truncated``, ``.format``, ``.legacy``, ``.compressed``,
            ``.zip_layout``, ``.record``, ``.crc``, ``.unsafe``, ``.too_big``; of a
            safetensors file also ``.tensor`` and ``.args``.
    """
    with open_regular(path) as file, about(path):
        size_bytes = os.fstat(file.fileno()).st_size
        if size_bytes > _MAX_BYTES:
            raise DataFault("ckpt.too_big", "is larger than 8 GiB", hint=_RESAVE)
        head = file.read(1024)
        if is_safetensors(head):
            tensors, said = read_safetensors(file, metadata)
            return Archive(Path(path), tensors, identity(file), said)
        _require_zip(head)
        records = _check_records(file, size_bytes)
        return Archive(Path(path), _map(file), identity(file), records=records)


def _require_zip(head: bytes) -> None:
    """Tell a zip archive from what is often found in its place."""
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
    raise DataFault("ckpt.format", "is neither of torch.save nor safetensors")


def _check_records(file: IO[bytes], size_bytes: int) -> dict[int, tuple[int, int]]:
    """(size, CRC-32) of every record by its offset, once directory and pickle look sane."""
    try:
        with zipfile.ZipFile(file) as archive:
            records = {r.name: r for r in read_records(archive, file, size_bytes)}
            if "constants.pkl" in records:
                raise DataFault("ckpt.unsafe", "is a TorchScript program", hint=_RESAVE)
            if "data.pkl" not in records:
                raise DataFault("ckpt.format", "is a zip archive, but not one of torch.save")
            pickle = records["data.pkl"].entry
            if pickle.file_size > _MAX_PICKLE_BYTES:
                what = "its pickle is larger than 64 MiB"
                raise DataFault("ckpt.too_big", what, hint=_RESAVE)
            order = records.get("byteorder")
            if order is not None and archive.read(order.entry) != b"little":
                raise DataFault("ckpt.record", "its byte order is not little")
            _check_claims(check_pickle(archive.read(pickle)), records)
    except zipfile.BadZipFile as e:
        if "CRC" in str(e):
            raise DataFault("ckpt.crc", "its pickle fails its CRC", hint=_DAMAGED) from e
        why = "ends early or has a damaged zip directory"
        raise DataFault("ckpt.truncated", why, hint="fetch it again") from e
    except (NotImplementedError, ValueError, EOFError, struct.error, RuntimeError) as e:
        raise DataFault("ckpt.zip_layout", "its zip directory is damaged") from e
    return {r.offset: (r.entry.file_size, r.entry.CRC) for r in records.values()}


def _check_claims(claims: frozenset[StorageClaim], records: dict[str, Record]) -> None:
    """Every storage that the pickle asks for is a record of just that size."""
    for claim in claims:
        record = records.get(f"data/{claim.key}")
        has = "is not in the file" if record is None else f"has {record.entry.file_size} bytes"
        if record is None or record.entry.file_size != claim.size_bytes:
            what = f"record data/{claim.key[:50]} should have {claim.size_bytes} bytes"
            raise DataFault("ckpt.record", f"{what}, but {has}", hint="fetch it again")


def _map(file: IO[bytes]) -> object:
    source = f"/proc/self/fd/{file.fileno()}"
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(source, mmap=True, weights_only=True, map_location="cpu")
    except OSError:
        raise
    # What torch raises on a damaged pickle has no common class, and advises unsafe loading.
    except Exception as e:
        raise DataFault("ckpt.format", "cannot be read as a checkpoint") from e
