"""Compiled modules: whole or not at all, and as many shapes and modules as there are."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest
import torch

from vntools.base.errors import Unavailable
from vntools.runtime.torch_compile_runner import (
    TorchCompileCudaRunner,
    TorchCompileRunner,
    _reason,
)

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler"),
    # Of PyTorch's own code, which it tells nobody else to change.
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
]
SHAPE = (2, 3)


class Doubled(torch.nn.Module):
    """Counts how often Python runs it, which a compiled module does not."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_compiling():
            self.calls += 1
        return 2 * x


class Broken(torch.nn.Module):
    """Cannot be one graph: what it does depends on a value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum().item() > 0 else -x


def feeds(batch: int) -> dict[str, np.ndarray]:
    return {"input": np.ones((batch, *SHAPE), np.float32)}


def test_what_runs_is_the_compiled_module():
    module = Doubled()
    with TorchCompileRunner(module, SHAPE, threads=1) as runner:
        eager = module.calls
        assert np.array_equal(runner.run(feeds(2))["logits"], 2 * feeds(2)["input"])
        for _ in range(5):
            runner.enqueue()
        assert module.calls == eager
        assert runner.backend == "pytorch-compile-cpu"
        assert runner.details["threads"] == 1
        assert "inductor" in runner.details["compiler"]
    module(torch.ones(1))
    assert module.calls == eager + 1


def test_more_shapes_and_modules_than_torchdynamo_counts_to():
    for batches in (range(1, 11), range(11, 14)):
        with TorchCompileRunner(Doubled(), SHAPE) as runner:
            for batch in batches:
                assert runner.run(feeds(batch))["logits"].shape == (batch, *SHAPE)


def test_a_module_that_is_not_one_graph_is_refused():
    with (
        TorchCompileRunner(Broken(), SHAPE) as runner,
        pytest.raises(Unavailable, match=r"torch\.compile failed") as e,
    ):
        runner.prepare(feeds(1))
    assert e.value.code == "torch.compile"


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Any):
    # In a cache of its own: what is found there is not compiled.
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with (
        config.patch({"cpp.cxx": (None, "no-such-compiler")}),
        TorchCompileRunner(Doubled(), (5, 7)) as runner,
        pytest.raises(Unavailable, match=r"C\+\+ compiler"),
    ):
        runner.prepare({"input": np.ones((1, 5, 7), np.float32)})


def test_the_reason_is_not_who_raised_it():
    said = "backend='inductor' raised:\nImportError: no Triton\n\nSet TORCHDYNAMO_VERBOSE=1"
    assert _reason(RuntimeError(said)) == "ImportError: no Triton"
    assert _reason(RuntimeError("raised:")) == "raised:"
    assert _reason(RuntimeError()) == "RuntimeError"


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_cuda_that_is_not_there():
    with pytest.raises(Unavailable) as e, TorchCompileCudaRunner(Doubled(), SHAPE):
        pass
    assert e.value.code == "gpu.none"
