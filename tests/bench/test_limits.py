"""What graphs move and multiply, held against counts made by hand; floors on round devices."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.graphs import graph
from tests.networks import exported
from tests.zoo import CASES, export_bytes
from vntools.base.errors import DataFault, UsageFault
from vntools.bench.devices import Device
from vntools.bench.limits import floor_of
from vntools.bench.work import Layer, work_of
from vntools.export.graph import stats
from vntools.export.load import parse_onnx
from vntools.export.simplify import tidy
from vntools.precision.floats import to_floats

# 1 GB/s and 1 GFLOPS: a byte takes 1e-6 ms, an operation as long.
ROUND = Device("round", 1, {"fp32": 1e-3, "fp16": 2e-3, "int8": 4e-3}, "made up")

CHAIN = """(float[n,3,8,8] x) => (float[n,4,4,4] y) <float[4,3,3,3] W, float[4] b> {
    c = Conv<pads=[1,1,1,1]>(x, W, b)
    r = Relu(c)
    y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)
}"""


def layers(model: ir.Model, batch: int | None = None) -> list[tuple[object, ...]]:
    """Operators, precision, bytes of weights, read and written, multiply-adds."""
    return [
        (" ".join(y.ops), y.precision, y.weight_bytes, y.read_bytes, y.written_bytes,
         y.operations // 2)
        for y in work_of(model, batch).layers
    ]  # fmt: skip


def test_a_convolution_with_its_activation_and_a_pool() -> None:
    work = work_of(graph(CHAIN), 2)
    assert layers(graph(CHAIN), 2) == [
        ("Conv Relu", "fp32", 4 * (108 + 4), 2 * 4 * 192, 2 * 4 * 256, 2 * 256 * 27),
        ("MaxPool", "fp32", 0, 2 * 4 * 256, 2 * 4 * 64, 0),
    ]
    assert (work.batch, work.weight_bytes) == (2, 448)
    assert (work.input_bytes, work.output_bytes) == (2 * 768, 2 * 256)
    assert work.moved_bytes == 448 + 1536 + 512
    assert work.operations == {"fp32": 2 * 2 * 256 * 27}


def test_half_types_halve_the_bytes_and_the_input_is_cast_by_its_reader() -> None:
    typed = to_floats(graph(CHAIN), "fp16").model
    assert layers(typed) == [
        ("Conv Relu", "fp16", 2 * 112, 4 * 192, 2 * 256, 256 * 27),
        ("MaxPool Cast", "fp16", 0, 2 * 256, 4 * 64, 0),
    ]


def test_a_residual_sum_belongs_to_the_later_layer() -> None:
    found = layers(graph(
        """(float[n,4,8,8] x) => (float[n,4,8,8] y) <float[4,4,1,1] W, float[4,4,1,1] V> {
            c = Conv(x, W)
            d = Conv(c, V)
            s = Add(d, c)
            y = Relu(s)
        }"""
    ))  # fmt: skip
    assert found == [
        ("Conv", "fp32", 64, 1024, 1024, 1024),
        ("Conv Add Relu", "fp32", 64, 1024, 1024, 1024),
    ]


def test_a_convolution_between_q_and_dq_is_int8_on_both_sides() -> None:
    found = layers(graph(
        """(float[n,4,8,8] x) => (float[n,4,8,8] y)
        <float s, int8 z, int8[4,4,3,3] W, int8[4,4,3,3] V> {
            q = QuantizeLinear(x, s, z)
            a = DequantizeLinear(q, s, z)
            w = DequantizeLinear(W, s, z)
            c = Conv<pads=[1,1,1,1]>(a, w)
            r = Relu(c)
            p = QuantizeLinear(r, s, z)
            t = DequantizeLinear(p, s, z)
            v = DequantizeLinear(V, s, z)
            y = Conv<pads=[1,1,1,1]>(t, v)
        }""",
        s=0.5,
        z=0,
    ))  # fmt: skip
    scales = 4 + 1
    assert found == [
        ("Conv Relu QuantizeLinear", "int8", 144 + scales, 4 * 256, 256, 64 * 4 * 36),
        ("Conv", "int8", 144, 256, 4 * 256, 64 * 4 * 36),
    ]


def test_weights_in_eight_bits_alone_multiply_in_float() -> None:
    (layer,) = work_of(graph(
        """(float[n,4,8,8] x) => (float[n,4,8,8] y) <float s, int8 z, int8[4,4,3,3] W> {
            w = DequantizeLinear(W, s, z)
            y = Conv<pads=[1,1,1,1]>(x, w)
        }""",
        s=0.5,
        z=0,
    )).layers  # fmt: skip
    assert (layer.precision, layer.weight_bytes) == ("fp32", 144)


def test_concatenating_and_splitting_move_nothing() -> None:
    found = layers(graph(
        """(float[n,4,8,8] x) => (float[n,4,8,8] y)
        <float[2,4,1,1] W, float[4,4,1,1] V, float[4,3,1,1] U> {
            c = Conv(x, W)
            d = Conv(x, V)
            e = Concat<axis=1>(c, d)
            f, g = Split<axis=1, num_outputs=2>(e)
            h = Relu(g)
            y = Conv(h, U)
        }"""
    ))  # fmt: skip
    assert found == [
        ("Conv", "fp32", 32, 1024, 512, 64 * 2 * 4),
        ("Conv Relu", "fp32", 64, 1024 + 512, 768, 64 * 4 * 4),
        ("Conv", "fp32", 48, 768, 1024, 64 * 4 * 3),
    ]


def test_products_of_matrices_and_shared_weights() -> None:
    model = graph(
        """(float[n,6,8] x) => (float[n,6,6] y) <float[8,8] W> {
            q = MatMul(x, W)
            k = MatMul(q, W)
            t = Transpose<perm=[0,2,1]>(k)
            y = MatMul(q, t)
        }"""
    )
    work = work_of(model, 3)
    assert [y.operations // 2 for y in work.layers] == [3 * 384, 3 * 384, 0, 3 * 36 * 8]
    assert [y.weight_bytes for y in work.layers] == [256, 256, 0, 0]
    assert work.weight_bytes == 256, "once, whoever reads it"


def test_gemm_and_transposed_convolution() -> None:
    gemm = graph(
        "(float[n,8] x) => (float[n,5] y) <float[5,8] W> { y = Gemm<transB=1>(x, W) }"
    )
    assert work_of(gemm, 4).operations == {"fp32": 2 * 4 * 40}
    up = graph(
        """(float[n,4,8,8] x) => (float[n,3,16,16] y) <float[4,3,2,2] W> {
            y = ConvTranspose<strides=[2,2]>(x, W)
        }"""
    )
    assert work_of(up).operations == {"fp32": 2 * 4 * 64 * 3 * 4}


def test_shape_arithmetic_costs_nothing() -> None:
    found = layers(graph(
        """(float[n,4,2,2] x) => (float[n,m] y)
        <int64[1] one, int64[1] zero, float[4,4,1,1] W> {
            c = Conv(x, W)
            s = Shape(c)
            b = Slice(s, zero, one)
            rest = Constant<value_ints=[-1]>()
            t = Concat<axis=0>(b, rest)
            y = Reshape(c, t)
        }""",
        one=[1],
        zero=[0],
    ), 3)  # fmt: skip
    assert found == [("Conv Reshape", "fp32", 64, 192, 192, 192)]


def test_what_is_elementwise_all_through_is_one_layer() -> None:
    text = "(float[n,8] x) => (float[n,8] y) { a = Relu(x)  y = Sigmoid(a) }"
    assert layers(graph(text), 2) == [("Sigmoid", "fp32", 0, 64, 64, 0)]


@pytest.mark.parametrize("name", ["vanillanet_5", "vanillanet_6"])
def test_a_network_counts_as_export_counts_it(name: str) -> None:
    model = exported(name)
    counted, work = stats(model.graph), work_of(model, 3)
    assert counted.macs is not None
    assert work.operations == {"fp32": 2 * 3 * counted.macs}
    assert work.weight_bytes == counted.size_bytes == sum(y.weight_bytes for y in work.layers)
    assert sum("Conv" in y.ops for y in work.layers) == counted.ops["Conv"]
    assert all("Relu" not in y.ops or len(y.ops) > 1 for y in work.layers)


@pytest.mark.parametrize("name", ["mobileone-net", "nextvit-net", "levit-net", "repghost-net"])
def test_operations_are_those_that_pytorch_counts(name: str) -> None:
    case = CASES[name]
    network, batch = case.train(), 2 if case.dynamic else 3
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        network(torch.zeros(batch, *case.input_shape[1:]))
    data = export_bytes(network, case, "torchscript", fixed=case.dynamic)
    work = work_of(tidy(parse_onnx(data)), batch)
    assert sum(work.operations.values()) == counted.get_total_flops() > 0
    assert sum(y.moved_bytes for y in work.layers) >= work.moved_bytes


def test_the_floor_of_each_term() -> None:
    floor = floor_of(graph(CHAIN), 2, ROUND)
    assert floor.memory_ms == pytest.approx(floor.bytes * 1e-6)
    assert floor.compute_ms == pytest.approx(floor.operations * 1e-6)
    assert (floor.binds, floor.ms) == ("compute", floor.compute_ms)
    assert [f.binds for f in floor.per_layer] == ["compute", "memory"]
    assert floor.layered_ms == pytest.approx((27648 + 2048 + 512) * 1e-6)
    assert floor.layered_ms >= floor.ms
    slow = Device("slow", 1e-3, {"fp32": 1e3}, "made up")
    assert floor_of(graph(CHAIN), 2, slow).binds == "memory"


def test_each_layer_is_held_against_the_peak_of_its_precision() -> None:
    typed = to_floats(graph(CHAIN), "fp16").model
    assert floor_of(typed, 2, ROUND).compute_ms == pytest.approx(27648 * 0.5e-6)
    with pytest.raises(UsageFault, match="no peak of fp16") as e:
        floor_of(typed, 2, Device("none", 1, {"int8": 1}, "made up"))
    assert e.value.code == "limit.precision"


def test_the_record_holds_every_layer() -> None:
    record = floor_of(graph(CHAIN), 2, ROUND).to_record()
    assert [y["ops"] for y in record["layers"]] == [["Conv", "Relu"], ["MaxPool"]]
    assert record["layered_bytes"] == sum(
        y["weight_bytes"] + y["read_bytes"] + y["written_bytes"] for y in record["layers"]
    )


def test_the_model_stays_as_it_is() -> None:
    model = graph(CHAIN)
    before = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    work_of(model, 5)
    assert ir.serde.serialize_model(model).SerializeToString(deterministic=True) == before


FIXED = CHAIN.replace("[n,", "[2,")


def test_a_fixed_batch_is_the_graphs_own() -> None:
    assert work_of(graph(FIXED)).batch == work_of(graph(FIXED), 2).batch == 2
    with pytest.raises(UsageFault, match="fixed at batch 2, not 8"):
        work_of(graph(FIXED), 8)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("(float[n,3,h,8] x) => (float[n,3,h,8] y) { y = Relu(x) }", "limit.shape"),
        ("(float[n,3] x) => (float[n,3] y) { y = my.Own(x) }", "limit.operator"),
        (
            "(float[n,3] x) => (int64[2,m] y) { z = NonZero(x)  y = Neg(z) }",
            "limit.shape",
        ),
    ],
)
def test_what_cannot_be_counted_is_refused(text: str, code: str) -> None:
    with pytest.raises(DataFault) as caught:
        work_of(graph(text, foreign="my" if "my." in text else ""), 1)
    assert caught.value.code == code


def test_moved_bytes_are_the_sum() -> None:
    assert Layer("a", ("Conv",), "fp32", 1, 2, 4, 0).moved_bytes == 7
