"""Arrays of an .npz file as batches, read as far as each batch needs and no further."""

from __future__ import annotations

__all__ = ["NpzFeeds"]

import math
import zipfile
import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vntools.base.artifacts import require_file
from vntools.base.errors import DataFault, first_three

if TYPE_CHECKING:
    from vntools.runtime.base import TensorSpec

_LARGEST_BATCH = 1 << 30  # bytes
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True)
class _Member:
    """An array of the file, for an input."""

    spec: TensorSpec
    name: str
    shape: tuple[int, ...]


class NpzFeeds:
    """Batches of the arrays (n, ...) of an .npz file, by input name.

    Args:
        path: the file; a single array for a single input may have any name.
        inputs: what the arrays are for; types and shapes have to be theirs.
        batch: samples; an input's fixed batch goes before it, and the last one is filled up.
        limit: the most samples to take.
        code: what the codes of errors begin with.

    Attributes:
        count: how many samples there are, at most ``limit``.
        images: see :class:`vntools.pipeline.image_feeds.Feeds`.

    Raises:
        NoInput: no regular file.
        DataFault: ``CODE.npz``, also while iterating: damaged, or not what the inputs take.
    """

    def __init__(
        self,
        path: Path,
        inputs: Sequence[TensorSpec],
        *,
        batch: int,
        limit: int | None,
        code: str,
    ) -> None:
        self.images = 0
        self._path, self._code = require_file(path), code
        fixed = [s.shape[0] for s in inputs if s.shape and isinstance(s.shape[0], int)]
        self._batch, self._fill = (fixed[0], True) if fixed else (batch, False)
        with self._faults(), zipfile.ZipFile(path) as archive:
            self._members = self._matched(archive, inputs)
        counts = {m.shape[0] for m in self._members}
        if len(counts) != 1 or 0 in counts:
            raise self._fault(
                f"its arrays hold {first_three(map(str, sorted(counts)))} samples"
            )
        (available,) = counts
        self.count = min(available, limit or available)

    def _matched(
        self, archive: zipfile.ZipFile, inputs: Sequence[TensorSpec]
    ) -> tuple[_Member, ...]:
        names = {n.removesuffix(".npy"): n for n in archive.namelist() if n.endswith(".npy")}
        if len(inputs) == len(names) == 1:
            names = {inputs[0].name: next(iter(names.values()))}
        if names.keys() != {s.name for s in inputs}:
            raise self._fault(
                f"it holds {first_three(names) or 'no array'}, and the inputs are "
                f"{first_three(map(str, inputs))}"
            )
        members: list[_Member] = []
        for spec in inputs:
            with archive.open(names[spec.name]) as file:
                shape, dtype = _header(file)
            wanted = (None, *spec.shape[1:])
            fits = len(shape) == len(wanted) and all(
                a == b or not isinstance(b, int) for a, b in zip(shape, wanted, strict=True)
            )
            if not fits or str(dtype) != spec.dtype:
                found = f"{dtype} {'x'.join(map(str, shape))}"
                raise self._fault(f"{names[spec.name]} is {found}, and the input is {spec}")
            if self._batch * math.prod(shape[1:]) * dtype.itemsize > _LARGEST_BATCH:
                raise self._fault(f"a batch of {names[spec.name]} is more than 1 GiB")
            members.append(_Member(spec, names[spec.name], shape))
        return tuple(members)

    def __iter__(self) -> Iterator[dict[str, NDArray[Any]]]:
        """One pass over the file."""
        with ExitStack() as stack:
            stack.enter_context(self._faults())
            archive = stack.enter_context(zipfile.ZipFile(self._path))
            files = [stack.enter_context(archive.open(m.name)) for m in self._members]
            for file in files:
                _header(file)
            for start in range(0, self.count, self._batch):
                rows = min(self._batch, self.count - start)
                yield {
                    m.spec.name: self._rows(file, m, rows)
                    for m, file in zip(self._members, files, strict=True)
                }
        self.images = self.count

    def _rows(self, file: IO[bytes], member: _Member, rows: int) -> NDArray[Any]:
        dtype = np.dtype(member.spec.dtype)
        shape = (rows, *member.shape[1:])
        data = file.read(math.prod(shape) * dtype.itemsize)
        if len(data) != math.prod(shape) * dtype.itemsize:
            raise self._fault(f"{member.name} ends early")
        array = np.frombuffer(data, dtype).reshape(shape)
        if self._fill and rows < self._batch:
            array = np.concatenate([array, *[array[-1:]] * (self._batch - rows)])
        return array

    @contextmanager
    def _faults(self) -> Generator[None, None, None]:
        """What a damaged archive raises, as one fault."""
        try:
            yield
        except (zipfile.BadZipFile, ValueError, RuntimeError, EOFError, zlib.error) as e:
            raise self._fault(f"it cannot be read: {e}") from e

    def _fault(self, why: str) -> DataFault:
        return DataFault(
            f"{self._code}.npz",
            why,
            hint="write it with numpy.savez(file, INPUT=array)",
            path=self._path,
        )


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the array that follows.

    Raises:
        ValueError: it is not one of numbers, row after row.
    """
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"an array of format {version}")
    shape, by_columns, dtype = _HEADERS[version](file)
    if by_columns and len(shape) > 1:
        raise ValueError(
            "an array stored column by column; store numpy.ascontiguousarray of it"
        )
    if dtype.hasobject or not dtype.isnative:
        raise ValueError(f"an array of {dtype}")
    return shape, dtype
