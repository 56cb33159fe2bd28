"""An evaluation, as text."""

from __future__ import annotations

__all__ = ["evaluation_text"]

from typing import TYPE_CHECKING

from vntools.base.errors import printable
from vntools.report.table import table

if TYPE_CHECKING:
    from vntools.pipeline.evaluation import Evaluation

_MOST_BAD = 10


def evaluation_text(done: Evaluation) -> str:
    """Images and their denominators, then a row of figures for each artifact."""
    lines = [
        f"{printable(str(f.path))}: {f.backend}, {f.precision}\n  {f.preprocessing.text()}"
        for f in done.figures
    ]
    lines.append(
        f"images: {done.found} found, {len(done.bad)} bad, {done.evaluated} evaluated; "
        f"{done.skipped} other files skipped"
    )
    lines += [f"  left out {printable(path)}: {why}" for path, why in done.bad[:_MOST_BAD]]
    if more := done.bad[_MOST_BAD:]:
        lines.append(f"  and {len(more)} more (--json lists all)")
    if done.real_images is not None:
        without = done.evaluated - done.real_images
        lines.append(f"ReaL: {done.real_images} with labels, {without} without left out")
    names = [("top1", "top-1", done.evaluated), ("top5", "top-5", done.evaluated)]
    names += [("real_top1", "ReaL top-1", done.real_images or 0)]
    rows = [["", *(printable(f.path.name) for f in done.figures)]]
    for field, shown, of in names:
        counts = [getattr(f, field) for f in done.figures]
        if of and None not in counts:
            rows.append(
                [shown, *(f"{done.percent(n, of):.2f} % ({n} of {of})" for n in counts)]
            )
    if len(rows) > 1:
        lines += ["", table(rows, align="<" + ">" * len(done.figures))]
    if done.agreeing is not None:
        lines.append(
            f"same top-1 on {done.percent(done.agreeing):.2f} % "
            f"({done.agreeing} of {done.evaluated})"
        )
    return "\n".join(lines)
