"""What a classifier eats and gives: normalisation, type and layout in the graph, and its head.

The steps are written in front of the traced network and behind it as plain nodes. The passes
take them for what they are, a channel affine, and absorb it where that is exact.
"""

from __future__ import annotations

__all__ = ["HEADS", "INPUT_TYPES", "LAYOUTS", "Interface", "Normalization", "parse_normalize"]

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vntools.base.errors import UsageFault
from vntools.export.graph import add_initializer

INPUT_TYPES = ("uint8", "fp32", "fp16")
LAYOUTS = ("nchw", "nhwc")
HEADS = ("logits", "softmax", "top5")
_ONNX_TYPES = {
    "uint8": ir.DataType.UINT8,
    "fp32": ir.DataType.FLOAT,
    "fp16": ir.DataType.FLOAT16,
}
_LARGEST = 255  # of a byte
_TOP = 5
_LEAST = 1e-30  # of a probability: above what float32 rounds to less than 24 bits
_STEPS = ("decode", "resize", "crop", "scale", "normalize", "transpose")


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of each channel (RGB), of values in 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Interface:
    """Input and output of an exported classifier; the default is the network's own.

    Attributes:
        normalize: in the graph; None leaves it to the host.
        input_type: of ``INPUT_TYPES``. With ``normalize`` a ``uint8`` input is 0..255 and a
            float input 0..1; without, the input is normalised already.
        layout: of the input, of ``LAYOUTS``.
        head: of ``HEADS``. The outputs are ``logits``; ``probabilities``; ``values`` (the five
            largest probabilities) and ``indices`` (their classes).

    Raises:
        UsageFault: ``export.normalize``: bytes that nothing normalises.
    """

    normalize: Normalization | None = None
    input_type: str = "fp32"
    layout: str = "nchw"
    head: str = "logits"

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.input_type == "uint8" and self.normalize is None:
            raise UsageFault(
                "export.normalize",
                "a uint8 input holds pixels of 0..255, which the graph has to normalise",
                hint="add --normalize imagenet",
            )

    def add_to(self, model: ir.Model) -> None:
        """Put the steps around a traced network, in place.

        Args:
            model: with one input (n, 3, h, w) and one output (n, classes), float32.

        Raises:
            UsageFault: ``export.head``: fewer classes than are to be listed.
        """
        graph = model.graph
        self._add_front(graph)
        if self.head == "softmax":
            _replace_outputs(graph, [_softmax(graph, "probabilities")])
        elif self.head == "top5":
            _replace_outputs(graph, _top(graph))

    def _add_front(self, graph: ir.Graph) -> None:
        """Cast, Transpose, Add, Mul, as far as they are needed.

        y = (x - r mean) / (r std) per channel; the range r is 255 of a byte and 1 of a float.
        The scale stands last: a padded stem absorbs it, and keeps the shift alone.
        """
        old = graph.inputs[0]
        assert old.shape is not None
        shape = ir.Shape(old.shape[i] for i in (0, 2, 3, 1)) if self._nhwc else old.shape
        taken = ir.Value(
            name=old.name, shape=shape, type=ir.TensorType(_ONNX_TYPES[self.input_type])
        )
        x, nodes = taken, list[ir.Node]()

        def step(
            op_type: str, inputs: list[ir.Value], name: str, **attributes: Any
        ) -> ir.Value:
            node = ir.node(op_type, inputs, attributes, name=name)
            y = node.outputs[0]
            y.name, y.type = f"{name}.out", ir.TensorType(ir.DataType.FLOAT)
            y.shape = old.shape if op_type != "Cast" else shape
            nodes.append(node)
            return y

        if self.input_type != "fp32":
            # First: TensorRT takes bytes as an input of Cast alone.
            x = step("Cast", [x], f"{old.name}.cast", to=int(ir.DataType.FLOAT))
        if self._nhwc:
            x = step("Transpose", [x], f"{old.name}.transpose", perm=(0, 3, 1, 2))
        if self.normalize is not None:
            mean, std = (
                np.array(v) * (_LARGEST if self._bytes else 1)
                for v in (self.normalize.mean, self.normalize.std)
            )
            shift = add_initializer(graph, f"{old.name}.shift", _column(-mean))
            scale = add_initializer(graph, f"{old.name}.scale", _column(1 / std))
            x = step("Add", [x, shift], f"{old.name}.add")
            x = step("Mul", [x, scale], f"{old.name}.mul")
        if x is taken:
            return
        old.replace_all_uses_with(x)
        graph.insert_before(graph[0], nodes)
        graph.inputs[0] = taken

    @property
    def _nhwc(self) -> bool:
        return self.layout == "nhwc"

    @property
    def _bytes(self) -> bool:
        return self.input_type == "uint8"

    def network_input(self, x: NDArray[Any]) -> NDArray[Any]:
        """What the network itself gets for the input ``x``, worked out on the host.

        Returns:
            (n, 3, h, w), float32.
        """
        y = x.transpose(0, 3, 1, 2) if self._nhwc else x
        if self.normalize is not None:
            mean, std = (
                np.array(v).reshape(-1, 1, 1)
                for v in (self.normalize.mean, self.normalize.std)
            )
            y = (y.astype(np.float64) / (_LARGEST if self._bytes else 1) - mean) / std
        return np.ascontiguousarray(y, np.float32)

    def outputs(self, logits: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """The outputs by name for logits (n, classes), worked out on the host."""
        if self.head == "logits":
            return {"logits": logits}
        shares = np.exp(logits - logits.max(axis=1, keepdims=True).astype(np.float64))
        shares /= shares.sum(axis=1, keepdims=True)
        if self.head == "softmax":
            return {"probabilities": shares}
        indices = np.argsort(-logits, axis=1, kind="stable")[:, :_TOP]
        return {"values": np.take_along_axis(shares, indices, axis=1), "indices": indices}

    def compared(self, outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs as they are held against others: of probabilities the logarithms.

        A network that is sure of itself hides in its probabilities whatever is wrong with its
        logits; in their logarithms nothing is hidden.
        """
        return {
            name: np.log(np.maximum(y, _LEAST)) if name in ("probabilities", "values") else y
            for name, y in outputs.items()
        }

    def to_record(self) -> dict[str, Any]:
        """Input and output in words; which steps are in the graph, and which on the host."""
        inside = {
            "scale": self._bytes,
            "normalize": self.normalize is not None,
            "transpose": self._nhwc,
        }
        values = "0..255" if self._bytes else "0..1" if self.normalize else "normalized"
        return {
            "colour": "RGB",
            "input_type": self.input_type,
            "layout": self.layout,
            "values": values,
            "head": self.head,
            "in_graph": [s for s in _STEPS if inside.get(s)],
            "on_host": [s for s in _STEPS if not inside.get(s)],
        }


def parse_normalize(text: str) -> Normalization:
    """``MEAN,STD`` of values in 0..1: two numbers, or six (red, green and blue of each).

    Raises:
        ValueError: it is not; the message says why.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (2, 6) or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{text!r} is not imagenet, MEAN,STD or three means and three stds")
    mean, std = numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]
    if not all(0 <= m <= 1 for m in mean):
        raise ValueError(f"mean {_joined(mean)} is beyond 0..1; divide mean and std by 255")
    if not all(s > 0 for s in std):
        raise ValueError(f"std {_joined(std)} is not positive")
    times = 3 // len(mean)
    return Normalization((*mean,) * times, (*std,) * times)


def _joined(numbers: Sequence[float]) -> str:
    return ",".join(f"{n:g}" for n in numbers)


def _column(numbers: NDArray[Any]) -> NDArray[np.float32]:
    """Numbers along the channel axis of (n, c, h, w)."""
    return numbers.astype(np.float32).reshape(-1, 1, 1)


def _output(
    value: ir.Value, name: str, like: ir.Value, classes: int | None = None
) -> ir.Value:
    """``value`` of a name, with the shape of ``like`` but for its number of classes."""
    assert like.shape is not None
    value.name = name
    value.type = ir.TensorType(ir.DataType.FLOAT)
    value.shape = like.shape if classes is None else ir.Shape((like.shape[0], classes))
    return value


def _softmax(graph: ir.Graph, name: str) -> ir.Value:
    logits = graph.outputs[0]
    node = ir.node("Softmax", [logits], {"axis": 1}, name="softmax")
    graph.append(node)
    return _output(node.outputs[0], name, logits)


def _top(graph: ir.Graph) -> list[ir.Value]:
    """The five largest probabilities and their classes.

    The classes are chosen by logit: probabilities of a network that is sure of itself are all
    alike once they are rounded, in float16 below 6e-8.
    """
    logits = graph.outputs[0]
    classes = None if logits.shape is None else logits.shape[1]
    if isinstance(classes, int) and classes < _TOP:
        raise UsageFault(
            "export.head", f"a network of {classes} classes has no top {_TOP}",
            hint="use --head softmax",
        )  # fmt: skip
    shares = _softmax(graph, "probabilities")
    k = add_initializer(graph, "top.k", np.array([_TOP], np.int64))
    top = ir.node(
        "TopK", [logits, k], {"axis": 1, "largest": 1, "sorted": 1}, num_outputs=2, name="top"
    )
    best, indices = (_output(v, "", logits, _TOP) for v in top.outputs)
    best.name, indices.name = "top.logits", "indices"
    indices.type = ir.TensorType(ir.DataType.INT64)
    chosen = ir.node("GatherElements", [shares, indices], {"axis": 1}, name="top.values")
    graph.extend([top, chosen])
    return [_output(chosen.outputs[0], "values", logits, _TOP), indices]


def _replace_outputs(graph: ir.Graph, outputs: Sequence[ir.Value]) -> None:
    graph.outputs.clear()
    graph.outputs.extend(outputs)
