"""A GPU made of numpy arrays, and the part of TensorRT that runs a plan on it.

The GPU is asynchronous: copies, kernels and events wait in their stream until somebody waits
for them, so a missing synchronization shows as a wrong answer.
"""

from __future__ import annotations

__all__ = ["SHAPE", "WEIGHT", "FakeContext", "FakeGpu", "FakeStream", "fake_trt", "reference"]

import ctypes
import itertools
import weakref
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

SHAPE = (3, 5, 4)
WEIGHT = np.random.default_rng(7).standard_normal((4, 3, 1, 1)).astype(np.float32)


def reference(x: np.ndarray) -> np.ndarray:
    """Relu(Conv(x, WEIGHT)) in float64. x: (n, 3, h, w)."""
    product = np.einsum("oi,nihw->nohw", WEIGHT[:, :, 0, 0].astype(np.float64), x)
    return np.maximum(product, 0)


class FakeStream:
    def __init__(self, gpu: FakeGpu, flags: int = 0) -> None:
        self.gpu, self.flags = gpu, flags
        self.handle = next(gpu.handles)
        self.queue: list[Callable[[], None]] = []
        self.captured: list[Callable[[], None]] | None = None
        gpu.streams[self.handle] = self

    def put(self, work: Callable[[], None]) -> None:
        (self.queue if self.captured is None else self.captured).append(work)

    def synchronize(self) -> None:
        while self.queue:
            self.queue.pop(0)()


class FakeEvent:
    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu, self.at_ms = gpu, -1.0
        self.stream: FakeStream | None = None
        gpu.made.append(weakref.ref(self))

    def record(self, stream: FakeStream) -> None:
        self.stream, self.at_ms = stream, -1.0

        def happen() -> None:
            self.at_ms = self.gpu.now_ms

        stream.put(happen)

    def query(self) -> bool:
        assert self.stream is not None, "an event was waited for that was never recorded"
        self.stream.synchronize()
        return self.at_ms >= 0

    def synchronize(self) -> None:
        self.gpu.blocking_waits += 1
        self.query()

    def time_till(self, end: FakeEvent) -> float:
        assert min(self.at_ms, end.at_ms) >= 0, "an event was read that has not happened"
        return end.at_ms - self.at_ms


class FakeAllocation:
    def __init__(self, gpu: FakeGpu, size: int) -> None:
        if size > gpu.free_bytes:
            raise gpu.driver.MemoryError("cuMemAlloc failed: out of memory")
        self.gpu, self.address = gpu, next(gpu.handles) * 4096
        gpu.memory[self.address] = bytearray(size)

    def __int__(self) -> int:
        return self.address

    def free(self) -> None:
        assert self.gpu.contexts, "memory was freed outside its context"
        del self.gpu.memory[self.address]


class FakeGpu:
    """State of the fake: memory by address, streams, contexts, the driver's two faces."""

    def __init__(self) -> None:
        self.handles = itertools.count(1)
        self.memory: dict[int, bytearray] = {}
        self.streams: dict[int, FakeStream] = {}
        self.made: list[weakref.ref[FakeEvent]] = []
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.contexts = 0
        self.now_ms = 0.0
        self.free_bytes = 1 << 20
        self.launches = 0
        self.blocking_waits = 0
        self.driver = self._pycuda()
        self.library = FakeLibrary(self)

    def events(self) -> list[FakeEvent]:
        """The events that are alive."""
        return [event for ref in self.made if (event := ref()) is not None]

    def _pycuda(self) -> Any:
        gpu = self
        driver: Any = ModuleType("pycuda.driver")
        driver.Error = type("Error", (Exception,), {})
        driver.MemoryError = type("MemoryError", (driver.Error,), {})

        class Context:
            def push(self) -> None:
                gpu.contexts += 1

            def pop(self) -> None:
                gpu.contexts -= 1
                if not gpu.contexts:
                    for stream in gpu.streams.values():
                        stream.queue.clear()  # work under way holds its events
                    assert not gpu.events(), "events outlive their context"

        def upload(address: Any, host: np.ndarray, stream: FakeStream) -> None:
            def copy() -> None:
                gpu.memory[int(address)][:] = host.tobytes()

            stream.put(copy)

        def download(host: np.ndarray, address: Any, stream: FakeStream) -> None:
            def copy() -> None:
                flat = np.frombuffer(gpu.memory[int(address)], host.dtype)
                host[...] = flat.reshape(host.shape)

            stream.put(copy)

        driver.init = lambda: None
        driver.Device = lambda _: SimpleNamespace(
            retain_primary_context=Context,
            compute_capability=lambda: (8, 0),
            name=lambda: "Numpy A100",
            total_memory=lambda: 1 << 30,
        )
        driver.Stream = lambda flags=0: FakeStream(gpu, flags)
        driver.Event = lambda flags: FakeEvent(gpu)
        driver.event_flags = SimpleNamespace(BLOCKING_SYNC=1)
        driver.mem_alloc = lambda size: FakeAllocation(gpu, size)
        driver.pagelocked_empty = lambda shape, dtype: np.full(shape, 77, dtype)
        driver.memcpy_htod_async = upload
        driver.memcpy_dtoh_async = download
        driver.mem_get_info = lambda: (gpu.free_bytes, 1 << 30)
        driver.get_driver_version = lambda: 13010
        return driver


