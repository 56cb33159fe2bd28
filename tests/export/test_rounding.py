"""Random chains through the passes: no further from float64 than rounding explains.

The bound is 64 u M, elementwise: M is the same chain run on absolute values, which bounds
every partial sum, and u is 2^-53 where weights stay in float64, 2^-24 where they were cast to
float32. A set of planted bugs shows that the bound is tight enough to catch each of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.graphs import feeds_of, graph, reference
from vntools.export import affine
from vntools.export.affine import AffineConv
from vntools.export.passes import drop_unit_leaky_relu, fold_batchnorm, merge_convs
from vntools.export.passes.drop_unit_leaky_relu import DropUnitLeakyRelu
from vntools.export.passes.fold_batchnorm import FoldBatchNorm
from vntools.export.rewrite import apply_passes

Array = NDArray[Any]
Planted = Callable[[pytest.MonkeyPatch], None]
UNIT_ROUNDOFF = {"double": 2.0**-53, "float": 2.0**-24}
FIXED_CASES = 200


class Chain:
    """A chain of layers as text and weights, drawn from any source of randomness."""

    def __init__(self, chance: random.Random, kind: str) -> None:
        self.chance, self.kind = chance, kind
        self.channels, self.extent = chance.choice((1, 3)), 9
        self.lines: list[str] = []
        self.declared: list[str] = []
        self.weights: dict[str, Array] = {}
        self.value = "x"
        outputs = []
        start = f"({kind}[1,{self.channels},9,9] x)"
        for _ in range(chance.randint(2, 7)):
            layer = chance.choice(
                (self.conv, self.conv, self.conv, self.norm, self.leaky, self.pool)
            )
            layer(f"v{len(self.lines)}")
            if chance.random() < 0.1:
                outputs.append(self.value)
        shown = sorted({*outputs, self.value})
        self.text = (
            f"{start} => ({', '.join(f'{kind}[n,c,h,w] {v}' for v in shown)}) "
            f"<{', '.join(self.declared)}> {{ {' '.join(self.lines)} }}"
        )

    def model(self) -> ir.Model:
        return graph(self.text.replace("<>", ""), **self.weights)

    def write(self, op: str, name: str, inputs: str = "", **attributes: object) -> None:
        given = ", ".join(f"{k} = {v}" for k, v in attributes.items())
        self.lines.append(f"{name} = {op} <{given}> ({self.value}{inputs})")
        self.value = name

    def hold(self, name: str, values: Array) -> str:
        self.weights[name] = values
        self.declared.append(f"{self.kind}[{','.join(map(str, values.shape))}] {name}")
        return f", {name}"

    def normal(self, *shape: int) -> Array:
        scale = 10 ** self.chance.uniform(-3, 3)
        rng = np.random.default_rng(self.chance.randint(0, 2**32))
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    def conv(self, name: str) -> None:
        chance = self.chance
        kernel = chance.choice((1, 1, 1, 2, 3)) if self.extent > 3 else 1
        stride = chance.choice((1, 1, 2)) if self.extent > 3 else 1
        pad = chance.choice((0, 0, 1))
        depthwise = chance.random() < 0.35
        out = self.channels if depthwise else chance.randint(1, 4)
        inputs = self.hold(
            f"{name}w", self.normal(out, 1 if depthwise else self.channels, kernel, kernel)
        )
        if chance.random() < 0.5:
            inputs += self.hold(f"{name}b", self.normal(out))
        group = self.channels if depthwise else 1
        self.write("Conv", name, inputs, strides=[stride] * 2, pads=[pad] * 4, group=group)
        self.channels, self.extent = out, (self.extent + 2 * pad - kernel) // stride + 1

    def norm(self, name: str) -> None:
        chance, c = self.chance, self.channels
        rng = np.random.default_rng(chance.randint(0, 2**32))
        var = 10 ** rng.uniform(-8, 2, c) * (rng.uniform(size=c) > 0.3)
        inputs = self.hold(f"{name}g", rng.uniform(0.5, 2, c)) + self.hold(
            f"{name}s", rng.standard_normal(c)
        )
        inputs += self.hold(f"{name}m", rng.standard_normal(c)) + self.hold(f"{name}v", var)
        epsilon = chance.choice(("1.0e-6", "1.0e-6", "1.0e-3"))
        self.write("BatchNormalization", name, inputs, epsilon=epsilon)

    def leaky(self, name: str) -> None:
        self.write(
            "LeakyRelu", name, alpha=self.chance.choice(("1.0", "1.0", "0.9999", "0.5", "0.0"))
        )

    def pool(self, name: str) -> None:
        if self.extent < 4:
            return self.leaky(name)
        padded = self.chance.random() < 0.5
        kernel, stride, pad = (3, 1, 1) if padded else (2, 2, 0)
        self.write(
            "MaxPool", name, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4
        )
        self.extent = self.extent if padded else self.extent // 2
        return None


@dataclass(frozen=True)
class Case:
    """A chain, its outputs in float64, and how far from them rounding alone may lead."""

    chain: Chain
    feeds: dict[str, Array]
    want: dict[str, Array]
    allowed: dict[str, Array]

    @staticmethod
    def of(chance: random.Random, kind: str) -> Case:
        chain = Chain(chance, kind)
        model = chain.model()
        feeds = feeds_of(model)
        bound = reference(model.graph, feeds, absolute=True)
        u = UNIT_ROUNDOFF[kind]
        return Case(
            chain,
            feeds,
            reference(model.graph, feeds),
            {k: 64 * u * m for k, m in bound.items()},
        )

    def holds(self) -> bool:
        model = self.chain.model()
        with np.errstate(all="ignore"):  # of planted bugs
            apply_passes(model.graph)
            got = reference(model.graph, self.feeds)
            return got.keys() == self.want.keys() and all(
                got[k].shape == w.shape and bool((np.abs(got[k] - w) <= self.allowed[k]).all())
                for k, w in self.want.items()
            )


@settings(max_examples=200)
@given(st.randoms(use_true_random=False), st.sampled_from(sorted(UNIT_ROUNDOFF)))
def test_no_further_from_float64_than_rounding(chance: random.Random, kind: str) -> None:
    assert Case.of(chance, kind).holds()


@cache
def fixed_cases() -> tuple[Case, ...]:
    return tuple(Case.of(random.Random(seed), "double") for seed in range(FIXED_CASES))


def test_the_fixed_cases_hold() -> None:
    assert all(case.holds() for case in fixed_cases())


# The bugs, each as something to plant.


def statistics(change: Callable[..., list[Array]]) -> Planted:
    """BatchNormalization's (gamma, beta, mean, var) and epsilon are read wrongly."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        true = fold_batchnorm.operands

        def planted(node: ir.Node, *indices: int) -> list[Array] | None:
            arrays = true(node, *indices)
            return arrays and change(node.attributes["epsilon"].as_float(), *arrays)

        patch.setattr(fold_batchnorm, "operands", planted)

    return plant


