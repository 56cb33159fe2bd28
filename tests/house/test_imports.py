"""Which room may import which, by a walk over the source; the table is that of the design."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

BELOW_3 = {"base", "models", "engine", "export", "runtime"}
BELOW_4 = BELOW_3 | {"verify", "precision", "bench"}
MAY_IMPORT = {
    "base": set(),
    "models": {"base"},
    "engine": {"base"},
    "export": {"base", "models"},
    "runtime": {"base", "models", "engine"},
    "verify": BELOW_3,
    "precision": BELOW_3,
    "bench": BELOW_3,
    "report": BELOW_4,
    "pipeline": BELOW_4,
    "demo": BELOW_4 | {"pipeline"},
    "cli": BELOW_4 | {"report", "pipeline", "demo"},
}
# What a room prints is of these rooms' types, which it names under TYPE_CHECKING alone.
MAY_NAME = {"report": {"pipeline", "demo"}}
# Packages that only these rooms or files touch.
KEPT_IN = {
    "tensorrt": ("engine",),
    "tensorrt_rtx": ("engine",),
    "tensorrt_rtx_bindings": ("engine",),
    "pycuda": ("runtime", "cli.doctor"),
    "openvino": ("runtime",),
    "matplotlib": ("report",),
    "torch": ("models", "export.trace", "runtime", "demo", "pipeline"),
    "onnxruntime": ("runtime", "verify", "precision", "cli.doctor", "export.shapes"),
}
TREES = {"vntools": "vntools", "models": "vntools.models", "export": "vntools.export"}


def sources(root: Path) -> Iterator[tuple[str, Path]]:
    """Dotted name and path of each module, under the names they are installed by."""
    for folder, package in TREES.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            dotted = ".".join((package, *parts))
            yield dotted.removesuffix(".__init__"), path


def names_types(node: ast.AST) -> bool:
    """Whether a statement is ``if TYPE_CHECKING:``, which never runs."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Dotted names that a module imports, wherever it does; also by ``require("name")``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                kept = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join((*kept, base)).rstrip(".")
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            word = node.args[0]
            if name in ("require", "import_module") and isinstance(word, ast.Constant):
                yield str(word.value)


def faults(name: str, source: str, *, is_package: bool = False) -> list[str]:
    """What a module imports and may not, in words."""
    package = name if is_package else name.rpartition(".")[0]
    room, _, rest = name.removeprefix("vntools").removeprefix(".").partition(".")
    tree, found = ast.parse(source), []
    types = {t for node in tree.body if names_types(node) for t in imported(node, package)}
    for target in imported(tree, package):
        first, _, inner = target.partition(".")
        if first in ("models", "export"):
            found.append(f"{name} imports {target}: it is installed as vntools.{first}")
        elif first == "vntools":
            other = inner.partition(".")[0]
            may = {room, *MAY_IMPORT.get(room, ())}
            may |= MAY_NAME.get(room, set()) if target in types else set()
            if other in MAY_IMPORT and other not in may:
                found.append(f"{name} imports {target}: {room} may not import {other}")
            if room == "export" and other == "models" and rest != "trace":
                found.append(f"{name} imports {target}: only export/trace.py touches models")
        elif first in KEPT_IN:
            here = f"{room}.{rest}"
            if not any(f"{here}.".startswith(f"{kept}.") for kept in KEPT_IN[first]):
                found.append(f"{name} imports {target}: kept in {', '.join(KEPT_IN[first])}")
    return found


def test_every_import_goes_downwards(root: Path) -> None:
    modules = list(sources(root))
    assert len(modules) > 20
    found = [
        fault
        for name, path in modules
        for fault in faults(name, path.read_text(), is_package=path.name == "__init__.py")
    ]
    assert found == []


def test_every_room_has_a_floor(root: Path) -> None:
    rooms = {name.split(".")[1] for name, _ in sources(root) if name != "vntools"}
    assert rooms <= set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("vntools.base.x", "import vntools.models.arch"),
        ("vntools.base.x", "from vntools import engine"),
        ("vntools.models.x", "from vntools.export.graph import f"),
        ("vntools.verify.x", "def f():\n    from vntools.bench import measure"),
        ("vntools.pipeline", "import vntools.cli"),
        ("vntools.report.x", "from vntools import pipeline"),
        ("vntools.bench.x", "if TYPE_CHECKING:\n    from vntools import pipeline"),
        ("vntools.runtime.x", "import export"),
        ("vntools.runtime.x", "from models.arch import f"),
        ("vntools.runtime.x", "from ..export import f"),
        ("vntools.export.graph", "from vntools.models import arch"),
        ("vntools.export.graph", "import torch"),
        ("vntools.runtime.x", "import tensorrt as trt"),
        ("vntools.bench.x", "require('pycuda.driver', extra='tensorrt')"),
    ],
)
def test_the_walk_finds_a_wrong_import(name: str, source: str) -> None:
    assert len(faults(name, source)) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("vntools.export.trace", "import torch\nfrom vntools.models.arch import f"),
        ("vntools.export.passes.x", "from ..graph import f"),
        ("vntools.engine.backend", "require('tensorrt', extra='tensorrt')"),
        ("vntools.cli.bench", "import vntools.pipeline, vntools.bench.measure"),
        ("vntools.models.x", "from vntools import __version__"),
        ("vntools.demo", "from vntools import pipeline"),
        ("vntools.report.x", "if TYPE_CHECKING:\n    from vntools.pipeline import engine"),
    ],
)
def test_the_walk_lets_a_right_import_pass(name: str, source: str) -> None:
    assert faults(name, source) == []
