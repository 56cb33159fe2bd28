"""One GPU as the runners use it: its context, a stream, memory, events, and CUDA graphs.

Memory, streams and events go through PyCUDA, in the device's primary context, which ONNX
Runtime, PyTorch and TensorRT share. PyCUDA cannot capture, so graphs are captured,
instantiated and launched through the driver library (CUDA driver API, "Graph Management").
"""

from __future__ import annotations

__all__ = ["CaptureFailed", "Cuda", "CudaGraph", "library"]

import ctypes
from collections.abc import Callable
from contextlib import ExitStack
from types import ModuleType, TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vntools.base.errors import InternalFault, TryLater, Unavailable, VntoolsError
from vntools.base.optional import require
from vntools.runtime.base import MARKS

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: no implicit waits for the legacy default stream
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: only this thread's calls can spoil it


class CaptureFailed(Exception):
    """What was enqueued cannot be a CUDA graph; the message says why."""


class Cuda:
    """The first GPU, its primary context current while the block lasts, and one stream.

    Raises:
        Unavailable: ``dependency.missing``, no PyCUDA; ``gpu.none``, the driver refuses.
    """

    def __enter__(self) -> Self:
        self._driver = require("pycuda.driver", extra="tensorrt")
        try:
            self._driver.init()
            device = self._driver.Device(0)
            context = device.retain_primary_context()
            context.push()
        except self._driver.Error as e:
            raise Unavailable(
                "gpu.none",
                f"the CUDA driver refuses: {e}",
                hint="check the driver with nvidia-smi",
            ) from e
        with ExitStack() as stack:
            stack.callback(context.pop)
            self._device = device
            self._stream = self._driver.Stream(_NON_BLOCKING)
            self.clock = _Events(self._driver, self._stream)
            stack.callback(self._forget)
            self._stack = stack.pop_all()
        return self

    def _forget(self) -> None:
        # PyCUDA frees a thing with its last reference, and the clock may be in many hands.
        self.clock.close()
        del self._stream

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._stack.close()
        except self._driver.Error as e:  # one that sticks comes back from any call
            raise _fault(self._driver, e) from e

    @property
    def stream(self) -> int:
        """The ``CUstream`` handle, for the libraries that enqueue into it."""
        return int(self._stream.handle)

    def describe(self) -> dict[str, str | int]:
        """Name, compute capability, memory and driver; JSON-ready."""
        major, minor = self._device.compute_capability()
        driver = self._driver.get_driver_version()
        return {
            "name": self._device.name(),
            "cc": f"{major}.{minor}",
            "memory_bytes": int(self._device.total_memory()),
            "cuda_driver": f"{driver // 1000}.{driver % 1000 // 10}",
        }

    def synchronize(self) -> None:
        """Return when the stream is empty."""
        try:
            self._stream.synchronize()
        except self._driver.Error as e:
            raise _fault(self._driver, e) from e

    def capture(self, enqueue: Callable[[], None]) -> CudaGraph:
        """What ``enqueue`` puts into the stream, as a graph; nothing is run.

        Raises:
            CaptureFailed: the work cannot be captured; the stream is usable again.
        """
        return CudaGraph(self.stream, enqueue)

    def allocate(
        self, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> tuple[NDArray[Any], Any]:
        """A page-locked array and device memory of the same size.

        Raises:
            TryLater: ``gpu.memory``.
        """
        try:
            host = self._driver.pagelocked_empty(shape, dtype)
            return host, self._driver.mem_alloc(max(1, host.nbytes))
        except self._driver.Error as e:
            raise _fault(self._driver, e) from e

    def upload(self, device: Any, host: NDArray[Any]) -> None:
        """Enqueue a copy to the GPU."""
        try:
            self._driver.memcpy_htod_async(device, host, self._stream)
        except self._driver.Error as e:
            raise _fault(self._driver, e) from e

    def download(self, host: NDArray[Any], device: Any) -> None:
        """Enqueue a copy from the GPU."""
        try:
            self._driver.memcpy_dtoh_async(host, device, self._stream)
        except self._driver.Error as e:
            raise _fault(self._driver, e) from e


def _fault(driver: ModuleType, error: Exception) -> VntoolsError:
    """The error that a PyCUDA exception means."""
    if isinstance(error, driver.MemoryError):
        free, total = driver.mem_get_info()
        return TryLater(
            "gpu.memory",
            f"the GPU has too little memory: {free >> 20} of {total >> 20} MiB are free",
            hint="use a smaller batch, or end what else runs there",
        )
    return InternalFault("gpu.fault", f"CUDA failed: {error}", hint="start again")


class _Events:
    """Marks as CUDA events on one stream."""

    on_gpu = True

    def __init__(self, driver: ModuleType, stream: Any) -> None:
        self._driver = driver
        self._stream = stream
        self.spin = True
        flags = driver.event_flags.BLOCKING_SYNC  # of a wait that does not spin
        self._events = [driver.Event(flags) for _ in range(MARKS)]

    def close(self) -> None:
        """Free the events; must come before the context ends."""
        self._events.clear()
        self._stream = None

    def mark(self, slot: int) -> None:
        """Record an event."""
        try:
            self._events[slot].record(self._stream)
        except self._driver.Error as e:
            raise _fault(self._driver, e) from e

    def wait(self, slot: int) -> None:
        """Wait until the event has happened; a thread that sleeps wakes up late."""
        try:
            if not self.spin:
                self._events[slot].synchronize()
            while not self._events[slot].query():
                pass
        except self._driver.Error as e:
            raise _fault(self._driver, e) from e

    def elapsed_ms(self, start: int, end: int) -> float:
        """Milliseconds between two events, to half a microsecond (cuEventElapsedTime)."""
        try:
            return float(self._events[start].time_till(self._events[end]))
        except self._driver.Error as e:
            raise _fault(self._driver, e) from e


class CudaGraph:
    """A captured and instantiated CUDA graph.

    Args:
        stream: the ``CUstream`` to capture; not the default one.
        enqueue: puts the work into that stream.

    Raises:
        CaptureFailed: see :meth:`Cuda.capture`.
    """

    def __init__(self, stream: int, enqueue: Callable[[], None]) -> None:
        self._library = library()
        self._stream = ctypes.c_void_p(stream)
        graph = self._record(enqueue)
        try:
            count = ctypes.c_size_t(0)
            self._call("cuGraphGetNodes", graph, None, ctypes.byref(count))
            if count.value == 0:
                raise CaptureFailed("nothing was put into the stream")
            self._exec = ctypes.c_void_p()
            self._call(
                "cuGraphInstantiateWithFlags",
                ctypes.byref(self._exec),
                graph,
                ctypes.c_ulonglong(0),
            )
        finally:
            self._library.cuGraphDestroy(graph)

    def _record(self, enqueue: Callable[[], None]) -> ctypes.c_void_p:
        """The ``CUgraph`` of what ``enqueue`` does; the capture is ended in any case."""
        graph = ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", self._stream, ctypes.c_int(_THREAD_LOCAL))
        try:
            enqueue()
        except Exception:
            self._library.cuStreamEndCapture(self._stream, ctypes.byref(graph))
            if graph:
                self._library.cuGraphDestroy(graph)
            raise
        self._call("cuStreamEndCapture", self._stream, ctypes.byref(graph))
        return graph

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._library, function)(*arguments)
        if status != 0:
            name = ctypes.c_char_p()
            self._library.cuGetErrorName(status, ctypes.byref(name))
            raise CaptureFailed(f"{function}: {(name.value or str(status).encode()).decode()}")

    def launch(self) -> None:
        """Enqueue the graph."""
        if self._library.cuGraphLaunch(self._exec, self._stream) != 0:
            raise InternalFault(
                "gpu.fault", "the CUDA graph does not launch", hint="start again"
            )

    def close(self) -> None:
        """Destroy it; must come before the context ends."""
        self._library.cuGraphExecDestroy(self._exec)


def library() -> Any:
    """The CUDA driver library.

    Raises:
        Unavailable: ``gpu.none``.
    """
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as e:
        raise Unavailable(
            "gpu.none", "no NVIDIA driver (libcuda.so.1) is installed", hint="use the CPU"
        ) from e
