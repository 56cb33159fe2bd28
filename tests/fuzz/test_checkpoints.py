"""Fuzzed checkpoints load as they were saved or are refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.attacks.checkpoints import released, safetensors, saved
from tests.fuzz import checkpoints
from tests.fuzz.checkpoints import CANARY, check, mutants
from vntools.models.checkpoint import load_checkpoint

CASES = 300


def test_mutants_load_as_saved_or_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcomes = Counter(check(data, tmp_path) for data in mutants(0, CASES))
    # The mutants are of many kinds: some harmless, none that prevail.
    assert 0 < outcomes["loaded"] < CASES // 2
    assert len(outcomes) >= 10, outcomes


@pytest.mark.parametrize("make", [saved, safetensors], ids=["torch", "safetensors"])
def test_the_oracle_sees_weights_that_are_not_the_saved_ones(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, released()) if make is saved else safetensors(tmp_path)
    loaded = load_checkpoint(path)
    wrong = {n: t * 1.25 for n, t in loaded.state.items()}
    monkeypatch.setattr(checkpoints, "load_checkpoint", lambda _: replace(loaded, state=wrong))
    with pytest.raises(AssertionError, match=r"\.(weight|bias)"):
        check(path.read_bytes(), tmp_path)


def test_the_oracle_sees_what_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = saved(tmp_path, released()).read_bytes()
    assert check(data, tmp_path) == "loaded"
    (tmp_path / CANARY).mkdir()
    with pytest.raises(AssertionError):
        check(data, tmp_path)
