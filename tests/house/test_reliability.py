"""docs/reliability.md says what its record says, and what measures it tells outcomes apart."""

from __future__ import annotations

import json
import os
import runpy
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MEASURE = runpy.run_path(
    str(ROOT / "docs" / "measure_reliability.py"), run_name="docs.measure"
)


def test_the_tables_are_the_records() -> None:
    record = json.loads(MEASURE["RECORD"].read_text(encoding="ascii"))
    text = MEASURE["DOCUMENT"].read_text(encoding="utf-8")
    assert MEASURE["with_tables"](text, record) == text, "measure_reliability.py --write-docs"
    record["rows"]["held"].remove(1)
    with pytest.raises(SystemExit, match="without a test or a reason"):
        MEASURE["tables"](record)


def refuses(_: Path) -> None:
    raise ValueError("no")


def takes_memory(_: Path) -> None:
    bytearray(3 << 30)


def crashes(_: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hangs(_: Path) -> None:
    time.sleep(60)


def finds_a_bug(_: Path) -> None:
    raise SystemExit(70)


def works(_: Path) -> bytes:
    return b"1" * 50_000_000


@pytest.mark.parametrize(
    ("tool", "outcome"),
    [
        (works, "accepted"),
        (refuses, "refused"),
        (takes_memory, "memory"),
        (crashes, "crashed"),
        (hangs, "hung"),
        (finds_a_bug, "fault"),
    ],
)
def test_outcomes_are_told_apart(
    tool: Callable[[Path], Any], outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MEASURE["tried"].__globals__, "LIMIT_S", 1.0)
    found = MEASURE["tried"](tool, tmp_path / "file")
    assert found["outcome"] == outcome
    assert (found["seconds"] > 1) == (outcome == "hung")
    if tool is works:
        assert 40 < found["mb"] < 100
