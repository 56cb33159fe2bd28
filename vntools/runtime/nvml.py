"""What a GPU does while it is measured: clocks, power, temperature and throttling, by NVML.

NVML is part of the driver (libnvidia-ml.so.1) and called through ctypes. A reading costs some
tens of microseconds on the host and nothing on the GPU; a thread takes ten of them a second.

Source: NVIDIA NVML API Reference Guide, nvml.h.
"""

from __future__ import annotations

__all__ = ["Reading", "Telemetry", "slowdown", "watch"]

import ctypes
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from vntools.base.errors import Unavailable
from vntools.runtime.cuda import library as cuda_library

_PERIOD_S = 0.1
_SM_CLOCK, _MEMORY_CLOCK, _CORE_TEMPERATURE = 1, 2, 0  # NVML_CLOCK_*, NVML_TEMPERATURE_GPU
_REASONS = {  # nvmlClocksEventReason*, nvmlClocksThrottleReason*
    0x01: "idle",
    0x02: "application clocks",
    0x04: "software power cap",
    0x08: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x100: "display clocks",
}
# Clocks that somebody chose are no throttling, and an idle GPU is not measured.
_CHOSEN = 0x01 | 0x02 | 0x100


@dataclass(frozen=True)
class Reading:
    """A GPU at one moment; None is what it does not tell.

    Attributes:
        at_ns: of ``time.perf_counter_ns``.
        reasons: bits of nvmlClocksEventReasons, why its clocks are not higher.
    """

    at_ns: int
    sm_mhz: int | None
    memory_mhz: int | None
    power_w: float | None
    temperature_c: int | None
    reasons: int | None


def slowdown(reading: Reading) -> tuple[str, ...]:
    """Why the GPU was throttled, in words; empty where it was not, or did not tell."""
    bits = (reading.reasons or 0) & ~_CHOSEN
    return tuple(text for bit, text in _REASONS.items() if bits & bit)


@dataclass(frozen=True)
class Telemetry:
    """What was read while a measurement lasted.

    Attributes:
        facts: name, UUID, driver, power limit, highest clocks; empty where NVML is absent.
        readings: in the order of time; more come while :func:`watch` lasts.
        absent: why there are none, or an empty text.
    """

    facts: dict[str, Any] = field(default_factory=dict[str, Any])
    readings: list[Reading] = field(default_factory=list[Reading])
    absent: str = ""

    def to_record(self) -> dict[str, Any]:
        """JSON-ready: facts, the range of every reading, every reason for throttling seen."""
        if self.absent:
            return {"nvml": self.absent}
        readings = list(self.readings)
        ranges = {
            name: _range([getattr(r, name) for r in readings])
            for name in ("sm_mhz", "memory_mhz", "power_w", "temperature_c")
        }
        throttle = sorted({text for r in readings for text in slowdown(r)})
        return {
            "nvml": f"{len(readings)} readings",
            **self.facts,
            **ranges,
            "throttle": throttle,
        }


def _range(values: list[float | None]) -> dict[str, float] | None:
    """Least, median and greatest of what was told; None where nothing was."""
    told = sorted(v for v in values if v is not None)
    if not told:
        return None
    return {"min": told[0], "median": told[len(told) // 2], "max": told[-1]}


@contextmanager
def watch(
    *, on_gpu: bool, open_device: Callable[[], _Device] | None = None
) -> Generator[Telemetry]:
    """Read the GPU ten times a second while the block lasts; at least twice.

    Args:
        on_gpu: otherwise there is nothing to read.
        open_device: the GPU, by default CUDA's first.
    """
    if not on_gpu:
        yield Telemetry(absent="not asked: measured on a CPU")
        return
    try:
        device = (open_device or _Device)()
    except Unavailable as e:
        yield Telemetry(absent=f"absent: {e.message}")
        return
    telemetry = Telemetry(device.facts(), [device.read()])
    ended = threading.Event()

    def read() -> None:
        while not ended.wait(_PERIOD_S):
            telemetry.readings.append(device.read())

    thread = threading.Thread(target=read, name="vntools-nvml", daemon=True)
    thread.start()
    try:
        yield telemetry
    finally:
        ended.set()
        thread.join()
        telemetry.readings.append(device.read())
        device.close()


class _Device:
    """CUDA's first GPU as NVML knows it; the two count GPUs differently.

    Raises:
        Unavailable: ``gpu.nvml``: no NVML, or it does not know the GPU.
    """

    def __init__(self, nvml: Any = None, cuda: Any = None) -> None:
        try:
            self._nvml = nvml or ctypes.CDLL("libnvidia-ml.so.1")
        except OSError as e:
            raise Unavailable("gpu.nvml", "no NVML (libnvidia-ml.so.1)") from e
        bus = ctypes.create_string_buffer(32)
        device = ctypes.c_int()
        cuda = cuda or cuda_library()
        cuda.cuInit(ctypes.c_uint(0))
        if cuda.cuDeviceGet(ctypes.byref(device), 0) or cuda.cuDeviceGetPCIBusId(
            bus, 32, device
        ):
            raise Unavailable("gpu.nvml", "CUDA does not say where its GPU is")
        self._handle = ctypes.c_void_p()
        status = self._nvml.nvmlInit_v2() or self._nvml.nvmlDeviceGetHandleByPciBusId_v2(
            bus, ctypes.byref(self._handle)
        )
        if status:
            raise Unavailable("gpu.nvml", f"NVML refuses with status {status}")

    def close(self) -> None:
        """Let go of NVML."""
        self._nvml.nvmlShutdown()

    def facts(self) -> dict[str, Any]:
        """What does not change; JSON-ready."""
        power_mw = self._number("nvmlDeviceGetEnforcedPowerLimit")
        return {
            "name": self._text("nvmlDeviceGetName", self._handle),
            "uuid": self._text("nvmlDeviceGetUUID", self._handle),
            "driver": self._text("nvmlSystemGetDriverVersion"),
            "power_limit_w": None if power_mw is None else power_mw / 1000,
            "sm_mhz_highest": self._number("nvmlDeviceGetMaxClockInfo", _SM_CLOCK),
            "memory_mhz_highest": self._number("nvmlDeviceGetMaxClockInfo", _MEMORY_CLOCK),
        }

    def read(self) -> Reading:
        """The GPU now."""
        at_ns = time.perf_counter_ns()
        power_mw = self._number("nvmlDeviceGetPowerUsage")
        return Reading(
            at_ns,
            self._number("nvmlDeviceGetClockInfo", _SM_CLOCK),
            self._number("nvmlDeviceGetClockInfo", _MEMORY_CLOCK),
            None if power_mw is None else power_mw / 1000,
            self._number("nvmlDeviceGetTemperature", _CORE_TEMPERATURE),
            self._number("nvmlDeviceGetCurrentClocksThrottleReasons", wide=True),
        )

    def _number(self, function: str, *which: int, wide: bool = False) -> int | None:
        value = ctypes.c_ulonglong() if wide else ctypes.c_uint()
        ask = getattr(self._nvml, function, None)  # drivers come and go, and functions too
        if ask is None or ask(self._handle, *which, ctypes.byref(value)):
            return None
        return int(value.value)

    def _text(self, function: str, *device: ctypes.c_void_p) -> str | None:
        text = ctypes.create_string_buffer(96)
        status = getattr(self._nvml, function)(*device, text, ctypes.c_uint(96))
        return None if status else text.value.decode(errors="replace")
