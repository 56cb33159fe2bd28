"""ONNX Runtime on its CPU, CUDA or TensorRT provider, never on another than asked."""

from __future__ import annotations

__all__ = ["OnnxCudaRunner", "OnnxRunner", "OnnxTensorrtRunner"]

import copy
import sys
from abc import abstractmethod
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from types import ModuleType, TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from vntools.base.artifacts import sha256_bytes
from vntools.base.errors import DataFault, InternalFault, Unavailable
from vntools.base.optional import require
from vntools.base.provenance import host
from vntools.runtime.base import HostClock, Runner, TensorSpec, check_feeds
from vntools.runtime.buffered import BufferedRunner, Buffers
from vntools.runtime.onnx_profile import node_times
from vntools.runtime.onnx_weights import weight_bytes

_DTYPES = {
    "float": "float32", "float16": "float16", "double": "float64", "bool": "bool",
    "int8": "int8", "int16": "int16", "int32": "int32", "int64": "int64",
    "uint8": "uint8", "uint16": "uint16", "uint32": "uint32", "uint64": "uint64",
}  # fmt: skip
# Shape arithmetic, which ONNX Runtime keeps on the CPU on purpose where tensors are on a GPU.
_SHAPE_ARITHMETIC = {
    "Cast", "Concat", "Constant", "Gather", "Shape", "Size", "Slice", "Squeeze", "Unsqueeze",
}  # fmt: skip


class _SessionRunner(Runner):
    """A session over the bytes of one self-contained ONNX model, on one provider.

    ONNX Runtime's warnings are left on: they go to the standard error stream.
    """

    provider: str
    _binding: Any

    def __init__(self, model: bytes) -> None:
        self._model = model
        self.details = {}
        self.inputs = self.outputs = ()

    def __enter__(self) -> Self:
        self._types = tuple(weight_bytes(self._model))
        ort = require("onnxruntime", extra=None)
        options = ort.SessionOptions()
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        self._errors = _errors(ort)
        self._run_options = ort.RunOptions()
        with ExitStack() as stack:
            providers = self._providers(ort, options, stack)
            try:
                session = ort.InferenceSession(self._model, options, providers=providers)
            except self._errors as e:
                raise DataFault(
                    "onnx.invalid", f"ONNX Runtime cannot load it: {_first_line(e)}"
                ) from e
            nodes = _assignment(session)
            asked = session.get_providers()[0] == self.provider
            if not asked or not _all_on(self.provider, nodes):
                raise Unavailable(
                    "provider.missing",
                    f"{self.provider} was asked for, and ONNX Runtime assigned "
                    + ", ".join(f"{len(ops)} nodes to {name}" for name, ops in nodes.items()),
                    hint="its log above says why; vntools doctor lists what is installed",
                )
            self.inputs = tuple(map(_spec, session.get_inputs()))
            self.outputs = tuple(map(_spec, session.get_outputs()))
            self.details |= {
                "version": ort.__version__,
                "precision": self._precision(),
                "providers": {name: len(ops) for name, ops in nodes.items()},
                "sha256": sha256_bytes(self._model),
            }
            self._session = session
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # The session goes first: on a GPU it works in the context that the stack ends.
        for name in ("_binding", "_session"):
            self.__dict__.pop(name, None)
        self._stack.close()

    @abstractmethod
    def _providers(self, ort: ModuleType, options: Any, stack: ExitStack) -> list[Any]:
        """Set session options, and give the provider with its own."""

    def _precision(self) -> str:
        """The type of most weights."""
        return next(iter(self._types), self.inputs[0].dtype if self.inputs else "")

    @contextmanager
    def _faults(self) -> Generator[None]:
        try:
            yield
        except self._errors as e:
            raise _failed(e) from e

    def enqueue(self) -> None:
        """See :meth:`Runner.enqueue`."""
        try:
            self._session.run_with_iobinding(self._binding, self._run_options)
        except self._errors as e:
            raise _failed(e) from e


