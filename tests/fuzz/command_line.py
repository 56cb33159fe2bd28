"""Random words for every command, drawn from its real options, with good and bad values.

Run in this process, or as a process whose streams are closed, full or read by nobody. What
must hold of each: :func:`check`.
"""

from __future__ import annotations

__all__ = ["Case", "cases", "check"]

import contextlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import click
import numpy as np
from click.testing import CliRunner
from PIL import Image

from tests.conftest import ENTRY
from tests.engine.plans import PLAN, sidecar_of
from tests.pipeline.conftest import write_checkpoint
from vntools.base.artifacts import write_sidecar_bytes
from vntools.cli import vntools

STATUSES = {0, 1, 2, 65, 66, 69, 70, 73, 74, 75, 77, 129, 130, 141, 143}
STREAMS = {"closed": "<&- >&- 2>&-", "full": ">/dev/full", "full-error": "2>/dev/full"}
_FILES = (
    "net.pth", "net.onnx", "v.plan", "images", "text", "empty", "link", "fifo", "out.onnx",
    "out.plan", "no/such", ".", "", "/dev/null", "/proc/none", "n" * 300, "a\nb\x1b[31m",
    "-", "--", "\udcff.onnx",
)  # fmt: skip
_TEXTS = (
    "",
    " ",
    "x",
    "-1",
    "--json",
    "ä\udcff",
    "a" * 400,
    "1,2",
    "nan",
    "../x",
    "%s{}",
)
_NUMBERS = ("0", "1", "2", "-1", "x", "", "nan", "1e-3", "1.5", "0x1", "9" * 30)
_LONG = {  # options whose value is how long it takes, or how much memory
    *("batch", "batch_size", "builds", "calib_images", "calls", "decay_epochs", "dims"),
    *("duration", "epochs", "idle_time", "image_size", "images", "iterations", "load"),
    *("max_batch", "mem_pool_size", "min_batch", "opt_batch", "sleep_time", "streams"),
    *("threads", "time_limit", "warm_up"),
}
# Words that keep a command that ends well from working for long.
_SHORT = {
    "bench": ["--duration", "0", "--iterations", "1", "--warm-up", "0", "--max-noise", "100"],
    "train": ["--epochs", "1", "--decay-epochs", "1", "--image-size", "32"],
}
_LINE = re.compile(r"vntools[ a-z0-9-]*: error\[[a-z0-9_.]+\]: ")


@dataclass(frozen=True)
class Case:
    """Words after ``vntools``, and what becomes of the streams: a key of ``STREAMS`` or ""."""

    words: tuple[str, ...]
    streams: str = ""


def cases(seed: int, count: int) -> Iterator[Case]:
    """The same cases for the same seed; of sixteen one is a process of its own."""
    draw = Random(seed)
    for _ in range(count):
        words = _words(draw)
        if draw.random() < 1 / 16:  # the least work, as it is all about the streams
            first = ["models"] if draw.random() < 0.7 else [draw.choice(_TEXTS)]
            yield Case((*first, *words[1:]), draw.choice(list(STREAMS)))
        else:
            yield Case(words)


def _words(draw: Random) -> tuple[str, ...]:
    names = vntools.list_commands(click.Context(vntools))
    name = draw.choice(names) if draw.random() < 0.97 else draw.choice(_TEXTS)
    command = vntools.get_command(click.Context(vntools), name)
    words = [name, *(["--json"] if draw.random() < 0.6 else [])]
    if command is None:
        return (*words, *draw.choices(_TEXTS, k=draw.randrange(3)))
    for option in command.params:
        needed = option.required and draw.random() < 0.9
        if needed or draw.random() < 1.5 / len(command.params):
            words += _said(option, draw)
    if name == "demo":  # it takes a minute, whatever else it is told
        words.append("--no-such-option")
    if draw.random() < 0.05:
        words.insert(draw.randrange(len(words) + 1), draw.choice([*_TEXTS, "--help", "-h"]))
    return (*words, *_SHORT.get(name, ()))


