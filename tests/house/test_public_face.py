"""Each public module says first what it offers, and offers it."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TREES = {"vntools": "vntools", "models": "vntools.models", "export": "vntools.export"}


def public_modules() -> list[tuple[str, Path]]:
    """Dotted name and path of each module whose dotted name has no leading underscore."""
    found = []
    for folder, package in TREES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join((package, *parts)).removesuffix(".__init__")
            if not any(part.startswith("_") for part in name.split(".")):
                found.append((name, path))
    return found


def offered(tree: ast.Module) -> list[str] | None:
    """The names in ``__all__``, which comes right after the docstring and ``__future__``."""
    for node in tree.body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
        if docstring or future:
            continue
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
        break
    return None


def defined(tree: ast.Module) -> list[str]:
    """Public functions and classes that a module defines."""
    return [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
    ]


def faults(source: str) -> list[str]:
    """What is wrong with the public face of a module, in words."""
    tree = ast.parse(source)
    names, there = offered(tree), defined(tree)
    if names is None:
        return ["__all__ does not come first"] if there else []
    return [f"{name} is not in __all__" for name in there if name not in names]


@pytest.mark.parametrize(
    ("name", "path"), public_modules(), ids=lambda v: str(v).rpartition("/")[2]
)
def test_a_module_offers_what_it_says(name: str, path: Path) -> None:
    assert faults(path.read_text()) == []
    names = offered(ast.parse(path.read_text())) or []
    assert len(set(names)) == len(names)
    module = importlib.import_module(name)
    assert [n for n in names if not hasattr(module, n)] == []


def test_modules_were_found() -> None:
    assert len(public_modules()) > 20


@pytest.mark.parametrize(
    "source",
    [
        "def f(): ...",
        "import os\n__all__ = ['f']\ndef f(): ...",
        "__all__ = ['g']\nclass F: ...\ndef g(): ...",
    ],
)
def test_the_check_can_fail(source: str) -> None:
    assert len(faults(source)) == 1
