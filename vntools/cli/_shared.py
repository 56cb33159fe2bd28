"""What every command is given: notes, warnings, results, progress, and the ``--json`` option.

A command takes the console as ``ctx.obj``::

    @click.command()
    @json_option
    @click.pass_obj
    def command(console: Console) -> None:
        '''One line of help.'''
        with console.progress("exporting", total=2) as advance:
            ...
            advance()
        console.result({"seconds": 1.2}, "exported in 1.2 s")

Results go to standard output, everything else to standard error.
"""

from __future__ import annotations

__all__ = ["Advance", "Console", "json_option", "quiet_and_debug"]

import contextlib
import json
import sys
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

from vntools.base.errors import VntoolsError, printable

if TYPE_CHECKING:
    from rich.progress import Progress

_F = TypeVar("_F", bound=Callable[..., Any])


class Advance(Protocol):
    """What :meth:`Console.progress` yields: call it as the work goes on."""

    def __call__(self, n: int = 1, total: int | None = None) -> None:
        """Move the bar by ``n`` steps, of ``total`` where that is known only now."""
        ...


class Console:
    """How a command talks: ``ctx.obj`` of every command.

    Attributes:
        quiet: no notes and no progress (``--quiet``).
        debug: tracebacks and library text on errors (``--debug`` or VNTOOLS_DEBUG=1).
        json: one JSON document on standard output in place of text (``--json``).
    """

    def __init__(self) -> None:
        self.quiet = False
        self.debug = False
        self.json = False
        self._warnings: list[dict[str, str]] = []
        self._record: dict[str, Any] = {}
        self._bar: Progress | None = None

    def note(self, text: str) -> None:
        """A line on standard error that the user may do without."""
        if not self.quiet:
            self._say(f"note: {printable(text)}")

    def warn(self, code: str, text: str) -> None:
        """A line on standard error that the user should read; kept for the JSON document."""
        self._warnings.append({"code": code, "message": text})
        self._say(f"warning[{code}]: {printable(text)}")

    def result(self, record: dict[str, Any], text: str) -> None:
        """What the command found: ``record`` with --json, else ``text``; once per command.

        The JSON document is printed when the command has ended, so that a failure after this
        call still leaves one document, which then holds ``record`` and the error.

        Raises:
            ValueError: ``record`` holds a number that JSON does not have (NaN, infinity).
        """
        json.dumps(record, allow_nan=False)
        self._record = record
        if not self.json:
            click.echo("\n".join(map(printable, text.split("\n"))))

    def document(self, error: VntoolsError | None = None) -> str:
        """The one JSON document of a command: record and warnings, and the error if any."""
        document = {
            "ok": error is None,
            "schema": 1,
            **self._record,
            "warnings": self._warnings,
        }
        if error is not None:
            document["error"] = {
                "code": error.code,
                "exit": error.exit_status,
                "message": error.message,
                "path": error.path,
                "hint": error.hint,
            }
        return json.dumps(document, indent=1, allow_nan=False)

    @contextlib.contextmanager
    def progress(
        self, description: str, total: int | None = None
    ) -> Generator[Advance, None, None]:
        """Show that work goes on: a bar on a terminal, else one line; nothing with --quiet.

        Args:
            description: the phase, such as ``exporting``.
            total: number of steps, or None where it is not known.
        """
        if self.quiet or not sys.stderr.isatty():
            if not self.quiet:
                self._say(f"{printable(description)} ...")
            yield _no_advance
            return
        with self._open_bar() as bar:
            task = bar.add_task(printable(description), total=total)

            def advance(n: int = 1, total: int | None = None) -> None:
                bar.update(task, advance=n, total=total)

            try:
                yield advance
            finally:
                bar.remove_task(task)

    @contextlib.contextmanager
    def _open_bar(self) -> Generator[Progress, None, None]:
        """The progress display; a phase inside a phase shares the one of the outer phase."""
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        if self._bar is not None:
            yield self._bar
            return
        text = TextColumn("{task.description}", markup=False)
        columns = (text, BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=RichConsole(stderr=True), transient=True) as bar:
            self._bar = bar
            try:
                yield bar
            finally:
                self._bar = None

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError):  # nobody reads it; the work goes on
            click.echo(line, err=True)


def _no_advance(n: int = 1, total: int | None = None) -> None:
    """Progress that is not shown."""


def _set(name: str) -> Callable[[click.Context, click.Parameter, bool], None]:
    """A callback that switches ``name`` on in the console and never off."""

    def callback(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        if value:
            setattr(ctx.find_object(Console), name, True)

    return callback


def json_option(command: _F) -> _F:
    """The option ``--json``: standard output is exactly one JSON document, also on failure."""
    return click.option(
        "--json",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_set("json"),
        help="Print one JSON document on standard output.",
    )(command)


def quiet_and_debug() -> list[click.Parameter]:
    """The options ``--quiet`` and ``--debug``, which the group and every command take."""
    return [
        click.Option(
            ["--quiet"],
            is_flag=True,
            expose_value=False,
            callback=_set("quiet"),
            help="No notes and no progress; warnings and errors stay.",
        ),
        click.Option(
            ["--debug"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            envvar="VNTOOLS_DEBUG",
            callback=_set("debug"),
            help="Show tracebacks (also: VNTOOLS_DEBUG=1).",
        ),
    ]
