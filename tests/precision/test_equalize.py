"""Cross-layer equalisation: the same float32 numbers bit for bit, and even ranges."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graphs import feeds_of, graph, relative
from tests.networks import exported, pixels
from vntools.base.errors import InternalFault
from vntools.precision import equalize as module
from vntools.precision.equalize import (
    Chain,
    equalize,
    find_chains,
    rescaled,
    weight_range_ratio,
)
from vntools.verify.float32 import run_float32

C = 6  # channels in between
F16_MAX, F16_NORMAL, F32_NORMAL = 65504.0, 2.0**-14, 2.0**-126

# What a positive factor passes; {v} is read, {w} written, D and e a depthwise weight and bias.
STEPS = {
    "relu": "{w} = Relu({v})",
    "leaky": "{w} = LeakyRelu<alpha=0.3>({v})",
    "prelu": "{w} = PRelu({v}, slope)",
    "prelu by channel": "{w} = PRelu({v}, slopes)",
    "identity": "{w} = Identity({v})",
    "max": "{w} = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>({v})",
    "max, dilated": "{w} = MaxPool<kernel_shape=[2,2], dilations=[2,2]>({v})",
    "average": "{w} = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>({v})",
    "average, padding counted": "{w} = AveragePool<kernel_shape=[2,2], pads=[1,0,1,0],"
    "count_include_pad=1>({v})",
    "zeros": "{w} = Pad({v}, spatial)",
    "zeros, said": '{w} = Pad<mode="constant">({v}, spatial, zero)',
    "reflected": '{w} = Pad<mode="reflect">({v}, spatial)',
    "depthwise": "{w} = Conv<group=6, pads=[1,1,1,1]>({v}, D{i}, e{i})",
    "depthwise, strided": "{w} = Conv<group=6, pads=[2,0,1,1], strides=[2,1]>"
    "({v}, D{i}, e{i})",
    "depthwise, no bias": "{w} = Conv<group=6, dilations=[2,2], pads=[2,2,2,2]>({v}, D{i})",
}
ENDS = {
    "global": "g = GlobalAveragePool({v}) y = Conv(g, H, h)",
    "largest": "g = GlobalMaxPool({v}) y = Conv(g, H, h)",
    "1x1": "y = Conv({v}, H, h)",
    "3x3": "y = Conv<pads=[1,1,1,1], strides=[2,2]>({v}, K)",
}
PADS = np.array([0, 0, 1, 1, 0, 0, 1, 0])


def chained(steps: list[str], end: str, *, seed: int = 0, **weights: object) -> ir.Model:
    """A convolution, ``steps`` and the dense convolution ``end``."""
    text, value, given = "a = Conv<pads=[1,1,1,1]>(x, W, b)", "a", dict(weights)
    declared = [f"float[{C},3,3,3] W", f"float[{C}] b", "int64[8] spatial", "float zero"]
    declared += ["float[1] slope", f"float[{C},1,1] slopes"]
    declared += [f"float[4,{C},1,1] H", "float[4] h", f"float[4,{C},3,3] K"]
    for i, step in enumerate(steps):
        declared += [f"float[{C},1,3,3] D{i}", f"float[{C}] e{i}"]
        text += " " + STEPS[step].format(v=value, w=f"v{i}", i=i)
        value = f"v{i}"
    text += " " + ENDS[end].format(v=value)
    given |= {"spatial": PADS, "zero": 0}
    return graph(
        f"(float[2,3,12,12] x) => (float[d,e,f,g] y) <{', '.join(declared)}> {{ {text} }}",
        seed=seed,
        **given,
    )


def opened(model: ir.Model, names: tuple[str, ...]) -> ir.Model:
    """A copy that yields tensors in between too."""
    copy = model.clone()
    made = {v.name: v for n in copy.graph for v in n.outputs}
    copy.graph.outputs.extend(made[n] for n in names)
    return copy


def ranges_of(model: ir.Model, names: tuple[str, ...]) -> dict[str, tuple[float, ...]]:
    (found,) = run_float32(opened(model, names), [feeds_of(model)])
    return {k: largest(found[k]) for k in names}


def largest(x: np.ndarray) -> tuple[float, ...]:
    return tuple(np.abs(x).max((0, 2, 3)).tolist())


def names_of(chain: Chain) -> tuple[str, ...]:
    return tuple(v.name or "" for v in chain.tensors)


def bits(x: np.ndarray) -> np.ndarray:
    assert x.dtype == np.float32
    return x.view(np.uint32)


def held(model: ir.Model, name: str) -> np.ndarray:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def check_exact(model: ir.Model, channels: dict[str, tuple[float, ...]]) -> None:
    """Outputs are the same bits; each tensor in between is divided by its factors, exactly."""
    done = equalize(model, channels, alpha=0.5)
    assert done.moved
    names = tuple(n for m in done.moved for n in m.tensors)
    feeds = [feeds_of(model)]
    (want,) = run_float32(opened(model, names), feeds)
    (got,) = run_float32(opened(done.model, names), feeds)
    for output in model.graph.outputs:
        assert output.name
        assert np.array_equal(bits(got[output.name]), bits(want[output.name]))
    for move in done.moved:
        factors = np.array(move.exponents).reshape(-1, 1, 1)
        for name in move.tensors:
            assert np.array_equal(bits(got[name]), bits(np.ldexp(want[name], -factors)))
    before = {n: largest(want[n]) for n in names}
    assert rescaled(before, done.moved) == {n: largest(got[n]) for n in names}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(sorted(STEPS)), max_size=4),
    st.sampled_from(sorted(ENDS)),
    st.lists(st.integers(-14, 14), min_size=C, max_size=C),
    st.integers(0, 99),
)
def test_a_chain_computes_the_same_bits(
    steps: list[str], end: str, places: list[int], seed: int
) -> None:
    """For any ranges, those of the data or not."""
    model = chained(steps, end, seed=seed)
    ((chain,), skips) = find_chains(model.graph)
    assert [s.node for s in skips] == [chain.consumer.name]  # y is an output
    drawn = tuple(1.3 * 2.0**p for p in places)
    channels = {names_of(chain)[-1]: drawn}
    if equalize(model, channels, alpha=0.5).moved:
        check_exact(model, channels)


@pytest.mark.parametrize("step", STEPS)
def test_every_operator_lets_factors_pass(step: str) -> None:
    model = chained([step, "relu"], "1x1", W=ruined(2**8))
    ((chain,), _) = find_chains(model.graph)
    assert names_of(chain) == ("a", "v0", "v1")
    check_exact(model, ranges_of(model, names_of(chain)))


def ruined(factor: float) -> np.ndarray:
    """A weight of whose channels one is far larger than the others."""
    weight = np.random.default_rng(1).standard_normal((C, 3, 3, 3))
    weight[2] *= factor
    return weight


@pytest.mark.parametrize(
    ("forgotten", "index"),
    [("producer", 1), ("producer", 2), ("depthwise", 2), ("consumer", 1)],
)
def test_a_forgotten_factor_is_seen(
    forgotten: str, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = chained(["relu", "depthwise", "max"], "1x1", W=ruined(2**8))
    ((chain,), _) = find_chains(model.graph)
    channels = ranges_of(model, names_of(chain))
    check_exact(model, channels)
    victim = {
        "producer": chain.producer.outputs[0].name,
        "depthwise": chain.depthwise[0].outputs[0].name,
        "consumer": "y",
    }[forgotten]
    multiply = module._multiply

    def forgetful(node: ir.Node, at: int, exponents: np.ndarray, *, axis: int = 0) -> None:
        if (node.outputs[0].name, at) != (victim, index):
            multiply(node, at, exponents, axis=axis)

    monkeypatch.setattr(module, "_multiply", forgetful)
    with pytest.raises(AssertionError):
        check_exact(model, channels)


DEEP = f"""(float[2,3,12,12] x) => (float[2,4,12,12] y)
<float[{C},3,3,3] W, float[{C}] b, float[{C},1,3,3] D, float[{C}] e, float[{C},{C},1,1] V,
 float[{C}] c, float[4,{C},1,1] H>
{{ [one] a = Conv<pads=[1,1,1,1]>(x, W, b)
   r = Relu(a)
   [deep] d = Conv<group={C}, pads=[1,1,1,1]>(r, D, e)
   [two] q = Conv(d, V, c)
   s = Relu(q)
   [three] y = Conv(s, H) }}"""


def test_chains_meet_in_one_convolution() -> None:
    """Its columns take factors up and its rows give others away."""
    rows = np.random.default_rng(3).standard_normal((C, C, 1, 1))
    rows[1] *= 2**9
    model = graph(DEEP, W=ruined(2**10), V=rows)
    chains, (skip,) = find_chains(model.graph)
    assert [(c.producer.name, c.consumer.name) for c in chains] == [
        ("one", "two"),
        ("two", "three"),
    ]
    assert [n.name for n in chains[0].depthwise] == ["deep"]
    assert (skip.rule, skip.node) == ("equalize", "three")
    names = names_of(chains[0]) + names_of(chains[1])
    channels = ranges_of(model, names)
    check_exact(model, channels)
    done = equalize(model, channels, alpha=0.5)
    assert [m.producer for m in done.moved] == ["one", "two"]
    again = equalize(done.model, rescaled(channels, done.moved), alpha=0.5)
    assert again.moved == ()
    assert {s.node: s.reason for s in again.skips} == {
        "one": "d is even as it is",
        "two": "s is even as it is",
        "three": "y is an output of the graph",
    }


def test_the_model_passed_in_stays_and_other_weights_are_shared() -> None:
    model = graph(DEEP, W=ruined(2**10))
    before = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    channels = ranges_of(model, ("d",))
    done = equalize(model, channels, alpha=0.5)
    after = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    assert after == before
    assert [m.producer for m in done.moved] == ["one"]
    changed = {
        name
        for name, value in done.model.graph.initializers.items()
        if value.const_value is not model.graph.initializers[name].const_value
    }
    assert changed == {"W", "b", "e", "V"}
    assert "no ranges are known of s" in [s.reason for s in done.skips]


# --- which factors -------------------------------------------------------------------------

PAIR = f"""(float[1,3,4,4] x) => (float[1,4,4,4] y)
<float[{C},3,1,1] W, float[{C}] b, float[4,{C},1,1] H>
{{ [one] a = Conv(x, W, b) r = Relu(a) [two] y = Conv(r, H) }}"""


def magnitudes(least: int, most: int) -> st.SearchStrategy[list[float]]:
    one = st.floats(least, most).map(lambda p: float(np.float32(2.0**p)))
    return st.lists(one, min_size=C, max_size=C)


def pair(rows: list[float], columns: list[float], **more: object) -> ir.Model:
    weight = np.ones((C, 3, 1, 1)) * np.reshape(rows, (-1, 1, 1, 1))
    head = np.ones((4, C, 1, 1)) * np.reshape(columns, (1, -1, 1, 1))
    return graph(PAIR, W=weight, H=head, **({"b": np.zeros(C)} | more))


@settings(max_examples=100, deadline=None)
@given(magnitudes(-4, 4), magnitudes(-4, 4), st.floats(0, 1))
def test_exponents_are_those_of_the_equation(
    a: list[float], w: list[float], alpha: float
) -> None:
    """Up to one common place, which keeps the largest within its own power of two."""
    done = equalize(pair([100.0] * C, w), {"r": tuple(a)}, alpha=alpha)
    wanted = np.rint(alpha * np.log2(a) - (1 - alpha) * np.log2(w))
    if not done.moved:
        assert np.ptp(wanted) == 0
        return
    exponents = np.array(done.moved[0].exponents)
    assert np.ptp(exponents - wanted) == 0
    after = max(rescaled({"r": tuple(a)}, done.moved)["r"])
    assert after <= max(a)


@settings(max_examples=100, deadline=None)
@given(
    magnitudes(-30, 15),
    magnitudes(-30, 15),
    magnitudes(-30, 30),
    magnitudes(-130, 15),
    magnitudes(-10, 10),
)
def test_no_weight_leaves_the_range(
    rows: list[float], w: list[float], a: list[float], b: list[float], inner: list[float]
) -> None:
    """Neither float16's upwards nor, by its largest, 2^-7 downwards; and nothing grows."""
    model = pair(rows, w, b=b)
    channels = {"r": tuple(a), "a": tuple(inner)}
    done = equalize(model, channels, alpha=0.5)
    after = rescaled(channels, done.moved)
    assert all(max(after[name]) <= max(given) for name, given in channels.items())
    for name, axis in (("W", 0), ("H", 1), ("b", 0)):
        old, new = (np.moveaxis(held(m, name), axis, 0) for m in (model, done.model))
        old, new = (np.abs(v).reshape(C, -1) for v in (old, new))
        assert (new[new > old] <= F16_MAX).all()
        assert (new[(new < old) & (old >= F32_NORMAL)] >= F32_NORMAL).all()
        assert not ((new < old) & (old < F32_NORMAL)).any()
    rows_of = [np.abs(held(m, "W")).reshape(C, -1).max(1) for m in (model, done.model)]
    columns = [np.abs(held(m, "H")).reshape(4, C).max(0) for m in (model, done.model)]
    for old, new in (rows_of, columns):
        assert (new[new < old] >= 2.0**-7).all()


