"""The files of trtexec: its keys, and times that agree with each other."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from vntools.bench.export import profile_record, times_record
from vntools.bench.measurement import Samples

KEYS = [
    "startEnqMs", "endEnqMs", "startH2dMs", "endH2dMs", "startComputeMs", "endComputeMs",
    "startD2hMs", "endD2hMs", "h2dMs", "computeMs", "d2hMs", "latencyMs",
]  # fmt: skip


def two() -> Samples:
    columns = [[0.0, 3.0], [0.1, 0.2], [0.5, 3.5], [0.25, 0.25], [1.0, 2.0], [0.125, 0.5]]
    return Samples(*map(np.array, columns))


def test_every_query_has_trtexecs_keys_in_its_order():
    record = times_record(two())
    assert json.loads(json.dumps(record)) == record
    assert [list(entry) for entry in record] == [KEYS, KEYS]


def test_times_of_a_query_agree():
    for entry in times_record(two()):
        for part, name in (("H2d", "h2d"), ("Compute", "compute"), ("D2h", "d2h")):
            length = entry[f"end{part}Ms"] - entry[f"start{part}Ms"]
            assert length == pytest.approx(entry[f"{name}Ms"])
        parts = (entry[f"{name}Ms"] for name in ("h2d", "compute", "d2h"))
        assert entry["latencyMs"] == pytest.approx(sum(parts))
    second = times_record(two())[1]
    assert (second["startEnqMs"], second["endEnqMs"]) == (3.0, 3.2)
    assert (second["startH2dMs"], second["startComputeMs"], second["endD2hMs"]) == (
        3.5,
        3.75,
        6.25,
    )


def test_a_profile_has_trtexecs_keys():
    layers = {"conv": [3.0, 5.0, 1.0], "relu": [1.0, 1.0, 1.0]}
    count, *entries = profile_record(layers)
    assert count == {"count": 3}
    assert entries == [
        {"name": "conv", "timeMs": 9, "averageMs": 3, "medianMs": 3, "percentage": 75},
        {"name": "relu", "timeMs": 3, "averageMs": 1, "medianMs": 1, "percentage": 25},
    ]
    assert list(entries[0]) == ["name", "timeMs", "averageMs", "medianMs", "percentage"]


@pytest.mark.parametrize("layers", [{}, {"a": [0.0]}])
def test_a_profile_without_time_is_no_division_by_zero(layers: dict[str, Any]):
    assert profile_record(layers)[0]["count"] == len(layers)
