"""vntools bench beyond one batch: sweeps, trtexec's files and defaults, side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result

from vntools.base.errors import UsageFault
from vntools.bench.devices import Device
from vntools.pipeline.bench import Artifact
from vntools.pipeline.listener import Mute
from vntools.pipeline.peak import LimitOptions
from vntools.pipeline.sweep import Floors

Invoke = Callable[..., Result]
CPU = ("--device", "cpu", "--warm-up", "1", "--quiet")
QUICK = (*CPU, "--duration", "0.05")


def test_a_sweep_has_a_row_for_each_batch(work: Path, invoke: Invoke) -> None:
    result = invoke("bench", "net.onnx", "--batch", "1,4", *QUICK)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[1].split()[:3] == ["batch", "median", "ms"]
    assert [line.split()[0] for line in lines[2:4]] == ["1", "4"]
    found = json.loads(invoke("bench", "net.onnx", "--batch", "1,4", *QUICK, "--json").stdout)
    assert [m["batch"] for m in found["measurements"]] == [1, 4]
    assert all("samples" not in m for m in found["measurements"])


def test_the_kind_of_a_file_is_told_by_its_bytes(work: Path, invoke: Invoke) -> None:
    backends = [
        json.loads(invoke("bench", name, *QUICK, "--json").stdout)["engine"]["backend"]
        for name in ("net.onnx", "net.pth")
    ]
    assert backends == ["onnxruntime-cpu", "pytorch-cpu"]


def test_trtexecs_files(work: Path, invoke: Invoke) -> None:
    files = ("--exportTimes", "times.json", "--export-profile", "profile.json")
    result = invoke(
        "bench", "net.onnx", *QUICK, *files, "--dumpProfile", "--samples", "--json"
    )
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    times = json.loads((work / "times.json").read_text())
    assert [t["latencyMs"] for t in times] == found["samples"]["latency_ms"]
    count, *layers = json.loads((work / "profile.json").read_text())
    assert count == {"count": 20}
    assert sum(layer["percentage"] for layer in layers) == pytest.approx(100)
    assert [layer["name"] for layer in found["layers"]] == [layer["name"] for layer in layers]


def test_a_file_that_is_not_ours_is_kept(work: Path, invoke: Invoke) -> None:
    (work / "times.json").write_text("mine")
    words = ("bench", "net.onnx", *QUICK, "--export-times", "times.json")
    assert invoke(*words).exit_code == 73
    assert (work / "times.json").read_text() == "mine"
    assert invoke(*words, "--force").exit_code == 0


def test_limits_give_a_floor(work: Path, invoke: Invoke) -> None:
    words = ("bench", "net.onnx", *QUICK, "--peak", "0.1", "--bandwidth", "10")
    found = json.loads(invoke(*words, "--json").stdout)
    floor = found["floor"]
    assert floor["binds"] in ("memory", "compute")
    assert floor["median_over_floor"] == pytest.approx(
        found["latency_ms"]["median"] / floor["floor_ms"]
    )
    assert "floor of the network" in invoke(*words).stdout
    assert "over floor" in invoke(*words, "--batch", "1,2").stdout


def test_a_floor_of_a_plan_needs_its_graph(work: Path) -> None:
    def floors() -> Floors:
        limit = LimitOptions(peak_tflops=1.0, bandwidth_gb_s=1.0)
        runner: Any = None  # is asked for its GPU where no limit is given
        return Floors(Artifact(engine=Path("net.plan")), limit, runner, Mute())

    assert floors().of(1)
    Path("net.onnx").unlink()
    with pytest.raises(UsageFault, match="graph") as e:
        floors().of(1)
    assert e.value.code == "bench.limit"


@pytest.mark.parametrize("on_gpu", [False, True])
def test_limits_are_measured_where_the_runner_is(
    work: Path, monkeypatch: pytest.MonkeyPatch, on_gpu: bool
) -> None:
    asked: list[str] = []
    device = Device("here", 1.0, {"fp32": 1.0}, "")
    runner: Any = SimpleNamespace(clock=SimpleNamespace(on_gpu=on_gpu), details={})
    monkeypatch.setattr("vntools.pipeline.peak.gpu_count", lambda: int(not on_gpu))
    monkeypatch.setattr(
        "vntools.pipeline.peak.measure_peak", lambda where, _: asked.append(where) or device
    )
    artifact = Artifact(onnx=work / "net.onnx")
    assert Floors(artifact, LimitOptions(measure="auto"), runner, Mute()).of(1)
    assert asked == ["cuda" if on_gpu else "cpu"]


def test_layers_have_floors(work: Path, invoke: Invoke) -> None:
    words = ("--dump-profile", "--peak", "0.1", "--bandwidth", "10")
    result = invoke("bench", "net.onnx", *QUICK, *words, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    known = sum(layer["floor_ms"] or 0 for layer in found["layers"])
    assert known == pytest.approx(found["floor"]["layered_ms"], rel=0.3)


def test_noise_and_time_limit(work: Path, invoke: Invoke) -> None:
    words = ("--max-noise", "0.0001%", "--time-limit", "0.1")
    result = invoke("bench", "net.onnx", *QUICK, *words)
    assert result.exit_code == 0, result.stderr
    assert "Ended: time limit reached" in result.stdout
    found = json.loads(invoke("bench", "net.onnx", *QUICK, *words, "--json").stdout)
    warned = [w["message"] for w in found["warnings"] if w["code"] == "bench.measurement"]
    assert any("time limit" in text for text in warned)


def test_streams_on_a_cpu(work: Path, invoke: Invoke) -> None:
    result = invoke("bench", "net.onnx", *QUICK, "--infStreams", 2)
    assert result.exit_code == 0, result.stderr
    assert "2 streams" in result.stdout.splitlines()[0]


def test_side_by_side(work: Path, invoke: Invoke) -> None:
    words = ("bench", "net.onnx", "--against", "training.onnx", "net.onnx", *CPU)
    result = invoke(*words, "--duration", "0.4", "--same", "5%", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    names = [c["name"] for c in found["contenders"]]
    assert names == ["net.onnx", "training.onnx", "net.onnx (2)"]
    assert found["same"] == 0.05


def test_slower_fails_after_the_result(work: Path, invoke: Invoke) -> None:
    words = ("--duration", "0.4", "--fail-if", "slower", "--json")
    small, large = ("net.onnx", "--batch", 1), ("training.onnx", "--batch", 1)
    slower = invoke("bench", *large, "--against", small[0], *CPU, *words)
    assert slower.exit_code == 1
    found = json.loads(slower.stdout)
    assert found["error"]["code"] == "bench.slower"
    assert found["contenders"][1]["relation"]["verdict"] == "faster"
    assert invoke("bench", *small, "--against", large[0], *CPU, *words).exit_code == 0


def test_results_of_two_runs(work: Path, invoke: Invoke) -> None:
    for name in ("a.json", "b.json"):
        Path(name).write_text(invoke("bench", "net.onnx", *QUICK, "--json").stdout)
    result = invoke("bench", "a.json", "--against", "b.json", "--same", "90%", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert set(found["results"]) == {"a.json", "b.json"}
    relation = found["relations"]["b.json"]
    assert relation["low"] <= relation["ratio"] <= relation["high"]

    slow = json.loads(Path("a.json").read_text())
    times = slow["latency_ms"]
    slow["latency_ms"] |= {
        "median": 9 * times["median"],
        "median_interval": [9 * ms for ms in times["median_interval"]],
    }
    Path("slow.json").write_text(json.dumps(slow))
    words = ("bench", "slow.json", "--against", "b.json", "--fail-if", "slower")
    result = invoke(*words)
    assert result.exit_code == 1
    assert "error[bench.slower]" in result.stderr
    assert "faster" in result.stdout

    slow["environment"]["versions"]["numpy"] = "0"
    Path("slow.json").write_text(json.dumps(slow))
    result = invoke(*words)
    assert result.exit_code == 2
    assert "error[bench.unlike]" in result.stderr
    assert "versions.numpy" in result.stderr

    for more in (("--onnx", "a.json"), ("--export-times", "t"), ("--report", "r.html")):
        result = invoke("bench", "a.json", "--against", "b.json", *more)
        assert result.exit_code == 2
        assert f"results do not go with {more[0]}" in result.stderr
    assert not Path("r.html").exists()

    Path("slow.json").write_text("{}")
    result = invoke(*words)
    assert result.exit_code == 65
    assert "'slow.json'" in result.stderr
    assert "error[bench.record]" in result.stderr


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["net.json", "--against", "net.onnx"], "bench.against"),
        (["net.onnx", "net.pth"], "bench.artifact"),
        (["net.onnx", "--fail-if", "slower"], "bench.against"),
        (["net.onnx", "--against", "net.pth", "--batch", "1,2"], "bench.against"),
        (["net.onnx", "--against", "net.pth", "--export-times", "t.json"], "bench.against"),
        (["net.onnx", "--batch", "1,2", "--export-times", "t.json"], "bench.files"),
        (["net.onnx", "--export-layer-info", "t.json"], "bench.layer_info"),
        (["net.pth", "--export-profile", "t.json"], "bench.profile"),
        (["net.pth", "--streams", "2"], "bench.streams"),
        (["net.onnx", "--compat", "trtexec10"], "bench.transfers"),
        (["net.onnx", "--max-noise", "0"], "bench.options"),
        (["net.onnx", "--batch", "0"], "bench.options"),
        (["net.onnx", "--batch", "1,0"], "bench.options"),
        (["net.onnx", "--peak", "1"], "limit.options"),
        (["net.onnx", "--peak", "nan", "--bandwidth", "1"], "limit.options"),
        (["net.onnx", "--peak", "1", "--bandwidth", "inf"], "limit.options"),
        (["net.onnx", "--time-limit", "inf"], "bench.options"),
        (["net.onnx", "--time-limit", "nan"], "bench.options"),
        (["net.onnx", "--against", "net.pth", "--same", "nan"], "usage"),
        (["net.onnx", "--against", "net.pth", "--same=-1%"], "usage"),
        (["net.onnx", "--runner", "torch"], "bench.runner"),
        (["net.onnx@opnvino"], "bench.runner"),
        (["net.onnx", "--suite", "table1"], "bench.suite"),
        (["net.onnx", "--device-dir", "d"], "bench.suite"),
        (["--suite", "table1", "--device-dir", "d", "--dump-profile"], "bench.suite"),
        (["--suite", "table1", "--device-dir", "d", "--onnx", "net.onnx"], "bench.suite"),
        (["--suite", "table1", "--device-dir", "d", "--runner", "openvino"], "bench.suite"),
        (["--suite", "table1", "--device-dir", "d", "--batch", "1,2"], "bench.suite"),
        (["--suite", "table1", "--device-dir", "d", "--fail-if", "slower"], "bench.suite"),
        (["net.onnx", "--against", "net.pth", "--limit", "t4"], "bench.against"),
    ],
)
def test_what_cannot_be_meant(work: Path, invoke: Invoke, words: list[str], code: str) -> None:
    result = invoke("bench", *words, *QUICK)
    assert result.exit_code == 2, result.stderr
    assert f"[{code}]" in result.stderr
    assert not (work / "t.json").exists()


def test_trtexec_10_can_be_had_in_parts(work: Path, invoke: Invoke) -> None:
    result = invoke("bench", "net.onnx", "--compat", "trtexec10", "--noDataTransfers", *QUICK)
    assert result.exit_code == 0, result.stderr


@pytest.mark.gpu
def test_trtexec_10_on_a_gpu(work: Path, invoke: Invoke) -> None:
    result = invoke("bench", "net.plan", "--compat", "trtexec10", "--duration", "0.1")
    header = result.stdout.splitlines()[0]
    assert "CUDA graph off, blocking wait, transfers included" in header


@pytest.mark.gpu
def test_a_plan_gives_every_file(work: Path, invoke: Invoke) -> None:
    files = ("--export-times", "t.json", "--export-profile", "p.json")
    files += ("--export-layer-info", "l.json", "--streams", "2")
    result = invoke("bench", "net.plan", "--duration", "0.1", *files)
    assert result.exit_code == 0, result.stderr
    assert all(
        json.loads((work / name).read_text()) for name in ("t.json", "p.json", "l.json")
    )
