"""Plans of TensorRT and TensorRT-RTX, on the first GPU.

A plan is a program: it is loaded only where its sidecar says that vntools built these bytes,
with this version of TensorRT, or where the caller vouches for it.
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

from vntools.base.artifacts import read_input, read_sidecar, require_file, sha256_bytes
from vntools.base.errors import (
    DataFault,
    InternalFault,
    NoPermission,
    TryLater,
    Unavailable,
    UsageFault,
)
from vntools.engine.backend import FLAVOURS, PLAN_MAGIC, Backend, gpu_count, load
from vntools.engine.log import Log, collected, logger
from vntools.runtime.base import TensorSpec
from vntools.runtime.buffered import BufferedRunner, Buffers
from vntools.runtime.cuda import CaptureFailed, CudaGraph

_DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "INT8": "int8", "INT32": "int32", "INT64": "int64",
    "UINT8": "uint8", "BOOL": "bool",
}  # fmt: skip
_REBUILD = "rebuild it with vntools build-engine"


def open_plan(
    path: str | os.PathLike[str], *, trust_plan: bool = False, cuda_graph: bool = True
) -> PlanRunner:
    """A runner for a plan, its bytes held against its sidecar before TensorRT sees them.

    Args:
        path: ``NAME.plan``, with ``NAME.plan.json`` beside it.
        trust_plan: load a plan without a sidecar; a plan is a program, so only one's own.
        cuda_graph: replay a CUDA graph where the plan can be captured.

    Raises:
        NoInput: the file is missing.
        Unavailable: ``gpu.none``; the message names all that is missing. ``trt.missing``.
        NoPermission: ``plan.untrusted``: there is no sidecar.
        DataFault: ``plan.manifest``, ``plan.format``, ``plan.sha256``, ``plan.flavour`` or
            ``plan.version``: the sidecar is damaged, or file and sidecar or TensorRT disagree.
    """
    require_file(path)
    if gpu_count() == 0:
        raise Unavailable("gpu.none", _what_is_missing(), hint="run it on the target machine")
    sidecar = read_sidecar(path)
    if sidecar is None and not trust_plan:
        raise NoPermission(
            "plan.untrusted",
            "it has no sidecar that says who built it, and a plan is a program",
            hint="--trust-plan loads it nevertheless, if you built it",
            path=path,
        )
    plan = read_input(path)
    flavour = PLAN_MAGIC.get(plan[:4])
    if sidecar is None:
        if flavour is None:
            raise DataFault("plan.format", "not a TensorRT plan", hint=_REBUILD, path=path)
        sidecar = {"flavour": flavour, "sha256": sha256_bytes(plan)}
    else:
        _check_bytes(plan, flavour, sidecar, path)
    backend = load(sidecar["flavour"])
    if sidecar.setdefault("version", backend.version) != backend.version:
        raise DataFault(
            "plan.version",
            f"built by {sidecar['flavour']} {sidecar['version']}, here is {backend.version}",
            hint=_REBUILD,
            path=path,
        )
    return PlanRunner(plan, sidecar, backend, cuda_graph=cuda_graph)


def _what_is_missing() -> str:
    """One line on what a plan needs here and lacks; nothing is imported."""
    missing = ["an NVIDIA GPU whose driver answers"]
    if importlib.util.find_spec("pycuda") is None:
        missing.append("PyCUDA")
    rtx = ("tensorrt_rtx", "tensorrt_rtx_bindings")
    if not any(importlib.util.find_spec(m) is not None for m in ("tensorrt", *rtx)):
        missing.append("TensorRT")
    return f"a plan cannot run here; missing: {', '.join(missing)}"


def _check_bytes(
    plan: bytes, flavour: str | None, sidecar: dict[str, Any], path: str | os.PathLike[str]
) -> None:
    """Hold the bytes of a plan against its sidecar.

    Raises:
        DataFault: ``plan.sha256``, ``plan.flavour`` or ``plan.manifest``.
    """
    if sidecar["sha256"] != sha256_bytes(plan):
        raise DataFault(
            "plan.sha256",
            "its bytes are not those that its sidecar names",
            hint=_REBUILD,
            path=path,
        )
    if sidecar.get("flavour") not in FLAVOURS or not isinstance(sidecar.get("version"), str):
        raise DataFault(
            "plan.manifest",
            "its sidecar names no flavour or version",
            hint=_REBUILD,
            path=path,
        )
    if sidecar["flavour"] != flavour:
        raise DataFault(
            "plan.flavour",
            f"its sidecar says {sidecar['flavour']}, its bytes {flavour or 'are no plan'}",
            hint=_REBUILD,
            path=path,
        )


class PlanRunner(BufferedRunner):
    """A plan, opened by :func:`open_plan`.

    Args:
        plan: the bytes, trusted.
        sidecar: ``flavour``, ``version``, ``sha256``; ``precision``, ``io_type`` and
            ``compute_capabilities`` where known.
        backend: the TensorRT of that flavour and version.
        cuda_graph: replay a CUDA graph where the plan can be captured.

    Raises:
        DataFault: on opening: ``plan.refused``: TensorRT cannot load it on this GPU.
        TryLater: ``gpu.memory``.
    """

    def __init__(
        self,
        plan: bytes,
        sidecar: dict[str, Any],
        backend: Backend,
        *,
        cuda_graph: bool = True,
    ) -> None:
        self.backend = backend.name
        self.details = {
            "version": backend.version,
            "precision": sidecar.get("precision", "as built"),
            "sha256": sidecar["sha256"],
            **({"kernels": sidecar["kernels"]} if sidecar.get("kernels") else {}),
        }
        self.inputs = self.outputs = ()
        self._plan = plan
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
                self._runtime = self._trt.Runtime(logger(self._trt))
                self._engine = self._runtime.deserialize_cuda_engine(self._plan)
                if self._engine is None:
                    raise DataFault(
                        "plan.refused",
                        f"built for {self._built_for}, this GPU is "
                        f"{self.details['gpu']['cc']}: {log.last_error()}",
                        hint=_REBUILD,
                    )
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
        context = self._new_context()
        if context is None:
            raise TryLater(
                "gpu.memory", f"no execution context: {log.last_error()}", hint="free memory"
            )
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
                self._graph = self._cuda.capture(self._execute)
            except (CaptureFailed, InternalFault) as e:
                said = f" ({log.errors[-1].strip()})" if log.errors else ""
                return f"not captured: {e}{said}"
        return "captured"

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self._cuda.stream):
            raise InternalFault("runner.failed", "TensorRT refuses to enqueue")

    def enqueue(self) -> None:
        """See :meth:`Runner.enqueue`."""
        if self._graph is not None:
            self._graph.launch()
        else:
            self._execute()


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
