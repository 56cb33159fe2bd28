"""A verified ONNX file to a plan that is what was asked for, and its sidecar."""

from __future__ import annotations

__all__ = ["EngineBuilt", "EngineOptions", "build_engine", "find_models"]

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vntools.base.artifacts import (
    SEAL_KEY,
    check_output,
    published,
    read_input,
    require_file,
    sealed,
    sha256_bytes,
    sidecar_path,
    write_sidecar_bytes,
)
from vntools.base.errors import UsageFault
from vntools.base.provenance import versions
from vntools.pipeline.listener import Listener, Stopwatch

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from vntools.base.tolerance import Tolerance
    from vntools.engine.build import Built
    from vntools.verify.compare import Comparison


@dataclass(frozen=True)
class EngineOptions:
    """Options of :func:`build_engine`.

    Attributes:
        model: the ONNX file.
        out: the plan; None is the model's name with ``.plan``, beside it.
        precision: ``fp32`` (TF32 allowed) or ``fp16``.
        io_type: type of the plan's inputs and outputs, ``fp32`` or ``fp16``.
        backend: ``auto``, ``tensorrt`` or ``tensorrt-rtx``.
        min_batch, opt_batch, max_batch: the optimization profile's batches.
        compute_capabilities: of the GPUs that a TensorRT-RTX plan is for, such as 89.
        optimization_level: 0 to 5.
        mem_pool_size: MiB by trtexec's names of the pools.
        timing_cache: TensorRT only.
        force: overwrite a file that vntools did not write.
    """

    model: Path
    out: Path | None = None
    precision: str = "fp32"
    io_type: str = "fp32"
    backend: str = "auto"
    min_batch: int | None = None
    opt_batch: int | None = None
    max_batch: int | None = None
    compute_capabilities: tuple[int, ...] = ()
    optimization_level: int | None = None
    mem_pool_size: Mapping[str, float] = field(default_factory=dict[str, float])
    timing_cache: Path | None = None
    force: bool = False


@dataclass(frozen=True)
class EngineBuilt:
    """What :func:`build_engine` did.

    Attributes:
        sidecar: the record beside the plan.
        comparison: the typed graph against the graph that came, on seeded inputs, in ONNX
            Runtime; None where nothing was typed.
        tolerance: what was allowed.
        seconds: by phase, and in all (``total``).
    """

    out: Path
    sidecar: dict[str, Any]
    comparison: Comparison | None
    tolerance: Tolerance | None
    seconds: dict[str, float]

    def to_record(self) -> dict[str, Any]:
        """As JSON."""
        record: dict[str, Any] = {"out": str(self.out), "engine": self.sidecar}
        if self.comparison is not None and self.tolerance is not None:
            record["verify"] = self.comparison.to_record(self.tolerance)
        return {**record, "seconds": {k: round(v, 3) for k, v in self.seconds.items()}}


def find_models(folder: Path) -> list[Path]:
    """ONNX files of ``folder`` that vntools wrote and nobody changed since, by name."""
    return sorted(p for p in folder.glob("*.onnx") if p.is_file() and sealed(p))


