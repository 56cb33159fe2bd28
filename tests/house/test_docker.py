"""The image's recipe, and its steps that need nothing of NVIDIA's, run in a clean folder."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import vntools

PINNED = re.compile(r"nvcr\.io/nvidia/tensorrt:\d\d\.\d\d-py3")


def instructions(text: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile: word and rest, continued lines joined."""
    lines = "\n".join(x for x in text.splitlines() if not x.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", lines).splitlines()
    return [
        (w, rest.strip()) for w, _, rest in (x.partition(" ") for x in joined if x.strip())
    ]


def faults(text: str) -> list[str]:
    """What is wrong with a Dockerfile, in words."""
    steps = instructions(text)
    last = dict(steps)
    found = []
    if steps[:2] != [steps[0], ("FROM", "${TENSORRT_IMAGE}")] or steps[0][0] != "ARG":
        found.append("the base image is not that of the first ARG")
    if not PINNED.fullmatch(steps[0][1].partition("=")[2]):
        found.append("the base image is not pinned to a release of NVIDIA's TensorRT image")
    if last.get("USER") in (None, "root", "0"):
        found.append("it runs as root")
    if last.get("ENTRYPOINT") != json.dumps(["vntools"]):
        found.append("the entry point is not vntools")
    runs = " && ".join(rest for word, rest in steps if word == "RUN")
    if re.search(r"(pip|install\.sh)[^&]*\btensorrt\b(?!\.__version__)", runs):
        found.append("tensorrt comes from an index, not from the image")
    if "docker/install.sh /opt/vntools" not in runs or "pycuda==${PYCUDA_VERSION}" not in runs:
        found.append("vntools or PyCUDA is not installed")
    return found


def test_the_recipe(root: Path) -> None:
    assert faults((root / "docker" / "Dockerfile").read_text()) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("FROM ${TENSORRT_IMAGE}", "FROM ubuntu:24.04"),
        (":25.10-py3", ":latest"),
        ("USER vntools", ""),
        ('ENTRYPOINT ["vntools"]', 'ENTRYPOINT ["bash"]'),
        ("docker/install.sh /opt/vntools", "docker/install.sh /opt/vntools .[tensorrt]"),
        ("docker/install.sh /opt/vntools", "true"),
        ('"pycuda==${PYCUDA_VERSION}"', "pycuda"),
    ],
)
def test_the_check_can_fail(root: Path, old: str, new: str) -> None:
    text = (root / "docker" / "Dockerfile").read_text()
    assert old in text
    assert len(faults(text.replace(old, new))) == 1


@pytest.fixture
def clean_folder(source_tree: Path) -> Iterator[Path]:
    """A folder that every user may enter, with the sources as COPY brings them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copytree(source_tree, folder / "src")
        yield folder


def interpreter() -> str:
    """This Python, or where that one is private to root, one that every user may run."""
    if os.geteuid() != 0:
        return sys.executable
    probe = "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))"
    for candidate in (sys.executable, "/usr/bin/python3"):
        real = Path(candidate).resolve()
        open_to_all = real.exists() and all(p.stat().st_mode & 0o001 for p in real.parents)
        if open_to_all and subprocess.run([real, "-c", probe], check=False).returncode == 0:
            return candidate
    pytest.skip("root's own Python cannot be run by another user")


def provide(folder: Path, *distributions: str) -> None:
    """Copy installed packages into ``folder``, so that nothing is downloaded."""
    for name in distributions:
        spec = find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        package = Path(spec.origin).parent
        shutil.copytree(package, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        metadata = Path(str(importlib.metadata.distribution(name).locate_file("")))
        (info,) = metadata.glob(f"{name}-*.dist-info")
        shutil.copytree(info, folder / info.name)


def test_the_steps_without_nvidia_run_in_a_clean_folder(clean_folder: Path) -> None:
    provide(clean_folder / "site", "click", "setuptools")
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHON": interpreter(),
        "PYTHONPATH": str(clean_folder / "site"),
    }
    run = subprocess.run(
        ["docker/install.sh", clean_folder / "venv", "--no-deps", "--no-build-isolation"],
        check=False,
        cwd=clean_folder / "src",
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.endswith(f"vntools {vntools.__version__}\n")
    installed = next((clean_folder / "venv").glob("lib/python*/site-packages/vntools"))
    assert (installed / "models" / "__init__.py").is_file()
    doctor = subprocess.run(
        [clean_folder / "venv" / "bin" / "vntools", "doctor", "--json"],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert doctor.returncode == 0, doctor.stderr
    assert json.loads(doctor.stdout)["packages"]["torch"] is None
