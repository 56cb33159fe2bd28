"""What TensorRT says while it works: one logger a process, messages kept for each build apart.

TensorRT registers one logger for a process: where a second is passed while an object with the
first is alive, it warns and goes on with the first. So there is one here for each TensorRT
module, whose messages go to whoever is collecting. It never raises: TensorRT swallows an
exception that leaves a logger, KeyboardInterrupt too.
"""

from __future__ import annotations

__all__ = ["Log", "collected", "logger"]

import contextlib
import functools
import threading
from collections.abc import Generator
from types import ModuleType
from typing import Any

# How TensorRT's errors say that memory was short, the third on a GPU without much left.
_MEMORY = (
    "out of memory",
    "outofmemory",
    "could not find any implementation",
    "within workspace limit",
)
# ILogger.Severity: INTERNAL_ERROR 0, ERROR 1, WARNING 2, INFO 3, VERBOSE 4.
_ERROR, _WARNING = 1, 2


class Log:
    """The messages of one build that matter afterwards.

    Attributes:
        errors: messages of severity ERROR and INTERNAL_ERROR, oldest first.
        warnings: messages of severity WARNING, oldest first.
        kernel_lists: the VERBOSE messages that list the kernels of what was built.
        failure: an exception raised while a message was taken in; it is the caller's to raise.
    """

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.kernel_lists: list[str] = []
        self.failure: BaseException | None = None

    def add(self, severity: Any, text: str) -> None:
        """Take in a message; of the megabytes that a build says, what is used is kept."""
        try:
            level = int(severity)
            if level <= _ERROR:
                self.errors.append(text)
            elif level == _WARNING:
                self.warnings.append(text)
            elif "LayerType: " in text:
                self.kernel_lists.append(text)
        except BaseException as e:  # noqa: BLE001 - TensorRT would swallow it; see the module
            self.failure = self.failure or e

    def last_error(self) -> str:
        """The last error that was logged, or a sentence that says there was none."""
        return self.errors[-1].strip() if self.errors else "it logged no error"

    def reason(self, cause: BaseException | None) -> str:
        """Why something was not made: the last error, or what the bindings raised."""
        return str(cause) if cause is not None and not self.errors else self.last_error()

    def short_of_memory(self, cause: BaseException | None = None) -> bool:
        """Whether an error, or what the bindings raised, says that memory was short."""
        texts = [text.lower() for text in (*self.errors, str(cause or ""))]
        return any(word in text for text in texts for word in _MEMORY)


class _Hub:
    """The logger of one TensorRT module, and who is listening to it."""

    def __init__(self, trt: Any) -> None:
        listening: list[Log] = []

        class Logger(trt.ILogger):
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, msg: str) -> None:
                for log in listening:
                    log.add(severity, msg)

        self.listening = listening
        self.logger = Logger()
        self.lock = threading.RLock()


@functools.cache
def _hub(trt: ModuleType) -> _Hub:
    return _Hub(trt)


def logger(trt: ModuleType) -> Any:
    """The ``trt.ILogger`` of this process, for every Builder, OnnxParser and Runtime."""
    return _hub(trt).logger


@contextlib.contextmanager
def collected(trt: ModuleType) -> Generator[Log]:
    """Collect the messages of the block; blocks of other threads wait, so nothing mixes."""
    hub = _hub(trt)
    with hub.lock:
        log = Log()
        hub.listening.append(log)
        try:
            yield log
        finally:
            hub.listening.remove(log)
