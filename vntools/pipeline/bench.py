"""One artifact, opened on the backend that was asked for, and measured."""

from __future__ import annotations

__all__ = ["Artifact", "bench", "open_artifact"]

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vntools.base.artifacts import read_input, require_file
from vntools.base.errors import UsageFault, about
from vntools.pipeline.listener import Listener

if TYPE_CHECKING:
    from vntools.bench.measure import BenchOptions, Measurement
    from vntools.runtime.base import Runner


@dataclass(frozen=True)
class Artifact:
    """What to measure, and on what; exactly one of the three files.

    Attributes:
        engine: a plan; runs on a GPU with TensorRT or TensorRT-RTX, as its sidecar says.
        onnx: runs in ONNX Runtime.
        ckpt: runs in PyTorch, in the form that it has.
        device: ``cpu``, ``cuda``, or ``auto``: a GPU where one answers. There is no fallback:
            where that backend cannot run, it is an error.
        threads: on a CPU; None is one a core.
        trust_plan: load a plan without a sidecar.
        cuda_graph: replay a CUDA graph where a plan can be captured.
    """

    engine: Path | None = None
    onnx: Path | None = None
    ckpt: Path | None = None
    device: str = "auto"
    threads: int | None = None
    trust_plan: bool = False
    cuda_graph: bool = True

    @property
    def path(self) -> Path:
        """The one file.

        Raises:
            UsageFault: ``bench.artifact``.
        """
        given = [p for p in (self.engine, self.onnx, self.ckpt) if p is not None]
        if len(given) != 1:
            raise UsageFault(
                "bench.artifact", f"{len(given)} files to measure", hint="give one: --engine, "
                "--onnx or --ckpt"
            )  # fmt: skip
        return given[0]


def open_artifact(artifact: Artifact, listener: Listener) -> Runner:
    """The runner of an artifact, still to be entered.

    Raises:
        VntoolsError: the file is not there or not what it should be, or its backend is
            missing.
    """
    path = require_file(artifact.path)
    if artifact.engine is not None:
        from vntools.runtime.trt_runner import open_plan

        if artifact.device == "cpu":
            raise UsageFault("bench.device", "a plan runs on a GPU only")
        return open_plan(path, trust_plan=artifact.trust_plan, cuda_graph=artifact.cuda_graph)
    from vntools.engine.backend import gpu_count

    auto = "cuda" if gpu_count() else "cpu"
    on_gpu = (auto if artifact.device == "auto" else artifact.device) == "cuda"
    if artifact.onnx is not None:
        from vntools.runtime.onnx_runner import OnnxCudaRunner, OnnxRunner

        data = read_input(path)
        return OnnxCudaRunner(data) if on_gpu else OnnxRunner(data, threads=artifact.threads)
    from vntools.models.checkpoint import load_checkpoint, to_module
    from vntools.runtime.torch_runner import TorchCudaRunner, TorchRunner

    checkpoint = load_checkpoint(path)
    for note in checkpoint.notes:
        listener.note(note)
    for code, text in checkpoint.warnings:
        listener.warn(code, text)
    size = checkpoint.preprocessing.image_size
    module, shape = to_module(checkpoint), (3, size, size)
    if on_gpu:
        return TorchCudaRunner(module, shape)
    return TorchRunner(module, shape, threads=artifact.threads)


def bench(
    artifact: Artifact,
    options: BenchOptions,
    listener: Listener,
    *,
    tick: Callable[[float], None] | None = None,
) -> Measurement:
    """Open an artifact and measure it.

    Raises:
        VntoolsError: as :func:`open_artifact` and :func:`vntools.bench.measure.measure`.
    """
    from vntools.bench.measure import measure

    with about(artifact.path):
        runner = open_artifact(artifact, listener)
        with listener.progress("measure"), runner:
            return measure(runner, options, tick=tick)
