"""Where an artifact comes from: versions of the packages with a hand in it, and the host."""

from __future__ import annotations

__all__ = ["host", "version_of", "versions"]

import importlib.metadata
import os
import platform

from vntools import __version__


def version_of(distribution: str) -> str | None:
    """Installed version of a distribution, or None; nothing is imported."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions(*distributions: str) -> dict[str, str]:
    """Versions of vntools and of those of ``distributions`` that are installed."""
    found = {"vntools": __version__, **{d: version_of(d) for d in distributions}}
    return {k: v for k, v in found.items() if v is not None}


def host() -> dict[str, str | int]:
    """Operating system, processor and the number of cores this process may use."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            model = next(
                (s.split(":", 1)[1].strip() for s in f if s.startswith("model name")), model
            )
    except OSError:
        pass
    return {
        "system": platform.system(),
        "python": platform.python_version(),
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1,
    }
