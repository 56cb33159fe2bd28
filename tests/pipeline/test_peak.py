"""Limits as given, by name and measured."""

from __future__ import annotations

import pytest
import torch

from vntools.base.errors import Unavailable, UsageFault
from vntools.pipeline import peak
from vntools.pipeline.peak import LimitOptions, limit_of, measure_peak


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that take no time."""
    monkeypatch.setattr(peak, "_SIDE", {"cpu": 256, "cuda": 256})
    monkeypatch.setattr(peak, "_COPY_BYTES", 1 << 20)
    monkeypatch.setattr(peak, "_LEAST_S", 0.0)


@pytest.mark.usefixtures("small")
def test_the_cpu_is_measured() -> None:
    before = torch.get_float32_matmul_precision()
    device = measure_peak("cpu", ["int8"])
    assert device.name.endswith(", measured")
    assert set(device.peak_tflops) == {"fp32", "fp16", "int8"}
    assert all(0 < tflops < 1000 for tflops in device.peak_tflops.values())
    assert 0.01 < device.bandwidth_gb_s < 100_000
    assert torch.get_float32_matmul_precision() == before


def test_operations_and_bytes_over_the_least_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "_SIDE", {"cpu": 32})
    monkeypatch.setattr(peak, "_COPY_BYTES", 1 << 20)
    monkeypatch.setattr(peak, "_least_s", lambda _device, call: (call(), 1e-3)[1])
    device = measure_peak("cpu")
    assert device.peak_tflops == {"fp32": pytest.approx(2 * 32**3 / 1e-3 / 1e12)}
    assert device.bandwidth_gb_s == pytest.approx(2 * (1 << 20) / 1e-3 / 1e9)


@pytest.mark.gpu
def test_a_gpu_is_measured_below_what_its_vendor_says() -> None:
    from vntools.bench.devices import device_of_gpu

    device = measure_peak("cuda", ["fp16", "int8"])
    known = device_of_gpu(torch.cuda.get_device_name())
    if known is not None:
        assert 0.4 < device.bandwidth_gb_s / known.bandwidth_gb_s < 1.05
        assert 0.3 < device.peak_of("fp16") / known.peak_of("fp16") < 1.05


def test_what_is_not_measured_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageFault, match="fp8") as e:
        measure_peak("cpu", ["fp8"])
    assert e.value.code == "limit.measure"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Unavailable, match="no GPU"):
        measure_peak("cuda")


def test_limits_as_given_and_by_name() -> None:
    given = limit_of(LimitOptions(peak_tflops=2, bandwidth_gb_s=3), ["int8"])
    assert given is not None
    assert (given.peak_of("int8"), given.peak_of("fp32"), given.bandwidth_gb_s) == (2, 2, 3)
    named = limit_of(LimitOptions("t4"), ["int8"])
    assert named is not None
    assert named.name == "T4"
    assert limit_of(LimitOptions(), ["int8"]) is None


@pytest.mark.parametrize("gpus", [0, 1])
def test_auto_measures_a_gpu_where_one_answers(
    monkeypatch: pytest.MonkeyPatch, gpus: int
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(peak, "gpu_count", lambda: gpus)
    monkeypatch.setattr(peak, "measure_peak", lambda device, _: asked.append(device))
    limit_of(LimitOptions(measure="auto"), ["fp32"])
    assert asked == [("cpu", "cuda")[gpus]]


@pytest.mark.parametrize(
    "options",
    [
        {"peak_tflops": 1},
        {"bandwidth_gb_s": 1},
        {"peak_tflops": 0, "bandwidth_gb_s": 1},
        {"device": "t4", "measure": "cpu"},
        {"device": "t4", "peak_tflops": 1, "bandwidth_gb_s": 1},
    ],
)
def test_limits_that_cannot_be_meant(options: dict[str, object]) -> None:
    with pytest.raises(UsageFault) as caught:
        LimitOptions(**options)  # pyright: ignore[reportArgumentType] - each of its field's type
    assert caught.value.code == "limit.options"
