"""ONNX files that are nearly right: two narrow networks, changed field by field.

A mutant is a protobuf message still: fields are dropped, repeated and exchanged, names are
those of other values, numbers those that arithmetic goes wrong at, bytes too few or too many.
``python -m tests.fuzz.onnx SEED COUNT`` checks so many of them, one after another.
"""

from __future__ import annotations

__all__ = ["check", "mutants"]

import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from google.protobuf.descriptor import FieldDescriptor as Field

from tests.networks import exported, traced
from vntools.base.errors import VntoolsError
from vntools.cli._shared import Console
from vntools.export.load import load_onnx
from vntools.pipeline.simplify import SimplifyOptions, simplify
from vntools.pipeline.witness import sized_feeds
from vntools.verify.compare import relative_l2

_NETWORK = "vanillanet_5"
_NOISE = 1e-4
"""Relative L2 that two float32 graphs of the same function may differ by."""

_REFUSED = 65
_NO = ("verify.nonfinite", "verify.zero", "verify.empty")  # of the graph as it came
_WHOLE = (0, 1, 2, 3, 7, 16, 255, (1 << 31) - 1, 1 << 31, 1 << 40, (1 << 63) - 1, -1, -2)
_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-38, 1e38, float("inf"), float("-inf"), float("nan"))
_WORDS = (
    *("", ".", "..", "../m.onnx", "/dev/zero", "m.onnx", "location", "offset", "length"),
    *(
        "Relu",
        "Conv",
        "BatchNormalization",
        "MaxPool",
        "Loop",
        "Reshape",
        "far.away",
        "\x1b[2J",
    ),
    *("group", "pads", "strides", "dilations", "kernel_shape", "auto_pad", "epsilon", "-1"),
)
_RANGES = {
    Field.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    Field.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    Field.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    Field.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}
_WEIGHTS = (4, 3, 6, 1)


@cache
def _networks() -> tuple[bytes, ...]:
    """The training graph, and the merged one."""
    models = (traced(_NETWORK), exported(_NETWORK))
    return tuple(ir.serde.serialize_model(m).SerializeToString() for m in models)


def mutants(seed: int, count: int) -> Iterator[bytes]:
    """``count`` files, the same ones for the same ``seed``."""
    for i in range(count):
        chance = random.Random(f"{seed} {i}")
        model = onnx.ModelProto.FromString(chance.choice(_networks()))
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            change = chance.choices((_anywhere, _in_a_tensor, _in_a_node, _outside), _WEIGHTS)
            change[0](model, chance)
        yield model.SerializeToString()


def _anywhere(model: onnx.ModelProto, chance: random.Random) -> None:
    """Change a field of a message that a walk from the root ends at."""
    message: Any = model.graph if chance.random() < 0.9 else model
    while True:
        inner = [
            value
            for field, held in message.ListFields()
            if field.message_type
            for value in (held if field.is_repeated else (held,))
        ]
        if not inner or chance.random() < 0.15:
            break
        message = chance.choice(inner)
    _change(message, model, chance)


def _in_a_tensor(model: onnx.ModelProto, chance: random.Random) -> None:
    if model.graph.initializer:
        _change(chance.choice(model.graph.initializer), model, chance)


def _in_a_node(model: onnx.ModelProto, chance: random.Random) -> None:
    if model.graph.node:
        node = chance.choice(model.graph.node)
        _change(chance.choice((node, *node.attribute)), model, chance)


def _outside(model: onnx.ModelProto, chance: random.Random) -> None:
    """Let a weight lie in another file, in the model itself even."""
    if model.graph.initializer:
        tensor = chance.choice(model.graph.initializer)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key in chance.sample(("location", "offset", "length", "checksum"), 2):
            value = chance.choice(
                ("m.onnx", str(chance.choice(_WHOLE)), chance.choice(_WORDS))
            )
            tensor.external_data.add(key=key, value=value)


def _change(message: Any, model: onnx.ModelProto, chance: random.Random) -> None:
    """Drop, repeat, exchange or overwrite one field of ``message``."""
    fields = [f for f, _ in message.ListFields()]
    if chance.random() < 0.2:
        fields = [f for f in message.DESCRIPTOR.fields if not f.message_type]
    if not fields:
        return
    field = chance.choice(fields)
    if chance.random() < 0.1:
        message.ClearField(field.name)
    elif field.is_repeated:
        _change_list(getattr(message, field.name), field, model, chance)
    elif not field.message_type:
        setattr(
            message, field.name, _value(field, getattr(message, field.name), model, chance)
        )


