"""The zoo of re-parameterised networks: from training graphs to deploy forms or better."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxsim
import pytest
import torch

from tests.graphs import Array
from tests.zoo import CASES, Case, Exporter, export_bytes
from vntools.export.load import parse_onnx
from vntools.export.rewrite import Applied, rewrite_model
from vntools.verify.compare import FLOAT32_FACTOR, FLOAT32_FLOOR, relative_l2
from vntools.verify.float32 import run_float32
from vntools.verify.float64 import evaluate

SELF_TEST_LIMIT = 1e-9
"""Both forms in float64 differ by the order of sums."""
PROBE_LIMIT = 1e-12
"""A rewritten region before and after, on probes in float64."""

_SAME = {"Sub": "Add", "Sum": "Add", "Div": "Mul", "ConvTranspose": "Conv"}
_COUNTED = ("Conv", "Gemm", "MatMul", "BatchNormalization", "Add", "Mul")


@dataclass(frozen=True)
class Variant:
    """A case as one exporter writes it."""

    name: str
    how: Exporter = "dynamo"
    opset: int = 20

    def __str__(self) -> str:
        return f"{self.name}-{self.how}-{self.opset}"

    @property
    def case(self) -> Case:
        return CASES[self.name]


_THIRD = (
    "repvgg-stride2",
    "repvgg-grouped",
    "repvgg-1d",
    "repvgg-3d",
    "mobileone-net",
    "acnet-grouped-stride2",
    "dbb",
    "replk",
    "repghost-stride2",
    "ghostv3",
    "lcnet-net",
    "vanilla-net",
    "repmixer",
    "fastvit-attention",
    "repvit-net",
    "levit-net",
    "efficientvit",
    "tinyvit-net",
    "iformer",
    "efficientvim",
    "nextvit-net",
    "lora-conv",
)
_OTHERS: tuple[tuple[Exporter, int], ...] = (
    ("torchscript-unfolded", 11),
    ("torchscript", 13),
    ("torchscript-unfolded", 17),
)
_TOKENS = frozenset({"levit-net", "nextvit-net", "tinyvit-net"})
# dynamo takes a second for a case. These blocks are in a network of the zoo as well.
_IN_A_NETWORK = frozenset(
    {
        "repvgg-wider",
        "repvgg-stride2",
        "repvgg-stride2-even",
        "repvgg-grouped",
        "mobileone-pointwise",
        "mobileone-depthwise",
        "mobileone-stride2",
        "acnet",
        "acnet-grouped-stride2",
        "dbb-stride2",
        "dbb-grouped",
        "repghost",
        "repghost-stride2",
        "lcnet",
        "lcnet-stride2",
        "vanilla",
        "repmixer",
        "repcpe",
        "repvit",
        "distilled-head",
        "norm-linear-head",
        "levit-attention",
        "levit-mlp",
        "iformer",
        "nextvit-conv",
        "nextvit-attention",
        "nextvit-pooled",
        "lora-linear",
        "lora-tokens",
    }
)


def first(name: str) -> Variant:
    how: Exporter = "torchscript-unfolded" if name in _IN_A_NETWORK else "dynamo"
    return Variant(name, how)


VARIANTS = (
    *map(first, CASES),
    *(Variant(name, *other) for name in _THIRD for other in _OTHERS),
    *(
        Variant(name, "dynamo-optimized", 18 + 2 * (i % 2))
        for i, name in enumerate(_THIRD[::3])
    ),
    *(Variant(name, "dynamo", 23) for name in _THIRD[1::6]),
)

each_case = pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
each_floor = pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.floor])


@cache
def training(variant: Variant) -> bytes:
    return export_bytes(variant.case.train(), variant.case, variant.how, opset=variant.opset)


@cache
def rewritten(variant: Variant) -> tuple[bytes, Applied]:
    return rewrite_model(training(variant))


@cache
def _target(name: str, how: Exporter, opset: int) -> Counter[str]:
    case = CASES[name]
    return counted(export_bytes(case.deploy(), case, how, opset=opset))


def target(variant: Variant) -> Counter[str]:
    """Of the author's deploy form, every BatchNormalization folded that onnxsim can fold.

    TorchScript, the faster exporter, writes it, but where onnxsim makes more Gemm of dynamo's.
    """
    tokens = variant.name in _TOKENS and variant.how == "dynamo"
    if tokens or variant.how == "dynamo-optimized":
        return _target(variant.name, "dynamo-optimized", variant.opset)
    return _target(variant.name, "torchscript", min(variant.opset, 20))


def tidied(data: bytes, shape: tuple[int, ...] | None = None) -> onnx.ModelProto:
    sizes = {"x": list(shape)} if shape else None
    model, _ = onnxsim.simplify(
        onnx.load_from_string(data),
        overwrite_input_shapes=sizes,
        skipped_optimizers=["fuse_matmul_add_bias_into_gemm_batched"],  # not comparable
    )
    return model


def counted(data: bytes) -> Counter[str]:
    """Nodes behind onnxsim by type, Sub with Add, Div with Mul; none of shape arithmetic."""
    model = onnx.shape_inference.infer_shapes(tidied(data))
    graph = model.graph
    floats = {
        v.name
        for v in (*graph.value_info, *graph.output)
        if v.type.tensor_type.elem_type != onnx.TensorProto.INT64
    }
    types = [_SAME.get(n.op_type, n.op_type) for n in graph.node if n.output[0] in floats]
    return Counter(t for t in types if t in _COUNTED)


def macs(data: bytes, shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of Conv, Gemm and MatMul at ``shape``, counted from the shapes."""
    model = onnx.shape_inference.infer_shapes(tidied(data, shape), data_prop=True)
    graph = model.graph
    sizes = {t.name: tuple(t.dims) for t in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        sizes[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
    done = 0
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            left, right, out = (sizes[name] for name in (*node.input[:2], node.output[0]))
            turned = any(a.name == "transA" and a.i for a in node.attribute)
            inner = math.prod(right[1:]) if node.op_type == "Conv" else left[-1 - turned]
            done += math.prod(out) * inner
    assert done > 0
    return done


def feeds(case: Case) -> list[dict[str, Array]]:
    """Two sizes: of the batch, and of height and width where these may change."""
    n, c, *places = case.input_shape
    other = [s + 3 + i for i, s in enumerate(places)] if case.dynamic else places
    rng = np.random.default_rng(7)
    return [
        {"x": rng.standard_normal(shape).astype(np.float32)}
        for shape in ((n, c, *places), (3, c, *other))
    ]


def excess(got: Counter[str], wanted: Counter[str]) -> dict[str, str]:
    """What is there too often; an Add may stand where a BatchNormalization has gone."""
    folded = max(wanted["BatchNormalization"] - got["BatchNormalization"], 0)
    wanted = wanted + Counter(Add=folded)
    return {op: f"{n} > {wanted[op]}" for op, n in got.items() if n > wanted[op]}


@each_case
def test_the_two_forms_agree(case: Case) -> None:
    with torch.no_grad():
        for feed in feeds(case):
            x = torch.from_numpy(feed["x"]).double()
            want, got = case.train().double()(x), case.deploy()(x)
            assert float(want.abs().max()) > 1e-3
            assert float((got - want).norm() / want.norm()) <= SELF_TEST_LIMIT


@each_case
def test_the_training_graph_is_the_module(case: Case) -> None:
    graph = parse_onnx(training(first(case.name))).graph
    with torch.no_grad():
        for feed in feeds(case):
            want = case.train().double()(torch.from_numpy(feed["x"]).double()).numpy()
            assert relative_l2(evaluate(graph, feed)["y"], want) <= FLOAT32_FLOOR


@each_case
def test_onnxsim_alone_does_not_reach_it(case: Case) -> None:
    """A case where it did would prove nothing."""
    alone = counted(training(first(case.name)))
    assert excess(alone, target(first(case.name)))


@each_variant
def test_it_reaches_the_deploy_form(variant: Variant) -> None:
    data, applied = rewritten(variant)
    over = excess(counted(data), target(variant))
    assert not over, reasons(applied)


@each_floor
def test_it_passes_the_deploy_form(name: str) -> None:
    case = CASES[name]
    data, applied = rewritten(first(name))
    floor = Counter(target(first(name)))
    assert all(floor[op] > n for op, n in case.floor.items()), "the authors reach it too"
    floor.update({op: n - floor[op] for op, n in case.floor.items()})
    assert not excess(counted(data), floor), reasons(applied)


def reasons(applied: Applied) -> str:
    lines = [f"{s.rule} {s.node}: {s.reason}" for s in applied.skips]
    return "\n".join(lines) or "nothing was skipped"


@each_variant
def test_it_never_costs_more(variant: Variant) -> None:
    shape = feeds(variant.case)[1]["x"].shape
    assert macs(rewritten(variant)[0], shape) <= macs(training(variant), shape)


@each_variant
def test_inputs_and_outputs_stay(variant: Variant) -> None:
    before, after = (
        onnx.load_from_string(data).graph
        for data in (training(variant), rewritten(variant)[0])
    )
    assert face(after.input) == face(before.input)
    assert face(after.output) == face(before.output)


def face(values: Any) -> list[tuple[str, int, list[int | str]]]:
    return [
        (
            v.name,
            v.type.tensor_type.elem_type,
            [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim],
        )
        for v in values
    ]


@each_variant
def test_it_computes_the_same(variant: Variant) -> None:
    raw, (data, applied) = training(variant), rewritten(variant)
    given = feeds(variant.case)
    graph = parse_onnx(raw).graph
    want = [evaluate(graph, feed)["y"] for feed in given]
    for exact, before, after in zip(
        want, run_float32(raw, given), run_float32(data, given), strict=True
    ):
        allowed = max(FLOAT32_FACTOR * relative_l2(before["y"], exact), FLOAT32_FLOOR)
        assert after["y"].shape == exact.shape
        assert relative_l2(after["y"], exact) <= allowed
    assert all(r.error <= PROBE_LIMIT for r in applied.rewrites)


def test_the_count_can_fail() -> None:
    train, deploy = Variant("repvgg"), target(Variant("repvgg"))
    assert deploy == Counter({"Conv": 1})
    assert excess(counted(training(train)), deploy) == {
        "Conv": "2 > 1",
        "BatchNormalization": "3 > 0",
        "Add": "2 > 0",
    }


def test_the_cost_is_that_of_the_definition() -> None:
    """RepVGG's 3x3 and 1x1, 8 to 8 channels over 2 x 13 x 11 places."""
    assert macs(training(Variant("repvgg")), (2, 8, 13, 11)) == 2 * 13 * 11 * 64 * (9 + 1)
