"""Artifacts on disk: hashes, seals, sidecars, and publishing whole or not at all.

Each artifact carries the SHA-256 of the one before it. An ONNX file ends with its own seal:
the metadata property ``vntools.sha256``, the digest of every byte before it (protobuf parsers
accept repeated fields in any order, so the property can be appended to the serialised model).
Where a model is beyond what protobuf holds, its weights lie beside it in ``NAME.onnx.data``,
and the property ``vntools.data_sha256`` of the model is their digest. A plan has a sidecar
``NAME.plan.json``. All tell a file that vntools wrote from any other,
without parsing it.
"""

from __future__ import annotations

__all__ = [
    "SEAL_KEY",
    "check_output",
    "data_path",
    "hash_and_sealed",
    "identity",
    "open_regular",
    "published",
    "published_with_data",
    "read_input",
    "read_sidecar",
    "require_file",
    "seal",
    "seal_and_hash",
    "sealed",
    "sha256_and_identity",
    "sha256_bytes",
    "sha256_file",
    "sidecar_path",
    "write_sidecar_bytes",
]

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Generator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from vntools.base._temporary import (
    fsync_folder,
    link_new,
    open_temp,
    remove,
    sweep,
    temp_name,
)
from vntools.base.errors import (
    CannotCreate,
    DataFault,
    IoFault,
    NoInput,
    UsageFault,
    VntoolsError,
    from_os_error,
    quoted,
)

SEAL_KEY = "vntools.sha256"
_CHUNK = 1 << 24  # bytes
_LARGEST_SIDECAR = 1 << 24  # bytes; one of 10,000 kernels has some 2 MB
_DATA_SUFFIX = ".data"


def sha256_bytes(data: bytes | memoryview) -> str:
    """Hexadecimal SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    return sha256_and_identity(path)[0]


def sha256_and_identity(path: str | os.PathLike[str]) -> tuple[str, tuple[int, ...]]:
    """Hexadecimal SHA-256 of a file, and which file it was; see :func:`identity`.

    It is read in large pieces: in a thread each has to win the interpreter's lock back.
    """
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK))
    with open_regular(path) as f:
        while size := f.readinto(buffer):
            digest.update(buffer[:size])
        return digest.hexdigest(), identity(f)


def identity(file: IO[bytes]) -> tuple[int, ...]:
    """What changes when a file is replaced or written: device, inode, size, times."""
    s = os.fstat(file.fileno())
    return s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns


@contextlib.contextmanager
def open_regular(path: str | os.PathLike[str]) -> Generator[BufferedReader, None, None]:
    """Open a regular file for reading; a FIFO or a device is refused and never waited for.

    Raises:
        NoInput: absent (``input.missing``) or not regular (``input.not_regular``).
        NoPermission: unreadable.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as e:
        raise from_os_error(e, path, writing=False) from e
    except ValueError as e:
        raise NoInput("input.missing", "not a file name", path=path) from e
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise NoInput("input.not_regular", "not a regular file", path=path)
    try:
        with os.fdopen(fd, "rb") as f:
            yield f
    except OSError as e:
        raise from_os_error(e, path, writing=False) from e


def require_file(path: str | os.PathLike[str]) -> Path:
    """``path`` as a Path, if it names a readable regular file.

    Raises:
        NoInput: absent (``input.missing``) or not regular (``input.not_regular``).
        NoPermission: unreadable.
    """
    with open_regular(path):
        return Path(path)


