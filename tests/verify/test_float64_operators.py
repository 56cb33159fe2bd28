"""Operators that the evaluator has its own of, against ONNX Runtime and PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch

from tests.graphs import feeds_of, graph, parsed, relative
from vntools.export.load import parse_onnx
from vntools.verify.compare import relative_l2
from vntools.verify.float32 import run_float32
from vntools.verify.float64 import evaluate, random_nodes

FLOAT32 = 2e-6
IMAGE = "(float[n,4,6,7] x) => (float[n,a,b,c] y)"
POOL = "kernel_shape=[3,2], strides=[2,2], pads=[1,0,1,1]"
UP = "float[4] s"
SCALES = {"s": [1.0, 1.0, 2.0, 1.5]}
TEXTS: dict[str, tuple[int, str, dict[str, Any]]] = {
    "average pool": (20, f"{IMAGE} {{ y = AveragePool<{POOL}>(x) }}", {}),
    "average pool, padding counted": (
        20,
        f"{IMAGE} {{ y = AveragePool<{POOL}, count_include_pad=1>(x) }}",
        {},
    ),
    "average pool, ceil": (20, f"{IMAGE} {{ y = AveragePool<{POOL}, ceil_mode=1>(x) }}", {}),
    "average pool, all of it": (
        20,
        f"{IMAGE} {{ y = AveragePool<{POOL}, ceil_mode=1, count_include_pad=1>(x) }}",
        {},
    ),
    "average pool, dilated": (
        20,
        f"{IMAGE} {{ y = AveragePool<kernel_shape=[2,2], dilations=[2,3]>(x) }}",
        {},
    ),
    "average pool, same": (
        20,
        f'{IMAGE} {{ y = AveragePool<kernel_shape=[2,3], auto_pad="SAME_LOWER">(x) }}',
        {},
    ),
    "transposed": (
        20,
        (
            f"{IMAGE} <float[4,3,3,2] w, float[6] b> "
            "{ y = ConvTranspose<group=2, strides=[2,1], pads=[1,0,0,1], "
            "output_padding=[1,0], dilations=[1,2]>(x, w, b) }"
        ),
        {},
    ),
    "transposed to a shape": (
        20,
        (
            f"{IMAGE} <float[4,3,3,3] w> "
            "{ y = ConvTranspose<strides=[2,2], output_shape=[12,14]>(x, w) }"
        ),
        {},
    ),
    "transposed, same": (
        20,
        (
            f"{IMAGE} <float[4,3,3,3] w> "
            '{ y = ConvTranspose<strides=[2,2], auto_pad="SAME_UPPER">(x, w) }'
        ),
        {},
    ),
    "nearest": (20, f"{IMAGE} <{UP}> {{ y = Resize(x, , s) }}", SCALES),
    "nearest, ceil": (
        20,
        (
            f'{IMAGE} <{UP}> {{ y = Resize<nearest_mode="ceil", '
            'coordinate_transformation_mode="asymmetric">(x, , s) }'
        ),
        SCALES,
    ),
    "linear": (20, f'{IMAGE} <{UP}> {{ y = Resize<mode="linear">(x, , s) }}', SCALES),
    "linear, corners": (
        20,
        (
            f'{IMAGE} <int64[4] z> {{ y = Resize<mode="linear", '
            'coordinate_transformation_mode="align_corners">(x, , , z) }'
        ),
        {"z": [2, 4, 3, 11]},
    ),
    "cubic": (20, f'{IMAGE} <{UP}> {{ y = Resize<mode="cubic">(x, , s) }}', SCALES),
    "cubic, inside": (
        20,
        f'{IMAGE} <{UP}> {{ y = Resize<mode="cubic", exclude_outside=1>(x, , s) }}',
        SCALES,
    ),
    "upsample": (9, f"{IMAGE} <{UP}> {{ y = Upsample(x, s) }}", SCALES),
    "softmax of all behind": (11, f"{IMAGE} {{ y = Softmax<axis=2>(x) }}", {}),
    "log softmax": (20, f"{IMAGE} {{ y = LogSoftmax<axis=1>(x) }}", {}),
    "squeezed by attribute": (
        11,
        (
            "(float[n,4] x) => (float[n,a] y) "
            "{ u = Unsqueeze<axes=[1]>(x) v = Sin(u) y = Squeeze<axes=[1]>(v) }"
        ),
        {},
    ),
    "pads by attribute": (
        10,
        f"{IMAGE} {{ y = Pad<pads=[0,0,1,-2,0,0,2,1], value=1.5>(x) }}",
        {},
    ),
    "pads of some axes": (
        20,
        f'{IMAGE} <int64[2] p, int64[1] a> {{ y = Pad<mode="reflect">(x, p, , a) }}',
        {"p": [2, 1], "a": [-1]},
    ),
    "mean by attribute": (
        11,
        "(float[n,4] x) => (float[n,a] y) { y = ReduceMean<axes=[1]>(x) }",
        {},
    ),
    "dropout by attribute": (11, f"{IMAGE} {{ y = Dropout<ratio=0.5>(x) }}", {}),
    "per place": (
        8,
        (
            "(float[n,2,3] x) => (float[n,2,3] y) <float[2,3] g, float[2,3] b, float[2,3] m, "
            "float[2,3] v> { y = BatchNormalization<spatial=0>(x, g, b, m, v) }"
        ),
        {"v": [[1, 2, 3], [1, 2, 3]]},
    ),
    "sequences": (
        20,
        (
            f"{IMAGE} <int64[2] z, int64 i> {{ s = SplitToSequence<axis=1>(x, z) "
            "a = SequenceAt(s, i) c = ConcatFromSequence<axis=1>(s) y = Concat<axis=1>(a, c) }"
        ),
        {"z": [1, 3], "i": 1},
    ),
    "gelu": (20, f"{IMAGE} {{ y = Gelu(x) }}", {}),
    "gelu by tanh": (20, f'{IMAGE} {{ y = Gelu<approximate="tanh">(x) }}', {}),
    "group norm": (
        21,
        (
            f"{IMAGE} <float[4] g, float[4] b> "
            "{ y = GroupNormalization<num_groups=2, epsilon=0.01>(x, g, b) }"
        ),
        {},
    ),
    "elementwise": (
        20,
        (
            f"{IMAGE} {{ a = Sigmoid(x) b = Erf(a) c = HardSwish(x) d = HardSigmoid(x) "
            "e = Reciprocal(a) f = Max(b, c, d) g = Min(f, e) h = Sum(g, a, b) y = Div(h, e) }"
        ),
        {},
    ),
    "loop": (
        20,
        (
            "(float[2] x) => (float[k,2] y) <int64 m, bool t, float[2] w> "
            "{ z, y = Loop(m, t, x) <body = b (int64 i, bool c, float[2] p) "
            "=> (bool d, float[2] q, float[2] r) "
            "{ d = Identity(c) q = Mul(p, w) r = Add(q, x) }> }"
        ),
        {"m": 3, "t": True},
    ),
    "loop that goes on while": (
        20,
        (
            "(float[2] x) => (float[k,2] y) <int64 m, bool t, int64 e> { z, y = Loop(m, t, x) "
            "<body = b (int64 i, bool c, float[2] p) => (bool d, float[2] q, float[2] r) "
            "{ d = Less(i, e) q = Sin(p) r = Add(q, x) }> }"
        ),
        {"m": 9, "t": True, "e": 1},
    ),
    "scan": (
        20,
        (
            "(float[3,2] x) => (float[2,3] y) <float[2] w> { z, y = Scan<num_scan_inputs=1, "
            "scan_input_directions=[1], scan_output_axes=[1], "
            "body = b (float[2] s, float[2] p) => (float[2] t, float[2] o) "
            "{ t = Add(s, p) o = Sin(t) }>(w, x) }"
        ),
        {},
    ),
}
BRANCHES = (
    "<then_branch = t () => (float[2] u) { a = Sin(x) u = Mul(a, w) }, "
    "else_branch = e () => (float[2] v) { v = Exp(x) }>"
)
CHOICE = f"(float[2] x, bool k) => (float[2] y) <float[2] w> {{ y = If(k) {BRANCHES} }}"


@pytest.mark.parametrize("what", TEXTS)
def test_an_operator_is_that_of_onnxruntime(what: str) -> None:
    opset, text, weights = TEXTS[what]
    model = graph(text, opset=opset, **weights)
    feeds = feeds_of(model)
    (want,) = run_float32(model, [feeds])
    got = evaluate(model.graph, feeds)["y"]
    assert got.dtype == np.float64
    assert got.shape == want["y"].shape
    assert relative(got, want["y"]) <= FLOAT32


@pytest.mark.parametrize("chosen", [True, False])
def test_the_branch_that_is_chosen(chosen: bool) -> None:
    model = graph(CHOICE, w=[2.0, 3.0])
    x = np.array([0.5, 1.0])
    want = np.sin(x) * [2, 3] if chosen else np.exp(x)
    assert np.array_equal(evaluate(model.graph, {"x": x, "k": np.array(chosen)})["y"], want)


def test_a_loop_of_no_turns_gives_nothing() -> None:
    _, text, weights = TEXTS["loop"]
    model = graph(text, **{**weights, "m": 0})
    assert evaluate(model.graph, feeds_of(model))["y"].shape == (0, 2)


def test_a_batch_norm_in_training_is_pytorchs() -> None:
    text = """(float[6,3,4] x) => (float[6,3,4] y, float[3] p, float[3] q)
    <float[3] g, float[3] b, float[3] m, float[3] v>
    { y, p, q = BatchNormalization<training_mode=1, momentum=0.75>(x, g, b, m, v) }"""
    proto = parsed(text, v=[1.0, 2.0, 3.0])
    model = parse_onnx(proto.SerializeToString())
    feeds = feeds_of(model)
    held = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    g, b, m, v = (torch.tensor(held[k]).double() for k in "gbmv")
    x = torch.from_numpy(feeds["x"]).double()
    want = torch.nn.functional.batch_norm(x, m, v, g, b, training=True, momentum=0.25)
    got = evaluate(model.graph, feeds)
    assert relative(got["y"], want.numpy()) <= 1e-14
    assert relative(got["p"], m.numpy()) <= 1e-14
    spread = 0.75 * np.array([1.0, 2.0, 3.0]) + 0.25 * x.numpy().var(axis=(0, 2))
    assert relative(got["q"], spread) <= 1e-14


@pytest.mark.parametrize(
    ("opset", "attributes", "outputs", "trains"),
    [
        (20, "training_mode=1", "y", True),
        (20, "training_mode=0", "y", False),
        (9, "momentum=0.9", "y, p, q, r, s", True),
        (9, "momentum=0.9", "y", False),
        (6, "is_test=1", "y", False),
        (6, "is_test=0", "y", True),
    ],
)
def test_each_opset_says_training_in_its_way(
    opset: int, attributes: str, outputs: str, trains: bool
) -> None:
    model = parsed(
        (
            "(float[6,3] x) => (float[6,3] y) "
            "<float[3] g, float[3] b, float[3] m, float[3] v> "
            f"{{ {outputs} = BatchNormalization<{attributes}>(x, g, b, m, v) }}"
        ),
        opset=opset,
        m=[5.0, 5.0, 5.0],
        b=[0.0, 0.0, 0.0],
        v=[1.0, 1.0, 1.0],
    )
    ready = parse_onnx(model.SerializeToString())
    y = evaluate(ready.graph, feeds_of(ready))["y"]
    assert (abs(y.mean(axis=0)).max() < 1e-12) == trains


@pytest.mark.parametrize(
    ("body", "chance"),
    [
        ("r = RandomNormalLike(x) y = Add(x, r)", True),
        ("r = RandomUniform<shape=[2,3]>() y = Add(x, r)", True),
        ("y, m = Dropout(x, ratio, yes)", True),
        ("y, m = Dropout(x, ratio)", False),
        ("y = Sin(x)", False),
    ],
)
def test_what_is_drawn_is_drawn_again(body: str, chance: bool) -> None:
    text = f"(float[2,3] x) => (float[2,3] y) <float ratio, bool yes> {{ {body} }}"
    model = graph(text, ratio=0.5, yes=True)
    feeds = feeds_of(model)
    assert bool(random_nodes(model.graph)) == chance
    one, other = (evaluate(model.graph, feeds)["y"] for _ in range(2))
    assert np.array_equal(one, other)
    assert np.any(one != feeds["x"]) or not chance


def test_a_broadcast_of_before_opset_7() -> None:
    model = parse_onnx(
        parsed(
            (
                "(float[2,3,4] x) => (float[2,3,4] y) <float[3] b> "
                "{ y = Add<broadcast=1, axis=1>(x, b) }"
            ),
            opset=6,
            b=[1.0, 2.0, 3.0],
        ).SerializeToString()
    )
    x = np.zeros((2, 3, 4))
    assert np.array_equal(evaluate(model.graph, {"x": x})["y"][0, :, 0], [1, 2, 3])


def test_a_reshape_of_before_opset_5() -> None:
    text = "(float[2,6] x) => (float[2,a,b] y) { y = Reshape<shape=[0,3,-1]>(x) }"
    model = parse_onnx(parsed(text, opset=4).SerializeToString())
    assert evaluate(model.graph, {"x": np.ones((2, 6))})["y"].shape == (2, 3, 2)


def test_a_loop_without_an_end_is_refused() -> None:
    _, text, weights = TEXTS["loop"]
    model = graph(text, **{**weights, "m": 1 << 40})
    with pytest.raises(Exception, match="turns"):
        evaluate(model.graph, feeds_of(model))


def test_pytorchs_reading_of_grouped_transposition() -> None:
    x, w = torch.randn(2, 4, 5, 6).double(), torch.randn(4, 3, 3, 2).double()
    want = torch.nn.functional.conv_transpose2d(x, w, stride=(2, 3), padding=1, groups=2)
    text = (
        "(float[2,4,5,6] x) => (float[n,a,b,c] y) <float[4,3,3,2] w> "
        "{ y = ConvTranspose<group=2, strides=[2,3], pads=[1,1,1,1]>(x, w) }"
    )
    model = graph(text, w=w.numpy().astype(np.float32))
    narrow = torch.nn.functional.conv_transpose2d(
        x, w.float().double(), stride=(2, 3), padding=1, groups=2
    )
    got = evaluate(model.graph, {"x": x.numpy()})["y"]
    assert relative(got, narrow.numpy()) <= 1e-14
    assert relative_l2(got, want.numpy()) <= 1e-6
    onnx.checker.check_model(parsed(text))
