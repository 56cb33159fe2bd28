"""Bugs as something to plant: rules of the product with one fact wrong."""

from __future__ import annotations

__all__ = [
    "Plant",
    "as_it_is",
    "attribute",
    "composed_as",
    "entry",
    "in_affine",
    "mapped",
    "mean_of_the_other_sign",
    "step",
]

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import onnx_ir as ir
import pytest

from vntools.export import affine, commute, maps, operators
from vntools.export.affine import AffineConv
from vntools.export.maps import Expression, Map, diagonal_map

Patch = pytest.MonkeyPatch
Plant = Callable[[Patch], None]


def composed_as(change: Callable[[AffineConv, AffineConv, AffineConv], AffineConv]) -> Plant:
    """The composition is changed, given the outer and the inner convolution."""

    def plant(patch: Patch) -> None:
        true = affine.compose
        patch.setattr(maps, "compose", lambda o, i: change(true(o, i), o, i))

    return plant


def in_affine(name: str, planted: Any) -> Plant:
    return lambda patch: patch.setattr(affine, name, planted)


def attribute(name: str, value: Any, *, of: str = "_attribute") -> Plant:
    """An attribute of the operators is not read."""

    def plant(patch: Patch) -> None:
        true = getattr(operators, of)

        def planted(node: ir.Node, wanted: str, *default: Any) -> Any:
            return value if wanted == name else true(node, wanted, *default)

        patch.setattr(operators, of, planted)

    return plant


def entry(op_type: str, change: Callable[[Expression, ir.Node, Any], Expression]) -> Plant:
    """What an operator is read as is changed."""

    def plant(patch: Patch) -> None:
        true = operators._ENTRIES[op_type]

        def planted(node: ir.Node, reader: Any) -> Expression:
            found = true(node, reader)
            assert found is not None
            return change(found, node, reader)

        patch.setitem(operators._ENTRIES, op_type, planted)  # type: ignore[arg-type]

    return plant


def mapped(change: Callable[[Map], Map]) -> Callable[[Expression, ir.Node, Any], Expression]:
    """A change of the first map alone."""

    def changed(found: Expression, _node: ir.Node, _reader: Any) -> Expression:
        first = replace(found.terms[0], map=change(found.terms[0].map))
        return replace(found, terms=(first, *found.terms[1:]))

    return changed


def step(
    op_type: str, planted: Callable[[Callable[..., Map], ir.Node, Map, int, bool, Any], Map]
) -> Plant:
    """How a map passes an operator is changed."""

    def plant(patch: Patch) -> None:
        true = commute._STEPS[op_type]
        patch.setitem(
            commute._STEPS,  # type: ignore[arg-type]
            op_type,
            lambda *given: planted(true, *given),
        )

    return plant


def as_it_is(_: Any, _node: ir.Node, m: Map, *_given: Any) -> Map:
    """A step that lets every map pass."""
    return m


def mean_of_the_other_sign(found: Expression, node: ir.Node, reader: Any) -> Expression:
    """BatchNormalization read with its mean added."""
    value = found.terms[0].map.value
    assert value is not None
    scale = value.weight[:, 0]
    shift = value.bias + 2 * scale * reader.number(node.inputs[3], "")
    return mapped(lambda _: diagonal_map(scale, shift, 1))(found, node, reader)
