"""For all tests: hypothesis without chance, GPU marks, and the command line in two ways."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Generator
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import settings

from vntools.cli import vntools
from vntools.engine.backend import gpu_count

# Before torch is imported: threads that spin while they wait take other processes' time.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
settings.register_profile("vntools", deadline=None, derandomize=True)
settings.load_profile("vntools")

ENTRY = (sys.executable, "-P", "-c", "from vntools.cli import main; main()")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked ``gpu`` where no GPU answers."""
    if item.get_closest_marker("gpu") and gpu_count() == 0:
        pytest.skip("no GPU answers")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where a GPU answers, a skipped GPU test is a failure: something it needs is missing."""
    report = yield
    if report.skipped and item.get_closest_marker("gpu") and gpu_count() > 0:
        report.outcome = "failed"
    return report


@pytest.fixture
def invoke() -> Callable[..., Result]:
    """``vntools WORDS...`` in this process: exit_code, stdout and stderr."""

    def call(*words: object, **kwargs: Any) -> Result:
        return CliRunner().invoke(vntools, [str(w) for w in words], **kwargs)

    return call


@pytest.fixture
def vntools_process() -> Callable[..., subprocess.CompletedProcess[str]]:
    """``vntools WORDS...`` as a process of its own: returncode, stdout and stderr."""

    def call(*words: object, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        kwargs.setdefault("timeout", 300)
        return subprocess.run(
            [*ENTRY, *map(str, words)], check=False, capture_output=True, text=True, **kwargs
        )

    return call