def test_a_bound_moves_the_other_channels_instead() -> None:
    """Channel 0 cannot grow; so all others shrink, and they are even after all."""
    a, w = [1.0] + [2.0**10] * (C - 1), [1.0] + [2.0**-4] * (C - 1)
    rows = [60000.0] + [2.0**10] * (C - 1)
    done = equalize(pair(rows, w), {"r": tuple(a)}, alpha=1)
    assert done.moved[0].exponents == (0, *(10,) * (C - 1))
    free = equalize(pair([1.0] * C, [1.0] * C), {"r": tuple(a)}, alpha=1)
    assert min(free.moved[0].exponents) < 0


@pytest.mark.parametrize("alpha", [0, 0.5, 1])
def test_dead_channels_keep_their_factor(alpha: float) -> None:
    a = [0.0, 2.0**9, 1.0, 1.0, float("inf"), 1.0]
    w = [1.0, 2.0**-9, 0.0, 1.0, 1.0, 2.0]
    exponents = equalize(pair([1.0] * C, w), {"r": tuple(a)}, alpha=alpha).moved[0].exponents
    assert exponents[0] == exponents[2] == exponents[4] == 0
    assert exponents[1] > exponents[3]
    nothing = equalize(pair([1.0] * C, w), {"r": (0.0,) * C}, alpha=0.5)
    assert [s.reason for s in nothing.skips if s.node == "one"] == ["no channel of r is alive"]


