"""PyTorch modules: eager on a CPU or on a GPU, and as a CUDA graph."""

from __future__ import annotations

__all__ = ["TorchCudaGraphRunner", "TorchCudaRunner", "TorchRunner"]

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from numpy.typing import NDArray

from vntools.base.errors import TryLater, Unavailable
from vntools.runtime.base import MARKS, HostClock, Runner, TensorSpec, check_feeds

if TYPE_CHECKING:
    import torch

_WARM_UPS = 3  # before a capture: lazy initialisation and the choice of algorithms lie in them


class _ModuleRunner(Runner):
    """A module with one input and one output, run in inference mode.

    The module runs once when the runner opens, for the shape of its output.
    """

    _input: torch.Tensor
    _result: torch.Tensor
    _forward: Callable[[torch.Tensor], torch.Tensor]

    def __init__(self, module: torch.nn.Module, image_shape: tuple[int, ...]) -> None:
        self._module = module
        self._image_shape = image_shape
        self.details = {}
        self.inputs = self.outputs = ()

    def __enter__(self) -> Self:
        import torch

        self._torch = torch
        with ExitStack() as stack:
            self._open(stack)
            self._forward = self._module
            parameter = next(self._module.parameters(), None)
            probe = torch.zeros(
                (1, *self._image_shape),
                dtype=torch.float32 if parameter is None else parameter.dtype,
                device=None if parameter is None else parameter.device,
            )
            with torch.inference_mode():
                answer: torch.Tensor = self._module(probe)
            precision = str(probe.dtype).removeprefix("torch.")
            self.inputs = (TensorSpec("input", ("batch", *self._image_shape), precision),)
            shape = ("batch", *answer.shape[1:])
            self.outputs = (
                TensorSpec("logits", shape, str(answer.dtype).removeprefix("torch.")),
            )
            self.details = {
                "version": str(torch.__version__),
                "precision": precision,
                **self._describe(precision),
            }
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @abstractmethod
    def _open(self, stack: ExitStack) -> None:
        """Bring the module into the state to run in, and have ``stack`` undo it."""

    @abstractmethod
    def _describe(self, precision: str) -> dict[str, Any]:
        """Details beside version and precision; may refine the latter."""

    def _specialise(self) -> None:
        """What is done once for the shape of the prepared input; eagerly, nothing."""

    def enqueue(self) -> None:
        """See :meth:`Runner.enqueue`."""
        with self._torch.inference_mode():
            self._result = self._forward(self._input)


