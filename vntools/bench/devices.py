"""What a device can do at most: bytes a second, and operations a second of each precision.

``devices.json`` holds the vendor's figures, each with its source: dense (never 2:4 sparse), at
the boost clock, and for FP16 and FP8 with the accumulator that is fastest, so that what
follows from them is a lower bound whatever a kernel accumulates in. Where a vendor publishes
sparse figures only, they are halved; Orin's FP16 is half its INT8 and its TF32 half its FP16,
as in A100.
"""

from __future__ import annotations

__all__ = ["Device", "device_named", "device_of_gpu", "devices"]

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from vntools.base.errors import UsageFault, quoted

# A device without units for a precision computes it in one of those behind it; float32 may be
# executed as TF32, which TensorRT does unless told otherwise.
_WIDER = {
    "fp32": ("tf32",),
    "fp16": ("tf32", "fp32"),
    "bf16": ("tf32", "fp32"),
    "fp8": ("fp16", "tf32", "fp32"),
    "int8": ("fp16", "tf32", "fp32"),
}


@dataclass(frozen=True)
class Device:
    """The limits of a device.

    Attributes:
        name: as a user gives it.
        bandwidth_gb_s: 10^9 bytes a second, to and from memory together.
        peak_tflops: 10^12 operations a second (a multiply-add is two) by precision: ``fp32``,
            ``tf32``, ``fp16``, ``bf16``, ``fp8``, ``int8``.
        source: where the figures are from.
        gpu: names by which the driver reports it.
    """

    name: str
    bandwidth_gb_s: float
    peak_tflops: Mapping[str, float]
    source: str
    gpu: tuple[str, ...] = ()

    def peak_of(self, precision: str) -> float:
        """10^12 operations a second of a precision, or of the best way to do without it.

        Raises:
            UsageFault: ``limit.precision``: neither is known.
        """
        ways = (precision, *_WIDER.get(precision, ()))
        known = [self.peak_tflops[p] for p in ways if p in self.peak_tflops]
        if not known:
            raise UsageFault(
                "limit.precision",
                f"no peak of {precision} is known of {self.name}",
                hint="give one: --peak TFLOPS --bandwidth GB/S",
            )
        return max(known)

    def to_record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "name": self.name,
            "bandwidth_gb_s": self.bandwidth_gb_s,
            "peak_tflops": dict(self.peak_tflops),
            "source": self.source,
        }


@functools.cache
def devices() -> tuple[Device, ...]:
    """The devices of ``devices.json``."""
    held = json.loads(files("vntools.bench").joinpath("devices.json").read_text("utf-8"))
    return tuple(Device(gpu=tuple(d.pop("gpu")), **d) for d in held)


def device_named(name: str) -> Device:
    """The device that a user calls ``name``: its words in any case and order.

    The words must tell one device from the others: ``H200 NVL``, ``a100-sxm-80gb``, ``t4``.

    Raises:
        UsageFault: ``limit.device``: none, or more than one.
    """
    words = _words(name)
    found = [d for d in devices() if words and words <= _words(d.name)]
    exact = [d for d in found if words == _words(d.name)]
    if len(exact or found) == 1:
        return (exact or found)[0]
    choice = found or devices()
    raise UsageFault(
        "limit.device",
        f"{quoted(name)} is {'more than one' if found else 'no'} device that is known",
        hint=f"one of {', '.join(d.name for d in choice)}",
    )


def device_of_gpu(name: str) -> Device | None:
    """The device of a GPU as the driver names it; None where its figures are not held."""
    return next((d for d in devices() if name in d.gpu), None)


def _words(name: str) -> frozenset[str]:
    ignored = {"nvidia", "geforce", "jetson", "tesla"}
    return frozenset(re.findall(r"[a-z0-9]+", name.lower())) - ignored
