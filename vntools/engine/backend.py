"""The one place that imports TensorRT: which flavour, which version, is there a GPU.

Two flavours have one API. TensorRT (10.x and 11.x) times kernels on the GPU that the plan is
for; TensorRT-RTX compiles ahead of time on any CPU. Nothing is imported before it is asked
for.
"""

from __future__ import annotations

__all__ = [
    "FLAVOURS",
    "PLAN_MAGIC",
    "Backend",
    "choose",
    "compute_capability",
    "gpu_count",
    "load",
]

import contextlib
import ctypes
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from vntools.base.errors import Unavailable, UsageFault
from vntools.base.optional import pip_line, require

PLAN_MAGIC = {b"ftrt": "tensorrt", b"vtrt": "tensorrt-rtx"}
"""The flavour of a plan by its first four bytes."""

FLAVOURS = tuple(PLAN_MAGIC.values())

_OLDEST_TENSORRT = 10  # the first with strongly typed ONNX networks and named I/O tensors only
# Attribute numbers of cuDeviceGetAttribute (cuda.h, CUdevice_attribute).
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76


@dataclass(frozen=True)
class Backend:
    """A TensorRT that imports.

    Attributes:
        name: the flavour, one of ``FLAVOURS``.
        version: its own version string, such as ``11.4.1`` or ``1.7.1.116``.
        trt: the Python module; the names used of it are the same in both flavours.
    """

    name: str
    version: str
    trt: ModuleType = field(repr=False)

    @property
    def is_rtx(self) -> bool:
        """Whether this is TensorRT-RTX."""
        return self.name == "tensorrt-rtx"

    @property
    def major(self) -> int:
        """Major version."""
        return int(self.version.split(".")[0])


def load(name: str) -> Backend:
    """Import one flavour.

    Raises:
        UsageFault: ``engine.backend``, no such flavour.
        Unavailable: ``trt.missing`` with the pip line of the extra, or ``trt.version``.
    """
    if name not in FLAVOURS:
        raise UsageFault(
            "engine.backend", f"no backend {name!r}", hint=f"give one of {', '.join(FLAVOURS)}"
        )
    if name == "tensorrt-rtx":
        trt = _import_rtx()
    else:
        trt = require("tensorrt", extra="tensorrt", code="trt.missing")
    backend = Backend(name, str(trt.__version__), trt)
    if name == "tensorrt" and backend.major < _OLDEST_TENSORRT:
        raise Unavailable(
            "trt.version",
            f"TensorRT {backend.version} is installed, expected {_OLDEST_TENSORRT} or newer",
            hint="run: pip install --upgrade tensorrt",
        )
    return backend


def choose(wanted: str = "auto") -> Backend:
    """The backend to build with: the one asked for, or with ``auto`` the one that can.

    ``auto`` is TensorRT where it imports and a GPU answers, else TensorRT-RTX.

    Raises:
        UsageFault: ``engine.backend``, no such flavour.
        Unavailable: ``trt.missing``, or ``gpu.none`` where TensorRT is asked for without a
            GPU.
    """
    if wanted == "auto":
        if gpu_count() > 0:
            with contextlib.suppress(Unavailable):
                return load("tensorrt")
        return load("tensorrt-rtx")
    if wanted == "tensorrt" and gpu_count() == 0:
        raise Unavailable(
            "gpu.none",
            "no GPU answers, and TensorRT builds only on the GPU that the plan is for",
            hint="use --backend tensorrt-rtx, which builds without one",
        )
    return load(wanted)


def _import_rtx() -> ModuleType:
    """TensorRT-RTX: its own package, else the bindings over the libraries of another wheel."""
    if importlib.util.find_spec("tensorrt_rtx") is not None:
        return require("tensorrt_rtx", extra="rtx", code="trt.missing")
    # The wheel of ONNX Runtime's execution provider carries the libraries. Importing it would
    # register the provider, so it is only located; the bindings then find both by their
    # sonames.
    spec = importlib.util.find_spec("onnxruntime_ep_nv_tensorrt_rtx")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        for stem in (
            "libtensorrt_rtx",
            "libtensorrt_onnxparser_rtx",
        ):  # in order of dependence
            for library in sorted(Path(folder).glob(f"{stem}.so*")):
                _open_library(library)
    return require("tensorrt_rtx_bindings", extra="rtx", code="trt.missing")


def _open_library(path: Path) -> None:
    try:
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    except OSError as e:
        raise Unavailable(
            "trt.missing",
            f"cannot load {path.name} ({e})",
            hint=pip_line("rtx") + " --force-reinstall",
        ) from e


def _driver() -> ctypes.CDLL | None:
    """The CUDA driver library, initialised; None where it is missing or refuses."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return driver if driver.cuInit(0) == 0 else None


def gpu_count() -> int:
    """How many GPUs the CUDA driver offers to this process; 0 without a driver."""
    driver = _driver()
    count = ctypes.c_int(0)
    if driver is None or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def compute_capability(device: int = 0) -> int | None:
    """Compute capability of a GPU, as in 89 for 8.9; None where no such GPU answers."""
    driver = _driver()
    if driver is None:
        return None
    numbers: list[int] = []
    for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
        value = ctypes.c_int(0)
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device) != 0:
            return None
        numbers.append(value.value)
    return 10 * numbers[0] + numbers[1]
