"""The frame of the command line: discovery, errors, JSON, what is printed."""

from __future__ import annotations

import errno
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from vntools import __version__, cli
from vntools.base.errors import CheckFailed, DataFault, Interrupted, UsageFault
from vntools.cli import _commands
from vntools.cli._shared import Console, json_option
from vntools.report.table import table

Work = Callable[[Console], None]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run ``vntools try WORDS...`` where the command ``try`` is the given function."""
    monkeypatch.delenv("VNTOOLS_DEBUG", raising=False)

    def call(work: Work, *words: str) -> Result:
        @click.command()
        @click.option("--batch", type=int)
        @click.option("--mode", type=click.Choice(["fast", "slow"]))
        @json_option
        @click.pass_obj
        def command(console: Console, **_: object) -> None:
            """Try it."""
            work(console)

        module = type(sys)("vntools.cli.try_it")
        module.command = command
        monkeypatch.setitem(sys.modules, "vntools.cli.try_it", module)
        monkeypatch.setattr(_commands, "_command_names", lambda: ("doctor", "try-it"))
        _commands._load.cache_clear()
        try:
            return CliRunner().invoke(cli.vntools, ["try-it", *words])
        finally:
            _commands._load.cache_clear()

    return call


def failing(error: BaseException) -> Work:
    def work(_console: Console) -> None:
        raise error

    return work


# -------------------------------------------------------------------------------- discovery


def test_every_file_is_a_command_with_a_line_of_help(invoke: Callable[..., Result]) -> None:
    folder = Path(cli.__file__).parent
    files = [p.stem for p in folder.glob("*.py") if not p.stem.startswith("_")]
    assert "doctor" in files
    text = invoke("--help").stdout
    for name in files:
        command = cli.vntools.get_command(click.Context(cli.vntools), name.replace("_", "-"))
        assert command is not None
        assert command.get_short_help_str()
        assert f"  {name.replace('_', '-')} " in text


def test_version(invoke: Callable[..., Result]) -> None:
    assert invoke("--version").stdout == f"vntools {__version__}\n"


def test_no_words_print_the_help_and_fail(invoke: Callable[..., Result]) -> None:
    result = invoke()
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: vntools")


@pytest.mark.parametrize(
    ("words", "near"),
    [(["doctr"], "doctor"), (["doc"], "doctor"), (["doctor", "--jsn"], "--json")],
)
def test_a_wrong_word_is_answered_with_the_closest(
    invoke: Callable[..., Result], words: list[str], near: str
) -> None:
    result = invoke(*words)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert words[-1] in result.stderr
    assert near in result.stderr
    assert result.stdout == ""


def test_nothing_like_it(invoke: Callable[..., Result]) -> None:
    result = invoke("zzz")
    assert result.exit_code == 2
    assert "did you mean" not in result.stderr


@pytest.mark.parametrize(
    "words", [["--batch", "x"], ["--batch"], ["--mode", "big"], ["extra"]]
)
def test_usage_errors_are_one_line_that_names_the_command(
    run: Callable[..., Result], words: list[str]
) -> None:
    result = run(lambda _: None, *words)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("vntools try-it: error[usage]: ")
    assert result.stderr.endswith("; see vntools try-it --help\n")


# ------------------------------------------------------------------------- errors, in one line


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (CheckFailed("verify.mismatch", "worst 1"), 1, "error[verify.mismatch]: worst 1"),
        (UsageFault("x.y", "not both"), 2, "error[x.y]: not both"),
        (DataFault("c.d", "bad", hint="do", path="f"), 65, "error[c.d]: 'f': bad; do"),
        (
            FileNotFoundError(errno.ENOENT, "", "f"),
            66,
            "error[input.missing]: 'f': no such file",
        ),
        (OSError(errno.ENOSPC, ""), 74, "error[io]: No space left on device"),
        (OSError("odd"), 74, "error[io]: odd"),
        (OSError(errno.ENOMEM, ""), 75, "error[host.memory]: out of memory; "),
        (MemoryError(), 75, "error[host.memory]: out of memory; "),
        (PermissionError(errno.EACCES, "", "f"), 77, "error[input.permission]: 'f': "),
        (
            ModuleNotFoundError("", name="torch"),
            69,
            "error[dependency.missing]: no module torch",
        ),
        (
            ModuleNotFoundError("", name="vntools.x"),
            70,
            "error[internal]: ModuleNotFoundError;",
        ),
        (
            TypeError("a\nb"),
            70,
            "error[internal]: TypeError: a\\nb; rerun with --debug and report",
        ),
        (KeyboardInterrupt(), 130, "error[interrupted]: ended by SIGINT"),
        (KeyboardInterrupt(15), 143, "error[interrupted]: ended by SIGTERM"),
        (Interrupted(signal.SIGHUP), 129, "error[interrupted]: ended by SIGHUP"),
        (click.Abort(), 130, "error[interrupted]: ended by SIGINT"),
        (click.ClickException("odd"), 2, "error[usage]: odd"),
    ],
)
def test_each_error_is_one_line_and_its_status(
    run: Callable[..., Result], error: BaseException, status: int, line: str
) -> None:
    result = run(failing(error))
    assert result.exit_code == status
    assert result.stderr.startswith(f"vntools try-it: {line}")
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
    document = json.loads(run(failing(error), "--json").stdout)
    assert document["ok"] is False
    assert document["error"]["exit"] == status


def test_a_broken_pipe_is_silent(run: Callable[..., Result]) -> None:
    result = run(failing(BrokenPipeError(errno.EPIPE, "")))
    assert (result.exit_code, result.output) == (141, "")


@pytest.mark.parametrize("before", [True, False])
def test_debug_shows_the_traceback(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    if before:
        monkeypatch.setenv("VNTOOLS_DEBUG", "1")
        monkeypatch.setattr(pytest.MonkeyPatch, "delenv", lambda *_, **__: None)
    result = run(failing(TypeError("odd")), *([] if before else ["--debug"]))
    assert "Traceback" in result.stderr
    assert result.exit_code == 70


# ---------------------------------------------------------------------------- what is printed


def talk(console: Console) -> None:
    console.note("a note")
    console.warn("w.x", "a warning\x1b[0m")
    with console.progress("working", total=2) as advance:
        advance()
        advance(1)
    console.result({"n": 1}, "one")


def test_results_go_to_stdout_and_the_rest_to_stderr(run: Callable[..., Result]) -> None:
    result = run(talk)
    assert result.stdout == "one\n"
    assert result.stderr.splitlines() == [
        "note: a note",
        "warning[w.x]: a warning\\x1b[0m",
        "working ...",
    ]


def test_quiet_leaves_warnings_and_results(run: Callable[..., Result]) -> None:
    result = run(talk, "--quiet")
    assert result.stdout == "one\n"
    assert result.stderr == "warning[w.x]: a warning\\x1b[0m\n"


def test_json_is_one_document(run: Callable[..., Result]) -> None:
    document = json.loads(run(talk, "--json").stdout)
    assert document == {
        "ok": True,
        "schema": 1,
        "n": 1,
        "warnings": [{"code": "w.x", "message": "a warning\x1b[0m"}],
    }


def test_json_of_a_failure_keeps_what_was_found(run: Callable[..., Result]) -> None:
    def work(console: Console) -> None:
        talk(console)
        raise DataFault("c.d", "bad", hint="do", path="f")

    document = json.loads(run(work, "--json").stdout)
    assert document["ok"] is False
    assert document["n"] == 1
    assert document["error"] == {
        "code": "c.d",
        "exit": 65,
        "message": "bad",
        "path": "f",
        "hint": "do",
    }


def test_json_of_a_usage_error(run: Callable[..., Result]) -> None:
    assert json.loads(run(talk, "--json", "--bogus").stdout)["error"]["exit"] == 2
    assert json.loads(run(talk, "--bogus", "--json").stdout)["error"]["exit"] == 2


def test_numbers_that_json_has_not_are_a_bug_here(run: Callable[..., Result]) -> None:
    result = run(lambda console: console.result({"x": float("nan")}, ""), "--json")
    assert result.exit_code == 70
    assert json.loads(result.stdout)["error"]["code"] == "internal"


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    console = Console()
    with console.progress("outer", total=1) as outer:
        with console.progress("[inner]", total=None) as inner:
            inner(3)
        outer()
    assert "outer" in capsys.readouterr().err
    with console.progress("again", total=1) as again:
        again()


def test_table() -> None:
    assert table([("op", "n"), ("Conv", "18")], align="<>") == "op     n\nConv  18"
