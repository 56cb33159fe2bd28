"""The group of all commands, and the one place where their errors end.

An error is one line on standard error and the exit status of its class; with ``--json`` it is
in the document too. What a signal raises is taken here as any other error.
"""

from __future__ import annotations

__all__ = ["end_with", "run", "vntools"]

import contextlib
import copy
import difflib
import errno
import functools
import gc
import importlib
import os
import pkgutil
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence, Set
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click

import vntools as package
from vntools import cli
from vntools.base.errors import (
    InternalFault,
    Interrupted,
    IoFault,
    TryLater,
    Unavailable,
    UsageFault,
    VntoolsError,
    from_os_error,
    printable,
)
from vntools.base.optional import pip_line
from vntools.cli._shared import Console, quiet_and_debug

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

_AGAIN_S = 0.01
_received: list[int] = []  # the signal that came


@functools.cache
def _command_names() -> tuple[str, ...]:
    """Names of the commands, from the names of the files."""
    files = (m.name for m in pkgutil.iter_modules(cli.__path__) if not m.name.startswith("_"))
    return tuple(sorted(name.replace("_", "-") for name in files))


@functools.cache
def _load(name: str) -> click.Command:
    """Import the file of a command; the command also takes --quiet and --debug."""
    module = importlib.import_module(f"{cli.__name__}.{name.replace('-', '_')}")
    command: click.Command = copy.copy(module.command)
    command.name = name
    command.params = [*command.params, *quiet_and_debug()]
    return command


class _Commands(click.Group):
    """A group whose commands are the files of this package, imported when asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Names of all commands."""
        return list(_command_names())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The command of a name, its file imported."""
        return _load(cmd_name) if cmd_name in _command_names() else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with the closest name where there is no such command."""
        name = args[0]
        if name not in _command_names() and not name.startswith("-"):
            near = difflib.get_close_matches(name, _command_names(), n=1, cutoff=0.5)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise click.UsageError(f"no such command {name!r}{meant}", ctx=ctx)
        return super().resolve_command(ctx, args)

    def main(self, args: Sequence[str] | None = None, *_: Any, **extra: Any) -> NoReturn:
        """Run one command and exit; every error that leaves a command is reported here.

        Of click's arguments, ``args`` (the words after ``vntools``) and ``obj`` (a Console)
        count.
        """
        words = list(sys.argv[1:] if args is None else args)
        console: Console = extra.get("obj") or Console()
        where = "vntools"
        try:
            try:
                with self.make_context("vntools", list(words), obj=console) as ctx:
                    try:
                        self.invoke(ctx)
                    finally:
                        where = " ".join(("vntools", ctx.invoked_subcommand or "")).rstrip()
                _hear_no_more()
                if console.json:
                    click.echo(console.document())
                status = 0
            except click.exceptions.Exit as e:
                status = e.exit_code
            sys.stdout.flush()
        except SystemExit:
            raise
        except BaseException as e:  # noqa: BLE001 - a user never sees a traceback unasked
            console.json |= isinstance(e, click.UsageError) and "--json" in words
            status = _report(e, console, where)
        sys.exit(status)


def _report(caught: BaseException, console: Console, where: str) -> int:
    """Print what went wrong, in one line, and return the exit status it has."""
    _hear_no_more()
    if console.debug:
        traceback.print_exception(caught)
    if isinstance(caught, BrokenPipeError):
        _discard_stdout()
        return 128 + signal.SIGPIPE
    if isinstance(caught, click.exceptions.NoArgsIsHelpError):
        click.echo(caught.format_message(), err=True)
        return UsageFault.exit_status
    # A library may have made an error of its own of what the signal raised in it.
    error = Interrupted(_received[0]) if _received else _understood(caught, where)
    with contextlib.suppress(OSError):
        click.echo(f"{where}: error[{printable(error.code)}]: {error.line()}", err=True)
    try:
        if console.json:
            click.echo(console.document(error))
        sys.stdout.flush()
    except OSError:
        _discard_stdout()
    return error.exit_status


