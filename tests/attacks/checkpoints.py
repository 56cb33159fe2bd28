"""Checkpoints that a stranger may send, each made by code in a folder of its own.

``CORPUS`` holds them by name; the numbers in comments are rows of the catalogue of faults.
Whatever a file would do if it were obeyed leaves ``canary`` in its folder.
"""

from __future__ import annotations

__all__ = [
    "CANARY",
    "CORPUS",
    "SMALL",
    "flip",
    "packed",
    "released",
    "rezipped",
    "safetensors",
    "saved",
    "state_dict",
]

import argparse
import io
import json
import os
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vntools.models.arch import Architecture
from vntools.models.vanillanet import DeployVanillaNet, VanillaNet

Records = dict[str, bytes]
SMALL = Architecture("small", (8, 12, 16), (2, 1), num_classes=5, image_size=32)
CANARY = "canary"


@cache
def _state(deploy: bool) -> dict[str, Tensor]:
    network = DeployVanillaNet(SMALL) if deploy else VanillaNet(SMALL)
    draw = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=draw)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=draw)
            module.get_buffer("running_var").uniform_(0.2, 2.0, generator=draw)
    return {n: t.detach() for n, t in network.state_dict().items()}


def state_dict(*, deploy: bool = False) -> dict[str, Any]:
    """A small network's weights; the caller's own."""
    return {n: t.clone() for n, t in _state(deploy).items()}


