"""Rows 103 to 123: the command line and the file system.

Where a row is the frame's own doing (signals, pipes, closed streams) the command is
``vntools models``, which does the least. Every command that works for long is interrupted in
tests/cli/test_signals.py; every system call of publishing fails in
tests/base/test_crash_points.py.

Not made here: of row 105 a folder that only root may write, where tests run as root; of row
111 a loss of power; of row 120 a plan printed to a terminal, which no command does.
``--int8 --fp16`` (row 120) is no fault: what is not INT8 is FP16 then.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.attacks.checkpoints import CORPUS
from tests.catalogue.frame import Outcome, Row, Words, by_number, hold, in_process
from tests.conftest import ENTRY
from tests.engine.plans import PLAN, sidecar_of
from tests.pipeline.conftest import write_checkpoint
from vntools.base.artifacts import (
    read_input,
    sha256_and_identity,
    sha256_bytes,
    write_sidecar_bytes,
)
from vntools.export import load

Make = Callable[[Path], Words]
Run = Callable[[Words], Outcome]
SCRIPT = Path(sys.executable).with_name("vntools")


# ------------------------------------------------------------------------------------ inputs


@cache
def checkpoint() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write_checkpoint(Path(folder, "net.pth")).read_bytes()


@cache
def model(channels: int = 3) -> bytes:
    """Two convolutions of a kernel of one, which become one."""
    draw = np.random.default_rng(channels)
    nodes, weights = [], []
    for i, (name, into) in enumerate((("x", "h"), ("h", "y"))):
        shape = ((channels, 3), (2, channels))[i]
        w = draw.standard_normal((*shape, 1, 1)).astype(np.float32)
        weights.append(numpy_helper.from_array(w, f"w{i}"))
        nodes.append(helper.make_node("Conv", [name, f"w{i}"], [into]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 4, 4])
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    ).SerializeToString()


def given(*words: str, **files: bytes) -> Make:
    """The words, names with a dot in them taken for files of the folder."""

    def make(folder: Path) -> Words:
        for name, content in {"m_onnx": model(), **files}.items():
            (folder / name.replace("_", ".")).write_bytes(content)
        return [folder / w if "." in w and not w.startswith("-") else w for w in words]

    return make


def after(prepare: Callable[[Path], Any], make: Make) -> Make:
    def both(folder: Path) -> Words:
        words = make(folder)
        prepare(folder)
        return words

    return both


def simplified(out: str, *more: str, **files: bytes) -> Make:
    return given("simplify", "m.onnx", "--out", out, *more, **files)


def sidecar(plan: bytes = PLAN, **changes: object) -> bytes:
    return write_sidecar_bytes({**sidecar_of(plan), **changes})


# ----------------------------------------------------------------------------- ways of running


@contextmanager
def patched(name: str, change: Callable[[Callable[..., Any]], Any]) -> Generator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, name, change(getattr(os, name)))
        yield


def refused(number: int) -> Run:
    """No file can be created."""

    def change(real: Callable[..., int]) -> Callable[..., int]:
        def call(path: str, flags: int, *args: int, **kwargs: int) -> int:
            if flags & os.O_CREAT and flags & os.O_EXCL:
                raise OSError(number, os.strerror(number))
            return real(path, flags, *args, **kwargs)

        return call

    def run(words: Words) -> Outcome:
        with patched("open", change):
            return in_process(words)

    return run


def refusing(name: str, number: int) -> Run:
    """A system call fails."""

    def change(_real: object) -> Callable[..., None]:
        def call(*_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        return call

    def run(words: Words) -> Outcome:
        with patched(name, change):
            return in_process(words)

    return run


def overtaken(words: Words) -> Outcome:
    """Another process writes the same name in the last moment."""

    def change(real: Callable[..., None]) -> Callable[..., None]:
        def call(source: Path, target: Path) -> None:
            target.write_bytes(b"theirs")
            try:
                real(source, target)
            finally:
                assert target.read_bytes() == b"theirs"
                target.unlink()

        return call

    with patched("link", change):
        return in_process(words)


def as_process(words: Words, **kwargs: Any) -> Outcome:
    entry = kwargs.pop("entry", ENTRY)
    run = subprocess.run(
        [*entry, *map(os.fspath, words)],  # pyright: ignore[reportArgumentType]
        check=False,
        capture_output=True,
        timeout=120,
        **kwargs,
    )
    return Outcome(run.returncode, run.stdout.decode(), run.stderr.decode())


def plain(words: Words) -> Outcome:
    """In the C locale, without Python's ways out of it."""
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    return as_process(words, env=environment)


