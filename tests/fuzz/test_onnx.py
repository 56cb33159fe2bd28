"""Fuzzed ONNX files are simplified to the same function or refused."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import onnx_ir as ir
import pytest

from tests.attacks.onnx import network
from tests.fuzz import onnx as target
from tests.fuzz.onnx import check, mutants
from vntools.export import simplify
from vntools.pipeline.witness import Witness

CASES = 400
LONGEST_S = 240  # on a busy machine; some 25 on a free one


def test_mutants_are_simplified_or_refused() -> None:
    """In a process of their own, which native code may end, or never end."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", target.__name__, "0", str(CASES)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-200:] + done.stderr[-2000:]
    outcomes = Counter(line.split()[2] for line in done.stdout.splitlines() if line)
    assert outcomes.total() == CASES
    # The mutants are of many kinds, and many of them are harmless.
    assert CASES // 10 < outcomes["simplified"] < CASES * 3 // 4
    assert len(outcomes) >= 6, outcomes


def test_the_same_seed_is_the_same_files() -> None:
    assert list(mutants(3, 5)) == list(mutants(3, 5))
    assert len(set(mutants(3, 5))) > 1


def test_the_oracle_sees_another_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, right = network().SerializeToString(), simplify.tidy
    assert check(data, tmp_path) == "simplified"

    def wrong(model: ir.Model) -> ir.Model:
        tidied = right(model)
        for value in tidied.graph.initializers.values():
            if value.const_value is not None:
                value.const_value = ir.tensor(value.const_value.numpy() * 2, name=value.name)
        return tidied

    monkeypatch.setattr(simplify, "tidy", wrong)
    with pytest.raises(AssertionError, match=r"verify\.mismatch|relative L2"):
        check(data, tmp_path)
    monkeypatch.setattr(Witness, "check", lambda *_: None)
    with pytest.raises(AssertionError):
        check(data, tmp_path)


def test_the_oracle_sees_other_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("of a library")

    monkeypatch.setattr(target, "simplify", fail)
    with pytest.raises(RuntimeError):
        check(network().SerializeToString(), tmp_path)
