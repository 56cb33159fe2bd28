"""The error tree: statuses, one line, escaping, and what an OSError means."""

from __future__ import annotations

import errno
import signal

import pytest

from vntools.base import errors
from vntools.base.errors import (
    CannotCreate,
    DataFault,
    InternalFault,
    Interrupted,
    IoFault,
    NoInput,
    NoPermission,
    VntoolsError,
    first_three,
    from_os_error,
    printable,
)

STATUSES = {
    "CheckFailed": 1,
    "UsageFault": 2,
    "DataFault": 65,
    "NoInput": 66,
    "Unavailable": 69,
    "InternalFault": 70,
    "CannotCreate": 73,
    "IoFault": 74,
    "TryLater": 75,
    "NoPermission": 77,
}


def test_every_class_has_the_status_that_the_table_says() -> None:
    found = {c.__name__: c.exit_status for c in VntoolsError.__subclasses__()}
    assert found.pop("Interrupted") == InternalFault.exit_status  # until it knows its signal
    assert found == STATUSES


@pytest.mark.parametrize(("name", "status"), STATUSES.items())
def test_the_tree_in_the_docstring_is_the_tree(name: str, status: int) -> None:
    row = next(line for line in str(errors.__doc__).splitlines() if f"-- {name} " in line)
    assert str(status) in row.split()


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_128_and_its_number(signum: signal.Signals) -> None:
    error = Interrupted(signum)
    assert error.exit_status == 128 + signum
    assert signum.name in error.line()


def test_a_line_names_file_message_and_hint() -> None:
    error = DataFault(
        "ckpt.crc", "record data/17 fails its CRC", hint="fetch it", path="v13.pth"
    )
    assert str(error) == error.line() == "'v13.pth': record data/17 fails its CRC; fetch it"


@pytest.mark.parametrize(
    "nasty", ["a\nb", "a\x1b[31mb", "a\rb", "a\u2028b", "a\udcffb", "a\0b"]
)
def test_no_text_breaks_the_line_or_drives_the_terminal(nasty: str) -> None:
    line = DataFault("x", nasty, hint=nasty, path=nasty).line()
    assert line.isprintable()
    assert len(line.splitlines()) == 1
    line.encode("utf-8")


def test_letters_of_all_scripts_stay() -> None:
    assert printable("modèle-模型.onnx") == "modèle-模型.onnx"


def test_a_long_message_is_cut_and_a_long_path_is_not() -> None:
    path = "d/" * 300
    line = DataFault("x", "m" * 1000, path=path).line()
    assert line.startswith(f"'{path}': m")
    assert line.endswith("...")
    assert len(line) == len(path) + 4 + 300


@pytest.mark.parametrize(
    ("names", "text"),
    [([], ""), ("a", "a"), ("abc", "a, b, c"), ("abcd", "a, b, c and 1 more")],
)
def test_first_three(names: str, text: str) -> None:
    assert first_three(names) == text


@pytest.mark.parametrize(
    ("number", "writing", "kind", "code"),
    [
        (errno.ENOENT, False, NoInput, "input.missing"),
        (errno.ENOTDIR, False, NoInput, "input.missing"),
        (errno.ENAMETOOLONG, False, NoInput, "input.missing"),
        (errno.EISDIR, False, NoInput, "input.not_regular"),
        (errno.ELOOP, False, NoInput, "input.not_regular"),
        (errno.ENXIO, False, NoInput, "input.not_regular"),
        (errno.EACCES, False, NoPermission, "input.permission"),
        (errno.EIO, False, IoFault, "input.io"),
        (errno.ENOENT, True, CannotCreate, "out.create"),
        (errno.ENAMETOOLONG, True, CannotCreate, "out.create"),
        (errno.EROFS, True, CannotCreate, "out.create"),
        (errno.EPERM, True, NoPermission, "out.permission"),
        (errno.ENOSPC, True, IoFault, "out.space"),
        (errno.EDQUOT, True, IoFault, "out.space"),
        (errno.EFBIG, True, IoFault, "out.space"),
        (errno.EIO, True, IoFault, "out.io"),
        (None, True, IoFault, "out.io"),
    ],
)
def test_an_os_error_is_read_by_its_number(
    number: int | None, writing: bool, kind: type[VntoolsError], code: str
) -> None:
    caused = OSError("text") if number is None else OSError(number, "misleading text")
    error = from_os_error(caused, "f", writing=writing)
    assert type(error) is kind
    assert error.code == code
    assert "misleading" not in error.line()
