"""Rows 86 to 102: plans are programs, and TensorRT may fail in any way that it likes.

TensorRT and the GPU are scripted stand-ins, in this process where they return, raise or log,
and as modules that a process of its own imports where they die. Beside the row itself each
refusal of a plan holds that TensorRT was asked for nothing but its version.

Not made here: of row 92 a signature, which is for other tools; of row 99 a build without
progress, which has no time limit of its own and is ended by Ctrl-C.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tests.catalogue.frame import Outcome, Row, Words, by_number, hold, in_process
from tests.engine.plans import PLAN, sidecar_of
from tests.engine.stand_in import ERROR, Script, inspector_json, stand_in
from tests.runtime import stand_in as numpy_gpu
from tests.runtime.stand_in import FakeContext, FakeGpu, FakeStream, fake_trt
from vntools.base.artifacts import (
    read_sidecar,
    sha256_bytes,
    sidecar_path,
    write_sidecar_bytes,
)
from vntools.engine import backend
from vntools.engine.backend import Backend
from vntools.runtime import cuda, trt_runner

QUICK = ("--duration", 0, "--warm-up", 0, "--iterations", 1, "--no-cuda-graph")
DIGEST = sha256_bytes(PLAN)


# ---------------------------------------------------------------------- a machine, in numpy


@dataclass
class Machine:
    """A GPU and the two faces of TensorRT, scripted.

    Attributes:
        gpu: of compute capability 8.0.
        runtime: deserialises and runs.
        script: what its builder does.
        asked: what was asked of the runtime.
    """

    gpu: FakeGpu
    runtime: Any
    script: Script
    patch: pytest.MonkeyPatch
    asked: list[str] = field(default_factory=list[str])

    def load(self, name: str) -> Backend:
        """The runtime, its names written down as they are asked for."""
        machine = self

        class Watched(ModuleType):
            def __getattr__(self, name: str) -> Any:
                machine.asked.append(name)
                return getattr(machine.runtime, name)

        return Backend(name, "11.4.1", Watched("tensorrt"))

    def without(self, *modules: str) -> None:
        """Let modules be missing, and what is patched of their import be as ever."""
        for module in modules:
            self.patch.setitem(sys.modules, module, None)
        self.patch.setattr(backend, "load", LOAD)
        self.patch.setattr(trt_runner, "load", LOAD)

    def without_gpu(self) -> None:
        """Let no driver answer, and PyCUDA be missing."""
        self.patch.setitem(sys.modules, "pycuda", None)
        self.patch.setattr(backend, "_driver", lambda: None)
        self.patch.setattr(backend, "load", LOAD)
        for module in (backend, trt_runner):
            self.patch.setattr(module, "gpu_count", COUNT)


LOAD, COUNT, DRIVER = backend.load, backend.gpu_count, backend._driver


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    gpu = FakeGpu()
    script = Script(plan=PLAN, inspector=inspector_json("Float"))
    made = Machine(gpu, fake_trt(gpu), script, monkeypatch)
    package: Any = ModuleType("pycuda")
    package.driver = gpu.driver
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", gpu.driver)
    monkeypatch.setattr(cuda, "library", lambda: gpu.library)
    monkeypatch.setattr(backend, "load", lambda name: stand_in("11.4.1", script))
    monkeypatch.setattr(trt_runner, "load", made.load)
    for module in (backend, trt_runner):
        monkeypatch.setattr(module, "gpu_count", lambda: 1)
        monkeypatch.setattr(module, "compute_capability", lambda: 80)
    yield made
    assert gpu.contexts == 0, "a context was left on the stack"
    assert not gpu.memory, "GPU memory was not freed"


def whole(machine: Machine) -> None:
    """Nothing is wrong with it."""


@dataclass(frozen=True)
class EngineRow(Row):
    """A fault of a file, or of the machine.

    Attributes:
        spoil: what is wrong with the machine.
    """

    spoil: Callable[[Machine], None] = whole


# ------------------------------------------------------------------------------------- files


def graph(folder: Path, *, overflowing: bool = False) -> Path:
    """A convolution of the name that the stand-in builds; or one, squared beyond float32."""
    weight = np.random.default_rng(0).standard_normal((4, 3, 1, 1)).astype(np.float32)
    sums = "sums" if overflowing else "logits"
    nodes = [helper.make_node("Conv", ["input", "w"], [sums], name="stem")]
    if overflowing:
        weight *= np.float32(1e25)
        nodes.append(helper.make_node("Mul", [sums, sums], ["logits"], name="square"))
    made = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 4, 8, 8])],
        [numpy_helper.from_array(weight, "w")],
    )
    opsets = [helper.make_opsetid("", 18)]
    path = folder / "net.onnx"
    onnx.save(helper.make_model(made, opset_imports=opsets, ir_version=10), path)
    return path


def building(*words: object) -> Callable[[Path], Words]:
    """``build-engine`` of a graph, with TensorRT."""

    def make(folder: Path) -> Words:
        placed = [w(folder) if callable(w) else w for w in words]
        return ("build-engine", graph(folder), "--backend", "tensorrt", *placed)

    return make


def plan(folder: Path, data: bytes = PLAN, *, of: bytes | None = None, **changes: Any) -> Path:
    """A plan, beside the sidecar of ``of``, or of itself."""
    path = folder / "net.plan"
    path.write_bytes(data)
    record = sidecar_of(data if of is None else of) | changes
    sidecar_path(path).write_bytes(write_sidecar_bytes(record))
    return path


def bench(*words: object, **made: Any) -> Callable[[Path], Words]:
    """``bench`` of a plan with a sidecar."""

    def make(folder: Path) -> Words:
        return ("bench", "--engine", plan(folder, **made), *QUICK, *words)

    return make


def bare(data: bytes, *words: object, name: str = "net.plan") -> Callable[[Path], Words]:
    """``bench`` of a plan, or of something else, without a sidecar."""

    def make(folder: Path) -> Words:
        (folder / name).write_bytes(data)
        return ("bench", "--engine", folder / name, *QUICK, *words)

    return make


def open_to_others(*words: object, folder_too: bool = False) -> Callable[[Path], Words]:
    """``bench`` of a plan that others can write, or in a folder that they can."""

    def make(folder: Path) -> Words:
        path = plan(folder)
        (folder if folder_too else path).chmod(0o777)
        return ("bench", "--engine", path, *QUICK, *words)

    return make


def foreign(folder: Path) -> Words:
    """``bench`` of a plan of another owner."""
    path = plan(folder)
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345)
    return ("bench", "--engine", path, *QUICK)


def somebody_else(machine: Machine) -> None:
    """Who is not root cannot give a file away, and has to be another user himself."""
    if (user := os.geteuid()) != 0:
        machine.patch.setattr(os, "geteuid", lambda: user + 1)


def evaluated(folder: Path) -> Words:
    """``eval`` of a plan without a sidecar."""
    (folder / "bare.plan").write_bytes(PLAN)
    images = folder / "val" / "0"
    images.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(images / "0.png")
    return ("eval", "--engine", folder / "bare.plan", "--data", folder / "val")


def verified(folder: Path) -> Words:
    """``verify`` of a plan without a sidecar against the graph."""
    (folder / "bare.plan").write_bytes(PLAN)
    return ("verify", folder / "bare.plan", "--against", graph(folder))


# ------------------------------------------------------------------ plans that are not loaded

REBUILD = r"rebuild it: vntools build-engine net\.onnx --fp16$"
EDITED = PLAN + b"another program"

REFUSED = [
    EngineRow(88, "plan.version", 65, bench(version="10.13.2"),
              r"built by tensorrt 10\.13\.2, here is 11\.4\.1; " + REBUILD),
    EngineRow(89, "plan.gpu", 65, bench(compute_capabilities=[86, 120]),
              r"built for compute capability 8\.6, 12\.0, this GPU has 8\.0; " + REBUILD),
    EngineRow(90, "plan.flavour", 65, bench(flavour="tensorrt-rtx"), "rebuild it: "),
    EngineRow(90, "plan.flavour", 65, bench(data=b"vtrt" + PLAN), "rebuild it: ", case="rtx"),
    EngineRow(90, "plan.format", 65, bare(b"\x08\x0a\x12\x00:", name="net.onnx"), case="onnx"),
    EngineRow(90, "plan.format", 65, bare(b"PK\x03\x04", name="net.pth"), case="checkpoint"),
    EngineRow(90, "plan.format", 65, bare(b"PK\x03\x04", "--trust-plan"), case="trusted"),
    EngineRow(91, "plan.sha256", 65, bench(data=b"", of=PLAN), "has 0 bytes", case="empty"),
    EngineRow(91, "plan.sha256", 65, bench(data=PLAN[:100], of=PLAN),
              "has 100 bytes, its sidecar says 204", case="truncated"),
    EngineRow(91, "plan.sha256", 65, bench(data=PLAN[::-1], of=PLAN), REBUILD, case="random"),
    EngineRow(91, "plan.format", 65, bare(b""), case="empty-bare"),
    EngineRow(91, "plan.format", 65, bare(PLAN[::-1]), case="random-bare"),
    EngineRow(92, "plan.sha256", 65, bench("--sha256", DIGEST, data=EDITED),
              sha256_bytes(EDITED)),
    EngineRow(92, "usage", 2, bench("--sha256", DIGEST[1:]), "no SHA-256", case="no-digest"),
    EngineRow(93, "plan.untrusted", 77, bare(PLAN), "--trust-plan"),
    EngineRow(93, "plan.untrusted", 77, verified, "--trust-plan", case="verify"),
    EngineRow(93, "plan.untrusted", 77, evaluated, "--trust-plan", case="eval"),
    EngineRow(94, "plan.perms", 77, open_to_others(), "it can be written by others"),
    EngineRow(94, "plan.perms", 77, open_to_others(folder_too=True), case="folder"),
    EngineRow(94, "plan.perms", 77, foreign, "belongs to user", case="owner",
              spoil=somebody_else),
    EngineRow(88, "plan.version", 65, bench("--trust-plan", version="10.13.2"),
              case="trusted"),
    EngineRow(91, "plan.sha256", 65, bench("--trust-plan", data=EDITED, of=PLAN),
              case="trusted"),
]  # fmt: skip


@by_number(REFUSED)
def test_a_plan_is_refused_before_tensorrt_is_called(
    row: EngineRow, tmp_path: Path, machine: Machine
) -> None:
    row.spoil(machine)
    hold(row, tmp_path)
    assert machine.asked == []


def test_what_tensorrt_is_asked_for_is_seen(tmp_path: Path, machine: Machine) -> None:
    words = bench()(tmp_path)
    assert in_process(words).status == 0
    assert {"Runtime", "ILogger"} <= set(machine.asked)


# --------------------------------------------------------------------- what TensorRT may do


def no_tensorrt(machine: Machine) -> None:
    machine.without("tensorrt")


def no_rtx(machine: Machine) -> None:
    names = ("tensorrt_rtx", "tensorrt_rtx_bindings", "onnxruntime_ep_nv_tensorrt_rtx")
    machine.without("tensorrt", *names)


def old_driver(machine: Machine) -> None:
    """A driver that refuses to begin."""
    machine.without_gpu()
    real = ctypes.CDLL

    def library(name: str | None, *arguments: Any, **options: Any) -> Any:
        if name == "libcuda.so.1":
            return SimpleNamespace(cuInit=lambda flags: 35)
        return real(name, *arguments, **options)

    machine.patch.setattr(backend, "_driver", DRIVER)
    machine.patch.setattr(ctypes, "CDLL", library)


def says(*errors: str, **does: Any) -> Callable[[Machine], None]:
    """A builder that logs errors and returns nothing, or what else is told."""

    def spoil(machine: Machine) -> None:
        machine.script.says = tuple((ERROR, text) for text in errors)
        machine.script.plan = None
        for name, value in does.items():
            setattr(machine.script, name, value)

    return spoil


def parser_raises(machine: Machine) -> None:
    def parse(model: bytes) -> bool:
        raise RuntimeError("std::bad_alloc")

    machine.script.parser = parse


def parser_refuses(machine: Machine) -> None:
    machine.script.parser = lambda model: False


def deserialiser(
    error: str = "", *, raises: Exception | None = None
) -> Callable[[Machine], None]:
    """A deserialiser that logs an error and returns None, or raises."""

    def spoil(machine: Machine) -> None:
        class Runtime:
            def __init__(self, logger: Any) -> None:
                self.logger = logger

            def deserialize_cuda_engine(self, data: bytes) -> None:
                if raises is not None:
                    raise raises
                self.logger.log(ERROR, error)

        machine.runtime.Runtime = Runtime

    return spoil


HOST_CODE = (
    "Cannot deserialize engine with lean runtime since "
    "IRuntime::getEngineHostCodeAllowed() is false."
)


def no_context(machine: Machine) -> None:
    machine.runtime.has_memory = False


def small_gpu(machine: Machine) -> None:
    machine.gpu.free_bytes = 100


def execution(outcome: bool | Exception) -> Callable[[Machine], None]:
    """An execution that is refused, or raises."""

    def spoil(machine: Machine) -> None:
        def execute(context: Any, stream: int) -> bool:
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        machine.patch.setattr(FakeContext, "execute_async_v3", execute)

    return spoil


def sticky(machine: Machine) -> None:
    """From the first kernel on every call of CUDA fails."""
    error = machine.gpu.driver.Error("an illegal memory access was encountered (700)")

    def fail(*arguments: Any) -> None:
        raise error

    execution(outcome=False)(machine)
    machine.patch.setattr(FakeStream, "synchronize", fail)


def not_a_number(machine: Machine) -> None:
    machine.patch.setattr(numpy_gpu, "reference", lambda x: np.full((len(x), 4, 5, 4), np.nan))


BUILT = ("net.plan", "net.plan.json")
CUDA_OOM = "[virtualMemoryBuffer.cpp] Error Code 2: OutOfMemory (no further information)"

FAILS = [
    EngineRow(86, "trt.missing", 69, building(), r"pip install '\.\[tensorrt\]'",
              spoil=no_tensorrt),
    EngineRow(86, "trt.missing", 69, bench(), r"pip install", spoil=no_tensorrt, case="bench"),
    EngineRow(86, "trt.missing", 69,
              lambda folder: ("build-engine", graph(folder), "--backend", "tensorrt-rtx"),
              r"pip install '\.\[rtx\]'", spoil=no_rtx, case="rtx"),
    EngineRow(86, "", 0, lambda folder: ("inspect", graph(folder)), spoil=no_rtx,
              prints="net.onnx", case="inspect"),
    EngineRow(86, "", 0, lambda folder: ("bench", graph(folder), "--device", "cpu", *QUICK),
              spoil=no_rtx, prints="ms", case="onnx-runtime"),
    EngineRow(87, "gpu.none", 69, bench(), spoil=Machine.without_gpu),
    EngineRow(87, "gpu.none", 69, verified, spoil=Machine.without_gpu, case="verify"),
    EngineRow(87, "gpu.none", 69, building(), "tensorrt-rtx", spoil=Machine.without_gpu,
              case="build"),
    EngineRow(87, "gpu.none", 69, bench(), spoil=old_driver, case="old-driver"),
    EngineRow(87, "", 0,
              lambda folder: ("build-engine", graph(folder), "--compute-capability", "8.9"),
              spoil=Machine.without_gpu, files="written", outputs=BUILT, case="rtx"),
    EngineRow(89, "plan.refused", 65, bench(), "built for SM80, this GPU is 8.0: another one",
              spoil=deserialiser("another one"), case="by-tensorrt"),
    EngineRow(89, "plan.refused", 65, bench(), "std::exception",
              spoil=deserialiser(raises=RuntimeError("std::exception")), case="raised"),
    EngineRow(93, "", 0, bare(PLAN, "--trust-plan"), r"trusting '.*net\.plan', SHA-256 "
              + DIGEST, prints="ms", case="trusted"),
    EngineRow(93, "", 0, bare(PLAN, "--sha256", DIGEST.upper()), prints="ms", case="pinned"),
    EngineRow(94, "", 0, open_to_others("--trust-plan"), DIGEST, prints="ms", case="trusted"),
    EngineRow(95, "plan.host_code", 65, bench(), spoil=deserialiser(HOST_CODE)),
    EngineRow(97, "gpu.memory", 75, building(), "--mem-pool-size",
              spoil=says("Error Code 10: Could not find any implementation for node stem.")),
    EngineRow(97, "gpu.memory", 75, building(), spoil=says(CUDA_OOM, "no plan"), case="cuda"),
    EngineRow(98, "gpu.memory", 75, bench(), "of 1024 MiB are free", spoil=small_gpu),
    EngineRow(98, "gpu.memory", 75, bench(), spoil=no_context, case="context"),
    EngineRow(98, "gpu.memory", 75, bench(), spoil=deserialiser(CUDA_OOM), case="load"),
    EngineRow(98, "gpu.fault", 70, bench(), r"illegal memory access .*; start again$",
              spoil=sticky),
    EngineRow(98, "runner.failed", 70, bench(), "refuses to enqueue", case="refused",
              spoil=execution(outcome=False)),
    EngineRow(98, "runner.failed", 70, bench(), "std::bad_alloc", case="raised",
              spoil=execution(RuntimeError("std::bad_alloc"))),
    EngineRow(100, "build.failed", 70, building(), "no plan: the last error$",
              spoil=says("the first error", "the last error")),
    EngineRow(100, "build.failed", 70, building(), "it logged no error", spoil=says(),
              case="silent"),
    EngineRow(100, "build.failed", 70, building(), "no plan: thrown",
              spoil=says(raises=RuntimeError("thrown")), case="raised"),
    EngineRow(100, "build.failed", 70, building(), "error: 35", spoil=says(null=("builder",)),
              case="no-builder"),
    EngineRow(100, "build.failed", 70, building(), "std::bad_alloc", spoil=parser_raises,
              case="parser-raised"),
    EngineRow(100, "onnx.format", 65, building(), "gave no reason", spoil=parser_refuses,
              case="parser"),
    EngineRow(100, "engine.warning", 0, building(), "tactic 0x1", prints="net.plan",
              files="written", outputs=BUILT,
              spoil=says("skipping tactic 0x1", plan=PLAN), case="went-on"),
    EngineRow(102, "verify.nonfinite", 1, bench(), spoil=not_a_number),
    EngineRow(102, "verify.nonfinite", 1, lambda folder: ("bench", graph(folder,
              overflowing=True), "--device", "cpu", *QUICK), case="onnx-runtime"),
]  # fmt: skip


@by_number(FAILS)
def test_a_machine_that_fails(row: EngineRow, tmp_path: Path, machine: Machine) -> None:
    row.spoil(machine)
    hold(row, tmp_path)


# ------------------------------------------------------------------------------ timing caches


def cached(data: bytes | None, mode: int = 0o644) -> Callable[[Path], object]:
    """A timing cache of these bytes; None is a folder in its place."""

    def make(folder: Path) -> Path:
        path = folder / "t.cache"
        if data is None:
            path.mkdir()
        else:
            path.write_bytes(data)
            path.chmod(mode)
        return path

    return make


def takes_none(machine: Machine) -> None:
    machine.script.takes_cache = lambda data: False


CACHES = [
    EngineRow(101, "engine.warning", 0, building("--timing-cache", cached(b"\0corrupt")),
              "not a timing cache of this TensorRT and GPU", "written", BUILT),
    EngineRow(101, "engine.warning", 0, building("--timing-cache", cached(None)),
              "timing cache was not read", "written", BUILT, case="folder"),
    EngineRow(101, "engine.warning", 0, building("--timing-cache", cached(b"timings")),
              "built without", "written", BUILT, case="refused", spoil=takes_none),
    EngineRow(101, "", 0, building("--timing-cache", cached(b"timings", 0o444)),
              "", "written", (*BUILT, "t.cache"), case="read-only"),
    EngineRow(101, "engine.warning", 0, building("--timing-cache", "none/t.cache"),
              "timing cache was not written", "written", BUILT, case="no-folder"),
]  # fmt: skip


@by_number(CACHES)
def test_a_timing_cache_is_disposable(
    row: EngineRow, tmp_path: Path, machine: Machine
) -> None:
    row.spoil(machine)
    hold(row, tmp_path)


# ---------------------------------------------------------------- TensorRT that takes us along

# Modules of a folder from which a process imports; one method of each is the end of it.
RTX = """
__version__ = "1.7.1"
class ComputeCapability: pass
class ILogger:
    def __init__(self): pass
