"""Random graphs: whatever they are, the passes change their cost and nothing else."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from tests.collection.base import Feeds
from tests.collection.measure import live_nodes, macs
from tests.collection.random import Drawn, draw
from vntools.export.load import parse_onnx
from vntools.export.rewrite import rewrite_model
from vntools.verify.float64 import evaluate

_EXACT = 1e-9
_BATCHES, _SEEDS = 8, 30

each_batch = pytest.mark.parametrize("batch", range(_BATCHES))


def fits(drawn: Drawn) -> bool:
    """Whether a graph is valid, and finite at both sizes."""
    data = drawn.model.SerializeToString()
    try:
        onnx.checker.check_model(drawn.model, full_check=True)
        found = [evaluate(parse_onnx(data).graph, f) for f in drawn.feeds]
    except Exception:  # noqa: BLE001 - broadcasting that is none, a library's limit
        return False
    return all(np.isfinite(v).all() for values in found for v in values.values())


def apart(before: bytes, after: bytes, feeds: Feeds) -> float:
    """The largest difference of any output, relative to it where it is above 1."""
    want, got = (evaluate(parse_onnx(data).graph, feeds) for data in (before, after))
    worst = 0.0
    assert list(got) == list(want)
    for name, array in want.items():
        if got[name].shape != array.shape:
            return float("inf")
        scale = max(1.0, float(np.abs(array).max(initial=0)))
        worst = max(worst, float(np.abs(got[name] - array).max(initial=0)) / scale)
    return worst


def require_same(drawn: Drawn) -> None:
    before = drawn.model.SerializeToString(deterministic=True)
    after, _ = rewrite_model(before)
    model = onnx.load_model_from_string(after)
    onnx.checker.check_model(model, full_check=True)
    assert list(model.graph.input) == list(drawn.model.graph.input)
    assert list(model.graph.output) == list(drawn.model.graph.output)
    names = [n.name for n in model.graph.node if n.name]
    assert len(set(names)) == len(names)
    fell = False
    for feeds in drawn.feeds:
        assert apart(before, after, feeds) < _EXACT
        old, new = macs(drawn.model, feeds), macs(model, feeds)
        if old is not None:
            assert new is not None
            assert new <= old
            fell |= new < old
    assert fell or len(live_nodes(model)) <= len(live_nodes(drawn.model))
    twice, again = rewrite_model(after)
    assert twice == after
    assert not again.rewrites


def load(data: bytes) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


@each_batch
def test_only_the_cost_changes(batch: int) -> None:
    seeds = range(batch * _SEEDS, (batch + 1) * _SEEDS)
    drawn = {seed: draw(seed, "double") for seed in seeds}
    fitting = [seed for seed in seeds if fits(drawn[seed])]
    assert len(fitting) > _SEEDS * 0.8
    for seed in fitting:
        try:
            require_same(drawn[seed])
        except Exception as e:
            raise AssertionError(f"seed {seed}") from e


def told_otherwise(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """The same graph: nodes in another order that holds, initializers too, other names."""
    chance = random.Random(seed)
    other = onnx.ModelProto()
    other.CopyFrom(model)
    graph = other.graph
    kept = {v.name for v in (*graph.input, *graph.output)}
    names = {n for node in graph.node for n in (*node.input, *node.output)} - kept - {""}
    called = {name: f"t{i}" for i, name in enumerate(chance.sample(sorted(names), len(names)))}
    waiting, nodes = list(graph.node), list[onnx.NodeProto]()
    while waiting:
        missing = {o for node in waiting for o in node.output}
        ready = [n for n in waiting if not missing & set(n.input)]
        nodes.append(chance.choice(ready))
        waiting.remove(nodes[-1])
    tensors = chance.sample(list(graph.initializer), len(graph.initializer))
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    for i, node in enumerate(nodes):
        graph.node.append(node)
        graph.node[i].name = ""
        graph.node[i].input[:] = [called.get(v, v) for v in node.input]
        graph.node[i].output[:] = [called.get(v, v) for v in node.output]
    graph.initializer.extend(tensors)
    for tensor in graph.initializer:
        tensor.name = called.get(tensor.name, tensor.name)
    return other


@each_batch
def test_order_and_names_do_not_matter(batch: int) -> None:
    for seed in range(batch * _SEEDS, (batch + 1) * _SEEDS, 3):
        drawn = draw(seed, "double")
        if not fits(drawn):
            continue
        other = told_otherwise(drawn.model, seed)
        one, two = (rewrite_model(m.SerializeToString())[0] for m in (drawn.model, other))
        models = [onnx.load_model_from_string(data) for data in (one, two)]
        ops = [Counter(n.op_type for n in live_nodes(m)) for m in models]
        assert ops[0] == ops[1], f"seed {seed}"
        for feeds in drawn.feeds:
            assert apart(one, two, feeds) < _EXACT
            assert macs(models[0], feeds) == macs(models[1], feeds)


@each_batch
def test_onnxruntime_loads_what_it_loaded(batch: int) -> None:
    for seed in range(batch * _SEEDS, (batch + 1) * _SEEDS, 3):
        if not fits(draw(seed, "double")):
            continue
        data = draw(seed, "float").model.SerializeToString()
        try:
            load(data)
        except Exception:  # noqa: BLE001 - it has not every operator in every form
            continue
        load(rewrite_model(data)[0])


def test_a_seed_is_one_graph_in_two_types() -> None:
    double, again, single = draw(7, "double"), draw(7, "double"), draw(7, "float")
    assert double.model == again.model
    ops = [[n.op_type for n in d.model.graph.node] for d in (double, single)]
    assert ops[0] == ops[1]


def test_much_is_rewritten() -> None:
    found = [draw(seed, "double").model.SerializeToString() for seed in range(40)]
    assert sum(rewrite_model(data)[0] != data for data in found) > 15


def test_a_small_change_would_be_seen() -> None:
    seed = next(s for s in range(40) if fits(draw(s, "double")) and draw(s, "double").feeds)
    drawn = draw(seed, "double")
    other = onnx.ModelProto()
    other.CopyFrom(drawn.model)
    for tensor in other.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float64:
            tensor.CopyFrom(numpy_helper.from_array(array * 1.0001, tensor.name))
    before = drawn.model.SerializeToString()
    assert apart(before, other.SerializeToString(), drawn.feeds[0]) > _EXACT
    assert apart(before, before, drawn.feeds[0]) == 0


def test_what_is_called_unknown_keeps_its_name() -> None:
    """``unk__4`` is how inference calls what it does not know; an output may be called so."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], group=3),
        helper.make_node("Add", ["x", "a"], ["y"]),
    ]
    typed = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [typed("x", 11, ["n", 3, "h"])],
        [typed("y", 11, ["n", 3, "unk__4"])],
        [numpy_helper.from_array(np.ones((3, 1, 1)), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    require_same(replace(draw(0, "double"), model=model, feeds=({"x": np.ones((2, 3, 4))},)))


def test_a_wide_sum_is_small_work() -> None:
    rng = np.random.default_rng(0)
    held = [
        numpy_helper.from_array(rng.standard_normal((4, 4, 1, 1)).astype("f"), f"W{i}")
        for i in range(300)
    ]
    nodes = [helper.make_node("Conv", ["x", f"W{i}"], [f"a{i}"]) for i in range(300)]
    nodes.append(helper.make_node("Sum", [f"a{i}" for i in range(300)], ["y"]))
    typed = helper.make_tensor_value_info
    dims = [1, 4, 8, 8]
    graph = helper.make_graph(nodes, "g", [typed("x", 1, dims)], [typed("y", 1, dims)], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    begin = time.process_time()
    after, _ = rewrite_model(model.SerializeToString())
    assert time.process_time() - begin < 20, "several times what it is"
    left = onnx.load_model_from_string(after).graph.node
    assert [n.op_type for n in left] == ["Conv"]
