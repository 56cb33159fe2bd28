"""A fault at every system call of publishing: old or new, whole, whatever comes and when.

Each scenario is run once for every call it makes and every kind of fault, until a run meets
none. A call fails before it has had its effect or after it; a kill is one before the next.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import stat
import tempfile
import warnings
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from vntools.base.artifacts import published, published_with_data, seal, sha256_bytes
from vntools.base.errors import VntoolsError

CALLS = (
    *("open", "close", "stat", "lstat", "fstat", "listdir", "access", "fsync", "ftruncate"),
    *("fchmod", "posix_fallocate", "link", "rename", "replace", "unlink"),
)
KILLED = 99  # exit status
Content = dict[str, bytes]


@dataclass
class Shim:
    """Lets ``left`` system calls pass and then does ``fault``, once.

    Attributes:
        late: the call takes effect before the fault.
        met: the name of the call that failed.
    """

    fault: Callable[[], None]
    left: int
    late: bool = False
    met: str = field(default="", init=False)

    def step(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.left -= 1
        if self.left:
            return call(*args, **kwargs)
        self.met = name
        if self.late:
            call(*args, **kwargs)
        self.fault()
        return None

    def install(self, patch: pytest.MonkeyPatch) -> None:
        shim = self

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                return shim.step("write", super().write, data)

        def wrapped(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *args, **kwargs: shim.step(name, real, *args, **kwargs)

        for name in CALLS:
            patch.setattr(os, name, wrapped(name, getattr(os, name)))
        patch.setattr(os, "fsync", wrapped("fsync", lambda fd: None))  # no power is lost here
        patch.setattr(fcntl, "flock", wrapped("flock", fcntl.flock))
        real_fdopen = os.fdopen
        patch.setattr(
            os,
            "fdopen",
            lambda fd, mode: (
                io.BufferedRandom(Raw(fd, "r+b")) if mode == "w+b" else real_fdopen(fd, mode)
            ),
        )


def pair(model: bytes, data: bytes) -> Content:
    """A large model of ours, and its weights beside it."""
    head = model + sha256_bytes(data).encode()
    return {"m.onnx": head + seal(head), "m.onnx.data": data}


OLD, NEW = pair(b"old model", b"old weights"), pair(b"new model", b"new weights")
THEIRS = {"m.onnx": b"theirs", "m.onnx.data": b"their weights"}
SMALL_OLD, SMALL_NEW = {"m.onnx": b"old" + seal(b"old")}, {"m.onnx": b"new"}


def publish_one(folder: Path, new: Content, *, force: bool) -> None:
    with published(folder / "m.onnx", force=force, size_hint=10) as f:
        f.write(new["m.onnx"])


def publish_two(folder: Path, new: Content, *, force: bool) -> None:
    with published_with_data(folder / "m.onnx", force=force, size_hint=10) as (f, g):
        g.write(new["m.onnx.data"])
        f.write(new["m.onnx"])


@dataclass(frozen=True)
class Scenario:
    """What lies there, how it is published and what may be seen afterwards.

    Attributes:
        also: what may be there after a kill, apart from all that is old and all that is new.
        stale: what may be there after an error too.
    """

    publish: Callable[..., None]
    old: Content
    new: Content
    force: bool = False
    linkless: bool = False
    also: tuple[Content, ...] = ()
    stale: tuple[Content, ...] = ()


HALF = ({}, {"m.onnx.data": NEW["m.onnx.data"]})
SCENARIOS = {
    "new": Scenario(publish_one, {}, SMALL_NEW),
    "ours": Scenario(publish_one, SMALL_OLD, SMALL_NEW),
    "theirs": Scenario(publish_one, {"m.onnx": b"theirs"}, SMALL_NEW, force=True),
    "linkless": Scenario(publish_one, {}, SMALL_NEW, linkless=True, also=({"m.onnx": b""},)),
    "after-large": Scenario(
        publish_one,
        OLD,
        SMALL_NEW,
        stale=({**SMALL_NEW, "m.onnx.data": OLD["m.onnx.data"]},),
    ),
    "pair-new": Scenario(publish_two, {}, NEW, also=HALF),
    "pair-ours": Scenario(
        publish_two, OLD, NEW, also=(*HALF, {"m.onnx.data": OLD["m.onnx.data"]})
    ),
    "pair-theirs": Scenario(
        publish_two,
        THEIRS,
        NEW,
        force=True,
        also=(*HALF, {"m.onnx.data": THEIRS["m.onnx.data"]}),
    ),
    "pair-linkless": Scenario(
        publish_two,
        {},
        NEW,
        linkless=True,
        also=(*HALF, {"m.onnx.data": b""}, {**NEW, "m.onnx": b""}),
    ),
}


def refuse_links(*_: object, **__: object) -> None:
    raise OSError(errno.EPERM, "no links here")


@pytest.fixture
def memory(tmp_path: Path) -> Generator[Path]:
    """A folder in memory where there is one: thousands of files come and go."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else tmp_path) as folder:
        yield Path(folder)