def test_a_row_that_is_no_number_keeps_its_factor() -> None:
    model = pair([1.0, float("nan")] + [1.0] * (C - 2), [1.0] * C)
    channels = {"r": (2.0**6, 2.0**3, *(1.0,) * (C - 2))}
    exponents = equalize(model, channels, alpha=1).moved[0].exponents
    assert exponents[1] == 0
    assert exponents[0] > 0 > exponents[2]


def test_a_small_depthwise_bias_holds_nothing_up() -> None:
    """It may become subnormal in float16; that is far below what the channel carries."""
    bias = [1e-4, 1e-6, 0, *[1.0] * (C - 3)]
    model = chained(["relu", "depthwise"], "1x1", e1=bias, W=ruined(2**6), b=np.ones(C))
    # No channel of a may grow, so those that are too large have to shrink.
    channels = {"v1": tuple(2.0**p for p in (6, 6, 6, 0, 0, 0)), "a": (1.0,) * C}
    assert equalize(model, channels, alpha=1).moved[0].exponents == (6, 6, 6, 0, 0, 0)
    check_exact(model, {"v1": channels["v1"]})


@pytest.mark.parametrize("name", ["r", "a"])
def test_ranges_of_another_network_are_refused(name: str) -> None:
    channels = {"r": (1.0,) * C, "a": (1.0,) * C, name: (1.0, 2.0)}
    with pytest.raises(InternalFault, match=f"{name} has 6 channels, not 2") as e:
        equalize(pair([1.0] * C, [1.0] * C), channels, alpha=0.5)
    assert e.value.code == "equalize.channels"


