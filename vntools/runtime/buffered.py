"""Runners whose inputs and outputs lie in GPU memory that we own."""

from __future__ import annotations

__all__ = ["BufferedRunner", "Buffers"]

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vntools.runtime.base import Runner, check_feeds
from vntools.runtime.cuda import Cuda


class Buffers:
    """The inputs and outputs of one artifact at one set of shapes: page-locked and on the GPU.

    Args:
        cuda: where they lie; must outlive them.
        inputs: arrays by name; their values are the first to be uploaded.
        outputs: shape and type of each output by name.

    Attributes:
        addresses: device address by name.
    """

    def __init__(
        self,
        cuda: Cuda,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]],
    ) -> None:
        self._cuda = cuda
        self._inputs: dict[str, tuple[NDArray[Any], Any]] = {}
        self._outputs: dict[str, tuple[NDArray[Any], Any]] = {}
        try:
            for name, array in inputs.items():
                self._inputs[name] = cuda.allocate(array.shape, array.dtype)
            for name, (shape, dtype) in outputs.items():
                self._outputs[name] = cuda.allocate(shape, dtype)
        except BaseException:
            self.free()
            raise
        pairs = self._inputs | self._outputs
        self.addresses = {name: int(device) for name, (_, device) in pairs.items()}
        self.fill(inputs)

    def fill(self, inputs: Mapping[str, NDArray[Any]]) -> bool:
        """Take over the values of ``inputs`` on the host; False where their shapes differ."""
        if any(a.shape != self._inputs[n][0].shape for n, a in inputs.items()):
            return False
        for name, array in inputs.items():
            np.copyto(self._inputs[name][0], array)
        return True

    def upload(self) -> None:
        """Enqueue the copies of all inputs."""
        for host, device in self._inputs.values():
            self._cuda.upload(device, host)

    def download(self) -> None:
        """Enqueue the copies of all outputs."""
        for host, device in self._outputs.values():
            self._cuda.download(host, device)

    def results(self) -> dict[str, NDArray[Any]]:
        """Copies of the outputs on the host."""
        return {name: np.array(host) for name, (host, _) in self._outputs.items()}

    def free(self) -> None:
        """Give the memory back."""
        for _, device in (self._inputs | self._outputs).values():
            device.free()
        self._inputs, self._outputs = {}, {}


class BufferedRunner(Runner):
    """A runner that enqueues into one CUDA stream, from and to :class:`Buffers`."""

    _cuda: Cuda
    _buffers: Buffers | None

    def _open_cuda(self, stack: ExitStack) -> None:
        """Make the GPU ready; ``stack`` frees the memory and then the context."""
        self._cuda = stack.enter_context(Cuda())
        self._buffers = None
        self.clock = self._cuda.clock
        stack.callback(self._release)

    def _release(self) -> None:
        """Free what belongs to one set of shapes."""
        if self._buffers is not None:
            self._buffers.free()
            self._buffers = None

    @abstractmethod
    def _bind(self, arrays: dict[str, NDArray[Any]]) -> Buffers:
        """Take memory for these inputs and their outputs, and tell the backend where it is."""

    def _warm(self) -> None:
        """What happens once per shape when everything is bound and uploaded: the first run."""
        self.enqueue()

    def prepare(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """See :meth:`Runner.prepare`."""
        arrays = check_feeds(self.inputs, feeds)
        if self._buffers is not None and self._buffers.fill(arrays):
            self.upload()
            return
        self._release()
        self._buffers = self._bind(arrays)
        self.upload()
        self._warm()
        self.synchronize()

    def upload(self) -> None:
        """See :meth:`Runner.upload`."""
        if self._buffers is not None:
            self._buffers.upload()

    def download(self) -> None:
        """See :meth:`Runner.download`."""
        if self._buffers is not None:
            self._buffers.download()

    def synchronize(self) -> None:
        """See :meth:`Runner.synchronize`."""
        self._cuda.synchronize()

    def results(self) -> dict[str, NDArray[Any]]:
        """See :meth:`Runner.results`."""
        return {} if self._buffers is None else self._buffers.results()
