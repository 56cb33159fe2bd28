"""What a file of a checkpoint may be; rows 1 to 40 of the catalogue hold what it may not."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.attacks.checkpoints import (
    SMALL,
    content,
    flip,
    get,
    name,
    packed,
    program,
    put,
    released,
    rezipped,
    safetensors,
    saved,
    state_dict,
    storage,
    tensor,
    text,
    under,
)
from vntools.base.errors import DataFault, VntoolsError
from vntools.models import archive
from vntools.models.archive import open_archive
from vntools.models.checkpoint import load_checkpoint
from vntools.models.pickle_program import StorageClaim, check_pickle
from vntools.models.safetensors_file import is_safetensors


def code_of(path: Path) -> str:
    """The code of the error that loading ends with: one line that names the file."""
    with pytest.raises(VntoolsError) as caught:
        load_checkpoint(path)
    line = caught.value.line()
    assert str(path) in line
    assert "\n" not in line
    assert "weights_only" not in line
    return caught.value.code


# Kinds of files


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\n <html>", "ckpt.format"),
        (b"hello", "ckpt.format"),
        (b"PK\x03\x04", "ckpt.truncated"),
        (b"PK\x05\x06" + bytes(18), "ckpt.format"),
        (pickle.dumps({"model": 1}, protocol=2), "ckpt.legacy"),
    ],
)
def test_what_is_no_checkpoint(data: bytes, code: str, tmp_path: Path) -> None:
    assert code_of(content(tmp_path, data)) == code


def test_a_zip_archive_of_another_kind(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.pth", "w") as made:
        made.writestr("a/b", "c")
    assert code_of(tmp_path / "net.pth") == "ckpt.format"


def test_what_another_zip_writer_wrote_is_read(tmp_path: Path) -> None:
    loaded = load_checkpoint(rezipped(tmp_path, lambda _: None))
    assert torch.equal(loaded.state["stem1.0.weight"], state_dict()["stem1.0.weight"])


def test_a_comment_or_bytes_behind_the_archive(tmp_path: Path) -> None:
    whole = saved(tmp_path, released()).read_bytes()
    for data in (whole + b"x", whole[:-2] + b"\x01\0x"):
        assert code_of(content(tmp_path, data)) in ("ckpt.truncated", "ckpt.zip_layout")


def test_a_record_twice(checkpoint_file: Callable[..., Path]) -> None:
    path = checkpoint_file()
    with (
        zipfile.ZipFile(path, "a") as made,
        pytest.warns(UserWarning, match="Duplicate name"),
    ):
        made.writestr(made.namelist()[0], b"other")
    assert code_of(path) == "ckpt.zip_layout"


# What is read, and from where


def test_only_the_chosen_weights_are_read(
    checkpoint_file: Callable[..., Path], network: Callable[..., nn.Module]
) -> None:
    path = checkpoint_file(model_ema=network(seed=1).state_dict())
    flip(path, "data/0")  # the first tensor of 'model'
    assert load_checkpoint(path).key_used == "model_ema"
    with pytest.raises(DataFault, match="CRC"):
        load_checkpoint(path, key="model")


def test_a_record_that_became_the_like_of_another_is_seen(tmp_path: Path) -> None:
    """A hole in a download reads as zeros, and so do many records that are whole."""
    path = saved(tmp_path, released())
    state = state_dict()
    assert not state["stem1.1.running_mean"].any()
    weight = state["stem1.1.weight"].numpy().tobytes()
    assert len(weight) == state["stem1.1.running_mean"].nbytes
    path.write_bytes(path.read_bytes().replace(weight, bytes(len(weight))))
    with pytest.raises(DataFault, match=r"stem1\.1\.weight fail their CRC"):
        load_checkpoint(path)


@pytest.mark.parametrize("make", [saved, safetensors], ids=["torch", "safetensors"])
def test_a_file_that_takes_the_name_meanwhile_is_not_seen(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    if make is saved:
        path, other = saved(tmp_path, released()), saved(tmp_path / "other", [1])
    else:
        path, other = safetensors(tmp_path), safetensors(tmp_path / "other", deploy=True)

    def replace(head: bytes) -> bool:
        other.replace(path)  # the file is open, and nothing but its head has been read
        return is_safetensors(head)

    with monkeypatch.context() as changed:
        changed.setattr(archive, "is_safetensors", replace)
        loaded = load_checkpoint(path)
    good = state_dict()
    assert loaded.state
    assert all(torch.equal(t, good[n]) for n, t in loaded.state.items())
    if make is saved:  # the other one was there to be seen
        assert code_of(path) == "ckpt.format"
    else:
        assert load_checkpoint(path).form == "deploy"


def test_a_safetensors_file_is_mapped_and_told_by_its_content(tmp_path: Path) -> None:
    path = safetensors(tmp_path).rename(tmp_path / "net.pth")
    loaded = load_checkpoint(path)
    assert (loaded.arch, loaded.key_used, loaded.lambda_.value) == (SMALL, None, 1.0)
    assert loaded.warnings == ()
    good = state_dict()
    assert all(torch.equal(t, good[n]) for n, t in loaded.state.items())
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in lines if line.endswith(str(path))]
    places = [t.data_ptr() for t in loaded.state.values()]
    assert all(any(int(a, 16) <= p < int(b, 16) for a, b in spans) for p in places)


def test_a_safetensors_file_of_another_type(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    held = {n: t.half() if t.is_floating_point() else t for n, t in state_dict().items()}
    path = tmp_path / "net.safetensors"
    save_file(held, path, metadata={"dims": "[8, 12, 16]", "strides": "[2, 1]", "other": "{"})
    loaded = load_checkpoint(path, image_size=32)
    assert "converted float16 weights to float32" in loaded.notes
    assert [code for code, _ in loaded.warnings] == ["ckpt.lambda_assumed"]


# The pickle


@pytest.mark.parametrize("data", [b"", b"\x80\x02", b"\x80\x02}q\x00", b"junk", b"\x80\x02N."])
def test_a_damaged_pickle(data: bytes, tmp_path: Path) -> None:
    assert code_of(packed(tmp_path, data)) == "ckpt.format"


def test_the_storages_of_a_pickle_are_told() -> None:
    whole = program(under("a", tensor(3, (3,), (1,))), b"0" * 0)
    assert check_pickle(whole) == {StorageClaim("0", 12)}


_DICT = name("collections", "OrderedDict")
_NAMESPACE = name("argparse", "Namespace")
_REBUILD = name("torch._utils", "_rebuild_tensor_v2")


@pytest.mark.parametrize(
    "opcodes",
    [
        (_DICT, b")R"),
        (_DICT, b")R", b"}b"),
        (_NAMESPACE, b")\x81", b"}b"),
        (b"](", b"K\x01K\x02e"),
        (b"}(", text("a"), b"K\x01u"),
        (storage(3, kind="Half"),),
        (tensor(3, (3,), (1,)),),
        (name("torch._utils", "_rebuild_parameter"), b"(", tensor(1, (1,), (1,)), b"\x88",
         _DICT, b")RtR"),
    ],
)  # fmt: skip
def test_what_torch_save_writes_passes(opcodes: tuple[bytes, ...]) -> None:
    check_pickle(program(*opcodes))


@pytest.mark.parametrize(
    "opcodes",
    [
        (_DICT, b"(](K\x01K\x01\x86etR"),
        (_DICT, b")\x81"),
        (_NAMESPACE, b")R"),
        (_NAMESPACE, b"K\x01\x85\x81"),
        (_NAMESPACE, b")\x81", b"]b"),
        (_NAMESPACE, b")\x81", b"}}\x86b"),
        (b"}", put(0), _NAMESPACE, b")\x81", get(0), b"b", _NAMESPACE, b")\x81", get(0), b"b"),
        (b"}", b"}b"),
        (name("torch", "FloatStorage"), b"K\x09\x85R"),
        (name("torch", "FloatStorage"), b"K\x09\x85\x81"),
        (_REBUILD, b"(", storage(1), b"K\x00K\x01)", b"\x89", _DICT, b")RtR"),
        (_REBUILD, b"(", b"]", b"K\x00))", b"\x89", _DICT, b")RtR"),
        (name("torch._utils", "_rebuild_parameter"), b"(]\x88", _DICT, b")RtR"),
        (b"K\x01Q",),
        (b"(", text("x"), name("torch", "FloatStorage"), text("0"), text("cpu"), b"K\x01tQ"),
        (b"(", text("storage"), _DICT, text("0"), text("cpu"), b"K\x01tQ"),
        (storage(-1),),
        (b"}", b"]K\x01s"),
        (b"}", b")K\x01s"),
        (b"]", text("a"), b"K\x01s"),
        (b"}", b"K\x01a"),
        (b"\x8f",),
        (b"Nb",),
    ],
)  # fmt: skip
def test_what_it_does_not_write_is_refused(opcodes: tuple[bytes, ...]) -> None:
    with pytest.raises(DataFault) as caught:
        check_pickle(program(*opcodes))
    assert caught.value.code in ("ckpt.unsafe", "ckpt.format")


@pytest.mark.parametrize("opcodes", [(b"a",), (b"t",), (b"0",), (get(5),), (b"}(K\x01u",)])
def test_a_pickle_that_takes_what_is_not_there(opcodes: tuple[bytes, ...]) -> None:
    with pytest.raises(DataFault):
        check_pickle(program(*opcodes))


def test_metadata_that_is_not_asked_for_is_not_read(tmp_path: Path) -> None:
    held: Any = open_archive(safetensors(tmp_path), frozenset({"epoch"})).metadata
    assert held == {"epoch": 299}
