"""Each condition of each pass, broken alone: nothing is rewritten, and the reason is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.graphs import feeds_of, graph, onnx_bytes, parsed, relative
from vntools.export.load import parse_onnx
from vntools.export.rewrite import apply_passes, discover, rewrite_model
from vntools.verify.float64 import evaluate

PASSES = {p.name: p for p in discover()}

FOLD = """(float[n,3,8,8] x) => (float[n,4,8,8] y)
<float[4,3,1,1] W, float[4] g, float[4] s, float[4] m, float[4] v>
{ [conv] c = Conv(x, W)
  [it] y = BatchNormalization(c, g, s, m, v)
}"""
# 1x1 without a bias, then a padded 3x3: the merge needs all of its conditions.
MERGE = """(float[n,3,8,8] x) => (float[n,2,8,8] y)
<float[16,3,1,1] U, float[2,16,3,3] V, float[2] q>
{ [conv] c = Conv(x, U)
  [it] y = Conv<pads=[1,1,1,1]>(c, V, q)
}"""
DROP = """(float[n,3] x) => (float[n,3] y)
{ a = Sigmoid(x)
  [it] b = LeakyRelu<alpha=1.0>(a)
  y = Sin(b)
}"""
SWAP = """(float[n,3,8,8] x) => (float[n,4,4,4] y)
<float[4,3,1,1] W>
{ c = Conv(x, W)
  p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(c)
  [it] y = Relu(p)
}"""
FLATTEN = """(float[n,4,2,2] x, float[m,2,2,2] u) => (float[i,j] y)
<int64[2] shape>
{ [it] y = Reshape(x, shape) }"""
POOL = """(float[n,4,5,6] x) => (float[n,4,1,1] y)
<int64[2] axes>
{ [it] y = ReduceMean<keepdims=1>(x, axes) }"""
BASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "fold": ("collapse-linear", FOLD, {}),
    "merge": ("collapse-linear", MERGE, {}),
    "drop": ("collapse-linear", DROP, {}),
    "swap": ("relu-before-maxpool", SWAP, {}),
    "flatten": ("flatten", FLATTEN, {"shape": [0, -1]}),
    "pool": ("global-average-pool", POOL, {"axes": [2, 3]}),
}
READ_ELSEWHERE = "is read elsewhere too, or is a graph output"
NOT_CONSTANT = "not constant"
MAY_OVERRIDE = "a caller may override"

Edit = Callable[[onnx.ModelProto], None]


@dataclass(frozen=True)
class Broken:
    """One condition broken.

    Attributes:
        base: name of the graph in which nothing is broken.
        what: in words.
        changes: texts of the graph and what stands in their place.
        reason: part of the Skip; None where the pass sees no candidate at all.
        kwargs: opset, domain, weights; None where the text has none of the name any more.
    """

    base: str
    what: str
    changes: dict[str, str]
    reason: str | None
    kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    edit: Edit | None = None

    def data(self) -> bytes:
        _, text, weights = BASES[self.base]
        for old, new in self.changes.items():
            assert old in text
            text = text.replace(old, new)
        kwargs = {k: v for k, v in (weights | self.kwargs).items() if v is not None}
        model = parsed(text, **kwargs)
        if self.edit is not None:
            self.edit(model)
        return model.SerializeToString()


def fold(what: str, changes: dict[str, str], reason: str | None, **kwargs: Any) -> Broken:
    return Broken("fold", what, changes, reason, kwargs)


def merge(what: str, changes: dict[str, str], reason: str | None, **kwargs: Any) -> Broken:
    return Broken("merge", what, changes, reason, kwargs)


def drop(what: str, changes: dict[str, str], reason: str | None, **kwargs: Any) -> Broken:
    return Broken("drop", what, changes, reason, kwargs)


def swap(what: str, changes: dict[str, str], reason: str | None, **kwargs: Any) -> Broken:
    return Broken("swap", what, changes, reason, kwargs)


def flatten(what: str, changes: dict[str, str], **kwargs: Any) -> Broken:
    return Broken("flatten", what, changes, None, kwargs)


def pool(what: str, changes: dict[str, str], **kwargs: Any) -> Broken:
    return Broken("pool", what, changes, None, kwargs)


def overridable(name: str) -> Edit:
    """An initializer that is an input too: since IR 4 a caller may override it."""

    def edit(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == name)
        info = helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))
        model.graph.input.append(info)

    return edit


def captured(value: str, shape: str) -> dict[str, str]:
    """An If whose branches read ``value`` from outside."""
    branches = ", ".join(
        f"{b}_branch = {b} () => (float[{shape}] {b}out) {{ {b}out = {op}({value}) }}"
        for b, op in (("then", "Sin"), ("else", "Cos"))
    )
    return {
        "x)": "x, bool k)",
        "}": f"z = If<{branches}>(k)\n}}",
        "y)": f"y, float[{shape}] z)",
    }


READER = {"}": "z = Sin(c)\n}"}
SECOND_OUTPUT = {"y)": "y, float[n,h,i,j] z)"}
CASES = [
    fold("a second reader", READER | SECOND_OUTPUT, READ_ELSEWHERE),
    fold("a graph output", {"y)": "y, float[n,4,8,8] c)"}, READ_ELSEWHERE),
    fold("read in a subgraph", captured("c", "n,4,8,8"), READ_ELSEWHERE),
    fold(
        "a weight from outside",
        {"x)": "x, float[4,3,1,1] W)", "float[4,3,1,1] W, ": ""},
        NOT_CONSTANT,
    ),
    fold(
        "statistics from outside", {"x)": "x, float[4] m)", "float[4] m, ": ""}, NOT_CONSTANT
    ),
    fold(
        "a weight that is computed from an input",
        {"x)": "x, float r)", "[conv]": "V = Mul(W, r)\n[conv]", "Conv(x, W)": "Conv(x, V)"},
        NOT_CONSTANT,
    ),
    Broken("fold", "an overridable weight", {}, MAY_OVERRIDE, {}, overridable("W")),
    Broken("fold", "an overridable mean", {}, MAY_OVERRIDE, {}, overridable("m")),
    fold(
        "nothing but a Relu in front",
        {"Conv(x, W)": "Relu(x)", "3,8,8": "4,8,8"},
        "only a scale that is not negative",
    ),
    fold(
        "another domain's Conv",
        {"Conv(x": "test.Conv(x"},
        None,
        foreign="test",
    ),
    fold("another domain's norm", {"Batch": "test.Batch"}, None, foreign="test"),
    fold(
        "training mode",
        {"tion(": "tion<training_mode=1>("},
        "training mode",
    ),
    fold(
        "as many outputs as in training",
        {"[it] y =": "[it] y, p, q, r, s2 ="},
        "training mode",
        opset=13,
    ),
    fold("before opset 7, without is_test", {}, "training mode", opset=6),
    fold(
        "no variance and no epsilon",
        {"tion(": "tion<epsilon=0.0>("},
        "var + epsilon is not positive",
        v=[1, 1, 0, 1],
    ),
    fold("negative variance", {}, "var + epsilon is not positive", v=[1, 1, -1, 1]),
    fold(
        "negative epsilon", {"tion(": "tion<epsilon=-3.0>("}, "var + epsilon is not positive"
    ),
    fold("variance that is no number", {}, "is not finite", v=[1, 1, np.nan, 1]),
    fold(
        "pads that crop",
        {"Conv(x": "Conv<pads=[-1,-1,-1,-1]>(x", "4,8,8": "4,6,6"},
        "a negative padding crops",
    ),
    merge("a second reader", READER | SECOND_OUTPUT, READ_ELSEWHERE),
    merge("a graph output", {"y)": "y, float[n,16,8,8] c)"}, READ_ELSEWHERE),
    merge("read in a subgraph", captured("c", "n,16,8,8"), READ_ELSEWHERE),
    merge(
        "read twice by the outer one",
        {"Conv<pads=[1,1,1,1]>(c, V, q)": "Conv(c, c)"},
        NOT_CONSTANT,
    ),
    merge(
        "a first weight from outside",
        {"x)": "x, float[16,3,1,1] U)", "float[16,3,1,1] U, ": ""},
        NOT_CONSTANT,
    ),
    merge(
        "a second bias from outside",
        {"x)": "x, float[2] q)", ", float[2] q>": ">"},
        NOT_CONSTANT,
    ),
    Broken("merge", "an overridable first weight", {}, MAY_OVERRIDE, {}, overridable("U")),
    Broken("merge", "an overridable second bias", {}, MAY_OVERRIDE, {}, overridable("q")),
    merge("another domain's first Conv", {"Conv(x": "test.Conv(x"}, None, foreign="test"),
    merge("another domain's second Conv", {"Conv<": "test.Conv<"}, None, foreign="test"),
    merge(
        "a bias that padding would cut off",
        {"U, ": "U, float[16] p, ", "(x, U)": "(x, U, p)"},
        "padding would replace the first convolution's bias",
    ),
    merge(
        "a first kernel that reaches in from beyond the border",
        {
            "16,3,1,1": "16,1,3,3",
            "Conv(x": "Conv<pads=[1,1,1,1]>(x",
            "n,3,": "n,1,",
            "2,16,3,3": "1,16,3,3",
            "n,2,": "n,1,",
            "float[2]": "float[1]",
        },
        "kernel would still reach its input",
    ),
    merge(
        "a bottleneck, whose product is dearer",
        {"16,3,1,1": "1,3,1,1", "2,16,3,3": "2,1,3,3"},
        # 54 * 64 against (3 + 18) * 64, and 54 against 3 + 18.
        "would cost 2112 multiply-accumulates and 33 weights more",
    ),
    merge(
        "an activation between",
        {"[it] y = Conv": "d = Relu(c)\ny = Conv", "(c, V": "(d, V"},
        None,
    ),
    drop("slope 0.9999", {"1.0": "0.9999"}, "its slope is 0.9999, not 1"),
    drop("slope just above 1", {"1.0": "1.0000001"}, "its slope is 1, not 1"),
    drop("no slope given, which is 0.01", {"<alpha=1.0>": ""}, "its slope is 0.01, not 1"),
    drop("slope 0", {"1.0": "0.0"}, "its slope is 0, not 1"),
    drop("another domain's", {"LeakyRelu": "test.LeakyRelu"}, None, foreign="test"),
    drop(
        "alone between an input and an output",
        {"a = Sigmoid(x)": "", "b = Leaky": "y = Leaky", "(a)": "(x)", "y = Sin(b)": ""},
        None,
    ),
    drop(
        "between two outputs",
        {"y)": "b, float[n,3] a)", "y = Sin(b)": ""},
        None,
    ),
    swap(
        "the pooled value read elsewhere",
        {"}": "z = Sin(p)\n}"} | SECOND_OUTPUT,
        "read elsewhere",
    ),
    swap("the convolution read elsewhere", READER | SECOND_OUTPUT, "read elsewhere"),
    swap("the pooled value a graph output", {"y)": "y, float[n,4,4,4] p)"}, "a graph output"),
    swap("the convolution a graph output", {"y)": "y, float[n,4,8,8] c)"}, "a graph output"),
    swap("the pooled value read in a subgraph", captured("p", "n,4,4,4"), "read elsewhere"),
    swap(
        "indices that are read",
        {"p =": "p, i =", "y)": "y, int64[n,4,4,4] z)", "}": "z = Identity(i)\n}"},
        "the pooling writes indices",
    ),
    swap(
        "indices that are an output",
        {"p =": "p, i =", "y)": "y, int64[n,4,4,4] i)"},
        "indices",
    ),
    swap(
        "a window of padding alone",
        {"strides=[2,2]": "pads=[1,1,1,1], dilations=[9,9]", "[n,4,4,4]": "[n,4,1,1]"},
        "nothing but padding",
    ),
    swap("no convolution in front", {"Conv(x, W)": "Sin(x)", "4,4,4": "3,4,4"}, None),
    swap("another domain's Relu", {"Relu": "test.Relu"}, None, foreign="test"),
    flatten("two kept dimensions", {"int64[2]": "int64[3]"}, shape=[0, 4, -1]),
    flatten("another split", {}, shape=[-1, 8]),
    flatten("a fixed batch for a dynamic one", {}, shape=[2, 16]),
    flatten("0 as itself", {"Reshape(": "Reshape<allowzero=1>("}, shape=[0, 16]),
    flatten(
        "a shape from outside",
        {"u)": "u, int64[2] shape)", "<int64[2] shape>": ""},
        shape=None,
    ),
    flatten(
        "the batch of another input",
        {
            "int64[2] shape": "int64[1] r",
            "{": "{ b = Shape<end=1>(u)\nshape = Concat<axis=0>(b, r)\n",
        },
        r=[-1],
        shape=None,
    ),
    flatten(
        "a rank that is not known",
        {"] x,": "] x1,", "{": "{ x = test.Any(x1)\n"},
        foreign="test",
    ),
    flatten("another domain's", {"Reshape": "test.Reshape"}, foreign="test"),
    flatten(
        "the shape an attribute, before opset 5",
        {"<int64[2] shape>": "", "(x, shape)": "<shape=[0,-1]>(x)"},
        opset=4,
        shape=None,
    ),
    pool("dropped axes", {"keepdims=1": "keepdims=0", "n,4,1,1": "n,4"}),
    pool("one axis of two", {"int64[2]": "int64[1]", "4,1,1": "4,5,1"}, axes=[3]),
    pool("the channels too", {"int64[2]": "int64[3]"}, axes=[1, 2, 3]),
    pool("other axes", {"4,1,1": "1,1,6"}, axes=[1, 2]),
    pool("no axes, which is all", {"(x, axes)": "(x)"}),
    pool(
        "an empty list of them",
        {"4,5,6": "4", "int64[2]": "int64[0]", "n,4,1,1": "1,1"},
        axes=[],
    ),
    pool("axes from outside", {"x)": "x, int64[2] axes)", "<int64[2] axes>": ""}, axes=None),
    pool("integers", {"float[": "int64["}),
    pool(
        "a vector for each sample",
        {"n,4,5,6": "n,4", "int64[2]": "int64[1]", "n,4,1,1": "n,1"},
        axes=[1],
    ),
    pool("another domain's", {"Reduce": "test.Reduce"}, foreign="test"),
]


@pytest.mark.parametrize("base", BASES)
def test_with_all_conditions_it_is_rewritten(base: str) -> None:
    rule, text, kwargs = BASES[base]
    data = onnx_bytes(text, **kwargs)
    after, applied = rewrite_model(data, [PASSES[rule]])
    assert len(applied.rewrites) == 1
    assert not applied.skips
    want, got = (evaluate(m.graph, feeds_of(m)) for m in (parse_onnx(data), parse_onnx(after)))
    assert relative(got["y"], want["y"]) < 1e-6


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.base}: {c.what}")
def test_without_one_of_them_it_is_not(case: Broken) -> None:
    data, rule = case.data(), BASES[case.base][0]
    after, applied = rewrite_model(data, [PASSES[rule]])
    assert after is data, "the bytes, and so the outputs, are the same"
    assert not applied.rewrites
    if case.reason is None:
        assert not applied.skips
    else:
        (skip,) = [s for s in applied.skips if case.reason in s.reason]
        assert (skip.rule, skip.node in ("it", "conv")) == (rule, True)
        assert skip.to_record() == {"rule": rule, "node": skip.node, "reason": skip.reason}


def test_what_others_read_too_is_copied_and_not_changed() -> None:
    """Two convolutions and a third reader share a weight and statistics; one is folded."""
    text = """(float[n,3,8,8] x) => (float[n,4,8,8] y, float[n,4,8,8] z, float[4,3,1,1] w)
    <float[4,3,1,1] W, float[4] g, float[4] s, float[4] m, float[4] v>
    { [conv] c = Conv(x, W, s)
      y = BatchNormalization(c, g, s, m, v)
      [other] z = Conv(x, W, s)
      w = Sin(W)
    }"""
    model = graph(text)
    held = {n: v.const_value for n, v in model.graph.initializers.items()}
    before = {n: t.numpy().copy() for n, t in held.items() if t is not None}
    want = evaluate(model.graph, feeds_of(model))
    assert len(apply_passes(model.graph).rewrites) == 1
    got = evaluate(model.graph, feeds_of(model))
    assert relative(got["y"], want["y"]) < 1e-6
    assert np.array_equal(got["z"], want["z"])
    assert np.array_equal(got["w"], want["w"])
    assert set(model.graph.initializers) == {"W", "s", "conv.weight", "conv.bias"}
    for name in ("W", "s"):
        kept = model.graph.initializers[name].const_value
        assert kept is not None
        assert kept is held[name]
        assert np.array_equal(before[name], kept.numpy())


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("y = Identity(a) z = Identity(a)", ["Sigmoid", "Identity"]),
        ("y = Sin(a) b = Identity(y) z = Identity(b)", ["Sigmoid", "Sin", "Identity"]),
        ("y = Sin(a) b = Identity(x) z = Identity(b)", ["Sigmoid", "Sin", "Identity"]),
    ],
    ids=["both of a value within", "one of the other", "of an input"],
)
def test_two_names_of_the_graph_are_never_joined(body: str, left: list[str]) -> None:
    model = graph(
        f"(float[n,3] x) => (float[n,3] y, float[n,3] z) {{ a = Sigmoid(x) {body} }}"
    )
    want = evaluate(model.graph, feeds_of(model))
    apply_passes(model.graph)
    assert [v.name for v in model.graph.outputs] == ["y", "z"]
    assert [n.op_type for n in model.graph] == left
    got = evaluate(model.graph, feeds_of(model))
    assert all(np.array_equal(got[k], want[k]) for k in "yz")


def test_the_same_weight_inside_and_outside() -> None:
    model = graph(
        "(float[n,4,8,8] x) => (float[n,4,8,8] y) <float[4,4,1,1] W, float[4] b>"
        "{ c = Conv(x, W, b) [last] y = Conv(c, W, b) }"
    )
    want = evaluate(model.graph, feeds_of(model))["y"]
    assert len(apply_passes(model.graph).rewrites) == 1
    assert relative(evaluate(model.graph, feeds_of(model))["y"], want) < 1e-6
    assert set(model.graph.initializers) == {"last.weight", "last.bias"}


@pytest.mark.parametrize("where", ["an initializer", "a value", "a value of a subgraph"])
def test_a_new_initializer_takes_no_name_that_is_taken(where: str) -> None:
    text = {
        "an initializer": """(float[n,4,8,8] x) => (float[n,4,8,8] y) <float[4,4,1,1] W,
            float[4] g, float[4] s, float[4] m, float[4] v, float[n,4,8,8] d,
            float[4,1,1] taken>
            { [it] c = Conv(x, W) d = BatchNormalization(c, g, s, m, v) y = Max(d, taken) }""",
        "a value": """(float[n,4,8,8] x) => (float[n,4,8,8] y) <float[4,4,1,1] W,
            float[4] g, float[4] s, float[4] m, float[4] v>
            { [it] c = Conv(x, W) d = BatchNormalization(c, g, s, m, v) taken = Sin(d)
              y = Add(d, taken) }""",
        "a value of a subgraph": """(float[n,4,8,8] x, bool k) => (float[n,4,8,8] y)
            <float[4,4,1,1] W, float[4] g, float[4] s, float[4] m, float[4] v>
            { [it] c = Conv(x, W) d = BatchNormalization(c, g, s, m, v)
              y = If<
                then_branch = t () => (float[n,4,8,8] o) { taken = Sin(d) o = Cos(taken) },
                else_branch = e () => (float[n,4,8,8] p) { p = Cos(d) }>(k) }""",
    }[where]
    data = onnx_bytes(text.replace("taken", "it_weight")).replace(b"it_weight", b"it.weight")
    after, applied = rewrite_model(data)
    assert len(applied.rewrites) == 1
    assert {"it.weight_1", "it.bias"} <= set(parse_onnx(after).graph.initializers)
    onnx.checker.check_model(after, full_check=True)


def test_a_new_initializer_takes_a_name_that_is_free_in_the_end() -> None:
    """As an exporter has it: the weight that goes is called as the one that comes."""
    data = onnx_bytes(FOLD.replace("W", "conv_weight")).replace(b"conv_weight", b"conv.weight")
    after, _ = rewrite_model(data)
    assert set(parse_onnx(after).graph.initializers) == {"conv.weight", "conv.bias"}
