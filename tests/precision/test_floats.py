"""float16 as types in the graph: IEEE's own rounding, nothing clamped, names kept."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graphs import feeds_of, graph, relative
from tests.networks import exported, pixels
from vntools.base.errors import DataFault
from vntools.precision.floats import TOLERANCES, to_floats
from vntools.verify.compare import compare
from vntools.verify.float32 import run_float32

SCALE = "(float[n,K] x) => (float[n,K] y) <float[K] layer> { y = Mul(x, layer) }"
CHAIN = """(float[n,3,8,8] x) => (float[n,5] y, float[n,4,8,8] z)
<float[4,3,1,1] W, float[4] b, float[5,4] H>
{ [conv] a = Conv(x, W, b)
  [relu] z = Relu(a)
  [mean] m = GlobalAveragePool(z)
  [flat] f = Flatten<axis=1>(m)
  [head] y = Gemm<transB=1>(f, H)
}"""
BIGGEST, TINY = 65504.0, 2.0**-24  # of float16; the smallest that is not zero
JUST_BELOW = float(np.nextafter(np.float32(65520), np.float32(0)))


def model_of(weights: np.ndarray) -> ir.Model:
    return graph(SCALE.replace("K", str(len(weights))), layer=weights)


def narrowed(weights: np.ndarray) -> np.ndarray:
    held = to_floats(model_of(weights)).model.graph.initializers["layer"].const_value
    assert held is not None
    return held.numpy()


def by_struct(x: float) -> float:
    """IEEE 754 binary16 as Python's struct has it: nearest, ties to even."""
    return struct.unpack("<e", struct.pack("<e", x))[0]


def as_ieee_has_it(weights: np.ndarray, cast: Callable[[np.ndarray], np.ndarray]) -> bool:
    """Whether a cast is to the bit that of IEEE 754, or refuses what float16 cannot hold."""
    fits = np.isfinite(weights).all() and np.abs(weights).max() < 65520
    try:
        got = cast(weights)
    except DataFault:
        return not fits
    if not fits or got.dtype != np.float16:
        return False
    want = np.array([by_struct(float(w)) for w in weights], np.float16)
    return np.array_equal(got.view(np.uint16), want.view(np.uint16))


@settings(max_examples=150)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40))
def test_every_bit_pattern_is_rounded_to_nearest_even_or_refused(patterns: list[int]) -> None:
    assert as_ieee_has_it(np.array(patterns, np.uint32).view(np.float32), narrowed)


def lifted(weights: np.ndarray) -> np.ndarray:
    tiny = (weights != 0) & (np.abs(weights) < 1e-7)
    return narrowed(np.where(tiny, np.copysign(np.float32(1e-7), weights), weights))


def cut(weights: np.ndarray) -> np.ndarray:
    """Towards zero."""
    narrow = narrowed(weights)
    beyond = np.abs(narrow.astype(np.float32)) > np.abs(weights)
    return np.where(beyond, np.nextafter(narrow, np.float16(0)), narrow)


def half_away(weights: np.ndarray) -> np.ndarray:
    """To nearest, ties away from zero."""
    return narrowed(np.nextafter(weights, np.copysign(np.float32(np.inf), weights)))


def flushed(weights: np.ndarray) -> np.ndarray:
    narrow = narrowed(weights)
    return np.where(np.abs(narrow) < 2.0**-14, np.copysign(np.float16(0), narrow), narrow)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda w: narrowed(np.clip(w, -1e4, 1e4)),
        lambda w: narrowed(np.clip(w, -65504, 65504)),
        lambda w: narrowed(np.nan_to_num(w, nan=0.0, posinf=3e38, neginf=-3e38)),
        lambda w: w.astype(np.float16),
        lambda w: narrowed(w + np.float32(0)),
        lifted, cut, half_away, flushed,
    ],
    ids=["clamped-at-1e4", "clamped", "nan-as-0", "inf-let-through", "no-minus-0", "lifted",
         "cut", "half-away", "flushed"],
)  # fmt: skip
def test_the_check_sees_casts_that_are_wrong(
    wrong: Callable[[np.ndarray], np.ndarray],
) -> None:
    ends = (65504, 65519, 65520, 2.0**-24, 2.0**-25, np.inf, np.nan, 0.0, 1e-8, 20000, 1e-5)
    weights = np.array([s * e for e in ends for s in (1, -1)], np.float32)
    assert all(as_ieee_has_it(w, narrowed) for w in weights[:, None])
    with np.errstate(over="ignore"):
        assert not all(as_ieee_has_it(w, wrong) for w in weights[:, None])