class FakeLibrary:
    """The driver library's graph calls, on ctypes arguments as the real ones take them."""

    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu
        self.failing: dict[str, int] = {}
        self.open_graphs: set[int] = set()
        self._functions: dict[str, Callable[..., int]] = {
            "cuStreamBeginCapture_v2": self._begin,
            "cuStreamEndCapture": self._end,
            "cuGraphGetNodes": self._count,
            "cuGraphInstantiateWithFlags": self._instantiate,
            "cuGraphLaunch": self._launch,
            "cuGraphDestroy": self._destroy,
            "cuGraphExecDestroy": self._destroy,
            "cuGetErrorName": self._name,
        }

    def __getattr__(self, function: str) -> Callable[..., int]:
        return self._functions[function]

    def _begin(self, stream: ctypes.c_void_p, mode: ctypes.c_int) -> int:
        assert mode.value == 1, "capture must watch this thread alone"
        self._stream(stream).captured = []
        return 0

    def _end(self, stream: ctypes.c_void_p, graph: Any) -> int:
        work, self._stream(stream).captured = self._stream(stream).captured, None
        assert work is not None
        if status := self.failing.get("cuStreamEndCapture"):
            return status
        graph._obj.value = self._new(work)
        return 0

    def _count(self, graph: ctypes.c_void_p, nodes: None, count: Any) -> int:
        assert nodes is None
        count._obj.value = len(self.gpu.graphs[graph.value or 0])
        return 0

    def _instantiate(self, out: Any, graph: Any, flags: Any) -> int:
        assert flags.value == 0
        if status := self.failing.get("cuGraphInstantiateWithFlags"):
            return status
        out._obj.value = self._new(self.gpu.graphs[graph.value])
        return 0

    def _launch(self, graph: ctypes.c_void_p, stream: ctypes.c_void_p) -> int:
        self.gpu.launches += 1
        for work in self.gpu.graphs[graph.value or 0]:
            self._stream(stream).put(work)
        return self.failing.get("cuGraphLaunch", 0)

    def _destroy(self, graph: ctypes.c_void_p) -> int:
        self.open_graphs.remove(graph.value or 0)
        return 0

    def _name(self, status: int, name: Any) -> int:
        name._obj.value = {901: b"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"}.get(status)
        return 0

    def _stream(self, stream: ctypes.c_void_p) -> FakeStream:
        return self.gpu.streams[stream.value or 0]

    def _new(self, work: list[Callable[[], None]]) -> int:
        handle = next(self.gpu.handles)
        self.gpu.graphs[handle] = list(work)
        self.open_graphs.add(handle)
        return handle


class FakeEngine:
    """An engine and its runtime configuration in one."""

    num_io_tensors = 2

    def __init__(self, trt: Any, gpu: FakeGpu) -> None:
        self.trt, self.gpu = trt, gpu
        trt.engines += 1

    def get_tensor_name(self, index: int) -> str:
        return ("input", "logits")[index]

    def get_tensor_mode(self, name: str) -> str:
        return "INPUT" if name == "input" else "OUTPUT"

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self.trt.dtype)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, *SHAPE) if name == "input" else (-1, 4, *SHAPE[1:])

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        assert (name, profile) == ("input", 0)
        return [(1, *SHAPE), (1, *SHAPE), (8, *SHAPE)]

    def create_runtime_config(self) -> Any:
        return SimpleNamespace(dynamic_shapes_kernel_specialization_strategy="LAZY")

    def create_execution_context(self, config: Any = None) -> Any:
        self.trt.specialization = getattr(
            config, "dynamic_shapes_kernel_specialization_strategy", None
        )
        return FakeContext(self.trt, self.gpu) if self.trt.has_memory else None

    def create_engine_inspector(self) -> Any:
        def told(form: str) -> str:
            assert (form, type(inspector.execution_context)) == ("JSON", FakeContext)
            return '{"Layers": []}'

        inspector = SimpleNamespace(execution_context=None, get_engine_information=told)
        return inspector


class FakeContext:
    """An execution context: shapes and addresses of its own, and a profiler."""

    profiler: Any = None

    def __init__(self, trt: Any, gpu: FakeGpu) -> None:
        self.trt, self.gpu = trt, gpu
        self.shape: tuple[int, ...] = ()
        self.initialised_for: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = tuple(shape)
        return name == "input"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape if name == "input" else (self.shape[0], 4, *self.shape[2:])

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return self.trt.capturable

    def execute_async_v3(self, handle: int) -> bool:
        stream = self.gpu.streams[handle]
        first, self.initialised_for = self.initialised_for != self.shape, self.shape
        if stream.captured is not None and (first or not self.trt.runs_under_capture):
            return False
        if not self.trt.enqueues:
            return True
        shape, addresses = self.shape, dict(self.addresses)

        def kernel() -> None:
            x = np.frombuffer(self.gpu.memory[addresses["input"]], np.float32).reshape(shape)
            y = reference(x).astype(np.float32)
            self.gpu.memory[addresses["logits"]][:] = y.tobytes()
            self.gpu.now_ms += 0.5
            if self.profiler is not None:
                self.profiler.report_layer_time("conv + relu", 0.375)
                self.profiler.report_layer_time("head", 0.125)

        stream.put(kernel)
        return True


def fake_trt(gpu: FakeGpu) -> Any:
    """A TensorRT module; its flags script what it refuses."""
    trt: Any = ModuleType("fake_tensorrt")
    trt.ILogger = type("ILogger", (), {})
    trt.TensorIOMode = SimpleNamespace(INPUT="INPUT", OUTPUT="OUTPUT")
    trt.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="EAGER")
    trt.IProfiler = type("IProfiler", (), {})
    trt.LayerInformationFormat = SimpleNamespace(JSON="JSON")
    trt.dtype, trt.specialization, trt.engines = "FLOAT", None, 0
    trt.loads = trt.has_memory = trt.enqueues = trt.runs_under_capture = trt.capturable = True

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, plan: bytes) -> FakeEngine | None:
            if trt.loads:
                return FakeEngine(trt, gpu)
            self.logger.log(1, "the engine was built for another device\n")
            return None

    trt.Runtime = Runtime
    return trt
