"""The parts of vntools verify that a CPU alone does not reach."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.graphs import onnx_bytes
from vntools.base.artifacts import write_sidecar_bytes
from vntools.base.errors import CheckFailed, UsageFault
from vntools.pipeline import artifact_facts as module
from vntools.pipeline.bench import Artifact
from vntools.pipeline.same_inputs import _seeded
from vntools.pipeline.verify import VerifyOptions, verify
from vntools.precision import floats, int8
from vntools.runtime.base import HostClock, Runner, TensorSpec

GRAPH = "(float[n,6] x) => (float[n,6] y) { y = Abs(x) }"


class Quiet:
    def note(self, text: str) -> None: ...
    def warn(self, code: str, text: str) -> None: ...
    def progress(self, description: str, total: int | None = None) -> Any:
        return nullcontext(lambda *_: None)


class GpuClock(HostClock):
    on_gpu = True


class Fake(Runner):
    """y = |x| as a GPU might give it: ``error`` off in one row of the batch."""

    backend = "fake"

    def __init__(self, *, error: float = 0.0, row: int = 0) -> None:
        self.details = {}
        self.inputs = (TensorSpec("x", ("n", 6), "float32"),)
        self.outputs = (TensorSpec("y", ("n", 6), "float32"),)
        self.clock = GpuClock()
        self._error, self._row = error, row
        self.batches: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def prepare(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        self._y = np.abs(feeds["x"])
        self._y[self._row % len(self._y)] *= 1 + self._error
        self.batches.append(len(self._y))

    def upload(self) -> None: ...
    def enqueue(self) -> None: ...
    def download(self) -> None: ...
    def synchronize(self) -> None: ...

    def results(self) -> dict[str, NDArray[Any]]:
        return {"y": self._y}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A plan that no TensorRT built, and an ONNX file."""
    (tmp_path / "a.plan").write_bytes(b"ftrt")
    (tmp_path / "b.onnx").write_bytes(onnx_bytes(GRAPH))
    return tmp_path / "a.plan", tmp_path / "b.onnx"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have plans run on a fake, and return who was opened on what."""
    real = module.open_described
    opened: list[Artifact] = []

    def use(runner: Fake) -> list[Artifact]:
        def describe(artifact: Artifact, listener: Any) -> tuple[Runner, dict[str, str], Any]:
            opened.append(artifact)
            return (runner, {}, None) if artifact.engine else real(artifact, listener)

        monkeypatch.setattr(module, "open_described", describe)
        return opened

    return use


def sidecar(plan: Path, precision: str, most: int = 8, least: int = 1) -> None:
    profile = {"x": {"min": [least, 6], "opt": [1, 6], "max": [most, 6]}}
    record = {"schema": 1, "sha256": "0" * 64, "precision": precision, "profile": profile}
    (plan.parent / "a.plan.json").write_bytes(write_sidecar_bytes(record))


def test_a_plan_comes_first_and_has_its_own_device(files: tuple[Path, Path], fake) -> None:
    opened = fake(Fake())
    sidecar(files[0], "fp32")
    for a, b in (files, files[::-1]):
        found = verify(VerifyOptions(a, b, device="cpu"), Quiet())
        found.require()
        assert [s.kind for s in found.sides] == ["engine" if p is files[0] else "onnx"
                                                 for p in (a, b)]  # fmt: skip
    assert [(a.engine is not None, a.device) for a in opened] == [
        (True, "auto"), (False, "cpu"), (True, "auto"), (False, "cpu"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("precision", "named", "bound"),
    [
        ("fp32", "tf32", 1e-2),
        ("fp16", "fp16", floats.TOLERANCES["fp16"].max_relative_l2),
        ("bf16", "bf16", floats.TOLERANCES["bf16"].max_relative_l2),
        ("int8", "int8", int8.TOLERANCE.max_relative_l2),
    ],
)
def test_each_precision_has_a_tolerance_with_a_reason(
    files: tuple[Path, Path], fake, precision: str, named: str, bound: float
) -> None:
    sidecar(files[0], precision)
    for error, failed in ((0.0, False), (0.9 * bound, False), (9 * bound, True)):
        fake(Fake(error=error, row=1))
        found = verify(VerifyOptions(*files, batch=1, device="cpu"), Quiet())
        assert (found.precision, found.tolerance.max_relative_l2) == (named, bound)
        assert found.tolerance.why
        assert bool(found.failures) == failed
        if failed:
            with pytest.raises(CheckFailed, match="relative L2"):
                found.require()


def test_what_a_plan_without_a_sidecar_allows_is_for_the_caller(
    files: tuple[Path, Path], fake
) -> None:
    fake(Fake())
    with pytest.raises(UsageFault, match="as built; give --tolerance"):
        verify(VerifyOptions(*files, device="cpu"), Quiet())
    verify(VerifyOptions(*files, device="cpu", tolerance=1e-3), Quiet()).require()


def test_a_plan_gets_batches_that_it_can_hold(files: tuple[Path, Path], fake) -> None:
    runner = Fake()
    fake(runner)
    sidecar(files[0], "fp16", most=3)
    found = verify(VerifyOptions(*files, device="cpu"), Quiet())
    assert found.batch == 3
    assert runner.batches == [3] * 5


def test_no_batch_is_smaller_than_a_plan_takes(
    files: tuple[Path, Path], fake, tmp_path: Path
) -> None:
    runner = Fake(error=0.5, row=3)
    fake(runner)
    sidecar(files[0], "fp16", most=4, least=4)
    x = np.random.default_rng(0).standard_normal((6, 6)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    found = verify(
        VerifyOptions(*files, data=tmp_path / "x.npz", device="cpu", batch=4), Quiet()
    )
    assert runner.batches == [4, 4]
    assert found.differences[0].samples == 6, "the padding is not compared"
    found = verify(VerifyOptions(*files, device="cpu", limit=3), Quiet())
    assert runner.batches == [4, 4, 4]
    assert found.differences[0].samples == 3
    assert not found.failures, "the one wrong row is padding"


def test_one_wrong_row_of_a_batch_is_seen(files: tuple[Path, Path], fake) -> None:
    fake(Fake(error=0.5, row=7))
    sidecar(files[0], "fp16")
    found = verify(VerifyOptions(*files, device="cpu"), Quiet())
    assert found.differences[0].samples == 16
    assert found.failures


def test_the_narrower_float_holds_the_seeded_inputs_exactly() -> None:
    wide, narrow = (TensorSpec(f"f{n}", ("n", 2), f"float{n}") for n in (32, 16))
    for first, second in ((wide, narrow), (narrow, wide)):
        (shared,) = _seeded([(first, second)], 3, 1, samples=3)
        a, b = shared.a[first.name], shared.b[second.name]
        assert {str(a.dtype), str(b.dtype)} == {"float32", "float16"}
        assert np.array_equal(a, b)
        assert a.std() > 0.1
    kinds = [TensorSpec(k, ("n", 300), k) for k in ("uint8", "bool", "int64")]
    (shared,) = _seeded([(s, s) for s in kinds], 2, 1, samples=2)
    assert (shared.a["uint8"].min(), shared.a["uint8"].max()) == (0, 255)
    assert 0.4 < shared.a["bool"].mean() < 0.6
    assert shared.a["int64"].any()
