"""Rows of cells as text."""

from __future__ import annotations

__all__ = ["table"]

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]], *, align: str) -> str:
    """Rows of cells as lines of columns.

    Args:
        rows: cells; the first row may be the header.
        align: one character per column, ``<`` or ``>``.
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(align))]
    return "\n".join(
        "  ".join(
            f"{cell:{a}{w}}" for cell, a, w in zip(row, align, widths, strict=True)
        ).rstrip()
        for row in rows
    )
