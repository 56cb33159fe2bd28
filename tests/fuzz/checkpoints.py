"""Mutants of small checkpoints, and what must hold of each.

A file loads with the very weights that it was saved with, or is refused by an error of ours;
nothing that it names is done. The mutants are of three kinds: bytes of the whole file, fields
of the zip directory, and the pickle or the safetensors header with its checksums right again.
"""

from __future__ import annotations

__all__ = ["CANARY", "check", "mutants"]

import json
import pickletools
import random
import struct
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tests.attacks.checkpoints import released, safetensors, saved, state_dict
from vntools.base.errors import VntoolsError
from vntools.models.checkpoint import load_checkpoint

CANARY = "fuzz-canary"
"""What a pickle that is obeyed makes in the working directory."""

_MOST_SECONDS = 5
_PICKLE = "net/data.pkl"
_ODD = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_NAMES = (
    "posix system", "os mkdir", "builtins eval", "builtins getattr", "torch Tensor",
    "torch load", "torch.storage UntypedStorage", "torch FloatStorage", "torch HalfStorage",
    "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3",
    "torch._utils _rebuild_parameter", "torch.nn.parameter Parameter", "argparse Namespace",
    "collections OrderedDict", "collections Counter", "__builtin__ set", "_codecs encode",
    "torch._tensor _rebuild_from_type_v2", "numpy dtype",
)  # fmt: skip
_MKDIR = b"cposix\nmkdir\nX" + struct.pack("<I", len(CANARY)) + CANARY.encode() + b"\x85R"
_SNIPPETS = (
    b"(", b")", b"0", b"1", b"2", b".", b"}", b"]", b"N", b"\x88", b"\x85", b"\x86", b"\x87",
    b"t", b"R", b"b", b"\x81", b"Q", b"s", b"u", b"a", b"e", b"h\x00", b"h\x01", b"q\x00",
    b"K\x00", b"J\xff\xff\xff\x7f", b"J\xff\xff\xff\xff", b"\x8a\x09" + b"\xff" * 8 + b"\x7f",
    b"X\x01\x00\x00\x00a", b"\x82\x01", b"\x93", b"\x92", b"P0\n", b"\x8c\x01a", b"\x94",
    _MKDIR, b"(X\x01\x00\x00\x00aios\nsystem\n", b"2" * 50, b"\x85" * 500, b"](" * 100,
)  # fmt: skip


@cache
def _bases() -> tuple[bytes, bytes, bytes]:
    """A file of torch.save, the same by zipfile, and a safetensors file."""
    with tempfile.TemporaryDirectory() as folder:
        plain = saved(Path(folder), released()).read_bytes()
        tensors = safetensors(Path(folder)).read_bytes()
    return plain, _zip(_records(plain)), tensors


