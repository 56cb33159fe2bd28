"""A verified ONNX file to a plan that is what was asked for, and its sidecar."""

from __future__ import annotations

__all__ = ["EngineBuilt", "EngineOptions", "build_engine", "find_models"]

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vntools.base.artifacts import (
    SEAL_KEY,
    check_output,
    hash_and_sealed,
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
from vntools.pipeline.export import stamp, write_sealed
from vntools.pipeline.listener import Listener, Stopwatch
from vntools.pipeline.precision import typed
from vntools.pipeline.quantize import Int8Options, Int8Report
from vntools.pipeline.serialize import serialize

if TYPE_CHECKING:
    from vntools.base.tolerance import Tolerance
    from vntools.engine.build import Built
    from vntools.verify.compare import Comparison

_STAGE_KEY = "vntools.stage"
_TYPED = "typed"


@dataclass(frozen=True)
class EngineOptions:
    """Options of :func:`build_engine`.

    Attributes:
        model: the ONNX file.
        out: the plan; None is the model's name with ``.plan``, beside it.
        precision: ``fp32`` (TF32 allowed), ``fp16``, ``bf16`` or ``int8``.
        rest: of ``int8``, what is not INT8: ``fp32``, ``fp16`` or ``bf16``.
        io_type: type of the plan's inputs and outputs, ``fp32`` or ``fp16``.
        int8: with ``int8`` how; else None.
        fp16_layers: patterns of names of layers that are not INT8.
        fp32_layers: patterns of names of layers that stay FP32.
        keep_onnx: where to write the typed graph.
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
    rest: str = "fp16"
    io_type: str = "fp32"
    int8: Int8Options | None = None
    fp16_layers: tuple[str, ...] = ()
    fp32_layers: tuple[str, ...] = ()
    keep_onnx: Path | None = None
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
        comparison: the typed graph against the graph that came, in ONNX Runtime; None where
            nothing was typed.
        tolerance: what was allowed.
        int8: what became INT8, and what that costs.
        seconds: by phase, and in all (``total``).
    """

    out: Path
    sidecar: dict[str, Any]
    comparison: Comparison | None
    tolerance: Tolerance | None
    int8: Int8Report | None
    seconds: dict[str, float]

    def to_record(self) -> dict[str, Any]:
        """As JSON."""
        record: dict[str, Any] = {"out": str(self.out), "engine": self.sidecar}
        if self.comparison is not None and self.tolerance is not None:
            record["verify"] = self.comparison.to_record(self.tolerance)
        return {**record, "seconds": {k: round(v, 3) for k, v in self.seconds.items()}}


def find_models(folder: Path) -> list[Path]:
    """ONNX files of ``folder`` that vntools wrote and nobody changed since, by name.

    Typed graphs, which ``--keep-onnx`` leaves, are not among them.
    """
    found = sorted(p for p in folder.glob("*.onnx") if p.is_file() and sealed(p))
    return [p for p in found if len(found) == 1 or not _is_typed(p)]


def _is_typed(path: Path) -> bool:
    import onnx

    props = onnx.ModelProto.FromString(read_input(path)).metadata_props
    return any(p.key == _STAGE_KEY and p.value == _TYPED for p in props)


def build_engine(options: EngineOptions, listener: Listener) -> EngineBuilt:
    """Type the graph, verify it again, build, hold the kernels against it, publish.

    Raises:
        VntoolsError: as the parts do; nothing has been written then.
    """
    require_file(options.model)
    rest = options.rest if options.precision == "int8" else options.precision
    if options.io_type == "fp16" and rest != "fp16":
        raise UsageFault("engine.io_type", "--io-type fp16 needs --fp16")
    out = options.out or options.model.with_suffix(".plan")
    _check_outputs(options, out)
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
    from vntools.export.gate import check_buildable
    from vntools.export.load import parse_stranger, read_onnx
    from vntools.export.naming import name_nodes

    with phase("load"):
        data = read_onnx(options.model)
        digest, ours = hash_and_sealed(data)
        model = parse_stranger(data, options.model)
        check_buildable(model, options.model)
        if not ours:
            listener.note("vntools did not write this ONNX file; it is taken as the reference")
        name_nodes(model.graph)
    graph = typed(model, options, digest, listener, phase)
    metadata = {k: v for k, v in graph.model.metadata_props.items() if k != SEAL_KEY}
    typed_bytes = serialize(graph.model, {**metadata, **_stamped(options, digest)})
    del model, data
    with phase("build") as advance:
        built = build(typed_bytes, build_options, progress=_outermost(advance))
    for text in dict.fromkeys(built.warnings):
        listener.warn("engine.warning", text)
    reports = check_convolutions(graph.convolutions, built.kernels)
    sidecar = _sidecar(built, options, digest, metadata)
    sidecar["convolutions"] = [r.to_record() for r in reports]
    if graph.int8 is not None:
        sidecar["int8"] = graph.int8.to_record()
    with phase("publish"), ExitStack() as stack:
        plan = stack.enter_context(
            published(out, force=options.force, size_hint=len(built.plan))
        )
        if options.keep_onnx is not None:
            model_file = published(options.keep_onnx, force=options.force)
            write_sealed(stack.enter_context(model_file), typed_bytes)
        beside = stack.enter_context(published(sidecar_path(out), force=True))
        plan.write(built.plan)
        plan.flush()
        os.fsync(plan.fileno())  # so that all are written before one gets its name
        beside.write(write_sidecar_bytes(sidecar))
    return EngineBuilt(
        out, sidecar, graph.comparison, graph.tolerance, graph.int8, phase.seconds()
    )


def _check_outputs(options: EngineOptions, out: Path) -> None:
    """Refuse what could not be written at the end, before the work begins.

    Raises:
        UsageFault: ``engine.out_twice``: two files of one name; ``out.is_input``.
        CannotCreate, NoPermission: as :func:`vntools.base.artifacts.check_output`.
    """
    kept = [options.keep_onnx] if options.keep_onnx else []
    targets = [out, sidecar_path(out), *kept]
    for target in targets:
        check_output(target, force=options.force, inputs=(options.model,))
    cache = options.int8.cache if options.int8 else None
    if cache is not None:
        targets.append(cache)
        if not cache.exists():  # One that does is read first, and refused if it is no cache.
            check_output(cache, force=False)
    real = [os.path.realpath(target) for target in targets]
    for at, target in enumerate(targets):
        if real[at] in real[:at]:
            raise UsageFault("engine.out_twice", "two files would have this name", path=target)


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


def _stamped(options: EngineOptions, digest: str) -> dict[str, str]:
    """Metadata of a typed graph; one that was not typed keeps what it has."""
    if options.precision == "fp32":
        return {}
    own = {_STAGE_KEY: _TYPED, "vntools.precision": options.precision}
    return {**stamp(options.model, digest), **own}


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