def released(*, deploy: bool = False, args: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a file of the released format holds; ``args`` adds fields to its args."""
    fields = {"decay_epochs": 100, "dims": SMALL.dims, "strides": SMALL.strides}
    fields |= {"model": "small", "input_size": SMALL.image_size, **(args or {})}
    namespace = argparse.Namespace(**fields)
    return {"model": state_dict(deploy=deploy), "epoch": 299, "args": namespace}


def saved(folder: Path, content: object, **kwargs: Any) -> Path:
    """``net.pth`` of torch.save."""
    torch.save(content, folder / "net.pth", **kwargs)
    return folder / "net.pth"


def rezipped(
    folder: Path,
    edit: Callable[[Records], object],
    *,
    held: object = None,
    compression: int = 0,
) -> Path:
    """A released file with its records changed and its CRCs right again."""
    source = io.BytesIO()
    torch.save(held or released(), source)
    with zipfile.ZipFile(source) as archive:
        records = {e.filename: archive.read(e) for e in archive.infolist()}
    edit(records)
    return _zip(folder, records, compression=compression)


def _zip(folder: Path, records: Records, *, compression: int = 0) -> Path:
    with zipfile.ZipFile(folder / "net.pth", "w", compression) as archive:
        for name, data in records.items():
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return folder / "net.pth"


def packed(folder: Path, program: bytes, **records: bytes) -> Path:
    """A zip archive in torch's layout around any pickle; ``_0=`` is the record ``data/0``."""
    data = {f"archive/data/{k[1:]}": v for k, v in records.items()}
    head = {"archive/data.pkl": program, "archive/version": b"3\n"}
    return _zip(folder, head | {"archive/byteorder": b"little"} | data)


def flip(path: Path, record: str, *, at: int = 0) -> Path:
    """Change one bit of a record, and nothing else of the file."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entry = next(e for e in archive.infolist() if e.filename.endswith(record))
    name, extra = struct.unpack_from("<2H", data, entry.header_offset + 26)
    data[entry.header_offset + 30 + name + extra + at] ^= 1
    path.write_bytes(data)
    return path


def _record(records: Records, ending: str) -> str:
    return next(n for n in records if n.endswith(ending))


def content(folder: Path, data: bytes) -> Path:
    """``net.pth`` of these bytes."""
    (folder / "net.pth").write_bytes(data)
    return folder / "net.pth"


# Pickles by hand: protocol 2, as torch.save writes it.


def program(*opcodes: bytes) -> bytes:
    return b"\x80\x02" + b"".join(opcodes) + b"."


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def put(index: int) -> bytes:
    return b"r" + struct.pack("<I", index)


def get(index: int) -> bytes:
    return b"j" + struct.pack("<I", index)


def integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def storage(items: int, *, key: str = "0", kind: str = "Float") -> bytes:
    head = text("storage") + name("torch", f"{kind}Storage") + text(key) + text("cpu")
    return b"(" + head + integer(items) + b"tQ"


def tensor(items: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    shapes = b"".join(b"(" + b"".join(map(integer, n)) + b"t" for n in (size, stride))
    empty = name("collections", "OrderedDict") + b")R"
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    return rebuild + b"(" + storage(items) + b"K\x00" + shapes + b"\x89" + empty + b"tR"


def under(key: str, value: bytes) -> bytes:
    """A dict of one entry."""
    return b"}" + text(key) + value + b"s"


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


# 1 to 8: no checkpoint, damaged, compressed.


def empty(folder: Path) -> Path:
    return content(folder, b"")


def truncated(folder: Path, *, part: float = 0.9) -> Path:
    data = saved(folder, released()).read_bytes()
    return content(folder, data[: int(len(data) * part)])


def html(folder: Path) -> Path:
    return content(folder, b"<!DOCTYPE html><html><title>Sign in</title></html>")


def git_lfs(folder: Path) -> Path:
    return content(folder, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n")


def _touches(folder: Path) -> Calls:
    # The deprecated function is the one that every such file calls.
    return Calls(os.system, f"touch {folder / CANARY}")  # pyright: ignore[reportDeprecated]


def _shell(folder: Path, protocol: int = 2) -> bytes:
    return pickle.dumps({"model": _touches(folder)}, protocol=protocol)


def shell(folder: Path, *, protocol: int = 2) -> Path:
    return packed(folder, _shell(folder, protocol))


def shell_bare(folder: Path) -> Path:
    return content(folder, _shell(folder))


def shell_legacy(folder: Path) -> Path:
    return saved(folder, {"model": _touches(folder)}, _use_new_zipfile_serialization=False)


def shell_tar(folder: Path) -> Path:
    data = _shell(folder)
    with tarfile.open(folder / "net.pth", "w", format=tarfile.USTAR_FORMAT) as archive:
        member = tarfile.TarInfo("pickle")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return folder / "net.pth"


def shell_instance(folder: Path) -> Path:
    """The opcode INST imports and calls at once."""
    return packed(folder, program(b"(" + text(f"touch {folder / CANARY}") + b"ios\nsystem\n"))


def shell_built(folder: Path) -> Path:
    """A class that runs its state."""
    target = name("types", "CodeType") + b")\x81" + under("a", b"K\x01") + b"b"
    return packed(folder, program(target))


def plugin(folder: Path) -> Path:
    """A library of the file's folder."""
    library = name("ctypes", "CDLL") + text(str(folder / "x.so")) + b"\x85R"
    return packed(folder, program(library))


def legacy(folder: Path) -> Path:
    return saved(folder, released(), _use_new_zipfile_serialization=False)


def flipped_weight(folder: Path) -> Path:
    return flip(saved(folder, released()), "data/0")


def flipped_pickle(folder: Path) -> Path:
    return flip(saved(folder, released()), "data.pkl", at=40)


def without_checksums(folder: Path) -> Path:
    torch.serialization.set_crc32_options(False)
    try:
        return saved(folder, released())
    finally:
        torch.serialization.set_crc32_options(True)


def deflated(folder: Path) -> Path:
    return rezipped(folder, lambda _: None, compression=zipfile.ZIP_DEFLATED)


def zip_bomb(folder: Path) -> Path:
    records = {"archive/data.pkl": program(b"}"), "archive/data/0": bytes(200 << 20)}
    return _zip(folder, records, compression=zipfile.ZIP_DEFLATED)


def encrypted(folder: Path) -> Path:
    """The flag alone, in the directory and before each record."""
    data = bytearray(rezipped(folder, lambda _: None).read_bytes())
    for mark, at in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        found = data.find(mark)
        while found >= 0:
            data[found + at] |= 1
            found = data.find(mark, found + 1)
    return content(folder, bytes(data))


# 9 to 13: memory, sizes, the archive's directory, bombs.


def allocates(folder: Path, *, call: Calls | None = None) -> Path:
    made = call or Calls(bytearray, 3 << 30)
    return packed(folder, pickle.dumps({"model": made}, protocol=2))


def uninitialised(folder: Path) -> Path:
    return allocates(folder, call=Calls(torch.Tensor, 1 << 20))


def storage_made(folder: Path) -> Path:
    """A class that the unpickler allows, called: memory that nobody has written."""
    made = name("torch", "FloatStorage") + integer(1 << 30) + b"\x85R"
    return packed(folder, program(under("model", made)))


def stride_zero(folder: Path) -> Path:
    made = released()
    made["model"]["cls2.0.bias"] = torch.zeros(1).expand(1 << 40)
    return saved(folder, made)


def larger_than_storage(folder: Path) -> Path:
    """Torch grows a storage that is too small for its tensor."""
    made = under("model", under("stem1.0.weight", tensor(1, (1 << 30,), (1,))))
    return packed(folder, program(made), _0=bytes(4))


def size_overflows(folder: Path) -> Path:
    """2**128 elements, which is 0 in 64 bits."""
    shape = (1 << 30,) * 4 + (1 << 8,)
    made = under("model", under("stem1.0.weight", tensor(1, shape, (1,) * 5)))
    return packed(folder, program(made), _0=bytes(4))


def shortened_record(folder: Path) -> Path:
    def shorten(records: Records) -> None:
        key = _record(records, "data/0")
        records[key] = records[key][:16]

    return rezipped(folder, shorten)


def missing_record(folder: Path) -> Path:
    return rezipped(folder, lambda records: records.pop(_record(records, "data/0")))


def big_endian(folder: Path) -> Path:
    return rezipped(folder, lambda r: r.update({_record(r, "byteorder"): b"big"}))


def outside_record(folder: Path) -> Path:
    """A storage whose key leads out of ``data/``."""
    made = b"(" + text("storage") + name("torch", "FloatStorage") + text("../version")
    return packed(folder, program(made, text("cpu"), b"K\x00tQ"))


def two_pickles(folder: Path) -> Path:
    return rezipped(folder, lambda r: r.update({"other/data.pkl": _shell(folder)}))


def two_pickles_by_case(folder: Path) -> Path:
    """Torch looks names up without regard to case, from the first one on."""
    return rezipped(folder, lambda r: _first(r, "archive/DATA.PKL", _shell(folder)))


def _first(records: Records, key: str, data: bytes) -> None:
    kept = dict(records)
    records.clear()
    records.update({key: data, **kept})


def leaves_archive(folder: Path) -> Path:
    return rezipped(folder, lambda r: r.update({"archive/../../x": b"x"}))


def nul_in_name(folder: Path) -> Path:
    data = rezipped(folder, lambda r: r.update({"archive/data.pklX": b"x"})).read_bytes()
    return content(folder, data.replace(b"data.pklX", b"data.pkl\0"))


def two_directories(folder: Path) -> Path:
    """The end record's offset leads to one directory; another lies next to it."""
    harmful = packed(folder, _shell(folder)).read_bytes()
    harmless = packed(folder, program(b"}")).read_bytes()
    at, end = struct.unpack_from("<L", harmful, len(harmful) - 6)[0], harmful[-22:]
    second = harmless[:-22]
    behind = bytearray(harmful[:-22] + second + end)
    size = len(harmless) - 22 - struct.unpack_from("<L", harmless, len(harmless) - 6)[0]
    struct.pack_into("<2L", behind, len(behind) - 10, size, at)
    return content(folder, bytes(behind))


def overlapping_records(folder: Path) -> Path:
    """Two entries of the directory share one place."""
    data = bytearray(rezipped(folder, lambda _: None).read_bytes())
    first = data.find(b"PK\x01\x02")
    second = data.find(b"PK\x01\x02", data.find(b"PK\x01\x02", first + 1) + 1)
    data[second + 42 : second + 46] = data[first + 42 : first + 46]
    return content(folder, bytes(data))


def _doubled(levels: int) -> bytes:
    """A tuple of one twice, many times over: 2**levels leaves."""
    lines = [b"(" + get(i) + get(i) + b"t" + put(i + 1) for i in range(levels)]
    return b"(K\x01" + put(0) + b"".join(lines) + b"t"


def memo_bomb(folder: Path) -> Path:
    """10**15 leaves, where nobody asks for them: beside weights that are good."""
    bomb: tuple[Any, ...] = (1, 1)
    for _ in range(50):
        bomb = (bomb, bomb)
    return saved(folder, released(args={"note": bomb}))


def bomb_as_key(folder: Path) -> Path:
    """Hashing the key takes for ever."""
    return packed(folder, program(b"}" + _doubled(50) + b"K\x01s"))


def bomb_as_argument(folder: Path) -> Path:
    """An error message that shows the argument takes for ever."""
    return packed(folder, program(_doubled(50), b")R"))


def deep_key(folder: Path) -> Path:
    """Hashing the key overflows the C stack."""
    return packed(folder, program(b"})" + b"\x85" * 200_000 + b"K\x01s"))


def deep_lists(folder: Path) -> Path:
    return packed(folder, program(b"]" * 200_000 + b"a" * 199_999))


def too_many_opcodes(folder: Path) -> Path:
    return packed(folder, program(b"(" + b"}" * 3_000_000 + b"t"))


def dict_copies(folder: Path) -> Path:
    """One dict becomes the attributes of thousands of objects."""
    items = b"}(" + b"".join(text(f"k{i}") + b"K\x01" for i in range(2000)) + b"u"
    copy = name("argparse", "Namespace") + put(2) + b")\x81" + get(1) + b"b"
    rest = (get(2) + b")\x81" + get(1) + b"b") * 2000
    return packed(folder, program(b"(" + items + put(1) + copy + rest + b"t"))


def ordered_copies(folder: Path) -> Path:
    pairs = b"](" + b"".join(text(f"k{i}") + b"K\x01\x86" for i in range(2000)) + b"e"
    first = name("collections", "OrderedDict") + put(2) + b"(" + get(1) + b"tR"
    rest = (get(2) + b"(" + get(1) + b"tR") * 2000
    return packed(folder, program(b"(" + pairs + put(1) + first + rest + b"t"))


def same_dict_everywhere(folder: Path) -> Path:
    inner = b"}(" + b"".join(integer(i) + b"K\x01" for i in range(4000)) + b"u" + put(1)
    keys = b"".join(integer(i) + get(1) for i in range(4000))
    return packed(folder, program(b"}(" + text("a") + inner + keys + b"u"))


def colliding_keys(folder: Path) -> Path:
    """Integers of one hash: putting n into a dict takes n*n steps."""
    keys = (i * ((1 << 61) - 1) for i in range(1, 20_000))
    numbers = b"".join(b"\x8a\x0a" + k.to_bytes(10, "little") + b"N" for k in keys)
    return packed(folder, program(b"}(" + numbers + b"u"))


# 19, 37, 38: what does not belong there.


def path_in_args(folder: Path) -> Path:
    return saved(folder, released(args={"output_dir": folder}))


def whole_module(folder: Path) -> Path:
    return saved(folder, {"model": nn.Linear(1, 1)})


def torchscript(folder: Path) -> Path:
    return rezipped(folder, lambda r: r.update({"archive/constants.pkl": program(b")")}))


def _with(value: object, key: object = "cls2.0.bias") -> Callable[[Path], Path]:
    """A released file with one weight more or another one."""

    def make(folder: Path) -> Path:
        made = released()
        made["model"][key] = value
        return saved(folder, made)

    return make


def quantised(folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather not have them
        value: Tensor = torch.quantize_per_tensor(torch.ones(5), 0.1, 0, torch.qint8)
    return _with(value)(folder)


def sparse(folder: Path) -> Path:
    return _with(torch.eye(5).to_sparse())(folder)


def meta(folder: Path) -> Path:
    return _with(torch.empty(5, device="meta"))(folder)


def negated(folder: Path) -> Path:
    """A tensor whose sign is kept in a flag, which NumPy does not know."""
    odd = tensor(1, (1,), (1,)).removesuffix(b"tR") + under("neg", b"\x88") + b"tR"
    return packed(folder, program(under("model", under("a", odd))), _0=bytes(4))


def shadowed_methods(folder: Path) -> Path:
    """Attributes in the place of a dict's methods."""
    content = OrderedDict(released(), model=OrderedDict(state_dict()))
    for held in (content, content["model"]):
        vars(held).update({m.upper(): "x" for m in ("items", "values", "keys", "get")})

    def rename(records: Records) -> None:
        data = records["archive/data.pkl"]
        for method in (b"ITEMS", b"VALUES", b"KEYS", b"GET"):
            data = data.replace(method, method.lower())
        records["archive/data.pkl"] = data

    return rezipped(folder, rename, held=content)


def shadowed_class(folder: Path) -> Path:
    """The namespace's attributes are no text, or are those that every object has."""
    keys = under("__class__", name("collections", "OrderedDict")) + b"K\x01K\x02s"
    return packed(folder, program(name("argparse", "Namespace"), b")\x81", keys, b"b"))


def image_without_end(folder: Path) -> Path:
    return saved(folder, released(args={"input_size": 1_000_000}))


def large_image(folder: Path) -> Path:
    """Less than an image file may have, but a few kB ask for it."""
    return saved(folder, released(args={"input_size": 4096}))


def maps_of_many_values(folder: Path) -> Path:
    """No stride, so that each of many channels is as large as the image."""
    held = released(args={"input_size": 4096, "stem_stride": 1, "strides": (1, 1)})
    return saved(folder, held)


def maps_without_end(folder: Path) -> Path:
    return saved(folder, released(args={"adaptive": (100_000, 0)}))


def name_without_end(folder: Path) -> Path:
    return saved(folder, released(args={"model": "v" * 1_000_000}))


# 40: safetensors.


def safetensors(
    folder: Path,
    edit: Callable[[dict[str, Any]], object] = lambda _: None,
    *,
    metadata: dict[str, Any] | None = None,
    deploy: bool = False,
    tail: bytes = b"",
) -> Path:
    """``net.safetensors``, its header changed."""
    held, data = dict[str, Any](), b""
    for key, value in state_dict(deploy=deploy).items():
        raw = value.numpy().tobytes()
        kind = "I64" if value.dtype == torch.int64 else "F32"
        span = [len(data), len(data) + len(raw)]
        held[key] = {"dtype": kind, "shape": list(value.shape), "data_offsets": span}
        data += raw
    told = {"dims": json.dumps(SMALL.dims), "strides": json.dumps(SMALL.strides)}
    told |= {"model": "small", "input_size": "32", "epoch": "299", "decay_epochs": "100"}
    header = {"__metadata__": told | (metadata or {}), **held}
    edit(header)
    return _safetensors(folder, json.dumps(header).encode(), data + tail)


def _safetensors(folder: Path, header: bytes, data: bytes = b"") -> Path:
    path = folder / "net.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


_STEM = "stem1.0.bias"


def st_hole(folder: Path) -> Path:
    return safetensors(folder, lambda h: h.pop(_STEM))


def st_overlap(folder: Path) -> Path:
    return safetensors(folder, lambda h: h.update({"again": h[_STEM]}))


def st_trailing(folder: Path) -> Path:
    return safetensors(folder, tail=b"x")


def st_truncated(folder: Path) -> Path:
    path = safetensors(folder)
    path.write_bytes(path.read_bytes()[:-8])
    return path


def st_huge_header(folder: Path) -> Path:
    path = folder / "net.safetensors"
    path.write_bytes((4_000_000_000).to_bytes(8, "little") + b'{"a":1}')
    return path


def st_duplicate_key(folder: Path) -> Path:
    """Readers differ on which of the two counts."""
    span = '{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}'
    header = f'{{"a":{span % (0, 4)},"a":{span % (0, 4)}}}'
    return _safetensors(folder, header.encode(), bytes(4))


def st_wrong_size(folder: Path) -> Path:
    return safetensors(folder, lambda h: h[_STEM].update(shape=[1 << 62]))


def st_odd_shape(folder: Path) -> Path:
    return safetensors(folder, lambda h: h[_STEM].update(shape=[True, 8.0]))


def st_deep_header(folder: Path) -> Path:
    return _safetensors(folder, b'{"a":' + b"[" * 1_000_000)


def st_no_utf8(folder: Path) -> Path:
    return _safetensors(folder, b'{"\xff":1}')


def st_float8(folder: Path) -> Path:
    return safetensors(folder, lambda h: h[_STEM].update(dtype="F8_E4M3"))


def st_metadata_list(folder: Path) -> Path:
    return safetensors(folder, lambda h: h.update(__metadata__=[1]))


def st_metadata_no_json(folder: Path) -> Path:
    return safetensors(folder, metadata={"decay_epochs": "__import__('os')"})


def st_metadata_deep(folder: Path) -> Path:
    return safetensors(folder, metadata={"dims": "[" * 10_000})


CORPUS: dict[str, Callable[[Path], Path]] = {
    made.__name__: made
    for made in (
        empty, truncated, html, git_lfs, shell, shell_bare, shell_legacy, shell_tar,
        shell_instance, shell_built, plugin, legacy, flipped_weight, flipped_pickle,
        without_checksums, deflated, zip_bomb, encrypted, allocates, uninitialised,
        storage_made, stride_zero, larger_than_storage, size_overflows, shortened_record,
        missing_record, big_endian, outside_record, two_pickles, two_pickles_by_case,
        leaves_archive, nul_in_name, two_directories, overlapping_records, memo_bomb,
        bomb_as_key, bomb_as_argument, deep_key, deep_lists, too_many_opcodes, dict_copies,
        ordered_copies, same_dict_everywhere, colliding_keys, path_in_args, whole_module,
        torchscript, quantised, sparse, meta, negated, shadowed_methods, shadowed_class,
        image_without_end, large_image, maps_of_many_values, maps_without_end,
        name_without_end,
        st_hole, st_overlap, st_trailing, st_truncated, st_huge_header, st_duplicate_key,
        st_wrong_size,
        st_odd_shape, st_deep_header, st_no_utf8, st_float8, st_metadata_list,
        st_metadata_no_json, st_metadata_deep,
    )
} | {
    f"{made.__name__}_{tail}": partial(made, **{option: value})
    for made, option, value, tail in (
        (truncated, "part", 0.5, "half"),
        (truncated, "part", 0.99, "end"),
        (shell, "protocol", 0, "text"),
        (shell, "protocol", 4, "frames"),
    )
}  # fmt: skip