class TorchRunner(_ModuleRunner):
    """A module on the CPU, eager: the caller's own, put in evaluation mode while open.

    Args:
        module: maps (batch, ...) to (batch, ...).
        image_shape: shape of one input without its batch axis, such as (3, 224, 224).
        threads: by default as many as PyTorch uses; a setting of the process, put back at
            the end.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        image_shape: tuple[int, ...],
        *,
        threads: int | None = None,
    ) -> None:
        super().__init__(module, image_shape)
        self.backend = "pytorch-cpu"
        self.clock = HostClock()
        self._threads = threads

    def _open(self, stack: ExitStack) -> None:
        for part in self._module.modules():
            stack.callback(setattr, part, "training", part.training)
        self._module.eval()
        if self._threads is not None:
            stack.callback(self._torch.set_num_threads, self._torch.get_num_threads())
            self._torch.set_num_threads(self._threads)

    def _describe(self, precision: str) -> dict[str, Any]:  # noqa: ARG002 - as it is on a CPU
        return {"threads": self._torch.get_num_threads()}

    def prepare(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """See :meth:`Runner.prepare`."""
        (array,) = check_feeds(self.inputs, feeds).values()
        self._input = self._torch.from_numpy(array.copy())
        self._specialise()

    def upload(self) -> None:
        """See :meth:`Runner.upload`."""

    def download(self) -> None:
        """See :meth:`Runner.download`."""

    def synchronize(self) -> None:
        """See :meth:`Runner.synchronize`."""

    def results(self) -> dict[str, NDArray[Any]]:
        """See :meth:`Runner.results`."""
        return {self.outputs[0].name: self._result.numpy().copy()}


class TorchCudaRunner(_ModuleRunner):
    """A copy of a module on the first GPU, eager.

    Args:
        module: maps (batch, ...) to (batch, ...).
        image_shape: shape of one input without its batch axis, such as (3, 224, 224).

    Raises:
        Unavailable: on opening: ``gpu.none``.
        TryLater: ``gpu.memory``.
    """

    def __init__(self, module: torch.nn.Module, image_shape: tuple[int, ...]) -> None:
        super().__init__(module, image_shape)
        self.backend = "pytorch-cuda"

    def _open(self, stack: ExitStack) -> None:
        torch = self._torch
        if not torch.cuda.is_available():
            built = torch.version.cuda is not None
            why = "no NVIDIA GPU or driver answers" if built else "it is built without CUDA"
            raise Unavailable(
                "gpu.none", f"PyTorch cannot use CUDA: {why}", hint="use the CPU"
            )
        self.clock = _TorchEvents(torch)
        self._module = copy.deepcopy(self._module).eval().to("cuda")
        stack.callback(self._forget)

    def _forget(self) -> None:
        for name in ("_forward", "_module", "_result", "_input", "_host", "_landing"):
            self.__dict__.pop(name, None)

    def _describe(self, precision: str) -> dict[str, Any]:
        torch = self._torch
        gpu = torch.cuda.get_device_properties(0)
        details: dict[str, Any] = {
            "cuda_graph": "not used: PyTorch runs eagerly",
            "gpu": {"name": gpu.name, "cc": f"{gpu.major}.{gpu.minor}"},
        }
        cudnn: Any = torch.backends.cudnn
        if precision == "float32" and cudnn.conv.fp32_precision == "tf32":
            details["precision"] = "float32 (TF32 allowed)"
        return details

    def prepare(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """See :meth:`Runner.prepare`."""
        torch = self._torch
        (array,) = check_feeds(self.inputs, feeds).values()
        try:
            self._host = torch.from_numpy(array.copy()).pin_memory()
            self._input = torch.empty_like(self._host, device="cuda")
            self.upload()
            self._specialise()
            self.enqueue()
            self._landing = torch.empty_like(self._result, device="cpu", pin_memory=True)
        except torch.OutOfMemoryError as e:
            raise TryLater(
                "gpu.memory", "the GPU has too little free memory", hint="use a smaller batch"
            ) from e
        self.synchronize()

    def upload(self) -> None:
        """See :meth:`Runner.upload`."""
        self._input.copy_(self._host, non_blocking=True)

    def download(self) -> None:
        """See :meth:`Runner.download`."""
        self._landing.copy_(self._result, non_blocking=True)

    def synchronize(self) -> None:
        """See :meth:`Runner.synchronize`."""
        self._torch.cuda.synchronize()

    def results(self) -> dict[str, NDArray[Any]]:
        """See :meth:`Runner.results`."""
        return {self.outputs[0].name: self._landing.numpy().copy()}


class TorchCudaGraphRunner(TorchCudaRunner):
    """A copy of a module on the first GPU, captured once for each shape and then replayed.

    Args:
        module: maps (batch, ...) to (batch, ...).
        image_shape: shape of one input without its batch axis, such as (3, 224, 224).

    Raises:
        Unavailable: on opening, as :class:`TorchCudaRunner`; in :meth:`prepare`,
            ``torch.capture``: the module cannot be captured.
    """

    def __init__(self, module: torch.nn.Module, image_shape: tuple[int, ...]) -> None:
        super().__init__(module, image_shape)
        self.backend = "pytorch-cuda-graph"

    def _forget(self) -> None:
        self.__dict__.pop("_graph", None)
        super()._forget()

    def _describe(self, precision: str) -> dict[str, Any]:
        return super()._describe(precision) | {"cuda_graph": "captured"}

    def _specialise(self) -> None:
        torch = self._torch
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), torch.inference_mode():
            for _ in range(_WARM_UPS):
                self._module(self._input)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        try:
            with torch.inference_mode(), torch.cuda.graph(self._graph):
                self._result = self._module(self._input)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as e:
            raise Unavailable(
                "torch.capture",
                f"PyTorch cannot capture it as a CUDA graph: {str(e).splitlines()[0]}",
                hint="run it eagerly (torch)",
            ) from e

    def enqueue(self) -> None:
        """See :meth:`Runner.enqueue`."""
        self._graph.replay()


class _TorchEvents:
    """Marks as events on PyTorch's current stream."""

    on_gpu = True

    def __init__(self, torch: Any) -> None:
        self.spin = True
        self._events = [
            torch.cuda.Event(enable_timing=True, blocking=True) for _ in range(MARKS)
        ]

    def mark(self, slot: int) -> None:
        """Record an event."""
        self._events[slot].record()

    def wait(self, slot: int) -> None:
        """Wait until the event has happened."""
        if not self.spin:
            self._events[slot].synchronize()
        while not self._events[slot].query():
            pass

    def elapsed_ms(self, start: int, end: int) -> float:
        """Milliseconds between two events."""
        return self._events[start].elapsed_time(self._events[end])
