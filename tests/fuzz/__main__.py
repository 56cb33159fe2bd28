"""The fuzz tests for as long as one likes, guided by coverage: ``make fuzz``.

    python -m tests.fuzz [--only TARGET] [--seconds N] [--seed N] [--folder DIR]
    python -m tests.fuzz --only TARGET --replay FILE

Atheris (libFuzzer) keeps the inputs that reach new lines of vntools and mutates them further.
Every fourth input is one that the target's own mutators make, as in the tests of this folder,
so that there are new whole files too. Inputs that were kept, and those that failed, stay in
``DIR/TARGET``; a later run goes on from there. A target ends at its first failure.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TARGETS = ("checkpoints", "onnx", "command_line")
_SEEDS = 100
_LARGEST = 1 << 17  # bytes
_FRESH = 4  # one in so many is made by the target's mutators
_COVERED = re.compile(r"\bcov: (\d+)")


def fuzz(name: str, words: list[str], seed: int) -> None:
    """Run one target in this process, which libFuzzer ends.

    Args:
        words: of libFuzzer: its options, folders of inputs, or one file to replay.
    """
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["vntools"]):  # and what is imported on the way
        target: Any = importlib.import_module(f"tests.fuzz.{name}")
        if name == "command_line":
            run, options = _by_seed(target), {}
        else:
            run, options = _by_bytes(target), {"custom_mutator": _mutator(target, atheris)}
            for i, data in enumerate(target.mutants(seed, _SEEDS)):
                Path(words[-1], f"seed-{i}").write_bytes(data)
        atheris.Setup([name, *words], run, **options)
        atheris.Fuzz()


def _by_bytes(target: Any) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            target.check(data, Path(folder))

    return run


def _by_seed(target: Any) -> Callable[[bytes], None]:
    """A command line has no bytes that mean anything; libFuzzer chooses its seed."""

    def run(data: bytes) -> None:
        for case in target.cases(int.from_bytes(data[:6], "little"), 1):
            with tempfile.TemporaryDirectory() as folder:
                target.check(case, Path(folder))

    return run


def _mutator(target: Any, atheris: Any) -> Callable[[bytes, int, int], bytes]:
    def mutate(data: bytes, largest: int, seed: int) -> bytes:
        if seed % _FRESH == 0:
            return next(iter(target.mutants(seed, 1)))[:largest]
        return atheris.Mutate(data, largest)

    return mutate


def supervise(name: str, seconds: int, seed: int, folder: Path) -> bool:
    """Run one target as a process, print what came of it, and say whether it held."""
    kept, seeds = folder / name / "inputs", folder / name / "seeds"
    for path in (kept, seeds):
        path.mkdir(parents=True, exist_ok=True)
    options = {
        "max_total_time": seconds,
        "seed": seed + 1,  # 0 is libFuzzer's word for the time of day
        "max_len": _LARGEST,
        "timeout": 60,
        "rss_limit_mb": 4096,
        "print_final_stats": 1,
        "artifact_prefix": f"{folder / name}{os.sep}",
    }
    words = [*(f"-{k}={v}" for k, v in options.items()), str(kept), str(seeds)]
    command = [sys.executable, "-m", "tests.fuzz", "--only", name, "--seed", str(seed)]
    log = folder / name / "log"
    began = time.perf_counter()
    with log.open("wb") as file:
        done = subprocess.run([*command, "--", *words], stderr=file, stdout=file, check=False)
    took_s = time.perf_counter() - began
    text = log.read_text(errors="replace")
    cases = re.search(r"number_of_executed_units: (\d+)", text)
    count = int(cases[1]) if cases else 0
    reached = max(map(int, _COVERED.findall(text)), default=0)
    print(
        f"{name}: {count} cases, {count / took_s:.1f}/s, coverage {reached}, "
        + ("all held" if done.returncode == 0 else f"FAILED, see {log}"),
        flush=True,
    )
    return done.returncode == 0


def main() -> None:
    """Run the targets one after another; they share the time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("build", "fuzz"))
    parser.add_argument("--replay", type=Path, help="an input that failed")
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.replay:
        data = given.replay.read_bytes()
        target: Any = importlib.import_module(f"tests.fuzz.{given.only}")
        (_by_seed if given.only == "command_line" else _by_bytes)(target)(data)
    elif given.words:
        fuzz(given.only, given.words, given.seed)
    else:
        names = [given.only] if given.only else TARGETS
        share = given.seconds // len(names)
        held = [supervise(n, share, given.seed, given.folder.resolve()) for n in names]
        sys.exit(not all(held))


if __name__ == "__main__":
    main()
