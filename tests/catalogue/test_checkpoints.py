"""Rows 1 to 40 of the catalogue of faults: checkpoints that are damaged, hostile or odd.

A flipped bit in the weights of a safetensors file has no row: no CRC covers them.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.attacks.checkpoints import (
    CORPUS,
    packed,
    program,
    released,
    safetensors,
    saved,
    state_dict,
    text,
)
from tests.catalogue.frame import Outcome, Row, Words, by_number, hold, in_process
from vntools.base.errors import UsageFault
from vntools.models.arch import ARCHITECTURES
from vntools.models.checkpoint import load_checkpoint
from vntools.models.inference import Arguments, infer
from vntools.models.vanillanet import VanillaNet

Make = Callable[[Path], Words]
Change = Callable[[dict[str, Any]], object]


def export(path: Path, *words: object) -> Words:
    return ["export", "--ckpt", path, "--out", path.parent / "net.onnx", *words]


def attack(name: str) -> Make:
    """A file of the corpus of attacks."""
    return lambda folder: export(CORPUS[name](folder))


def refused(number: int, code: str, *names: str, says: str = "") -> list[Row]:
    """Rows of data that is refused, one for each attack."""
    return [Row(number, code, 65, attack(n), says, case=n) for n in names]


def holding(change: Change, *words: object, deploy: bool = False) -> Make:
    """A released file, its content changed."""

    def make(folder: Path) -> Words:
        content = released(deploy=deploy)
        change(content)
        return export(saved(folder, content), *words)

    return make


def weights(change: Change, **kwargs: Any) -> Make:
    """A released file, its weights changed."""
    return holding(lambda content: change(content["model"]), **kwargs)


def args(**fields: Any) -> Make:
    return lambda folder: export(saved(folder, released(args=fields)))


def good(number: int, make: Make, *, code: str = "", says: str = "", case: str = "") -> Row:
    """A file that is exported."""
    return Row(number, code, 0, make, says, "written", ("net.onnx",), case=case)


def put(**named: object) -> Change:
    """Set the weight whose name has ``__`` for dots."""
    return lambda held: held.update({k.replace("__", "."): v for k, v in named.items()})


def filled(name: str, value: float) -> Change:
    return lambda held: held[name].view(-1)[:2].fill_(value)


DAMAGED = [
    *refused(1, "ckpt.empty", "empty", says="is empty; the download did not finish"),
    *refused(2, "ckpt.truncated", "truncated_half", "truncated", "truncated_end",
             says="ends early"),
    *refused(3, "ckpt.format", "html", says="an HTML page"),
    *refused(3, "ckpt.format", "git_lfs", says="git-lfs pointer; run: git lfs pull"),
    *refused(4, "ckpt.unsafe", "shell", says="asks to import posix.system"),
    *refused(4, "ckpt.unsafe", "shell_instance", "shell_built", "shell_text", "shell_frames",
             "plugin"),
    *refused(4, "ckpt.legacy", "shell_bare", "shell_legacy", "shell_tar"),
    *refused(5, "ckpt.legacy", "legacy", says="torch before 1.6.*re-save"),
    *refused(6, "ckpt.crc", "flipped_weight", says="stem1.0.weight fail their CRC"),
    *refused(6, "ckpt.crc", "flipped_pickle", says="damaged"),
    *refused(7, "ckpt.crc", "without_checksums", says="saved without checksums"),
    *refused(8, "ckpt.compressed", "deflated", "zip_bomb", "encrypted"),
    *refused(9, "ckpt.unsafe", "allocates", "uninitialised", "storage_made"),
    *refused(10, "ckpt.tensor", "stride_zero", says="claims 4398046511104 bytes, stores 4"),
    *refused(10, "ckpt.format", "larger_than_storage", "size_overflows"),
    *refused(11, "ckpt.record", "shortened_record", says="data/0 should have 1536 bytes"),
    *refused(11, "ckpt.record", "missing_record", "big_endian", "outside_record",
             "overlapping_records"),
    *refused(12, "ckpt.zip_layout", "two_pickles", "two_pickles_by_case", "leaves_archive",
             "nul_in_name", "two_directories"),
]  # fmt: skip


def long_pickle(folder: Path) -> Words:
    return export(packed(folder, program(text("x" * (64 << 20)))))


BOMBS = [
    good(13, attack("memo_bomb"), case="memo_bomb"),
    *refused(13, "ckpt.unsafe", "bomb_as_key", "bomb_as_argument", "deep_key", "dict_copies",
             "ordered_copies", "colliding_keys"),
    *refused(13, "ckpt.format", "deep_lists", "same_dict_everywhere"),
    *refused(13, "ckpt.too_big", "too_many_opcodes"),
    Row(13, "ckpt.too_big", 65, long_pickle, "64 MiB", case="long_pickle"),
    *refused(13, "ckpt.args", "image_without_end", "large_image", "maps_of_many_values",
             "maps_without_end", "name_without_end"),
]  # fmt: skip


def absent(folder: Path) -> Words:
    return export(folder / "net.pth")


def loop(folder: Path) -> Words:
    (folder / "net.pth").symlink_to("net.pth")
    return export(folder / "net.pth")


def fifo(folder: Path) -> Words:
    os.mkfifo(folder / "net.pth")
    return export(folder / "net.pth")


def device(folder: Path) -> Words:
    return ["export", "--ckpt", "/dev/zero", "--out", folder / "net.onnx"]


def unix_socket(folder: Path) -> Words:
    with socket.socket(socket.AF_UNIX) as bound:
        os.chdir(folder)  # a socket's whole path is short
        bound.bind("net.pth")
    return export(folder / "net.pth")


def huge(folder: Path) -> Words:
    path = saved(folder, released())
    os.truncate(path, (8 << 30) + 1)
    return export(path)


PATHS = [
    Row(14, "input.missing", 66, absent),
    Row(14, "input.not_regular", 66, lambda folder: export(folder), case="folder"),
    Row(14, "input.not_regular", 66, loop, case="loop"),
    Row(15, "input.not_regular", 66, fifo, case="fifo"),
    Row(15, "input.not_regular", 66, device, case="device"),
    Row(15, "input.not_regular", 66, unix_socket, case="socket"),
]


def under(key: str) -> Make:
    return holding(lambda content: content.update({key: content.pop("model")}))


def bare(folder: Path) -> Words:
    """A state dict alone tells no strides, and no published network is as narrow."""
    return export(saved(folder, OrderedDict(state_dict())))


def both(content: dict[str, Any]) -> None:
    content["model_ema"] = state_dict()


def prefixed(prefix: str) -> Change:
    def change(content: dict[str, Any]) -> None:
        content["model"] = {prefix + n: t for n, t in content["model"].items()}

    return change


def half_prefixed(held: dict[str, Any]) -> None:
    held["module.cls2.0.bias"] = held.pop("cls2.0.bias")


RELEASED = [
    good(18, holding(lambda content: content.update(optimizer={"state": {}}, scaler=None))),
    *refused(19, "ckpt.unsafe", "path_in_args", says=r"pathlib.PosixPath; .*torch.save\("),
    *refused(19, "ckpt.unsafe", "whole_module", says="Linear"),
    *refused(19, "ckpt.unsafe", "torchscript", says="TorchScript"),
    *(good(20, under(k), says=f"using '{k}'", case=k)
      for k in ("model", "model_ema", "module", "state_dict")),
    Row(20, "ckpt.arch", 65, bare, "not a published VanillaNet", case="bare"),
    good(21, holding(both), says=r"using 'model_ema' \(also present: 'model'\)"),
    *(good(22, holding(prefixed(p)), says=f"dropped the prefix '{p}'", case=p.strip("._"))
      for p in ("module.", "_orig_mod.")),
    Row(22, "ckpt.keys", 65, weights(half_prefixed), "only some keys have the prefix"),
    Row(23, "ckpt.classes", 65, holding(both, "--num-classes", 1000), "5 outputs, not 1000"),
    good(23, holding(lambda _: None, "--num-classes", 5), case="agrees"),
]  # fmt: skip


def fewer(held: dict[str, Any]) -> None:
    for name in ("cls1.2.bias", "cls1.2.weight", "stages.1.act.weight", "stem2.1.bias"):
        held.pop(name)


def widened(dtype: torch.dtype) -> Change:
    def change(content: dict[str, Any]) -> None:
        tensors: dict[str, Tensor] = content["model"]
        content["model"] = {
            n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()
        }

    return change


def unfinished(**fields: Any) -> Make:
    def make(folder: Path) -> Words:
        return export(saved(folder, released(args=fields) | {"epoch": 40}))

    return make


def silent(content: dict[str, Any]) -> None:
    content.pop("epoch")


WEIGHTS = [
    Row(24, "ckpt.keys", 65, weights(fewer), r"4 missing: .*, .*, .* and 1 more"),
    Row(25, "ckpt.keys", 65, weights(put(extra=torch.zeros(1))), "1 unexpected: extra"),
    Row(26, "ckpt.shape", 65, weights(put(stem1__1__bias=torch.zeros(9))),
        r"stem1.1.bias is \(9,\), expected \(8,\)"),
    Row(27, "ckpt.nonfinite", 65, weights(filled("cls2.0.bias", float("nan"))),
        r"cls2.0.bias \(2\)", case="nan"),
    Row(27, "ckpt.nonfinite", 65, weights(filled("stem1.1.running_var", float("inf"))),
        r"stem1.1.running_var \(2\)", case="infinite"),
    Row(28, "ckpt.variance", 65, weights(filled("stem1.1.running_var", -1e-3)),
        r"negative running variances in stem1.1.running_var \(2\)"),
    good(29, weights(filled("stem1.1.running_var", 0.0)), code="ckpt.variance_small",
         says="2 channels"),
    *(good(30, holding(widened(d)), says=f"converted {str(d)[6:]} weights", case=str(d)[6:])
      for d in (torch.float16, torch.bfloat16, torch.float64)),
    Row(30, "ckpt.overflow", 65,
        weights(put(cls2__0__bias=torch.full((5,), 1e39, dtype=torch.float64))), "cls2"),
    Row(31, "ckpt.lambda", 65, unfinished(decay_linear=False),
        "epoch 40 of decay_epochs 100: lambda = 0.3455,.*--no-merge"),
    Row(31, "ckpt.lambda", 65, unfinished(decay_epochs=41), "lambda = 0.9756", case="nearly"),
    good(32, holding(silent), code="ckpt.lambda_assumed", says="lambda is assumed to be 1"),
    good(33, holding(lambda _: None, deploy=True), says="already in deploy form"),
    Row(34, "ckpt.mixed", 65, weights(put(stages__1__conv__weight=torch.zeros(1)))),
]  # fmt: skip


def resnet(folder: Path) -> Words:
    return export(saved(folder, {"model": {"layer1.0.conv1.weight": torch.zeros(1)}}))


def of_type(value: object) -> Make:
    return weights(put(cls2__0__bias=value))


def keyed(key: Any) -> Make:
    return weights(lambda held: held.update({key: torch.zeros(1)}))


def shared(held: dict[str, Any]) -> None:
    flat = torch.rand(16)
    held["stem1.1.bias"], held["stem1.1.weight"] = flat[:8], flat[8:]
    held["cls2.0.bias"] = torch.rand(10)[::2]
    held["stem2.1.bias"] = nn.Parameter(torch.rand(8))


HELD = [
    Row(36, "ckpt.arch", 65, resnet, "not a VanillaNet: layer1.0.conv1.weight"),
    Row(36, "ckpt.arch", 65, holding(lambda content: content.pop("args")),
        "not a published VanillaNet: 2 blocks with dims 8 12 16", case="widths"),
    *refused(37, "ckpt.tensor", "quantised", "sparse", "meta"),
    Row(37, "ckpt.tensor", 65, of_type(torch.zeros(5, dtype=torch.complex64)), "Complex",
        case="complex"),
    Row(37, "ckpt.tensor", 65, of_type(torch.zeros(5).to(torch.float8_e4m3fn)), case="float8"),
    Row(37, "ckpt.tensor", 65, of_type(torch.zeros(5, dtype=torch.int64)), "cls2.0.bias",
        case="integer"),
    Row(37, "ckpt.keys", 65, of_type(0.5), "cls2.0.bias is a float", case="number"),
    *refused(37, "ckpt.unsafe", "negated"),
    Row(38, "ckpt.keys", 65, keyed(3), case="number"),
    Row(38, "ckpt.keys", 65, keyed("k" * 10_000_000), case="long"),
    Row(38, "ckpt.keys", 65, keyed("x\x1b[31m\n"), r"x\\x1b\[31m\\n", case="ansi"),
    good(38, attack("shadowed_methods"), case="shadowed_methods"),
    *refused(38, "ckpt.format", "shadowed_class"),
    Row(38, "ckpt.args", 65, args(decay_epochs="100"), "args.decay_epochs", case="field"),
    good(39, weights(shared)),
]  # fmt: skip


def told(**metadata: str) -> Make:
    return lambda folder: export(safetensors(folder, metadata=metadata))


def without(*fields: str) -> Make:
    def edit(header: dict[str, Any]) -> None:
        for field in fields:
            header["__metadata__"].pop(field)

    return lambda folder: export(safetensors(folder, edit))


def verify_against(folder: Path) -> Words:
    """A safetensors file is taken where a checkpoint is, whatever its name."""
    path = safetensors(folder).rename(folder / "net.bin")
    in_process(export(path))
    return ["verify", folder / "net.onnx", "--against", path]


SAFETENSORS = [
    Row(40, "", 0, verify_against, files="unchanged", prints="same within", case="verify"),
    good(40, lambda folder: export(safetensors(folder)), says="small"),
    good(40, lambda folder: export(safetensors(folder, deploy=True)), case="deploy"),
    good(40, without("epoch"), code="ckpt.lambda_assumed", case="no_epoch"),
    good(40, without("decay_epochs"), code="ckpt.lambda_assumed", case="no_decay"),
    Row(40, "ckpt.arch", 65, without("strides"), case="no_strides"),
    Row(40, "ckpt.lambda", 65, told(epoch="40"), "lambda = 0.4", case="unfinished"),
    Row(40, "ckpt.args", 65, told(strides='"2"'), "args.strides", case="text"),
    *refused(40, "ckpt.format", "st_hole", "st_overlap", "st_trailing", "st_huge_header",
             "st_duplicate_key", "st_wrong_size", "st_odd_shape", "st_deep_header",
             "st_no_utf8", "st_metadata_list"),
    *refused(40, "ckpt.truncated", "st_truncated", says="has 19665 of 19673 bytes"),
    *refused(40, "ckpt.tensor", "st_float8", says="F8_E4M3"),
    *refused(40, "ckpt.args", "st_metadata_no_json", "st_metadata_deep"),
]  # fmt: skip


ROWS = [*DAMAGED, *BOMBS, *PATHS, *RELEASED, *WEIGHTS, *HELD, *SAFETENSORS]


@by_number(ROWS)
def test_row(row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # which a row may leave
    hold(row, tmp_path)


def test_017_ckpt_too_big(tmp_path: Path) -> None:
    """A sparse file: its bytes are not compared, as there are too many."""
    words = huge(tmp_path)
    before = (tmp_path / "net.pth").stat()
    (tmp_path / "other").mkdir()
    row = Row(17, "ckpt.too_big", 65, lambda _: [*words[:4], tmp_path / "other" / "x.onnx"])
    hold(row, tmp_path / "other")
    assert (tmp_path / "net.pth").stat() == before


def test_016_input_permission() -> None:
    """As a user who is not root, in a folder that he may enter."""

    def make(folder: Path) -> Words:
        path = saved(folder, released())
        path.chmod(0)
        folder.chmod(0o777)
        return export(path)

    def as_nobody(words: Words) -> Outcome:
        was = os.geteuid()
        if was == 0:
            os.seteuid(65534)
        try:
            return in_process(words)
        finally:
            os.seteuid(was)

    with tempfile.TemporaryDirectory() as folder:
        hold(Row(16, "input.permission", 77, make), Path(folder), as_nobody)


def test_020_ok_bare(tmp_path: Path) -> None:
    """Alone in its file, a published network is known by its widths."""
    with torch.device("meta"):
        told = VanillaNet(ARCHITECTURES["vanillanet_5"]).state_dict()
    shapes = {n: t.shape for n, t in told.items() if "num_batches" not in n}
    held = {n: torch.zeros(s, dtype=torch.bfloat16) for n, s in shapes.items()}
    loaded = load_checkpoint(saved(tmp_path, OrderedDict(held)))
    assert (loaded.arch.name, loaded.key_used) == ("vanillanet_5", None)
    assert "using the bare state dict" in loaded.notes


def test_035_ckpt_arch_unknown() -> None:
    """On shapes alone: such weights have half a gigabyte."""
    arch = ARCHITECTURES["vanillanet_13_x1_5"]
    with torch.device("meta"):
        tensors = VanillaNet(arch).state_dict()

    def inferred(said: str | None, given: str | None) -> str:
        told = Arguments(model=said)
        found = infer(tensors, "training", told, arch_name=given, image_size=None)
        return found[0].name

    with pytest.raises(UsageFault, match=r"x1_5_ada_pool; .*--arch") as caught:
        inferred(None, None)
    assert (caught.value.code, caught.value.exit_status) == ("ckpt.arch_unknown", 2)
    for name in (arch.name, f"{arch.name}_ada_pool"):
        assert inferred(name, None) == name
        assert inferred(None, name) == name
