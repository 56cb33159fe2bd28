"""What a kernel of the float64 evaluator is given, and what it gives back."""

from __future__ import annotations

__all__ = ["Call", "Kernel", "NotHere", "Value", "wide"]

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vntools.export.graph import int_attribute, ints_attribute

Value = NDArray[Any]


class NotHere(Exception):
    """A form of an operator that the kernel leaves to ONNX's reference implementation."""


@dataclass(frozen=True)
class Call:
    """A node, the arrays that it reads, and the opset that it is of.

    Attributes:
        inputs: None where an input is left out; floats are float64.
    """

    node: ir.Node
    inputs: list[Any]
    version: int

    def array(self, index: int) -> Value:
        """An input that must be there.

        Raises:
            ValueError: it is left out.
        """
        found = self.optional(index)
        if found is None:
            raise ValueError(f"input {index} is left out")
        return found

    def optional(self, index: int) -> Value | None:
        """An input, or None where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def int(self, name: str, default: int) -> int:
        """An integer attribute."""
        return int_attribute(self.node, name, default)

    def ints(self, name: str) -> tuple[int, ...] | None:
        """An attribute that is a list of integers, or None."""
        return ints_attribute(self.node, name)

    def float(self, name: str, default: float) -> float:
        """A number; attributes hold float32, which is exact here."""
        attributes = self.node.attributes
        return attributes[name].as_float() if name in attributes else default

    def text(self, name: str, default: str) -> str:
        """An attribute that is a word."""
        attributes = self.node.attributes
        return attributes[name].as_string() if name in attributes else default

    def written(self) -> int:
        """How many outputs the node writes."""
        return sum(bool(v.name) for v in self.node.outputs)

    def random(self) -> np.random.Generator:
        """Seeded by the name of what is drawn."""
        name = self.node.outputs[0].name or ""
        return np.random.default_rng(zlib.crc32(name.encode("utf-8", "replace")))


Kernel = Callable[[Call], Any]
"""One output, or a tuple of several; ``NotHere`` where the reference is to do it."""


def wide(value: Any) -> Any:
    """With every float in float64, in the arrays of a sequence too."""
    if isinstance(value, list):
        return [wide(v) for v in value]  # pyright: ignore[reportUnknownVariableType]
    if value is None:
        return None
    array = np.asarray(value)
    return array.astype(np.float64, copy=False) if array.dtype.kind in "fV" else array
