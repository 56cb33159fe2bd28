"""The timing cache of a TensorRT build: kernel timings kept from one build to the next.

A cache is disposable: one that is damaged, or of another version or GPU, costs a warning and
the time it would have saved. It then stays on disk as it is, since it may be no timing cache
at all.
"""

from __future__ import annotations

__all__ = ["TimingCache"]

import contextlib
from pathlib import Path
from typing import Any

from vntools.base.artifacts import published, read_input, sha256_bytes
from vntools.base.errors import VntoolsError, quoted


class TimingCache:
    """The cache file of one build.

    Attributes:
        warnings: why it was not used or not written; lines for the user.
        sha256: of the timings that the build began with; None where it began with none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.warnings: list[str] = []
        self.sha256: str | None = None
        self._replaceable = True
        # TensorRT needs the cache alive until the build has ended.
        self._cache: Any = None

    def attach(self, config: Any) -> None:
        """Give an ``IBuilderConfig`` the timings on disk, or an empty cache to fill."""
        data = self._read()
        if data and not self._set(config, data):
            self._replaceable = False
            self.warnings.append(
                f"{quoted(self.path)}: not a timing cache of this TensorRT and GPU; built "
                "without it, and left as it is"
            )
            data = b""
        if data:
            self.sha256 = sha256_bytes(data)
        elif not self._set(config, b""):
            self._replaceable = False
            self.warnings.append("TensorRT gave no timing cache; built without one")

    def save(self, config: Any) -> None:
        """Write the timings back, whole or not at all; a failure is a warning."""
        if not self._replaceable:
            return
        try:
            data = bytes(config.get_timing_cache().serialize())
            with published(self.path, force=True, size_hint=len(data)) as f:
                f.write(data)
        except (VntoolsError, AttributeError, RuntimeError, TypeError) as e:
            self.warnings.append(f"the timing cache was not written: {e}")

    def _read(self) -> bytes:
        if not self.path.exists():
            return b""
        try:
            return read_input(self.path)
        except VntoolsError as e:
            self._replaceable = False
            self.warnings.append(f"the timing cache was not read: {e.line()}")
            return b""

    def _set(self, config: Any, data: bytes) -> bool:
        """Whether TensorRT takes ``data``; it refuses by None, by False or by an exception."""
        with contextlib.suppress(RuntimeError, TypeError):
            cache = config.create_timing_cache(data)
            # Not ignoring a mismatch: timings of another device lead to wrong choices.
            if cache is not None and config.set_timing_cache(cache, False):
                self._cache = cache
                return True
        return False
