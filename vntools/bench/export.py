"""The files that trtexec writes, with its keys, so that what reads those reads these.

Source: TensorRT 11.1, samples/common/sampleReporting.cpp, exportJSONTrace and
Profiler::exportJSONProfile.
"""

from __future__ import annotations

__all__ = ["profile_record", "times_record"]

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from vntools.bench.measurement import Samples


def times_record(samples: Samples) -> list[dict[str, float]]:
    """``--exportTimes``: one entry a query, throttled or not.

    As in trtexec the enqueue times are of the host's clock and the others of the GPU's, and a
    copy that is not made begins and ends where computing begins or ends.
    """
    s = samples
    computing = s.at + s.h2d
    ending = computing + s.compute
    columns = {
        "startEnqMs": s.enqueue_at,
        "endEnqMs": s.enqueue_at + s.enqueue,
        "startH2dMs": s.at,
        "endH2dMs": computing,
        "startComputeMs": computing,
        "endComputeMs": ending,
        "startD2hMs": ending,
        "endD2hMs": ending + s.d2h,
        "h2dMs": s.h2d,
        "computeMs": s.compute,
        "d2hMs": s.d2h,
        "latencyMs": s.latency,
    }
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def profile_record(layers_ms: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """``--exportProfile``: the number of queries, then every layer.

    Args:
        layers_ms: time of each layer in each query, in the order of execution.
    """
    total_ms = sum(map(sum, layers_ms.values())) or 1.0
    return [
        {"count": max(map(len, layers_ms.values()), default=0)},
        *(
            {
                "name": name,
                "timeMs": sum(ms),
                "averageMs": statistics.fmean(ms),
                "medianMs": statistics.median(ms),
                "percentage": 100 * sum(ms) / total_ms,
            }
            for name, ms in layers_ms.items()
        ),
    ]
