"""Mutants of the rules, one fact wrong at a time: each is caught on a handful of graphs.

By the probe, where a rewrite itself is wrong; by the comparison of the outputs, where a node
is misread, a map goes where it must not, or numbers are miswritten: there the probe is blind;
by the costs, where it is exact and of no use.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.collection import GRAPHS
from tests.collection.base import collapse, keep
from tests.collection.measure import counts, difference, live_nodes, macs, outputs
from tests.export.test_collection import surplus
from tests.planting import (
    Plant,
    as_it_is,
    attribute,
    composed_as,
    entry,
    in_affine,
    mapped,
    mean_of_the_other_sign,
    step,
)
from vntools.base.errors import InternalFault, VntoolsError
from vntools.export import affine, commute, emit, maps, operators, region
from vntools.export.affine import AffineConv, Geometry
from vntools.export.maps import Expression, Map, diagonal_map
from vntools.export.rewrite import rewrite_model

Patch = pytest.MonkeyPatch
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Mutant:
    """A rule with one fact wrong.

    Attributes:
        rule: what is wrong, and where.
        plant: makes it so.
        how: what catches it: "probe", "failed" (a shape that cannot be), "outputs", "costs",
            or "left" where nodes remain that must go.
        graphs: of the collection.
    """

    rule: str
    plant: Plant
    how: str
    graphs: tuple[str, ...]


OWN = (
    keep(
        "mutants: sizes that broadcast, 3x3",
        "a = Conv(x, A) b = Conv(u, B) s = Add(a, b) y = Conv<pads=[1,1,1,1]>(s, C)",
        "may differ in size",
        "A:16,2,1,1 B:16,2,1,1 C:2,16,3,3",
        x="float[n,2,5,5] x, float[n,2,1,1] u",
    ),
    collapse(
        "mutants: a sum with a negative",
        "a = Sin(x) b = Cos(x) c = Neg(a) y = Add(c, b)",
        "Sub:1",
        x="float[n,3] x",
    ),
)
SHOWN = GRAPHS | {graph.name: graph for graph in OWN}


@cache
def original(name: str) -> bytes:
    return SHOWN[name].model().SerializeToString(deterministic=True)


@cache
def wanted(name: str) -> list[dict[str, Array]]:
    return [outputs(original(name), feeds) for feeds in SHOWN[name].inputs()]


def verdict(name: str) -> str:
    """What catches the product as it is now, on one graph; empty where nothing does."""
    try:
        data, _ = rewrite_model(original(name))
    except InternalFault as e:
        return "probe" if e.code == "pass.inexact" else "failed"
    for feeds, want in zip(SHOWN[name].inputs(), wanted(name), strict=True):
        try:
            got = outputs(data, feeds)
        except (TypeError, ValueError, VntoolsError):  # shapes that do not fit
            return "outputs"
        if not difference(got, want) < SHOWN[name].tolerance:
            return "outputs"
    before, after = (onnx.load_model_from_string(d) for d in (original(name), data))
    feeds = SHOWN[name].inputs()[0]
    costs = [(macs(m, feeds) or 0, len(live_nodes(m))) for m in (before, after)]
    if any(new > old for old, new in zip(*costs, strict=True)):
        return "costs"
    must_go = SHOWN[name].nodes is not None
    return "left" if must_go and surplus(SHOWN[name], counts(after)) else ""


# Ways to plant.


def added_as(change: Callable[[AffineConv, AffineConv, AffineConv], AffineConv]) -> Plant:
    """The sum is changed, given its operands."""

    def plant(patch: Patch) -> None:
        true = affine.add
        patch.setattr(maps, "add", lambda a, b: change(true(a, b), a, b))

    return plant


def planned_as(
    plan: Callable[[Geometry, Geometry, bool, Callable[..., Geometry]], Geometry],
) -> Plant:
    """The geometry of a composition is another one."""

    def plant(patch: Patch) -> None:
        true = affine.plan_compose

        def planted(outer: Geometry, inner: Geometry, *, biased: bool) -> Geometry:
            return plan(outer, inner, biased, true)

        patch.setattr(affine, "plan_compose", planted)
        patch.setattr(maps, "plan_compose", planted)

    return plant


def weighed(change: Callable[[Array], Array]) -> Callable[[Map], Map]:
    """A change of a map's weight."""

    def changed(m: Map) -> Map:
        def make() -> AffineConv:
            conv = m.make()
            return replace(conv, weight=change(conv.weight))

        return replace(m, recipe=make)

    return changed


def method(owner: type, name: str, planted: Any) -> Plant:
    return lambda patch: patch.setattr(owner, name, planted)


# The wrong facts.


