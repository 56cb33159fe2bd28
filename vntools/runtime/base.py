"""What every runner is: a context manager over one artifact, checked at both ends.

A runner is opened by ``with``, owns the memory it works in until the block ends, and never
falls back to another backend than the one it was asked for. Beside :meth:`Runner.run` it has
the hooks that timing needs: prepare, upload, enqueue, download, synchronize, a clock of marks.
"""

from __future__ import annotations

__all__ = [
    "MARKS",
    "ORIGIN",
    "Clock",
    "HostClock",
    "Runner",
    "TensorSpec",
    "check_feeds",
    "check_outputs",
]

import time
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from vntools.base.errors import (
    CheckFailed,
    DataFault,
    InternalFault,
    UsageFault,
    first_three,
)

ORIGIN = 8
"""The mark that a run of queries begins with, and that their times are counted from."""

MARKS = 9
"""Marks of a clock: four for each of the two queries that may be under way, and the origin."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and type of one input or output.

    Attributes:
        name: as the artifact names it.
        shape: extents; a name such as ``batch`` stands for an extent chosen at run time.
        dtype: as numpy spells it, ``float32``.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} {'x'.join(map(str, self.shape)) or 'scalar'}"


class Clock(Protocol):
    """Marks set in the work of a runner, and the time between two of them."""

    on_gpu: bool
    """Whether marks are events on a GPU; otherwise they are readings of the host's clock."""

    spin: bool
    """Whether a wait asks again and again; otherwise the thread sleeps until it is woken."""

    def mark(self, slot: int) -> None:
        """Set mark ``slot`` (0 to ``MARKS`` - 1) behind the work enqueued so far."""
        ...

    def wait(self, slot: int) -> None:
        """Return once the work before mark ``slot`` has ended; see ``spin``."""
        ...

    def elapsed_ms(self, start: int, end: int) -> float:
        """Milliseconds from mark ``start`` to mark ``end``, both waited for."""
        ...


class HostClock:
    """The host's monotonic clock, for runners whose enqueue returns when the work is done."""

    on_gpu = False
    spin = True

    def __init__(self) -> None:
        self._stamps_ns = [0] * MARKS

    def mark(self, slot: int) -> None:
        """Note the time."""
        self._stamps_ns[slot] = time.perf_counter_ns()

    def wait(self, slot: int) -> None:
        """Nothing is under way when this clock is read."""

    def elapsed_ms(self, start: int, end: int) -> float:
        """Milliseconds between two marks."""
        return (self._stamps_ns[end] - self._stamps_ns[start]) * 1e-6  # ns -> ms


