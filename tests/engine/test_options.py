"""Options of a build, refused before any work where they cannot be meant."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from vntools.base.errors import UsageFault
from vntools.engine.backend import Backend
from vntools.engine.options import BuildOptions

TENSORRT = Backend("tensorrt", "11.4.1", ModuleType("tensorrt"))


@pytest.mark.parametrize(
    ("given", "batches"),
    [
        ({}, (1, 1, 8)),
        ({"min_batch": 4}, (4, 4, 8)),
        ({"opt_batch": 16}, (1, 16, 16)),
        ({"max_batch": 1}, (1, 1, 1)),
        ({"min_batch": 2, "opt_batch": 3, "max_batch": 5}, (2, 3, 5)),
    ],
)
def test_batches(given, batches):
    assert BuildOptions(TENSORRT, **given).batches() == batches


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"min_batch": 0}, "engine.batch"),
        ({"min_batch": 2, "opt_batch": 1}, "engine.batch"),
        ({"min_batch": 16, "max_batch": 8}, "engine.batch"),
        ({"optimization_level": 6}, "engine.level"),
        ({"optimization_level": -1}, "engine.level"),
        ({"mem_pool_size": {"dlaSRAM": 1}}, "engine.mem_pool"),
        ({"mem_pool_size": {"workspace": 0}}, "engine.mem_pool"),
        ({"mem_pool_size": {"workspace": float("nan")}}, "engine.mem_pool"),
    ],
)
def test_what_cannot_be_meant(rtx, given, code):
    for backend in (TENSORRT, rtx):
        with pytest.raises(UsageFault) as caught:
            BuildOptions(backend, **given)
        assert caught.value.code == code


def test_a_timing_cache_does_nothing_on_tensorrt_rtx(rtx):
    assert BuildOptions(TENSORRT, timing_cache=Path("t.cache")).timing_cache is not None
    with pytest.raises(UsageFault, match="times no kernels") as caught:
        BuildOptions(rtx, timing_cache=Path("t.cache"))
    assert caught.value.code == "engine.timing_cache"


@pytest.mark.parametrize("capabilities", [(70,), (80, 80), (8,), (80, 999)])
def test_compute_capabilities_that_tensorrt_rtx_does_not_build_for(rtx, capabilities):
    with pytest.raises(UsageFault, match="80, 86, 89") as caught:
        BuildOptions(rtx, compute_capabilities=capabilities)
    assert caught.value.code == "engine.compute_capability"


def test_compute_capabilities_are_for_tensorrt_rtx_only(rtx):
    assert BuildOptions(rtx, compute_capabilities=(75, 120)).compute_capabilities == (75, 120)
    with pytest.raises(UsageFault, match="the GPU at hand"):
        BuildOptions(TENSORRT, compute_capabilities=(80,))
