"""Two artifacts held against each other, as text."""

from __future__ import annotations

__all__ = ["verified_text"]

from typing import TYPE_CHECKING

from vntools.base.errors import printable
from vntools.report.table import table

if TYPE_CHECKING:
    from vntools.pipeline.verify import Verified

_KINDS = {"engine": "plan", "onnx": "ONNX", "ckpt": "checkpoint"}


def verified_text(done: Verified) -> str:
    """Who was compared with whom on what, each output's figures, the bound and the verdict."""
    sides = [
        (name, printable(str(s.path)), _KINDS[s.kind], s.precision, s.backend)
        for name, s in zip("AB", done.sides, strict=True)
    ]
    rows = [("output", "relative L2", "max abs", "cosine", "top-1 equal", "equal")]
    rows += [
        (
            printable(d.output),
            _shown(d.relative_l2, ".2e"),
            _shown(d.max_abs, ".2e"),
            _shown(d.cosine, ".8f"),
            _shown(d.top1_agreement, ".2%"),
            _shown(d.equal, ".2%"),
        )
        for d in done.differences
    ]
    used = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])]
    shown = [[row[i] for i in used] for row in rows]
    samples = max(d.samples for d in done.differences)
    source = "seeded" if done.feeds == "seeded" else f"from {printable(done.feeds)}"
    top1 = ", the same top-1" if done.tolerance.same_top1 else ""
    return "\n".join(
        [
            table(sides, align="<<<<<"),
            f"{samples} samples, {source}, {done.batch} at a time",
            "",
            table(shown, align="<" + ">" * (len(shown[0]) - 1)),
            "",
            (
                f"allowed for {done.precision}: relative L2 "
                f"{done.tolerance.max_relative_l2:.1e}{top1} ({done.tolerance.why})"
            ),
            "different" if done.failures else "the same within that",
        ]
    )


def _shown(number: float | None, form: str) -> str:
    return "" if number is None else f"{number:{form}}"
