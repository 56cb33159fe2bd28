"""Which device's limits to hold a measurement against: by name, as given, or measured here."""

from __future__ import annotations

__all__ = ["LimitOptions", "limit_of", "measure_peak"]

import math
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass

from vntools.base.errors import TryLater, Unavailable, UsageFault
from vntools.base.provenance import host
from vntools.bench.devices import Device, device_named
from vntools.engine.backend import gpu_count

_COPY_BYTES = 256 << 20  # beyond every cache
_SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices
_LEAST_S, _LEAST_CALLS = 0.3, 5  # the quickest counts
_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8"}


@dataclass(frozen=True)
class LimitOptions:
    """Where the limits are from; at most one of the three.

    Attributes:
        device: a device by name.
        peak_tflops: as given, for every precision; with ``bandwidth_gb_s``.
        bandwidth_gb_s: as given; with ``peak_tflops``.
        measure: ``cpu``, ``cuda``, or ``auto`` (a GPU where one answers): what a large copy
            and large products achieve here.

    Raises:
        UsageFault: ``limit.options``.
    """

    device: str | None = None
    peak_tflops: float | None = None
    bandwidth_gb_s: float | None = None
    measure: str | None = None

    def __post_init__(self) -> None:
        given = (self.peak_tflops, self.bandwidth_gb_s)
        if (given[0] is None) != (given[1] is None):
            raise UsageFault("limit.options", "--peak and --bandwidth go together")
        if any(x is not None and not 0 < x < math.inf for x in given):
            raise UsageFault("limit.options", "a peak or a bandwidth is no number above 0")
        if sum(x is not None for x in (self.device, given[0], self.measure)) > 1:
            raise UsageFault(
                "limit.options",
                "limits are given twice",
                hint="give a device, or --peak and --bandwidth, or --measure-peak",
            )


def limit_of(options: LimitOptions, precisions: Iterable[str]) -> Device | None:
    """The device whose limits are asked for; None where none is.

    Args:
        options: what is asked for.
        precisions: which of them a measurement has to cover.

    Raises:
        VntoolsError: as :func:`device_named` and :func:`measure_peak`.
    """
    if options.device is not None:
        return device_named(options.device)
    if options.peak_tflops is not None and options.bandwidth_gb_s is not None:
        names: tuple[str, ...] = (*_DTYPES, "fp8", "fp4")
        peaks = dict.fromkeys(names, options.peak_tflops)
        return Device("as given", options.bandwidth_gb_s, peaks, "--peak and --bandwidth")
    if options.measure is not None:
        auto = "cuda" if gpu_count() else "cpu"
        return measure_peak(auto if options.measure == "auto" else options.measure, precisions)
    return None


def measure_peak(device: str, precisions: Iterable[str] = ("fp32",)) -> Device:
    """What a large copy and products of large square matrices achieve here, by PyTorch.

    What a library achieves stays below what the device can: a network may be quicker than the
    floor that follows, where it has better kernels or fits into a cache.

    Args:
        device: ``cpu`` or ``cuda``.
        precisions: of ``fp32`` (on a GPU as TF32 where it has that), ``fp16``, ``bf16`` and
            ``int8``. What comes instead of one is measured too, since it may be quicker.

    Raises:
        UsageFault: ``limit.measure``: products of a precision are not measured.
        Unavailable: ``gpu.none``.
        TryLater: ``gpu.memory``.
    """
    import torch

    wanted = {"fp32", *precisions} | ({"fp16"} if "int8" in precisions else set())
    if unknown := wanted - set(_DTYPES):
        raise UsageFault(
            "limit.measure",
            f"products of {', '.join(sorted(unknown))} are not measured",
            hint="give --peak and --bandwidth",
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise Unavailable("gpu.none", "PyTorch finds no GPU", hint="measure the CPU, or "
                          "run it on the target machine")  # fmt: skip
    name = torch.cuda.get_device_name() if device == "cuda" else str(host()["cpu"])
    try:
        with _tf32(device):
            peaks = {p: _product_tflops(device, p) for p in _DTYPES if p in wanted}
        bandwidth = _copy_gb_s(device)
    except torch.OutOfMemoryError as e:
        raise TryLater(
            "gpu.memory", "the GPU has too little free memory", hint="end other work on it"
        ) from e
    return Device(f"{name}, measured", bandwidth, peaks, f"measured by PyTorch on {device}")


def _product_tflops(device: str, precision: str) -> float:
    import torch

    side = _SIDE[device]
    a = torch.ones(side, side, dtype=getattr(torch, _DTYPES[precision]), device=device)
    b, multiply = a.clone().t(), torch.matmul
    if precision == "int8":
        # PyTorch has no public product of int8
        multiply = torch._int_mm  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    return 2 * side**3 / _least_s(device, lambda: multiply(a, b)) / 1e12


def _copy_gb_s(device: str) -> float:
    import torch

    source = torch.ones(_COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * _COPY_BYTES / _least_s(device, lambda: target.copy_(source)) / 1e9


def _least_s(device: str, call: Callable[[], object]) -> float:
    """The least time of a call, of at least five and 0.3 s of them."""
    import torch

    found: list[float] = []
    end = time.perf_counter() + _LEAST_S
    while len(found) < _LEAST_CALLS or time.perf_counter() < end:
        if device == "cuda":
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            stop.record()
            stop.synchronize()
            found.append(start.elapsed_time(stop) / 1e3)  # ms -> s
        else:
            begin = time.perf_counter()
            call()
            found.append(time.perf_counter() - begin)
    return min(found)


@contextmanager
def _tf32(device: str) -> Generator[None, None, None]:
    """Float32 products as TF32 on a GPU, as TensorRT has them unless told otherwise."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if device == "cuda" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
