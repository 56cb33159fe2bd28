"""One small network in every form a runner takes, and a GPU made of numpy arrays."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tests.runtime.stand_in import SHAPE, WEIGHT, FakeGpu, fake_trt, reference
from vntools.engine.backend import Backend
from vntools.runtime import cuda, trt_runner


def onnx_model(*, dtype: int = TensorProto.FLOAT, batch: int | str = "batch") -> bytes:
    weight = WEIGHT.astype(helper.tensor_dtype_to_np_dtype(dtype))
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["input", "w"], ["c"], name="conv"),
            helper.make_node("Relu", ["c"], ["logits"], name="relu"),
        ],
        "net",
        [helper.make_tensor_value_info("input", dtype, [batch, *SHAPE])],
        [helper.make_tensor_value_info("logits", dtype, [batch, 4, *SHAPE[1:]])],
        [numpy_helper.from_array(weight, "w")],
    )
    opsets = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def module() -> torch.nn.Module:
    conv = torch.nn.Conv2d(3, 4, 1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.from_numpy(WEIGHT))
    return torch.nn.Sequential(conv, torch.nn.ReLU())


class Net:
    """The network: its shape, its float64 reference, and its forms."""

    shape = SHAPE
    weight = WEIGHT
    reference = staticmethod(reference)
    onnx_model = staticmethod(onnx_model)
    module = staticmethod(module)

    @staticmethod
    def images(batch: int, *, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).uniform(-1, 1, (batch, *SHAPE)).astype(np.float32)


@pytest.fixture
def net() -> type[Net]:
    return Net


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    """A fake GPU under PyCUDA's and the driver library's names; all given back at the end."""
    fake = FakeGpu()
    package: Any = ModuleType("pycuda")
    package.driver = fake.driver
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", fake.driver)
    monkeypatch.setattr(cuda, "library", lambda: fake.library)
    monkeypatch.setattr(trt_runner, "gpu_count", lambda: 1)
    monkeypatch.setattr(trt_runner, "compute_capability", lambda: 80)
    yield fake
    assert fake.contexts == 0, "a context was left on the stack"
    assert not fake.memory, "GPU memory was not freed"
    assert not fake.library.open_graphs, "a CUDA graph was not destroyed"


@pytest.fixture
def trt(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A fake TensorRT on the fake GPU."""
    fake = fake_trt(gpu)
    monkeypatch.setattr(trt_runner, "load", lambda name: Backend(name, "11.4.1", fake))
    return fake
