"""``vntools doctor``: what is installed here, and what each missing piece prevents."""

from __future__ import annotations

__all__ = ["command"]

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from vntools.base.errors import VntoolsError
from vntools.cli._shared import Console, json_option
from vntools.report.table import table

# Distribution, module, and what cannot be done without it.
_PACKAGES = (
    ("torch", "torch", "vntools export, train and bench --ckpt"),
    ("onnx", "onnx", "every command that reads or writes a graph"),
    ("onnx-ir", "onnx_ir", "vntools export and simplify"),
    ("onnxsim", "onnxsim", "vntools export and simplify"),
    ("onnxruntime", "onnxruntime", "verification and vntools bench --onnx"),
    ("numpy", "numpy", "every command that reads or writes a graph"),
    ("pillow", "PIL", "reading images: vntools train --data FOLDER, calibration"),
    ("rich", "rich", "progress bars"),
)


@dataclass(frozen=True)
class _Missing:
    """A piece that does not work here.

    Attributes:
        what: its name.
        why: what happens when it is asked for.
        prevents: the commands that need it.
        remedy: what to do to have it.
    """

    what: str
    why: str
    prevents: str
    remedy: str


@click.command()
@json_option
@click.pass_obj
def command(console: Console) -> None:
    """Report versions, GPU and TensorRT, and what is missing.

    Nothing is changed, and the exit status is 0 also where pieces are missing.
    """
    from vntools.base.provenance import host, versions

    missing: list[_Missing] = []
    gpus = _gpus(missing)
    record: dict[str, Any] = {
        "host": host(),
        **versions(),
        "packages": _packages(missing),
        "onnxruntime_providers": _providers(),
        "driver": _driver_versions(),
        "gpus": gpus,
        "tensorrt": _flavour("TensorRT", "vntools build-engine --backend tensorrt", missing),
        "tensorrt_rtx": _flavour(
            "TensorRT-RTX", "vntools build-engine where TensorRT or a GPU is missing", missing
        ),
        "pycuda": _pycuda(missing),
        "missing": [asdict(m) for m in missing],
    }
    console.result(record, _text(record, missing))


def _ask(
    what: str, prevents: str, missing: list[_Missing], version: Callable[[], str | None]
) -> str | None:
    """A version, or None and an entry in ``missing`` with the reason."""
    try:
        return version()
    except VntoolsError as e:
        missing.append(_Missing(what, e.message, prevents, e.hint))
    except Exception as e:  # noqa: BLE001 - a broken package may raise anything when imported
        why = f"{type(e).__name__}: {e}".splitlines()[0]
        missing.append(_Missing(what, why, prevents, "reinstall it"))
    return None


def _packages(missing: list[_Missing]) -> dict[str, str | None]:
    """The version of each package that vntools depends on, if it imports."""
    from vntools.base.optional import require
    from vntools.base.provenance import version_of

    def version(distribution: str, module: str) -> str | None:
        loaded = require(module, extra=None)
        return version_of(distribution) or getattr(loaded, "__version__", None)

    return {
        name: _ask(name, prevents, missing, lambda n=name, m=module: version(n, m))
        for name, module, prevents in _PACKAGES
    }


def _providers() -> list[str]:
    """The execution providers that this ONNX Runtime was built with."""
    try:
        import onnxruntime

        return list(onnxruntime.get_available_providers())
    except ImportError:  # told among the packages
        return []


def _flavour(name: str, prevents: str, missing: list[_Missing]) -> str | None:
    """The version of TensorRT or TensorRT-RTX."""
    from vntools.engine.backend import load

    return _ask(name, prevents, missing, lambda: load(name.lower()).version)


def _pycuda(missing: list[_Missing]) -> str | None:
    """The version of PyCUDA, if it and the CUDA driver load."""
    from vntools.base.optional import require
    from vntools.base.provenance import version_of

    def version() -> str | None:
        require("pycuda.driver", extra="tensorrt")
        return version_of("pycuda")

    return _ask("PyCUDA", "vntools bench --engine", missing, version)


def _driver_versions() -> dict[str, str | None]:
    """Version of the kernel driver, and the newest CUDA that the driver library serves."""
    import contextlib
    import ctypes

    versions: dict[str, str | None] = {"version": None, "cuda": None}
    with contextlib.suppress(OSError):
        versions["version"] = Path("/sys/module/nvidia/version").read_text("ascii").strip()
    with contextlib.suppress(OSError):
        number = ctypes.c_int(0)  # 1000 major + 10 minor
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number)) == 0:
            versions["cuda"] = f"{number.value // 1000}.{number.value % 1000 // 10}"
    return versions


def _gpus(missing: list[_Missing]) -> list[dict[str, Any]]:
    """Name, compute capability and memory of each GPU that the driver offers."""
    import ctypes

    from vntools.engine.backend import compute_capability, gpu_count

    count = gpu_count()
    if count == 0:
        missing.append(
            _Missing(
                "GPU",
                "no NVIDIA driver and GPU answer",
                "vntools bench --engine and build-engine --backend tensorrt",
                "install NVIDIA's driver; start a container with --gpus all",
            )
        )
        return []
    driver = ctypes.CDLL("libcuda.so.1")
    found: list[dict[str, Any]] = []
    for device in range(count):
        name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t(0)
        driver.cuDeviceGetName(name, len(name), device)
        driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
        found.append(
            {
                "name": name.value.decode("utf-8", "replace"),
                "compute_capability": compute_capability(device),
                "memory_bytes": memory.value,
            }
        )
    return found


def _gpu_text(gpu: dict[str, Any]) -> str:
    """One GPU in a line."""
    major, minor = divmod(gpu["compute_capability"], 10)
    memory_gib = gpu["memory_bytes"] / 2**30
    return f"{gpu['name']}, compute capability {major}.{minor}, {memory_gib:.0f} GiB"


def _text(record: dict[str, Any], missing: list[_Missing]) -> str:
    """The report for people."""
    host, driver = record["host"], record["driver"]
    rows = [
        ("vntools", record["vntools"]),
        ("Python", host["python"]),
        ("host", f"{host['system']}, {host['cpu']}, {host['cores']} cores"),
        *record["packages"].items(),
        ("ONNX Runtime providers", ", ".join(record["onnxruntime_providers"])),
        ("NVIDIA driver", driver["version"]),
        ("CUDA of the driver", driver["cuda"]),
        *((f"GPU {i}", _gpu_text(gpu)) for i, gpu in enumerate(record["gpus"])),
        ("TensorRT", record["tensorrt"]),
        ("TensorRT-RTX", record["tensorrt_rtx"]),
        ("PyCUDA", record["pycuda"]),
    ]
    lines = [table([(name, value or "-") for name, value in rows], align="<<")]
    lines += [
        f"\n{m.what} is missing: {m.why}\n  prevents: {m.prevents}\n  remedy: {m.remedy}"
        for m in missing
    ]
    return "\n".join(lines)