def _change_list(held: Any, field: Any, model: onnx.ModelProto, chance: random.Random) -> None:
    at = chance.randrange(len(held)) if held else -1
    kind = chance.choice(("drop", "repeat", "exchange", "write", "write"))
    values = list(held)
    if at >= 0 and kind == "drop":
        del values[at]
    elif at >= 0 and kind == "repeat":
        values.insert(at, values[at])
    elif at >= 0 and kind == "exchange":
        other = chance.randrange(len(held))
        values[at], values[other] = values[other], values[at]
    elif not field.message_type:
        new = _value(field, values[at] if at >= 0 else None, model, chance)
        values[at:] = [new, *values[at + 1 :]] if at >= 0 else [new]
    if field.message_type:
        values = [type(v).FromString(v.SerializeToString()) for v in values]
    del held[:]
    held.extend(values)


def _value(field: Any, old: Any, model: onnx.ModelProto, chance: random.Random) -> Any:
    if field.cpp_type in _RANGES:
        least, most = _RANGES[field.cpp_type]
        new = chance.choice((*_WHOLE, (old or 0) + 1, (old or 0) - 1, (old or 0) * 2))
        return max(least, min(new, most))
    if field.cpp_type in (Field.CPPTYPE_FLOAT, Field.CPPTYPE_DOUBLE):
        return chance.choice(_FLOATS)
    if field.cpp_type == Field.CPPTYPE_ENUM:
        return chance.choice([v.number for v in field.enum_type.values])
    if field.type == Field.TYPE_BYTES:
        return _bytes(old or b"", chance)
    names = [n for node in model.graph.node for n in (*node.input, *node.output)]
    return chance.choice((chance.choice(_WORDS), chance.choice(names or [""])))


def _bytes(old: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(old) + 1)
    changed: Callable[[], bytes] = chance.choice(
        (
            lambda: old[:at],
            lambda: old + old[:at],
            lambda: old[:at] + chance.randbytes(4) + old[at + 4 :],
            lambda: old[: at // 4 * 4] + b"\0\0\xc0\x7f" + old[at // 4 * 4 + 4 :],
        )
    )
    return changed()


def check(data: bytes, folder: Path) -> str:
    """``simplify`` refuses it by a VntoolsError, or writes a graph that computes the same.

    Returns:
        The code of the error, or ``simplified``.

    Raises:
        AssertionError: it does neither.
    """
    source, out = folder / "m.onnx", folder / "out.onnx"
    source.write_bytes(data)
    out.unlink(missing_ok=True)
    console = Console()
    console.quiet = True
    refusal: VntoolsError | None = None
    try:
        simplify(SimplifyOptions(source, out), console)
    except VntoolsError as e:
        refusal = e
    if refusal is not None:
        assert refusal.exit_status == _REFUSED or refusal.code in _NO, refusal.line()
        assert not out.exists()
        return refusal.code
    feed = sized_feeds(load_onnx(source).model)[0]
    before, after = _run(source, feed), _run(out, feed)
    if before is not None:
        assert after is not None, "ONNX Runtime ran the graph before, and not after"
        for x, y in zip(before, after, strict=True):
            assert x.shape == y.shape
            assert relative_l2(y.astype(np.float64), x.astype(np.float64)) <= _NOISE
    return "simplified"


def _run(path: Path, feed: dict[str, Any]) -> list[Any] | None:
    """Outputs in ONNX Runtime, which leaves the graph as it is; None if it does not run it."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(
            path.read_bytes(), options, providers=["CPUExecutionProvider"]
        )
        return list(session.run(None, feed))
    except Exception:  # noqa: BLE001 - of any of its classes
        return None


def main(seed: int, count: int) -> None:
    """Check mutants and print what came of each; the last line is of the one that failed."""
    for i, data in enumerate(mutants(seed, count)):
        print(f"\n{seed} {i}", end=" ", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            print(check(data, Path(folder)), end="", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
