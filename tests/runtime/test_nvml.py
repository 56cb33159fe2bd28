"""NVML by ctypes, on a library that is not there, and on one that is made here."""

from __future__ import annotations

import ctypes
import time
from typing import Any, ClassVar

import pytest

from vntools.base.errors import Unavailable
from vntools.runtime import nvml
from vntools.runtime.nvml import Reading, slowdown, watch


class FakeNvml:
    """Answers as nvml.h has it; ``failing`` functions return NVML_ERROR_NOT_SUPPORTED."""

    numbers: ClassVar[dict[tuple[Any, ...], int]] = {
        ("nvmlDeviceGetClockInfo", 1): 1980,
        ("nvmlDeviceGetClockInfo", 2): 2619,
        ("nvmlDeviceGetMaxClockInfo", 1): 2000,
        ("nvmlDeviceGetMaxClockInfo", 2): 2620,
        ("nvmlDeviceGetTemperature", 0): 54,
        ("nvmlDeviceGetPowerUsage",): 312_500,
        ("nvmlDeviceGetEnforcedPowerLimit",): 700_000,
        ("nvmlDeviceGetCurrentClocksThrottleReasons",): 0x20 | 0x01,
    }
    texts: ClassVar[dict[str, bytes]] = {
        "nvmlDeviceGetName": b"NVIDIA H100 80GB HBM3",
        "nvmlDeviceGetUUID": b"GPU-7",
        "nvmlSystemGetDriverVersion": b"580.1",
    }

    def __init__(self, *failing: str) -> None:
        self.failing = failing
        self.open = 0

    def __getattr__(self, function: str) -> Any:
        def call(*arguments: Any) -> int:
            if function in self.failing:
                return 3
            if function in self.texts:
                arguments[-2].value = self.texts[function]
                return 0
            device, *which, out = arguments
            assert device.value == 77
            out._obj.value = self.numbers[function, *which]
            return 0

        return call

    def nvmlInit_v2(self) -> int:  # noqa: N802
        self.open += 1
        return 0

    def nvmlShutdown(self) -> int:  # noqa: N802
        self.open -= 1
        return 0

    def nvmlDeviceGetHandleByPciBusId_v2(self, bus: Any, handle: Any) -> int:  # noqa: N802
        if bus.value != b"0000:81:00.0":
            return 6
        handle._obj.value = 77
        return 0


class FakeCuda:
    bus = b"0000:81:00.0"

    def cuInit(self, flags: Any) -> int:  # noqa: N802
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:  # noqa: N802
        device._obj.value = 5
        return 0 if ordinal == 0 else 101

    def cuDeviceGetPCIBusId(self, bus: Any, size: int, device: ctypes.c_int) -> int:  # noqa: N802
        assert device.value == 5
        bus.value = self.bus
        return 0


def opened(fake: FakeNvml) -> Any:
    return lambda: nvml._Device(fake, FakeCuda())


def test_readings_are_taken_while_the_block_lasts():
    fake = FakeNvml()
    with watch(on_gpu=True, open_device=opened(fake)) as telemetry:
        time.sleep(0.35)
        assert fake.open == 1
    assert fake.open == 0
    assert 3 <= len(telemetry.readings) <= 6
    times = [r.at_ns for r in telemetry.readings]
    assert times == sorted(times)
    first = telemetry.readings[0]
    assert (first.sm_mhz, first.memory_mhz, first.power_w, first.temperature_c) == (
        1980,
        2619,
        312.5,
        54,
    )
    record = telemetry.to_record()
    assert record["driver"] == "580.1"
    assert record["power_limit_w"] == 700
    assert record["power_w"] == {"min": 312.5, "median": 312.5, "max": 312.5}
    assert record["throttle"] == ["software thermal slowdown"]


def test_what_a_gpu_does_not_tell_is_none():
    fake = FakeNvml("nvmlDeviceGetPowerUsage", "nvmlDeviceGetCurrentClocksThrottleReasons")
    with watch(on_gpu=True, open_device=opened(fake)) as telemetry:
        pass
    assert len(telemetry.readings) == 2
    assert telemetry.readings[0].power_w is None
    assert slowdown(telemetry.readings[0]) == ()
    assert telemetry.to_record()["power_w"] is None


def test_a_reading_ends_with_the_block_though_it_fails():
    fake = FakeNvml()
    with (
        pytest.raises(ZeroDivisionError),
        watch(on_gpu=True, open_device=opened(fake)) as telemetry,
    ):
        _ = 1 / 0
    assert fake.open == 0
    assert len(telemetry.readings) == 2


def test_without_nvml_the_record_says_so(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> Any:
        raise OSError(name)

    monkeypatch.setattr(nvml.ctypes, "CDLL", missing)
    with watch(on_gpu=True) as telemetry:
        pass
    assert telemetry.to_record() == {"nvml": "absent: no NVML (libnvidia-ml.so.1)"}
    assert telemetry.facts == {}


def test_a_gpu_that_nvml_does_not_know(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(FakeCuda, "bus", b"0000:82:00.0")
    with pytest.raises(Unavailable) as e:
        opened(FakeNvml())()
    assert e.value.code == "gpu.nvml"


def test_a_cpu_is_not_read():
    with watch(on_gpu=False) as telemetry:
        pass
    assert "CPU" in telemetry.to_record()["nvml"]


@pytest.mark.parametrize(
    ("reasons", "said"),
    [(0, 0), (None, 0), (0x103, 0), (0x04, 1), (0x08 | 0x40 | 0x80, 3), (0x20 | 0x01, 1)],
)
def test_slowdowns_in_words(reasons: int | None, said: int):
    assert len(slowdown(Reading(0, None, None, None, None, reasons))) == said


@pytest.mark.gpu
def test_a_real_gpu_is_read():
    with watch(on_gpu=True) as telemetry:
        time.sleep(0.25)
    assert telemetry.absent == ""
    assert telemetry.facts["driver"]
    assert all((r.sm_mhz or 0) > 0 for r in telemetry.readings)