# --- what is in the way --------------------------------------------------------------------

BLOCKED = {
    "t = Relu(a) u = Neg(a) y = Conv(t, H)": "a is not read by one node alone",
    "t = Relu(a) y = Conv(t, H) z = Relu(t)": "t is not read by one node alone",
    "z = Relu(a) y = Conv(z, H)": "z is an output of the graph",
    "zero = Constant<value_float=0.0>() six = Constant<value_float=6.0>()"
    "t = Clip(a, zero, six) y = Conv(t, H)": "a positive factor does not pass Clip",
    "t = HardSwish(a) y = Conv(t, H)": "a positive factor does not pass HardSwish",
    "t = Sigmoid(a) y = Conv(t, H)": "a positive factor does not pass Sigmoid",
    "t = Gelu(a) y = Conv(t, H)": "a positive factor does not pass Gelu",
    "t = Elu(a) y = Conv(t, H)": "a positive factor does not pass Elu",
    "t = Cast<to=1>(a) y = Conv(t, H)": "a positive factor does not pass Cast",
    "t = Flatten(a) y = Gemm(t, G)": "a positive factor does not pass Flatten",
    "t = LpPool<kernel_shape=[2,2]>(a) y = Conv(t, H)": "does not pass LpPool",
    "t = alien.Relu(a) y = Conv(t, H)": "a positive factor does not pass Relu",
    "t = Add(a, s) y = Conv(t, H)": "Add joins another branch",
    "t = Concat<axis=1>(a, s) y = Conv(t, H2)": "Concat joins another branch",
    "t = Pad(a, edges, one) y = Conv(t, H)": "Pad pads with a value other than 0",
    "t = Pad(a, edges, v) y = Conv(t, H)": "Pad pads with a value other than 0",
    "t = Pad(a, deep) y = Conv(t, H2)": "Pad pads channels",
    "t = Pad(a, edges, , axes) y = Conv(t, H)": "Pad does not say what it pads",
    "t = Pad(a, p) y = Conv(t, H)": "Pad does not say what it pads",
    "t = MaxPool<kernel_shape=[2,2], dilations=[2,2], pads=[1,1,1,1]>(a) y = Conv(t, H)":
        "MaxPool is padded and dilated: a window may hold nothing but padding",
    "t = MaxPool<kernel_shape=[2,2], dilations=[2,2], auto_pad=\"SAME_UPPER\">(a)"
    "y = Conv(t, H)": "MaxPool is padded and dilated",
    "t = PRelu(s, a) y = Conv(t, H)": "a is no data input of PRelu",
    "y = Conv(s, a)": "a is no data input of Conv",
    "y = Conv<group=2>(a, H3)": "Conv has groups",
    "t = Conv<group=6>(a, D2) y = Conv(t, H12)": "Conv has groups",
    "y = Conv(a, w)": "w is no constant initializer",
    "y = Conv(a, over)": "over is no constant initializer",
    "y = Conv(a, shown)": "shown is needed elsewhere too",
    "y = Conv(a, H) z = Neg(H)": "H is needed elsewhere too",
    "t = Conv<group=6>(a, D, e) y = Conv(t, H) z = Neg(e)": "e is needed elsewhere too",
    "t = Conv<group=6>(a, D, w6) y = Conv(t, H)": "w6 is no constant initializer",
    "y = Conv(a, H) z = Neg(W)": "W is needed elsewhere too",
    "y = Conv(a, H) z = Neg(b)": "b is needed elsewhere too",
}  # fmt: skip


