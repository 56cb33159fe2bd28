"""Random chains through the passes: no further from float64 than rounding explains.

The bound is 64 u M, elementwise: M is the same chain run on absolute values, which bounds
every partial sum, and u is 2^-53 where weights stay in float64, 2^-24 where they were cast to
float32. Planted bugs show that the bound alone is tight enough to catch each of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
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
from tests.planting import (
    Plant,
    as_it_is,
    composed_as,
    entry,
    in_affine,
    mean_of_the_other_sign,
    step,
)
from vntools.export import affine, emit, operators
from vntools.export.affine import AffineConv
from vntools.export.passes import collapse_linear
from vntools.export.rewrite import apply_passes

Array = NDArray[Any]
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


def epsilon(change: Callable[[float], float]) -> Plant:
    """What BatchNormalization adds to the variance is read wrongly."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        true = operators._attribute

        def planted(node: ir.Node, name: str, default: float) -> float:
            value = true(node, name, default)
            return change(value) if name == "epsilon" else value

        patch.setattr(operators, "_attribute", planted)

    return plant


def unit_slope_nearly(patch: pytest.MonkeyPatch) -> None:
    true = operators._attribute

    def planted(node: ir.Node, name: str, default: float) -> float:
        value = true(node, name, default)
        return 1.0 if name == "alpha" and value > 0.999 else value

    patch.setattr(operators, "_attribute", planted)


def written_in(dtype: Any) -> Plant:
    """Numbers pass through a narrower type on their way into the graph."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        true = emit._cast
        patch.setattr(emit, "_cast", lambda array, *to: true(array.astype(dtype), *to))

    return plant


def bias_lost(patch: pytest.MonkeyPatch) -> None:
    true = affine.scale_channels
    planted = in_affine(
        "scale_channels", lambda conv, *by: true(replace(conv, bias=0 * conv.bias), *by)
    )
    planted(patch)


def centre_tap(composed: AffineConv, _outer: AffineConv, _inner: AffineConv) -> AffineConv:
    kept = np.zeros_like(composed.weight)
    centre = (..., *(k // 2 for k in composed.weight.shape[2:]))
    kept[centre] = composed.weight[centre]
    return replace(composed, weight=kept)


def neighbouring(composed: AffineConv, outer: AffineConv, _inner: AffineConv) -> AffineConv:
    """What a depthwise convolution reads is the next channel's."""
    if outer.groups == 1:
        return composed
    return replace(composed, weight=np.roll(composed.weight, 1, axis=0))


BUGS: dict[str, Plant] = {
    "epsilon 1e-5 for 1e-6": epsilon(lambda e: e + 9e-6),
    "epsilon dropped": epsilon(lambda _: 1e-30),
    "slope 0.9999 taken as 1": unit_slope_nearly,
    "the mean's sign": entry("BatchNormalization", mean_of_the_other_sign),
    "a convolution's bias lost": bias_lost,
    "the first bias not carried": composed_as(lambda one, o, _: replace(one, bias=o.bias)),
    "a stride ignored": composed_as(lambda one, o, _: replace(one, strides=o.strides)),
    "a padding ignored": composed_as(lambda one, _, i: replace(one, pads=i.pads)),
    "merged into a depthwise one": composed_as(neighbouring),
    "a kernel as its centre tap": composed_as(centre_tap),
    "a shift past LeakyRelu": step("LeakyRelu", as_it_is),
    "written in float32": written_in(np.float32),
    "written in float16": written_in(np.float16),
}


@pytest.mark.parametrize("bug", BUGS)
def test_the_bound_alone_catches_a_planted_bug(
    bug: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the comparison that a rewrite makes of its own before and after switched off."""
    monkeypatch.setattr(collapse_linear, "_require_exact", lambda *_: None)
    assert all(case.holds() for case in fixed_cases()[:20])
    BUGS[bug](monkeypatch)
    assert not all(case.holds() for case in fixed_cases())
