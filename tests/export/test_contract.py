"""What every pass owes, over whatever passes are found, and how they are found and run."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

import vntools.export.passes as package
from tests.graphs import feeds_of, graph, onnx_bytes, relative, text_of
from vntools.base.errors import DataFault, InternalFault
from vntools.export.load import parse_onnx
from vntools.export.rewrite import (
    GraphPass,
    Record,
    Rewrite,
    apply_passes,
    discover,
    rewrite_model,
)
from vntools.verify.float64 import evaluate

GOLDENS = Path(__file__).parent.parent / "goldens"


@dataclass(frozen=True)
class Golden:
    """One graph before and after a pass."""

    rule: str
    title: str
    before: str
    after: str
    kwargs: dict[str, Any] = field(default_factory=dict[str, Any])

    def data(self) -> bytes:
        return onnx_bytes(self.before, **self.kwargs)


def read(path: Path) -> list[Golden]:
    """The cases of a golden file; ``opset:`` and ``weights: NAME = JSON`` are optional."""
    found: list[Golden] = []
    for block in path.read_text().split("--- ")[1:]:
        title, _, rest = block.partition("\n")
        head, _, rest = rest.partition("before:\n")
        text, _, after = rest.partition("after:\n")
        text, _, given = text.partition("weights: ")
        kwargs: dict[str, Any] = {}
        if given:
            name, _, value = given.partition(" = ")
            kwargs[name] = json.loads(value)
        if head:
            kwargs["opset"] = int(head.removeprefix("opset: "))
        found.append(Golden(path.stem, title, text, after, kwargs))
    return found


PASSES = discover()
FILES = [GOLDENS / f"{p.name}.txt" for p in PASSES]
SAMPLES = [golden for path in FILES if path.exists() for golden in read(path)]
BLOCK = """(float[n,8,9,9] x) => (float[n,5] y)
<float[8,8,1,1] W1, float[8] b1, float[8] g1, float[8] s1, float[8] m1, float[8] v1,
 float[12,8,1,1] W2, float[12] b2, float[12] g2, float[12] s2, float[12] m2, float[12] v2,
 float[12,1,3,3] D, float[12] g3, float[12] s3, float[12] m3, float[12] v3,
 float[5,12,1,1] H, int64[2] axes, int64[2] shape>
{
  [conv1] a = Conv(x, W1, b1)
  [norm1] b = BatchNormalization<epsilon = 1.0e-6>(a, g1, s1, m1, v1)
  [fade] c = LeakyRelu<alpha = 1.0>(b)
  [conv2] d = Conv(c, W2, b2)
  [norm2] e = BatchNormalization<epsilon = 1.0e-6>(d, g2, s2, m2, v2)
  [pool] f = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(e)
  [relu] g = Relu(f)
  [act] h = Conv<pads = [1, 1, 1, 1], group = 12>(g, D)
  [norm3] i = BatchNormalization<epsilon = 1.0e-6>(h, g3, s3, m3, v3)
  [mean] j = ReduceMean<keepdims = 1>(i, axes)
  [head] k = Conv(j, H)
  [view] y = Reshape(k, shape)
}"""
SAMPLES.append(
    Golden("all", "a block of a VanillaNet", BLOCK, "", {"axes": [2, 3], "shape": [0, -1]})
)


def by_title(golden: Golden) -> str:
    return f"{golden.rule}: {golden.title}"


each_pass = pytest.mark.parametrize("p", PASSES, ids=lambda p: p.name)
each_sample = pytest.mark.parametrize("sample", SAMPLES, ids=by_title)


def border(data: bytes) -> list[bytes]:
    """Inputs, outputs, opsets, versions and metadata, as they are stored."""
    model = onnx.load_model_from_string(data)
    parts = (
        *model.graph.input,
        *model.graph.output,
        *model.opset_import,
        *model.metadata_props,
    )
    return [part.SerializeToString(deterministic=True) for part in parts] + [
        f"{model.ir_version} {model.producer_name} {model.graph.name}".encode()
    ]


def outputs(data: bytes) -> dict[str, np.ndarray]:
    model = parse_onnx(data)
    return evaluate(model.graph, feeds_of(model))


def test_the_order_is_the_golden_one() -> None:
    assert [p.name for p in PASSES] == (GOLDENS / "pass_order.txt").read_text().split()


@each_pass
def test_a_pass_has_golden_texts(p: GraphPass) -> None:
    assert any(sample.rule == p.name for sample in SAMPLES)


@each_pass
def test_a_pass_is_a_frozen_dataclass_that_states_its_rule(p: GraphPass) -> None:
    assert dataclasses.is_dataclass(p)
    with pytest.raises(dataclasses.FrozenInstanceError):
        p.anything = 1  # type: ignore[attr-defined]
    text = type(p).__doc__ or ""
    assert all(word in text for word in ("Given:", "Result:", "Needs", "Source:"))


@each_sample
def test_golden(sample: Golden) -> None:
    """The text of the graph before is turned into the text of the graph after."""
    if sample.rule == "all":
        return
    model = parse_onnx(sample.data())
    applied = apply_passes(model.graph, [p for p in PASSES if p.name == sample.rule])
    assert text_of(model.graph) == sample.after
    assert applied.rewrites
    assert all(r.rule == sample.rule for r in applied.rewrites)


@each_pass
@each_sample
def test_twice_is_once(p: GraphPass, sample: Golden) -> None:
    once, _ = rewrite_model(sample.data(), [p])
    twice, again = rewrite_model(once, [p])
    assert twice is once
    assert not again.rewrites


@each_sample
def test_all_passes_twice_are_once(sample: Golden) -> None:
    once, applied = rewrite_model(sample.data())
    assert applied.rewrites
    twice, again = rewrite_model(once)
    assert twice is once
    assert not again.rewrites


@each_pass
def test_without_a_match_the_very_bytes_come_back(p: GraphPass) -> None:
    data = onnx_bytes(
        "(float[n,3,8,8] x) => (float[n,3,8,8] y, float[n,4,8,8] z) <float[4,3,1,1] W>"
        "{ a = Sigmoid(x) y = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(a) z = Conv(a, W) }"
    )
    same, applied = rewrite_model(data, [p])
    assert same is data
    assert not applied.rewrites
    # Nor does the graph change on the way.
    model = parse_onnx(data)
    before = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    apply_passes(model.graph, [p])
    assert ir.serde.serialize_model(model).SerializeToString(deterministic=True) == before


@each_pass
@each_sample
def test_the_border_stays_and_the_result_is_the_same(p: GraphPass, sample: Golden) -> None:
    data = sample.data()
    after, _ = rewrite_model(data, [p])
    assert border(after) == border(data)
    onnx.checker.check_model(after, full_check=True)
    want, got = outputs(data), outputs(after)
    assert want.keys() == got.keys()
    assert all(relative(got[k], want[k]) < 1e-6 for k in want)


@each_pass
@each_sample
def test_nothing_grows_and_nothing_shared_changes(p: GraphPass, sample: Golden) -> None:
    before = onnx.load_model_from_string(sample.data()).graph
    after = onnx.load_model_from_string(rewrite_model(sample.data(), [p])[0]).graph
    assert len(after.node) <= len(before.node)
    old = {t.name: onnx.numpy_helper.to_array(t) for t in before.initializer}
    for tensor in after.initializer:
        if tensor.name in old:
            assert np.array_equal(onnx.numpy_helper.to_array(tensor), old[tensor.name])
    read_by = [name for n in after.node for name in n.input]
    assert {t.name for t in after.initializer} <= set(read_by), "a dead initializer is left"
    written = [name for n in after.node for name in n.output]
    names = written + [t.name for t in after.initializer] + [i.name for i in after.input]
    assert len(names) == len(set(names))


def run_in_onnxruntime(data: bytes) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 2  # warnings and worse
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    values = session.run(names, feeds_of(parse_onnx(data)))
    return {k: np.asarray(v) for k, v in zip(names, values, strict=True)}


@each_sample
def test_onnxruntime_loads_it_without_a_warning(
    sample: Golden, capfd: pytest.CaptureFixture[str]
) -> None:
    after, applied = rewrite_model(sample.data())
    assert applied.rewrites
    got, want = run_in_onnxruntime(after), run_in_onnxruntime(sample.data())
    assert all(relative(got[k], want[k]) < 2e-5 for k in want)
    assert capfd.readouterr().err == ""


def test_a_stale_shape_would_be_a_warning(capfd: pytest.CaptureFixture[str]) -> None:
    model = graph("(float[n,3,8,8] x) => (float[n,3,8,8] y) { a = Relu(x) y = Sigmoid(a) }")
    model.graph[0].outputs[0].shape = ir.Shape([None, 3, 4, 4])
    run_in_onnxruntime(ir.serde.serialize_model(model).SerializeToString())
    assert "shape" in capfd.readouterr().err


def test_the_order_of_the_passes_does_not_change_the_meaning() -> None:
    data = SAMPLES[-1].data()
    want = outputs(data)["y"]
    nodes = set()
    for order in itertools.islice(itertools.permutations(PASSES), 0, None, 48):
        after, _ = rewrite_model(data, order)
        assert relative(outputs(after)["y"], want) < 1e-6
        nodes.add(len(onnx.load_model_from_string(after).graph.node))
    assert min(nodes) == 7


def test_names_and_the_order_of_storage_do_not_matter() -> None:
    """Other names, initializers in another order: the same graph and the same numbers."""
    proto = onnx.load_model_from_string(SAMPLES[-1].data())
    plain, _ = rewrite_model(proto.SerializeToString())
    renamed = {t.name: f"tensor{i}" for i, t in enumerate(reversed(proto.graph.initializer))}
    renamed |= {o: f"value{o}" for n in proto.graph.node for o in n.output if o != "y"}
    for tensor in proto.graph.initializer:
        tensor.name = renamed[tensor.name]
    for node in proto.graph.node:
        node.name = f"node {node.name}"
        node.input[:] = [renamed.get(v, v) for v in node.input]
        node.output[:] = [renamed.get(v, v) for v in node.output]
    shuffled = sorted(proto.graph.initializer, key=lambda t: t.name[::-1])
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(shuffled)
    other, _ = rewrite_model(proto.SerializeToString())
    first, second = parse_onnx(plain).graph, parse_onnx(other).graph
    assert [n.op_type for n in first] == [n.op_type for n in second]
    for a, b in zip(first, second, strict=True):
        for v, w in zip(a.inputs, b.inputs, strict=True):
            if v is not None and v.const_value is not None:
                assert w is not None
                assert w.const_value is not None
                assert np.array_equal(v.const_value.numpy(), w.const_value.numpy())


@pytest.mark.parametrize("k", [-20, -3, 1, 17])
def test_scaling_by_powers_of_two_leaves_every_bit(k: int) -> None:
    """W, b, mean times 2^k and var, epsilon times 4^k is the same function, bit for bit."""
    text = (
        "(float[n,3,8,8] x) => (float[n,4,8,8] y) "
        "<float[4,3,1,1] W, float[4] b, float[4] g, float[4] s, float[4] m, float[4] v>"
        "{ c = Conv(x, W, b) y = BatchNormalization<epsilon=EPS>(c, g, s, m, v) }"
    )
    plain = graph(text.replace("EPS", f"{2.0**-20:.20f}"))
    held = {
        n: v.const_value.numpy() for n, v in plain.graph.initializers.items() if v.const_value
    }
    scaled = {n: held[n] * np.float32(2.0**k) for n in "Wbm"} | {"v": held["v"] * 4.0**k}
    other = graph(text.replace("EPS", f"{2.0**-20 * 4.0**k:.40f}"), **scaled)
    folded = []
    for model in (plain, other):
        assert len(apply_passes(model.graph).rewrites) == 1
        tensors = model.graph.initializers.items()
        folded.append(
            {n: v.const_value.numpy().tobytes() for n, v in tensors if v.const_value}
        )
    assert folded[0] == folded[1]


def test_the_records_say_what_the_regions_cost() -> None:
    model = parse_onnx(SAMPLES[-1].data())
    told: list[str] = []
    applied = apply_passes(model.graph, advance=told.append)
    assert len(told) == len(applied.rewrites) + len(applied.skips)
    merges = [r for r in applied.rewrites if r.rule == "collapse-linear"]
    assert [r.nodes for r in merges] == [
        ("conv1", "norm1", "fade", "conv2", "norm2"),
        ("act", "norm3"),
    ]
    merge = merges[0]
    assert merge.node == "conv2"
    # A BatchNormalization has four numbers a channel.
    assert (merge.parameters_before, merge.parameters_after) == (72 + 32 + 108 + 48, 108)
    assert (merge.macs_before, merge.macs_after) == (81 * (64 + 96), 81 * 96)
    assert all(0 <= r.error < 1e-14 for r in applied.rewrites)
    assert merge.to_record()["nodes"] == list(merge.nodes)


def test_the_error_in_a_record_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    from vntools.export import affine, maps

    def off(outer: affine.AffineConv, inner: affine.AffineConv) -> affine.AffineConv:
        one = affine.compose(outer, inner)
        return dataclasses.replace(one, weight=one.weight * by)

    monkeypatch.setattr(maps, "compose", off)
    by = 1 + 1e-11
    applied = apply_passes(parse_onnx(SAMPLES[-1].data()).graph)
    assert 1e-12 < max(r.error for r in applied.rewrites) < 1e-9
    by = 1.001
    with pytest.raises(InternalFault, match="collapse-linear at norm2: before and after") as e:
        apply_passes(parse_onnx(SAMPLES[-1].data()).graph)
    assert e.value.code == "pass.inexact"


class Failing(GraphPass):
    """Fails with what it was given."""

    name = "failing"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def rewrite(self, graph: ir.Graph) -> Iterator[Record]:
        yield Rewrite(self.name, (), "")
        raise self.error


def test_a_failing_pass_is_named_with_those_before_it() -> None:
    model = parse_onnx(SAMPLES[0].data())
    with pytest.raises(
        InternalFault, match="pass failing failed after flatten: KeyError"
    ) as e:
        apply_passes(model.graph, [PASSES[0], Failing(KeyError("x\ny"))])
    assert e.value.code == "pass.failed"
    assert "\n" not in str(e.value)


def test_an_error_for_the_user_passes_through() -> None:
    error = DataFault("some.code", "text")
    with pytest.raises(DataFault) as e:
        apply_passes(parse_onnx(SAMPLES[0].data()).graph, [Failing(error)])
    assert e.value is error


def test_a_merged_weight_that_overflows_stays_as_it_was() -> None:
    large = np.full((4, 4, 1, 1), 1e30)
    model = graph(
        "(float[n,4,8,8] x) => (float[n,4,8,8] y) <float[4,4,1,1] U, float[4,4,1,1] V>"
        "{ a = Conv(x, U) [last] y = Conv(a, V) }",
        U=large,
        V=large,
    )
    before = text_of(model.graph)
    applied = apply_passes(model.graph)
    assert text_of(model.graph) == before
    assert not applied.rewrites
    (skip,) = applied.skips
    assert (skip.node, skip.reason) == ("last", "the merged weights of last overflow FLOAT")


def test_weights_too_many_to_look_at_that_are_not_finite_stay() -> None:
    wide = np.ones((300, 300, 1, 1), np.float32)
    wide[7, 7] = np.inf
    model = graph(
        "(float[n,300,2,2] x) => (float[n,300,2,2] y) <float[300,300,1,1] U, float[300] k>"
        "{ a = Conv(x, U) axes = Constant<value=int64[2] {1,2}>() c = Unsqueeze(k, axes) "
        "[last] y = Mul(a, c) }",
        U=wide,
    )
    before = text_of(model.graph)
    applied = apply_passes(model.graph)
    assert text_of(model.graph) == before
    assert [s.reason for s in applied.skips] == ["the merged weights of last are not finite"]


def test_weights_in_float64_stay_in_float64() -> None:
    text = SAMPLES[-1].before.replace("float[", "double[")
    model = graph(text, **SAMPLES[-1].kwargs)
    want = evaluate(model.graph, feeds_of(model))["y"]
    apply_passes(model.graph)
    assert relative(evaluate(model.graph, feeds_of(model))["y"], want) < 1e-14


PASS_FILE = """
from dataclasses import dataclass
from typing import ClassVar
from vntools.export.rewrite import GraphPass
@dataclass(frozen=True)
class Made(GraphPass):
    name: ClassVar[str] = "NAME"
    after: ClassVar[tuple[str, ...]] = AFTER
    def rewrite(self, graph):
        return iter(())