def read_input(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a regular file; errors as :func:`require_file`."""
    with open_regular(path) as f:
        return f.read()


def _seal_field(digest: str) -> bytes:
    """``metadata_props { key: SEAL_KEY value: digest }`` of a ModelProto, on the wire."""

    def field(number: int, content: bytes) -> bytes:  # of wire type 2, shorter than 128 bytes
        return bytes([number << 3 | 2, len(content)]) + content

    return field(14, field(1, SEAL_KEY.encode()) + field(2, digest.encode()))


_SEAL_LENGTH = len(_seal_field("0" * 64))  # bytes
_SEAL_PREFIX = _seal_field("0" * 64)[:-64]


def seal(onnx_bytes: bytes) -> bytes:
    """The field that, appended to a serialised ONNX model, says that vntools wrote it."""
    return _seal_field(sha256_bytes(onnx_bytes))


def seal_and_hash(onnx_bytes: bytes | memoryview) -> tuple[bytes, str]:
    """The seal of a serialised model, and the SHA-256 of the two together."""
    digest = hashlib.sha256(onnx_bytes)
    tail = _seal_field(digest.hexdigest())
    digest.update(tail)
    return tail, digest.hexdigest()


def hash_and_sealed(onnx_bytes: bytes) -> tuple[str, bool]:
    """The SHA-256 of an ONNX file, and whether it ends with a seal that matches its bytes."""
    tail, digest = seal_and_hash(memoryview(onnx_bytes)[:-_SEAL_LENGTH])
    if onnx_bytes.endswith(tail):
        return digest, True
    return sha256_bytes(onnx_bytes), False


def sealed(path: str | os.PathLike[str]) -> bool:
    """Whether an ONNX file ends with a seal that matches its bytes."""
    with contextlib.suppress(VntoolsError), open_regular(path) as f:
        left = os.fstat(f.fileno()).st_size - _SEAL_LENGTH
        if left < 0:
            return False
        f.seek(left)
        tail = f.read()
        if not tail.startswith(_SEAL_PREFIX):
            return False
        digest = hashlib.sha256()
        f.seek(0)
        while left and (piece := f.read(min(_CHUNK, left))):
            digest.update(piece)
            left -= len(piece)
        return tail == _seal_field(digest.hexdigest())
    return False


def sidecar_path(plan: str | os.PathLike[str]) -> Path:
    """Where the sidecar of a plan lies: ``NAME.plan.json`` beside ``NAME.plan``."""
    return Path(os.fspath(plan) + ".json")


def _sidecar_seal(body: bytes) -> bytes:
    """The end of a sidecar: a last key that holds the digest of all before it."""
    return f',\n "seal": "{sha256_bytes(body)}"\n}}\n'.encode("ascii")


def write_sidecar_bytes(record: dict[str, Any]) -> bytes:
    """A record as the bytes of a sidecar: JSON, ASCII, keys as given, sealed."""
    body = json.dumps(record, indent=1).removesuffix("\n}").encode("ascii")
    return body + _sidecar_seal(body)


def read_sidecar(plan: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The sidecar of a plan, or None where there is none.

    Raises:
        DataFault: ``plan.manifest``, where it is not a sidecar as vntools wrote it.
    """
    path = sidecar_path(plan)
    if not path.exists():
        return None
    with open_regular(path) as f:
        data = f.read(_LARGEST_SIDECAR)
    body = data[: -len(_sidecar_seal(b""))]
    try:
        record = json.loads(data) if data == body + _sidecar_seal(body) else {}
        if not (record["schema"] == 1 and len(record["sha256"]) == 64):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise DataFault(
            "plan.manifest",
            "not a sidecar as vntools wrote it",
            hint="rebuild the plan with vntools build-engine",
            path=path,
        ) from e
    del record["seal"]
    return record


def data_path(model: str | os.PathLike[str]) -> Path:
    """Where the weights of a large model lie: ``NAME.onnx.data`` beside ``NAME.onnx``."""
    return Path(os.fspath(model) + _DATA_SUFFIX)


def _try_to_write_beside(target: Path) -> None:
    """Whether a file can be made there; of root, and of some file systems, only this tells.

    Raises:
        OSError: it cannot.
    """
    probe = temp_name(target)
    try:
        open_temp(probe).close()
    finally:
        remove(probe)


def _ours(path: Path) -> bool:
    """Whether vntools wrote the file.

    That is: a sealed ONNX model, weights whose digest such a model holds, a plan beside its
    sidecar.
    """
    if path.suffix == _DATA_SUFFIX:
        with contextlib.suppress(VntoolsError):
            model = path.with_suffix("")
            return sealed(model) and sha256_file(path).encode() in read_input(model)
        return False
    if path.suffix == ".json":
        with contextlib.suppress(VntoolsError):
            return read_sidecar(path.with_suffix("")) is not None
        return False
    if sealed(path):
        return True
    with contextlib.suppress(VntoolsError):
        record = read_sidecar(path)
        return record is not None and record["sha256"] == sha256_file(path)
    return False


def check_output(
    path: str | os.PathLike[str],
    *,
    force: bool,
    inputs: tuple[str | os.PathLike[str], ...] = (),
) -> Path:
    """``path``, if it can be written at the end of the work; called before the work begins.

    An existing file is replaced when vntools wrote it as it is now, or with ``force``.

    Raises:
        UsageFault: it is one of ``inputs``.
        CannotCreate: it is a folder or a device, its folder is missing, or it exists and is
            not ours.
        NoPermission: its folder cannot be written.
    """
    try:
        target = Path(os.path.realpath(path))
        folder = target.parent
        if not folder.is_dir():
            raise CannotCreate(
                "out.folder", "its folder does not exist", hint="create it first", path=path
            )
        if target.is_dir() or os.fspath(path).endswith("/"):
            raise CannotCreate("out.is_folder", "is a folder", hint="name a file", path=path)
        if target.exists() and not target.is_file():
            raise CannotCreate("out.not_regular", "is not a regular file", path=path)
        for other in inputs:
            if os.path.exists(other) and target.exists() and os.path.samefile(other, target):
                raise UsageFault(
                    "out.is_input",
                    f"--out would overwrite the input {quoted(other)}",
                    path=path,
                )
        _try_to_write_beside(target)
        if target.exists() and not force and not _ours(target):
            raise CannotCreate(
                "out.exists",
                "exists, and vntools did not write it as it is now",
                hint="use --force to overwrite it",
                path=path,
            )
    except ValueError as e:
        raise CannotCreate("out.create", "not a file name", path=path) from e
    except OSError as e:
        raise from_os_error(e, path, writing=True) from e
    return target


@dataclass(frozen=True)
class _Staged:
    """A file under a temporary name, and what it is to become."""

    file: IO[bytes]
    temp: Path
    target: Path
    replace: bool

    def finish(self) -> None:
        """Through to the disk, and no longer than what was written."""
        self.file.flush()
        os.ftruncate(self.file.fileno(), self.file.tell())
        os.fsync(self.file.fileno())

    def place(self) -> None:
        """Give it its name."""
        if self.replace:
            os.replace(self.temp, self.target)
        else:
            link_new(self.temp, self.target)


@contextlib.contextmanager
def _staged(
    path: str | os.PathLike[str], *, force: bool, size_hint: int = 0
) -> Generator[_Staged, None, None]:
    """A temporary beside ``path`` that is gone when the block ends, and the errors on it."""
    replaced = os.path.exists(path)  # what appears from here on is nobody's to replace
    target = check_output(path, force=force)
    temp = temp_name(target)
    try:
        sweep(target)
        with open_temp(temp) as f:
            if replaced:
                os.fchmod(f.fileno(), stat.S_IMODE(target.stat().st_mode))
            if size_hint:
                os.posix_fallocate(f.fileno(), 0, size_hint)
            yield _Staged(f, temp, target, force or replaced)
        fsync_folder(target.parent)
    except OSError as e:
        if e.errno == errno.ENOSPC and size_hint:
            raise _no_space(target, size_hint) from e
        raise from_os_error(e, path, writing=True) from e
    finally:
        remove(temp)


@contextlib.contextmanager
def published(
    path: str | os.PathLike[str], *, force: bool, size_hint: int = 0
) -> Generator[IO[bytes], None, None]:
    """Open a file that appears under ``path`` whole when the block ends, or not at all.

    The bytes go to a locked temporary in the same folder, are synchronised, and are linked
    (or, where a file may be replaced, renamed) into place. ``size_hint`` bytes are reserved
    first, so a full disk is found before the work of writing; the file ends where the block
    leaves off. Whether an existing file may be replaced is decided as in :func:`check_output`.
    Weights that lie beside a model of ours go with it when it is replaced.
    """
    with _staged(path, force=force, size_hint=size_hint) as staged:
        yield staged.file
        staged.finish()
        data = data_path(staged.target)
        stale = staged.replace and data.is_file() and _ours(data)
        staged.place()
        if stale:
            remove(data)


@contextlib.contextmanager
def published_with_data(
    path: str | os.PathLike[str], *, force: bool, size_hint: int = 0
) -> Generator[tuple[IO[bytes], IO[bytes]], None, None]:
    """Open a model and the file of its weights, which appear together or not at all.

    As :func:`published`; ``size_hint`` is of the weights. Two names cannot appear at once: an
    old model goes first and the new one comes last, so that no model ever lies beside weights
    that are not its own. After an error both old files are back; a process that is killed in
    that moment may leave no model.
    """
    real = os.path.realpath(path)
    with (
        _staged(path, force=force) as model,
        _staged(data_path(real), force=force, size_hint=size_hint) as data,
    ):
        yield model.file, data.file
        model.finish()
        data.finish()
        with _set_aside(model, data):
            data.place()
            model.place()


@contextlib.contextmanager
def _set_aside(*files: _Staged) -> Generator[None, None, None]:
    """Without the old files that may be replaced; after an error they are back, as before."""
    asides = [(staged, temp_name(staged.target)) for staged in files]
    placed = False
    with contextlib.ExitStack() as stack:
        for _, aside in asides:
            stack.callback(remove, aside)
        try:
            for staged, aside in asides:
                if staged.replace:
                    with contextlib.suppress(FileNotFoundError):
                        os.rename(staged.target, aside)
            yield
            placed = True
        finally:
            if not placed:
                for staged, aside in reversed(asides):
                    _put_back(staged, aside)


def _put_back(staged: _Staged, aside: Path) -> None:
    """Undo what was placed, and what was set aside before it."""
    if os.path.lexists(aside):
        os.replace(aside, staged.target)
        return
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.stat(staged.target), os.fstat(staged.file.fileno())):
            os.unlink(staged.target)


def _no_space(target: Path, size_bytes: int) -> IoFault:
    """The disk is full, in megabytes asked for and free."""
    free = shutil.disk_usage(target.parent).free / 1e6
    return IoFault(
        "out.space",
        f"needs {size_bytes / 1e6:.1f} MB, {free:.1f} MB free",
        hint="free some space or write elsewhere",
        path=target,
    )