@settings(max_examples=100)
@given(st.lists(st.integers(0, 0x7BFF), min_size=1, max_size=40), st.booleans())
def test_between_neighbours_the_even_one_wins(patterns: list[int], negative: bool) -> None:
    """Every float16 is kept; half-way to its neighbour, the one with an even last bit."""
    low = np.array(patterns, np.uint16)
    sign = -1 if negative else 1
    values = low.view(np.float16).astype(np.float32) * np.float32(sign)
    assert np.array_equal(narrowed(values), values.astype(np.float16))
    below = low[low < 0x7BFF]
    if below.size:
        ends = [v.view(np.float16).astype(np.float64) for v in (below, below + np.uint16(1))]
        half = (sign * (ends[0] + ends[1]) / 2).astype(np.float32)
        even = np.where(below % 2 == 0, ends[0], ends[1])
        assert np.array_equal(narrowed(half), sign * even)


@pytest.mark.parametrize(
    ("weight", "want"),
    [
        (65504.0, 65504.0),
        (65519.0, 65504.0),
        (JUST_BELOW, 65504.0),
        (-JUST_BELOW, -65504.0),
        (TINY, TINY),
        (TINY / 2, 0.0),
        (float(np.nextafter(np.float32(TINY / 2), np.float32(1))), TINY),
        (1.5 * TINY, 2 * TINY),
        (-TINY, -TINY),
        (1e-40, 0.0),
        (-0.0, -0.0),
        (1e-7, by_struct(1e-7)),
        (20000.0, 20000.0),
    ],
)
def test_at_the_ends_of_the_range(weight: float, want: float) -> None:
    got = float(narrowed(np.array([weight]))[0])
    assert got == want
    assert np.signbit(got) == np.signbit(want)


@pytest.mark.parametrize(
    "weight", [65520.0, -65520.0, 1e5, 3e38, float("inf"), -float("inf"), float("nan")]
)
def test_what_float16_cannot_hold_is_refused_by_its_layer(weight: float) -> None:
    with pytest.raises(DataFault, match=r"beyond float16's 65504: layer .largest") as e:
        to_floats(model_of(np.array([1.0, weight, 2.0])))
    assert e.value.code == "fp16.overflow"


def test_what_rounds_beyond_bfloat16_is_refused() -> None:
    largest = 3.3895313892515355e38
    assert to_floats(model_of(np.array([1.0, largest])), "bf16").flushed == 0
    with pytest.raises(DataFault, match="beyond bfloat16's") as e:
        to_floats(model_of(np.array([1.0, 3.4e38])), "bf16")
    assert e.value.code == "bf16.overflow"


def test_a_constant_in_a_node_is_refused_too() -> None:
    model = graph(
        "(float[n,2] x) => (float[n,2] y)"
        "{ bad = Constant<value=float[1] {1.0e5}>() y = Mul(x, bad) }"
    )
    with pytest.raises(DataFault, match=r"bad \(largest 1e\+05\)"):
        to_floats(model)


def test_three_layers_are_named_and_the_others_counted() -> None:
    declared = ", ".join(f"float[1] w{i}" for i in range(5))
    steps = " ".join(f"v{i + 1} = Mul(v{i}, w{i})" for i in range(5))
    model = graph(
        f"(float[n,1] v0) => (float[n,1] v5) <{declared}> {{ {steps} }}",
        **{f"w{i}": [1e5] for i in range(5)},
    )
    with pytest.raises(DataFault, match=r"w0 .* w1 .* w2 .* and 2 more"):
        to_floats(model)


def test_what_falls_below_the_normal_range_is_counted() -> None:
    weights = np.array([0.0, 1.0, 2.0**-14, 2.0**-15, TINY, TINY / 4, 1e-30])
    typed = to_floats(model_of(weights))
    assert (typed.subnormal, typed.flushed) == (4, 2)
    assert (to_floats(model_of(np.ones(3))).subnormal, typed.model.ir_version) == (0, 10)