def blocked(body: str) -> ir.Model:
    declared = (
        f"float[{C},3,1,1] W, float[{C}] b, float[4,{C},1,1] H, float[4,12,1,1] H2,"
        f"float[4,3,1,1] H3, float[4,12,1,1] H12, float[{C},1,1,1] D, float[12,1,1,1] D2,"
        f"float[{C}] e, int64[8] edges, int64[8] deep, int64[2] axes, float one,"
        f"float[96,4] G, float[4,{C},1,1] over, float[4,{C},1,1] shown"
    )
    outputs = "float[d,e,f,g] y" + (", float[d,e,f,g] z" if "z = " in body else "")
    inputs = (
        f"float[1,3,4,4] x, float[1,{C},4,4] s, float v, int64[8] p, float[4,{C},1,1] w,"
        f"float[{C}] w6"
    )
    return graph(
        f"({inputs}) => ({outputs}) <{declared}> {{ [one] a = Conv(x, W, b) {body} }}",
        foreign="alien",
        edges=PADS,
        deep=[0, 3, 1, 1, 0, 3, 1, 1],
        axes=[2, 3],
        one=1,
    )


@pytest.mark.parametrize("body", BLOCKED)
def test_what_is_in_the_way_is_said(body: str) -> None:
    model = blocked(body)
    if "over" in body:
        model.graph.inputs.append(model.graph.initializers["over"])
    if "shown" in body:
        model.graph.outputs.append(model.graph.initializers["shown"])
    chains, skips = find_chains(model.graph)
    assert not [c for c in chains if c.producer.name == "one"]
    (reason,) = (s.reason for s in skips if s.node == "one")
    assert BLOCKED[body] in reason
    if "alien" not in body:
        names = {v.name or "": (1.0, 2.0**9, *(1.0,) * (C - 2)) for v in values_of(model)}
        before = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
        done = equalize(model, names, alpha=0.5).model
        assert ir.serde.serialize_model(done).SerializeToString(deterministic=True) == before