def unit_slope_nearly(patch: pytest.MonkeyPatch) -> None:
    true = DropUnitLeakyRelu.rewrite

    def planted(self: DropUnitLeakyRelu, graph: ir.Graph) -> Iterator[Any]:
        for node in graph:
            if node.op_type == "LeakyRelu" and node.attributes["alpha"].as_float() > 0.999:
                node.attributes["alpha"] = ir.AttrFloat32("alpha", 1.0)
        return true(self, graph)

    patch.setattr(drop_unit_leaky_relu.DropUnitLeakyRelu, "rewrite", planted)


def without_bias(conv: AffineConv) -> AffineConv:
    return replace(conv, bias=np.zeros(conv.out_channels))


def changed_conv(module: Any, change: Callable[[AffineConv], AffineConv]) -> Planted:
    """What a pass reads of a convolution is changed, its value and its shape alike."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        true_shape, true_value = module.convolution, module.exact

        def value(node: ir.Node, *channels: Any) -> Callable[[], AffineConv]:
            thunk = true_value(node, *channels)
            return lambda: change(thunk())

        patch.setattr(module, "convolution", lambda n, **kw: change(true_shape(n, **kw)))
        patch.setattr(module, "exact", value)

    return plant


def merged_wrongly(
    change: Callable[[AffineConv, AffineConv, AffineConv], AffineConv],
) -> Planted:
    """The merged convolution is changed, given the outer and the inner one."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        def planted(outer: AffineConv, inner: AffineConv) -> AffineConv:
            return change(affine.compose(outer, inner), outer, inner)

        patch.setattr(merge_convs, "compose", planted)

    return plant


