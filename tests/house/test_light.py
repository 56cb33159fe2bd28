"""``vntools --help`` is quick and imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys
import time

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
    """Top-level packages that a fresh interpreter has imported after ``code``."""
    probe = f"try:\n exec({code!r})\nfinally:\n import sys; print('\\n@', *sys.modules)"
    run = subprocess.run(
        [sys.executable, "-P", "-c", probe], check=True, capture_output=True, text=True
    )
    return {name.partition(".")[0] for name in run.stdout.rpartition("@")[2].split()}


@pytest.mark.parametrize("code", ["import vntools", "import vntools.cli", HELP])
def test_nothing_heavy_is_imported(code: str) -> None:
    assert "vntools" in loaded(code)
    assert loaded(code) & HEAVY == set()


def test_the_probe_can_fail() -> None:
    assert loaded("import numpy") & HEAVY == {"numpy"}


def test_help_takes_at_most_three_tenths_of_a_second() -> None:
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-P", "-c", HELP], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) <= LIMIT_S
