"""Plans of TensorRT and TensorRT-RTX, on the first GPU.

A plan is a program: what may be loaded is decided in :mod:`vntools.engine.plan`.
"""

from __future__ import annotations

__all__ = ["PlanRunner", "open_plan"]

import copy
import importlib.util
import os
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vntools.base.artifacts import require_file
from vntools.base.errors import (
    DataFault,
    InternalFault,
    TryLater,
    Unavailable,
    UsageFault,
)
from vntools.engine.backend import Backend, compute_capability, gpu_count, load
from vntools.engine.log import Log, collected, logger
from vntools.engine.plan import SIDECAR_ONLY, Plan, Trust, read_plan, rebuild
from vntools.runtime.base import TensorSpec
from vntools.runtime.buffered import BufferedRunner, Buffers
from vntools.runtime.cuda import CaptureFailed, CudaGraph

_DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "INT8": "int8", "INT32": "int32", "INT64": "int64",
    "UINT8": "uint8", "BOOL": "bool",
}  # fmt: skip
# Of what TensorRT says where a plan brings a runtime of its own (VERSION_COMPATIBLE).
_HOST_CODE = "HostCodeAllowed"


def open_plan(
    path: str | os.PathLike[str], trust: Trust = SIDECAR_ONLY, *, cuda_graph: bool = True
) -> PlanRunner:
    """A runner for a plan, its bytes held against its sidecar before TensorRT sees them.

    Args:
        path: ``NAME.plan``, with ``NAME.plan.json`` beside it.
        trust: what the user vouches for.
        cuda_graph: replay a CUDA graph where the plan can be captured.

    Raises:
        Unavailable: ``gpu.none``; the message names all that is missing. ``trt.missing``.
        DataFault: ``plan.version``: of another version than the TensorRT here.
        VntoolsError: as :func:`vntools.engine.plan.read_plan`.
    """
    require_file(path)
    if gpu_count() == 0:
        raise Unavailable("gpu.none", _what_is_missing(), hint="run it on the target machine")
    plan = read_plan(path, trust, compute_capability=compute_capability())
    backend = load(plan.sidecar["flavour"])
    built_by = plan.sidecar.get("version", backend.version)
    if built_by != backend.version:
        raise DataFault(
            "plan.version",
            f"built by {backend.name} {built_by}, here is {backend.version}",
            hint=rebuild(plan.sidecar, path),
            path=path,
        )
    return PlanRunner(plan, backend, cuda_graph=cuda_graph)


def _what_is_missing() -> str:
    """One line on what a plan needs here and lacks; nothing is imported."""
    missing = ["an NVIDIA GPU whose driver answers"]
    if importlib.util.find_spec("pycuda") is None:
        missing.append("PyCUDA")
    rtx = ("tensorrt_rtx", "tensorrt_rtx_bindings")
    if not any(importlib.util.find_spec(m) is not None for m in ("tensorrt", *rtx)):
        missing.append("TensorRT")
    return f"a plan cannot run here; missing: {', '.join(missing)}"


