"""Files of strangers make a loader do nothing: no call, no import, no write, no bomb.

Each corpus is loaded in one process under an audit hook (``watch.py``).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.attacks import checkpoints, onnx

WATCH = Path(__file__).with_name("watch.py")
MOST_BYTES = 300 << 20
MOST_SECONDS = 5


def watched(kind: str, *files: Path) -> dict[str, dict[str, Any]]:
    """What ``watch.py`` tells of each file."""
    words = [sys.executable, "-P", str(WATCH), kind, *map(str, files)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {told["name"]: told for told in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("kind", ["checkpoint", "onnx"])
def test_no_file_makes_its_loader_do_anything(kind: str, tmp_path: Path) -> None:
    corpus = checkpoints.CORPUS if kind == "checkpoint" else onnx.CORPUS
    good = tmp_path / "good"
    good.mkdir()
    if kind == "checkpoint":
        checkpoints.rezipped(good, lambda _: None).rename(good / "by_zipfile.pth")
        checkpoints.saved(good, checkpoints.released())
        checkpoints.safetensors(good)
    else:
        for name in ("local_function", "dynamic_height"):  # good, and read in other ways
            onnx.CORPUS[name](good).rename(good / f"{name}.onnx")
        onnx.write(good, onnx.network())
    files: dict[str, Path] = {}
    for name, make in corpus.items():
        (tmp_path / name).mkdir()
        files[name] = make(tmp_path / name)
    told = watched(kind, good, *files.values())
    for name, path in files.items():
        found = told[str(path)]
        assert found["seen"] == [], name
        assert not found["outcome"].startswith("crash"), (name, found["outcome"])
        assert found["seconds"] <= MOST_SECONDS, name
        assert found["grown_bytes"] <= MOST_BYTES, name
    assert not list(tmp_path.rglob(checkpoints.CANARY))


def test_the_hook_sees_each_misdeed(tmp_path: Path) -> None:
    told = watched("control", tmp_path)
    assert len(told) >= 10
    for event, found in told.items():
        assert any(seen.startswith(event) for seen in found["seen"]), (event, found["seen"])
        assert found["outcome"] == "loaded", event