class OnnxRunner(_SessionRunner):
    """ONNX Runtime on the CPU.

    Args:
        model: a self-contained ONNX model.
        threads: by default one for each core that this process may use.

    Raises:
        DataFault: on opening: ``onnx.invalid``, ``onnx.external``, ``onnx.io``.
    """

    provider = "CPUExecutionProvider"

    def __init__(self, model: bytes, *, threads: int | None = None) -> None:
        super().__init__(model)
        self.backend = "onnxruntime-cpu"
        self.clock = HostClock()
        self._threads = threads

    def _providers(self, ort: ModuleType, options: Any, stack: ExitStack) -> list[Any]:  # noqa: ARG002
        threads = self._threads or int(host()["cores"])
        options.intra_op_num_threads = threads
        self.details = {"threads": threads}
        return [self.provider]

    def _precision(self) -> str:
        # It has few kernels of half types, and casts around what it lacks.
        precision = super()._precision()
        half = precision in ("float16", "bfloat16")
        return f"{precision} (wider types allowed)" if half else precision

    def prepare(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """See :meth:`Runner.prepare`."""
        self._binding = self._session.io_binding()
        self._feeds = {n: a.copy() for n, a in check_feeds(self.inputs, feeds).items()}
        for name, array in self._feeds.items():
            self._binding.bind_cpu_input(name, array)
        for spec in self.outputs:
            self._binding.bind_output(spec.name)

    def upload(self) -> None:
        """See :meth:`Runner.upload`."""

    def download(self) -> None:
        """See :meth:`Runner.download`."""

    def synchronize(self) -> None:
        """See :meth:`Runner.synchronize`."""

    def results(self) -> dict[str, NDArray[Any]]:
        """See :meth:`Runner.results`."""
        arrays = self._binding.copy_outputs_to_cpu()
        return {s.name: a for s, a in zip(self.outputs, arrays, strict=True)}

    def sibling(self) -> OnnxRunner:
        """See :meth:`Runner.sibling`: the same session and threads, bindings of its own."""
        other = copy.copy(self)
        other.clock = HostClock()
        other._stack = ExitStack()
        return other

    def profile(self, queries: int) -> dict[str, list[float]]:
        """See :meth:`Runner.profile`: each node as ONNX Runtime fused it."""
        threads = self.details["threads"]
        return node_times(self._model, self._feeds, queries=queries, threads=threads)


class OnnxCudaRunner(_SessionRunner, BufferedRunner):
    """ONNX Runtime on the first GPU, working in a stream and in memory that we own.

    Raises:
        DataFault: on opening, as for the CPU.
        Unavailable: on opening: ``provider.missing``: no GPU, an ONNX Runtime without CUDA,
            CUDA libraries that do not load, or nodes that went to the CPU;
            ``dependency.missing``: no PyCUDA.
        TryLater: ``gpu.memory``.
    """

    provider = "CUDAExecutionProvider"

    def __init__(self, model: bytes) -> None:
        super().__init__(model)
        self.backend = "onnxruntime-cuda"

    def _providers(self, ort: ModuleType, options: Any, stack: ExitStack) -> list[Any]:  # noqa: ARG002
        from vntools.engine.backend import gpu_count

        why = "no NVIDIA GPU or driver answers" if gpu_count() == 0 else ""
        if self.provider not in ort.get_available_providers():
            why = why or f"ONNX Runtime {ort.__version__} is a build without it"
        if why:
            raise Unavailable(
                "provider.missing",
                f"{self.provider} was asked for, and {why}",
                hint="use the CPU, or install onnxruntime-gpu on a machine with a GPU",
            )
        with redirect_stdout(sys.stderr):  # where it prints what it cannot load
            ort.preload_dlls()
        self._open_cuda(stack)
        # The stream is ours, so a run may return when its work is enqueued.
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self.details = {
            "cuda_graph": "not used: ONNX Runtime launches kernel by kernel",
            "gpu": self._cuda.describe(),
        }
        own = {"device_id": "0", "user_compute_stream": str(self._cuda.stream)}
        return [(self.provider, own | self._provider_options())]

    def _provider_options(self) -> dict[str, str]:
        """Options of the provider beside the device and the stream."""
        return {}

    def _precision(self) -> str:
        precision = super()._precision()
        return f"{precision} (TF32 allowed)" if precision == "float32" else precision

    def _bind(self, arrays: dict[str, NDArray[Any]]) -> Buffers:
        # A plain run first: it gives the shapes of the outputs, and chooses algorithms.
        with self._faults():
            first = self._session.run([s.name for s in self.outputs], arrays)
        outputs = {
            s.name: (a.shape, a.dtype) for s, a in zip(self.outputs, first, strict=True)
        }
        buffers = Buffers(self._cuda, arrays, outputs)
        self._binding = self._session.io_binding()
        for name, array in arrays.items():
            self._binding.bind_input(
                name, "cuda", 0, array.dtype.type, array.shape, buffers.addresses[name]
            )
        for name, (shape, dtype) in outputs.items():
            self._binding.bind_output(
                name, "cuda", 0, dtype.type, shape, buffers.addresses[name]
            )
        return buffers


class OnnxTensorrtRunner(OnnxCudaRunner):
    """ONNX Runtime's TensorRT provider on the first GPU; it builds an engine in ``prepare``.

    It types its networks weakly: without a flag TensorRT would not compute in FP16 or INT8,
    and with one it may still choose a wider type. The flags are set as the graph is typed.

    Raises:
        Unavailable: on opening, as :class:`OnnxCudaRunner`: also where TensorRT's libraries do
            not load, or have another major version than this ONNX Runtime was built for.

    Source: ONNX Runtime, TensorRT Execution Provider, "Configurations".
    """

    provider = "TensorrtExecutionProvider"

    def __init__(self, model: bytes) -> None:
        super().__init__(model)
        self.backend = "onnxruntime-tensorrt"

    def _providers(self, ort: ModuleType, options: Any, stack: ExitStack) -> list[Any]:
        from vntools.engine.backend import load

        with suppress(Unavailable):  # a wheel's libraries can be found once it is imported
            load("tensorrt")
        found = super()._providers(ort, options, stack)
        self.details["cuda_graph"] = "not used: ONNX Runtime enqueues the engine"
        return found

    def _provider_options(self) -> dict[str, str]:
        flags = {"float16": "fp16", "bfloat16": "bf16", "int8": "int8"}
        return {f"trt_{flags[t]}_enable": "1" for t in self._types if t in flags}

    def _precision(self) -> str:
        precision = super()._precision()
        return precision if "float32" in precision else f"{precision} (wider types allowed)"


def _errors(ort: ModuleType) -> tuple[type[Exception], ...]:
    """The exceptions of ONNX Runtime, which have no base class of their own."""
    state = ort.capi.onnxruntime_pybind11_state
    found = (getattr(state, name) for name in dir(state))
    return tuple(e for e in found if isinstance(e, type) and issubclass(e, Exception))


def _failed(error: Exception) -> InternalFault:
    return InternalFault("runner.failed", f"ONNX Runtime failed: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _assignment(session: Any) -> dict[str, list[str]]:
    """Operators by the provider that ONNX Runtime assigned their nodes to."""
    nodes: dict[str, list[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        nodes.setdefault(part.ep_name, []).extend(n.op_type for n in part.get_nodes())
    return nodes


def _all_on(provider: str, nodes: dict[str, list[str]]) -> bool:
    """Whether ``provider`` has the nodes, shape arithmetic aside."""
    elsewhere = {op for name, ops in nodes.items() if name != provider for op in ops}
    return (provider in nodes or not nodes) and elsewhere <= _SHAPE_ARITHMETIC


def _spec(argument: Any) -> TensorSpec:
    """A ``NodeArg`` as a specification; an axis without a name gets one of its own.

    Raises:
        DataFault: ``onnx.io``: not a tensor, or of a type that numpy lacks.
    """
    dtype = _DTYPES.get(argument.type.removeprefix("tensor(").removesuffix(")"))
    if dtype is None:
        raise DataFault(
            "onnx.io", f"{argument.name!r} is a {argument.type}, not a tensor of numbers"
        )
    shape = tuple(
        extent if isinstance(extent, (int, str)) else f"{argument.name}.{axis}"
        for axis, extent in enumerate(argument.shape)
    )
    return TensorSpec(argument.name, shape, dtype)
