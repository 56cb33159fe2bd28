"""Plans: what is checked before TensorRT sees a byte, and the runner up to the driver."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.plans import PLAN, sidecar_of
from vntools.base.artifacts import sha256_bytes, sidecar_path, write_sidecar_bytes
from vntools.base.errors import (
    DataFault,
    InternalFault,
    NoInput,
    TryLater,
    Unavailable,
    UsageFault,
    VntoolsError,
)
from vntools.bench.measure import BenchOptions, measure
from vntools.engine.backend import PLAN_MAGIC, Backend, choose
from vntools.engine.build import BuildOptions, build
from vntools.engine.plan import SIDECAR_ONLY, Plan, Trust
from vntools.runtime import trt_runner
from vntools.runtime.trt_runner import PlanRunner, open_plan


def test_the_magic_is_that_of_a_real_plan(net: Any):
    built = build(net.onnx_model(), BuildOptions(choose("tensorrt-rtx"), max_batch=2))
    assert PLAN_MAGIC[built.plan[:4]] == built.record["flavour"] == "tensorrt-rtx"


@pytest.mark.gpu
def test_a_plan_built_here_is_captured_and_replayed(net: Any):
    backend = choose()
    built = build(net.onnx_model(), BuildOptions(backend, max_batch=4))
    x = net.images(3)
    plan = Plan(built.plan, {"sha256": sha256_bytes(built.plan)})
    with PlanRunner(plan, backend) as runner:
        graphed = runner.run({"input": x})["logits"]
        assert runner.details["cuda_graph"] == "captured"
        with pytest.raises(UsageFault, match="1x3x5x4 to 4x3x5x4"):
            runner.run({"input": net.images(5)})
    with PlanRunner(plan, backend, cuda_graph=False) as runner:
        assert np.array_equal(runner.run({"input": x})["logits"], graphed)


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Write a plan and its sidecar; keywords change the sidecar, ``None`` drops it."""

    def write(plan: bytes = PLAN, *, sidecar: bool = True, **changes: Any) -> Path:
        path = tmp_path / "net.plan"
        path.write_bytes(plan)
        if sidecar:
            record = sidecar_of(plan) | changes
            sidecar_path(path).write_bytes(write_sidecar_bytes(record))
        return path

    return write


def refusal(path: Path, trust: Trust = SIDECAR_ONLY) -> VntoolsError:
    with pytest.raises(VntoolsError) as e:
        open_plan(path, trust)
    return e.value


def test_a_plan_with_its_sidecar_opens_and_runs(trt: Any, written: Any, net: Any):
    with open_plan(written()) as runner:
        assert runner.backend == "tensorrt"
        assert runner.details["precision"] == "fp16"
        assert runner.details["sha256"] == sha256_bytes(PLAN)
        assert runner.details["gpu"] == {
            "name": "Numpy A100",
            "cc": "8.0",
            "memory_bytes": 1 << 30,
            "cuda_driver": "13.1",
        }
        x = net.images(2)
        y = runner.run({"input": x})["logits"]
    assert np.allclose(y, net.reference(x), atol=1e-5)


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_a_trusted_plan_runs_on_its_own_flavour(trt: Any, written: Any, flavour: str):
    path = written(next(m for m in PLAN_MAGIC if PLAN_MAGIC[m] == flavour), sidecar=False)
    with open_plan(path, Trust(any_plan=True)) as runner:
        assert runner.backend == flavour


def test_a_missing_plan(gpu: Any, tmp_path: Path):
    error = refusal(tmp_path / "no.plan")
    assert (type(error), error.code) == (NoInput, "input.missing")


