"""Top-1 and top-5 of an artifact on a folder of images."""

from __future__ import annotations

__all__ = ["EvalOptions", "evaluate", "top_classes"]

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vntools.base.artifacts import require_file
from vntools.base.errors import DataFault, UsageFault, about, first_three
from vntools.pipeline.artifact_facts import Facts, open_with_facts, usual_batch
from vntools.pipeline.bench import Artifact, kind_of
from vntools.pipeline.evaluation import Evaluation, Figures
from vntools.pipeline.image_feeds import Feed, ImageFeeds
from vntools.pipeline.image_input import ImageInput
from vntools.pipeline.labels import class_numbers, labelled_files, real_labels
from vntools.pipeline.listener import Listener, Mute, Stopwatch
from vntools.pipeline.ranks import Ranks

if TYPE_CHECKING:
    from vntools.runtime.base import Runner

_TOP = 5


@dataclass(frozen=True)
class EvalOptions:
    """Options of :func:`evaluate`.

    Attributes:
        artifact: what is evaluated.
        data: class folders of images (their ``val`` where ``train`` is beside it), or a folder
            of images without classes.
        batch: images in a query; None is the artifact's fixed batch, or 8, or what a plan can
            hold.
        real_labels: ``real.json`` of Beyer et al. 2020.
        class_map: the number of each class folder, see
            :func:`vntools.pipeline.labels.class_numbers`.
        compare: another artifact, run on the same images.
        skip_bad: leave out images that cannot be read.
        min_top1_percent: the least that is asked for.
        workers: threads that decode; None is one a core.
        crop_ratio: where it is not to be that of the artifact.
    """

    artifact: Artifact
    data: Path
    batch: int | None = None
    real_labels: Path | None = None
    class_map: Path | None = None
    compare: Path | None = None
    skip_bad: bool = False
    min_top1_percent: float | None = None
    workers: int | None = None
    crop_ratio: float | None = None


@dataclass(frozen=True)
class _Contender:
    """An opened artifact."""

    facts: Facts
    runner: Runner
    want: ImageInput
    classes: int


@dataclass(frozen=True)
class _Labels:
    """By image: its class, and its ReaL labels."""

    classes: NDArray[np.int64] | None
    real: Sequence[frozenset[int]] | None

    def score(self, best: NDArray[np.int64], indices: Sequence[int]) -> Counter[str]:
        """How often ``best`` (n, 5) is right on images ``indices``."""
        counts: Counter[str] = Counter()
        if self.classes is not None:
            hits = best == self.classes[indices][:, None]
            counts["top1"], counts["top5"] = int(hits[:, 0].sum()), int(hits.any(axis=1).sum())
        if self.real is not None:
            first = best[:, 0].tolist()
            right = (c in self.real[i] for c, i in zip(first, indices, strict=True))
            counts["real_top1"] = sum(right)
        return counts


def evaluate(options: EvalOptions, listener: Listener) -> Evaluation | None:
    """Run an artifact on every image of a folder and count.

    Under torchrun each process takes every so manieth image, and the first one sums up.

    Returns:
        None in all processes but the first.

    Raises:
        UsageFault: ``eval.*``: options that cannot be meant.
        DataFault: ``eval.*``: images or labels are not what the artifact needs;
            ``data.image``: an image cannot be used, without ``skip_bad``.
        VntoolsError: as the runners do.
    """
    ranks = Ranks.of_environment()
    listener = listener if ranks.rank == 0 else Mute()
    phase = Stopwatch(listener)
    for path in (options.real_labels, options.class_map):
        if path is not None:
            require_file(path)
    artifacts = _artifacts(options, ranks)
    root, listing = labelled_files(options.data, listener)
    with ExitStack() as stack:
        stack.enter_context(ranks.joined(options.artifact.device))
        with phase("open"):
            contenders = [_opened(a, options, listener, stack) for a in artifacts]
        labels = _labels(options, root, listing.files, contenders, listener)
        with phase("evaluate") as advance:
            counts, bad = _run(
                options, listing.files, contenders, labels, ranks=ranks, advance=advance
            )
        shares = ranks.gather((counts, bad))
    if ranks.rank:
        return None
    total: Counter[str] = Counter()
    for share, _ in shares:
        total.update(share)
    left_out = sorted(fault for _, faults in shares for fault in faults)
    if not total["images"]:
        raise DataFault("eval.empty", "not one image can be used", path=root)
    return Evaluation(
        len(listing.files),
        listing.skipped,
        tuple(left_out),
        total["images"],
        total["real"] if labels.real is not None else None,
        tuple(_figures(c, total, f"{i}.", labels) for i, c in enumerate(contenders)),
        total["agreeing"] if len(contenders) > 1 else None,
        ranks.world,
        phase.seconds(),
    )


def _artifacts(options: EvalOptions, ranks: Ranks) -> list[Artifact]:
    """What is opened, each with its share of the cores where processes share them."""
    first = options.artifact
    require_file(first.path)
    if first.threads is None and ranks.local_world > 1:
        first = replace(first, threads=ranks.cores)
    if options.compare is None:
        return [first]
    plain = replace(first, engine=None, onnx=None, ckpt=None)
    return [first, replace(plain, **{kind_of(options.compare): options.compare})]


def _opened(
    artifact: Artifact, options: EvalOptions, listener: Listener, stack: ExitStack
) -> _Contender:
    with about(artifact.path):
        runner, facts = open_with_facts(artifact, listener)
        stack.enter_context(runner)
        ratio = options.crop_ratio
        want = ImageInput.of(runner.inputs, facts.metadata, listener, crop_ratio=ratio)
        return _Contender(facts, runner, want, _classes(runner, facts.metadata))