def border_of_the_kernel_ignored(
    outer: Geometry, inner: Geometry, biased: bool, true: Callable[..., Geometry]
) -> Geometry:
    plan = true(replace(outer, pads=(0,) * len(outer.pads)), inner, biased=biased)
    strides = inner.strides * 2
    pads = zip(inner.pads, outer.pads, strides, strict=True)
    return replace(plan, pads=tuple(p + s * q for p, q, s in pads))


def lattice_off_by_one(
    outer: Geometry, inner: Geometry, biased: bool, true: Callable[..., Geometry]
) -> Geometry:
    plan = true(outer, inner, biased=biased)
    steps = zip(plan.kernel, plan.dilations, strict=True)
    return replace(plan, dilations=tuple(max(d - 1, 1) if k > 1 else d for k, d in steps))


def groups_of_the_finer(
    outer: Geometry, inner: Geometry, biased: bool, true: Callable[..., Geometry]
) -> Geometry:
    return replace(
        true(outer, inner, biased=biased), groups=math.lcm(outer.groups, inner.groups)
    )


def without_centring(patch: Patch) -> None:
    true = affine._lay

    def planted(left: Geometry, right: Geometry) -> Any:
        plan, offsets = true(left, right)
        return plan, [(0, 0)] * len(offsets)

    patch.setattr(affine, "_lay", planted)


def other_side(m: Map) -> Map:
    assert m.axis is not None
    return replace(m, axis=m.axis + 1 if m.axis == 1 else m.axis - 1)