def test_without_a_gpu_it_ends_at_once_and_says_what_is_missing(
    written: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(trt_runner, "gpu_count", lambda: 0)
    monkeypatch.setattr(trt_runner, "read_plan", lambda *_, **__: pytest.fail("it was read"))
    cases: list[tuple[set[str], str]] = [
        (set(), "GPU whose driver answers, PyCUDA, TensorRT"),
        ({"pycuda"}, "answers, TensorRT"),
        ({"pycuda", "tensorrt_rtx_bindings"}, "answers;"),
    ]
    for present, missing in cases:

        def find_spec(name: str, present: set[str] = present) -> object:
            return name if name in present else None

        with monkeypatch.context() as patch:
            patch.setattr(importlib.util, "find_spec", find_spec)
            error = refusal(written())
        assert (type(error), error.code, error.exit_status) == (Unavailable, "gpu.none", 69)
        assert missing in error.line()


def test_without_a_gpu_nothing_heavy_is_imported(written: Any):
    code = f"""
import sys
import vntools.runtime.trt_runner as r
r.gpu_count = lambda: 0
try:
    r.open_plan({str(written())!r})
except r.Unavailable:
    print(*(m for m in sys.modules if m.split('.')[0] in sys.argv[1:]))
"""
    heavy = ["pycuda", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings", "torch", "onnx"]
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *heavy, "json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert {m.split(".")[0] for m in done.stdout.split()} == {"json"}


# --- the runner


@pytest.fixture
def plan(trt: Any) -> Callable[..., PlanRunner]:
    def make(flavour: str = "tensorrt", **options: Any) -> PlanRunner:
        sidecar = {"sha256": "0", "compute_capabilities": [89]}
        backend = Backend(flavour, "11.4.1", trt)
        return PlanRunner(Plan(b"plan", sidecar), backend, **options)

    return make


def test_a_graph_is_captured_once_a_shape_and_replayed(gpu: Any, plan: Any, net: Any):
    with plan() as runner:
        for _ in range(3):
            runner.run({"input": net.images(2)})
        assert runner.details["cuda_graph"] == "captured"
        assert gpu.launches == 3
        assert len(gpu.library.open_graphs) == 1
        runner.run({"input": net.images(1)})
        assert len(gpu.library.open_graphs) == 1


def test_without_a_graph_the_context_enqueues(gpu: Any, plan: Any, net: Any):
    with plan(cuda_graph=False) as runner:
        runner.run({"input": net.images(2)})
        assert runner.details["cuda_graph"] == "off"
    assert gpu.launches == 0


def test_a_sibling_has_memory_and_a_graph_of_its_own_over_the_same_engine(
    gpu: Any, trt: Any, plan: Any, net: Any
):
    a, b = net.images(2), net.images(1, seed=1)
    with plan() as runner:
        runner.prepare({"input": a})
        with ExitStack() as stack:
            other = stack.push(runner.sibling())
            other.prepare({"input": b})
            assert other.clock is not runner.clock
            for one in (runner, other, runner):
                one.enqueue()
                one.download()
            runner.synchronize()
            other.synchronize()
            assert np.allclose(runner.results()["logits"], net.reference(a), atol=1e-5)
            assert np.allclose(other.results()["logits"], net.reference(b), atol=1e-5)
            assert len(gpu.library.open_graphs) == 2
        assert len(gpu.library.open_graphs) == 1
        assert np.allclose(runner.run({"input": a})["logits"], net.reference(a), atol=1e-5)
    assert trt.engines == 1


def test_layers_are_timed_without_the_graph_and_without_the_first_query(
    gpu: Any, plan: Any, net: Any
):
    with plan() as runner:
        runner.run({"input": net.images(2)})
        launches = gpu.launches
        assert runner.profile(3) == {"conv + relu": [0.375] * 3, "head": [0.125] * 3}
        assert gpu.launches == launches
        runner.run({"input": net.images(2)})
        assert gpu.launches == launches + 1


def test_the_inspector_speaks_of_the_context_that_runs(plan: Any, net: Any):
    with plan() as runner:
        runner.run({"input": net.images(2)})
        assert json.loads(runner.layer_info()) == {"Layers": []}


@pytest.mark.parametrize("spin", [True, False])
def test_a_wait_spins_or_sleeps(gpu: Any, plan: Any, net: Any, spin: bool):
    with plan() as runner:
        runner.run({"input": net.images(1)})
        runner.clock.spin = spin
        runner.clock.mark(0)
        runner.clock.wait(0)
        assert gpu.blocking_waits == (0 if spin else 1)


def test_several_streams_of_a_plan_are_fed_in_turn(gpu: Any, trt: Any, plan: Any):
    with plan() as runner:
        m = measure(runner, BenchOptions(0, 0, 9, streams=3))
    assert m.samples.compute.size >= 9
    assert (m.samples.compute > 0).all()
    assert (m.samples.at >= 0).all()
    assert trt.engines == 1
    assert "3 streams, 1 query ahead each" in m.protocol()


def test_a_plan_says_its_kernels(trt: Any):
    sidecar = {"sha256": "0", "kernels": [{"name": "k"}]}
    runner = PlanRunner(Plan(b"plan", sidecar), Backend("tensorrt", "11.4.1", trt))
    assert runner.details["kernels"] == [{"name": "k"}]


def _refuses(trt: Any, gpu: Any) -> None:
    trt.runs_under_capture = False


def _invalidated(trt: Any, gpu: Any) -> None:
    gpu.library.failing["cuStreamEndCapture"] = 901


def _uninstantiable(trt: Any, gpu: Any) -> None:
    gpu.library.failing["cuGraphInstantiateWithFlags"] = 999


def _uncapturable(trt: Any, gpu: Any) -> None:
    trt.capturable = False


@pytest.mark.parametrize(
    ("spoil", "flavour", "why"),
    [
        (_refuses, "tensorrt", "TensorRT refuses to enqueue"),
        (
            _invalidated,
            "tensorrt",
            "cuStreamEndCapture: CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
        ),
        (_uninstantiable, "tensorrt", "cuGraphInstantiateWithFlags: 999"),
        (_uncapturable, "tensorrt-rtx", "allocates while it runs"),
    ],
)
def test_a_capture_that_fails_is_recorded_and_the_plan_still_runs(
    trt: Any, gpu: Any, plan: Any, net: Any, spoil: Any, flavour: str, why: str
):
    spoil(trt, gpu)
    with plan(flavour) as runner:
        x = net.images(2)
        y = runner.run({"input": x})["logits"]
        assert runner.details["cuda_graph"].startswith("not captured: ")
        assert why in runner.details["cuda_graph"]
    assert np.allclose(y, net.reference(x), atol=1e-5)
    assert gpu.launches == 0


def test_a_graph_of_nothing_is_not_a_graph(trt: Any, plan: Any, net: Any):
    trt.enqueues = False
    with plan() as runner:
        runner.prepare({"input": net.images(1)})
        assert "nothing was put into the stream" in runner.details["cuda_graph"]


def test_a_graph_that_does_not_launch_is_an_error(gpu: Any, plan: Any, net: Any):
    with plan() as runner:
        runner.prepare({"input": net.images(1)})
        gpu.library.failing["cuGraphLaunch"] = 700
        with pytest.raises(InternalFault) as e:
            runner.enqueue()
    assert e.value.code == "gpu.fault"


def test_a_shape_outside_the_profile_names_the_profile(plan: Any, net: Any):
    with plan() as runner:
        with pytest.raises(UsageFault) as e:
            runner.run({"input": net.images(9)})
        assert e.value.code == "plan.profile"
        assert "1x3x5x4 to 8x3x5x4" in e.value.line()
        runner.run({"input": net.images(8)})


def test_rtx_compiles_for_the_shape_before_it_is_measured(trt: Any, plan: Any):
    with plan("tensorrt-rtx"):
        assert trt.specialization == "EAGER"
    with plan("tensorrt"):
        assert trt.specialization is None


def test_a_plan_that_tensorrt_refuses_says_why(trt: Any, plan: Any):
    trt.loads = False
    with pytest.raises(DataFault) as e, plan():
        pass
    assert e.value.code == "plan.refused"
    assert "this GPU is 8.0: the engine was built for another device" in e.value.line()
    assert "built for SM89" in e.value.line()


def test_a_context_without_memory(trt: Any, plan: Any):
    trt.has_memory = False
    with pytest.raises(TryLater) as e, plan():
        pass
    assert e.value.code == "gpu.memory"


@pytest.mark.parametrize("free_bytes", [500, 2000])
def test_a_gpu_without_memory(gpu: Any, plan: Any, net: Any, free_bytes: int):
    gpu.free_bytes = free_bytes
    with plan() as runner, pytest.raises(TryLater) as e:
        runner.run({"input": net.images(8)})
    assert e.value.code == "gpu.memory"
    assert "of 1024 MiB are free" in e.value.line()


def test_a_type_that_numpy_lacks(trt: Any, plan: Any):
    trt.dtype = "BF16"
    with pytest.raises(DataFault) as e, plan():
        pass
    assert e.value.code == "plan.io"


def test_the_stream_does_not_wait_for_the_default_one(gpu: Any, plan: Any):
    with plan():
        assert [s.flags for s in gpu.streams.values()] == [1]


@pytest.mark.parametrize(
    "call", ["synchronize", "record", "query", "time_till", "memcpy_htod_async"]
)
def test_a_cuda_error_is_mapped_wherever_it_appears(
    gpu: Any, plan: Any, net: Any, monkeypatch: pytest.MonkeyPatch, call: str
):
    def fail(*arguments: Any) -> None:
        del arguments  # the traceback would keep an event alive
        raise gpu.driver.Error("an illegal memory access was encountered")

    with plan() as runner:
        runner.prepare({"input": net.images(1)})
        runner.clock.mark(0)
        owner, step = {
            "synchronize": (next(iter(gpu.streams.values())), runner.synchronize),
            "record": (type(gpu.events()[0]), lambda: runner.clock.mark(0)),
            "query": (type(gpu.events()[0]), lambda: runner.clock.wait(0)),
            "time_till": (type(gpu.events()[0]), lambda: runner.clock.elapsed_ms(0, 0)),
            "memcpy_htod_async": (gpu.driver, runner.upload),
        }[call]
        with monkeypatch.context() as patch, pytest.raises(InternalFault) as e:
            patch.setattr(owner, call, fail)
            step()
    assert e.value.code == "gpu.fault"
    assert "illegal memory access" in e.value.line()


@pytest.mark.parametrize("in_the_block", [True, False])
def test_a_cuda_error_that_sticks_comes_back_when_the_context_ends(
    gpu: Any, plan: Any, in_the_block: bool
):
    def pop() -> None:
        gpu.contexts -= 1
        raise gpu.driver.Error("unspecified launch failure")

    runner = plan()
    with pytest.raises(InternalFault) as e, runner:
        runner._cuda._stack.callback(pop)
        gpu.contexts += 1
        if in_the_block:
            raise InternalFault("runner.failed", "TensorRT refuses to enqueue")
    assert (e.value.code, e.value.exit_status) == ("gpu.fault", 70)
    assert "unspecified launch failure" in e.value.line()


def test_the_fake_gpu_can_tell_a_missing_synchronization(plan: Any, net: Any):
    with plan() as runner:
        x = net.images(1)
        runner.prepare({"input": x})
        runner.enqueue()
        runner.download()
        assert not np.allclose(runner.results()["logits"], net.reference(x), atol=1e-5)
        runner.synchronize()
        assert np.allclose(runner.results()["logits"], net.reference(x), atol=1e-5)
