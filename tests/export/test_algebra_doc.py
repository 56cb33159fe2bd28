"""docs/algebra.md: its examples run, its tables are the record's, its reasons the engine's."""

from __future__ import annotations

import doctest
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vntools.export import operators

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "algebra.md").read_text(encoding="utf-8")
_FENCE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def failures(text: str) -> tuple[list[str], int]:
    """The examples of a document that do not say what they print, and how many there are."""
    found: list[str] = []
    names: dict[str, Any] = {}
    tried = 0
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start(1))
        test = doctest.DocTestParser().get_doctest(
            match[1], names, "algebra.md", "docs/algebra.md", line
        )
        tried += len(test.examples)
        runner.run(test, out=found.append, clear_globs=False)
        names = test.globs
    return found, tried


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "_ENTRIES", dict(operators._ENTRIES))


@pytest.fixture(scope="module")
def compare_tools() -> ModuleType:
    path = ROOT / "docs" / "compare_tools.py"
    spec = importlib.util.spec_from_file_location("compare_tools", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def record(compare_tools: ModuleType) -> dict[str, Any]:
    return json.loads(compare_tools.RECORD.read_text(encoding="ascii"))


def test_the_examples_say_what_they_print(entries: None) -> None:
    found, tried = failures(TEXT)
    assert not found, "\n".join(found)
    assert tried > 60


def test_a_wrong_example_is_found(entries: None) -> None:
    wrong = TEXT.replace("[16.0, 27.0, 20.0]", "[16.0, 27.0, 21.0]")
    assert len(failures(wrong)[0]) == 1


def test_every_reason_of_the_tables_is_given_by_an_example() -> None:
    rows = re.findall(r"^\| (?!what \||---)([^|]+)\| ([^|]+) \|$", TEXT, re.MULTILINE)
    reasons = [reason for _, reason in rows]
    assert "quantisation rounds" in reasons
    missing = [r for r in reasons if f"skip: {r}\n" not in TEXT]
    assert not missing


def test_the_tables_are_those_of_the_record(
    compare_tools: ModuleType, record: dict[str, Any]
) -> None:
    assert compare_tools.with_tables(TEXT, record) == TEXT, "run compare_tools.py --write-docs"


def test_what_is_said_of_the_other_tools(
    compare_tools: ModuleType, record: dict[str, Any]
) -> None:
    """No other tool leaves fewer convolutions, or less work, than the training graph has."""
    graphs = record["graphs"]
    ours = {compare_tools.OURS, "vntools, passes alone", compare_tools.TARGET}
    others = [name for name in graphs[0]["cells"] if name not in ours]
    assert len(others) == 6
    for graph in graphs:
        trained = graph["cells"][compare_tools.TRAINING]["raw"]
        for name in others:
            for result in graph["cells"][name].values():
                if "failed" not in result:
                    assert result["nodes"][0] == trained["nodes"][0]
                    assert result["macs"] >= trained["macs"]
        for result in graph["cells"][compare_tools.OURS].values():
            assert result["nodes"][0] <= trained["nodes"][0]
            assert result["macs"] <= trained["macs"]


def test_what_is_said_of_the_deploy_forms(
    compare_tools: ModuleType, record: dict[str, Any]
) -> None:
    """They keep what is foldable; where they have fewer Adds, they have no fewer nodes."""
    norm, add, mul = (
        compare_tools.COLUMNS.index(n) for n in ("BatchNormalization", "Add", "Mul")
    )
    pairs = [
        tuple(
            compare_tools.best(graph["cells"][name])["nodes"]
            for name in (compare_tools.OURS, compare_tools.TARGET)
        )
        for graph in record["graphs"]
    ]
    for column in (norm, mul):
        assert sum(ours[column] for ours, _ in pairs) < sum(t[column] for _, t in pairs)
    fewer = [(ours, theirs) for ours, theirs in pairs if theirs[add] < ours[add]]
    assert all(theirs[-1] >= ours[-1] for ours, theirs in fewer)


def test_the_counter_leaves_out_constants_and_shapes(compare_tools: ModuleType) -> None:
    from tests.graphs import parsed

    model = parsed(
        """(float[n,2,4] x) => (float[n,2,4] y) <float[2,2,1] W, float zero = {0}> {
            n = Shape(x)   wide = CastLike(zero, x)   two = Constant<value_ints=[2]>()
            b = Expand(wide, two)   c = Conv(x, W, b)   s = Neg(x)   y = Reshape(c, n) }"""
    )
    nodes = compare_tools.live_nodes(model)
    assert [n.op_type for n in nodes] == ["Conv", "Reshape"]
    assert compare_tools.counted(nodes) == [1, 0, 0, 0, 0, 2]
