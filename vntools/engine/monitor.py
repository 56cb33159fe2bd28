"""Progress out of a build and the wish to end it in, with no exception crossing TensorRT.

TensorRT swallows what is raised in its callbacks, and Python runs signal handlers in the main
thread between any two bytecodes, so a Ctrl-C that lands in a callback would be lost even
before its first line. A build therefore runs in a thread of its own: handlers run in the main
thread, which only waits. What they raise, what a progress callback raises and what
``cancelled`` says are remembered; the progress monitor turns each into a cancelled build; they
are raised when the build has ended.
"""

from __future__ import annotations

__all__ = ["Watch", "progress_monitor", "supervised"]

import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

from vntools.base.errors import Interrupted

T = TypeVar("T")


class Watch:
    """What the callbacks of one build share; safe to call from any thread.

    Args:
        progress: called with a phase, the steps done and the steps in all: once with 0 when a
            phase begins, after every step, and with all steps when it ends. Phases nest.
        cancelled: the number of the signal that asks for the end, or 0.
    """

    def __init__(
        self,
        progress: Callable[[str, int, int], None] | None = None,
        cancelled: Callable[[], int] | None = None,
    ) -> None:
        self._progress = progress
        self._cancelled = cancelled
        self._steps: dict[str, int] = {}
        self._lock = threading.Lock()
        self.failure: BaseException | None = None
        self.signum = 0

    def fail(self, error: BaseException) -> None:
        """Remember the first exception; the build ends at its next step."""
        self.failure = self.failure or error

    def report(self, phase: str, done: int, total: int | None = None) -> bool:
        """A step of a phase is done (``total`` is given when the phase begins); go on?"""
        try:
            with self._lock:
                if total is not None:
                    self._steps[phase] = total
                if self._progress is not None and not self._ended():
                    self._progress(phase, done, self._steps.get(phase, done))
            return not self._ended()
        except BaseException as e:  # noqa: BLE001 - TensorRT would swallow it; see the module
            self.fail(e)
            return False

    def finish(self, phase: str) -> None:
        """A phase has ended, perhaps before all its steps were reported."""
        self.report(phase, self._steps.get(phase, 0))

    def check(self) -> None:
        """Raise what was remembered.

        Raises:
            BaseException: what a callback or a signal handler raised.
            Interrupted: ``cancelled`` named a signal.
        """
        if self.failure is not None:
            raise self.failure
        if self._ended():
            raise Interrupted(self.signum)

    def _ended(self) -> bool:
        if self.failure is None and self.signum == 0 and self._cancelled is not None:
            self.signum = int(self._cancelled())
        return self.failure is not None or self.signum != 0


def progress_monitor(trt: ModuleType, watch: Watch) -> Any:
    """An ``IProgressMonitor`` that reports to ``watch`` and cancels the build when it says so.

    Source: TensorRT Python API, IProgressMonitor: False from step_complete ends the build.
    """
    base: Any = trt.IProgressMonitor

    class Monitor(base):
        def __init__(self) -> None:
            base.__init__(self)

        def phase_start(
            self, phase_name: str, _parent_phase: str | None, num_steps: int
        ) -> None:
            watch.report(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return watch.report(phase_name, step + 1)

        def phase_finish(self, phase_name: str) -> None:
            watch.finish(phase_name)

    return Monitor()


def supervised(work: Callable[[], T], watch: Watch) -> T:
    """The result of ``work``, done in a thread while this one waits and takes signals.

    Raises:
        BaseException: as :meth:`Watch.check`, else what ``work`` raised.
    """
    ended = threading.Event()
    results: list[T] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as e:  # noqa: BLE001 - it is raised below, in the caller's thread
            watch.fail(e)
        finally:
            ended.set()

    thread = threading.Thread(target=run, name="vntools-build")
    try:
        thread.start()
        _wait(ended, watch)
    except BaseException as e:  # noqa: BLE001 - from between two statements; raised below
        watch.fail(e)
        if thread.ident is not None:
            _wait(ended, watch)
    watch.check()
    return results[0]


def _wait(ended: threading.Event, watch: Watch) -> None:
    """Wait for the end of the build, whatever signal handlers raise meanwhile."""
    while not ended.is_set():
        try:
            ended.wait()
        except BaseException as e:  # noqa: BLE001 - it is raised once the build has ended
            watch.fail(e)
