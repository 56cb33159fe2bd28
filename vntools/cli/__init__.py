"""The command line: ``vntools COMMAND``, one file of this package per command.

A file ``build_engine.py`` holds a click command named ``command``; ``vntools build-engine``
runs it. Files whose names begin with an underscore are no commands. A command file imports
nothing heavy at its top, so that ``vntools --help`` stays quick. Errors end in one place,
here: one line on standard error and the exit status of the error's class.
"""

from __future__ import annotations

__all__ = ["main", "vntools"]

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
from collections.abc import Sequence
from types import FrameType
from typing import Any, NoReturn

import click

import vntools as package
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

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_received: list[int] = []  # those of them that came


@functools.cache
def _command_names() -> tuple[str, ...]:
    """Names of the commands, from the names of the files."""
    files = (m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    return tuple(sorted(name.replace("_", "-") for name in files))


@functools.cache
def _load(name: str) -> click.Command:
    """Import the file of a command; the command also takes --quiet and --debug."""
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
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
        return IoFault("io", os.strerror(caught.errno) if caught.errno else str(caught))
    if isinstance(caught, ModuleNotFoundError) and not (caught.name or "").startswith(
        "vntools"
    ):
        return Unavailable(
            "dependency.missing", f"no module {caught.name}", hint=pip_line(None)
        )
    kind = f"{type(caught).__name__}: {caught}".rstrip(": ")
    return InternalFault("internal", kind, hint="rerun with --debug and report")


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


def _on_signal(signum: int, _frame: FrameType | None) -> NoReturn:
    """End the work in the main thread; the same signal again ends the process at once."""
    signal.signal(signum, signal.SIG_DFL)
    _received.append(signum)
    raise KeyboardInterrupt(signum)


def main() -> NoReturn:
    """The console script ``vntools``."""
    _open_standard_fds()
    for signum in _SIGNALS:
        if signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, _on_signal)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    # A large graph is some million objects; to look through them all again and again for
    # cycles takes as long as the work. What is large and done with is collected by name.
    gc.set_threshold(200_000, 50, 50)
    status = 70
    try:
        vntools.main()
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else int(e.code is not None)
    finally:
        # Taking torch's caches apart object by object takes a second, and nothing is left to
        # do.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)
