"""Artifacts side by side: opened together, alike, and really measured."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from vntools.base.errors import NoInput, UsageFault
from vntools.bench import compare
from vntools.bench.compare import Verdict
from vntools.bench.measure import BenchOptions
from vntools.pipeline import side_by_side as module
from vntools.pipeline.bench import Artifact
from vntools.pipeline.listener import Mute
from vntools.pipeline.side_by_side import side_by_side
from vntools.report.comparison import comparison_text
from vntools.runtime.base import HostClock, TensorSpec

QUICK = BenchOptions(warm_up_ms=0, duration_s=0, iterations=10)


class Heard(Mute):
    """Keeps the warnings and the steps of a progress."""

    def __init__(self) -> None:
        self.warnings: list[tuple[str, str]] = []
        self.steps = 0

    def warn(self, code: str, text: str) -> None:
        self.warnings.append((code, text))

    def progress(
        self, description: str, total: int | None = None
    ) -> AbstractContextManager[Any]:
        @contextmanager
        def phase() -> Generator[Any]:
            yield self._step

        return phase()

    def _step(self, steps: int = 1) -> None:
        self.steps += steps


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "_TURN_S", 0.002)


def cpu(**fields: Any) -> Artifact:
    return Artifact(device="cpu", threads=1, **fields)


def test_runners_of_two_kinds(work: Path) -> None:
    heard = Heard()
    files = {
        "graph": cpu(onnx=Path("net.onnx")),
        "checkpoint": cpu(ckpt=Path("net.pth")),
        "again": cpu(onnx=Path("net.onnx")),
    }
    done = side_by_side(files, QUICK, listener=heard)
    assert [c.name for c in done.contenders] == list(files)
    assert [c.backend.partition("-")[0] for c in done.contenders] == [
        "onnxruntime",
        "pytorch",
        "onnxruntime",
    ]
    assert heard.warnings == []
    assert heard.steps == 100
    text = comparison_text(done)
    assert "1 threads" in text
    assert text.count("onnxruntime-cpu") == 2


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_eager_against_compiled(work: Path) -> None:
    files = {r: cpu(ckpt=Path("net.pth"), runner=r) for r in ("torch", "torch-compile")}
    done = side_by_side(files, QUICK, listener=Mute())
    assert [c.backend for c in done.contenders] == ["pytorch-cpu", "pytorch-compile-cpu"]
    assert "compiler" in done.contenders[1].details


def test_an_artifact_against_itself_is_not_different(work: Path) -> None:
    files = {n: cpu(onnx=Path("net.onnx")) for n in ("a", "b")}
    done = side_by_side(files, BenchOptions(50, 0, 40), same=0.5, listener=Mute())
    assert done.contenders[1].relation is not None
    assert done.contenders[1].relation.verdict in {Verdict.SAME, Verdict.UNCLEAR}


def test_threads_of_two_backends_are_warned_of(work: Path) -> None:
    heard = Heard()
    files = {
        "one": Artifact(onnx=Path("net.onnx"), device="cpu", threads=1),
        "two": Artifact(onnx=Path("net.onnx"), device="cpu", threads=2),
    }
    side_by_side(files, QUICK, listener=heard)
    assert heard.warnings == [
        ("bench.threads", "not the same number of threads: one 1, two 2")
    ]


def test_pytorch_has_one_number_of_threads(work: Path) -> None:
    files = {str(n): Artifact(ckpt=Path("net.pth"), device="cpu", threads=n) for n in (2, 1)}
    with pytest.raises(UsageFault, match="2 2, 1 1") as e:
        side_by_side(files, QUICK, listener=Mute())
    assert e.value.code == "bench.unlike"


def test_inputs_of_other_sizes_are_warned_of() -> None:
    class Sized:
        backend, clock = "onnxruntime-cpu", HostClock()

        def __init__(self, size: int, dtype: str) -> None:
            self.details: dict[str, Any] = {}
            self.inputs = (TensorSpec("x", ("n", 3, size, size), dtype),)

    heard = Heard()
    runners: Any = {"a": Sized(224, "float32"), "b": Sized(224, "float16")}
    module._check_alike(runners, heard)
    assert heard.warnings == []
    module._check_alike(runners | {"c": Sized(192, "float32")}, heard)
    ((code, text),) = heard.warnings
    assert code == "bench.inputs"
    assert "c x: float32 nx3x192x192" in text


def test_one_artifact_is_not_compared(work: Path) -> None:
    with pytest.raises(UsageFault) as e:
        side_by_side({"a": cpu(onnx=Path("net.onnx"))}, QUICK, listener=Mute())
    assert e.value.code == "bench.unlike"


def test_a_missing_file_is_named(work: Path) -> None:
    files = {"a": cpu(onnx=Path("net.onnx")), "b": cpu(onnx=Path("nope.onnx"))}
    with pytest.raises(NoInput, match=r"nope\.onnx"):
        side_by_side(files, QUICK, listener=Mute())
