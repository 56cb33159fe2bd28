"""What every runner promises, held against every runner file there is."""

from __future__ import annotations

import importlib.util
import json
import pkgutil
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import vntools.runtime
from vntools.base.artifacts import sha256_bytes
from vntools.base.errors import CheckFailed, DataFault, Unavailable
from vntools.engine.backend import Backend, choose, gpu_count, load
from vntools.engine.build import BuildOptions, build
from vntools.engine.plan import Plan
from vntools.runtime.base import Runner, TensorSpec
from vntools.runtime.onnx_runner import OnnxCudaRunner, OnnxRunner, OnnxTensorrtRunner
from vntools.runtime.openvino_runner import OpenvinoRunner
from vntools.runtime.torch_compile_runner import TorchCompileCudaRunner, TorchCompileRunner
from vntools.runtime.torch_runner import TorchCudaGraphRunner, TorchCudaRunner, TorchRunner
from vntools.runtime.trt_runner import PlanRunner


def _plan(flavour: str) -> Callable[[pytest.FixtureRequest, Any], Runner]:
    def make(request: pytest.FixtureRequest, net: Any) -> Runner:
        trt = request.getfixturevalue("trt")
        return PlanRunner(Plan(b"plan", {"sha256": "0" * 64}), Backend(flavour, "11.4.1", trt))

    return make


def _real_plan(_: pytest.FixtureRequest, net: Any) -> Runner:
    backend = choose()
    built = build(net.onnx_model(), BuildOptions(backend))
    sidecar = built.record | {"sha256": sha256_bytes(built.plan)}
    return PlanRunner(Plan(built.plan, sidecar), backend)


def needs(package: str) -> pytest.MarkDecorator:
    """Skip where an optional package is not installed."""
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed")


def _tensorrt_10() -> bool:
    """Whether ONNX Runtime's TensorRT provider has what it was built for."""
    try:
        return gpu_count() > 0 and load("tensorrt").major == 10
    except Unavailable:
        return False


