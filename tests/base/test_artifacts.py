"""Files on disk: read whole, published whole or not at all."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vntools.base.artifacts import (
    check_output,
    data_path,
    published,
    published_with_data,
    read_input,
    read_sidecar,
    require_file,
    seal,
    sha256_bytes,
    sha256_file,
    sidecar_path,
    write_sidecar_bytes,
)
from vntools.base.errors import (
    CannotCreate,
    DataFault,
    IoFault,
    NoInput,
    NoPermission,
    UsageFault,
    VntoolsError,
)

OURS = b"an old model" + seal(b"an old model")


def publish(path: str | Path, data: bytes, *, force: bool = False, size_hint: int = 0) -> None:
    with published(path, force=force, size_hint=size_hint) as f:
        f.write(data)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# ---------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("read", [read_input, require_file, sha256_file])
class TestReading:
    def test_absent(self, read: Callable[[Path], object], tmp_path: Path) -> None:
        for name in ("absent", "no/folder", "x" * 300):
            with pytest.raises(NoInput) as caught:
                read(tmp_path / name)
            assert caught.value.code == "input.missing"

    def test_not_regular_is_refused_at_once(
        self, read: Callable[[Path], object], tmp_path: Path
    ) -> None:
        os.mkfifo(tmp_path / "fifo")
        (tmp_path / "loop").symlink_to("loop")
        for path in (tmp_path, tmp_path / "fifo", tmp_path / "loop", Path("/dev/null")):
            with pytest.raises(NoInput) as caught:
                read(path)
            assert caught.value.code == "input.not_regular"

    def test_a_name_with_nul(self, read: Callable[[str], object]) -> None:
        with pytest.raises(NoInput):
            read("a\0b")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_unreadable(self, read: Callable[[Path], object], tmp_path: Path) -> None:
        path = tmp_path / "f"
        path.touch(mode=0)
        with pytest.raises(NoPermission):
            read(path)


def test_read_and_hash_agree(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"abc" * 1000)
    assert require_file(path) == path
    assert read_input(path) == b"abc" * 1000
    assert sha256_file(path) == sha256_bytes(b"abc" * 1000)


def test_refused_inputs_leave_no_open_file(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(NoInput):
            read_input(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


# ---------------------------------------------------------------------------------- sidecars


def test_a_sidecar_reads_back(tmp_path: Path) -> None:
    plan = tmp_path / "v.plan"
    assert read_sidecar(plan) is None
    record = {"schema": 1, "sha256": "0" * 64, "note": "ä"}
    sidecar_path(plan).write_bytes(write_sidecar_bytes(record))
    assert read_sidecar(plan) == record
    assert sidecar_path(plan) == tmp_path / "v.plan.json"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"schema": 2}',
        b'{"schema": 1, "sha256": "ab"}',
        b"\xff",
        b"[" * 99999,
    ],
)
def test_another_sidecar_is_refused(tmp_path: Path, content: bytes) -> None:
    sidecar_path(tmp_path / "v.plan").write_bytes(content)
    with pytest.raises(DataFault) as caught:
        read_sidecar(tmp_path / "v.plan")
    assert caught.value.code == "plan.manifest"


def test_a_sidecar_that_somebody_edited_is_refused(tmp_path: Path) -> None:
    whole = write_sidecar_bytes({"schema": 1, "sha256": "0" * 64, "precision": "fp16"})
    path = sidecar_path(tmp_path / "v.plan")
    for edited in (whole.replace(b"fp16", b"fp32"), whole[:-1], whole + b" "):
        path.write_bytes(edited)
        with pytest.raises(DataFault, match="not a sidecar as vntools wrote it"):
            read_sidecar(tmp_path / "v.plan")


# ------------------------------------------------------------------- whether it may be written


def test_a_new_file(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        publish(tmp_path / "new", b"data", size_hint=100)
    finally:
        os.umask(old)
    assert (tmp_path / "new").read_bytes() == b"data"
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    assert names(tmp_path) == ["new"]


def test_our_own_model_is_replaced_and_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(OURS)
    path.chmod(0o600)
    publish(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_our_own_plan_and_sidecar_are_replaced(tmp_path: Path) -> None:
    plan = tmp_path / "v.plan"
    plan.write_bytes(b"plan")
    record = {"schema": 1, "sha256": sha256_bytes(b"plan")}
    sidecar_path(plan).write_bytes(write_sidecar_bytes(record))
    publish(sidecar_path(plan), write_sidecar_bytes(record))
    publish(plan, b"new")
    with pytest.raises(CannotCreate):  # the sidecar is of another plan now
        publish(plan, b"newer")


@pytest.mark.parametrize("content", [b"", b"somebody's", OURS + b"\0", OURS[:-1]])
def test_any_other_file_needs_force(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "f"
    path.write_bytes(content)
    before = path.stat()
    with pytest.raises(CannotCreate) as caught:
        publish(path, b"new")
    assert caught.value.code == "out.exists"
    assert "--force" in caught.value.hint
    assert path.read_bytes() == content
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    publish(path, b"new", force=True)
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["f"]


def test_output_onto_input_is_a_usage_fault(tmp_path: Path) -> None:
    source = tmp_path / "in.onnx"
    source.write_bytes(OURS)
    (tmp_path / "soft").symlink_to(source)
    (tmp_path / "hard").hardlink_to(source)
    for name in ("in.onnx", "soft", "hard"):
        with pytest.raises(UsageFault, match="overwrite the input"):
            check_output(tmp_path / name, force=True, inputs=(source,))
    check_output(tmp_path / "other", force=False, inputs=(source, tmp_path / "absent"))


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "dangling").symlink_to("to come")
    publish(tmp_path / "link", b"new", force=True)
    publish(tmp_path / "dangling", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"
    assert (tmp_path / "to come").read_bytes() == b"new"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("no/such/folder", "out.folder"),
        ("folder", "out.is_folder"),
        ("new/", "out.is_folder"),
        ("fifo", "out.not_regular"),
        ("x" * 300, "out.create"),
        ("a\0b", "out.create"),
        ("file/below", "out.folder"),
    ],
)
def test_what_cannot_be_created(tmp_path: Path, name: str, code: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    before = names(tmp_path)
    with pytest.raises(CannotCreate) as caught:
        publish(f"{tmp_path}/{name}", b"", force=True)
    assert caught.value.code == code
    assert names(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(NoPermission):
        check_output(tmp_path / "f", force=False)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.EACCES, "out.permission"),
        (errno.EROFS, "out.create"),
        (errno.EDQUOT, "out.space"),
    ],
)
def test_what_cannot_be_written_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    real = os.open

    def refuse(path: str, flags: int, *mode: int) -> int:
        if flags & os.O_CREAT:
            raise OSError(number, "refused")
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(VntoolsError) as caught:
        check_output(tmp_path / "f", force=False)
    assert caught.value.code == code


def test_a_folder_that_is_no_place_for_files() -> None:
    with pytest.raises(VntoolsError):  # root may write there, so only trying tells
        check_output("/proc/f", force=False)


# ----------------------------------------------------------------------------- faults half-way


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError, DataFault])
def test_a_block_that_fails_publishes_nothing(
    tmp_path: Path, kind: type[BaseException]
) -> None:
    path = tmp_path / "f"
    path.write_bytes(OURS)
    error = DataFault("x", "y") if kind is DataFault else kind()
    with pytest.raises(kind), published(path, force=False) as f:
        f.write(b"half")
        raise error
    assert path.read_bytes() == OURS
    assert names(tmp_path) == ["f"]


def test_a_name_taken_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with pytest.raises(CannotCreate, match="appeared"), published(path, force=False) as f:
        f.write(b"late")
        publish(path, b"early")
    assert path.read_bytes() == b"early"
    assert names(tmp_path) == ["f"]


def test_with_force_the_last_whole_file_wins(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with published(path, force=True) as f:
        f.write(b"late")
        publish(path, b"early", force=True)
    assert path.read_bytes() == b"late"


RACING = """
import os, sys
from pathlib import Path
from vntools.base.artifacts import published
from vntools.base.errors import VntoolsError
folder, force = Path(sys.argv[1]), bool(int(sys.argv[2]))
for pair in range(50):
    read, write = os.pipe()
    children = []
    for letter in (b"A", b"B"):
        if (child := os.fork()) == 0:
            os.close(write)
            os.read(read, 1)  # both begin when the pipe is closed
            try:
                with published(folder / f"{pair}", force=force) as f:
                    f.write(letter * 5000)
            except VntoolsError as e:
                os._exit(e.exit_status)
            os._exit(0)
        children.append(child)
    os.close(read)
    os.close(write)
    print(*(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


@pytest.mark.parametrize("force", [False, True])
def test_of_two_processes_one_wins_or_the_last_does(tmp_path: Path, force: bool) -> None:
    run = subprocess.run(
        [sys.executable, "-P", "-c", RACING, tmp_path, str(int(force))],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    statuses = [sorted(map(int, line.split())) for line in run.stdout.splitlines()]
    assert statuses == [[0, 0] if force else [0, 73]] * 50
    assert len(names(tmp_path)) == 50
    for path in tmp_path.iterdir():
        assert path.read_bytes() in (b"A" * 5000, b"B" * 5000)


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    publish(tmp_path / "f", b"data")
    assert (tmp_path / "f").read_bytes() == b"data"
    with (
        pytest.raises(CannotCreate),
        published(tmp_path / "g", force=False),
    ):
        (tmp_path / "g").write_bytes(b"other")
    assert (tmp_path / "g").read_bytes() == b"other"
    assert names(tmp_path) == ["f", "g"]


FULL = """
import resource, sys
from vntools.base.artifacts import published
from vntools.base.errors import IoFault
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    with published(sys.argv[1], force=True, size_hint=int(sys.argv[2])) as f:
        f.write(bytes(1 << 20))
except IoFault as e:
    print(e.code, e.exit_status)
"""


@pytest.mark.parametrize("size_hint", [0, 1 << 20])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, size_hint: int) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    run = subprocess.run(
        [sys.executable, "-P", "-c", FULL, path, str(size_hint)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert run.stdout == "out.space 74\n"
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["f"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
@pytest.mark.parametrize("size_hint", [0, 1 << 21])
def test_a_full_file_system_leaves_the_old_file(tmp_path: Path, size_hint: int) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "vntools", tmp_path]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        (tmp_path / "f").write_bytes(b"old")
        with pytest.raises(IoFault) as caught:
            publish(tmp_path / "f", bytes(1 << 21), force=True, size_hint=size_hint)
        assert caught.value.code == "out.space"
        assert (tmp_path / "f").read_bytes() == b"old"
        assert names(tmp_path) == ["f"]
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_no_space_says_how_much_is_needed_and_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(IoFault, match=r"needs 235\.0 MB, [0-9.]+ MB free"):
        publish(tmp_path / "f", b"", size_hint=235_000_000)
    assert names(tmp_path) == []


HANGING = """
import sys, time
from vntools.base.artifacts import published
with published(sys.argv[1], force=True) as f:
    f.write(b"half"); f.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


def test_a_killed_writer_leaves_the_old_file_and_its_temporary_is_swept(
    tmp_path: Path,
) -> None:
    path = tmp_path / "f[1]"  # a name that is also a glob
    path.write_bytes(b"old")
    with subprocess.Popen(
        [sys.executable, "-P", "-c", HANGING, path], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        publish(path, b"mine", force=True)
        assert len(names(tmp_path)) == 2  # the temporary of a living writer stays
        writer.send_signal(signal.SIGKILL)
    assert path.read_bytes() == b"mine"
    assert len(names(tmp_path)) == 2
    publish(path, b"next", force=True)
    assert names(tmp_path) == ["f[1]"]
    assert path.read_bytes() == b"next"


def test_the_longest_names_work(tmp_path: Path) -> None:
    for name in ("n" * 255, "ä" * 127):
        publish(tmp_path / name, b"data")
        assert (tmp_path / name).read_bytes() == b"data"


# ------------------------------------------------------------------- a model and its weights


def publish_two(path: Path, model: bytes, data: bytes, *, force: bool = False) -> None:
    """As a large model is written: its seal at the end, the weights' digest within."""
    whole = model + sha256_bytes(data).encode()
    with published_with_data(path, force=force, size_hint=len(data)) as (f, g):
        g.write(data)
        f.write(whole + seal(whole))


def test_a_model_and_its_weights_appear_together(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    publish_two(path, b"model", b"weights")
    assert names(tmp_path) == ["m.onnx", "m.onnx.data"]
    assert data_path(path).read_bytes() == b"weights"
    publish_two(path, b"model", b"other weights")  # both are ours: no force
    assert data_path(path).read_bytes() == b"other weights"


def test_after_an_error_neither_is_there(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with pytest.raises(KeyError), published_with_data(path, force=False) as (f, g):
        f.write(b"1")
        g.write(b"2")
        raise KeyError
    assert names(tmp_path) == []


def test_weights_of_somebody_else_stay(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    data_path(path).write_bytes(b"theirs")
    with pytest.raises(CannotCreate, match="did not write it"):
        publish_two(path, b"model", b"weights")
    assert data_path(path).read_bytes() == b"theirs"
    assert names(tmp_path) == ["m.onnx.data"]
    publish_two(path, b"model", b"weights", force=True)
    assert data_path(path).read_bytes() == b"weights"


def test_weights_go_where_the_model_that_is_linked_lies(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "m.onnx"
    link.symlink_to(tmp_path / "real" / "n.onnx")
    publish_two(link, b"model", b"weights")
    assert names(tmp_path / "real") == ["n.onnx", "n.onnx.data"]


def test_a_model_that_cannot_be_placed_takes_its_weights_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.link

    def refuse(source: Path, target: Path) -> None:
        if target.suffix == ".onnx":
            raise FileExistsError
        real(source, target)

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(CannotCreate, match="appeared"):
        publish_two(tmp_path / "m.onnx", b"model", b"weights")
    assert names(tmp_path) == []


def test_weights_go_with_the_large_model_that_a_small_one_replaces(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    publish_two(path, b"model", b"weights")
    publish(path, b"small" + seal(b"small"))
    assert names(tmp_path) == ["m.onnx"]
    data_path(path).write_bytes(b"of nobody here")
    publish(path, b"small")
    assert names(tmp_path) == ["m.onnx", "m.onnx.data"]


def test_both_old_files_are_back_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    publish_two(path, b"model", b"weights")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    real = os.replace

    def refuse(source: Path, target: Path) -> None:
        if target == path and b"new" in source.read_bytes():
            raise OSError(errno.EIO, "shim")
        real(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(IoFault):
        publish_two(path, b"new model", b"new weights")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
