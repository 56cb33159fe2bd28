"""What an evaluation found."""

from __future__ import annotations

__all__ = ["Evaluation", "Figures"]

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vntools.base.errors import CheckFailed

if TYPE_CHECKING:
    from vntools.pipeline.image_input import ImageInput


@dataclass(frozen=True)
class Figures:
    """How often one artifact is right; None is what there are no labels for.

    Attributes:
        precision: see :meth:`vntools.pipeline.artifact_facts.Facts.precision_of`.
        top1, top5: of the evaluated images.
        real_top1: of the images with ReaL labels.
    """

    path: Path
    backend: str
    precision: str
    preprocessing: ImageInput
    top1: int | None
    top5: int | None
    real_top1: int | None


@dataclass(frozen=True)
class Evaluation:
    """What :func:`vntools.pipeline.evaluate.evaluate` found.

    Attributes:
        found: image files.
        skipped: other files.
        bad: images that were left out, and why.
        evaluated: ``found`` without ``bad``: what percentages are of.
        real_images: evaluated images with ReaL labels; None without such labels.
        figures: of the artifact, and of the one it is compared with.
        agreeing: images for which both have the same top-1; None without another.
        processes: how many shared the work.
    """

    found: int
    skipped: int
    bad: tuple[tuple[str, str], ...]
    evaluated: int
    real_images: int | None
    figures: tuple[Figures, ...]
    agreeing: int | None
    processes: int
    seconds: dict[str, float]

    def percent(self, right: int, of: int | None = None) -> float:
        """``right`` in per cent of the evaluated images, or of ``of``."""
        return 100 * right / (self.evaluated if of is None else of)

    def to_record(self) -> dict[str, Any]:
        """As JSON."""
        first, *others = map(self._record, self.figures)
        record: dict[str, Any] = {
            **first,
            "images": {
                "found": self.found,
                "skipped": self.skipped,
                "bad": len(self.bad),
                "evaluated": self.evaluated,
            },
            "bad": [{"path": path, "message": message} for path, message in self.bad],
            "processes": self.processes,
            "seconds": {k: round(v, 3) for k, v in self.seconds.items()},
        }
        if self.real_images is not None:
            record["images"]["real"] = self.real_images
        if self.agreeing is not None:
            record["compare"] = {
                **others[0],
                "agreeing": self.agreeing,
                "agreement_percent": self.percent(self.agreeing),
            }
        return record

    def _record(self, figures: Figures) -> dict[str, Any]:
        record: dict[str, Any] = {
            "path": str(figures.path),
            "backend": figures.backend,
            "precision": figures.precision,
            "preprocessing": figures.preprocessing.to_record(),
        }
        for name in ("top1", "top5"):
            right: int | None = getattr(figures, name)
            if right is not None:
                record |= {name: right, f"{name}_percent": self.percent(right)}
        if figures.real_top1 is not None and self.real_images:
            record["real_top1"] = figures.real_top1
            record["real_top1_percent"] = self.percent(figures.real_top1, self.real_images)
        return record

    def require(self, min_top1_percent: float | None) -> None:
        """Hold top-1 against what was asked for.

        Raises:
            CheckFailed: ``eval.below``.
        """
        top1 = self.figures[0].top1
        if min_top1_percent is None or top1 is None:
            return
        if not self.percent(top1) >= min_top1_percent:
            raise CheckFailed(
                "eval.below",
                f"top-1 is {self.percent(top1):.3f} % ({top1} of {self.evaluated}), "
                f"{min_top1_percent:g} % was asked for",
            )