needs_tensorrt_10 = pytest.mark.skipif(not _tensorrt_10(), reason="no GPU or no TensorRT 10")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
# Of PyTorch's own code, which it tells nobody else to change.
COMPILING = [pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")]

# By file of vntools/runtime: how each of its runners is made. Those that need a GPU are
# marked; the logic of the plan runner is held against a GPU made of numpy arrays.
MAKERS: dict[str, list[Any]] = {
    "onnx_runner": [
        pytest.param(lambda _, net: OnnxRunner(net.onnx_model()), id="onnxruntime-cpu"),
        pytest.param(
            lambda _, net: OnnxCudaRunner(net.onnx_model()),
            id="onnxruntime-cuda",
            marks=pytest.mark.gpu,
        ),
        pytest.param(
            lambda _, net: OnnxTensorrtRunner(net.onnx_model()),
            id="onnxruntime-tensorrt",
            marks=needs_tensorrt_10,
        ),
    ],
    "openvino_runner": [
        pytest.param(
            lambda _, net: OpenvinoRunner(net.onnx_model()),
            id="openvino-cpu",
            marks=needs("openvino"),
        ),
    ],
    "torch_compile_runner": [
        pytest.param(
            lambda _, net: TorchCompileRunner(net.module(), net.shape),
            id="pytorch-compile-cpu",
            marks=[*COMPILING, needs_compiler],
        ),
        pytest.param(
            lambda _, net: TorchCompileCudaRunner(net.module(), net.shape),
            id="pytorch-compile-cuda",
            marks=[*COMPILING, pytest.mark.gpu],
        ),
    ],
    "torch_runner": [
        pytest.param(lambda _, net: TorchRunner(net.module(), net.shape), id="pytorch-cpu"),
        pytest.param(
            lambda _, net: TorchCudaRunner(net.module(), net.shape),
            id="pytorch-cuda",
            marks=pytest.mark.gpu,
        ),
        pytest.param(
            lambda _, net: TorchCudaGraphRunner(net.module(), net.shape),
            id="pytorch-cuda-graph",
            marks=pytest.mark.gpu,
        ),
    ],
    "trt_runner": [
        pytest.param(_plan("tensorrt"), id="tensorrt-fake"),
        pytest.param(_plan("tensorrt-rtx"), id="tensorrt-rtx-fake"),
        pytest.param(_real_plan, id="plan", marks=pytest.mark.gpu),
    ],
}


def test_every_runner_file_is_held_against_the_contract():
    files = {m.name for m in pkgutil.iter_modules(vntools.runtime.__path__)}
    assert {name for name in files if name.endswith("_runner")} == set(MAKERS)


@pytest.fixture(params=[maker for makers in MAKERS.values() for maker in makers])
def closed(request: pytest.FixtureRequest, net: Any) -> Runner:
    return request.param(request, net)


def _close(found: np.ndarray, wanted: np.ndarray) -> bool:
    # TF32, which a GPU may use, rounds to 11 significant bits.
    return bool(np.linalg.norm(found - wanted) <= 2e-3 * np.linalg.norm(wanted))


def test_specifications_and_details(closed: Runner):
    with closed as runner:
        (given,), (got,) = runner.inputs, runner.outputs
        assert given == TensorSpec("input", ("batch", 3, 5, 4), "float32")
        assert got == TensorSpec("logits", ("batch", 4, 5, 4), "float32")
        assert str(given) == "input: float32 batchx3x5x4"
        assert runner.backend
        json.dumps(runner.details)
        assert {"version", "precision"} <= set(runner.details)


def test_outputs_are_right_at_changing_batches(closed: Runner, net: Any):
    with closed as runner:
        for batch in (1, 3, 3, 1):
            x = net.images(batch, seed=batch)
            y = runner.run({"input": x})
            assert list(y) == ["logits"]
            assert y["logits"].shape == (batch, 4, 5, 4)
            assert _close(y["logits"], net.reference(x))


def test_the_comparison_can_fail(net: Any):
    y = net.reference(net.images(1))
    assert not _close(y * 1.01, y)


def test_outputs_are_copies_and_inputs_are_the_callers(closed: Runner, net: Any):
    with closed as runner:
        x = net.images(2)
        first = runner.run({"input": x})["logits"]
        kept = first.copy()
        runner.run({"input": net.images(2, seed=9)})
        assert np.array_equal(first, kept)
        first[...] = 0
        assert np.array_equal(runner.run({"input": x})["logits"], kept)
        assert np.array_equal(x, net.images(2))


def test_prepared_inputs_do_not_change_with_the_callers_array(closed: Runner, net: Any):
    with closed as runner:
        x = net.images(2)
        runner.prepare({"input": x})
        wanted = net.reference(x)
        x[...] = 0
        runner.enqueue()
        runner.download()
        runner.synchronize()
        assert _close(runner.results()["logits"], wanted)


def test_results_are_copies_too(closed: Runner, net: Any):
    with closed as runner:
        x = net.images(2)
        runner.prepare({"input": x})
        runner.enqueue()
        runner.download()
        runner.synchronize()
        runner.results()["logits"][...] = 0
        assert _close(runner.results()["logits"], net.reference(x))


def test_an_array_in_another_order_is_taken(closed: Runner, net: Any):
    with closed as runner:
        x = net.images(2)
        strided = np.asfortranarray(x)
        strided.flags.writeable = False
        assert _close(runner.run({"input": strided})["logits"], net.reference(x))


@pytest.mark.parametrize(
    ("code", "spoil"),
    [
        ("feeds.names", lambda x: {}),
        ("feeds.names", lambda x: {"x": x}),
        ("feeds.names", lambda x: {"input": x, "extra": x}),
        ("feeds.dtype", lambda x: {"input": x.astype(np.float64)}),
        ("feeds.dtype", lambda x: {"input": x.astype(np.float16)}),
        ("feeds.shape", lambda x: {"input": x[0]}),
        ("feeds.shape", lambda x: {"input": x[:, :, :4]}),
        ("feeds.shape", lambda x: {"input": x[:0]}),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    closed: Runner, net: Any, code: str, spoil: Callable[[np.ndarray], dict[str, np.ndarray]]
):
    with closed as runner, pytest.raises(DataFault) as e:
        runner.run(spoil(net.images(2)))
    assert e.value.code == code
    assert "input" in e.value.line()


def test_outputs_that_are_not_finite_are_refused(closed: Runner, net: Any):
    x = net.images(2)
    x[1, 0, 2, 3] = np.inf  # not NaN: a ReLU on a GPU may turn it into 0
    with closed as runner:
        with pytest.raises(CheckFailed) as e:
            runner.run({"input": x})
        assert e.value.code == "verify.nonfinite"
        assert "of 160 values of output 'logits'" in e.value.line()
        assert "the first at [1," in e.value.line()
        runner.run({"input": net.images(2)})


def test_marks_measure_the_work_between_them(closed: Runner, net: Any):
    with closed as runner:
        runner.prepare({"input": net.images(1)})
        for mark in (0, 4):
            runner.clock.mark(mark)
            runner.upload()
            runner.clock.mark(mark + 1)
            runner.enqueue()
            runner.clock.mark(mark + 2)
            runner.download()
            runner.clock.mark(mark + 3)
        for mark in (0, 4):
            runner.clock.wait(mark + 3)
            assert 0 < runner.clock.elapsed_ms(mark + 1, mark + 2) < 1000
            assert runner.clock.elapsed_ms(mark, mark + 3) >= runner.clock.elapsed_ms(
                mark + 1, mark + 2
            )


def test_an_error_inside_the_block_still_closes(closed: Runner, net: Any):
    with pytest.raises(ZeroDivisionError), closed as runner:
        runner.run({"input": net.images(1)})
        _ = 1 / 0
