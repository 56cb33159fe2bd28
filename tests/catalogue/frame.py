"""One row of the catalogue of faults: how it is made, what must come of it, how it is held.

The numbers are those of the catalogue in ``docs/reliability.md``. A test file of this folder
lists its rows and calls :func:`hold` on each.
"""

from __future__ import annotations

__all__ = ["Outcome", "Row", "by_number", "hold"]

import json
import os
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from click.testing import CliRunner

from vntools.cli import vntools

Words = Sequence[object]
_LONGEST = 300  # characters of a message without its path


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    status: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Row:
    """A fault.

    Attributes:
        number: in the catalogue.
        code: of the error; of the warning where the status is 0; empty for neither.
        status: exit status.
        make: puts the input into an empty folder and returns the words after ``vntools``.
        says: a pattern that the error's or warning's line must hold.
        files: ``unchanged``: the folder is afterwards as it was, to the byte and mtime;
            ``written``: what is in ``outputs`` is there too, and nothing else.
        outputs: names of the files that a command that ends well writes.
        prints: a pattern that standard output must hold where the status is 0.
        case: tells rows of one number apart.
        json: run it a second time with ``--json`` and hold the document against the line.
    """

    number: int
    code: str
    status: int
    make: Callable[[Path], Words]
    says: str = ""
    files: Literal["unchanged", "written"] = "unchanged"
    outputs: tuple[str, ...] = ()
    prints: str = ""
    case: str = ""
    json: bool = True


def by_number(rows: Sequence[Row]) -> Any:
    """The parametrisation of a test over rows, each named by number, code and case."""
    ids = ["-".join(filter(None, (f"{r.number:03}", r.code or "ok", r.case))) for r in rows]
    return pytest.mark.parametrize("row", rows, ids=ids)


def in_process(words: Words) -> Outcome:
    """Run the command line in this process."""
    done = CliRunner().invoke(vntools, [os.fspath(w) if isinstance(w, Path) else str(w)
                                        for w in words])  # fmt: skip
    return Outcome(done.exit_code, done.stdout, done.stderr)


def hold(row: Row, folder: Path, run: Callable[[Words], Outcome] = in_process) -> Outcome:
    """Make the fault of ``row`` in ``folder``, run the command, and hold all it left.

    Args:
        folder: empty; becomes the command's input folder.
        run: how to run the words; by default in this process.
    """
    words = row.make(folder)
    before = _listing(folder)
    done = run(words)
    _hold_streams(row, done)
    after = _listing(folder)
    if row.files == "unchanged":
        assert after == before
    else:
        new = {name for name in after if after[name] != before.get(name)}
        assert new == set(row.outputs)
        assert not before.keys() - after.keys()
    if row.json and row.status:
        _hold_document(row, run([*words, "--json"]))
        assert _listing(folder) == after
    return done


def _hold_streams(row: Row, done: Outcome) -> None:
    lines = done.stderr.splitlines()
    assert "Traceback" not in done.stderr, done.stderr
    assert done.status == row.status, f"{done.status}: {done.stderr or done.stdout}"
    errors = [line for line in lines if re.match(r"vntools[ a-z0-9-]*: error\[", line)]
    kinds = r"vntools[ a-z0-9-]*: error\[|warning\[|note: |.+ \.\.\.$"
    assert all(re.match(kinds, line) for line in lines), done.stderr
    assert all(c.isprintable() or c == "\n" for c in done.stderr + done.stdout)
    if row.status:
        assert len(errors) == 1, done.stderr
        assert f"error[{row.code}]: " in errors[0], errors[0]
        message = re.sub(r"'[^']*'", "", errors[0].partition("]: ")[2])
        assert len(message) <= _LONGEST
        assert re.search(row.says, errors[0]), errors[0]
        assert done.stdout == "" or row.status == 1  # the figures that say no
    else:
        assert not errors
        warned = [line for line in lines if f"warning[{row.code}]: " in line]
        assert warned or not row.code, done.stderr
        assert re.search(row.says, "\n".join(warned if row.code else lines)), done.stderr
        assert re.search(row.prints, done.stdout), done.stdout


def _hold_document(row: Row, done: Outcome) -> None:
    document = json.loads(done.stdout)
    assert done.status == row.status
    assert document["ok"] is False
    assert document["schema"] == 1
    assert document["error"]["code"] == row.code
    assert document["error"]["exit"] == row.status


def _listing(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Name, kind, mode, mtime and content of all that is in a folder, links not followed."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        regular = stat.S_ISREG(about.st_mode)
        content = path.read_bytes() if regular and os.access(path, os.R_OK) else b""
        mtime = about.st_mtime_ns if regular else 0
        found[os.fspath(path.relative_to(folder))] = (about.st_mode, mtime, content)
    return found
