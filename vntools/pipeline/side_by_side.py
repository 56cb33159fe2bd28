"""Several artifacts, each on the backend that was asked for, measured side by side."""

from __future__ import annotations

__all__ = ["side_by_side"]

from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

from vntools.base.errors import UsageFault, about
from vntools.pipeline.bench import Artifact, open_artifact
from vntools.pipeline.listener import Listener, percent

if TYPE_CHECKING:
    from vntools.bench.compare import Comparison
    from vntools.bench.measure import BenchOptions
    from vntools.runtime.base import Runner


def side_by_side(
    artifacts: Mapping[str, Artifact],
    options: BenchOptions,
    *,
    same: float = 0.01,
    listener: Listener,
) -> Comparison:
    """Open artifacts in this process, all at once, and compare them in turns.

    Args:
        artifacts: by the name to print; the first is what the others are held against.
        options: see :func:`vntools.bench.compare.compare`.
        same: latencies within this part of each other count as equal.
        listener: hears of inputs and threads that are not alike.

    Raises:
        UsageFault: ``bench.unlike``: fewer than two, a GPU against a CPU, or PyTorch with two
            numbers of threads, which are a setting of the process.
        VntoolsError: as :func:`vntools.pipeline.bench.open_artifact` and
            :func:`vntools.bench.compare.compare`.
    """
    from vntools.bench.compare import compare

    with ExitStack() as stack:
        runners: dict[str, Runner] = {}
        for name, artifact in artifacts.items():
            with about(artifact.path):
                runners[name] = stack.enter_context(open_artifact(artifact, listener))
        _check_alike(runners, listener)
        with percent(listener, "measure side by side") as tick:
            return compare(runners, options, same=same, tick=tick)


def _check_alike(runners: Mapping[str, Runner], listener: Listener) -> None:
    """Refuse what cannot be measured in one process; warn of what makes a ratio mean less."""
    threads = {n: r.details["threads"] for n, r in runners.items() if "threads" in r.details}
    said = ", ".join(f"{name} {count}" for name, count in threads.items())
    in_torch = {threads[n] for n in threads if runners[n].backend.startswith("pytorch")}
    if len(in_torch) > 1:
        raise UsageFault(
            "bench.unlike",
            f"PyTorch has one number of threads in a process, not {said}",
            hint="give all the same number",
        )
    if len(set(threads.values())) > 1:
        listener.warn("bench.threads", f"not the same number of threads: {said}")
    sizes = {tuple(sorted(str(s.shape[1:]) for s in r.inputs)) for r in runners.values()}
    if len(sizes) > 1:
        said = ", ".join(f"{n} {'; '.join(map(str, r.inputs))}" for n, r in runners.items())
        listener.warn("bench.inputs", f"not the same inputs: {said}")
