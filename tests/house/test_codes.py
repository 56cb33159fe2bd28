"""Codes of errors and warnings: literal, one exit status each, documented, and tested.

docs/errors.md is what docs/errors.py writes from the sources now.
"""

from __future__ import annotations

import ast
import re
import runpy
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ERRORS = runpy.run_path(str(ROOT / "docs" / "errors.py"), run_name="docs.errors")
_DOTTED = re.compile(r"[a-z0-9_]+\.[a-z0-9_]+")


def read(source: str) -> tuple[list[Any], list[str]]:
    """The sites and the faults of one file, beside the tree of errors."""
    tree = {name: t for name, t in ERRORS["sources"]().items() if name.endswith("/errors.py")}
    found, faults = ERRORS["read"]({**tree, "file.py": source})
    return [site for site in found if site.where.startswith("file.py:")], faults


@cache
def sites() -> tuple[list[Any], list[str]]:
    return ERRORS["read"](ERRORS["sources"]())


def twofold(found: Iterable[Any]) -> list[str]:
    """Codes of errors with more than one exit status."""
    statuses: defaultdict[str, set[str]] = defaultdict(set)
    for site in found:
        if site.status != "warning":
            statuses[site.code].add(site.status)
    return sorted(code for code, known in statuses.items() if len(known) > 1)


def said(source: str) -> set[str]:
    """What the string literals of a test may mean as codes, regular expressions included."""
    words: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value.replace("\\", "")
            words |= {text, *_DOTTED.findall(text), *re.findall(r"\[(\w+)\]", text)}
    return words


def untested(found: Iterable[Any], tests: Iterable[str]) -> list[str]:
    """Codes that no test names."""
    words = set[str]().union(*map(said, tests))
    return sorted({site.code for site in found} - words)


def test_every_code_is_literal() -> None:
    assert not sites()[1]
    assert len({s.code for s in sites()[0]}) > 150


def test_the_page_is_what_the_sources_say() -> None:
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    assert text == ERRORS["page"](sites()[0]), "run python docs/errors.py"


def test_a_code_has_one_exit_status() -> None:
    assert not twofold(sites()[0])


def test_every_code_stands_in_a_test() -> None:
    tests = [p for p in (ROOT / "tests").rglob("*.py") if p != Path(__file__)]
    assert not untested(sites()[0], (p.read_text(encoding="utf-8") for p in tests))


def test_each_of_them_can_fail() -> None:
    raised = "def f(x):\n    raise DataFault(x, 'is bad')\n"
    assert len(read(raised)[1]) == 1
    assert not read(raised + "f('a.bad')\n")[1]
    assert read(raised + "f('Bad code')\n")[1]
    here = read(raised + "f('a.bad')\n")[0]
    assert ERRORS["page"](here) != ERRORS["page"](read(raised + "f('a.worse')\n")[0])
    assert twofold(read(raised + "f('a.bad')\nraise NoInput('a.bad', 'is not here')\n")[0])
    assert not twofold(read("l.warn('a.bad', 'so')\nraise NoInput('a.bad', 'so')\n")[0])
    assert untested(here, ["'''a.bad_too, a.ba'''", "# a.bad"]) == ["a.bad"]
    assert untested(here, [r"match = r'error\[a\.bad\]'"]) == []


def test_codes_are_followed_to_their_literals() -> None:
    source = """
KINDS = {"a.table": "from a table", "a.other": "from it too"}

class Reader:
    def __init__(self, *, family="b"):
        self._family = family

    def read(self, x):
        for code, what in KINDS.items():
            raise DataFault(code, f"{what} {x}", hint="so" + "so")

    def write(self, writing, x):
        code = "a.out" if writing else "a.in"
        why = f"{x}{x} wide"
        self.warnings.append((f"{self._family}.warned", why))
        return IoFault(code, why)

Reader(family="c")
raise NoInput(e.code, e.message)
"""
    found, faults = read(source)
    assert not faults
    mine = {(s.code, s.status, *s.says, *s.hints) for s in found}
    assert mine == {
        ("a.table", "65", "from a table ...", "soso"),
        ("a.other", "65", "from it too ...", "soso"),
        ("a.out", "74", "... wide"),
        ("a.in", "74", "... wide"),
        ("b.warned", "warning", "... wide"),
        ("c.warned", "warning", "... wide"),
    }