class Builder:
    def __init__(self, logger):
        import ctypes, os, signal, time
        {end}
"""
TENSORRT = """
__version__ = "11.4.1"
class ILogger:
    def __init__(self): pass
class Runtime:
    def __init__(self, logger): pass
    def deserialize_cuda_engine(self, plan):
        import ctypes, os, signal, time
        {end}
"""
RUN = "from vntools.cli import main; main()"
RUN_ON_GPU = (
    """
import sys
from types import ModuleType
from tests.runtime.stand_in import FakeGpu
from vntools.runtime import cuda, trt_runner
gpu, package = FakeGpu(), ModuleType("pycuda")
package.driver = gpu.driver
sys.modules.update({"pycuda": package, "pycuda.driver": gpu.driver})
cuda.library = lambda: gpu.library
trt_runner.gpu_count, trt_runner.compute_capability = lambda: 1, lambda: 80
"""
    + RUN
)
ABORT, SEGV, KILL = "os.abort()", "ctypes.string_at(0)", "os.kill(os.getpid(), signal.SIGKILL)"
HANG = "print('hangs', flush=True); ctypes.PyDLL(None).sleep(60)"  # holds Python's lock


def started(words: Words, modules: Path, end: str) -> subprocess.Popen[str]:
    """A process whose TensorRT comes to this end."""
    modules.mkdir(exist_ok=True)
    (modules / "tensorrt_rtx.py").write_text(RTX.format(end=end))
    (modules / "tensorrt.py").write_text(TENSORRT.format(end=end))
    run = RUN if words[0] == "build-engine" else RUN_ON_GPU
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-P", "-c", run, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (modules, root)))},
    )


def rtx(folder: Path) -> Words:
    return ("build-engine", graph(folder), "--backend", "tensorrt-rtx")


@dataclass(frozen=True)
class DeathRow(Row):
    """A fault that a process does not survive.

    Attributes:
        end: what TensorRT does.
    """

    end: str = ""


DIES = [
    DeathRow(96, "worker.crash", 70, rtx, "signal 6", end=ABORT, case="builder", json=False),
    DeathRow(96, "worker.crash", 70, bench(), "signal 11", end=SEGV, case="deserialiser"),
    DeathRow(99, "worker.killed", 75, rtx, "signal 9", end=KILL, json=False),
]


@by_number(DIES)
def test_a_library_that_dies(row: DeathRow, tmp_path: Path) -> None:
    def run(words: Words) -> Outcome:
        with started(words, tmp_path / "modules", row.end) as process:
            stdout, stderr = process.communicate(timeout=60)
        return Outcome(process.returncode, stdout, stderr)

    work = tmp_path / "work"
    work.mkdir()
    hold(row, work, run)


def test_099_interrupted_a_library_that_hangs(tmp_path: Path) -> None:
    """Two signals end even native code that holds Python's lock; nothing is left."""
    with started(rtx(tmp_path), tmp_path / "modules", HANG) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hangs\n"
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=4)
    assert process.returncode == 130, stderr
    assert stderr.splitlines()[-1].startswith("vntools build-engine: error[interrupted]: ")
    assert {p.name for p in tmp_path.iterdir()} == {"net.onnx", "modules"}