def _classes(runner: Runner, metadata: Mapping[str, str]) -> int:
    """How many classes there are.

    Raises:
        DataFault: ``eval.output``: the outputs are not those of a classifier.
    """
    outputs = runner.outputs
    classes: int | str | None = None
    if {o.name for o in outputs} == {"values", "indices"}:
        said = metadata.get("vntools.classes", "")
        classes = int(said) if said.isdecimal() else None
    elif len(outputs) == 1 and len(outputs[0].shape) == 2:
        classes = outputs[0].shape[1]
    if not isinstance(classes, int):
        found = first_three(map(str, outputs))
        raise DataFault("eval.output", f"one output (n, classes) is needed, not {found}")
    return classes


def _labels(
    options: EvalOptions,
    root: Path,
    files: Sequence[Path],
    contenders: Sequence[_Contender],
    listener: Listener,
) -> _Labels:
    """Labels of the images.

    Raises:
        DataFault: ``eval.classes`` and others, see :mod:`vntools.pipeline.labels`;
            ``eval.labels``: there are none, and nothing to compare with.
        UsageFault: ``eval.min_top1``: there are no classes to be right about.
    """
    if len({c.classes for c in contenders}) > 1:
        raise DataFault(
            "eval.compare",
            f"it has {contenders[1].classes} outputs and not {contenders[0].classes}",
            path=contenders[1].facts.path,
        )
    classes = contenders[0].classes
    numbers = class_numbers(files, root, classes, listener, class_map=options.class_map)
    real = None
    if options.real_labels is not None:
        real = real_labels(files, options.real_labels, classes)
    if numbers is None and options.min_top1_percent is not None:
        raise UsageFault("eval.min_top1", "--min-top1 needs images in class folders")
    if numbers is None and real is None and options.compare is None:
        raise DataFault(
            "eval.labels",
            "its images lie in no class folders",
            hint="give --real-labels, or --compare for agreement alone",
            path=root,
        )
    return _Labels(numbers, real)


def _batch(options: EvalOptions, contenders: Sequence[_Contender]) -> int:
    """Images in a query, of all artifacts alike.

    Raises:
        UsageFault: ``eval.batch``.
    """
    asked = {b for b in (options.batch, *(c.want.batch for c in contenders)) if b is not None}
    if len(asked) > 1:
        raise UsageFault(
            "eval.batch",
            f"batches of {' and '.join(map(str, sorted(asked)))} do not go together",
            hint="a fixed batch cannot be changed",
        )
    return min(asked, default=usual_batch(c.facts for c in contenders))


def _run(
    options: EvalOptions,
    files: Sequence[Path],
    contenders: Sequence[_Contender],
    labels: _Labels,
    *,
    ranks: Ranks,
    advance: Callable[..., None],
) -> tuple[Counter[str], list[tuple[str, str]]]:
    """Counts over this process's share of the images, and its bad ones."""
    mine = range(ranks.rank, len(files), ranks.world)
    bad: list[tuple[str, str]] = []

    def on_bad(fault: DataFault) -> None:
        if not options.skip_bad:
            hint = "--skip-bad leaves such images out"
            raise DataFault(fault.code, fault.message, hint=hint, path=fault.path)
        bad.append((fault.path or "", fault.message))
        advance(1, len(mine))

    feeds = ImageFeeds(
        [files[i] for i in mine],
        [c.want for c in contenders],
        batch=_batch(options, contenders),
        on_bad=on_bad,
        pad=True,
        workers=options.workers or ranks.cores,
    )
    counts: Counter[str] = Counter()
    for batch in feeds:
        indices = [mine[i] for i in batch.indices]
        counts["images"] += len(indices)
        if labels.real is not None:
            counts["real"] += sum(bool(labels.real[i]) for i in indices)
        firsts: list[NDArray[np.int64]] = []
        for number, (contender, feed) in enumerate(zip(contenders, batch.feeds, strict=True)):
            best = _best(contender, feed)[: len(indices)]
            firsts.append(best[:, 0])
            scored = labels.score(best, indices)
            counts.update({f"{number}.{key}": value for key, value in scored.items()})
        if len(firsts) > 1:
            counts["agreeing"] += int((firsts[0] == firsts[1]).sum())
        advance(len(indices), len(mine))
    return counts, bad


def _best(contender: _Contender, feed: Feed) -> NDArray[np.int64]:
    """Classes of each of the images in ``feed``.

    Raises:
        DataFault: ``eval.output``: the output has not a row for each image.
        CheckFailed: ``verify.nonfinite``, as :meth:`vntools.runtime.base.Runner.run`.
    """
    with about(contender.facts.path):
        best, images = top_classes(contender.runner.run(feed)), len(feed[contender.want.name])
        if len(best) != images:
            raise DataFault("eval.output", f"{len(best)} rows of classes for {images} images")
        return best


def top_classes(outputs: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
    """The five classes of largest value, largest first; of equal ones the lower number.

    Args:
        outputs: ``values`` and ``indices`` of a top-5 head; else one (n, classes).

    Returns:
        (n, 5), or as many as there are classes.
    """
    if "indices" in outputs:
        return outputs["indices"].astype(np.int64)
    (scores,) = outputs.values()
    # As they are, bytes have no negatives.
    falling = np.argsort(-scores.astype(np.float64), axis=1, kind="stable")
    return falling[:, :_TOP].astype(np.int64)


def _figures(
    contender: _Contender, total: Mapping[str, int], prefix: str, labels: _Labels
) -> Figures:
    classed = labels.classes is not None
    return Figures(
        contender.facts.path,
        contender.runner.backend,
        contender.facts.precision_of(contender.runner),
        contender.want,
        total[prefix + "top1"] if classed else None,
        total[prefix + "top5"] if classed else None,
        total[prefix + "real_top1"] if labels.real is not None else None,
    )
