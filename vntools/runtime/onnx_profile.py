"""Times of the nodes of an ONNX graph in ONNX Runtime on the CPU, by its own profiler."""

from __future__ import annotations

__all__ = ["node_times"]

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from vntools.base.optional import require

_NODE = "_kernel_time"


def node_times(
    model: bytes, feeds: Mapping[str, NDArray[Any]], *, queries: int, threads: int
) -> dict[str, list[float]]:
    """Milliseconds of each node as ONNX Runtime fused it, in each of ``queries`` runs.

    The nodes run in a session of their own, because profiling slows it down; the first run is
    not counted.

    Source: ONNX Runtime, onnxruntime/core/common/profiler_common.h: ``ts`` and ``dur`` in us.
    """
    ort = require("onnxruntime", extra=None)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_profiling = True
    with tempfile.TemporaryDirectory(prefix="vntools-") as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        for _ in range(1 + queries):
            session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    times: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_NODE):
            name = event["name"].removesuffix(_NODE)
            times.setdefault(name, []).append(event["dur"] / 1000)  # us -> ms
    return {name: ms[-queries:] for name, ms in times.items()}
