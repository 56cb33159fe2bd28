"""One artifact, opened on the backend that was asked for."""

from __future__ import annotations

__all__ = [
    "RUNNERS",
    "Artifact",
    "Kind",
    "kind_of",
    "open_artifact",
    "open_described",
]

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vntools.base.artifacts import read_sidecar, require_file
from vntools.base.errors import DataFault, UsageFault, quoted
from vntools.engine.backend import PLAN_MAGIC
from vntools.engine.plan import SIDECAR_ONLY, Trust
from vntools.pipeline.listener import Listener

if TYPE_CHECKING:
    import onnx
    import torch

    from vntools.models.checkpoint import Checkpoint
    from vntools.runtime.base import Runner

Kind = Literal["engine", "onnx", "ckpt"]
"""A plan, an ONNX file or a checkpoint, by the name of its field in :class:`Artifact`."""

RUNNERS: dict[str, tuple[Kind, str]] = {
    "torch": ("ckpt", "auto"),
    "torch-compile": ("ckpt", "auto"),
    "torch-cuda-graph": ("ckpt", "cuda"),
    "ort": ("onnx", "cpu"),
    "ort-cuda": ("onnx", "cuda"),
    "ort-tensorrt": ("onnx", "cuda"),
    "openvino": ("onnx", "cpu"),
}
"""What each runner runs, and its device; beside these there is ``auto``."""

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
        trust: what the user vouches for, of a plan.
        cuda_graph: replay a CUDA graph where a plan can be captured.
        runner: one of ``RUNNERS``, or ``auto``: for an ONNX file ONNX Runtime's CPU or CUDA
            provider, for a checkpoint PyTorch eagerly, as ``device`` says.
    """

    engine: Path | None = None
    onnx: Path | None = None
    ckpt: Path | None = None
    device: str = "auto"
    threads: int | None = None
    trust: Trust = SIDECAR_ONLY
    cuda_graph: bool = True
    runner: str = "auto"

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
    if head[:4] in PLAN_MAGIC:
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
        UsageFault: ``bench.runner``: the runner runs another kind of file, or not on that
            device; ``bench.device``: a plan on a CPU.
        VntoolsError: the file is not there or not what it should be, or its backend is
            missing.
    """
    return _opened(artifact, listener)[0]


def open_described(
    artifact: Artifact, listener: Listener
) -> tuple[Runner, dict[str, str], onnx.ModelProto | None]:
    """The runner of an artifact, still to be entered, its metadata, and an ONNX file's model.

    The metadata of a plan is in its sidecar; that of a checkpoint is what an ONNX file
    exported from it has, as far as its images are concerned.

    Raises:
        VntoolsError: as :func:`open_artifact`.
    """
    runner, source = _opened(artifact, listener)
    if source is None:
        model = (read_sidecar(artifact.path) or {}).get("model")
        held = model.items() if isinstance(model, dict) else ()
        return runner, {f"vntools.{key}": str(value) for key, value in held}, None
    from vntools.models.checkpoint import Checkpoint

    if not isinstance(source, Checkpoint):
        return runner, {p.key: p.value for p in source.metadata_props}, source
    from vntools.export.interface import Interface

    said = {**asdict(source.preprocessing), **Interface().to_record()}
    return runner, {"vntools.preprocessing": json.dumps(said)}, None


def _opened(
    artifact: Artifact, listener: Listener
) -> tuple[Runner, onnx.ModelProto | Checkpoint | None]:
    """The runner, and what it was made of: an ONNX model, a checkpoint, or a plan."""
    path = require_file(artifact.path)
    runner, on_gpu = _choice(artifact)
    if artifact.engine is not None:
        from vntools.runtime.trt_runner import open_plan

        plan = open_plan(path, artifact.trust, cuda_graph=artifact.cuda_graph)
        if artifact.trust.any_plan:
            listener.note(f"trusting {quoted(path)}, SHA-256 {plan.details['sha256']}")
        return plan, None
    if artifact.onnx is not None:
        from vntools.export.load import admit, read_onnx

        data = read_onnx(path)
        model = admit(data, path)
        return _onnx_runner(runner, data, artifact.threads, on_gpu=on_gpu), model
    from vntools.models.checkpoint import load_checkpoint, to_module

    checkpoint = load_checkpoint(path)
    for note in checkpoint.notes:
        listener.note(note)
    for code, text in checkpoint.warnings:
        listener.warn(code, text)
    size = checkpoint.preprocessing.image_size
    module, shape = to_module(checkpoint), (3, size, size)
    opened = _torch_runner(runner, module, shape, artifact.threads, on_gpu=on_gpu)
    return opened, checkpoint


def _choice(artifact: Artifact) -> tuple[str, bool]:
    """The runner asked for, if it runs the artifact, and whether it is on a GPU."""
    if artifact.engine is not None:
        if artifact.device == "cpu":
            raise UsageFault("bench.device", "a plan runs on a GPU only")
        if artifact.runner != "auto":
            raise UsageFault("bench.runner", f"a plan does not run in {artifact.runner}")
        return "auto", True
    kind = "onnx" if artifact.onnx is not None else "ckpt"
    runs, device = RUNNERS.get(artifact.runner, (kind, "auto"))
    if runs != kind or artifact.runner not in {*RUNNERS, "auto"}:
        fitting = ", ".join(name for name, (of, _) in RUNNERS.items() if of == kind)
        what = "an ONNX file" if kind == "onnx" else "a checkpoint"
        raise UsageFault(
            "bench.runner",
            f"{what} does not run in {artifact.runner}",
            hint=f"give one of {fitting}",
        )
    if "auto" not in (device, artifact.device) and device != artifact.device:
        raise UsageFault(
            "bench.runner", f"{artifact.runner} does not run on {artifact.device}"
        )
    if device == "auto":
        device = artifact.device
    if device == "auto":
        from vntools.engine.backend import gpu_count

        device = "cuda" if gpu_count() else "cpu"
    return artifact.runner, device == "cuda"


def _onnx_runner(runner: str, data: bytes, threads: int | None, *, on_gpu: bool) -> Runner:
    if runner == "openvino":
        from vntools.runtime.openvino_runner import OpenvinoRunner

        return OpenvinoRunner(data, threads=threads)
    from vntools.runtime.onnx_runner import OnnxCudaRunner, OnnxRunner, OnnxTensorrtRunner

    if runner == "ort-tensorrt":
        return OnnxTensorrtRunner(data)
    return OnnxCudaRunner(data) if on_gpu else OnnxRunner(data, threads=threads)


def _torch_runner(
    runner: str,
    module: torch.nn.Module,
    shape: tuple[int, ...],
    threads: int | None,
    *,
    on_gpu: bool,
) -> Runner:
    from vntools.runtime.torch_compile_runner import TorchCompileCudaRunner, TorchCompileRunner
    from vntools.runtime.torch_runner import TorchCudaGraphRunner, TorchCudaRunner, TorchRunner

    if runner == "torch-cuda-graph":
        return TorchCudaGraphRunner(module, shape)
    compiled = runner == "torch-compile"
    if on_gpu:
        return (TorchCompileCudaRunner if compiled else TorchCudaRunner)(module, shape)
    return (TorchCompileRunner if compiled else TorchRunner)(module, shape, threads=threads)
