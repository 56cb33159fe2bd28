"""What fuzzing found once: files that broke a promise, made here by code, and held again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from tests.attacks.onnx import network
from tests.fuzz import onnx as target


def name_of_bytes() -> bytes:
    """ONNX's checker and onnx_ir raised UnicodeDecodeError."""
    model = network()
    model.graph.node[0].name = "convolution"
    data = model.SerializeToString()
    assert b"convolution" in data
    return data.replace(b"convolution", b"\x8e\x9a\x93volution")


def value_of_bytes() -> bytes:
    """A message of the checker's that repeats the name."""
    return network().SerializeToString().replace(b"\x01y", b"\x01\xf4")


def input_of_no_type() -> bytes:
    """Shape inference raised ValueError at an initializer that is an input of type 0."""
    model = network()
    tensor = model.graph.initializer[0]
    info = onnx.helper.make_tensor_value_info(tensor.name, 0, list(tensor.dims))
    model.graph.input.append(info)
    return model.SerializeToString()


def attribute_of_a_function() -> bytes:
    """An attribute of the main graph that refers to a function's had no value."""
    model = network()
    norm = model.graph.node[1]
    norm.attribute.append(onnx.helper.make_attribute("epsilon", 1e-6))
    norm.attribute[-1].ref_attr_name = "auto_pad"
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (name_of_bytes, "onnx.invalid"),
        (value_of_bytes, "onnx.invalid"),
        (input_of_no_type, "onnx.invalid"),
        (attribute_of_a_function, "onnx.attr"),
    ],
)
def test_it_is_refused_now(found: Callable[[], bytes], code: str, tmp_path: Path) -> None:
    assert target.check(found(), tmp_path) == code


def test_without_the_fault_it_is_simplified(tmp_path: Path) -> None:
    assert target.check(network().SerializeToString(), tmp_path) == "simplified"
