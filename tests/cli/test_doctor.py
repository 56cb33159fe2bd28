"""``vntools doctor`` reports, whatever is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

from click.testing import Result

from vntools import __version__

WITHOUT = """
import sys
sys.modules.update(dict.fromkeys({missing!r}))  # None there makes an import fail
from vntools.cli import main
main()
"""


def doctor(*words: str, missing: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", WITHOUT.format(missing=missing), "doctor", *words],
        check=False,
        capture_output=True,
        text=True,
    )


def test_the_report_for_programs() -> None:
    run = doctor("--json")
    assert run.returncode == 0
    document = json.loads(run.stdout)
    assert document["vntools"] == __version__
    assert document["packages"]["torch"]
    assert "CPUExecutionProvider" in document["onnxruntime_providers"]
    for piece in document["missing"]:
        assert all(piece[k] for k in ("what", "why", "prevents", "remedy")), piece


def test_the_report_for_people_names_every_piece() -> None:
    run = doctor()
    assert run.returncode == 0
    for piece in (
        "vntools",
        "Python",
        "torch",
        "onnxruntime",
        "NVIDIA driver",
        "TensorRT-RTX",
    ):
        assert f"\n{piece} " in f"\n{run.stdout}"


def test_it_works_where_everything_is_missing() -> None:
    names = (
        "torch",
        "onnx",
        "onnx_ir",
        "onnxruntime",
        "numpy",
        "tensorrt",
        "tensorrt_rtx_bindings",
    )
    run = doctor("--json", missing=names)
    assert run.returncode == 0, run.stderr
    document = json.loads(run.stdout)
    assert document["packages"]["torch"] is None
    assert document["onnxruntime_providers"] == []
    told = {piece["what"] for piece in document["missing"]}
    assert {"torch", "onnx", "onnx-ir", "onnxruntime", "numpy", "TensorRT"} <= told


def test_the_same_through_the_runner(invoke: Callable[..., Result], monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxsim", None)
    result = invoke("doctor")
    assert result.exit_code == 0, result.output
    assert "onnxsim is missing" in result.stdout
    assert "prevents: vntools export and simplify" in result.stdout
