"""Comparing two results that were measured apart, where their environments are alike."""

from __future__ import annotations

__all__ = ["compare_records", "is_record", "read_record"]

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from vntools.base.artifacts import read_input
from vntools.base.errors import DataFault, UsageFault, first_three
from vntools.bench.compare import Relation, verdict

# Settings that change what a query is; the others say how long was measured.
_SETTINGS = ("cuda_graph", "transfers", "spin", "streams", "overlap")


def is_record(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a JSON document; plans, ONNX files and checkpoints are none."""
    try:
        with open(path, "rb") as f:
            return f.read(1) == b"{"
    except (OSError, ValueError):
        return False


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The document that ``vntools bench --json`` printed for one artifact and one batch.

    Raises:
        DataFault: ``bench.record``: another document.
        NoInput, NoPermission: as :func:`vntools.base.artifacts.read_input`.
    """
    try:
        record = json.loads(read_input(path))
    except (ValueError, RecursionError) as e:
        raise DataFault("bench.record", "not a JSON document", path=path) from e
    if not isinstance(record, dict) or "latency_ms" not in record:
        raise DataFault(
            "bench.record",
            "not the result of one artifact at one batch",
            hint="write one: vntools bench FILE --json",
            path=path,
        )
    return record


def compare_records(
    a: Mapping[str, Any], b: Mapping[str, Any], *, same: float = 0.01
) -> Relation:
    """Relate measurement ``b`` to measurement ``a``, each a record of its own run.

    The interval is from the lower end of one median's interval over the upper end of the
    other's, which is wider than 95 % of what the two runs can tell; what differed between the
    runs and is in no record stays unseen, so prefer :func:`compare`.

    Raises:
        DataFault: ``bench.record``: not the record of one measurement, or of fewer than six
            queries.
        UsageFault: ``bench.unlike``, with the differences: machine, versions, batch,
            throttling or the settings that change what a query is.
    """
    unlike = list(_differences(_conditions(a), _conditions(b)))
    if unlike:
        raise UsageFault(
            "bench.unlike",
            f"the two results are not comparable: {first_three(unlike)}",
            hint="measure both side by side",
        )
    try:
        low_a, high_a = a["latency_ms"]["median_interval"]
        low_b, high_b = b["latency_ms"]["median_interval"]
        ratio = b["latency_ms"]["median"] / a["latency_ms"]["median"]
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as e:
        raise DataFault("bench.record", "a result has no interval of its median") from e
    low, high = low_b / high_a, high_b / low_a
    return Relation(ratio, low, high, verdict(low, high, same=same))


def _conditions(record: Mapping[str, Any]) -> dict[str, Any]:
    """What must be alike in two records, by dotted name."""
    try:
        gpu, settings = record["gpu"] or {}, record["settings"]
        return {
            "gpu": gpu.get("name"),
            "batch": record["batch"],
            "threads": record["engine"].get("threads"),
            "throttling": record["telemetry"].get("throttle"),
            **{name: settings[name] for name in _SETTINGS},
            **dict(_flat(record["environment"])),
        }
    except (AttributeError, KeyError, TypeError) as e:
        raise DataFault("bench.record", "not the record of a measurement") from e


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    for name in dict.fromkeys((*a, *b)):
        if a.get(name) != b.get(name):
            yield f"{name} {a.get(name)} and {b.get(name)}"