# ---------------------------------------------------------------------------- on a real GPU


def built(folder: Path, *, overflowing: bool = False) -> Path:
    """A plan of the graph, built here."""
    done = in_process(("build-engine", graph(folder, overflowing=overflowing)))
    assert done.status == 0, done.stderr
    return folder / "net.plan"


def resealed(**changes: Any) -> Callable[[Path], Words]:
    """``bench`` of a plan whose sidecar says something else."""

    def make(folder: Path) -> Words:
        path = built(folder)
        record = read_sidecar(path)
        assert record is not None
        sidecar_path(path).write_bytes(write_sidecar_bytes(record | changes))
        return ("bench", "--engine", path, *QUICK)

    return make


def half(folder: Path) -> Words:
    """``bench`` of half a plan that the user vouches for."""
    path = built(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    sidecar_path(path).unlink()
    return ("bench", "--engine", path, "--trust-plan", *QUICK)


ON_A_GPU = [
    Row(88, "plan.version", 65, resealed(version="0.1"), "rebuild it: "),
    Row(89, "plan.gpu", 65, resealed(compute_capabilities=[20]), "rebuild it: "),
    Row(91, "plan.refused", 65, half),
    Row(93, "", 0, lambda folder: ("bench", "--engine", built(folder), *QUICK), prints="ms"),
    Row(102, "verify.nonfinite", 1,
        lambda folder: ("bench", "--engine", built(folder, overflowing=True), *QUICK)),
]  # fmt: skip


@pytest.mark.gpu
@by_number(ON_A_GPU)
def test_on_a_gpu(row: Row, tmp_path: Path) -> None:
    hold(row, tmp_path)