def _records(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _zip(records: dict[str, bytes]) -> bytes:
    made = BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(made, "w") as archive:
        warnings.simplefilter("ignore")  # a name twice is meant
        for name, data in records.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return made.getvalue()


def mutants(seed: int, count: int) -> Iterator[bytes]:
    """``count`` files drawn from ``seed``."""
    draw = random.Random(seed)
    for _ in range(count):
        yield draw.choice(_MUTATORS)(draw)


def _flipped(draw: random.Random) -> bytes:
    data = bytearray(draw.choice(_bases()))
    # Half of the flips go where the structure is.
    spans = [(0, len(data)), (0, 9000), (len(data) - 6000, len(data))]
    first, behind = draw.choice(spans)
    for _ in range(draw.choice((1, 1, 1, 4, 30))):
        data[draw.randrange(first, behind)] ^= 1 << draw.randrange(8)
    return bytes(data)


def _cut(draw: random.Random) -> bytes:
    data = draw.choice(_bases())
    at = draw.randrange(0, len(data), 64)
    return draw.choice((data[:at], data[at:], data[:at] + data[at + 64 :], data + data[:at]))


def _zip_field(draw: random.Random) -> bytes:
    """Fields of local headers, directory entries and end records, set to odd values."""
    data = bytearray(draw.choice(_bases()[:2]))
    marks = {b"PK\x03\x04": 30, b"PK\x01\x02": 46, b"PK\x05\x06": 22, b"PK\x06\x06": 56}
    marks[b"PK\x06\x07"] = 20
    places = [
        (at, length)
        for mark, length in marks.items()
        for at in range(len(data) - length + 1)
        if data.startswith(mark, at)
    ]
    for _ in range(draw.choice((1, 1, 2))):
        at, length = draw.choice(places)
        field = at + draw.randrange(4, length - 1, 2)
        width = draw.choice((2, 4))
        was = int.from_bytes(data[field : field + width], "little")
        value = draw.choice((*_ODD, was + 1, was - 1, draw.getrandbits(32)))
        data[field : field + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(data)


def _zip_entries(draw: random.Random) -> bytes:
    """Records twice, renamed, missing, moved; the archive sound."""
    records = _records(_bases()[0])
    name = draw.choice([_PICKLE, *records])
    other = draw.choice(list(records))
    variants: tuple[Callable[[], object], ...] = (
        lambda: records.pop(name),
        lambda: records.update({name.upper(): records[other]}),
        lambda: records.update({f"other/{name}": records[other]}),
        lambda: records.update({name.replace("/", "//"): records[other]}),
        lambda: records.update({name: records[other] + b"\0"}),  # of another length
        lambda: records.update({name: records[name][: draw.randrange(64)]}),
        lambda: records.update({f"{name}\0": b""}),
        lambda: records.update({"net/data/": b"", "net/../x": b"x"}),
    )
    draw.choice(variants)()
    items = list(records.items())
    draw.shuffle(items)
    return _zip(dict(items))


def _opcodes(program: bytes) -> list[bytes]:
    found = list(pickletools.genops(program))
    starts = [at for _, _, at in found if at is not None]
    return [program[a:b] for a, b in zip(starts, [*starts[1:], len(program)], strict=True)]


def _pickle_edited(draw: random.Random) -> bytes:
    records = _records(_bases()[0])
    opcodes = _opcodes(records[_PICKLE])
    for _ in range(draw.choice((1, 1, 2, 5))):
        at = draw.randrange(1, len(opcodes))
        step = draw.randrange(5)
        if step == 0:
            opcodes.insert(at, draw.choice(_SNIPPETS))
        elif step == 1:
            del opcodes[at]
        elif step == 2:
            opcodes.insert(at, draw.choice(opcodes))
        elif step == 3:
            other = draw.randrange(1, len(opcodes))
            opcodes[at], opcodes[other] = opcodes[other], opcodes[at]
        else:
            opcodes[at] = f"c{draw.choice(_NAMES)}\n".replace(" ", "\n").encode()
    records[_PICKLE] = b"".join(opcodes)
    return _zip(records)


def _header_edited(draw: random.Random) -> bytes:
    data = _bases()[2]
    length = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    names = list(header)
    name, other = draw.choice(names), draw.choice(names)
    odd = draw.choice(
        (0, -1, 1.5, True, None, "x", [], {}, 1 << 62, 1 << 70, [1, 1], [2**31] * 3)
    )
    variants: tuple[Callable[[], object], ...] = (
        lambda: header.pop(name),
        lambda: header.update({name: header[other]}),
        lambda: header.update({name: odd}),
        lambda: header.update({draw.choice((name + "x", "", "a\x1b", "..")): header[name]}),
        lambda: header[name].update({draw.choice(list(header[name]) or ["a"]): odd}),
        lambda: header["__metadata__"].update({draw.choice(["dims", "epoch", "model"]): odd}),
        lambda: header["__metadata__"].update(dims=json.dumps(odd)),
    )
    draw.choice(variants)()
    text = bytearray(json.dumps(header).encode())
    if draw.random() < 0.3:
        at = draw.randrange(len(text))
        text[at : at + draw.randrange(3)] = draw.choice((b"", b"[", b"}", b'"', b"9" * 5000))
    said = draw.choice((len(text), len(text), len(text), draw.choice(_ODD)))
    return said.to_bytes(8, "little") + text + data[8 + length :]


_MUTATORS = (_flipped, _cut, _zip_field, _zip_entries, _pickle_edited, _header_edited)


def check(data: bytes, folder: Path) -> str:
    """Load a file and hold what comes of it; the error's code, or ``loaded``.

    Raises:
        AssertionError: it does not hold.
    """
    path = folder / "net.pth"
    path.write_bytes(data)
    start = time.perf_counter()
    state: dict[str, Tensor] = {}
    outcome, line = "loaded", ""
    try:
        state = load_checkpoint(path).state
    except VntoolsError as e:
        outcome, line = e.code, e.line()
    assert outcome == "loaded" or outcome.startswith("ckpt.")
    assert line.isprintable()
    assert "weights_only" not in line
    assert time.perf_counter() - start <= _MOST_SECONDS
    assert not Path(CANARY).exists()
    stored = _stored(data) if state else {}
    for name, tensor in state.items():
        array = tensor.contiguous().numpy()
        if stored:
            assert array.tobytes() == stored[name], name
        else:
            assert np.isin(array.view(np.int32), _words(data)).all(), f"{name} is not here"
    return outcome


def _stored(data: bytes) -> dict[str, bytes]:
    """The weights, as zipfile has them, where the pickle is the one that was saved."""
    if _records(_bases()[0])[_PICKLE] not in data:
        return {}
    used = [(i, n) for i, n in enumerate(state_dict()) if "num_batches" not in n]
    with zipfile.ZipFile(BytesIO(data)) as archive:
        return {n: archive.read(f"net/data/{i}") for i, n in used}


def _words(data: bytes) -> Any:
    """All that four neighbouring bytes of the file can be."""
    windows = (data[at : len(data) - (len(data) - at) % 4] for at in range(4))
    return np.unique(np.concatenate([np.frombuffer(w, np.int32) for w in windows]))
