"""The paper's table, measured, as text."""

from __future__ import annotations

__all__ = ["suite_text"]

from typing import TYPE_CHECKING

from vntools.report.comparison import how_measured, protocol, warnings_of
from vntools.report.table import table

if TYPE_CHECKING:
    from vntools.pipeline.suite import Suite

_HEADER = (
    *("network", "depth", "parameters M", "GMACs", "paper ms", "TRT FP32", "TRT FP16"),
    *("measured ms", "floor ms"),
)


def suite_text(suite: Suite) -> str:
    """How it was measured, one line a network, and what failed with its reason.

    Paper latencies are the authors', batch 1, PyTorch and TensorRT on an A100.
    """
    rows: list[tuple[str, ...]] = [_HEADER]
    for row in suite.rows:
        published = row.published
        figures = (
            (None,) * 3
            if published is None
            else (
                published.latency_ms,
                published.tensorrt_fp32_a100_ms,
                published.tensorrt_fp16_a100_ms,
            )
        )
        rows.append(
            (
                row.name,
                "" if row.depth is None else str(row.depth),
                _number(row.parameters_m, 2),
                _number(row.gmacs, 2),
                *(_number(f, 2) for f in figures),
                "failed" if row.why else _number(row.median_ms, 3),
                _number(row.floor_ms, 3),
            )
        )
    done = suite.comparison
    lines = [] if done is None else [protocol(done.contenders[0]), how_measured(done)]
    lines += [table(rows, align="<>>>>>>>>")]
    lines += [f"{row.name}: {row.why}" for row in suite.rows if row.why]
    lines += [] if done is None else warnings_of(done)
    return "\n".join(lines)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