def build_engine(options: EngineOptions, listener: Listener) -> EngineBuilt:
    """Type the graph, verify it again, build, hold the kernels against it, publish.

    Raises:
        VntoolsError: as the parts do; nothing has been written then.
    """
    require_file(options.model)
    if options.io_type == "fp16" and options.precision != "fp16":
        raise UsageFault("engine.io_type", "--io-type fp16 needs --fp16")
    out = options.out or options.model.with_suffix(".plan")
    for target in (out, sidecar_path(out)):
        check_output(target, force=options.force, inputs=(options.model,))
    from vntools.engine.backend import choose
    from vntools.engine.build import BuildOptions, build
    from vntools.engine.precision import check_convolutions

    backend = choose(options.backend)
    listener.note(f"building with {backend.name} {backend.version}")
    build_options = BuildOptions(
        backend,
        min_batch=options.min_batch,
        opt_batch=options.opt_batch,
        max_batch=options.max_batch,
        compute_capabilities=options.compute_capabilities,
        optimization_level=options.optimization_level,
        mem_pool_size=options.mem_pool_size,
        timing_cache=options.timing_cache,
    )
    phase = Stopwatch(listener)
    from vntools.export.load import parse_onnx, refuse_control_flow, refuse_training
    from vntools.export.naming import name_nodes

    with phase("load"):
        data = read_input(options.model)
        digest = sha256_bytes(data)
        if not sealed(options.model):
            listener.note("vntools did not write this ONNX file; it is taken as the reference")
        model = parse_onnx(data, options.model)
        refuse_control_flow(model.graph, options.model)
        refuse_training(model.graph, options.model)
        name_nodes(model.graph)
    comparison = tolerance = None
    if options.precision == "fp16":
        model, comparison, tolerance = _typed(model, options.io_type, listener, phase)
    convs = {n.name or "": options.precision for n in model.graph if n.op_type == "Conv"}
    metadata = {k: v for k, v in model.metadata_props.items() if k != SEAL_KEY}
    import onnx_ir as ir

    typed_bytes = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    del model, data
    with phase("build") as advance:
        built = build(typed_bytes, build_options, progress=_outermost(advance))
    for text in built.warnings:
        listener.warn("engine.warning", text)
    reports = check_convolutions(convs, built.kernels)
    sidecar = _sidecar(built, options, digest, metadata)
    sidecar["convolutions"] = [r.to_record() for r in reports]
    with (
        phase("publish"),
        published(out, force=options.force, size_hint=len(built.plan)) as plan,
        published(sidecar_path(out), force=True) as beside,
    ):
        plan.write(built.plan)
        plan.flush()
        os.fsync(plan.fileno())  # so that both are written before either gets its name
        beside.write(write_sidecar_bytes(sidecar))
    return EngineBuilt(out, sidecar, comparison, tolerance, phase.seconds())


def _outermost(advance: Callable[..., None]) -> Callable[[str, int, int], None]:
    """A bar of TensorRT's progress: of its phases, which nest, the one that begins first."""
    outermost, seen = "", 0

    def progress(phase: str, done: int, total: int) -> None:
        nonlocal outermost, seen
        outermost = outermost or phase
        if phase == outermost:
            advance(done - seen, total)
            seen = done

    return progress


def _typed(
    model: ir.Model, io_type: str, listener: Listener, phase: Stopwatch
) -> tuple[ir.Model, Comparison, Tolerance]:
    """The float16 graph, within its tolerance of the float32 one on seeded inputs."""
    from vntools.pipeline.references import seeded_feeds
    from vntools.precision.fp16 import TOLERANCE, to_fp16
    from vntools.verify.compare import compare
    from vntools.verify.float32 import run_float32

    with phase("type fp16"):
        typed = to_fp16(model, io_type=io_type)
    if typed.subnormal:
        listener.note(
            f"{typed.subnormal} weights lie below float16's normal range and lose bits, "
            f"{typed.flushed} of them become zero"
        )
    with phase("verify"):
        feeds = seeded_feeds(model)
        halves = feeds
        if io_type == "fp16":
            halves = [{k: _cast(v, "float32", "float16") for k, v in f.items()} for f in feeds]
        want = run_float32(model, feeds)
        what = "the float16 graph against the float32 one"
        got = run_float32(typed.model, halves)
        wide = [{k: _cast(v, "float16", "float32") for k, v in g.items()} for g in got]
        comparison = compare(list(zip(wide, want, strict=True)), what).require(TOLERANCE, what)
    return typed.model, comparison, TOLERANCE


def _cast(array: NDArray[Any], source: str, target: str) -> NDArray[Any]:
    """An array of type ``source`` in type ``target``; others (bytes, indices) as they are."""
    return array.astype(target) if array.dtype == source else array


def _sidecar(
    built: Built, options: EngineOptions, digest: str, metadata: Mapping[str, str]
) -> dict[str, Any]:
    """What is written beside the plan; the same build gives the same record."""
    kernels = [k.to_record() for k in built.kernels or ()]
    return {
        "schema": 1,
        "sha256": sha256_bytes(built.plan),
        "bytes": len(built.plan),
        "precision": options.precision,
        "io_type": options.io_type,
        "source": {"name": options.model.name, "sha256": digest},
        "versions": versions("onnx", "onnxruntime-gpu", "onnxruntime"),
        **built.record,
        "model": {k.removeprefix("vntools."): v for k, v in sorted(metadata.items())},
        "kernels": kernels,
    }
