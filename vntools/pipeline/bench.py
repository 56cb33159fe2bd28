"""One artifact, opened on the backend that was asked for, and measured."""

from __future__ import annotations

__all__ = ["Artifact", "Kind", "bench", "kind_of", "open_artifact", "open_described"]

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vntools.base.artifacts import read_input, read_sidecar, require_file
from vntools.base.errors import DataFault, UsageFault, about
from vntools.pipeline.listener import Listener

if TYPE_CHECKING:
    from vntools.bench.measure import BenchOptions, Measurement
    from vntools.runtime.base import Runner

Kind = Literal["engine", "onnx", "ckpt"]
"""A plan, an ONNX file or a checkpoint, by the name of its field in :class:`Artifact`."""

_PLANS = (b"ftrt", b"vtrt")  # TensorRT, TensorRT-RTX
_IR_VERSION = b"\x08"  # tag of the first field of an ONNX ModelProto
_SAFETENSORS = slice(4, 9)  # of a length below 4 GiB the upper half, then a JSON object


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


def kind_of(path: Path) -> Kind:
    """What a file is, by its first bytes; its name has no say.

    A checkpoint is a zip archive, a bare pickle, a tar archive or safetensors.

    Raises:
        NoInput, NoPermission: as :func:`vntools.base.artifacts.require_file`.
        DataFault: ``input.kind``: none of the three.
    """
    with require_file(path).open("rb") as f:
        head = f.read(262)
    if head[:4] in _PLANS:
        return "engine"
    checkpoint = head.startswith((b"PK\x03\x04", b"\x80")) or head[257:] == b"ustar"
    if checkpoint or head[_SAFETENSORS] == b"\0\0\0\0{":
        return "ckpt"
    if head[:1] == _IR_VERSION:
        return "onnx"
    raise DataFault(
        "input.kind",
        "is empty" if not head else "is neither a plan, an ONNX file nor a checkpoint",
        hint="fetch or write it again",
        path=path,
    )


def open_artifact(artifact: Artifact, listener: Listener) -> Runner:
    """The runner of an artifact, still to be entered.

    Raises:
        VntoolsError: the file is not there or not what it should be, or its backend is
            missing.
    """
    return open_described(artifact, listener)[0]


def open_described(artifact: Artifact, listener: Listener) -> tuple[Runner, dict[str, str]]:
    """The runner of an artifact, still to be entered, and the artifact's metadata.

    The metadata of a plan is in its sidecar; that of a checkpoint is what an ONNX file
    exported from it has, as far as its images are concerned.

    Raises:
        VntoolsError: as :func:`open_artifact`.
    """
    path = require_file(artifact.path)
    if artifact.engine is not None:
        from vntools.runtime.trt_runner import open_plan

        if artifact.device == "cpu":
            raise UsageFault("bench.device", "a plan runs on a GPU only")
        plan = open_plan(path, trust_plan=artifact.trust_plan, cuda_graph=artifact.cuda_graph)
        model = (read_sidecar(path) or {}).get("model")
        held = model.items() if isinstance(model, dict) else ()
        return plan, {f"vntools.{key}": str(value) for key, value in held}
    from vntools.engine.backend import gpu_count

    auto = "cuda" if gpu_count() else "cpu"
    on_gpu = (auto if artifact.device == "auto" else artifact.device) == "cuda"
    if artifact.onnx is not None:
        from vntools.runtime.onnx_runner import OnnxCudaRunner, OnnxRunner

        data = read_input(path)
        session = (
            OnnxCudaRunner(data) if on_gpu else OnnxRunner(data, threads=artifact.threads)
        )
        return session, _metadata(data)
    from vntools.export.interface import Interface
    from vntools.models.checkpoint import load_checkpoint, to_module
    from vntools.runtime.torch_runner import TorchCudaRunner, TorchRunner

    checkpoint = load_checkpoint(path)
    for note in checkpoint.notes:
        listener.note(note)
    for code, text in checkpoint.warnings:
        listener.warn(code, text)
    size = checkpoint.preprocessing.image_size
    module, shape = to_module(checkpoint), (3, size, size)
    said = json.dumps({**asdict(checkpoint.preprocessing), **Interface().to_record()})
    eager = (
        TorchCudaRunner(module, shape)
        if on_gpu
        else TorchRunner(module, shape, threads=artifact.threads)
    )
    return eager, {"vntools.preprocessing": said}


def _metadata(data: bytes) -> dict[str, str]:
    """Of an ONNX file; none of what is no ONNX file, which its runner will say."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return {p.key: p.value for p in onnx.ModelProto.FromString(data).metadata_props}
    except DecodeError:
        return {}


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