def values_of(model: ir.Model) -> list[ir.Value]:
    return [v for n in model.graph for v in n.outputs if v.shape and v.shape[1] == C]


def test_a_subgraph_that_reads_is_in_the_way() -> None:
    model = graph(
        f"(float[1,3,4,4] x, bool k) => (float[1,4,4,4] y, float[1,{C},4,4] z)"
        f"<float[{C},3,1,1] W, float[4,{C},1,1] H>"
        "{ [one] a = Conv(x, W) r = Relu(a) y = Conv(r, H)"
        f"z = If(k) <then_branch = t () => (float[1,{C},4,4] t0) {{ t0 = Neg(r) }},"
        f"else_branch = f () => (float[1,{C},4,4] f0) {{ f0 = Abs(r) }}> }}"
    )
    chains, skips = find_chains(model.graph)
    assert chains == []
    assert skips[0].reason == "r is not read by one node alone"


def test_another_type_is_in_the_way() -> None:
    text = PAIR.replace("float[", "double[")
    chains, skips = find_chains(graph(text).graph)
    assert chains == []
    assert skips[0].reason == "W is DOUBLE, not FLOAT"


def test_a_depthwise_convolution_begins_a_chain_where_none_passes_it() -> None:
    """As behind a ReLU6."""
    model = blocked("t = HardSwish(a) [deep] u = Conv<group=6>(t, D, e) y = Conv(u, H)")
    (chain,), _ = find_chains(model.graph)
    assert (chain.producer.name, chain.depthwise) == ("deep", ())
    (value,) = chain.tensors
    assert value.name == "u"
    feeds = feeds_of(model)
    done = equalize(model, {"u": (2.0**9, *(1.0,) * (C - 1))}, alpha=0.5)
    (want,), (got,) = run_float32(model, [feeds]), run_float32(done.model, [feeds])
    assert done.moved
    assert np.array_equal(bits(got["y"]), bits(want["y"]))


# --- what it is for ------------------------------------------------------------------------


def quantised(x: np.ndarray) -> np.ndarray:
    """Symmetric INT8 with one scale for the whole tensor, as float."""
    scale = np.abs(x).max() / 127
    return np.rint(x / scale) * scale


def int8_error(model: ir.Model, tensor: str) -> float:
    """Relative error of y where ``tensor``, the 1x1 convolution's input, is INT8."""
    (found,) = run_float32(opened(model, (tensor,)), [feeds_of(model)])
    x, head = found[tensor].astype(np.float64), held(model, "H").astype(np.float64)
    want, got = (np.einsum("oi,nihw->nohw", head[:, :, 0, 0], v) for v in (x, quantised(x)))
    return relative(got, want)