def _said(option: click.Parameter, draw: Random) -> list[str]:
    """An option as a user would give it, with a value that may be a bad one."""
    if option.name in ("json", "debug"):  # debug shows tracebacks
        return []
    values = [_value(option, draw)] if not getattr(option, "is_flag", False) else []
    if isinstance(option, click.Argument):
        return values
    return [draw.choice([*option.opts, *option.secondary_opts]), *values]


def _value(option: click.Parameter, draw: Random) -> str:
    kind = option.type
    if isinstance(kind, click.Choice):
        return draw.choice([*map(str, kind.choices), *map(str, kind.choices), *_TEXTS])
    if kind.name in ("integer", "float", "integer range", "float range"):
        return draw.choice(_NUMBERS[:3] if draw.random() < 0.5 else
                           _NUMBERS[:8] if option.name in _LONG else _NUMBERS)  # fmt: skip
    if option.name in _LONG:
        return draw.choice(("1", "2,2", "x"))
    if option.name == "data":
        return draw.choice([f for f in _FILES if f])
    if kind.name == "text" or draw.random() < 0.05:
        return draw.choice(_TEXTS)
    if option.name == "out" and draw.random() < 0.6:
        return "out.onnx"
    return draw.choice(_FILES[:4] if draw.random() < 0.7 else _FILES)


@cache
def _inputs() -> dict[str, bytes]:
    """A checkpoint, the graph of it, a plan that is none, and images of two classes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_checkpoint(folder / "net.pth")
        words = ["export", "--ckpt", f"{folder}/net.pth", "--out", f"{folder}/net.onnx"]
        assert CliRunner().invoke(vntools, words).exit_code == 0
        draw = np.random.default_rng(0)
        for i in range(4):
            path = folder / "images" / str(i % 2) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
        (folder / "v.plan").write_bytes(PLAN)
        (folder / "v.plan.json").write_bytes(write_sidecar_bytes(sidecar_of(PLAN)))
        (folder / "text").write_text("of nobody here\n")
        (folder / "empty").touch()
        files = (p for p in folder.rglob("*") if p.is_file())
        return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def check(case: Case, folder: Path) -> None:
    """Run a case in an empty folder and hold what every command promises.

    Raises:
        AssertionError: the status is not in the table, or is that of a fault of ours; there is
            more than one line of error, or a traceback; ``--json`` gave no document; a
            temporary stayed.
    """
    for name, content in _inputs().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "link").symlink_to("net.onnx")
    os.mkfifo(folder / "fifo")
    status, out, err = _process(case, folder) if case.streams else _here(case, folder)
    assert status in STATUSES, f"{status}: {err}"
    assert "error[internal]" not in err, err
    assert "Traceback" not in err, err
    lines = [line for line in err.splitlines() if _LINE.match(line)]
    assert len(lines) == (1 if status not in (0, 141) and not _unseen(case, err) else 0), err
    helped = bool({"-h", "--help"} & set(case.words))
    if case.words[1:2] == ("--json",) and not (helped or case.streams):
        document: Any = json.loads(out)
        assert document["ok"] == (status == 0)
        assert document.get("error", {}).get("exit", 0) == status
    assert not list(folder.glob(".*.vntmp"))


def _unseen(case: Case, err: str) -> bool:
    """Whether standard error could not be read, or held the help that no words at all give."""
    return case.streams in ("closed", "full-error") or err.startswith("Usage: vntools")


def _here(case: Case, folder: Path) -> tuple[int, str, str]:
    with contextlib.chdir(folder):
        done = CliRunner().invoke(vntools, list(case.words))
    return done.exit_code, done.stdout, done.stderr


def _process(case: Case, folder: Path) -> tuple[int, str, str]:
    shell = ["sh", "-c", f'exec "$@" {STREAMS[case.streams]}', "sh", *ENTRY, *case.words]
    run = subprocess.run(shell, check=False, capture_output=True, cwd=folder, timeout=120)
    return run.returncode, run.stdout.decode(), run.stderr.decode()