class Runner(Protocol):
    """One artifact, opened on one backend.

    Attributes:
        backend: what runs it, such as ``onnxruntime-cpu`` or ``tensorrt``.
        details: how it runs: version, precision, threads, providers really used, CUDA graph
            captured or why not, GPU, SHA-256 of the artifact; JSON-ready.
        inputs: what :meth:`run` takes.
        outputs: what :meth:`run` gives.
        clock: marks for timing.
    """

    backend: str
    details: dict[str, Any]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    clock: Clock

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    @abstractmethod
    def prepare(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """Check ``feeds``, take memory for their shapes, bring them where the work is done.

        What happens once per shape happens here: allocation, the first run on a GPU, capture.
        The caller may change ``feeds`` afterwards.

        Raises:
            DataFault: ``feeds.*``; see :func:`check_feeds`.
        """

    @abstractmethod
    def upload(self) -> None:
        """Enqueue the copies of the inputs to the GPU; nothing on a CPU."""

    @abstractmethod
    def enqueue(self) -> None:
        """Start one query on the prepared inputs; on a CPU it has ended on return."""

    @abstractmethod
    def download(self) -> None:
        """Enqueue the copies of the outputs to the host; nothing on a CPU."""

    @abstractmethod
    def synchronize(self) -> None:
        """Return when everything enqueued has ended."""

    @abstractmethod
    def results(self) -> dict[str, NDArray[Any]]:
        """Copies of the outputs last downloaded."""

    def sibling(self) -> Runner:
        """A second runner over what this open one has loaded, with memory of its own.

        It is open, may run at the same time, and must be closed first.

        Raises:
            UsageFault: ``bench.streams``: the backend runs one query at a time.
        """
        raise UsageFault(
            "bench.streams",
            f"{self.backend} has one stream",
            hint="plans, and ONNX Runtime on a CPU, have more",
        )

    def profile(self, queries: int) -> dict[str, list[float]]:
        """Milliseconds of each layer in each of some prepared queries, run one by one.

        Raises:
            UsageFault: ``bench.profile``: the backend does not time its layers.
        """
        del queries
        raise UsageFault(
            "bench.profile", f"{self.backend} does not time its layers", hint="measure a plan"
        )

    def layer_info(self) -> str:
        """What the engine inspector says of the layers, as JSON.

        Raises:
            UsageFault: ``bench.layer_info``: the backend has no inspector.
        """
        raise UsageFault(
            "bench.layer_info",
            f"{self.backend} has no engine inspector",
            hint="measure a plan",
        )

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """All outputs for ``feeds``: copies, of the specified types and shapes, and finite.

        Raises:
            DataFault: ``feeds.*``: an input is missing, unknown, of another type or shape.
            CheckFailed: ``verify.nonfinite``: an output holds NaN or infinity.
            InternalFault: ``runner.outputs``: the backend broke its own specification.
        """
        self.prepare(feeds)
        self.enqueue()
        self.download()
        self.synchronize()
        outputs = self.results()
        check_outputs(self.outputs, outputs)
        return outputs


def _extents(specs: Sequence[TensorSpec]) -> str:
    return first_three(map(str, specs))


def _mismatch(spec: TensorSpec, shape: tuple[int, ...], dynamic: dict[str, int]) -> str | None:
    """Why ``shape`` is not one of ``spec``, or None; ``dynamic`` collects named extents."""
    if len(shape) != len(spec.shape):
        return f"has {len(shape)} axes"
    for extent, wanted in zip(shape, spec.shape, strict=True):
        if isinstance(wanted, int) and extent != wanted:
            return f"has shape {'x'.join(map(str, shape))}"
        if isinstance(wanted, str) and (
            extent < 1 or dynamic.setdefault(wanted, extent) != extent
        ):
            return f"has {wanted} = {extent}"
    return None


def check_feeds(
    specs: Sequence[TensorSpec], feeds: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """``feeds`` in the order of ``specs``, as contiguous arrays; nothing is converted.

    Raises:
        DataFault: ``feeds.names``, ``feeds.dtype`` or ``feeds.shape``.
    """
    names = [s.name for s in specs]
    wrong = _differences(names, feeds)
    if wrong:
        raise DataFault("feeds.names", wrong, hint=f"the inputs are {_extents(specs)}")
    dynamic: dict[str, int] = {}
    for spec in specs:
        array = feeds[spec.name]
        if str(array.dtype) != spec.dtype:
            raise DataFault(
                "feeds.dtype",
                f"input {spec.name!r} is {array.dtype}, not {spec.dtype}",
                hint=f"convert it with .astype({spec.dtype!r})",
            )
        if why := _mismatch(spec, array.shape, dynamic):
            raise DataFault(
                "feeds.shape", f"input {spec.name!r} {why}", hint=f"it must be {spec}"
            )
    return {name: np.ascontiguousarray(feeds[name]) for name in names}


def _differences(expected: Iterable[str], found: Iterable[str]) -> str:
    """Which names of ``expected`` are missing from ``found``, and which are unknown."""
    expected, found = list(expected), list(found)
    missing = [n for n in expected if n not in found]
    unknown = [n for n in found if n not in expected]
    parts = [f"missing {first_three(missing)}"] if missing else []
    return ", ".join(parts + ([f"unknown {first_three(unknown)}"] if unknown else []))


def check_outputs(specs: Sequence[TensorSpec], outputs: Mapping[str, NDArray[Any]]) -> None:
    """Hold the outputs of a backend against its specification, and against NaN and infinity.

    Raises:
        CheckFailed: ``verify.nonfinite``, with the count and the first place.
        InternalFault: ``runner.outputs``.
    """
    wrong = _differences([s.name for s in specs], outputs)
    if wrong:
        raise InternalFault("runner.outputs", f"outputs: {wrong}")
    dynamic: dict[str, int] = {}
    for spec in specs:
        array = outputs[spec.name]
        why = _mismatch(spec, array.shape, dynamic)
        if why or str(array.dtype) != spec.dtype or not array.size:
            found = TensorSpec(spec.name, array.shape, str(array.dtype))
            raise InternalFault("runner.outputs", f"output {found} came where {spec} was due")
        if np.issubdtype(array.dtype, np.inexact):
            finite = np.isfinite(array)
            if not finite.all():
                first = ",".join(map(str, np.argwhere(~finite)[0]))
                bad = array.size - int(np.count_nonzero(finite))
                raise CheckFailed(
                    "verify.nonfinite",
                    f"{bad} of {array.size} values of output {spec.name!r} are NaN or "
                    f"infinite, the first at [{first}]",
                    hint="check the weights and the precision",
                )
