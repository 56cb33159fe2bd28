"""Who hears how the work goes on, and how long each phase took."""

from __future__ import annotations

__all__ = ["Listener", "Mute", "Stopwatch", "percent"]

import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol


class Listener(Protocol):
    """Who hears how the work goes on; the command line's console is one."""

    def note(self, text: str) -> None:
        """Something the user may do without."""
        ...

    def warn(self, code: str, text: str) -> None:
        """Something the user should read."""
        ...

    def progress(
        self, description: str, total: int | None = None
    ) -> AbstractContextManager[Callable[..., None]]:
        """A phase; what it yields is called once a step."""
        ...


class Mute:
    """A listener that nobody hears."""

    def note(self, text: str) -> None:
        """See :meth:`Listener.note`."""

    def warn(self, code: str, text: str) -> None:
        """See :meth:`Listener.warn`."""

    def progress(
        self,
        description: str,  # noqa: ARG002 - nobody hears it
        total: int | None = None,  # noqa: ARG002
    ) -> AbstractContextManager[Callable[..., None]]:
        """See :meth:`Listener.progress`."""
        return nullcontext(lambda *_: None)


@contextmanager
def percent(listener: Listener, phase: str) -> Generator[Callable[[float], None]]:
    """A phase whose progress is told as a part of one."""
    with listener.progress(phase, 100) as advance:
        done = 0

        def tick(part: float) -> None:
            nonlocal done
            advance(round(100 * part) - done)
            done = round(100 * part)

        yield tick


class Stopwatch:
    """Seconds by phase, each shown to the listener while it lasts."""

    def __init__(self, listener: Listener) -> None:
        self._start = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self._listener = listener

    @contextmanager
    def __call__(self, phase: str) -> Generator[Callable[..., None], None, None]:
        """Time a phase, and tell the listener of it."""
        start = time.perf_counter()
        with self._listener.progress(phase) as advance:
            yield advance
        self._seconds[phase] = time.perf_counter() - start

    def seconds(self) -> dict[str, float]:
        """Seconds of each phase so far, and the ``total`` since the work began."""
        return {**self._seconds, "total": time.perf_counter() - self._start}