def prepared(folder: Path, scenario: Scenario) -> Path:
    folder.mkdir()
    for name, content in scenario.old.items():
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o640)
    return folder


def seen(folder: Path) -> tuple[Content, list[str]]:
    """What lies there under its name, and the temporaries."""
    files = {p.name: p.read_bytes() for p in folder.iterdir()}
    temps = [name for name in files if name.endswith(".vntmp")]
    return {k: v for k, v in files.items() if k not in temps}, temps


def publish_with(shim: Shim, scenario: Scenario, folder: Path) -> bool:
    """Publish under a shim; whether it went well."""
    with pytest.MonkeyPatch.context() as patch:
        if scenario.linkless:
            patch.setattr(os, "link", refuse_links)
        shim.install(patch)
        try:
            scenario.publish(folder, scenario.new, force=scenario.force)
        except (VntoolsError, KeyboardInterrupt):
            return False
    return True


def raising(error: BaseException) -> Callable[[], None]:
    def fault() -> None:
        raise error

    return fault


FAULTS = {
    "EIO": lambda: OSError(errno.EIO, "shim"),
    "ENOSPC": lambda: OSError(errno.ENOSPC, "shim"),
    "ENOENT": lambda: FileNotFoundError(errno.ENOENT, "shim"),
    "signal": KeyboardInterrupt,
}


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_an_error_leaves_the_old_or_the_new(
    memory: Path, name: str, fault: str, late: bool
) -> None:
    scenario, failed = SCENARIOS[name], set[str]()
    for n in range(1, 200):
        folder = prepared(memory / str(n), scenario)
        shim = Shim(raising(FAULTS[fault]()), n, late)
        well = publish_with(shim, scenario, folder)
        content, temps = seen(folder)
        where = f"call {n}, {shim.met}: {sorted(content)} {temps}"
        new = (scenario.new, *scenario.stale)
        assert content in (scenario.old, *new), where
        assert not well or content in new, where
        # What cannot be unlinked stays, and is swept by the next run.
        assert not temps or (shim.met == "unlink" and fault != "signal"), where
        if not shim.met:
            assert well
            break
        if not well:
            failed.add(shim.met)
    assert {"open", "write", "fsync"} <= failed
    assert failed & {"link", "rename", "replace"}


def killed_at(n: int, scenario: Scenario, folder: Path) -> bool:
    """Publish in a process that dies at its ``n``-th call; whether it came to that."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # of threads, which this one needs not
        child = os.fork()
    if child == 0:
        status = 1
        try:
            publish_with(Shim(lambda: os._exit(KILLED), n), scenario, folder)
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, KILLED)
    return status == KILLED


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_kill_leaves_the_old_or_the_new_and_the_next_run_tidies_up(
    memory: Path, name: str
) -> None:
    scenario, n, died = SCENARIOS[name], 0, True
    while died:
        n += 1
        folder = prepared(memory / str(n), scenario)
        died = killed_at(n, scenario, folder)
        content, temps = seen(folder)
        where = f"call {n}: {sorted(content)} {temps}"
        assert content in (scenario.old, scenario.new, *scenario.also, *scenario.stale), where
        assert died or (content == scenario.new and not temps), where
        scenario.publish(folder, scenario.new, force=True)
        content, temps = seen(folder)
        assert content.items() >= scenario.new.items()
        assert temps == []
    assert n > 15


def test_no_state_of_a_kill_joins_a_model_to_weights_of_another() -> None:
    for scenario in SCENARIOS.values():
        for content in (
            s for s in scenario.also + scenario.stale if s.get("m.onnx") and len(s) == 2
        ):
            assert scenario.publish is publish_one  # it refers to none
            assert content["m.onnx"] == SMALL_NEW["m.onnx"]


def test_the_mode_of_what_is_replaced_stays(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "f", SCENARIOS["pair-ours"])
    publish_two(folder, NEW, force=False)
    assert {stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()} == {0o640}


def test_the_shim_finds_a_writer_that_publishes_in_place(tmp_path: Path) -> None:
    """The check can fail."""

    def in_place(folder: Path, new: Content, *, force: bool) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        fd = os.open(folder / "m.onnx", flags)
        os.write(fd, new["m.onnx"])
        os.close(fd)

    scenario = Scenario(in_place, SMALL_OLD, SMALL_NEW)
    folder = prepared(tmp_path / "f", scenario)
    shim = Shim(raising(KeyboardInterrupt()), 1, late=True)
    assert not publish_with(shim, scenario, folder)
    assert seen(folder)[0] not in (scenario.old, scenario.new)
