"""The console script is two processes: one works, one waits for it and minds signals.

Native code may keep Python's signal handlers from running, crash, or be killed for want of
memory. The process that waits is forked off before anything is imported and does nothing of
that kind, so whatever happens there is an exit status of the table and one line of text. A
signal to it goes on to the worker; where that is not gone in time, or the user asks again, it
is killed. The worker dies with the one that waits.
"""

from __future__ import annotations

__all__ = ["supervise"]

import os
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Set
    from typing import NoReturn

    from vntools.base.errors import VntoolsError

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_GRACE_S = 5.0  # that the worker has from the first signal on
_ONE_S = 0.2  # in which signals are one: a shell, timeout and a terminal send it twice
_IDLE_S = 3600.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def supervise() -> NoReturn:
    """Run the command line in a process of its own, and end as it does."""
    _open_standard_fds()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    heard = {s for s in _SIGNALS if signal.getsignal(s) != signal.SIG_IGN}
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would take the status along
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, heard | {signal.SIGCHLD})
    parent = os.getpid()
    try:
        worker = os.fork()
    except OSError as e:
        from vntools.base.errors import TryLater

        what = f"cannot start a process: {e.strerror}"
        _end_with(TryLater("worker.start", what, hint="end others and try again"), heard)
    if worker == 0:
        _die_with(parent)
        from vntools.cli._commands import run

        run(heard, mask)
    status, signum = _wait(worker, heard)
    if status >= 0:
        os._exit(status)
    _end_with(_died(-status, signum), heard)


def _open_standard_fds() -> None:
    """Open closed descriptors 0 to 2 on /dev/null.

    Otherwise the next file opened gets number 1 or 2, and what native code prints lands in it.
    """
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(fd, mode, closefd=False))  # noqa: SIM115


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however that comes."""
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent:  # it ended before the call
        os._exit(128 + signal.SIGKILL)


def _wait(worker: int, heard: Set[int]) -> tuple[int, int]:
    """Wait for the worker to end, with signals passed on.

    Returns:
        Its exit status, or less its signal, and the first signal that came here, or 0.
    """
    first, since_s = 0, 0.0
    while True:
        left_s = max(since_s + _GRACE_S - time.monotonic(), 0.0) if first else _IDLE_S
        came = signal.sigtimedwait(heard | {signal.SIGCHLD}, left_s)
        ended, status = os.waitpid(worker, os.WNOHANG)
        if ended:
            break
        signum = came.si_signo if came is not None else 0
        if signum in heard and not first:
            first, since_s = signum, time.monotonic()
            os.kill(worker, signum)
        elif first and signum != signal.SIGCHLD:
            waited_s = time.monotonic() - since_s
            if waited_s >= (_ONE_S if signum else _GRACE_S):
                os.kill(worker, signal.SIGKILL)
                _, status = os.waitpid(worker, 0)
                break
    return os.waitstatus_to_exitcode(status), first


def _died(signum: int, asked: int) -> VntoolsError:
    """The error that the death of the worker by a signal means.

    Args:
        signum: what it died of.
        asked: the signal that asked for the end, or 0.
    """
    from vntools.base.errors import InternalFault, Interrupted, TryLater

    if asked or signum in _SIGNALS:
        return Interrupted(asked or signum)
    if signum == signal.SIGKILL:
        return TryLater(
            "worker.killed",
            "the system killed it (signal 9), most likely for want of memory",
            hint="close other programs, or take a smaller batch",
        )
    return InternalFault(
        "worker.crash",
        f"TensorRT or another native library crashed (signal {signum})",
        hint="run vntools doctor and report",
    )


def _end_with(error: VntoolsError, heard: Set[int]) -> NoReturn:
    """Report the error for the worker and end; a signal ends even that."""
    for signum in heard:
        signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, heard)
    from vntools.cli._commands import end_with

    end_with(error)
