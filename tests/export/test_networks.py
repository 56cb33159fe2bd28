"""All eleven architectures, narrow: from the traced graph to the one that is published."""

from __future__ import annotations

import copy
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from tests.export.test_contract import GOLDENS
from tests.graphs import text_of
from tests.networks import (
    deploy,
    exported,
    merged_state,
    narrow,
    pixels,
    traced,
    training,
)
from vntools.export.graph import stats
from vntools.export.load import parse_onnx
from vntools.export.naming import rename
from vntools.export.rewrite import apply_passes
from vntools.export.trace import trace
from vntools.models.arch import ARCHITECTURES
from vntools.models.vanillanet import DeployVanillaNet, VanillaNet, deploy_name
from vntools.verify.compare import relative_l2
from vntools.verify.float32 import run_float32
from vntools.verify.float64 import evaluate

NAMES = tuple(ARCHITECTURES)
each_network = pytest.mark.parametrize("name", NAMES)
# What an adaptive pooling whose windows differ is made of; where it divides, it is a MaxPool.
ADAPTIVE = {"Gather", "Max"}


def table(name: str) -> Counter[str]:
    return Counter(node.op_type for node in exported(name).graph)


@each_network
def test_the_op_table_follows_from_the_depth(name: str) -> None:
    arch, ops = narrow(name), table(name)
    adaptive = {op: n for op, n in ops.items() if op in ADAPTIVE}
    pools = sum(s > 1 for s in arch.strides)
    whole = sum(b % a == 0 for a, b in pooled_sizes(name))
    assert ops - Counter(adaptive) == Counter(
        {
            "Conv": 2 * (arch.depth - 1) + 1,
            "Relu": arch.depth - 1,
            "MaxPool": whole if any(arch.adaptive) else pools,
            "GlobalAveragePool": 1,
            "Flatten": 1,
        }
    )
    assert bool(adaptive) == any(arch.adaptive)
    assert not {"BatchNormalization", "LeakyRelu"} & set(ops)


def pooled_sizes(name: str) -> list[tuple[int, int]]:
    """(size behind, size before) of each adaptive pooling."""
    arch = narrow(name)
    sizes = arch.map_sizes()
    return [(a, sizes[i]) for i, a in enumerate(arch.adaptive) if a]


def test_the_op_tables_are_the_golden_ones() -> None:
    lines = [
        f"{name}: {sum(ops.values())} nodes: "
        + ", ".join(f"{op} {n}" for op, n in sorted(ops.items()))
        for name, ops in ((name, table(name)) for name in NAMES)
    ]
    assert lines == (GOLDENS / "op_tables.txt").read_text().splitlines()


@pytest.mark.parametrize(
    ("name", "nodes"), [("vanillanet_5", 18), ("vanillanet_6", 21), ("vanillanet_13", 42)]
)
def test_the_number_of_nodes(name: str, nodes: int) -> None:
    assert len(exported(name).graph) == nodes


@each_network
def test_parameters_and_macs_are_those_of_the_deploy_form(name: str) -> None:
    arch = narrow(name)
    raw, merged = stats(traced(name).graph), stats(exported(name).graph)
    assert merged.parameters == arch.deploy_parameters()
    assert merged.macs == arch.deploy_macs()
    assert merged.size_bytes == 4 * merged.parameters
    assert raw.macs == arch.training_macs()
    # The statistics of a BatchNormalization are constants of the graph too.
    norms = [n for n in traced(name).graph if n.op_type == "BatchNormalization"]
    channels = sum(int(n.inputs[1].shape[0]) for n in norms)  # type: ignore[union-attr, index]
    assert raw.parameters == arch.training_parameters() + 2 * channels


@each_network
def test_nothing_is_lost(name: str) -> None:
    """Against float64, and against PyTorch's own forward, at batch 1 and 3."""
    data = ir.serde.serialize_model(exported(name)).SerializeToString()
    raw = traced(name)
    for batch in (1, 3):
        feed = {"input": pixels(name, batch=batch)}
        got = run_float32(data, [feed])[0]["logits"]
        want = evaluate(raw.graph, feed)["logits"]
        assert got.shape == (batch, 10)
        assert relative_l2(got, want) <= 2e-6
        with torch.inference_mode():
            native = training(name)(torch.from_numpy(feed["input"])).numpy()
        assert relative_l2(got, native) <= 4e-6


def with_dead_channels(name: str) -> VanillaNet:
    """A copy whose norms have channels that never varied, or hardly, or are scaled away."""
    network = copy.deepcopy(training(name))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                module.get_buffer("running_var")[::5] = 0
                module.get_buffer("running_var")[1::7] = 1e-20
                module.weight[2::5] = 0
    return network


def in_double(model: ir.Model) -> ir.Model:
    """The same graph with every float32 value and weight in double."""
    proto = ir.serde.serialize_model(model)
    for tensor in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(
                onnx.numpy_helper.from_array(array.astype(np.float64), tensor.name)
            )
    for info in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        if info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            info.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    return parse_onnx(proto.SerializeToString())


