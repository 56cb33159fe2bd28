"""PyTorch modules as they are run, and as they are given back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from vntools.base.errors import CheckFailed, InternalFault, Unavailable
from vntools.runtime.base import TensorSpec, check_outputs
from vntools.runtime.torch_runner import TorchCudaGraphRunner, TorchCudaRunner, TorchRunner


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(3)
        self.frozen = torch.nn.BatchNorm2d(3).eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.frozen(self.norm(x)).flatten(1)


def test_the_module_runs_in_evaluation_mode_and_comes_back_as_it_was():
    module = Net().train()
    module.frozen.eval()
    threads = torch.get_num_threads()
    x = np.full((4, 3, 2, 2), 5, np.float32)
    with TorchRunner(module, (3, 2, 2), threads=1) as runner:
        assert runner.outputs == (TensorSpec("logits", ("batch", 12), "float32"),)
        assert runner.details["threads"] == 1
        assert torch.get_num_threads() == 1
        y = runner.run({"input": x})["logits"]
        assert np.allclose(y, 5, atol=1e-3)
    assert module.training
    assert module.norm.training
    assert not module.frozen.training
    assert torch.get_num_threads() == threads
    assert module.norm.num_batches_tracked == 0


def test_a_half_precision_module_says_so():
    with TorchRunner(torch.nn.Conv2d(3, 2, 1).half(), (3, 2, 2)) as runner:
        assert runner.details["precision"] == "float16"
        assert runner.inputs[0].dtype == "float16"


def test_a_module_that_fails_leaves_nothing_changed():
    module = torch.nn.Conv2d(4, 2, 1).train()
    with pytest.raises(RuntimeError), TorchRunner(module, (3, 2, 2)):
        pass
    assert module.training


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_cuda_that_is_not_there():
    with pytest.raises(Unavailable) as e, TorchCudaRunner(torch.nn.ReLU(), (3, 2, 2)):
        pass
    assert e.value.code == "gpu.none"


class StandInGraph:
    """Counts how often it is replayed."""

    def __init__(self) -> None:
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1


def on_the_cpu(module: torch.nn.Module) -> Any:
    """The CUDA graph runner with a prepared input, and a stand-in for ``torch.cuda``."""
    runner: Any = TorchCudaGraphRunner(module, (2,))
    runner._torch = SimpleNamespace(
        inference_mode=torch.inference_mode,
        OutOfMemoryError=torch.OutOfMemoryError,
        cuda=MagicMock(CUDAGraph=StandInGraph),
    )
    runner._torch.cuda.graph.return_value.__exit__.return_value = False
    runner._input = torch.ones(1, 2)
    return runner


class Counting(torch.nn.Module):
    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x


def test_a_capture_comes_after_warm_ups_on_a_side_stream_and_is_replayed():
    module = Counting()
    runner = on_the_cpu(module)
    runner._specialise()
    names = [name for name, _, _ in runner._torch.cuda.mock_calls]
    assert names.index("Stream().wait_stream") < names.index("graph")
    assert names.index("current_stream().wait_stream") < names.index("graph")
    assert module.calls == 3 + 1
    runner.enqueue()
    runner.enqueue()
    assert module.calls == 3 + 1
    assert runner._graph.replays == 2


def test_a_capture_that_fails_is_an_error():
    class Uncapturable(torch.nn.Module):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls > 3:
                raise RuntimeError("operation not permitted when stream is capturing\nmore")
            return x

    with pytest.raises(Unavailable, match="when stream is capturing;") as e:
        on_the_cpu(Uncapturable())._specialise()
    assert e.value.code == "torch.capture"


@pytest.mark.gpu
def test_a_graph_replays_with_new_inputs(net: Any):
    with TorchCudaGraphRunner(net.module(), net.shape) as runner:
        assert runner.details["cuda_graph"] == "captured"
        for seed in (1, 2):
            x = net.images(2, seed=seed)
            y = runner.run({"input": x})["logits"]
            assert np.linalg.norm(y - net.reference(x)) < 2e-3 * np.linalg.norm(y)


@pytest.mark.gpu
def test_a_module_on_the_gpu_is_a_copy(net: Any):
    module = net.module().train()
    with TorchCudaRunner(module, net.shape) as runner:
        assert runner.clock.on_gpu
        assert runner.details["gpu"]["name"]
    assert module.training
    assert next(module.parameters()).device.type == "cpu"


# --- outputs against their specification


@pytest.mark.parametrize(
    "outputs",
    [
        {},
        {"y": np.ones((2, 3), np.float32), "z": np.ones(1)},
        {"y": np.ones((2, 4), np.float32)},
        {"y": np.ones((2, 3), np.float64)},
        {"y": np.ones((0, 3), np.float32)},
    ],
)
def test_a_backend_that_breaks_its_specification(outputs: dict[str, np.ndarray]):
    with pytest.raises(InternalFault) as e:
        check_outputs((TensorSpec("y", ("batch", 3), "float32"),), outputs)
    assert e.value.code == "runner.outputs"


def test_values_that_are_not_finite_are_counted_and_placed():
    y = np.ones((2, 3), np.float32)
    specs = (TensorSpec("y", ("batch", 3), "float32"),)
    check_outputs(specs, {"y": y})
    y[1, 0], y[1, 2] = np.nan, np.inf
    with pytest.raises(CheckFailed, match=r"2 of 6 values of output 'y'.* first at \[1,0\]"):
        check_outputs(specs, {"y": y})


def test_integers_are_always_finite():
    check_outputs((TensorSpec("n", (1,), "int64"),), {"n": np.array([1 << 62])})
