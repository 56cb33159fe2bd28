"""A typed ONNX graph to a plan, with TensorRT 10 or 11 or TensorRT-RTX: one path, one API.

There is no precision switch: networks are strongly typed, so types come from the graph alone.
On TensorRT 10 that is asked for; 11 and TensorRT-RTX know nothing else. TF32 stays at
TensorRT's default, allowed for fp32.

Source: TensorRT Python API (Builder, IBuilderConfig, OnnxParser); NVIDIA's "Migrating from
TensorRT 10.x to 11.x" on strongly typed networks.
"""

from __future__ import annotations

__all__ = ["BuildOptions", "Built", "build"]

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vntools.base.errors import DataFault, InternalFault, TryLater, UsageFault, VntoolsError
from vntools.engine.backend import Backend, compute_capability
from vntools.engine.kernels import Kernel, from_inspector, from_log
from vntools.engine.log import Log, collected, logger
from vntools.engine.monitor import Watch, progress_monitor, supervised
from vntools.engine.options import POOLS, BuildOptions
from vntools.engine.timing_cache import TimingCache

_MIB = 1 << 20  # bytes
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
_SHOWN_WARNINGS = 3

Shapes = dict[str, list[int]]  # an input's shape by "min", "opt" and "max"


@dataclass(frozen=True)
class Built:
    """A plan, and what is known of it.

    Attributes:
        plan: the serialised engine.
        kernels: what was built, in the order of execution; None where TensorRT did not tell.
        record: for the sidecar; the same build gives the same record.
        warnings: what the user should see: the timing cache's, then TensorRT's, the errors
            first that it went on after.
        seconds: how long it took.
    """

    plan: bytes = field(repr=False)
    kernels: tuple[Kernel, ...] | None = field(repr=False)
    record: dict[str, Any]
    warnings: tuple[str, ...]
    seconds: float


def build(
    onnx_bytes: bytes,
    options: BuildOptions,
    *,
    progress: Callable[[str, int, int], None] | None = None,
    cancelled: Callable[[], int] | None = None,
) -> Built:
    """Build a plan.

    Args:
        onnx_bytes: a self-contained ONNX model; only the first axis of an input may be
            dynamic.
        options: how to build.
        progress: called from the build's thread with a phase of TensorRT's, the steps done and
            the steps in all; phases nest.
        cancelled: the number of the signal that asks for the end, or 0; asked after every
            step.

    Raises:
        Interrupted: ``cancelled`` named a signal; there is no plan.
        BaseException: what ``progress`` or a signal handler raised, KeyboardInterrupt among
            it, once TensorRT has ended.
        DataFault: ``onnx.unsupported``, ``onnx.format`` or ``onnx.shape``.
        UsageFault: ``engine.batch``: the graph's batch is fixed and another one was asked for.
        TryLater: ``gpu.memory``.
        InternalFault: ``build.failed`` with TensorRT's last error, or ``build.kernels``.
    """
    started_s = time.perf_counter()
    watch = Watch(progress, cancelled)
    with collected(options.backend.trt) as log:
        plan, kernels, record, notes = supervised(
            lambda: _build(onnx_bytes, options, watch, log), watch
        )
    return Built(
        plan=plan,
        kernels=kernels,
        record={**record, "warnings": log.warnings[:_SHOWN_WARNINGS]},
        # An error that TensorRT survived: a kernel that it then did without, say.
        warnings=(*notes, *log.errors, *log.warnings),
        seconds=time.perf_counter() - started_s,
    )


def _build(
    onnx_bytes: bytes, options: BuildOptions, watch: Watch, log: Log
) -> tuple[bytes, tuple[Kernel, ...] | None, dict[str, Any], list[str]]:
    """Plan, kernels, record and notes for the user."""
    trt = options.backend.trt
    builder = _created(lambda: trt.Builder(logger(trt)), log)
    network = builder.create_network(_network_flags(options.backend))
    parser = _parse(onnx_bytes, network, trt, log)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.progress_monitor = monitor = progress_monitor(trt, watch)
    shapes = _shapes(network, options)
    _add_profile(builder, config, network, shapes)
    _set_options(config, options)
    cache = None if options.timing_cache is None else TimingCache(options.timing_cache)
    if cache is not None:
        cache.attach(config)

    host_memory = _created(
        lambda: builder.build_serialized_network(network, config), log, watch
    )
    del parser, monitor  # TensorRT held pointers to both until now
    plan = bytes(host_memory)
    del host_memory
    if cache is not None:
        cache.save(config)
    record = {
        "flavour": options.backend.name,
        "version": options.backend.version,
        "compute_capabilities": _compute_capabilities(options),
        "profile": shapes,
        "inputs": [_described(network.get_input(i)) for i in range(network.num_inputs)],
        "outputs": [_described(network.get_output(i)) for i in range(network.num_outputs)],
        "builder_optimization_level": config.builder_optimization_level,
        "mem_pool_size": dict(options.mem_pool_size),
        "timing_cache": None if cache is None else cache.sha256,
    }
    try:
        kernels = _kernels(options.backend, plan, shapes, log)
    except ValueError as e:
        raise InternalFault(
            "build.kernels", f"cannot read what was built ({e})", hint="report this"
        ) from e
    return plan, kernels, record, [] if cache is None else cache.warnings