def rolled_groups(weight: Array) -> Array:
    return np.roll(weight, weight.shape[0] // 2, axis=0)


def constant_pad_of_zeros(patch: Patch) -> None:
    true = operators._ENTRIES["Pad"]

    def planted(node: ir.Node, reader: Any) -> Expression:
        bare = ir.Node("", "Pad", list(node.inputs[:2]))
        found = true(bare, reader)
        assert found is not None
        for i in range(2):
            bare.replace_input_with(i, None)
        return replace(found, node=node)

    patch.setitem(operators._ENTRIES, "Pad", planted)  # type: ignore[arg-type]


def lower_for_upper(patch: Patch) -> None:
    true = operators._pads

    def planted(*given: Any) -> Any:
        pads = true(*given)
        half = len(pads) // 2
        return pads if isinstance(pads, str) else (*pads[half:], *pads[:half])

    patch.setattr(operators, "_pads", planted)


def selection_reversed(patch: Patch) -> None:
    true = operators._selection
    patch.setattr(operators, "_selection", lambda o, i, b: true(o, i, o - i - b))


def concat_of_the_other_part(
    true: Callable[..., Map], node: ir.Node, m: Map, index: int, forward: bool, r: Any
) -> Map:
    return true(node, m, len(node.inputs) - 1 - index, forward, r)


def transposed_back(
    true: Callable[..., Map], node: ir.Node, m: Map, index: int, forward: bool, r: Any
) -> Map:
    return true(node, m, index, not forward, r)


def merged_axes_tiled(patch: Patch) -> None:
    true = commute._merged

    def planted(m: Map, *given: Any) -> Map:
        found = true(m, *given)
        assert m.value is not None
        times = found.geometry.out_channels // m.geometry.out_channels
        scale, shift = m.value.weight[:, 0], m.value.bias
        return diagonal_map(np.tile(scale, times), np.tile(shift, times), found.axis)

    patch.setattr(commute, "_merged", planted)


def costs_inverted(patch: Patch) -> None:
    true = region.expression_cost

    def planted(*given: Any) -> Any:
        return tuple(-n for n in true(*given))

    patch.setattr(region, "expression_cost", planted)


def signs_lost(patch: Patch) -> None:
    true = emit._Part
    patch.setattr(emit, "_Part", lambda value, negative=False: true(value))


def matrix_untransposed(patch: Patch) -> None:
    true = emit._dense
    patch.setattr(emit, "_dense", lambda conv: true(conv).T.copy())


def column_on_the_last_axis(patch: Patch) -> None:
    patch.setattr(emit._Nodes, "_column", lambda _, axis, numbers: numbers.reshape(-1))


def reads_no_further(self: region.Region, value: ir.Value) -> bool:
    return False


def broadcasts_are_sizes(self: region.Region, value: ir.Value) -> bool:
    return True


BIASED = "serial: biased 1x1, padded 3x3"
MUTANTS = (
    Mutant(
        "compose: the first bias is not carried",
        composed_as(lambda one, o, _: replace(one, bias=o.bias)),
        "probe",
        ("serial: 1x1, 1x1",),
    ),
    Mutant(
        "compose: the first bias is carried by one tap alone",
        composed_as(lambda one, o, _: replace(one, bias=(one.bias + o.bias) / 2)),
        "probe",
        ("serial: 1x1, 3x3 without padding",),
    ),
    Mutant(
        "compose: the border does not mind a bias",
        planned_as(lambda o, i, _, true: true(o, i, biased=False)),
        "probe",
        (BIASED,),
    ),
    Mutant(
        "compose: the border does not mind a kernel",
        planned_as(border_of_the_kernel_ignored),
        "probe",
        ("serial: 3x3 padded by 1, 3x3 padded by 1",),
    ),
    Mutant(
        "compose: the first stride is lost",
        composed_as(lambda one, o, _: replace(one, strides=o.strides)),
        "probe",
        ("serial: 1x1 of stride 2, 1x1 of stride 3",),
    ),
    Mutant(
        "compose: the second padding is lost",
        composed_as(lambda one, _, i: replace(one, pads=i.pads)),
        "probe",
        ("serial: 1x1, padded 3x3",),
    ),
    Mutant(
        "compose: paddings before and behind are exchanged",
        composed_as(lambda one, *_: replace(one, pads=one.pads[::-1])),
        "probe",
        ("serial: 1x1, 3x3 of odd pads",),
    ),
    Mutant(
        "compose: the lattice is off by one",
        planned_as(lattice_off_by_one),
        "failed",
        ("serial: 3x3 of dilation 2, 3x3 of dilation 2",),
    ),
    Mutant(
        "compose: taps in the other direction",
        composed_as(lambda one, *_: replace(one, weight=one.weight[..., ::-1])),
        "probe",
        ("serial: 1x1, padded 3x3",),
    ),
    Mutant(
        "compose: lcm of the groups for gcd",
        planned_as(groups_of_the_finer),
        "failed",
        ("serial: groups of 4, groups of 2",),
    ),
    Mutant(
        "add: kernels are not centred",
        without_centring,
        "probe",
        ("block: RepVGG",),
    ),
    Mutant(
        "add: the second bias is lost",
        added_as(lambda one, left, _: replace(one, bias=left.bias)),
        "probe",
        ("block: RepVGG",),
    ),
    Mutant(
        "add: one padding for the other",
        added_as(lambda one, left, right: replace(one, pads=min(left.pads, right.pads))),
        "probe",
        ("parallel: 3x3, 1x1",),
    ),
    Mutant(
        "scale_channels: no shift",
        in_affine(
            "scale_channels",
            lambda conv, scale, _shift: replace(
                conv,
                weight=conv.weight * scale.reshape(-1, *[1] * (conv.weight.ndim - 1)),
                bias=conv.bias * scale,
            ),
        ),
        "probe",
        ("affine: bn behind 1x1",),
    ),
    Mutant(
        "scale_inputs: no shift",
        lambda patch: patch.setattr(
            affine,
            "_scale_inputs",
            lambda conv, scale, shift, true=affine._scale_inputs: true(conv, scale, 0 * shift),
        ),
        "probe",
        ("before: bn, 3x3 without padding, stride 2",),
    ),
    Mutant(
        "substituted: a bias for each branch of a sum",
        method(Map, "without_bias", lambda self: self),
        "probe",
        ("affine: data added, then bn",),
    ),
    Mutant(
        "substituted: a shift alone is nothing",
        method(
            Map,
            "is_identity",
            property(lambda m: m.value is not None and bool((m.value.weight == 1).all())),
        ),
        "probe",
        ("affine: add (C,1,1)",),
    ),
    Mutant(
        "BatchNormalization: no epsilon",
        attribute("epsilon", 0.0),
        "outputs",
        ("affine: tiny variance, large epsilon", "affine: bn behind 1x1"),
    ),
    Mutant(
        "BatchNormalization: the mean's sign",
        entry("BatchNormalization", mean_of_the_other_sign),
        "outputs",
        ("affine: bn behind 1x1",),
    ),
    Mutant(
        "Gemm: alpha is ignored",
        attribute("alpha", 1.0),
        "outputs",
        ("matrix: gemm of alpha, beta and transB, bn",),
    ),
    Mutant(
        "Gemm: beta is ignored",
        attribute("beta", 1.0),
        "outputs",
        ("matrix: gemm of alpha, beta and transB, bn",),
    ),
    Mutant(
        "Gemm: transB is ignored",
        entry("Gemm", mapped(weighed(lambda w: w.T if w.shape[0] == w.shape[1] else w))),
        "outputs",
        ("matrix: low rank beside a gemm",),
    ),
    Mutant(
        "MatMul: left is right",
        entry("MatMul", mapped(other_side)),
        "outputs",
        ("matrix: left operand, scale of rows", "matrix: right operand, scale of rows"),
    ),
    Mutant(
        "Sub: is Add",
        lambda patch: patch.setitem(
            operators._ENTRIES,  # type: ignore[arg-type]
            "Sub",
            operators._ENTRIES["Add"],
        ),
        "outputs",
        ("affine: sub constant",),
    ),
    Mutant(
        "Div: is Mul",
        lambda patch: patch.setitem(
            operators._ENTRIES,  # type: ignore[arg-type]
            "Div",
            operators._ENTRIES["Mul"],
        ),
        "outputs",
        ("affine: div by constant",),
    ),
    Mutant(
        "LeakyRelu: any slope is 1",
        attribute("alpha", 1.0),
        "outputs",
        ("nonlinear: slope 0.9999",),
    ),
    Mutant(
        "Concat: the other order",
        selection_reversed,
        "outputs",
        ("parallel: concat of convolutions",),
    ),
    Mutant(
        "AveragePool: padding counts always",
        attribute("count_include_pad", 1, of="int_attribute"),
        "outputs",
        ("parallel: average that counts no padding",),
    ),
    Mutant(
        "ConvTranspose: groups exchanged",
        entry("ConvTranspose", mapped(weighed(rolled_groups))),
        "outputs",
        ("transposed: bn, groups, bias, cropped",),
    ),
    Mutant(
        "Conv: dilations are ignored",
        attribute("dilations", None, of="ints_attribute"),
        "outputs",
        ("serial: 1x1, 3x3 of dilation 2", "serial: 3x3 of dilation 2, 3x3 of dilation 2"),
    ),
    Mutant(
        "Conv: SAME_LOWER is SAME_UPPER",
        lower_for_upper,
        "outputs",
        ("affine: bn behind auto_pad, static stride 2",),
    ),
    Mutant(
        "Pad: any constant is 0",
        constant_pad_of_zeros,
        "outputs",
        ("pad: a constant, no bias",),
    ),
    Mutant(
        "MaxPool: a negative scale passes",
        step("MaxPool", as_it_is),
        "probe",
        ("before: negative scale, max pool, 1x1",),
    ),
    Mutant(
        "Relu: a shift passes",
        step("Relu", as_it_is),
        "probe",
        ("before: shift, relu, conv",),
    ),
    Mutant(
        "AveragePool: a shift passes padding that counts",
        step("AveragePool", as_it_is),
        "probe",
        ("before: shift, average pool that counts padding, 1x1",),
    ),
    Mutant(
        "Concat: a map goes into the other part",
        step("Concat", concat_of_the_other_part),
        "probe",
        ("past: concat, bn", "before: bn beside another in a concat, 1x1"),
    ),
    Mutant(
        "Transpose: the axis of the other side",
        step("Transpose", transposed_back),
        "left",
        ("matrix: conv, channels last, scale, back", "before: bn, view, transpose, matmul"),
    ),
    Mutant(
        "Reshape: merged axes are tiled",
        merged_axes_tiled,
        "probe",
        ("before: bn, flatten, gemm",),
    ),
    Mutant(
        "Add: what broadcasts has one size",
        method(region.Region, "_same_size", broadcasts_are_sizes),
        "outputs",
        ("mutants: sizes that broadcast, 3x3",),
    ),
    Mutant(
        "emit: what is subtracted is added",
        signs_lost,
        "outputs",
        ("mutants: a sum with a negative",),
    ),
    Mutant(
        "emit: the matrix the other way round",
        matrix_untransposed,
        "outputs",
        ("matrix: gemm, gemm", "matrix: matmul, add, matmul, add"),
    ),
    Mutant(
        "emit: a column lies on the last axis",
        column_on_the_last_axis,
        "outputs",
        ("before: scale, average pool that counts padding, 1x1",),
    ),
    Mutant(
        "region: costs are inverted",
        costs_inverted,
        "costs",
        ("serial: bottleneck of 1x1", "serial: groups of 2, groups of 3"),
    ),
    Mutant(
        "region: other readers are ignored",
        method(region.Region, "_is_needed", reads_no_further),
        "costs",
        ("readers: scale, the convolution is an output",),
    ),
)


def by_rule(mutant: Mutant) -> str:
    return mutant.rule


def test_there_is_nothing_to_catch() -> None:
    """The product as it is, on every graph that a mutant is shown."""
    names = dict.fromkeys(name for mutant in MUTANTS for name in mutant.graphs)
    assert {name: how for name in names if (how := verdict(name))} == {}


@pytest.mark.parametrize("mutant", MUTANTS, ids=by_rule)
def test_a_mutant_is_caught(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(wanted(name) for name in mutant.graphs)
    mutant.plant(monkeypatch)
    found = {name: verdict(name) for name in mutant.graphs}
    assert mutant.how in found.values(), found
