"""A runner whose times are written beforehand, on a CPU or on a GPU that is not there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import cycle
from types import TracebackType
from typing import Any, Self

import numpy as np
import pytest

from vntools.runtime.base import MARKS, ORIGIN, Runner, TensorSpec, check_feeds


class ScriptedClock:
    """Marks as the number of the query they stand in; times are looked up, not measured."""

    def __init__(self, runner: ScriptedRunner, *, on_gpu: bool) -> None:
        self.on_gpu = on_gpu
        self.spin = True
        self.waits: list[int] = []
        self._runner = runner
        self._query = [-1] * MARKS

    def mark(self, slot: int) -> None:
        self._query[slot] = self._runner.enqueued
        self._runner.calls.append(f"mark {slot}")

    def wait(self, slot: int) -> None:
        self.waits.append(slot)
        self._runner.calls.append(f"wait {slot}")

    def elapsed_ms(self, start: int, end: int) -> float:
        if start == ORIGIN:  # as if every query waited for the one before
            done = self._query[end] - self._query[ORIGIN]
            return sum(self._runner.compute_ms[self._query[ORIGIN] :][:done])
        part = {(0, 1): "h2d", (1, 2): "compute", (2, 3): "d2h"}[start % 4, end % 4]
        assert start // 4 == end // 4
        query = self._query[end] if part == "h2d" else self._query[end] - 1
        return self._runner.time_ms(part, query)


class ScriptedRunner(Runner):
    """Gives scripted times of queries, and ``value`` as every output."""

    def __init__(
        self,
        compute_ms: Iterator[float] | list[float],
        *,
        on_gpu: bool = False,
        h2d_ms: float = 0.0,
        d2h_ms: float = 0.0,
        value: float = 1.0,
        name: str = "scripted",
        log: list[str] | None = None,
        **details: Any,
    ) -> None:
        self.backend = name
        self.details = {"version": "1.0", "precision": "float32", **details}
        self.inputs = (TensorSpec("input", ("batch", 3), "float32"),)
        self.outputs = (TensorSpec("logits", ("batch", 2), "float32"),)
        self.clock = ScriptedClock(self, on_gpu=on_gpu)
        self.calls: list[str] = []
        self.enqueued = 0
        self._script = cycle(compute_ms) if isinstance(compute_ms, list) else compute_ms
        self.compute_ms: list[float] = []
        self._transfer_ms = {"h2d": h2d_ms, "d2h": d2h_ms}
        self._value = value
        self._log: list[str] = [] if log is None else log
        self._batch = 0

    def time_ms(self, part: str, query: int) -> float:
        return self.compute_ms[query] if part == "compute" else self._transfer_ms[part]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def prepare(self, feeds: Mapping[str, np.ndarray]) -> None:
        self._batch = len(check_feeds(self.inputs, feeds)["input"])

    def upload(self) -> None:
        self.calls.append("upload")

    def enqueue(self) -> None:
        self.calls.append("enqueue")
        self._log.append(self.backend)
        self.compute_ms.append(next(self._script))
        self.enqueued += 1

    def download(self) -> None:
        self.calls.append("download")

    def synchronize(self) -> None: ...

    def results(self) -> dict[str, np.ndarray]:
        return {"logits": np.full((self._batch, 2), self._value, np.float32)}


@pytest.fixture
def scripted() -> Callable[..., ScriptedRunner]:
    return ScriptedRunner
