"""Which layers stay INT8: the order, the groups, and what is held against what."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.graphs import feeds_of, graph
from vntools.base.errors import CheckFailed
from vntools.pipeline.budget import Judge, Labelled, Measured, Probe, answers, choose
from vntools.precision.int8 import Layer

LAYERS = {
    f"l{i}": Layer(f"l{i}", f"t{i}", f"w{i}", 0, "dense", 10 * (i + 1)) for i in range(12)
}


class Scripted:
    """Allows a choice of at most so many layers."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.seen: list[list[str]] = []

    def measure(self, model: Any) -> Measured:
        self.seen.append(model)
        return Measured(len(model) / 100, float(len(model)), 7)

    def allows(self, found: Measured) -> bool:
        return found.relative_l2 * 100 <= self.most


def chosen(most: int) -> tuple[list[str], Scripted, Any]:
    judge: Any = Scripted(most)
    build: Any = list
    kept, steps = choose(list(LAYERS), LAYERS, judge, build, lambda *_: None)
    return kept, judge, steps


def test_the_costliest_go_first_two_at_a_time() -> None:
    kept, judge, steps = chosen(9)
    assert kept == [f"l{i}" for i in range(4, 12)]
    assert [len(names) for names in judge.seen] == [12, 10, 8]
    assert [step.layers for step in steps] == [12, 10, 8]
    assert steps[-1].mac_share == pytest.approx(sum(range(5, 13)) / sum(range(1, 13)))
    assert (steps[0].drop, steps[0].images) == (12.0, 7)


def test_all_stay_where_the_budget_holds_at_once() -> None:
    kept, judge, _ = chosen(12)
    assert kept == list(LAYERS)
    assert len(judge.seen) == 1


def test_none_stays_where_nothing_helps() -> None:
    kept, judge, steps = chosen(0)
    assert kept == []
    assert [len(names) for names in judge.seen] == [12, 10, 8, 6, 4, 2]
    assert len(steps) == 6


SCALE = "(float[n,4] x) => (float[n,4] y) <float[4] w> { y = Mul(x, w) }"


def scaled(by: Sequence[float]) -> ir.Model:
    return graph(SCALE, w=by)


class Batches(list[dict[str, Any]]):
    """Batches of five; the last ``padding`` samples only fill the last batch."""

    def __init__(self, count: int, padding: int = 0) -> None:
        model = scaled([1, 1, 1, 1])
        super().__init__(feeds_of(model, seed=i, batch=5) for i in range(count))
        self.batches, self.images = count, 5 * count - padding


batches = Batches


def judge_of(feeds: Batches, max_drop: float | None, **labelled: Any) -> Judge:
    unit = scaled([1, 1, 1, 1])
    return Judge(unit, Probe(unit, feeds), max_drop, **labelled)


def test_without_classes_there_is_no_accuracy() -> None:
    two = graph("(float[n,4] x) => (float[n,4] y, float[n,4] z) { y = Abs(x) z = Neg(x) }")
    labelled = Labelled(lambda: iter([(batches(1)[0], np.zeros(5, np.int64))]))
    assert labelled.top1(scaled([1, 1, 1, 1]))[1] == 5
    with pytest.raises(CheckFailed) as e:
        labelled.top1(two)
    assert e.value.code == "eval.outputs"


def test_a_probe_measures_over_all_batches() -> None:
    probe = Probe(scaled([1, 1, 1, 1]), batches(3))
    assert (probe.images, len(probe.feeds)) == (15, 3)
    found = probe.measure(scaled([1.1, 1.1, 1.1, 1.1]))
    assert found.relative_l2 == pytest.approx(0.1, rel=1e-5)
    assert (found.disagreement, found.images) == (0.0, 15)
    flipped = probe.measure(scaled([-1, -1, -1, -1]))
    assert (flipped.relative_l2, flipped.disagreement) == (2.0, 100.0)


def test_no_more_batches_than_are_enough() -> None:
    feeds = batches(3, padding=2)
    probe = Probe(scaled([1, 1, 1, 1]), feeds)
    assert [len(probe.first(n)) for n in (1, 5, 6, 13, 99)] == [1, 1, 2, 3, 3]
    assert probe.first(6)[1]["x"] is feeds[1]["x"]
    assert [probe.measure(scaled([2] * 4), images=n).images for n in (5, 6, 99)] == [5, 10, 13]