"""


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of passes that is found instead of the real one."""
    monkeypatch.setattr(package, "__path__", [str(tmp_path)])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]
        if hasattr(package, name.rpartition(".")[2]):
            delattr(package, name.rpartition(".")[2])


def made(folder: Path, file: str, name: str, after: tuple[str, ...] = ()) -> None:
    text = PASS_FILE.replace("NAME", name).replace("AFTER", repr(after))
    (folder / f"{file}.py").write_text(text)


def test_passes_are_found_and_ordered(found: Path) -> None:
    made(found, "z_first", "z-first")
    made(found, "a_last", "a-last", ("z-first", "m_middle".replace("_", "-")))
    made(found, "m_middle", "m-middle")
    made(found, "_not_one", "whatever")
    order = [p.name for p in discover.__wrapped__()]
    assert order == ["m-middle", "z-first", "a-last"]


@pytest.mark.parametrize(
    ("name", "after", "code"),
    [
        ("other", (), "pass.name"),
        ("test-one", ("test-one",), "pass.order"),
        ("test-one", ("no-such-pass",), "pass.order"),
    ],
)
def test_passes_that_do_not_fit(
    found: Path, name: str, after: tuple[str, ...], code: str
) -> None:
    made(found, "test_one", name, after)
    with pytest.raises(InternalFault) as e:
        discover.__wrapped__()
    assert e.value.code == code
