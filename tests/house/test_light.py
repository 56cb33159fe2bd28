"""``vntools --help`` is quick and imports nothing heavy."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAVY = {
    "torch",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxsim",
    "numpy",
    "rich",
    "tensorrt",
    "PIL",
}
LIMIT_S = 0.3
HELP = "import sys; sys.argv = ['vntools', '--help']\nfrom vntools.cli import main\nmain()"


def loaded(code: str) -> set[str]:
    """Top-level packages that a fresh interpreter and its children import for ``code``."""
    run = subprocess.run(
        [sys.executable, "-P", "-X", "importtime", "-c", code],
        check=True,
        capture_output=True,
        text=True,
    )
    lines = (line for line in run.stderr.splitlines() if line.startswith("import time:"))
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


@pytest.mark.parametrize("code", ["import vntools", "import vntools.cli", HELP])
def test_nothing_heavy_is_imported(code: str) -> None:
    names = loaded(code)
    assert "vntools" in names
    assert names & HEAVY == set()
    assert ("click" in names) == (code == HELP)


def test_the_probe_can_fail() -> None:
    assert loaded("import numpy") & HEAVY == {"numpy"}
    in_child = "import os; os.fork() or __import__('numpy'); os.wait()"
    assert "numpy" in loaded(f"try: {in_child}\nexcept OSError: pass")


def test_help_takes_at_most_three_tenths_of_a_second() -> None:
    """Of the processor, both processes together: other work beside it does not count."""
    seconds = []
    for _ in range(5):
        before = os.times()
        subprocess.run([sys.executable, "-P", "-c", HELP], check=True, capture_output=True)
        after = os.times()
        spent = after.children_user + after.children_system
        seconds.append(spent - before.children_user - before.children_system)
    assert min(seconds) <= LIMIT_S