@pytest.mark.parametrize("io_type", ["fp32", "fp16"])
def test_names_stay_and_types_are_those_asked_for(io_type: str) -> None:
    model = graph(CHAIN)
    typed = to_floats(model, io_type=io_type).model
    kind = ir.DataType.FLOAT if io_type == "fp32" else ir.DataType.FLOAT16
    for before, after in zip(
        (*model.graph.inputs, *model.graph.outputs),
        (*typed.graph.inputs, *typed.graph.outputs),
        strict=True,
    ):
        assert (before.name, before.shape) == (after.name, after.shape)
        assert after.dtype == kind
    nodes = {n.name: n for n in typed.graph}
    assert set(nodes) - {n.name for n in model.graph} == (
        {"cast_x", "cast_y", "cast_z"} if io_type == "fp32" else set()
    )
    for name in ("conv", "relu", "mean", "flat", "head"):
        assert {v.dtype for v in nodes[name].inputs if v} == {ir.DataType.FLOAT16}
        assert nodes[name].outputs[0].dtype == ir.DataType.FLOAT16
    assert typed.opset_imports == model.opset_imports


@pytest.mark.parametrize("io_type", ["fp32", "fp16"])
def test_the_typed_graph_runs(io_type: str, capfd: pytest.CaptureFixture[str]) -> None:
    """An output that is read inside, too."""
    model = graph(CHAIN)
    typed = to_floats(model, io_type=io_type).model
    data = ir.serde.serialize_model(typed).SerializeToString()
    onnx.checker.check_model(data, full_check=True)
    feeds = feeds_of(model)
    (want,) = run_float32(model, [feeds])
    kind = np.float32 if io_type == "fp32" else np.float16
    (got,) = run_float32(data, [{k: v.astype(kind) for k, v in feeds.items()}])
    assert list(got) == list(want)
    for name, value in want.items():
        assert got[name].dtype == kind
        assert 1e-7 < relative(got[name].astype(np.float32), value) < 1e-2
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "body",
    [
        "c = Constant<value=float[2] {1.5, -2.0}>() y = Add(x, c)",
        "c = Constant<value_float=1.5>() y = Add(x, c)",
        "c = Constant<value_floats=[1.5, 2.5]>() y = Add(x, c)",
        "c = Constant<value_ints=[2, 2]>() d = ConstantOfShape(c) y = Add(x, d)",
        "c = Constant<value_int=2>() f = Cast<to=1>(c) y = Add(x, f)",
        "i = Cast<to=7>(x) f = Cast<to=1>(i) y = Add(x, f)",
        "s = Shape(x) f = Cast<to=1>(s) y = Add(x, f)",
    ],
)
def test_constants_and_casts_follow(body: str) -> None:
    model = graph(f"(float[2,2] x) => (float[2,2] y) {{ {body} }}")
    typed = to_floats(model).model
    feeds = {"x": np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)}
    (want,) = run_float32(model, [feeds])
    (got,) = run_float32(ir.serde.serialize_model(typed).SerializeToString(), [feeds])
    assert np.array_equal(got["y"], want["y"])


def test_other_types_stay_and_so_does_the_model_passed_in() -> None:
    model = graph(
        "(float[n,4] x, double[4] d) => (float[n,2] y, double[4] e) <int64[2] at, float[4] w>"
        "{ a = Mul(x, w) y = Gather<axis=1>(a, at) e = Neg(d) }",
        at=[0, 3],
    )
    before = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    typed = to_floats(model).model
    assert ir.serde.serialize_model(model).SerializeToString(deterministic=True) == before
    types = {v.name: v.dtype for n in typed.graph for v in (*n.inputs, *n.outputs) if v}
    assert types["at"] == ir.DataType.INT64
    assert types["e"] == types["d"] == ir.DataType.DOUBLE
    assert types["w"] == types["a"] == ir.DataType.FLOAT16


def test_a_name_that_is_taken_is_not_taken_again() -> None:
    model = graph(
        "(float[n,2] x) => (float[n,2] y) <float[2] x_fp16>"
        "{ y_fp16 = Mul(x, x_fp16) y = Relu(y_fp16) }"
    )
    data = ir.serde.serialize_model(to_floats(model).model).SerializeToString()
    onnx.checker.check_model(data, full_check=True)
    run_float32(data, [feeds_of(model)])


def test_a_network_is_within_the_tolerance_of_its_type() -> None:
    model = exported("vanillanet_6")
    typed = to_floats(model).model
    feeds = [{"input": pixels("vanillanet_6", batch=3)}]
    pairs = list(zip(run_float32(typed, feeds), run_float32(model, feeds), strict=True))
    found = compare(pairs, "it").require(TOLERANCES["fp16"], "it")
    assert found.relative_l2 > 1e-5, "it was typed"
    held = {v.const_value.dtype for v in typed.graph.initializers.values() if v.const_value}
    assert held == {ir.DataType.FLOAT16}
