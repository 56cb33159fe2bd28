"""Figures of docs/reliability.md: rows held, faults injected, cases fuzzed, and other tools.

    python docs/measure_reliability.py [--only PART]...   # measure, write the record
    python docs/measure_reliability.py --write-docs       # the record's tables into the page

Parts: ``rows`` (the catalogue's tests, run), ``faults`` (of publishing, counted), ``fuzz``
(cases of the mutators, other seeds than the tests have), ``attacks``. An attack file goes to
each tool in a process of its own, which is forked from one that has the tool imported and may
take 10 s and 2 GiB more than that one has.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "docs" / "measurements" / "reliability.json"
DOCUMENT = ROOT / "docs" / "reliability.md"
LIMIT_S = 10.0
LIMIT_BYTES = 2 << 30
ROWS = 123
FUZZED = {"checkpoints": 2000, "onnx": 1000, "command_line": 300}  # cases
FUZZ_SEED = 1_000_000

BEGIN = "<!-- docs/measure_reliability.py: begin -->\n"
END = "<!-- docs/measure_reliability.py: end -->\n"
NOT_HELD: dict[int, str] = {}
"""Rows of the catalogue without a test, and why."""

Tool = Callable[[Path], object]


# ------------------------------------------------------------------------------------ tools


_IMPORTED = (
    *("onnx", "onnxruntime", "onnxsim", "torch"),
    *("vntools.models.checkpoint", "vntools.pipeline.export", "vntools.pipeline.simplify"),
)


def _torch_load() -> Tool:
    import torch

    # Without it the released checkpoints are refused, and most of these files for its sake.
    torch.serialization.add_safe_globals([argparse.Namespace])
    return lambda path: torch.load(path, map_location="cpu", weights_only=True)


def _safetensors() -> Tool:
    from safetensors.torch import load_file

    return load_file


def _checker() -> Tool:
    import onnx

    return lambda path: onnx.checker.check_model(str(path), full_check=True)


def _onnxsim() -> Tool:
    import onnxsim

    return lambda path: onnxsim.simplify(str(path))


def _onnxruntime() -> Tool:
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    providers = ["CPUExecutionProvider"]
    return lambda path: onnxruntime.InferenceSession(str(path), providers=providers)


def _build_engine() -> Tool:
    from vntools.engine.backend import load

    load("tensorrt-rtx")  # takes space, as an import does
    return _vntools("build-engine", "--backend", "tensorrt-rtx")


def _vntools(*words: str) -> Tool:
    from vntools.cli import vntools

    for module in _IMPORTED:
        importlib.import_module(module)

    def run(path: Path) -> None:
        vntools.main([*words, str(path), "--out", "made", "--quiet"])

    return run


def _export() -> Tool:
    return _vntools("export", "--no-merge", "--ckpt")


TOOLS: dict[str, dict[str, Callable[[], Tool]]] = {
    "checkpoints": {"torch.load": _torch_load, "vntools export": _export},
    "safetensors": {"safetensors": _safetensors, "vntools export": _export},
    "onnx": {
        "onnx.checker": _checker,
        "onnxsim": _onnxsim,
        "ONNX Runtime": _onnxruntime,
        "vntools simplify": lambda: _vntools("simplify"),
        "vntools build-engine": _build_engine,
    },
}
_NO_MEMORY = re.compile(
    r"bad.?alloc|alloc\w* .*memory|memory alloc|MemoryError|mmap|ENOMEM", re.IGNORECASE
)


def tried(tool: Tool, path: Path) -> dict[str, Any]:
    """What becomes of one file: the outcome, seconds, and MB beyond what the import took.

    ``refused``, ``accepted``, ``crashed`` (a signal), ``hung``, ``memory`` (more than there
    is), or ``fault``: vntools calls it a bug of its own.
    """
    with tempfile.TemporaryFile() as said:
        began = time.perf_counter()
        child = os.fork()
        if not child:
            _as_child(tool, path, said.fileno())
        ended, status, usage = 0, 0, None
        while not ended and time.perf_counter() - began < LIMIT_S:
            ended, status, usage = os.wait4(child, os.WNOHANG)
            time.sleep(0.002)
        if not ended:
            os.kill(child, signal.SIGKILL)
            _, status, usage = os.wait4(child, 0)
        seconds = time.perf_counter() - began
        said.seek(0)
        first, _, text = said.read().decode("utf-8", "replace").partition("\n")
    peak_kb = usage.ru_maxrss if usage is not None else 0
    code = re.search(r"error\[([\w.]+)\]", text)
    return {
        "outcome": _outcome(bool(ended), status, text),
        **({"code": code[1]} if code else {}),
        "seconds": round(seconds, 3),
        "mb": round(max(0, peak_kb - int(first or 0)) / 1e3, 1),
    }


def _outcome(ended: bool, status: int, text: str) -> str:
    if not ended:
        return "hung"
    if os.WIFSIGNALED(status):
        return "memory" if _NO_MEMORY.search(text) else "crashed"
    code = os.WEXITSTATUS(status)
    if not code:
        return "accepted"
    if code == 75 or (code == 1 and _NO_MEMORY.search(text)):
        return "memory"
    return "fault" if code == 70 else "refused"


def _as_child(tool: Tool, path: Path, said: int) -> None:
    """Run the tool, with its words going to ``said`` behind the kB it begins with, and end."""
    code = 1
    try:
        os.setsid()
        for fd in (1, 2):
            os.dup2(said, fd)
        sys.stdout = sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", 0), write_through=True)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        space, resident = map(int, Path("/proc/self/statm").read_text().split()[:2])
        page = resource.getpagesize()
        print(resident * page >> 10)
        limit = space * page + LIMIT_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        os.chdir(path.parent)
        tool(path)
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 1
    except BaseException as e:  # noqa: BLE001 - whatever a tool raises is its refusal
        with contextlib.suppress(Exception):
            print(type(e).__name__, e)
    finally:
        os._exit(code)


def corpus(kind: str) -> dict[str, Callable[[Path], Path]]:
    """What makes the files of one kind, by name."""
    from tests.attacks import checkpoints, onnx

    if kind == "onnx":
        return onnx.CORPUS
    tensors = kind == "safetensors"
    return {k: v for k, v in checkpoints.CORPUS.items() if k.startswith("st_") == tensors}


def attacked(kind: str, tool: str) -> dict[str, Any]:
    """Every file of a corpus through one tool, in this process and its children."""
    call, found = TOOLS[kind][tool](), dict[str, Any]()
    for name, make in corpus(kind).items():
        with tempfile.TemporaryDirectory() as folder:
            inside = Path(folder, "in")
            inside.mkdir()
            found[name] = tried(call, make(inside))
    return found


def attacks() -> dict[str, Any]:
    """Each tool in a process of its own: file, tool, what came of it."""
    found: dict[str, Any] = {}
    for kind, tools in TOOLS.items():
        files: dict[str, dict[str, Any]] = {}
        for tool in tools:
            print(f"{kind}: {tool}", file=sys.stderr, flush=True)
            words = [sys.executable, __file__, "--attack", kind, tool]
            done = subprocess.run(words, check=True, stdout=subprocess.PIPE)
            for name, result in json.loads(done.stdout).items():
                files.setdefault(name, {})[tool] = result
        found[kind] = files
    return found


# ----------------------------------------------------------------------------------- counts


def _pytest(*words: str) -> tuple[str, float]:
    """What pytest printed, and its seconds; it must end well."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
    return done.stdout, round(time.perf_counter() - began, 1)


