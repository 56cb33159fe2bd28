"""The paper's table on small networks: made once, measured side by side, failures as rows."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.networks import narrow
from vntools.base.errors import CannotCreate, Unavailable
from vntools.bench.measurement import BenchOptions
from vntools.models.arch import ARCHITECTURES
from vntools.models.baselines import BASELINES
from vntools.pipeline import suite
from vntools.pipeline.listener import Mute
from vntools.pipeline.peak import LimitOptions
from vntools.pipeline.suite import SuiteOptions, run_suite
from vntools.report.suite import suite_text

QUICK = BenchOptions(warm_up_ms=0, duration_s=0.1, iterations=2)
SMALL = {
    name: replace(narrow(name), name=f"small_{name}", published=ARCHITECTURES[name].published)
    for name in ("vanillanet_5", "vanillanet_6")
}


@pytest.fixture
def options(tmp_path: Path) -> SuiteOptions:
    return SuiteOptions(
        tmp_path / "suite", QUICK, device="cpu", architectures=SMALL, baselines=False
    )


def test_every_network_is_made_measured_and_kept(options: SuiteOptions) -> None:
    first = run_suite(options, Mute())
    assert [row.name for row in first.rows] == list(SMALL)
    assert all(row.median_ms and not row.why for row in first.rows)
    five = first.rows[0]
    assert five.published == ARCHITECTURES["vanillanet_5"].published
    assert five.parameters_m == SMALL["vanillanet_5"].deploy_parameters() / 1e6
    assert five.gmacs == SMALL["vanillanet_5"].deploy_macs() / 1e9
    files = {p.name: p.stat().st_mtime_ns for p in options.folder.iterdir()}
    assert set(files) == {"vanillanet_5.onnx", "vanillanet_6.onnx"}, "no leftovers"
    run_suite(options, Mute())
    assert {p.name: p.stat().st_mtime_ns for p in options.folder.iterdir()} == files
    (options.folder / "vanillanet_6.onnx").unlink()
    assert len(run_suite(options, Mute()).rows) == 2, "what is missing is made again"
    assert (options.folder / "vanillanet_6.onnx").exists()


def test_files_of_ones_own_and_what_fails(options: SuiteOptions) -> None:
    run_suite(options, Mute())
    good = options.folder / "vanillanet_5.onnx"
    (options.folder / "mine.onnx").write_bytes(good.read_bytes())
    (options.folder / "resnet18.onnx").write_bytes(good.read_bytes())
    (options.folder / "broken.onnx").write_bytes(b"no model")
    found = {row.name: row for row in run_suite(options, Mute()).rows}
    assert set(found) == {*SMALL, "mine", "broken", "ResNet-18"}
    assert found["broken"].median_ms is None
    assert "not an ONNX model" in found["broken"].why
    assert found["mine"].median_ms
    assert found["mine"].published is None
    eighteen = found["ResNet-18"].published
    assert eighteen is not None
    assert (eighteen.latency_ms, eighteen.tensorrt_fp16_a100_ms) == (3.12, 0.28)


def test_floors_where_limits_are_given(options: SuiteOptions) -> None:
    assert all(row.floor_ms is None for row in run_suite(options, Mute()).rows)
    limit = LimitOptions(peak_tflops=1.0, bandwidth_gb_s=100.0)
    rows = run_suite(replace(options, limit=limit), Mute()).rows
    assert all(row.floor_ms and row.floor_ms > 1e-5 for row in rows)


def test_one_network_alone(options: SuiteOptions) -> None:
    one = replace(options, architectures={"vanillanet_5": SMALL["vanillanet_5"]})
    found = run_suite(one, Mute())
    assert found.comparison is None
    assert found.rows[0].median_ms


def test_the_table(options: SuiteOptions) -> None:
    options.folder.mkdir()
    (options.folder / "broken.onnx").write_bytes(b"no model")
    text = suite_text(run_suite(replace(options, threads=1), Mute())).splitlines()
    assert "1 threads" in text[0]
    assert text[0].startswith("onnxruntime-cpu ")
    assert "rounds in random order" in text[1]
    assert text[2].split()[:3] == ["network", "depth", "parameters"]
    line = next(t for t in text if t.startswith("vanillanet_5 "))
    assert "1.61" in line
    assert any("broken" in t and "not an ONNX model" in t for t in text)


def test_a_folder_that_cannot_be_made(options: SuiteOptions) -> None:
    options.folder.write_text("a file")
    with pytest.raises(CannotCreate) as e:
        run_suite(options, Mute())
    assert e.value.code == "suite.folder"


def test_without_timm_a_baseline_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(Unavailable, match="timm") as e:
        suite._make_baseline("resnet18", tmp_path / "resnet18.onnx")
    assert e.value.code == "suite.timm"
    assert not list(tmp_path.iterdir())


def test_published_rows() -> None:
    names = [b.timm for b in BASELINES]
    assert len(set(names)) == len(names)
    for baseline in BASELINES:
        assert baseline.published.latency_ms > 3
        assert 60 < baseline.published.top1 < 90
