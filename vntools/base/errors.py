"""The error tree and the exit statuses of the command line.

    VntoolsError
    |-- CheckFailed      1   the answer is no: verification, precision gate, accuracy
    |-- UsageFault       2   an option, or options together, cannot be meant
    |-- DataFault       65   the input is damaged, unsafe or unsupported
    |-- NoInput         66   the input is absent or no regular file
    |-- Unavailable     69   no GPU, driver or library
    |-- InternalFault   70   our bug, a native crash, a failed build
    |-- CannotCreate    73   the output cannot be made, or exists
    |-- IoFault         74   reading or writing broke off, no space
    |-- TryLater        75   memory, time-out, worker killed
    |-- NoPermission    77   permission or trust
    `-- Interrupted    130   SIGINT and its kin: 128 + signal

Statuses 65 to 77 are those of BSD's sysexits.h. An error has a code (public, never reused),
one line that says what, where and why, and a hint that says what to do next.
"""

from __future__ import annotations

__all__ = [
    "CannotCreate",
    "CheckFailed",
    "DataFault",
    "InternalFault",
    "Interrupted",
    "IoFault",
    "NoInput",
    "NoPermission",
    "TryLater",
    "Unavailable",
    "UsageFault",
    "VntoolsError",
    "about",
    "first_three",
    "from_os_error",
    "printable",
    "quoted",
]

import contextlib
import errno
import os
import signal
from collections.abc import Generator, Iterable


def printable(text: str) -> str:
    """``text`` as one line of a terminal: control characters, undecodable bytes escaped."""
    shown = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown
    )


def quoted(path: str | os.PathLike[str]) -> str:
    """A path as messages show it: in quotes, control characters escaped."""
    return f"'{printable(os.fspath(path))}'"


def first_three(names: Iterable[str]) -> str:
    """The first three of ``names`` and how many more there are: ``a, b, c and 4 more``."""
    listed = [printable(n) for n in names]
    more = len(listed) - 3
    return ", ".join(listed[:3]) + (f" and {more} more" if more > 0 else "")


class VntoolsError(Exception):
    """A failure that the user can understand: a code, one line, and what to do next.

    Args:
        code: dotted public code, such as ``ckpt.lambda``.
        message: what is wrong, where and why; one line.
        hint: what to do next; follows the message after a semicolon.
        path: the file concerned, named first in the line.
    """

    exit_status: int = 70

    def __init__(
        self,
        code: str,
        message: str,
        *,
        hint: str = "",
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        self.code = code
        self.message = message
        self.hint = hint
        self.path = None if path is None else os.fspath(path)
        super().__init__(self.line())

    def line(self) -> str:
        """Path, message and hint in one line; all but the path within 300 characters."""
        where = f"{quoted(self.path)}: " if self.path is not None else ""
        text = printable(self.message + (f"; {self.hint}" if self.hint else ""))
        return where + (text if len(text) <= 300 else text[:297] + "...")


class CheckFailed(VntoolsError):
    """The answer is no: the artifact is not what was asked for."""

    exit_status = 1


class UsageFault(VntoolsError):
    """An option, or a combination of options, that cannot be meant."""

    exit_status = 2


class DataFault(VntoolsError):
    """The input is damaged, unsafe or unsupported."""

    exit_status = 65


class NoInput(VntoolsError):
    """The input is absent or is no regular file."""

    exit_status = 66


class Unavailable(VntoolsError):
    """A GPU, a driver or a library is missing."""

    exit_status = 69


class InternalFault(VntoolsError):
    """A bug here, a crash in native code, or a build that failed without a reason."""

    exit_status = 70


class CannotCreate(VntoolsError):
    """The output cannot be created, or exists and is not ours to replace."""

    exit_status = 73


class IoFault(VntoolsError):
    """Reading or writing broke off."""

    exit_status = 74


class TryLater(VntoolsError):
    """Memory, time or a worker ran out; the same call may succeed later."""

    exit_status = 75


class NoPermission(VntoolsError):
    """The file system says no, or the artifact is not trusted."""

    exit_status = 77


class Interrupted(VntoolsError):
    """A signal asked for the end; exit status 128 + its number."""

    def __init__(self, signum: int) -> None:
        super().__init__("interrupted", f"ended by {signal.Signals(signum).name}")
        self.signum = signum
        self.exit_status = 128 + signum


@contextlib.contextmanager
def about(path: str | os.PathLike[str]) -> Generator[None, None, None]:
    """Name ``path`` in errors of the block that name no file yet."""
    try:
        yield
    except VntoolsError as e:
        if e.path is not None or isinstance(e, Interrupted):
            raise
        raise type(e)(e.code, e.message, hint=e.hint, path=path) from e.__cause__


def from_os_error(
    error: OSError, path: str | os.PathLike[str], *, writing: bool
) -> VntoolsError:
    """The error that an OSError means, by its errno and never by its text."""
    why = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in (errno.EACCES, errno.EPERM):
        code = "out.permission" if writing else "input.permission"
        return NoPermission(code, why, hint="check the owner and mode", path=path)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return IoFault("out.space", why, hint="free some space or write elsewhere", path=path)
    if not writing and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
        return NoInput("input.missing", "no such file", path=path)
    if not writing and error.errno in (errno.EISDIR, errno.ELOOP, errno.ENXIO):
        return NoInput("input.not_regular", why, path=path)
    if writing and error.errno in (
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ENAMETOOLONG,
        errno.EROFS,
        errno.ELOOP,
        errno.EEXIST,
    ):
        return CannotCreate("out.create", why, hint="give another --out", path=path)
    return IoFault("out.io" if writing else "input.io", why, path=path)
