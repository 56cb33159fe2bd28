"""Checkpoint files that are damaged, hostile or no checkpoints at all."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from vntools.base.errors import DataFault, NoInput, NoPermission, VntoolsError
from vntools.models.archive import open_archive
from vntools.models.checkpoint import load_checkpoint


def code_of(path: Path) -> str:
    """The code of the error that loading ends with: one line that names the file."""
    with pytest.raises(VntoolsError) as caught:
        load_checkpoint(path)
    line = caught.value.line()
    assert str(path) in line
    assert "\n" not in line
    assert "weights_only" not in line
    return caught.value.code


def rewrite(
    source: Path, edit: Callable[[dict[str, bytes]], object], *, compression: int = 0
) -> Path:
    """The archive with its records changed, CRCs right again."""
    with zipfile.ZipFile(source) as archive:
        records = {e.filename: archive.read(e) for e in archive.infolist()}
    edit(records)
    target = source.with_suffix(".changed")
    with zipfile.ZipFile(target, "w", compression) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return target


def with_pickle(path: Path, data: bytes) -> Path:
    """A zip archive in torch's layout around any pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", data)
        archive.writestr("net/version", "3\n")
        archive.writestr("net/byteorder", "little")
    return path


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "ckpt.empty"),
        (b"<!DOCTYPE html><html>Sign in</html>", "ckpt.format"),
        (b"\n <html>", "ckpt.format"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "ckpt.format"),
        (b"hello", "ckpt.format"),
        (b"PK\x03\x04", "ckpt.truncated"),
        (pickle.dumps({"model": 1}, protocol=2), "ckpt.legacy"),
    ],
)
def test_what_is_no_checkpoint(content: bytes, code: str, tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(content)
    assert code_of(path) == code


def test_a_git_lfs_pointer_is_told_from_a_page(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DataFault, match="git lfs pull"):
        open_archive(path)


@pytest.mark.parametrize("part", [0.5, 0.9, 0.99])
def test_truncated(part: float, checkpoint_file: Callable[..., Path]) -> None:
    path = checkpoint_file()
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    assert code_of(path) == "ckpt.truncated"


def test_legacy_format_and_tar(save: Callable[..., Path], tmp_path: Path) -> None:
    state = {"model": {"a": torch.zeros(1)}}
    assert code_of(save(state, _use_new_zipfile_serialization=False)) == "ckpt.legacy"
    with tarfile.open(tmp_path / "net.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("pickle"), io.BytesIO())
    assert code_of(tmp_path / "net.tar") == "ckpt.legacy"


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_a_pickle_that_calls_is_refused_and_not_run(protocol: int, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    data = pickle.dumps({"model": Calls(os.mkdir, str(canary))}, protocol=protocol)
    assert code_of(with_pickle(tmp_path / "net.pth", data)) == "ckpt.unsafe"
    assert not canary.exists()


@pytest.mark.parametrize("call", [Calls(bytearray, 1 << 40), Calls(torch.Tensor, 1 << 40)])
def test_a_pickle_that_asks_for_memory_is_refused(call: Calls, tmp_path: Path) -> None:
    data = pickle.dumps({"model": call}, protocol=2)
    assert code_of(with_pickle(tmp_path / "net.pth", data)) == "ckpt.unsafe"


def test_what_is_refused_is_named(tmp_path: Path, save: Callable[..., Path]) -> None:
    for content, name in (
        ({"model": {}, "args": argparse.Namespace(out=tmp_path)}, "pathlib.PosixPath"),
        (nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
    ):
        with pytest.raises(DataFault, match=name) as caught:
            open_archive(save(content))
        assert caught.value.code == "ckpt.unsafe"
        assert "torch.save" in caught.value.hint


@pytest.mark.parametrize("data", [b"", b"\x80\x02", b"\x80\x02}q\x00", b"junk", b"\x80\x02N."])
def test_a_damaged_pickle(data: bytes, tmp_path: Path) -> None:
    assert code_of(with_pickle(tmp_path / "net.pth", data)) == "ckpt.format"


def test_a_pickle_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vntools.models.archive._MAX_PICKLE_BYTES", 100)
    data = pickle.dumps(list(range(100)), protocol=2)
    assert code_of(with_pickle(tmp_path / "net.pth", data)) == "ckpt.zip_layout"


def flip(path: Path, record: str, *, at: int = 0) -> None:
    """Change one bit of a record, and nothing else of the file."""
    with zipfile.ZipFile(path) as archive:
        entry = next(e for e in archive.infolist() if e.filename.endswith(record))
        head = path.read_bytes()[entry.header_offset :][:30]
    start = entry.header_offset + 30 + sum(head[26:28]) + head[28] + 256 * head[29]
    data = bytearray(path.read_bytes())
    data[start + at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("record", ["data/0", "data/4", "data.pkl"])
def test_a_flipped_bit(record: str, checkpoint_file: Callable[..., Path]) -> None:
    path = checkpoint_file()
    flip(path, record)
    assert code_of(path) == "ckpt.crc"


def test_saved_without_checksums(checkpoint_file: Callable[..., Path]) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = checkpoint_file()
    finally:
        torch.serialization.set_crc32_options(True)
    with pytest.raises(DataFault, match="without checksums") as caught:
        load_checkpoint(path)
    assert caught.value.code == "ckpt.crc"


def test_only_the_chosen_weights_are_read(
    checkpoint_file: Callable[..., Path], network: Callable[..., nn.Module]
) -> None:
    path = checkpoint_file(model_ema=network(seed=1).state_dict())
    flip(path, "data/0")  # the first tensor of 'model'
    assert load_checkpoint(path).key_used == "model_ema"
    with pytest.raises(DataFault, match="CRC"):
        load_checkpoint(path, key="model")


def test_compressed_records(checkpoint_file: Callable[..., Path]) -> None:
    path = rewrite(checkpoint_file(), lambda _: None, compression=zipfile.ZIP_DEFLATED)
    assert code_of(path) == "ckpt.compressed"
    load_checkpoint(rewrite(checkpoint_file(), lambda _: None))


def test_two_pickles_and_names_that_leave_the_archive(
    checkpoint_file: Callable[..., Path],
) -> None:
    for name in ("other/data.pkl", "../data/0", "/data/0"):
        path = rewrite(checkpoint_file(), lambda records, n=name: records.update({n: b"x"}))
        assert code_of(path) == "ckpt.zip_layout"


def test_a_record_twice(checkpoint_file: Callable[..., Path]) -> None:
    path = checkpoint_file()
    with (
        zipfile.ZipFile(path, "a") as archive,
        pytest.warns(UserWarning, match="Duplicate name"),
    ):
        archive.writestr(archive.namelist()[0], b"other")
    assert code_of(path) == "ckpt.zip_layout"


def test_a_storage_larger_than_its_record(checkpoint_file: Callable[..., Path]) -> None:
    def shorten(records: dict[str, bytes]) -> None:
        name = next(n for n in records if n.endswith("data/0"))
        records[name] = records[name][:16]

    assert code_of(rewrite(checkpoint_file(), shorten)) == "ckpt.crc"


def test_a_missing_record(checkpoint_file: Callable[..., Path]) -> None:
    path = rewrite(
        checkpoint_file(),
        lambda records: records.pop(next(n for n in records if "data/0" in n)),
    )
    assert code_of(path) == "ckpt.format"


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    for path, code in (
        (tmp_path / "absent.pth", "input.missing"),
        (tmp_path, "input.not_regular"),
        (tmp_path / "fifo", "input.not_regular"),
        (tmp_path / "loop", "input.not_regular"),
    ):
        with pytest.raises(NoInput) as caught:
            open_archive(path)
        assert caught.value.code == code


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file(checkpoint_file: Callable[..., Path]) -> None:
    path = checkpoint_file()
    path.chmod(0)
    with pytest.raises(NoPermission):
        open_archive(path)


def test_damage_anywhere_ends_in_an_error_of_ours(
    checkpoint_file: Callable[..., Path],
) -> None:
    path = checkpoint_file()
    whole = path.read_bytes()
    draw = random.Random(0)
    outcomes: set[str] = set()
    for _ in range(150):
        damaged = bytearray(whole)
        # Half of the flips go into the pickle and the directory, where the structure is.
        start = 0 if draw.random() < 0.5 else len(whole) - 12000
        for _ in range(draw.choice((1, 1, 4))):
            damaged[draw.randrange(start, len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            load_checkpoint(path)
            outcomes.add("loaded")
        except VntoolsError as e:
            outcomes.add(e.code)
    assert len(outcomes) > 3
