"""What runs beside the passes takes half of the cores."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vntools.export.interface import Interface
from vntools.pipeline import references

BLAS_THREADS = "OPENBLAS_NUM_THREADS"
PROBE = """
import os, sys
from vntools.pipeline import references
references._cores = lambda: 2
{first}
references.share_cores()
import numpy
from threadpoolctl import threadpool_info
used = [i["num_threads"] for i in threadpool_info() if i["internal_api"] == "openblas"]
print(*used, os.environ.get("OPENBLAS_NUM_THREADS"))
"""


def threads(first: str = "", **environment: str) -> list[str]:
    """Threads of OpenBLAS in a fresh interpreter, and what the environment says then."""
    pytest.importorskip("threadpoolctl")
    clean = {k: v for k, v in os.environ.items() if k != BLAS_THREADS} | environment
    code = PROBE.format(first=first)
    run = subprocess.run(
        [sys.executable, "-P", "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env=clean,
    )
    return run.stdout.split()


# Where numpy is built with another library, no threads of OpenBLAS are listed.
def test_matrix_products_get_half_of_the_cores() -> None:
    assert threads() in (["1", "None"], ["None"])


def test_a_number_of_the_users_own_stands() -> None:
    more_cores = "references._cores = lambda: 8"
    assert threads(more_cores, OPENBLAS_NUM_THREADS="1") in (["1", "1"], ["1"])


def test_nothing_happens_where_numpy_is_loaded() -> None:
    late = threads("import numpy")
    assert late == threads("references.share_cores = lambda: None")


def test_pytorch_gets_half_of_the_cores_and_gives_them_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Counts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full_like(x, torch.get_num_threads())

    before = torch.get_num_threads()
    monkeypatch.setattr(references, "_cores", lambda: 2)
    (found,) = references._pytorch(
        Counts(), [{"input": np.zeros((1, 1), np.float32)}], Interface()
    )
    assert found["logits"] == 1
    assert torch.get_num_threads() == before
