"""The frame of the command line: discovery, errors, JSON, signals, closed streams."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from vntools import __version__, cli
from vntools.base.errors import CheckFailed, DataFault, Interrupted, UsageFault
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
        monkeypatch.setattr(cli, "_command_names", lambda: ("doctor", "try-it"))
        cli._load.cache_clear()
        try:
            return CliRunner().invoke(cli.vntools, ["try-it", *words])
        finally:
            cli._load.cache_clear()

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


# ------------------------------------------------------------------------------- as a process

TRY = """
import click, os, signal, sys, time
from vntools import cli
from vntools.cli._shared import json_option
@click.command()
@json_option
@click.pass_obj
def command(console):
    {body}
cli._load = lambda name: command
cli.main()
"""


def process(body: str) -> list[str]:
    return [sys.executable, "-P", "-c", TRY.format(body=body), "doctor"]


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signals_end_the_work_with_one_line(signum: signal.Signals, status: int) -> None:
    with subprocess.Popen(
        process("print('on', flush=True); time.sleep(60)"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "on\n"
        start = time.monotonic()
        running.send_signal(signum)
        _, err = running.communicate(timeout=30)
    assert running.returncode == status
    assert err == f"vntools doctor: error[interrupted]: ended by {signum.name}\n"
    assert time.monotonic() - start < 5


def test_a_signal_that_a_library_made_an_error_of_its_own_of() -> None:
    body = "\n    ".join(
        (
            "try:",
            "    os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)",
            "except BaseException as e:",
            "    raise RuntimeError('a step failed') from e",
        )
    )
    run = subprocess.run(
        process(body), check=False, capture_output=True, text=True, timeout=30
    )
    assert run.returncode == 143
    assert run.stderr == "vntools doctor: error[interrupted]: ended by SIGTERM\n"


def test_a_second_signal_ends_the_process_at_once() -> None:
    body = "\n    ".join(
        (
            "try:",
            "    os.kill(os.getpid(), signal.SIGINT); time.sleep(60)",
            "finally:",
            "    os.kill(os.getpid(), signal.SIGINT); time.sleep(60)",
        )
    )
    run = subprocess.run(process(body), check=False, capture_output=True, timeout=30)
    assert run.returncode == -signal.SIGINT


def test_an_ignored_interrupt_stays_ignored() -> None:
    run = subprocess.run(
        process("os.kill(os.getpid(), signal.SIGINT); print('on')"),
        check=False,
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert (run.returncode, run.stdout) == (0, "on\n")


@pytest.mark.parametrize("words", [["--help"], ["doctor", "--help"], ["--version"]])
def test_a_full_standard_output_is_74(
    vntools_process: Callable[..., subprocess.CompletedProcess[str]], words: list[str]
) -> None:
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            [*process("pass")[:-1], *words], check=False, stdout=full, stderr=subprocess.PIPE
        )
    assert run.returncode == 74
    assert run.stderr.count(b"\n") == 1
    assert b"error[io]: No space left on device" in run.stderr


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_a_reader_that_leaves_ends_it_silently(words: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    run = subprocess.run(
        [*process("console.result({'n': 1}, 'x' * 100000)"), *words],
        check=False,
        stdout=write,
        stderr=subprocess.PIPE,
    )
    os.close(write)
    assert (run.returncode, run.stderr) == (141, b"")


def test_closed_streams_are_opened_before_any_file(tmp_path: Path) -> None:
    """What native code prints to descriptor 1 must not land in a file that we write."""
    path = tmp_path / "plan"
    body = f"f = open({str(path)!r}, 'wb'); os.write(1, b'log'); f.write(b'plan'); f.close()"
    shell = 'exec "$@" <&- >&- 2>&-'
    run = subprocess.run(["sh", "-c", shell, "sh", *process(body)], check=False, timeout=30)
    assert run.returncode == 0
    assert path.read_bytes() == b"plan"


def test_results_survive_a_narrow_locale() -> None:
    run = subprocess.run(
        process("console.result({}, 'ä模\\udcff')"),
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
    )
    assert run.stdout == b"\xe4\\u6a21\\udcff\n"


def test_warnings_of_libraries_are_not_shown_unless_asked_for() -> None:
    body = "import warnings; warnings.warn('odd')"
    quiet = subprocess.run(process(body), check=True, capture_output=True)
    assert quiet.stderr == b""
    environment = {**os.environ, "PYTHONWARNINGS": "default"}
    loud = subprocess.run(process(body), check=True, capture_output=True, env=environment)
    assert b"odd" in loud.stderr