def rows() -> dict[str, Any]:
    """The rows that tests of the catalogue are named by, and how these ended."""
    names, _ = _pytest("--collect-only", "tests/catalogue")
    found = Counter(map(int, re.findall(r"[\[_](\d{3})(?=[-_\]])", names)))
    held = sorted(found.keys() & set(range(1, ROWS + 1)))
    said, seconds = _pytest("tests/catalogue")
    last = said.splitlines()[-1]
    return {
        "tests": sum(found[row] for row in held),
        "held": held,
        "passed": int(re.findall(r"(\d+) passed", last)[0]),
        "skipped": sum(map(int, re.findall(r"(\d+) skipped", last))),
        "seconds": seconds,
    }


class _Faults:
    """Lets pytest count the faults that a shim injects, in this process and its children."""

    def __init__(self, file: int) -> None:
        self.file = file

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Have each shim tell of the call that it lets fail."""
        for module in {item.module for item in items}:
            true = module.Shim.step

            def step(shim: Any, *given: Any, true: Any = true, **kwargs: Any) -> Any:
                if shim.left == 1:
                    os.write(self.file, b".")
                return true(shim, *given, **kwargs)

            module.Shim.step = step


def faults() -> dict[str, Any]:
    """Faults at system calls of publishing: how many, and in what time."""
    import pytest

    with tempfile.TemporaryFile(buffering=0) as file:
        os.set_inheritable(file.fileno(), True)
        os.lseek(file.fileno(), 0, os.SEEK_END)
        began = time.perf_counter()
        words = ["-q", "-p", "no:cacheprovider", str(ROOT / "tests/base/test_crash_points.py")]
        with contextlib.redirect_stdout(sys.stderr):
            status = pytest.main(words, plugins=[_Faults(file.fileno())])
        if status:
            raise SystemExit(status)
        seconds = round(time.perf_counter() - began, 1)
        return {"injected": os.fstat(file.fileno()).st_size, "seconds": seconds}


def fuzz() -> dict[str, Any]:
    """The mutators' cases, each held by its check, in this process."""
    found: dict[str, Any] = {}
    for name, count in FUZZED.items():
        target: Any = importlib.import_module(f"tests.fuzz.{name}")
        make = target.cases if hasattr(target, "cases") else target.mutants
        cases: Iterator[Any] = make(FUZZ_SEED, count)
        began = time.perf_counter()
        for case in cases:
            with tempfile.TemporaryDirectory() as folder:
                target.check(case, Path(folder))
        found[name] = {"cases": count, "seconds": round(time.perf_counter() - began, 1)}
        print(f"fuzz: {name} {found[name]}", file=sys.stderr, flush=True)
    return found


