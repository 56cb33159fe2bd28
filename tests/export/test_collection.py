"""The collection of small graphs: each becomes what it must, and computes what it did."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.collection import GRAPHS, Graph
from tests.collection.measure import counts, difference, live_nodes, macs, outputs, run
from vntools.export.rewrite import Applied, rewrite_model

# What costs a kernel or a pass over a map; others count where a graph names them.
_COSTLY = (
    *("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization"),
    *("Add", "Sub", "Mul", "Div", "Sum", "Neg"),
)

each = pytest.mark.parametrize("name", GRAPHS)
each_evaluated = pytest.mark.parametrize(
    "name", [n for n, g in GRAPHS.items() if g.runs != "nowhere"]
)
each_run = pytest.mark.parametrize(
    "name", [n for n, g in GRAPHS.items() if g.runs == "everywhere"]
)


@cache
def original(name: str) -> bytes:
    return GRAPHS[name].model().SerializeToString(deterministic=True)


@cache
def rewritten(name: str) -> tuple[bytes, Applied]:
    return rewrite_model(original(name))


def loaded(data: bytes) -> onnx.ModelProto:
    return onnx.load_model_from_string(data)


def surplus(graph: Graph, found: Counter[str]) -> list[str]:
    """Operators of which more are left than there may be."""
    assert graph.nodes is not None
    allowed = {frozenset(key.split("|")): n for key, n in graph.nodes.items()}
    allowed |= {frozenset((op,)): 0 for op in set(_COSTLY).difference(*allowed)}
    sums = {ops: sum(found[op] for op in ops) for ops in allowed}
    return [f"{'|'.join(o)}: {sums[o]} > {n}" for o, n in allowed.items() if sums[o] > n]


def signature(node: onnx.NodeProto, model: onnx.ModelProto) -> tuple[object, ...]:
    """A node with its attributes and the initializers that it reads."""
    held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    read = [held[i].tobytes() if i in held else b"" for i in node.input]
    attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
    return node.domain, node.op_type, attributes, read


# The collection itself: what a graph says of itself is so.


@each
def test_the_graph_is_valid(name: str) -> None:
    graph, model = GRAPHS[name], loaded(original(name))
    onnx.checker.check_model(model, full_check=graph.runs != "nowhere" and not model.functions)
    assert (graph.nodes is not None) == (graph.kind == "collapse")


@each_run
def test_onnxruntime_and_float64_agree_on_it(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    limit = 200 * GRAPHS[name].tolerance if GRAPHS[name].tolerance < 1e-3 else 5e-2
    for feeds in GRAPHS[name].inputs():
        got, want = run(original(name), feeds), outputs(original(name), feeds)
        assert all(np.isfinite(v).all() for v in want.values())
        assert difference(got, want) < limit
    assert capfd.readouterr().err == ""


# What the passes make of it.


@each
def test_inputs_and_outputs_stay(name: str) -> None:
    before, after = loaded(original(name)), loaded(rewritten(name)[0])
    onnx.checker.check_model(
        after, full_check=GRAPHS[name].runs != "nowhere" and not after.functions
    )
    assert list(before.graph.input) == list(after.graph.input)
    assert list(before.graph.output) == list(after.graph.output)


@each
def test_what_remains(name: str) -> None:
    graph, (data, applied) = GRAPHS[name], rewritten(name)
    if graph.reason is not None:
        reasons = [s.reason for s in applied.skips]
        assert any(re.search(graph.reason, r, re.IGNORECASE) for r in reasons), reasons
    if graph.nodes is not None:
        assert surplus(graph, counts(loaded(data))) == []
    elif data != original(name):
        before, after = loaded(original(name)), loaded(data)
        bound = [n for n in before.graph.node if n.name.startswith("it")]
        assert bound, f"rewritten: {counts(before)} to {counts(after)}"
        left = [signature(n, after) for n in after.graph.node]
        assert all(signature(n, before) in left for n in bound)


@each
def test_it_costs_no_more(name: str) -> None:
    before, after = loaded(original(name)), loaded(rewritten(name)[0])
    for feeds in GRAPHS[name].inputs():
        old, new = macs(before, feeds), macs(after, feeds)
        if old is not None:
            assert new is not None
            assert new < old if GRAPHS[name].cheaper else new <= old
    assert len(live_nodes(after)) <= len(live_nodes(before))


@each_evaluated
def test_it_computes_the_same(name: str) -> None:
    if rewritten(name)[0] == original(name):
        return
    for feeds in GRAPHS[name].inputs():
        want, got = outputs(original(name), feeds), outputs(rewritten(name)[0], feeds)
        assert difference(got, want) < GRAPHS[name].tolerance


@each_run
def test_onnxruntime_loads_it_without_a_warning(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if rewritten(name)[0] == original(name):
        return
    for feeds in GRAPHS[name].inputs():
        run(rewritten(name)[0], feeds)
    assert capfd.readouterr().err == ""


@each
def test_twice_is_once(name: str) -> None:
    once = rewritten(name)[0]
    twice, again = rewrite_model(once)
    assert twice == once
    assert not again.rewrites


@each
def test_the_errors_in_the_records_are_tiny(name: str) -> None:
    assert all(0 <= r.error <= GRAPHS[name].tolerance for r in rewritten(name)[1].rewrites)


# The checks above can fail.


def _without_bias(name: str) -> bytes:
    """As a rule that forgets a border: the first bias is a little off."""
    model = loaded(original(name))
    tensor = next(t for t in model.graph.initializer if t.name == "p")
    array = numpy_helper.to_array(tensor) * np.float32(1.001)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model.SerializeToString()


def test_a_small_change_is_seen() -> None:
    name = "serial: biased 1x1, padded 3x3"
    (feeds, _) = GRAPHS[name].inputs()
    want, got = outputs(original(name), feeds), outputs(_without_bias(name), feeds)
    assert difference(got, want) > GRAPHS[name].tolerance


def test_a_change_of_shape_is_seen() -> None:
    name = "serial: biased 1x1, padded 3x3"
    small, large = (outputs(original(name), f) for f in GRAPHS[name].inputs())
    assert difference(small, large) == float("inf")


def test_an_untouched_graph_has_a_surplus() -> None:
    graphs = [g for g in GRAPHS.values() if g.nodes is not None]
    untouched = [g.name for g in graphs if not surplus(g, counts(g.model()))]
    assert len(untouched) < len(graphs) / 20, untouched


def test_costs_are_those_of_the_definition() -> None:
    graph = GRAPHS["serial: 3x3, 1x1"]
    feeds = graph.inputs()[0]  # (1, 2, 5, 4) to (1, 16, 3, 2) to (1, 2, 3, 2)
    assert macs(graph.model(), feeds) == 6 * (16 * 2 * 9 + 2 * 16)