def _understood(caught: BaseException, where: str) -> VntoolsError:
    """The error of our tree that an exception amounts to."""
    if isinstance(caught, VntoolsError):
        return caught
    if isinstance(caught, click.ClickException):
        message = " ".join(caught.format_message().split()).rstrip(".")
        return UsageFault("usage", message, hint=f"see {where} --help")
    if isinstance(caught, KeyboardInterrupt):
        signum = caught.args[0] if caught.args else signal.SIGINT
        return Interrupted(signum if isinstance(signum, int) else signal.SIGINT)
    if isinstance(caught, click.Abort):
        return Interrupted(signal.SIGINT)
    if isinstance(caught, MemoryError) or getattr(caught, "errno", None) == errno.ENOMEM:
        return TryLater(
            "host.memory", "out of memory", hint="close other programs and try again"
        )
    if isinstance(caught, OSError):
        if isinstance(caught.filename, (str, bytes, os.PathLike)):
            return from_os_error(caught, os.fsdecode(caught.filename), writing=False)
        why = os.strerror(caught.errno) if caught.errno else str(caught)
        return IoFault("stdout", why) if _printing(caught) else IoFault("io", why)
    if isinstance(caught, ModuleNotFoundError) and not (caught.name or "").startswith(
        "vntools"
    ):
        return Unavailable(
            "dependency.missing", f"no module {caught.name}", hint=pip_line(None)
        )
    kind = f"{type(caught).__name__}: {caught}".rstrip(": ")
    return InternalFault("internal", kind, hint="rerun with --debug and report")


def _printing(caught: BaseException) -> bool:
    """Whether it came out of click.echo; what is printed to standard error raises nothing."""
    frames = (frame for frame, _ in traceback.walk_tb(caught.__traceback__))
    return any(frame.f_code is click.echo.__code__ for frame in frames)


def _discard_stdout() -> None:
    """Point standard output at /dev/null, so that what is buffered fails no second time."""
    if sys.stdout is sys.__stdout__:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


@click.group(
    name="vntools",
    cls=_Commands,
    params=quiet_and_debug(),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package.__version__, message="vntools %(version)s")
def vntools() -> None:
    """From a VanillaNet checkpoint to a merged, verified ONNX graph and a TensorRT plan."""


def _on_signal(signum: int, _frame: FrameType | None) -> NoReturn:
    """End the work in the main thread; who waits for this process knows of later signals."""
    _hear_no_more()
    _received.append(signum)
    raise KeyboardInterrupt(signum)


def _on_alarm(_signum: int, _frame: FrameType | None) -> NoReturn:
    """End the work; the first time it was in code that drops what is raised."""
    raise KeyboardInterrupt(_received[0])


def _hear_no_more() -> None:
    """Ignore signals from now on, in the console script's process."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) is _on_signal:
            signal.signal(signum, signal.SIG_IGN)


def _on_unraisable(dropped: UnraisableHookArgs) -> None:
    """An exception was raised where Python drops it, such as in a ``__del__``."""
    if _received and dropped.exc_type is KeyboardInterrupt:
        signal.signal(signal.SIGALRM, _on_alarm)
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
    elif os.environ.get("VNTOOLS_DEBUG"):
        sys.__unraisablehook__(dropped)


def run(heard: Set[int], mask: Set[int]) -> NoReturn:
    """Run the words on the command line and end this process, which does nothing else.

    Args:
        heard: signals that end the work.
        mask: of signals, for the work; until now those of ``heard`` are blocked.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    # A large graph is some million objects; to look through them all again and again for
    # cycles takes as long as the work. What is large and done with is collected by name.
    gc.set_threshold(200_000, 50, 50)
    sys.unraisablehook = _on_unraisable
    console, status = Console(), 70
    try:
        try:
            for signum in heard:
                signal.signal(signum, _on_signal)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            vntools.main(obj=console)
        except KeyboardInterrupt as e:  # before the command or after it
            status = _report(e, console, "vntools")
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else int(e.code is not None)
    finally:
        _leave(status)


def end_with(error: VntoolsError) -> NoReturn:
    """Report an error that the command on the command line cannot report, and end."""
    words, console = sys.argv[1:], Console()
    console.json = "--json" in words
    named = [word for word in words if word in _command_names()]
    _leave(_report(error, console, " ".join(("vntools", *named[:1]))))


def _leave(status: int) -> NoReturn:
    """End this process at once.

    Taking torch's caches apart object by object takes a second, and nothing is left to do.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)
