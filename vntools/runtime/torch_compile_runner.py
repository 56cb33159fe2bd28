"""PyTorch modules through ``torch.compile``, on a CPU or on a GPU.

``torch.compile`` runs eagerly, without a word, what it cannot compile: after a graph break,
and once a function has been compiled for eight shapes. Here a module is compiled whole or it
is an error, for one shape at a time, before anything is timed.
"""

from __future__ import annotations

__all__ = ["TorchCompileCudaRunner", "TorchCompileRunner"]

from collections.abc import Callable
from types import FunctionType
from typing import TYPE_CHECKING, Any

from vntools.base.errors import Unavailable
from vntools.runtime.torch_runner import TorchCudaRunner, TorchRunner

if TYPE_CHECKING:
    import torch

_COMPILER = "inductor, default mode, whole graph"


class _Compiled:
    """A module as compiled for each shape that it has met.

    Args:
        module: on its device, in evaluation mode.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._forwards: dict[tuple[int, ...], Callable[[torch.Tensor], torch.Tensor]] = {}

    def forward_for(self, example: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """What runs inputs of the shape of ``example``; it has run once.

        Raises:
            Unavailable: ``torch.compile``: there is no C++ compiler or no Triton, or the
                module does not compile whole.
        """
        import torch

        shape = tuple(example.shape)
        if shape not in self._forwards:
            forward = torch.compile(_function(self._module), fullgraph=True, dynamic=False)
            try:
                with torch.inference_mode():
                    forward(example)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as e:  # the base of what TorchDynamo and Inductor raise
                raise Unavailable(
                    "torch.compile",
                    f"torch.compile failed: {_reason(e)}",
                    hint="install what it names, or run it eagerly (torch)",
                ) from e
            self._forwards[shape] = forward
        return self._forwards[shape]


def _reason(error: Exception) -> str:
    """The first line that says more than which backend raised."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return next(
        (s for s in lines if not s.endswith("raised:")), (lines or [type(error).__name__])[0]
    )


def _function(module: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that calls ``module``, with a code object of its own.

    TorchDynamo counts compilations by code object, and all modules of a process share one.
    """

    def forward(x: torch.Tensor) -> torch.Tensor:
        return module(x)

    own = forward.__code__.replace()
    return FunctionType(own, forward.__globals__, closure=forward.__closure__)


class TorchCompileRunner(TorchRunner):
    """A module on the CPU, compiled; arguments as :class:`TorchRunner`.

    Raises:
        Unavailable: in :meth:`prepare`: ``torch.compile``.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        image_shape: tuple[int, ...],
        *,
        threads: int | None = None,
    ) -> None:
        super().__init__(module, image_shape, threads=threads)
        self.backend = "pytorch-compile-cpu"
        self._compiled = _Compiled(module)

    def _describe(self, precision: str) -> dict[str, Any]:
        return super()._describe(precision) | {"compiler": _COMPILER}

    def _specialise(self) -> None:
        self._forward = self._compiled.forward_for(self._input)


class TorchCompileCudaRunner(TorchCudaRunner):
    """A copy of a module on the first GPU, compiled; arguments as :class:`TorchCudaRunner`.

    Raises:
        Unavailable: on opening, as :class:`TorchCudaRunner`; in :meth:`prepare`,
            ``torch.compile``.
    """

    _compiled: _Compiled

    def __init__(self, module: torch.nn.Module, image_shape: tuple[int, ...]) -> None:
        super().__init__(module, image_shape)
        self.backend = "pytorch-compile-cuda"

    def _forget(self) -> None:
        self.__dict__.pop("_compiled", None)
        super()._forget()

    def _describe(self, precision: str) -> dict[str, Any]:
        graph = "not used: compiled in default mode, launched kernel by kernel"
        return super()._describe(precision) | {"compiler": _COMPILER, "cuda_graph": graph}

    def _specialise(self) -> None:
        if "_compiled" not in self.__dict__:
            self._compiled = _Compiled(self._module)
        self._forward = self._compiled.forward_for(self._input)