def test_what_is_not_finite_or_zero_proves_nothing() -> None:
    probe = Probe(scaled([1, 1, 1, 1]), batches(1))
    with pytest.raises(CheckFailed, match="not finite"):
        probe.measure(scaled([float("inf")] * 4))
    with pytest.raises(CheckFailed, match="zero"):
        Probe(scaled([0, 0, 0, 0]), batches(1)).measure(scaled([1, 1, 1, 1]))


@pytest.mark.parametrize(
    ("outputs", "want"),
    [
        ({"y": np.array([[1.0, 3.0, 2.0]])}, [1]),
        ({"values": np.array([[0.9, 0.1]]), "indices": np.array([[7, 2]])}, [7]),
        ({"y": np.zeros((1, 2, 3))}, None),
        ({"y": np.zeros((1, 2)), "z": np.zeros((1, 2))}, None),
    ],
)
def test_the_answer_of_each_sample(outputs: dict[str, Any], want: list[int] | None) -> None:
    got = answers(outputs)
    assert (got is None) if want is None else (got is not None and got.tolist() == want)


def test_points_without_labels_are_of_disagreement() -> None:
    judge = judge_of(batches(2), 0.0)
    close, far = scaled([1.05] * 4), scaled([1.2] * 4)
    assert judge.allows(judge.measure(close))
    assert not judge.allows(judge.measure(far)), "the same answers, but 20 % off"
    assert not judge.allows(judge.measure(scaled([1, 1, 1, 9]))), "other answers"
    assert judge_of(batches(1), None).allows(judge.measure(far))


def test_points_with_labels_are_of_top1() -> None:
    feeds = batches(2)
    right = [feed["x"].argmax(axis=1) for feed in feeds]
    labels = [right[0], right[1][:3]]  # the last batch is filled up

    def labelled() -> Any:
        return zip(feeds, labels, strict=True)

    judge = judge_of(feeds, 12.5, labelled=Labelled(labelled))
    assert judge.measure(scaled([2, 2, 2, 2])) == Measured(1.0, 0.0, 8)
    assert judge.allows(judge.measure(scaled([2, 2, 2, 2]))), "the labels alone count"
    wrong = judge.measure(scaled([-1, -1, -1, -1]))
    assert (wrong.disagreement, wrong.images) == (100.0, 8)
    assert not judge.allows(wrong)
    one_off = [right[0].copy(), right[1][:3]]
    one_off[0][0] = (one_off[0][0] + 1) % 4
    better = Labelled(lambda: zip(feeds, one_off, strict=True))
    assert better.top1(scaled([1, 1, 1, 1])) == (7, 8)


def test_points_are_rounded_once() -> None:
    """100 * 999 / 1000 - 100 * 996 / 1000 is more than 0.3 in float64."""
    counts = iter([999, 996, 995])
    labelled: Any = SimpleNamespace(top1=lambda _: (next(counts), 1000))
    judge = judge_of(batches(1), 0.3, labelled=labelled)
    assert judge.allows(judge.measure(scaled([1, 1, 1, 1])))
    assert not judge.allows(judge.measure(scaled([1, 1, 1, 1])))


def test_what_fills_the_last_batch_does_not_count() -> None:
    feeds = batches(2, padding=2)
    for feed in feeds[1:]:
        feed["x"][3:] = [0, 0, 0, 9]
    probe = Probe(scaled([1, 1, 1, 1]), feeds)
    found = probe.measure(scaled([1, 1, 1, 1]))
    assert (probe.images, found.images) == (8, 8)
    x = np.concatenate([feeds[0]["x"], feeds[1]["x"][:3]])
    want = 0.5 * np.linalg.norm(x[:, 3]) / np.linalg.norm(x)
    assert probe.measure(scaled([1, 1, 1, 0.5])).relative_l2 == pytest.approx(want, rel=1e-6)


def test_outputs_without_floats_say_nothing() -> None:
    model = graph("(float[n,4] x) => (int64[n,1] y) { y = ArgMax<axis=1>(x) }")
    with pytest.raises(CheckFailed, match="no output is of floats"):
        Probe(model, batches(1)).measure(model)