def limited(words: Words) -> Outcome:
    """No file may grow beyond 100 bytes."""
    code = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (100, 100))\n"
    return as_process(words, entry=(*ENTRY[:-1], code + ENTRY[-1]))


def interrupted(signum: int) -> Run:
    """A signal comes while the graph is read."""

    def run(words: Words) -> Outcome:
        code = (
            "import os, sys, threading\n"
            "def hook(event, args):\n"
            "    if event == 'open' and str(args[0]).endswith('m.onnx'):\n"
            f"        os.kill(os.getppid(), {signum}); threading.Event().wait(30)\n"
            "sys.addaudithook(hook)\n"
        )
        return as_process(words, entry=(*ENTRY[:-1], code + ENTRY[-1]))

    return run


def hostile_folder(words: Words) -> Outcome:
    """From a folder of modules with the names of those that are needed."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("torch", "click", "onnx", "numpy", "sitecustomize", "vntools", "signal"):
            Path(folder, f"{name}.py").write_text("raise SystemExit('imported')\n")
        return as_process(words, entry=(SCRIPT,), cwd=folder)


def with_leftover(words: Words) -> Outcome:
    """After a run that was killed while it wrote."""
    out = Path(str(words[words.index("--out") + 1]))
    temp = out.with_name(f".{out.name}.0123456789ab.vntmp")
    temp.write_bytes(b"half")
    done = in_process(words)
    assert not temp.exists()
    return done


def changed_meanwhile(words: Words) -> Outcome:
    """The input is another file once it has been read."""
    with pytest.MonkeyPatch.context() as patch:
        real = load.read_onnx

        def read(path: Path) -> bytes:
            data = real(path)
            path.write_bytes(model(5))
            return data

        patch.setattr(load, "read_onnx", read)
        return in_process(words)


# -------------------------------------------------------------------------------------- rows


def soft(name: str, to: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).symlink_to(to)


def hard(folder: Path) -> None:
    (folder / "hard.onnx").hardlink_to(folder / "m.onnx")


def non_utf8(folder: Path) -> Words:
    source = folder / os.fsdecode(b"\xff\xe4.onnx")
    source.write_bytes(model())
    return ["simplify", source, "--out", folder / "n\u00e4.onnx"]


TRAIN = ("train", "--data", "digits", "--out")
INPUT = "--out would overwrite the input"
ROWS: list[tuple[Row, Run]] = [
    (Row(103, "out.is_input", 2, simplified("m.onnx", "--force"), INPUT), in_process),
    (Row(103, "out.is_input", 2, after(soft("s.onnx", "m.onnx"), simplified("s.onnx")),
         INPUT, case="symlink"), in_process),
    (Row(103, "out.is_input", 2, after(hard, simplified("hard.onnx", "--force")), INPUT,
         case="hard-link"), in_process),
    (Row(103, "out.is_input", 2, given("export", "--ckpt", "n.pth", "--out", "n.pth",
         n_pth=b"x"), INPUT, case="export"), in_process),
    (Row(104, "out.folder", 73, given(*TRAIN, "no/such.pth"), "create it first"), in_process),
    (Row(104, "out.is_folder", 73, given(*TRAIN, "./")), in_process),
    (Row(104, "out.create", 73, given(*TRAIN, "n" * 300 + ".pth"), case="long"), in_process),
    (Row(104, "out.create", 73, simplified("a\0b.onnx"), case="nul"), in_process),
    (Row(104, "out.not_regular", 73, after(lambda f: os.mkfifo(f / "f.pth"),
         given(*TRAIN, "f.pth"))), in_process),
    (Row(105, "out.permission", 77, given(*TRAIN, "n.pth"), "check the owner and mode"),
     refused(errno.EACCES)),
    (Row(105, "out.create", 73, given(*TRAIN, "n.pth"), "Read-only", case="read-only"),
     refused(errno.EROFS)),
    (Row(105, "out.create", 73, lambda _: [*TRAIN, "/proc/n.pth"], case="proc"), in_process),
    (Row(106, "out.exists", 73, simplified("n.onnx", n_onnx=b"theirs"), "use --force"),
     in_process),
    (Row(107, "out.exists", 73, simplified("n.onnx"), "appeared while vntools was working"),
     overtaken),
    (Row(108, "out.space", 74, simplified("n.onnx"), r"needs [\d.]+ MB, [\d.]+ MB free; "),
     refusing("posix_fallocate", errno.ENOSPC)),
    (Row(109, "interrupted", 130, simplified("n.onnx"), "ended by SIGINT$", case="int"),
     interrupted(signal.SIGINT)),
    (Row(109, "interrupted", 143, simplified("n.onnx"), "ended by SIGTERM$", case="term"),
     interrupted(signal.SIGTERM)),
    (Row(109, "interrupted", 129, simplified("n.onnx"), "ended by SIGHUP$", case="hup"),
     interrupted(signal.SIGHUP)),
    (Row(111, "", 0, simplified("n.onnx"), files="written", outputs=("n.onnx",)),
     with_leftover),
    (Row(112, "plan.sha256", 65, given("inspect", "v.plan", v_plan=PLAN,
         v_plan_json=sidecar(b"the plan before")), "rebuild"), in_process),
    (Row(116, "", 0, non_utf8, files="written", outputs=("n\u00e4.onnx",),
         prints=r"n\\xe4|n\\u"), plain),
    (Row(117, "input.missing", 66, given("inspect", "a\n\x1b[31m.onnx"), r"a\\n\\x1b\[31m"),
     in_process),
    (Row(117, "input.missing", 66, lambda _: ["inspect", "--", "-m.onnx"], "'-m.onnx'",
         case="dash", json=False), in_process),
    (Row(118, "", 0, after(soft("s.onnx", "n.onnx"), simplified("s.onnx", "--force",
         n_onnx=b"theirs")), files="written", outputs=("n.onnx",), case="link"), in_process),
    (Row(118, "", 0, simplified("n.onnx"), files="written", outputs=("n.onnx",),
         case="no-links"), refusing("link", errno.EPERM)),
    (Row(120, "engine.precision_twice", 2, given("build-engine", "m.onnx", "--fp16", "--bf16"),
         "exclude each other"), in_process),
    (Row(120, "calib.required", 2, given("build-engine", "m.onnx", "--int8"), "--calib DIR"),
     in_process),
    (Row(120, "engine.option", 2, given("build-engine", "m.onnx", "--calib", "d.d"),
         "--calib needs --int8"), in_process),
    (Row(120, "usage", 2, given("simplify", "m.onnx", "--utt", "n.onnx"), "--utt",
         case="flag"), in_process),
    (Row(120, "usage", 2, given("simplfy", "m.onnx"), "did you mean simplify", case="command"),
     in_process),
    (Row(121, "", 0, simplified("n.onnx"), files="written", outputs=("n.onnx",)),
     hostile_folder),
    (Row(122, "plan.manifest", 65, given("inspect", "v.plan", v_plan=PLAN,
         v_plan_json=b"{"), "rebuild"), in_process),
    (Row(122, "plan.manifest", 65, given("inspect", "v.plan", v_plan=PLAN,
         v_plan_json=sidecar(schema=2)), "rebuild", case="schema"), in_process),
    (Row(122, "plan.manifest", 65, given("inspect", "v.plan", v_plan=PLAN,
         v_plan_json=sidecar(sha256="ab")), "rebuild", case="digest"), in_process),
]  # fmt: skip
RUNS = {id(row): run for row, run in ROWS}


@by_number([row for row, _ in ROWS])
def test_row(row: Row, tmp_path: Path) -> None:
    hold(row, tmp_path, RUNS[id(row)])


def test_108_what_is_there_stays_when_space_runs_out(tmp_path: Path) -> None:
    make = simplified("n.onnx", "--force", n_onnx=b"theirs")
    hold(Row(108, "out.space", 74, make, "free some space"), tmp_path, limited)


def test_118_a_link_stays_and_the_mode_is_that_of_the_umask(tmp_path: Path) -> None:
    words = after(soft("s.onnx", "n.onnx"), simplified("s.onnx"))(tmp_path)
    old = os.umask(0o027)
    try:
        assert in_process(words).status == 0
    finally:
        os.umask(old)
    assert (tmp_path / "s.onnx").is_symlink()
    assert stat.S_IMODE((tmp_path / "n.onnx").stat().st_mode) == 0o640


def test_119_the_digest_is_of_the_bytes_that_were_read(tmp_path: Path) -> None:
    words = simplified("n.onnx")(tmp_path)
    assert changed_meanwhile(words).status == 0
    written = onnx.load_model_from_string(read_input(tmp_path / "n.onnx"))
    metadata = {p.key: p.value for p in written.metadata_props}
    assert metadata["vntools.source_sha256"] == sha256_bytes(model())


def test_119_a_checkpoint_that_is_replaced_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(folder: Path) -> Words:
        for name in ("net.pth", "other.pth"):
            (folder / name).write_bytes(checkpoint())
        return ["export", "--ckpt", folder / "net.pth", "--out", folder / "n.onnx"]

    def hashed(path: Path) -> tuple[str, tuple[int, ...]]:
        return sha256_and_identity(path.with_name("other.pth"))

    monkeypatch.setattr("vntools.pipeline.export.sha256_and_identity", hashed)
    hold(Row(119, "input.changed", 74, make, "changed while"), tmp_path)


def test_121_no_environment_makes_a_checkpoint_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.chdir(tmp_path)
    for name in ("shell", "shell_bare", "plugin", "allocates"):
        folder = tmp_path / name
        folder.mkdir()
        words = ["export", "--ckpt", CORPUS[name](folder), "--out", folder / "n.onnx"]
        done = in_process(words)
        assert (done.status, "error[ckpt." in done.stderr) == (65, True)
    (tmp_path / "good.pth").write_bytes(checkpoint())
    words = ["export", "--ckpt", tmp_path / "good.pth", "--out", tmp_path / "n.onnx"]
    assert in_process(words).status == 0


# ------------------------------------------------------------ streams, of a process of its own


@contextmanager
def reader_gone() -> Generator[int]:
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


def test_110_started_in_the_background_only_terminate_ends_it() -> None:
    def ignoring() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    code = (
        "import os, sys, threading\n"
        "def hook(event, args):\n"
        "    if event == 'import' and args[0] == 'vntools.models.arch':\n"
        "        os.kill(os.getppid(), 2); os.kill(os.getpid(), 2)\n"
        "sys.addaudithook(hook)\n"
    )
    entry = (*ENTRY[:-1], code + ENTRY[-1])
    assert as_process(["models"], entry=entry, preexec_fn=ignoring).status == 0
    assert as_process(["models"], entry=entry).status == 130
    terminated = (*ENTRY[:-1], code.replace(", 2)", ", 15)") + ENTRY[-1])
    assert as_process(["models"], entry=terminated, preexec_fn=ignoring).status == 143


@pytest.mark.parametrize("words", [["models"], ["models", "--json"], ["--help"]])
def test_113_a_reader_that_leaves_ends_it_silently(words: list[str]) -> None:
    with reader_gone() as write:
        run = subprocess.run(
            [*ENTRY, *words], check=False, stdout=write, stderr=subprocess.PIPE, timeout=60
        )
    assert (run.returncode, run.stderr) == (141, b"")


def test_113_what_was_published_stays(tmp_path: Path) -> None:
    words = simplified("n.onnx")(tmp_path)
    with reader_gone() as write:
        run = subprocess.run(
            [*ENTRY, *map(str, words)], check=False, stdout=write, stderr=subprocess.PIPE
        )
    assert run.returncode == 141
    onnx.checker.check_model(onnx.load_model_from_string(read_input(tmp_path / "n.onnx")))


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_114_closed_streams(closed: str) -> None:
    """What native code prints then lands in no file: tests/cli/test_processes.py."""
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *ENTRY, "models"]
    run = subprocess.run(shell, check=False, timeout=60, capture_output=True)
    assert (run.returncode, run.stderr) == (0, b"")
    assert bool(run.stdout) == (">&-" not in closed.replace("2>&-", ""))


def test_115_a_full_standard_output(tmp_path: Path) -> None:
    words = simplified("n.onnx")(tmp_path)
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            [*ENTRY, *map(str, words)], check=False, stdout=full, stderr=subprocess.PIPE
        )
    assert run.returncode == 74
    last = run.stderr.decode().splitlines()[-1]
    assert last == "vntools simplify: error[stdout]: No space left on device"
    assert run.stderr.count(b"error[") == 1
    onnx.checker.check_model(onnx.load_model_from_string(read_input(tmp_path / "n.onnx")))


SOCKETS = """
import os, sys
def hook(event, args):
    if event.startswith("socket."):
        os.write(2, f"socket: {event}\\n".encode())
