"""Every command that works for long ends on a signal: its status, one line, nothing left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.conftest import ENTRY
from tests.pipeline.conftest import write_checkpoint
from vntools.cli import vntools

WITHIN_S = 4.0  # well before the five seconds after which it would be killed
COMMANDS = {
    "export": "export --ckpt net.pth --out new.onnx",
    "simplify": "simplify net.onnx --out new.onnx",
    "build": "build-engine net.onnx --fp16 --out new.plan",
    "int8": "build-engine net.onnx --int8 --calib images --out new.plan",
    "verify": "verify net.onnx --against net.pth",
    "bench": "bench net.onnx --duration 60",
    "eval": "eval --onnx net.onnx --data images",
    "train": "train --data digits --out new.pth --epochs 500 --decay-epochs 400",
    "demo": "demo --keep new",
    "inspect": "inspect net.onnx",
    "doctor": "doctor",
}
# A command, and when: seconds after its worker is there, or the beginning of a line of
# standard error. Before there is a worker, Python itself is starting.
MOMENTS: list[tuple[str, float | str]] = [
    *((name, 0.0) for name in COMMANDS),
    ("export", 0.5),
    ("export", "trace"),
    ("export", "references"),
    ("simplify", "load"),
    ("build", "type"),
    ("build", "build"),
    ("int8", "calibrate"),
    ("verify", 0.6),
    ("bench", "measure"),
    ("eval", 0.6),
    ("train", "training"),
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, a training graph of it, and a folder of images."""
    folder = tmp_path_factory.mktemp("inputs")
    ckpt, onnx = write_checkpoint(folder / "net.pth"), folder / "net.onnx"
    words = ["export", "--ckpt", str(ckpt), "--out", str(onnx), "--no-merge"]
    assert CliRunner().invoke(vntools, words).exit_code == 0
    draw = np.random.default_rng(0)
    for i in range(40):
        path = folder / "images" / f"{i % 10}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    return folder


def listing(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*.*")}


def signalled(
    words: Sequence[str], when: float | str, signum: signal.Signals, folder: Path
) -> tuple[int, str, float]:
    """Status, standard error, and how long it took to end."""
    with subprocess.Popen(
        [*ENTRY, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        cwd=folder, env={**os.environ, "TMPDIR": str(folder)},
    ) as running:  # fmt: skip
        assert running.stderr is not None
        before = ""
        if isinstance(when, str):
            while not (line := running.stderr.readline()).startswith(when):
                assert line, f"it ended before {when}: {before}"
                before += line
        else:
            children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
            while not children.read_text():
                time.sleep(0.001)
            time.sleep(when)
        start = time.monotonic()
        running.send_signal(signum)
        text = running.stderr.read()
        running.wait(30)
    return running.returncode, text, time.monotonic() - start


@pytest.mark.parametrize(("name", "when"), MOMENTS)
def test_a_signal_ends_it(inputs: Path, tmp_path: Path, name: str, when: float | str) -> None:
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True)
    before, words = listing(tmp_path), COMMANDS[name].split()
    signum = signal.SIGTERM if isinstance(when, str) else signal.SIGINT
    status, text, seconds = signalled(words, when, signum, tmp_path)
    assert status == 128 + signum, text
    line = f"vntools {words[0]}: error[interrupted]: ended by {signum.name}"
    last = text.splitlines()[-1]
    assert last == line or (when == 0.0 and last == line.replace(f" {words[0]}", ""))
    assert "Traceback" not in text
    assert text.count("error[") == 1
    assert listing(tmp_path) == before
    assert seconds < WITHIN_S
