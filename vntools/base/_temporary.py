"""Files that get their names when they are whole: ``.NAME.RANDOM.vntmp`` until then.

Who writes one holds a lock on it. One without was left by a process that was killed.
"""

from __future__ import annotations

__all__ = ["fsync_folder", "link_new", "open_temp", "remove", "sweep", "temp_name"]

import contextlib
import errno
import fcntl
import os
import secrets
from pathlib import Path
from typing import IO

from vntools.base.errors import CannotCreate

_SUFFIX = ".vntmp"


def _temp_stem(target: Path) -> str:
    """What the names of the temporaries of ``target`` begin with, cut to leave room."""
    return os.fsdecode(b"." + os.fsencode(target.name)[:200] + b".")


def sweep(target: Path) -> None:
    """Remove temporaries of ``target`` that no living process holds a lock on."""
    stem = _temp_stem(target)
    for name in os.listdir(target.parent):
        if not (name.startswith(stem) and name.endswith(_SUFFIX)):
            continue
        with contextlib.suppress(OSError):
            fd = os.open(target.parent / name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(target.parent / name)
            finally:
                os.close(fd)


def temp_name(target: Path) -> Path:
    """A new name beside ``target``, which :func:`sweep` knows."""
    return target.parent / f"{_temp_stem(target)}{secrets.token_hex(6)}{_SUFFIX}"


def open_temp(temp: Path) -> IO[bytes]:
    """Create a file and lock it; one that another process sweeps meanwhile again."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        file = os.fdopen(os.open(temp, flags, 0o666), "w+b")
        try:
            with contextlib.suppress(OSError):  # without locks nothing is swept
                fcntl.flock(file.fileno(), fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink:
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def remove(path: Path) -> None:
    """Unlink a file if it is there, also when a signal comes in between."""
    try:
        with contextlib.suppress(OSError):
            os.unlink(path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


def fsync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def link_new(temp: Path, target: Path) -> None:
    """Give ``temp`` its final name unless that name was taken meanwhile."""
    try:
        try:
            os.link(temp, target)
        except OSError as e:
            if e.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            _claim(temp, target)
    except FileExistsError as e:
        raise CannotCreate(
            "out.exists", "appeared while vntools was working", hint="use --force", path=target
        ) from e


def _claim(temp: Path, target: Path) -> None:
    """As a link, on a file system without: take the name, then rename over what took it."""
    try:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        os.replace(temp, target)
    except FileExistsError:
        raise
    except BaseException:
        with contextlib.suppress(OSError):
            if os.stat(target).st_size == 0:
                os.unlink(target)
        raise
