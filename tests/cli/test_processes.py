"""The console script: two processes, signals, crashes, closed and full streams."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

TRY = """
import click, ctypes, os, resource, signal, sys, time
from vntools import cli
from vntools.cli import _commands
from vntools.cli._shared import json_option
@click.command()
@json_option
@click.pass_obj
def command(console):
    {body}
_commands._load = lambda name: command
cli.main()
"""
IGNORED = """
time.sleep(0.01)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    print(os.getpid(), flush=True)
    time.sleep(60)
"""  # a worker that no handler runs in, as while native code works
SWALLOWED = """
class Odd:
        def __del__(self):
            print("on", flush=True)
            time.sleep(60)
    odd = Odd()
    del odd
    time.sleep(60)
"""


def process(body: str) -> list[str]:
    return [sys.executable, "-P", "-c", TRY.format(body=body.strip()), "doctor"]


def ended(body: str, *words: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*process(body), *words], check=False, capture_output=True, text=True, timeout=30,
        **kwargs,
    )  # fmt: skip


@contextmanager
def begun(body: str, *words: str) -> Generator[tuple[subprocess.Popen[str], str]]:
    """A process that has printed its first line, and that line."""
    with subprocess.Popen(
        [*process(body), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        yield running, running.stdout.readline()


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for_death(pid: int) -> None:
    deadline = time.monotonic() + 10
    while alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---------------------------------------------------------------------------------- signals


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
@pytest.mark.parametrize("body", ["print('on', flush=True); time.sleep(60)", SWALLOWED])
def test_signals_end_the_work_with_one_line(
    signum: signal.Signals, status: int, body: str
) -> None:
    with begun(body) as (running, line):
        assert line == "on\n"
        start = time.monotonic()
        running.send_signal(signum)
        _, err = running.communicate(timeout=30)
    assert running.returncode == status
    assert err == f"vntools doctor: error[interrupted]: ended by {signum.name}\n"
    assert time.monotonic() - start < 4  # nobody had to be killed


def test_a_signal_that_a_library_made_an_error_of_its_own_of() -> None:
    body = "\n    ".join(
        (
            "try:",
            "    os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)",
            "except BaseException as e:",
            "    raise RuntimeError('a step failed') from e",
        )
    )
    run = ended(body)
    assert run.returncode == 143
    assert run.stderr == "vntools doctor: error[interrupted]: ended by SIGTERM\n"


def test_to_the_whole_group_it_is_one_signal() -> None:
    """As a terminal sends it, and as timeout(1) does, twice."""
    body = "\n    ".join(
        (
            "try: print('on', flush=True); time.sleep(60)",
            "finally: time.sleep(1); print('tidied up', flush=True)",
        )
    )
    with subprocess.Popen(
        process(body), stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "on\n"
        for _ in range(2):
            os.killpg(running.pid, signal.SIGINT)
        assert running.stdout.read() == "tidied up\n"
    assert running.returncode == 130


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_a_second_signal_ends_what_does_not_end(words: list[str]) -> None:
    with begun(IGNORED, *words) as (running, line):
        running.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert running.poll() is None
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=30)
    assert running.returncode == 143
    assert err == "vntools doctor: error[interrupted]: ended by SIGTERM\n"
    assert out == "" or json.loads(out)["error"]["code"] == "interrupted"
    assert bool(words) == bool(out)
    assert not alive(int(line))


def test_what_does_not_end_in_five_seconds_is_killed() -> None:
    with begun(IGNORED) as (running, line):
        start = time.monotonic()
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=30)
    assert 4.5 < time.monotonic() - start < 15
    assert running.returncode == 130
    assert err == "vntools doctor: error[interrupted]: ended by SIGINT\n"
    assert not alive(int(line))


@pytest.mark.parametrize("delay_s", [0.0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12])
def test_a_signal_while_python_starts(delay_s: float) -> None:
    """Nothing of ours minds signals before Python has started, and nothing is made by then."""
    with subprocess.Popen(
        process("time.sleep(60)"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        time.sleep(delay_s)
        running.send_signal(signal.SIGTERM)
        out, err = running.communicate(timeout=30)
    assert running.returncode in (143, -signal.SIGTERM)
    assert out == ""
    lines = r"(vntools( doctor)?: error\[interrupted\]: ended by SIGTERM\n)?"
    assert re.fullmatch(lines, err)
    assert bool(err) == (running.returncode == 143)


def test_a_stopped_job_goes_on() -> None:
    with subprocess.Popen(
        process("print('on', flush=True); time.sleep(0.3); print('done')"),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "on\n"
        os.killpg(running.pid, signal.SIGSTOP)  # an orphaned group does not heed SIGTSTP
        os.waitid(os.P_PID, running.pid, os.WSTOPPED)
        time.sleep(0.5)
        assert running.poll() is None
        os.killpg(running.pid, signal.SIGCONT)
        assert running.stdout.read() == "done\n"
    assert running.returncode == 0


# ---------------------------------------------------------------- a worker that dies by itself

DEATHS = [
    ("os.kill(os.getpid(), signal.SIGSEGV)", 70, "worker.crash", "crashed (signal 11); "),
    ("ctypes.string_at(0)", 70, "worker.crash", "crashed (signal 11); "),
    ("os.abort()", 70, "worker.crash", "crashed (signal 6); "),
    ("os.kill(os.getpid(), signal.SIGKILL)", 75, "worker.killed", "for want of memory; "),
    ("signal.signal(15, signal.SIG_DFL); os.kill(os.getpid(), 15)", 143, "interrupted", ""),
]


@pytest.mark.parametrize(("body", "status", "code", "says"), DEATHS)
def test_a_death_is_one_line_and_one_document(
    body: str, status: int, code: str, says: str
) -> None:
    body = f"resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); {body}"
    run = ended(body)
    assert (run.returncode, run.stdout) == (status, "")
    assert len(run.stderr.splitlines()) == 1
    assert run.stderr.startswith(f"vntools doctor: error[{code}]: ")
    assert says in run.stderr
    document = json.loads(ended(body, "--json").stdout)
    assert document["error"]["code"] == code
    assert document["error"]["exit"] == status
    assert document["ok"] is False


def test_the_worker_dies_with_the_one_that_waits() -> None:
    with begun(IGNORED) as (running, line):
        assert alive(int(line))
        running.kill()
        running.communicate(timeout=30)
    wait_for_death(int(line))


def test_no_process_to_be_had() -> None:
    code = (
        "import os\n"
        "def refuse(): raise BlockingIOError(11, 'Resource temporarily unavailable')\n"
        "os.fork = refuse\n"
    )
    words = [sys.executable, "-P", "-c", code + TRY.format(body="pass"), "doctor"]
    run = subprocess.run(words, check=False, capture_output=True, text=True, timeout=30)
    assert run.returncode == 75
    assert re.fullmatch(
        r"vntools doctor: error\[worker\.start\]: .*unavailable.*\n", run.stderr
    )


def test_the_status_of_the_worker_survives_an_ignored_child_signal() -> None:
    run = ended(
        "sys.exit(66)", preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    )
    assert run.returncode == 66


def test_nothing_that_python_drops_is_shown() -> None:
    body = "class Odd:\n        def __del__(self): raise TypeError\n    Odd()\n    print('on')"
    run = ended(body)
    assert (run.returncode, run.stdout, run.stderr) == (0, "on\n", "")
    assert "TypeError" in ended(body, env={**os.environ, "VNTOOLS_DEBUG": "1"}).stderr


# ------------------------------------------------------------------------- streams and locale


@pytest.mark.parametrize(
    "words", [["--help"], ["doctor", "--help"], ["--version"], ["doctor", "--json"]]
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_standard_output_is_74(words: list[str], unbuffered: str) -> None:
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            [*process("pass")[:-1], *words],
            check=False,
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    assert run.returncode == 74
    assert run.stderr.count(b"\n") == 1
    assert b"error[stdout]: No space left on device" in run.stderr


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


def test_a_full_standard_error_does_not_stop_the_work() -> None:
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            process("console.note('a'); console.warn('b', 'c'); console.result({}, 'done')"),
            check=False,
            stdout=subprocess.PIPE,
            stderr=full,
        )
    assert (run.returncode, run.stdout) == (0, b"done\n")
