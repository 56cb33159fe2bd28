"""Builds with TensorRT 10 and 11 without a GPU, by a scripted module in their place."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.engine.stand_in import ERROR, VERBOSE, WARNING, Script, inspector_json, stand_in
from vntools.base.artifacts import sha256_bytes
from vntools.base.errors import CheckFailed, InternalFault, Interrupted, TryLater
from vntools.engine.build import BuildOptions, build
from vntools.engine.precision import check_convolutions


def run(script: Script, version: str = "11.4.1", **options: Any) -> Any:
    return build(b"model", BuildOptions(stand_in(version, script), **options))


@pytest.mark.parametrize(("version", "flags"), [("10.0.1", 2), ("10.16.1", 2), ("11.4.1", 0)])
def test_strong_typing_is_asked_for_where_it_is_not_the_rule(version, flags):
    script = Script()
    built = run(script, version, opt_batch=2, mem_pool_size={"workspace": 1.5})
    assert script.seen["flags"] == flags
    assert (built.plan, built.record["version"]) == (b"a plan", version)
    assert script.seen["config"].profiling_verbosity == "detailed"
    assert script.seen["pool"] == ("workspace", 3 << 19)
    assert script.seen["shape"] == ("input", [1, 3, 8, 8], [2, 3, 8, 8], [8, 3, 8, 8])
    assert script.seen["inspected"] == ("input", [2, 3, 8, 8])
    assert built.record["inputs"][0]["dtype"] == "float16"


@pytest.mark.parametrize("version", ["10.16.1", "11.4.1"])
def test_the_inspector_feeds_the_gate(version):
    kernels = run(Script(), version).kernels
    assert check_convolutions({"stem": "fp16"}, kernels)[0].layer_type == "CaskConvolution"
    kernels = run(Script(inspector=inspector_json("Float")), version).kernels
    with pytest.raises(CheckFailed):
        check_convolutions({"stem": "fp16"}, kernels)


def test_an_inspector_that_tells_only_names():
    with pytest.raises(InternalFault) as caught:
        run(Script(inspector='{"Layers": ["stem"], "Bindings": []}'))
    assert caught.value.code == "build.kernels"


def test_warnings_are_told_and_the_first_recorded():
    says = [(WARNING, f"warning {i}") for i in range(5)]
    built = run(Script(says=(*says, (VERBOSE, "LayerType"))))
    assert built.warnings == tuple(f"warning {i}" for i in range(5))
    assert built.record["warnings"] == ["warning 0", "warning 1", "warning 2"]


def test_a_null_plan_ends_with_the_last_error():
    says = ((ERROR, "first"), (ERROR, "IBuilder: Error Code 2: (assertion)\n"), (VERBOSE, "x"))
    with pytest.raises(
        InternalFault, match=r"IBuilder: Error Code 2: \(assertion\)"
    ) as caught:
        run(Script(plan=None, says=says))
    assert (caught.value.code, caught.value.exit_status) == ("build.failed", 70)
    with pytest.raises(InternalFault, match="it logged no error"):
        run(Script(plan=None))


@pytest.mark.parametrize(
    "text",
    [
        "Error Code 10: Could not find any implementation for node stem.",
        "[virtualMemoryBuffer.cpp] Error Code 2: OutOfMemory (no further information)",
        "Error Code 1: Cuda Runtime (out of memory)",
    ],
)
def test_short_memory(text):
    with pytest.raises(TryLater, match="memory") as caught:
        run(Script(plan=None, says=((ERROR, text), (ERROR, "no plan"))))
    assert (caught.value.code, caught.value.exit_status) == ("gpu.memory", 75)


def test_an_error_that_tensorrt_survives_is_a_warning():
    says = ((WARNING, "a warning"), (ERROR, "Error Code 9: skipping tactic 0x1\n"))
    built = run(Script(says=says))
    assert built.plan == b"a plan"
    assert built.warnings == ("Error Code 9: skipping tactic 0x1\n", "a warning")
    assert built.record["warnings"] == ["a warning"]


def test_a_parser_that_raises():
    def parse(model: bytes) -> bool:
        raise RuntimeError("std::bad_cast")

    with pytest.raises(InternalFault, match="bad_cast") as caught:
        run(Script(parser=parse))
    assert caught.value.code == "build.failed"


def test_what_the_bindings_raise():
    error = RuntimeError("null pointer")
    with pytest.raises(InternalFault, match="null pointer") as caught:
        run(Script(raises=error))
    assert caught.value.__cause__ is error
    with pytest.raises(InternalFault, match="CUDA initialization failure"):
        run(Script(null=("builder",)))
    with pytest.raises(InternalFault, match="it logged no error"):
        run(Script(null=("context",)))


def test_a_cancelled_build_is_interrupted_and_nothing_else(tmp_path):
    cache = tmp_path / "t.cache"
    script = Script(says=((ERROR, "Could not find any implementation"),))
    options = BuildOptions(stand_in("11.4.1", script), timing_cache=cache)
    flag: list[int] = []
    script.before = lambda: flag.append(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught:
        build(b"model", options, cancelled=lambda: flag[-1] if flag else 0)
    assert caught.value.signum == signal.SIGTERM
    assert not cache.exists()


def test_a_plan_that_came_in_spite_of_the_signal_is_not_returned():
    asked: list[int] = []

    def cancelled() -> int:  # after the last step only
        asked.append(0)
        return signal.SIGINT if len(asked) > 4 else 0

    script = Script()
    script.before = lambda: asked.clear()
    options = BuildOptions(stand_in("11.4.1", script))
    with pytest.raises(Interrupted):
        build(b"model", options, cancelled=cancelled)


def test_an_exception_inside_tensorrt_is_no_reason_to_lose_the_first():
    def progress(phase: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    script = Script(raises=RuntimeError("later"))
    with pytest.raises(KeyboardInterrupt):
        build(b"model", BuildOptions(stand_in("10.16.1", script)), progress=progress)


def test_a_timing_cache_is_filled_and_used_again(tmp_path):
    cache = tmp_path / "t.cache"
    script = Script()
    first = run(script, timing_cache=cache)
    assert (first.warnings, first.record["timing_cache"]) == ((), None)
    assert cache.read_bytes() == b"timings"
    second = run(script, timing_cache=cache)
    assert (script.seen["cache"], script.seen["ignore_mismatch"]) == (b"timings", False)
    assert second.record["timing_cache"] == sha256_bytes(b"timings")
    assert [p.name for p in tmp_path.iterdir()] == ["t.cache"]


def test_a_file_that_is_no_timing_cache_stays_as_it_is(tmp_path):
    cache = tmp_path / "thesis.txt"
    cache.write_bytes(b"not timings")
    script = Script()
    built = run(script, timing_cache=cache)
    assert "not a timing cache of this TensorRT and GPU" in built.warnings[0]
    assert script.seen["cache"] == b""
    assert cache.read_bytes() == b"not timings"
    assert built.record["timing_cache"] is None


@pytest.mark.parametrize("kind", ["folder", "no folder", "refused"])
def test_a_timing_cache_that_cannot_be_used_is_a_warning(tmp_path, kind):
    path: Path = tmp_path if kind == "folder" else tmp_path / "none" / "t.cache"
    script = Script()
    if kind == "refused":
        script.takes_cache = lambda data: False
    built = run(script, timing_cache=path)
    assert built.plan == b"a plan"
    assert len(built.warnings) == 1
    assert "timing cache" in built.warnings[0]