def _network_flags(backend: Backend) -> int:
    """Creation flags of the network: TensorRT 10 has to be told that types are the graph's."""
    if backend.is_rtx or backend.major > 10:
        return 0
    return 1 << int(backend.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _created(create: Callable[[], Any], log: Log, watch: Watch | None = None) -> Any:
    """What ``create`` makes; its bindings return None, or raise, where TensorRT gives null."""
    cause: Exception | None = None
    made: Any = None
    try:
        made = create()
    except (RuntimeError, TypeError) as e:
        cause = e
    if watch is not None:
        watch.check()
    if log.failure is not None:
        raise log.failure
    if made is None:
        raise _failure(log, cause) from cause
    return made


def _failure(log: Log, cause: Exception | None) -> VntoolsError:
    """The error that a null pointer means, by what TensorRT logged last."""
    reason = log.reason(cause)
    if log.short_of_memory(cause):
        return TryLater(
            "gpu.memory",
            f"TensorRT found no kernel that fits into memory: {reason}",
            hint="free GPU memory, or allow more with --mem-pool-size workspace:MiB",
        )
    return InternalFault("build.failed", f"TensorRT built no plan: {reason}")


def _parse(onnx_bytes: bytes, network: Any, trt: Any, log: Log) -> Any:
    """Fill ``network``; the parser owns the weights, so it lives until the build has ended."""
    parser = _created(lambda: trt.OnnxParser(network, logger(trt)), log)
    if not _created(lambda: parser.parse(onnx_bytes), log):
        error = parser.get_error(0) if parser.num_errors else None
        reason = "it gave no reason" if error is None else error.desc()
        if error is None or not error.node_operator():
            raise DataFault("onnx.format", f"TensorRT cannot read this model: {reason}")
        node = f"{error.node_name()} ({error.node_operator()})"
        raise DataFault("onnx.unsupported", f"TensorRT cannot build {node}: {reason}")
    # The parser takes an empty file, and a web page, for a model without a graph.
    if not (network.num_inputs and network.num_outputs):
        raise DataFault("onnx.format", "not an ONNX model with inputs and outputs")
    return parser


def _shapes(network: Any, options: BuildOptions) -> dict[str, Shapes]:
    """Smallest, optimal and largest shape of every input."""
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    fixed = {t.name: [int(d) for d in t.shape] for t in inputs}
    for name, shape in fixed.items():
        if any(d < 0 for d in shape[1:]):
            raise DataFault(
                "onnx.shape",
                f"input {name} has shape {shape}; only the first axis may be dynamic",
                hint="export it at a fixed image size",
            )
    if not any(-1 in shape for shape in fixed.values()):
        _check_fixed_batch(fixed, options)
    batches = dict(zip(("min", "opt", "max"), options.batches(), strict=True))
    return {
        name: {k: [b, *shape[1:]] if -1 in shape else shape for k, b in batches.items()}
        for name, shape in fixed.items()
    }


def _check_fixed_batch(fixed: Mapping[str, list[int]], options: BuildOptions) -> None:
    batch = next((shape[0] for shape in fixed.values() if shape), 1)
    asked = [options.min_batch, options.opt_batch, options.max_batch]
    if any(b not in (None, batch) for b in asked):
        raise UsageFault(
            "engine.batch",
            f"the graph's batch is fixed at {batch}; another one was asked for",
            hint="export it with a dynamic batch, or leave the batch options out",
        )


def _add_profile(
    builder: Any, config: Any, network: Any, shapes: Mapping[str, Shapes]
) -> None:
    """An optimization profile, which a network with dynamic inputs needs."""
    dynamic = [
        t.name
        for t in (network.get_input(i) for i in range(network.num_inputs))
        if -1 in tuple(t.shape)
    ]
    if not dynamic:
        return
    profile = builder.create_optimization_profile()
    for name in dynamic:
        shape = shapes[name]
        profile.set_shape(name, shape["min"], shape["opt"], shape["max"])
    if config.add_optimization_profile(profile) < 0:
        raise InternalFault("build.failed", "TensorRT refused the optimization profile")


def _set_options(config: Any, options: BuildOptions) -> None:
    trt: Any = options.backend.trt
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    for pool, size_mib in options.mem_pool_size.items():
        kind = getattr(trt.MemoryPoolType, POOLS[pool])
        config.set_memory_pool_limit(kind, round(size_mib * _MIB))
    if options.backend.is_rtx:
        # Without it a plan may allocate while it runs, and such work cannot be captured in a
        # CUDA graph (TensorRT-RTX 1.2 release notes).
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if options.compute_capabilities:
        config.num_compute_capabilities = len(options.compute_capabilities)
        for i, capability in enumerate(options.compute_capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability}"), i)


def _compute_capabilities(options: BuildOptions) -> list[int]:
    """What the plan is for: as asked with TensorRT-RTX, else the GPU that it was built on."""
    if options.backend.is_rtx:
        return list(options.compute_capabilities)
    here = compute_capability()
    return [] if here is None else [here]


def _described(tensor: Any) -> dict[str, Any]:
    """Name, shape (-1 where dynamic) and type of an input or output."""
    dtype = str(tensor.dtype.name)
    return {
        "name": tensor.name,
        "shape": [int(d) for d in tensor.shape],
        "dtype": _DTYPES.get(dtype, dtype.lower()),
    }


def _kernels(
    backend: Backend, plan: bytes, shapes: Mapping[str, Shapes], log: Log
) -> tuple[Kernel, ...] | None:
    """What was built: of TensorRT-RTX from its log, of TensorRT from the engine itself."""
    if backend.is_rtx:
        return from_log(log.kernel_lists) or None
    trt = backend.trt
    runtime = trt.Runtime(logger(trt))
    engine = _created(lambda: runtime.deserialize_cuda_engine(plan), log)
    context = _created(engine.create_execution_context, log)
    for name, shape in shapes.items():
        # Formats of a dynamic engine are told only for a shape.
        context.set_input_shape(name, shape["opt"])
    inspector = engine.create_engine_inspector()
    inspector.execution_context = context
    return from_inspector(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
