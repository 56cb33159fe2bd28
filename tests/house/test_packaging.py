"""The wheel, the pins and the version say what the tree says."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import vntools

FOLDERS = {"vntools": "vntools", "models": "vntools/models", "export": "vntools/export"}


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads((root / "pyproject.toml").read_text())


def test_the_wheel_holds_the_modules_of_the_tree(source_tree: Path, wheel: Path) -> None:
    tree = {
        f"{installed}/{path.relative_to(source_tree / folder)}": path.read_bytes()
        for folder, installed in FOLDERS.items()
        for path in (source_tree / folder).rglob("*")
        if path.suffix in (".py", ".json") or path.name == "py.typed"
    }
    with zipfile.ZipFile(wheel) as archive:
        packed = {
            name: archive.read(name)
            for name in archive.namelist()
            if not name.partition("/")[0].endswith(".dist-info")
        }
        top = next(n for n in archive.namelist() if n.endswith("/top_level.txt"))
        assert archive.read(top).split() == [b"vntools"]
    assert len(tree) > 20
    assert packed == tree


@pytest.mark.parametrize("name", ["models", "export"])
def test_the_bare_name_is_refused(root: Path, name: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", f"import {name}"],
        check=False,
        capture_output=True,
        text=True,
        cwd=root,
    )
    assert run.returncode == 1
    assert f"ImportError: import vntools.{name}: " in run.stderr


def test_the_version_has_one_home(root: Path, project: dict[str, Any]) -> None:
    newest = re.search(r"^## (\S+)", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == project["project"]["version"] == vntools.__version__


def test_coverage_and_packages_name_the_same_folders(project: dict[str, Any]) -> None:
    names = set(FOLDERS)
    assert set(project["tool"]["coverage"]["run"]["source"]) == names
    assert set(project["tool"]["setuptools"]["package-dir"].values()) == names


def requirements(project: dict[str, Any]) -> Iterator[Requirement]:
    """What make installs: all but the tensorrt extra, and vntools' own extras."""
    extras = project["project"]["optional-dependencies"]
    lists = [
        project["project"]["dependencies"],
        *(v for k, v in extras.items() if k != "tensorrt"),
    ]
    for requirement in (Requirement(text) for texts in lists for text in texts):
        if requirement.name != "vntools":
            yield requirement


def pins(root: Path) -> dict[str, Requirement]:
    """constraints.txt, by name."""
    lines = (root / "constraints.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(r.name): r for r in found}


def test_every_requirement_is_pinned_within_its_range(
    root: Path, project: dict[str, Any]
) -> None:
    pinned = pins(root)
    wanted = list(requirements(project))
    assert len(wanted) > 15
    for requirement in wanted:
        (pin,) = pinned[canonicalize_name(requirement.name)].specifier
        assert pin.operator == "=="
        assert "+" not in pin.version, "a local version stands in no index"
        assert requirement.specifier.contains(pin.version), requirement


@pytest.mark.parametrize(
    ("machine", "system", "name"),
    [
        ("x86_64", "linux", "onnxruntime-gpu"),
        ("aarch64", "linux", "onnxruntime"),
        ("arm64", "darwin", "onnxruntime"),
        ("AMD64", "win32", "onnxruntime-gpu"),
    ],
)
def test_each_machine_gets_one_onnx_runtime(
    project: dict[str, Any], machine: str, system: str, name: str
) -> None:
    here = {"platform_machine": machine, "sys_platform": system}
    found = [
        r.name
        for r in requirements(project)
        if r.name in ("onnxruntime", "onnxruntime-gpu")
        and r.marker
        and r.marker.evaluate(here)
    ]
    assert found == [name]


def test_make_never_installs_the_tensorrt_extra(root: Path, project: dict[str, Any]) -> None:
    extras = project["project"]["optional-dependencies"]
    assert "tensorrt" not in (root / "Makefile").read_text()
    nested = {t for k, v in extras.items() if k != "tensorrt" for t in v if "vntools[" in t}
    assert not any("tensorrt" in text for text in nested)