def test_a_ruined_range_is_made_good() -> None:
    """A channel 2^12 too large, and its weights 2^12 too small: as good as never ruined."""
    head = np.random.default_rng(2).standard_normal((4, C, 1, 1))
    sound = chained(["relu", "depthwise"], "1x1", W=ruined(1), H=head.copy())
    head[:, 2] /= 2**12
    bias = held(sound, "b").copy()
    deep = held(sound, "e1").copy()
    bias[2] *= 2**12
    deep[2] *= 2**12
    model = chained(
        ["relu", "depthwise"], "1x1", W=ruined(2**12), H=head, b=bias, e1=deep,
        D1=held(sound, "D1"), h=held(sound, "h"),
    )  # fmt: skip
    channels = ranges_of(model, ("a", "v0", "v1"))
    done = equalize(model, channels, alpha=0.5)
    errors = [int8_error(m, "v1") for m in (model, done.model, sound)]
    assert errors[0] > 0.1
    assert errors[1] < errors[0] / 50
    assert errors[1] < 2 * errors[2]
    assert weight_range_ratio(held(model, "W")) > 2**11
    assert weight_range_ratio(held(done.model, "W")) < 2**6


@pytest.mark.parametrize("name", ["vanillanet_6", "vanillanet_9"])
def test_every_convolution_of_a_network_but_the_head_gives(name: str) -> None:
    model = exported(name)
    chains, (skip,) = find_chains(model.graph)
    assert [c.consumer for c in chains[:-1]] == [c.producer for c in chains[1:]]
    assert skip.node == chains[-1].consumer.name == "cls.2"
    assert len(chains) == int(name[-1]) - 1
    names = tuple(n for c in chains for n in names_of(c))
    feeds = [{"input": pixels(name, batch=2)}]
    (found,) = run_float32(opened(model, names), feeds)
    channels = {n: largest(found[n]) for n in names}
    done = equalize(model, channels, alpha=0.5)
    assert len(done.moved) == len(chains)
    (want,), (got,) = run_float32(model, feeds), run_float32(done.model, feeds)
    assert np.array_equal(bits(got["logits"]), bits(want["logits"]))
    after = rescaled(channels, done.moved)
    assert all(max(after[n]) <= max(channels[n]) for n in names)
    errors = []
    for narrowed in (model.clone(), done.model.clone()):
        for value in narrowed.graph.initializers.values():
            if value.dtype == ir.DataType.FLOAT:
                weight = held(narrowed, value.name or "").astype(np.float16)
                assert np.isfinite(weight).all()
                value.const_value = ir.tensor(weight.astype(np.float32), name=value.name)
        (half,) = run_float32(narrowed, feeds)
        errors.append(relative(half["logits"], want["logits"]))
    assert 0 < errors[1] < 1.5 * errors[0]


@pytest.mark.parametrize(
    ("rows", "want"),
    [([1, 1, 1], 1), ([1, -8, 0], 8), ([0.5, 1, -2], 4), ([0, 0, 0], 1), ([0, 3, 0], 1)],
)
def test_the_range_ratio_of_a_weight(rows: list[float], want: float) -> None:
    weight = np.zeros((3, 2, 1, 1), np.float32)
    weight[:, 1, 0, 0] = rows
    assert weight_range_ratio(weight) == want


def test_a_large_bias_does_not_let_weights_become_tiny() -> None:
    """A channel's INT8 scale is a 127th of its largest weight, whatever its bias."""
    rng = np.random.default_rng(0)
    first = rng.uniform(0.5, 1, (C, 3, 1, 1)).astype(np.float32)
    second = rng.uniform(0.5, 1, (4, C, 1, 1)) * 2.0 ** -np.arange(0, 4 * C, 4)[:, None, None]
    text = (
        f"(float[n,3,4,4] x) => (float[n,4,4,4] y) <float[{C},3,1,1] W, float[{C}] b, "
        f"float[4,{C},1,1] K> {{ a = Conv(x, W, b) r = Relu(a) y = Conv(r, K) }}"
    )
    model = graph(text, W=first, b=np.full(C, 1e3), K=second.astype(np.float32))
    even = equalize(model, {"r": (1e3,) * C}, alpha=0.5)
    (moved,) = even.moved
    assert max(moved.exponents) > 0
    held = even.model.graph.initializers["W"].const_value
    assert held is not None
    assert np.abs(held.numpy()).max(axis=(1, 2, 3)).min() >= 2.0**-7
