"""The paper's table, measured, as text."""

from __future__ import annotations

__all__ = ["suite_text"]

from typing import TYPE_CHECKING

from vntools.report.table import table

if TYPE_CHECKING:
    from vntools.pipeline.suite import Suite

_HEADER = (
    *("network", "depth", "parameters M", "GMACs", "paper ms", "TRT FP32", "TRT FP16"),
    *("measured ms", "floor ms"),
)


def suite_text(suite: Suite) -> str:
    """One line a network; what failed stands below with its reason.

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
    lines = [table(rows, align="<>>>>>>>>")]
    lines += [f"{row.name}: {row.why}" for row in suite.rows if row.why]
    return "\n".join(lines)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