# ------------------------------------------------------------------------------------- page


_OUTCOMES: tuple[str, ...] = ("refused", "accepted", "crashed", "hung", "memory", "fault")
_HEADS = {
    "checkpoints": "Checkpoints: what torch.save writes, or is said to",
    "safetensors": "Checkpoints: .safetensors",
    "onnx": "ONNX files",
}


def tables(record: Mapping[str, Any]) -> str:
    """The record as text."""
    text = _figures(record)
    for kind, head in _HEADS.items():
        files = record["attacks"][kind]
        text += f"\n### {head}\n\n{_summary(files)}\n{_details(files)}"
    return text


def _table(*rows: tuple[str, ...]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"


def _figures(record: Mapping[str, Any]) -> str:
    held, host = record["rows"], record["host"]
    missing = sorted(set(range(1, ROWS + 1)) - set(held["held"]))
    if unexplained := set(missing) ^ NOT_HELD.keys():
        raise SystemExit(f"rows without a test or a reason, or with both: {unexplained}")
    fuzzed = [
        (f"fuzz: {name.replace('_', ' ')}", f"{f['cases']} cases", f"{f['seconds']}")
        for name, f in record["fuzz"].items()
    ]
    named = ", ".join(f"{k} {v}" for k, v in record["versions"].items())
    skipped = f", {held['skipped']} skipped here" if held["skipped"] else ""
    text = (
        f"Measured on {record['date']}, {host['cores']} cores of {host['cpu']}, {named}.\n\n"
    )
    text += _table(
        ("what", "figure", "seconds"),
        (
            "rows of the catalogue with a test",
            f"{len(held['held'])} of {ROWS} ({held['passed']} tests pass{skipped})",
            f"{held['seconds']}",
        ),
        ("faults at system calls of publishing", f"{record['faults']['injected']}",
         f"{record['faults']['seconds']}"),
        *fuzzed,
    )  # fmt: skip
    reasons = [f"- {n}: {NOT_HELD[n]}" for n in missing]
    return text + ("\nRows without a test:\n\n" + "\n".join(reasons) + "\n" if reasons else "")


def _summary(files: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [("tool", *_OUTCOMES[:-1], "longest, s", "most memory, MB")]
    for tool in next(iter(files.values())):
        results = [f[tool] for f in files.values()]
        counted = Counter(r["outcome"] for r in results)
        counted["refused"] += counted["fault"]
        worst = [max(r[k] for r in results) for k in ("seconds", "mb")]
        counts = [str(counted[o] or "") for o in _OUTCOMES[:-1]]
        rows.append((tool, *counts, f"{worst[0]:.2f}", f"{worst[1]:.0f}"))
    return _table(*rows)


def _details(files: Mapping[str, Mapping[str, Any]]) -> str:
    tools = list(next(iter(files.values())))
    last = tools[-1]
    rows = [("file", *tools, "code")]
    for name, results in files.items():
        said = [results[t]["outcome"] for t in tools]
        shown = [
            "" if s == "refused" else "out of memory" if s == "memory" else s for s in said
        ]
        code = results[last].get("code", "")
        rows.append((name.removeprefix("st_").replace("_", " "), *shown, code and f"`{code}`"))
    return _table(*rows)


def with_tables(document: str, record: Mapping[str, Any]) -> str:
    """A document with the tables between its two marks."""
    head, rest = document.split(BEGIN)
    return head + BEGIN + tables(record) + END + rest.split(END)[1]


def _write_record(record: Mapping[str, Any], path: Path) -> None:
    """JSON, one file of a corpus a line."""
    kinds = [
        f'  "{kind}": {{\n'
        + ",\n".join(
            f'   "{n}": {json.dumps(r, separators=(",", ":"))}' for n, r in files.items()
        )
        + "\n  }"
        for kind, files in record["attacks"].items()
    ]
    text = json.dumps({**record, "attacks": {}}, indent=1)
    joined = text.replace('"attacks": {}', '"attacks": {\n' + ",\n".join(kinds) + "\n }")
    path.write_text(joined + "\n", encoding="ascii")


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "rows": rows,
    "faults": faults,
    "fuzz": fuzz,
    "attacks": attacks,
}


def main() -> None:
    """Measure and write the record, or write the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=PARTS, help="the others stay")
    parser.add_argument("--write-docs", action="store_true")
    parser.add_argument("--attack", nargs=2, metavar=("KIND", "TOOL"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if given.attack:
        print(json.dumps(attacked(*given.attack)))
        return
    if given.write_docs:
        record = json.loads(RECORD.read_text(encoding="ascii"))
        document = with_tables(DOCUMENT.read_text(encoding="utf-8"), record)
        DOCUMENT.write_text(document, encoding="utf-8")
        return
    from vntools.base.provenance import host, versions

    before = json.loads(RECORD.read_text(encoding="ascii")) if given.only else {}
    record = {
        **before,
        "schema": 1,
        "date": time.strftime("%Y-%m-%d"),
        "host": host(),
        "versions": versions(
            *("torch", "safetensors", "onnx", "onnxsim", "onnxruntime-gpu", "onnxruntime"),
            "tensorrt-rtx-cu13-bindings",
        ),
        "limits": {"seconds": LIMIT_S, "bytes": LIMIT_BYTES},
        **{name: PARTS[name]() for name in given.only or PARTS},
    }
    _write_record(record, RECORD)
    print(tables(record))


if __name__ == "__main__":
    main()