def border_ignored(patch: pytest.MonkeyPatch) -> None:
    true = affine.plan_compose

    def planted(outer: AffineConv, inner: AffineConv) -> Any:
        plan = true(replace(outer, pads=(0,) * len(outer.pads)), inner)
        steps = (*inner.strides, *inner.strides)
        pads = zip(inner.pads, outer.pads, steps, strict=True)
        return replace(plan, pads=tuple(p + s * q for p, q, s in pads))

    patch.setattr(affine, "plan_compose", planted)
    patch.setattr(merge_convs, "plan_compose", planted)
    # Its inputs are made for pairs that do compose.
    patch.setattr(merge_convs, "probe_error", lambda *_, **__: 0.0)


def stays_depthwise(outer: AffineConv, inner: AffineConv) -> bool:
    square = inner.out_channels == inner.in_channels > 1
    return (
        square
        and inner.groups == 1
        and outer.groups == outer.out_channels == inner.out_channels
    )


def merged_into_depthwise(patch: pytest.MonkeyPatch) -> None:
    """Only the diagonal of the pointwise matrix goes into the depthwise convolution."""
    true = merge_convs.plan_compose

    def plan(outer: AffineConv, inner: AffineConv) -> Any:
        found = true(outer, inner)
        return replace(found, groups=outer.groups) if stays_depthwise(outer, inner) else found

    def diagonal(one: AffineConv, outer: AffineConv, inner: AffineConv) -> AffineConv:
        if not stays_depthwise(outer, inner):
            return one
        each = np.arange(one.out_channels)
        return replace(one, weight=one.weight[each, each][:, np.newaxis], groups=outer.groups)

    patch.setattr(merge_convs, "plan_compose", plan)
    merged_wrongly(diagonal)(patch)


def centre_tap(conv: AffineConv) -> AffineConv:
    """A 3x3 convolution that keeps its input's size, as if it were a 1x1 one."""
    if conv.kernel != (3, 3) or conv.pads != (1, 1, 1, 1):
        return conv
    return replace(conv, weight=conv.weight[..., 1:2, 1:2], pads=(0, 0, 0, 0))


def past_the_activation(patch: pytest.MonkeyPatch) -> None:
    """A BatchNormalization changes places with the LeakyRelu between it and a Conv."""
    true = FoldBatchNorm.rewrite

    def planted(self: FoldBatchNorm, graph: ir.Graph) -> Iterator[Any]:
        for norm in list(graph):
            behind = norm.inputs[0] if norm.op_type == "BatchNormalization" else None
            leaky = None if behind is None else behind.producer()
            if leaky is None or leaky.op_type != "LeakyRelu":
                continue
            source, between, out = leaky.inputs[0], leaky.outputs[0], norm.outputs[0]
            if len(between.uses()) > 1 or between.is_graph_output() or out.is_graph_output():
                continue
            norm.replace_input_with(0, source)
            out.replace_all_uses_with(between)
            leaky.replace_input_with(0, out)
            graph.sort()
        return true(self, graph)

    patch.setattr(fold_batchnorm.FoldBatchNorm, "rewrite", planted)


def folded_in(dtype: Any) -> Planted:
    def plant(patch: pytest.MonkeyPatch) -> None:
        def planted(conv: AffineConv, scale: Array, shift: Array) -> AffineConv:
            with np.errstate(all="ignore"):
                narrow = affine.scale_channels(conv, scale.astype(dtype), shift)
                return replace(narrow, weight=narrow.weight.astype(dtype).astype(np.float64))

        patch.setattr(fold_batchnorm, "scale_channels", planted)

    return plant


BUGS: dict[str, Planted] = {
    "epsilon 1e-5 for 1e-6": statistics(lambda e, g, b, m, v: [g, b, m, v + (1e-5 - e)]),
    "epsilon dropped": statistics(lambda e, g, b, m, v: [g, b, m, v - e]),
    "slope 0.9999 taken as 1": unit_slope_nearly,
    "mean's sign": statistics(lambda e, g, b, m, v: [g, b, -m, v]),
    "convolution's bias lost": changed_conv(fold_batchnorm, without_bias),
    "first bias not carried through": merged_wrongly(
        lambda one, o, _: replace(one, bias=o.bias)
    ),
    "first stride ignored": merged_wrongly(lambda one, o, _: replace(one, strides=o.strides)),
    "second padding's border ignored": border_ignored,
    "merged into a depthwise one": merged_into_depthwise,
    "3x3 taken for its centre tap": changed_conv(merge_convs, centre_tap),
    "BatchNorm past LeakyRelu": past_the_activation,
    "folded in float32": folded_in(np.float32),
    "folded in float16": folded_in(np.float16),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BUGS[bug](monkeypatch)
    assert not all(case.holds() for case in fixed_cases())
