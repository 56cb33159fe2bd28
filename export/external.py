"""Weights that lie in files beside an ONNX model: contained, checked, and not copied."""

from __future__ import annotations

__all__ = ["ExternalFiles", "size_of"]

import contextlib
import math
import mmap
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from vntools.base.errors import DataFault, quoted

if TYPE_CHECKING:
    import onnx

_COPY = "copy the real file next to the model"
_BITS_OF_A_BYTE = 8


class ExternalFiles:
    """The files that the tensors of one model lie in.

    A location is a relative name below the model's folder. Nothing on the way to it may be a
    link, and the file has one name only, so nothing outside the folder is ever read.

    Args:
        folder: where the model lies.
        path: the model, for messages.
        maps: files that are open already, by location.
    """

    def __init__(
        self, folder: Path, path: Path | None, maps: dict[str, memoryview] | None = None
    ) -> None:
        self._folder, self._path = folder, path
        self.maps: dict[str, memoryview] = dict(maps or {})

    def bytes_of(self, tensor: onnx.TensorProto) -> memoryview:
        """The bytes of an external tensor, as they lie in its file.

        Raises:
            DataFault: ``onnx.external``: the location leaves the folder or is a link, the file
                is missing, or offset and length do not fit it or the tensor.
        """
        entries = {e.key: e.value for e in tensor.external_data}
        location = entries.get("location", "")
        if location not in self.maps:
            self.maps[location] = self._map(location)
        view, size = self.maps[location], size_of(tensor)
        try:
            offset = int(entries.get("offset", "0"))
            length = int(entries.get("length", str(size)))
        except ValueError:
            offset, length = -1, -1
        if size is None or length != size or offset < 0 or offset + size > len(view):
            raise self._fault(f"{quoted(location)} does not hold tensor {tensor.name!r}")
        return view[offset : offset + size]

    def tensor(self, tensor: onnx.TensorProto) -> ir.TensorProtocol:
        """An external tensor that reads the mapped file.

        Raises:
            DataFault: as :meth:`bytes_of`.
        """
        data, kind = self.bytes_of(tensor), ir.DataType(tensor.data_type)
        if kind.bitwidth < _BITS_OF_A_BYTE:
            self.inline(tensor)
            return ir.serde.deserialize_tensor(tensor)
        array = np.frombuffer(data, kind.numpy()).reshape(tuple(tensor.dims))
        return ir.Tensor(array, dtype=kind, name=tensor.name, doc_string=tensor.doc_string)

    def inline(self, tensor: onnx.TensorProto) -> None:
        """Copy an external tensor into the model.

        Raises:
            DataFault: as :meth:`bytes_of`.
        """
        tensor.raw_data = bytes(self.bytes_of(tensor))
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")

    def _map(self, location: str) -> memoryview:
        parts = location.split("/")
        if not location or any(p in ("", ".", "..") for p in parts) or "\0" in location:
            raise self._fault(f"{quoted(location)} points outside the model's folder")
        try:
            with contextlib.ExitStack() as stack:
                at = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                stack.callback(os.close, at)
                for part in parts[:-1]:
                    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                    at = os.open(part, flags, dir_fd=at)
                    stack.callback(os.close, at)
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                fd = os.open(parts[-1], flags, dir_fd=at)
                stack.callback(os.close, fd)
                found = os.fstat(fd)
                if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
                    raise self._fault(f"{quoted(location)} is no file of one name", _COPY)
                if not found.st_size:
                    return memoryview(b"")
                return memoryview(mmap.mmap(fd, found.st_size, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as e:
            if os.path.lexists(self._folder / location):
                raise self._fault(f"{quoted(location)} is a link or unreadable", _COPY) from e
            raise self._fault(f"{quoted(location)} is missing") from e

    def _fault(self, why: str, hint: str = "") -> DataFault:
        return DataFault("onnx.external", f"external data {why}", hint=hint, path=self._path)


def size_of(tensor: onnx.TensorProto) -> int | None:
    """Bytes of a tensor's elements; None where its type has no fixed size."""
    try:
        kind = ir.DataType(tensor.data_type)
        bits = kind.bitwidth
    except (ValueError, TypeError):
        return None
    if min(tensor.dims, default=0) < 0:
        return None
    return -(-math.prod(tensor.dims) * bits // _BITS_OF_A_BYTE)
