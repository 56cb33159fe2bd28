"""What was really built: the kernels of a plan, their types and the ONNX layers behind them.

TensorRT-RTX lists them in its verbose build log, which needs no GPU; TensorRT tells them
through the engine inspector. Both become the same ``Kernel``. Types are written as elsewhere
in vntools: fp32, fp16, bf16, int8, and so on.

Source: TensorRT documentation, "Engine Inspector" and "Migrating IEngineInspector Usage from
TensorRT 10.x to 11.x"; the log's form was read from TensorRT-RTX 1.7.
"""

from __future__ import annotations

__all__ = ["Kernel", "Tensor", "from_inspector", "from_log"]

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

# In the order of search: a longer word before one that it contains. TensorRT 10 writes a type
# into a sentence ("Channel major FP16 format where channel % 8 == 0"), 11 and RTX as a word of
# its own.
_TYPES = {
    "bfloat16": "bf16",
    "bf16": "bf16",
    "float8": "fp8",
    "fp8": "fp8",
    "e4m3": "fp8",
    "float4": "fp4",
    "fp4": "fp4",
    "e2m1": "fp4",
    "half": "fp16",
    "fp16": "fp16",
    "float": "fp32",
    "fp32": "fp32",
    "uint8": "uint8",
    "int64": "int64",
    "int32": "int32",
    "int8": "int8",
    "int4": "int4",
    "bool": "bool",
}

_LINE = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<type>.*?), Inputs: \[(?P<inputs>.*?)\], "
    r"(?:Constants: \[(?P<constants>.*?)\], )?Outputs: \[(?P<outputs>.*?)\], "
    r"TacticName: .*?, StreamId: \d+, Metadata: (?P<metadata>.*)"
)
# A name may hold braces and commas; what follows it has a fixed form.
_TENSOR = re.compile(
    r"\{ Name: (?P<name>.*?), (?:Location: \w+, )?Dimensions: \[(?P<dims>[-\d, ]*)\], "
    r"(?:[^{}]*?, )?(?:Datatype|DataType|Format/Datatype): (?P<type>[^{},]*)[^{}]* \}"
)
# Entries follow each other directly or after a separator; the compiler backend appends words
# of its own, such as __gemm_from_conv1x1.
_ONNX_LAYER = re.compile(r"\[ONNX Layer: (.*?)\](?=\w*(?:\[ONNX Layer: |[\x1e\x1f]|$))")


def _datatype(text: str) -> str:
    """A type as vntools writes it; text without a known type as it came."""
    lowered = text.lower()
    return next((name for word, name in _TYPES.items() if word in lowered), text.strip())


@dataclass(frozen=True)
class Tensor:
    """An operand of a kernel: its name, dimensions (-1 where dynamic) and type."""

    name: str
    dims: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        """How many elements it has, dynamic dimensions counted as one."""
        return math.prod(abs(d) for d in self.dims)


@dataclass(frozen=True)
class Kernel:
    """One kernel of a plan.

    Attributes:
        name: TensorRT's name of it.
        layer_type: such as ``correlation``, ``runtime_fusion``, ``kgen`` or
            ``CaskConvolution``.
        inputs: the activations it reads.
        constants: weights, biases and scales; a tensor of one element is a scale.
        outputs: the activations it writes.
        onnx_layers: names of the ONNX nodes that it computes, or helps to.
    """

    name: str
    layer_type: str
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    onnx_layers: tuple[str, ...]

    @property
    def generated(self) -> bool:
        """Whether the compiler backend wrote it, for elementwise work or for moving data."""
        return self.layer_type in ("kgen", "runtime_function")

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """Constants that are weights: the largest, and those that are no vectors.

        Not scales, which have one element, nor the zeros that pad channels: a generated kernel
        in front of a stem may bring its input to four channels with such a constant.
        """
        real = [c for c in self.constants if c.dims not in ((), (1,)) and not self._pads(c)]
        if not real:
            return ()
        largest = max(real, key=lambda c: c.elements)
        matrices = [c for c in real if sum(abs(d) > 1 for d in c.dims) > 1]
        return tuple(matrices) if largest in matrices else (largest, *matrices)

    def _pads(self, constant: Tensor) -> bool:
        """Whether a generated kernel concatenates ``constant`` to its output, along axis 1."""
        dims = constant.dims
        return self.generated and any(
            len(o.dims) == len(dims) > 2
            and (o.dims[0], *o.dims[2:]) == (dims[0], *dims[2:])
            and o.dims[1] > dims[1]
            for o in self.outputs
        )

    def to_record(self) -> dict[str, Any]:
        """The kernel as a sidecar holds it: names, and the distinct types in the order met."""

        def types(tensors: Iterable[Tensor]) -> list[str]:
            return list(dict.fromkeys(t.dtype for t in tensors))

        return {
            "name": self.name,
            "type": self.layer_type,
            "onnx": list(self.onnx_layers),
            "inputs": types(self.inputs),
            "weights": types(self.weights),
            "outputs": types(self.outputs),
        }


