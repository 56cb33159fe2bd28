"""What a file says of itself and a runner does not: precision, preprocessing, batches."""

from __future__ import annotations

__all__ = ["PREPROCESSING", "Facts", "facts_of", "open_with_facts", "usual_batch"]

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vntools.base.artifacts import read_sidecar
from vntools.base.errors import DataFault
from vntools.pipeline.bench import Artifact, Kind, open_described
from vntools.pipeline.listener import Listener

if TYPE_CHECKING:
    import onnx

    from vntools.runtime.base import Runner

PREPROCESSING = "vntools.preprocessing"
_USUAL_BATCH = 8  # as far as build-engine's profile goes unless asked otherwise
_QUANTIZED = {
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv",
    "QLinearMatMul", "ConvInteger", "MatMulInteger",
}  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """What a file says of itself.

    Attributes:
        path: of the file.
        precision: the coarsest type that it computes in: ``fp32``, ``fp16``, ``bf16``,
            ``int8``, or another that it names.
        metadata: as in the metadata properties of an ONNX file that vntools wrote.
        batches: smallest and largest batch of a plan.
    """

    path: Path
    precision: str
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    batches: tuple[int, int] | None = None

    @property
    def preprocessing(self) -> dict[str, Any] | None:
        """How an image becomes an input; None where the file does not say."""
        try:
            record = json.loads(self.metadata.get(PREPROCESSING, "null"))
        except ValueError:
            return None
        return record if isinstance(record, dict) else None

    def precision_of(self, runner: Runner) -> str:
        """``tf32`` where a GPU may multiply float32 so; else ``precision``."""
        on_gpu = runner.clock.on_gpu
        return "tf32" if self.precision == "fp32" and on_gpu else self.precision


def open_with_facts(artifact: Artifact, listener: Listener) -> tuple[Runner, Facts]:
    """The runner of an artifact, still to be entered, and what its file says.

    Raises:
        VntoolsError: as :func:`vntools.pipeline.bench.open_described` and :func:`facts_of`.
    """
    runner, metadata, model = open_described(artifact, listener)
    kind: Kind = "ckpt" if artifact.ckpt else "onnx" if artifact.onnx else "engine"
    return runner, facts_of(artifact.path, kind, metadata, model)


def usual_batch(facts: Iterable[Facts]) -> int:
    """A batch where nobody asks for one: 8, or what every plan among them can hold."""
    size = _USUAL_BATCH
    for low, high in (f.batches for f in facts if f.batches is not None):
        size = max(low, min(size, high))
    return size


def facts_of(
    path: Path, kind: Kind, metadata: Mapping[str, str], model: onnx.ModelProto | None = None
) -> Facts:
    """What the file says, beside the ``metadata`` and ``model`` that came with its runner.

    Raises:
        DataFault: ``plan.manifest``.
    """
    if kind != "engine":
        return Facts(path, "fp32" if model is None else _precision(model), metadata)
    sidecar = read_sidecar(path) or {}
    try:
        shapes = [(s["min"][0], s["max"][0]) for s in sidecar.get("profile", {}).values()]
        lows, highs = [int(low) for low, _ in shapes], [int(high) for _, high in shapes]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as e:
        raise DataFault(
            "plan.manifest",
            "its sidecar names no batches",
            hint="rebuild the plan with vntools build-engine",
            path=path,
        ) from e
    batches = (max(lows), min(highs)) if shapes else None
    return Facts(path, str(sidecar.get("precision", "as built")), metadata, batches)


def _precision(model: onnx.ModelProto) -> str:
    """The coarsest type among weights, casts and operators, subgraphs and functions too."""
    import onnx
    import onnx_ir as ir

    kinds = onnx.TensorProto
    narrow: dict[int, str] = {kinds.FLOAT16: "fp16", kinds.BFLOAT16: "bf16"}
    wide = {kinds.FLOAT, kinds.DOUBLE}
    whole = {
        kinds.UNDEFINED, kinds.INT8, kinds.UINT8, kinds.INT16, kinds.UINT16, kinds.INT32,
        kinds.UINT32, kinds.INT64, kinds.UINT64, kinds.BOOL, kinds.STRING,
    }  # fmt: skip
    types: set[int] = set()
    nodes: set[str] = set()
    for part in _parts(model.graph, *model.functions):
        if isinstance(part, onnx.GraphProto):
            types.update(t.data_type for t in part.initializer)
        for node in part.node:
            nodes.add(node.op_type)
            for a in node.attribute:
                types.update(t.data_type for t in (a.t, *a.tensors))
                if node.op_type == "Cast" and a.name == "to":
                    types.add(a.i)
    if others := types - whole - wide - set(narrow):
        return ir.DataType(min(others)).name.lower()
    if nodes & _QUANTIZED:
        return "int8"
    found = {narrow[t] for t in types & set(narrow)}
    return min(found, default="fp32")  # of both halves bfloat16 is the coarser


def _parts(
    *parts: onnx.GraphProto | onnx.FunctionProto,
) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """Graphs and functions, and the graphs within their nodes."""
    for part in parts:
        yield part
        for node in part.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    yield from _parts(attribute.g)
                yield from _parts(*attribute.graphs)