@each_network
def test_in_double_it_is_the_deploy_form_to_the_last_digits(name: str) -> None:
    network = with_dead_channels(name)
    model = in_double(trace(network, narrow(name).image_size))
    apply_passes(model.graph)
    rename(model.graph, deploy_name)
    want = merged_state(network, epsilon=float(np.float32(1e-6)))  # as ONNX stores it
    held = {
        key: value.const_value.numpy()
        for key, value in model.graph.initializers.items()
        if value.const_value is not None and key in want
    }
    assert held.keys() == want.keys()
    for key, array in held.items():
        wanted = want[key].numpy()
        assert np.abs(array - wanted).max() <= 1e-12 * np.abs(wanted).max()
    deployed = DeployVanillaNet(narrow(name))
    deployed.load_state_dict(want, assign=True)
    feed = {"input": pixels(name, batch=2).astype(np.float64)}
    with torch.inference_mode():
        native = deployed.eval()(torch.from_numpy(feed["input"])).numpy()
    assert np.isfinite(native).all()
    got = evaluate(model.graph, feed)["logits"]
    assert relative_l2(got, native) <= 1e-12
    assert relative_l2(got * (1 + 1e-9), native) > 1e-12


@each_network
def test_both_forms_export_to_the_same_graph(name: str) -> None:
    """Structure, names and shapes are equal; weights to the last bits of float32."""
    one, other = exported(name), exported(name, "deploy")
    assert text_of(one.graph) == text_of(other.graph)
    for key, value in one.graph.initializers.items():
        a, b = (v.const_value for v in (value, other.graph.initializers[key]))
        assert a is not None
        assert b is not None
        scale = np.abs(b.numpy()).max()
        assert np.abs(a.numpy() - b.numpy()).max() <= 2.0**-23 * scale


@each_network
def test_names_are_those_of_the_deploy_form(name: str) -> None:
    graph = exported(name).graph
    held = {k: tuple(v.shape) for k, v in deploy(name).state_dict().items()}
    found = {
        k: tuple(v.const_value.shape.numpy())
        for k, v in graph.initializers.items()
        if v.const_value
    }
    found = {k: s for k, s in found.items() if k.endswith(("weight", "bias"))}
    assert found == held
    convs = [n.name for n in graph if n.op_type == "Conv"]
    assert convs == [k.removesuffix(".weight") for k in held if k.endswith("weight")]
    assert [v.name for v in (*graph.inputs, *graph.outputs)] == ["input", "logits"]
    names = [n.name for n in graph]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", ["vanillanet_6", "vanillanet_13_x1_5_ada_pool"])
def test_every_rewrite_is_recorded_and_exact(name: str) -> None:
    arch, raw = narrow(name), traced(name)
    unmerged = stats(raw.graph)
    applied = apply_passes(raw.graph)
    merges = [r for r in applied.rewrites if r.rule == "collapse-linear"]
    # Per stage and for the stem: conv, norm, LeakyRelu, conv, norm; and the activation's pair.
    assert sorted(len(r.nodes) for r in merges) == [2] * (arch.depth - 1) + [4] + [5] * (
        arch.depth - 1
    )
    assert merges[0].nodes == ("stem1.0", "stem1.1", "leakyrelu_0", "stem2.0", "stem2.1")
    assert merges[0].node == "stem2.0"
    gone = [n for r in merges for n in r.nodes]
    assert len(set(gone)) == len(gone)
    assert all("would cost" in s.reason for s in applied.skips)
    assert max(r.error for r in applied.rewrites) < 1e-13
    merged = stats(raw.graph)
    before = sum(r.parameters_before for r in merges), sum(r.macs_before or 0 for r in merges)
    after = sum(r.parameters_after for r in merges), sum(r.macs_after or 0 for r in merges)
    assert before[0] - after[0] == unmerged.parameters - merged.parameters
    assert unmerged.macs is not None
    assert merged.macs is not None
    assert before[1] - after[1] == unmerged.macs - merged.macs


def test_the_same_network_gives_the_same_bytes() -> None:
    def run() -> bytes:
        return ir.serde.serialize_model(exported("vanillanet_5")).SerializeToString(
            deterministic=True
        )

    assert run() == run()
    onnx.checker.check_model(run(), full_check=True)


def test_a_slope_below_one_leaves_the_two_convolutions() -> None:
    """Of a network still in deep training nothing is merged, but its norms fold."""
    model = traced("vanillanet_5")
    for node in model.graph:
        if node.op_type == "LeakyRelu":
            node.attributes["alpha"] = ir.AttrFloat32("alpha", 0.999)
    want = evaluate(model.graph, {"input": pixels("vanillanet_5", batch=1)})["logits"]
    applied = apply_passes(model.graph)
    ops = Counter(n.op_type for n in model.graph)
    assert ops["LeakyRelu"] == narrow("vanillanet_5").depth
    merges = [r for r in applied.rewrites if r.rule == "collapse-linear"]
    assert {len(r.nodes) for r in merges} == {2}, "a convolution and its norm"
    assert {s.reason for s in applied.skips} >= {"its slope is 0.999, not 1"}
    got = evaluate(model.graph, {"input": pixels("vanillanet_5", batch=1)})["logits"]
    assert relative_l2(got, want) < 2e-6