def from_log(messages: Iterable[str]) -> tuple[Kernel, ...]:
    """The kernels that verbose messages of a build list, one in a line with ``LayerType:``.

    Raises:
        ValueError: a line is not of the form that is known.
    """
    # Not splitlines: metadata holds the separators that it would break a line at.
    lines = [s for m in messages for s in m.split("\n") if "LayerType: " in s]
    return tuple(_from_line(s) for s in lines)


def _from_line(line: str) -> Kernel:
    found = _LINE.fullmatch(line.rstrip("\r"))
    if found is None:
        raise ValueError(f"not a line of a kernel list: {line[:120]!r}")
    return Kernel(
        name=found["name"],
        layer_type=found["type"],
        inputs=_tensors(found["inputs"]),
        constants=_tensors(found["constants"] or ""),
        outputs=_tensors(found["outputs"]),
        onnx_layers=_onnx_layers(found["metadata"]),
    )


def _tensors(text: str) -> tuple[Tensor, ...]:
    found = tuple(
        Tensor(
            t["name"],
            tuple(int(d) for d in t["dims"].split(",") if d.strip()),
            _datatype(t["type"]),
        )
        for t in _TENSOR.finditer(text)
    )
    if len(found) != len(re.findall(r"\{ Name: ", text)):
        raise ValueError(f"not a list of tensors: {text[:120]!r}")
    return found


def _onnx_layers(metadata: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_ONNX_LAYER.findall(metadata)))


def from_inspector(text: str) -> tuple[Kernel, ...]:
    """The kernels in the JSON of ``EngineInspector.get_engine_information``, of 10.x and 11.x.

    10.x names the engine's inputs and outputs in ``Bindings`` and writes ``Format/Datatype``;
    11.x has objects in ``I/O Tensors`` and splits that field. Both give the weights of a
    convolution as ``Weights`` (a type and a count); kernels of the compiler backend have them
    among ``Constants`` or, in older 10.x, among ``Inputs``, where they are told by having no
    producer.

    Raises:
        ValueError: not such a document, or one of an engine built without detailed verbosity.
    """
    document = json.loads(text)
    layers = document.get("Layers") if isinstance(document, dict) else None
    if not layers or not all(isinstance(layer, dict) for layer in layers):
        raise ValueError("the engine inspector tells no layers, or only their names")
    kernels = [_from_layer(layer) for layer in layers]
    ends = document.get("I/O Tensors", document.get("Bindings", []))
    produced = {e["Name"] if isinstance(e, dict) else e for e in ends}
    produced |= {t.name for k in kernels for t in k.outputs}
    return tuple(_constants_apart(k, produced) for k in kernels)


def _from_layer(layer: Mapping[str, Any]) -> Kernel:
    constants = list(_json_tensors(layer.get("Constants", ())))
    for key in ("Weights", "Bias"):
        entry = layer.get(key)
        if isinstance(entry, dict) and entry.get("Count", 0) > 0:
            constants.append(
                Tensor(key, (int(entry["Count"]),), _datatype(str(entry.get("Type"))))
            )
    return Kernel(
        name=str(layer.get("Name", "")),
        layer_type=str(layer.get("LayerType", "")),
        inputs=_json_tensors(layer.get("Inputs", ())),
        constants=tuple(constants),
        outputs=_json_tensors(layer.get("Outputs", ())),
        onnx_layers=_onnx_layers(str(layer.get("Metadata", ""))),
    )


def _json_tensors(entries: Sequence[Mapping[str, Any]]) -> tuple[Tensor, ...]:
    def one(entry: Mapping[str, Any]) -> Tensor:
        fields = {k.lower(): v for k, v in entry.items()}
        words = fields.get("format/datatype") or fields.get("datatype") or fields.get("format")
        dims = tuple(int(d) for d in fields.get("dimensions", ()))
        return Tensor(str(fields.get("name", "")), dims, _datatype(str(words)))

    return tuple(one(e) for e in entries)


def _constants_apart(kernel: Kernel, produced: set[str]) -> Kernel:
    """The kernel; of one without constants, those inputs are that nothing produces."""
    if kernel.constants:
        return kernel
    loose = [t for t in kernel.inputs if t.name not in produced and min(t.dims, default=1) > 0]
    if len(loose) == len(kernel.inputs):
        loose = [t for t in loose if "const" in t.name]
    return replace(
        kernel,
        inputs=tuple(t for t in kernel.inputs if t not in loose),
        constants=tuple(loose),
    )