sys.addaudithook(hook)
"""


@pytest.mark.parametrize(
    ("words", "status"),
    [(["--help"], 0), (["--version"], 0), (["nothing"], 2), (["export"], 2), (["models"], 0)],
)
def test_123_no_socket_and_nothing_heavy(words: list[str], status: int) -> None:
    """How long it takes, and that the probes can fail: tests/house/test_light.py."""
    entry = [*ENTRY[:1], "-X", "importtime", *ENTRY[1:-1], SOCKETS + ENTRY[-1]]
    run = subprocess.run(
        [*entry, *words], check=False, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == status
    assert "socket: " not in run.stderr
    lines = (line for line in run.stderr.splitlines() if line.startswith("import time:"))
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
    assert "click" in imported
    assert not imported & {"torch", "onnx", "onnxruntime", "numpy", "tensorrt", "rich", "PIL"}


def test_123_the_work_leaves_no_trace_outside_its_output(tmp_path: Path) -> None:
    """ONNX Runtime names this machine and reports to its makers, unless it is forbidden."""
    words, temporary = simplified("n.onnx")(tmp_path), tmp_path / "tmp"
    temporary.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    environment |= {"TMPDIR": str(temporary), "HOME": str(temporary)}
    code = SOCKETS + (
        "import vntools.cli._commands as c\n"
        "leave = c._leave\n"
        "def look(status):\n"
        "    links = [os.readlink(f'/proc/self/fd/{fd}') for fd in range(3, 200)\n"
        "             if os.path.exists(f'/proc/self/fd/{fd}')]\n"
        "    assert not any('socket' in link for link in links)\n"
        "    leave(status)\n"
        "c._leave = look\n"
    )
    done = as_process(words, entry=(*ENTRY[:-1], code + ENTRY[-1]), env=environment)
    assert done.status == 0
    assert "socket" not in done.stderr
    assert list(temporary.iterdir()) == []