class PlanRunner(BufferedRunner):
    """A plan, opened by :func:`open_plan`.

    Args:
        plan: its bytes, trusted; of its sidecar ``sha256``, and ``precision``, ``kernels`` and
            ``compute_capabilities`` where known.
        backend: the TensorRT of its flavour and version.
        cuda_graph: replay a CUDA graph where the plan can be captured.

    Raises:
        DataFault: on opening: ``plan.refused``: TensorRT cannot load it on this GPU;
            ``plan.host_code``: it brings code for the CPU.
        TryLater: ``gpu.memory``.
    """

    def __init__(self, plan: Plan, backend: Backend, *, cuda_graph: bool = True) -> None:
        sidecar = plan.sidecar
        self.backend = backend.name
        self.details = {
            "version": backend.version,
            "precision": sidecar.get("precision", "as built"),
            "sha256": sidecar["sha256"],
            **({"kernels": sidecar["kernels"]} if sidecar.get("kernels") else {}),
        }
        self.inputs = self.outputs = ()
        self._plan = plan.data
        names = [f"SM{number}" for number in sidecar.get("compute_capabilities") or ()]
        self._built_for = ", ".join(names) or "other GPUs"
        self._trt: Any = backend.trt
        self._wants_graph = cuda_graph
        self._graph: CudaGraph | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._open_cuda(stack)
            self.details["gpu"] = self._cuda.describe()
            stack.callback(self._forget)
            with collected(self._trt) as log:
                self._load(log)
                self._context = self._make_context(log)
            self.inputs, self.outputs = self._specs()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _load(self, log: Log) -> None:
        """Deserialise the plan; code for the CPU in it stays forbidden, as by default.

        Raises:
            DataFault: ``plan.host_code``, ``plan.refused``.
            TryLater: ``gpu.memory``.
        """
        cause: Exception | None = None
        engine: Any = None
        try:
            self._runtime = self._trt.Runtime(logger(self._trt))
            engine = self._runtime.deserialize_cuda_engine(self._plan)
        except (RuntimeError, TypeError) as e:
            cause = e
        if engine is not None:
            self._engine = engine
            return
        hint = "rebuild it with vntools build-engine"
        if any(_HOST_CODE in text for text in log.errors):
            raise DataFault(
                "plan.host_code", "it brings code for the CPU, which is not run", hint=hint
            ) from cause
        if log.short_of_memory(cause):
            raise _no_memory("the plan does not load", log.reason(cause)) from cause
        raise DataFault(
            "plan.refused",
            f"built for {self._built_for}, this GPU is {self.details['gpu']['cc']}: "
            f"{log.reason(cause)}",
            hint=hint,
        ) from cause

    def sibling(self) -> PlanRunner:
        """See :meth:`Runner.sibling`: another execution context over the same engine."""
        other = copy.copy(self)
        other.details = dict(self.details)
        other._graph = None
        with ExitStack() as stack, collected(self._trt) as log:
            other._open_cuda(stack)
            stack.callback(other._forget)
            other._context = self._make_context(log)
            other._stack = stack.pop_all()
        return other

    def profile(self, queries: int) -> dict[str, list[float]]:
        """See :meth:`Runner.profile`; in a context of its own, without a CUDA graph."""
        times: dict[str, list[float]] = {}

        class Layers(self._trt.IProfiler):
            def report_layer_time(self, layer_name: str, ms: float) -> None:
                times.setdefault(layer_name, []).append(ms)

        with collected(self._trt) as log:
            context = self._make_context(log)
        for spec in self.inputs:
            context.set_input_shape(spec.name, self._context.get_tensor_shape(spec.name))
        for name, address in (
            {} if self._buffers is None else self._buffers.addresses
        ).items():
            context.set_tensor_address(name, address)
        layers = context.profiler = Layers()
        plain, self._context = self._context, context
        try:
            for _ in range(1 + queries):
                self._execute()
                self.synchronize()
        finally:
            self._context = plain
        del layers
        return {name: ms[-queries:] for name, ms in times.items()}  # not of the first query

    def layer_info(self) -> str:
        """See :meth:`Runner.layer_info`."""
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = self._context
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def _make_context(self, log: Log) -> Any:
        """An execution context.

        Raises:
            TryLater: ``gpu.memory``.
        """
        try:
            context = self._new_context()
        except (RuntimeError, TypeError) as e:
            raise _no_memory("no execution context", log.reason(e)) from e
        if context is None:
            raise _no_memory("no execution context", log.last_error())
        return context

    def _new_context(self) -> Any:
        if self.backend == "tensorrt":
            return self._engine.create_execution_context()
        # By default TensorRT-RTX compiles kernels for a new shape in the background and starts
        # with others, which is neither what a graph should hold nor what should be measured.
        config = self._engine.create_runtime_config()
        config.dynamic_shapes_kernel_specialization_strategy = (
            self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        return self._engine.create_execution_context(config)

    def _forget(self) -> None:
        # A graph holds the engine's kernels, so it goes before the engine.
        self._release()
        for name in ("_context", "_engine", "_runtime"):
            self.__dict__.pop(name, None)

    def _release(self) -> None:
        if self._graph is not None:
            self._graph.close()
            self._graph = None
        super()._release()

    def _specs(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Inputs and outputs as the engine names them.

        Raises:
            DataFault: ``plan.io``: a type that numpy lacks.
        """
        engine = self._engine
        inputs: list[TensorSpec] = []
        outputs: list[TensorSpec] = []
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            kind = engine.get_tensor_dtype(name).name
            if kind not in _DTYPES:
                raise DataFault(
                    "plan.io",
                    f"{name!r} is {kind}, which numpy lacks",
                    hint="use --io-type fp16",
                )
            shape = tuple(
                extent if extent >= 0 else "batch" if axis == 0 else f"{name}.{axis}"
                for axis, extent in enumerate(engine.get_tensor_shape(name))
            )
            is_input = engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT
            (inputs if is_input else outputs).append(TensorSpec(name, shape, _DTYPES[kind]))
        return tuple(inputs), tuple(outputs)

    def _bind(self, arrays: dict[str, NDArray[Any]]) -> Buffers:
        for name, array in arrays.items():
            low, _, high = map(tuple, self._engine.get_tensor_profile_shape(name, 0))
            inside = all(a <= b <= c for a, b, c in zip(low, array.shape, high, strict=True))
            if not inside or not self._context.set_input_shape(name, array.shape):
                raise UsageFault(
                    "plan.profile",
                    f"input {name!r} of shape {_by(array.shape)} lies outside the plan's "
                    f"optimization profile, {_by(low)} to {_by(high)}",
                    hint="choose another batch, or build with another --max-batch",
                )
        outputs = {
            s.name: (tuple(self._context.get_tensor_shape(s.name)), np.dtype(s.dtype))
            for s in self.outputs
        }
        buffers = Buffers(self._cuda, arrays, outputs)
        for name, address in buffers.addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise InternalFault(
                    "runner.failed", f"TensorRT refuses the address of {name!r}"
                )
        return buffers

    def _warm(self) -> None:
        # What a context initialises in its first run cannot be captured.
        self._execute()
        self.synchronize()
        self.details["cuda_graph"] = self._capture() if self._wants_graph else "off"

    def _capture(self) -> str:
        """Capture the prepared query, or say why not."""
        rtx = self.backend == "tensorrt-rtx"
        if rtx and not self._context.is_stream_capturable(self._cuda.stream):
            return "not captured: TensorRT-RTX says that the plan allocates while it runs"
        with collected(self._trt) as log:
            try:
                self._graph = self._cuda.capture(self._put)
            except (CaptureFailed, InternalFault) as e:
                said = f" ({log.errors[-1].strip()})" if log.errors else ""
                return f"not captured: {e}{said}"
        return "captured"

    def _execute(self) -> None:
        """Enqueue kernel by kernel."""
        try:
            self._put()
        except InternalFault:
            self.synchronize()  # says it better where CUDA has failed
            raise

    def _put(self) -> None:
        try:
            accepted = self._context.execute_async_v3(self._cuda.stream)
        except RuntimeError as e:
            raise InternalFault("runner.failed", f"TensorRT cannot enqueue: {e}") from e
        if not accepted:
            raise InternalFault("runner.failed", "TensorRT refuses to enqueue")

    def enqueue(self) -> None:
        """See :meth:`Runner.enqueue`."""
        if self._graph is not None:
            self._graph.launch()
        else:
            self._execute()


def _no_memory(what: str, reason: str) -> TryLater:
    return TryLater("gpu.memory", f"{what}: {reason}", hint="free GPU memory")


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
