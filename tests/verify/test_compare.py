"""Each gate of a comparison can close, and opens for what is right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vntools.base.errors import CheckFailed
from vntools.base.tolerance import Tolerance
from vntools.verify.compare import Comparison, Difference, Tally, compare, relative_l2

WANT = np.random.default_rng(0).standard_normal((4, 10))
TOLERANCE = Tolerance(1e-6, same_top1=True, why="a test")


def one(got: Any, want: Any = WANT) -> Comparison:
    return compare([({"y": got}, {"y": want})], "it")


def test_the_same_is_the_same() -> None:
    same = one(WANT.copy())
    assert same == Comparison(0.0, 0.0, 1.0, 4)
    assert same.require(TOLERANCE, "it") is same


def test_the_figures() -> None:
    want = np.array([[3.0, 0.0], [0.0, 4.0]])
    got = np.array([[3.0, 0.5], [0.5, 0.25]], np.float32)
    found = one(got, want)
    assert found.relative_l2 == pytest.approx(np.sqrt(0.25 + 0.25 + 3.75**2) / 5)
    assert found.max_abs == 3.75
    assert (found.top1_agreement, found.samples) == (0.5, 2)
    assert relative_l2(got, want) == found.relative_l2


def test_the_difference_is_taken_in_float64() -> None:
    want = np.full((1, 3), 1.0)
    assert one(want.astype(np.float16), want + 2.0**-40).relative_l2 == pytest.approx(2.0**-40)


def test_the_worst_of_all_outputs_and_inputs_counts() -> None:
    off = WANT * (1 + 1e-3)
    first, second = {"a": WANT, "b": WANT}, {"a": WANT, "b": off}
    for pairs in ([(second, first)], [(first, first), (second, first)]):
        found = compare(pairs, "it")
        assert found.relative_l2 == pytest.approx(1e-3)
        assert found.max_abs == pytest.approx(1e-3 * np.abs(WANT).max())
    assert compare([(first, first), (first, first)], "it").samples == 16


def changed(value: float, *, at: tuple[int, int] = (2, 3)) -> np.ndarray:
    array = WANT.copy()
    array[at] = value
    return array


@pytest.mark.parametrize(
    ("got", "want", "code"),
    [
        (changed(np.nan), WANT, "verify.nonfinite"),
        (WANT, changed(np.nan), "verify.nonfinite"),
        (changed(np.nan), changed(np.nan), "verify.nonfinite"),
        (changed(np.inf), changed(np.inf), "verify.nonfinite"),
        (changed(-np.inf), WANT, "verify.nonfinite"),
        (WANT[:, :9], WANT, "verify.shape"),
        (WANT[:1], WANT, "verify.shape"),
        (WANT.reshape(10, 4), WANT, "verify.shape"),
        (WANT[:0], WANT[:0], "verify.zero"),
        (WANT, np.zeros_like(WANT), "verify.zero"),
        (np.zeros_like(WANT), np.zeros_like(WANT), "verify.zero"),
    ],
)
def test_what_proves_nothing_fails(got: np.ndarray, want: np.ndarray, code: str) -> None:
    with pytest.raises(CheckFailed, match="it") as e:
        one(got, want)
    assert e.value.code == code
    assert e.value.exit_status == 1


def test_an_output_that_is_missing() -> None:
    with pytest.raises(CheckFailed, match="b is missing, expected") as e:
        compare([({"a": WANT}, {"a": WANT, "b": WANT})], "it")
    assert e.value.code == "verify.shape"


@pytest.mark.parametrize("pairs", [[], [({}, {})], [({"y": WANT}, {})]])
def test_no_comparison_at_all_fails(pairs: list[Any]) -> None:
    with pytest.raises(CheckFailed) as e:
        compare(pairs, "it")
    assert e.value.code == "verify.empty"


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Comparison(1.1e-6, 0, 1.0, 4), "relative L2 error 1.10e-06, allowed 1.00e-06"),
        (Comparison(float("nan"), 0, 1.0, 4), "relative L2 error nan"),
        (Comparison(float("inf"), 0, 1.0, 4), "relative L2 error inf"),
        (Comparison(0, 0, 0.75, 4), "top-1 agrees on 75.0% of 4 samples"),
        (Comparison(0, 0, float("nan"), 4), "top-1 agrees"),
    ],
)
def test_the_gate_can_close(found: Comparison, words: str) -> None:
    with pytest.raises(CheckFailed, match=words) as e:
        found.require(TOLERANCE, "it")
    assert e.value.code == "verify.mismatch"


def test_the_gate_is_open_up_to_its_bound() -> None:
    Comparison(1e-6, 1.0, 1.0, 4).require(TOLERANCE, "it")
    loose = Tolerance(1e-6, same_top1=False, why="a test")
    Comparison(0, 0, 0.0, 4).require(loose, "it")


def test_a_swapped_top1_is_seen_where_the_error_is_small() -> None:
    want = np.array([[1.0, 1.0 + 1e-9, 0.0]])
    got = np.array([[1.0 + 1e-9, 1.0, 0.0]])
    with pytest.raises(CheckFailed, match="top-1"):
        one(got, want).require(TOLERANCE, "it")


def test_a_vector_has_no_top1() -> None:
    assert one(np.arange(1.0, 4), np.arange(1.0, 4)).samples == 0


# ------------------------------------------------------------------------- output by output


def tallied(*pairs: tuple[Any, Any]) -> Difference:
    tally = Tally()
    for got, want in pairs:
        tally.add({"y": got}, {"y": want})
    (found,) = tally.differences()
    return found


def test_the_figures_of_an_output() -> None:
    want = np.array([[3.0, 0.0], [0.0, 4.0]])
    got = np.array([[3.0, 0.5], [0.5, 0.25]], np.float32)
    found = tallied((got, want))
    assert found.relative_l2 == pytest.approx(np.sqrt(0.25 + 0.25 + 3.75**2) / 5)
    assert found.cosine == pytest.approx(10 / (np.sqrt(9 + 0.25 + 0.25 + 0.0625) * 5))
    assert (found.max_abs, found.top1_agreement, found.samples) == (3.75, 0.5, 2)
    assert found.equal is None


def test_the_worst_batch_counts() -> None:
    near, far = WANT * (1 + 1e-3), WANT * (1 + 1e-2)
    found = tallied((WANT, WANT), (far, WANT), (near, WANT), (WANT[:1], WANT[:1]))
    assert found.relative_l2 == pytest.approx(1e-2)
    assert found.max_abs == pytest.approx(1e-2 * np.abs(WANT).max())
    assert found.samples == 13
    turned = tallied((WANT, WANT), (-WANT, WANT), (WANT, WANT))
    assert turned.cosine == pytest.approx(-1)


def test_each_output_has_its_own_figures() -> None:
    tally = Tally()
    tally.add({"a": WANT, "i": np.array([1, 2])}, {"i": np.array([1, 3]), "a": 2 * WANT})
    found = {d.output: d for d in tally.differences()}
    assert found["a"].relative_l2 == pytest.approx(0.5)
    assert (found["i"].equal, found["i"].relative_l2) == (0.5, None)


def test_a_zero_reference_is_measured_by_what_is_there() -> None:
    tally = Tally()
    tally.add({"a": WANT, "b": 0 * WANT + 0.25}, {"a": WANT, "b": 0 * WANT})
    assert tally.differences()[1].relative_l2 == 0.25
    assert tallied((0 * WANT, WANT)).cosine == 0


@pytest.mark.parametrize(
    ("got", "want", "code"),
    [
        (changed(np.nan), WANT, "verify.nonfinite"),
        (WANT, changed(np.nan), "verify.nonfinite"),
        (changed(np.nan), changed(np.nan), "verify.nonfinite"),
        (changed(np.inf), changed(np.inf), "verify.nonfinite"),
        (WANT[:, :9], WANT, "verify.shape"),
        (WANT[:0], WANT[:0], "verify.empty"),
        (WANT, np.zeros_like(WANT), "verify.zero"),
        (np.zeros_like(WANT), np.zeros_like(WANT), "verify.zero"),
        (WANT, WANT.astype(int), "verify.outputs"),
    ],
)
def test_a_batch_that_proves_nothing(got: Any, want: Any, code: str) -> None:
    with pytest.raises(CheckFailed) as e:
        tallied((got, want))
    assert e.value.code == code


def test_nothing_at_all_and_missing_outputs() -> None:
    without, nothing = Tally(), Tally()
    nothing.add({}, {})
    for tally in (without, nothing):
        with pytest.raises(CheckFailed) as e:
            tally.differences()
        assert e.value.code == "verify.empty"
    for got, want in (({}, {"y": WANT}), ({"y": WANT}, {})):
        with pytest.raises(CheckFailed, match="on one side only: y") as e:
            Tally().add(got, want)
        assert e.value.code == "verify.outputs"


LOOSE = Tolerance(1e-6, same_top1=False, why="a test")


@pytest.mark.parametrize(
    ("found", "tolerance", "words"),
    [
        (Difference("y", 4, 1.1e-6, 0, 1, 1.0), LOOSE, "y: relative L2 1.10e-06, allowed"),
        (Difference("y", 4, float("nan"), 0, 1, 1.0), LOOSE, "y: relative L2 nan"),
        (Difference("y", 4, 0, 0, 1, 0.75), TOLERANCE, "y: top-1 agrees on 75.00% of 4"),
        (Difference("y", 4, 0, 0, 1, float("nan")), TOLERANCE, "y: top-1 agrees"),
        (Difference("y", 4, equal=0.75), LOOSE, "y: equal on 75.00% of 4"),
        (Difference("y", 4), LOOSE, "y: equal on 0.00%"),
        (Difference("y", 4, 1e-6, 9, 0, 1.0), TOLERANCE, ""),
        (Difference("y", 4, 1e-6, 9, 0, 0.0), LOOSE, ""),
        (Difference("y", 4, 0, 0, 1), TOLERANCE, ""),
        (Difference("y", 4, equal=1.0), TOLERANCE, ""),
    ],
)
def test_what_is_beyond(found: Difference, tolerance: Tolerance, words: str) -> None:
    beyond = found.beyond(tolerance)
    assert beyond.startswith(words)
    assert bool(beyond) == bool(words)
