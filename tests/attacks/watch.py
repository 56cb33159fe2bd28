"""Load files in this process and tell, by an audit hook, what they made it do.

    python watch.py KIND GOOD FILE...     # KIND: checkpoint or onnx; GOOD: a folder
    python watch.py control FOLDER        # misdeeds of its own, each of which must be seen

One line of JSON a file on standard output: what it did that loading may not do, the outcome,
seconds, and by how many bytes the process's highest memory grew. All that loading imports is
imported by the good files in GOOD, which are loaded first.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vntools.base.errors import VntoolsError

_FORBIDDEN = (
    "compile", "ctypes.dlopen", "exec", "ftplib.", "http.", "import", "marshal.", "os.chmod",
    "os.chown", "os.exec", "os.fork", "os.kill", "os.link", "os.mkdir", "os.posix_spawn",
    "os.putenv", "os.remove", "os.rename", "os.rmdir", "os.spawn", "os.symlink", "os.system",
    "os.truncate", "os.utime", "pickle.find_class", "pty.", "shutil.", "smtplib.", "socket.",
    "subprocess.", "urllib.", "webbrowser.",
)  # fmt: skip
_OWN = ("/proc/self/fd/", "/proc/self/maps")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """What happens while a folder is the one that may be read."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event.startswith(_FORBIDDEN):
            self.seen.append(f"{event} {str(args[0])[:80] if args else ''}")
        elif event == "open" and not self._may_open(args[0], args[1], args[2]):
            self.seen.append(f"open {args[0]!s} {args[1]}")

    def _may_open(self, path: object, mode: str | None, flags: int) -> bool:
        if isinstance(path, int):
            return True  # open already
        if (flags or 0) & _WRITES or set(mode or "") & set("wax+"):
            return False
        at = Path(os.fsdecode(path))  # pyright: ignore[reportArgumentType]  # str, bytes, path
        named_in_a_folder = len(at.parts) == 1  # that is open
        inside = self.folder in (at, at.parent)
        return named_in_a_folder or inside or str(at).startswith(_OWN)


def _highest_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _observed(watch: Watch, folder: Path, act: Callable[[], object]) -> dict[str, Any]:
    """Run ``act`` under watch."""
    watch.seen, before, start = [], _highest_bytes(), time.perf_counter()
    watch.folder = folder
    try:
        act()
        outcome = "loaded"
    except VntoolsError as e:
        outcome = e.code
    except Exception as e:  # noqa: BLE001  # what the test is there to find
        outcome = f"crash: {e!r}"
    finally:
        watch.folder = None
    return {
        "seen": watch.seen,
        "outcome": outcome,
        "seconds": time.perf_counter() - start,
        "grown_bytes": _highest_bytes() - before,
    }


def _loader(kind: str) -> Callable[[Path], object]:
    if kind == "checkpoint":
        from vntools.models.checkpoint import load_checkpoint

        return load_checkpoint
    from vntools.export.load import load_onnx

    return load_onnx


def _misdeeds(folder: Path) -> dict[str, Callable[[], object]]:
    """What no file may bring about."""
    import ctypes
    import socket
    import subprocess

    return {
        "os.system": lambda: os.system("true"),  # pyright: ignore[reportDeprecated]  # meant
        "subprocess.Popen": lambda: subprocess.run(["true"], check=True),
        "os.posix_spawn": lambda: os.waitpid(os.posix_spawnp("true", ["true"], {}), 0),
        "socket.__new__": lambda: socket.socket().close(),
        "ctypes.dlopen": lambda: ctypes.CDLL(None),
        "import": lambda: __import__("wave"),
        "compile": lambda: compile("1", "x", "eval"),
        "os.remove": lambda: (folder / "old").unlink(),
        "open": lambda: (folder / "new").write_bytes(b""),
        "open /proc/self/status": lambda: Path("/proc/self/status").read_bytes(),
    }


def main() -> None:
    kind, first, *files = sys.argv[1:]
    if kind == "control":
        (Path(first) / "old").touch()
        todo = {n: (Path(first), act) for n, act in _misdeeds(Path(first)).items()}
    else:
        load = _loader(kind)
        for good in sorted(Path(first).iterdir()):
            load(good)
        todo = {f: (Path(f).parent, lambda f=f: load(Path(f))) for f in files}
    watch = Watch()
    for name, (folder, act) in todo.items():
        print(json.dumps({"name": name, **_observed(watch, folder, act)}), flush=True)


if __name__ == "__main__":
    main()
