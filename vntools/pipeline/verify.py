"""Two artifacts of any kind on the same inputs, and whether their outputs are the same."""

from __future__ import annotations

__all__ = ["Side", "Verified", "VerifyOptions", "verify"]

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vntools.base.artifacts import require_file
from vntools.base.errors import (
    CheckFailed,
    DataFault,
    InternalFault,
    UsageFault,
    about,
    first_three,
)
from vntools.engine.plan import SIDECAR_ONLY, Trust
from vntools.pipeline.artifact_facts import Facts, open_with_facts
from vntools.pipeline.bench import Artifact, Kind, kind_of
from vntools.pipeline.listener import Listener
from vntools.pipeline.same_inputs import Inputs, paired, same_inputs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vntools.base.tolerance import Tolerance
    from vntools.runtime.base import Runner
    from vntools.verify.compare import Difference

# A graph on a GPU may multiply float32 in TF32, which has float16's significand.
_PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8")  # from fine to coarse
_HEADS: dict[tuple[str, ...], str] = {
    ("logits",): "logits",
    ("probabilities",): "probabilities",
    ("indices", "values"): "the top five",
}


@dataclass(frozen=True)
class VerifyOptions:
    """Options of :func:`verify`.

    Attributes:
        path: the artifact in question, A.
        against: the one that it is held against, B.
        data: a folder of images, or a .npz of inputs; None draws seeded inputs.
        batch: None is the artifacts' own where it is fixed, else 8 or what a plan can hold.
        limit: how many samples at most; None is all of ``data``, or 16 seeded ones.
        device: where checkpoints and ONNX files run; a plan runs on a GPU.
        trust: what the user vouches for, of plans.
        tolerance: relative L2 that is allowed, in place of the precision's own.
    """

    path: Path
    against: Path
    data: Path | None = None
    batch: int | None = None
    limit: int | None = None
    device: str = "auto"
    trust: Trust = SIDECAR_ONLY
    tolerance: float | None = None


@dataclass(frozen=True)
class Side:
    """One of the two artifacts, as it ran.

    Attributes:
        precision: of ``fp32``, ``tf32``, ``fp16``, ``bf16``, ``int8``, or what else it says.
        sha256: None of a checkpoint.
    """

    path: Path
    kind: Kind
    backend: str
    precision: str
    sha256: str | None

    def to_record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "path": str(self.path),
            "kind": self.kind,
            "backend": self.backend,
            "precision": self.precision,
            "sha256": self.sha256,
        }


@dataclass(frozen=True)
class Verified:
    """What :func:`verify` found.

    Attributes:
        sides: A and B.
        differences: of each output, A's from B's.
        tolerance: what is allowed.
        precision: whose tolerance it is: the coarser of the two.
        feeds: ``seeded``, or the path of the data.
        batch: samples at a time.
    """

    sides: tuple[Side, Side]
    differences: tuple[Difference, ...]
    tolerance: Tolerance
    precision: str
    feeds: str
    batch: int

    @property
    def failures(self) -> list[str]:
        """What is beyond the tolerance, in words."""
        return [text for d in self.differences if (text := d.beyond(self.tolerance))]

    def require(self) -> None:
        """Refuse what is beyond the tolerance.

        Raises:
            CheckFailed: ``verify.mismatch``.
        """
        if self.failures:
            raise CheckFailed(
                "verify.mismatch",
                first_three(self.failures),
                hint="hold each step of the chain against the one before",
                path=self.sides[0].path,
            )

    def to_record(self) -> dict[str, Any]:
        """As JSON."""
        a, b = self.sides
        return {
            "same": not self.failures,
            "a": a.to_record(),
            "b": b.to_record(),
            "feeds": self.feeds,
            "batch": self.batch,
            "outputs": [d.to_record() for d in self.differences],
            "tolerance": {
                "relative_l2": self.tolerance.max_relative_l2,
                "same_top1": self.tolerance.same_top1,
                "precision": self.precision,
                "why": self.tolerance.why,
            },
        }


def verify(options: VerifyOptions, listener: Listener) -> Verified:
    """Run two artifacts on the same inputs, and compare what they give.

    Raises:
        UsageFault: ``verify.same_file``; ``verify.inputs``, ``verify.preprocessing``,
            ``verify.batch`` (they cannot be given the same); ``verify.tolerance`` (a precision
            without one).
        DataFault: ``input.kind``; ``verify.signature``, ``verify.head``: their inputs or
            outputs do not correspond.
        CheckFailed: ``verify.outputs``, ``.shape``, ``.empty``, ``.nonfinite``, ``.zero``:
            nothing is proved. A difference is no error here: :meth:`Verified.require`.
        VntoolsError: as :func:`vntools.pipeline.bench.open_described`.
    """
    paths = (options.path, options.against)
    kinds = kind_of(paths[0]), kind_of(paths[1])
    if os.path.samefile(*paths):
        raise UsageFault("verify.same_file", "both are the same file", path=paths[0])
    if options.data is not None and not options.data.is_dir():
        require_file(options.data)
    (a, b), facts = _opened(options, paths, kinds, listener)
    with ExitStack() as stack:
        for path, runner in zip(paths, (a, b), strict=True):
            with about(path):
                stack.enter_context(runner)
        precisions = [f.precision_of(r) for f, r in zip(facts, (a, b), strict=True)]
        precision, tolerance = _tolerance(precisions, options.tolerance)
        outputs = _paired_outputs(a, b)
        inputs = same_inputs(
            (a.inputs, b.inputs), facts, options.data, listener,
            batch=options.batch, limit=options.limit,
        )  # fmt: skip
        differences = _compare((a, b), inputs, outputs, paths, listener)
    sides = [
        Side(p, k, r.backend, t, r.details.get("sha256"))
        for p, k, r, t in zip(paths, kinds, (a, b), precisions, strict=True)
    ]
    source = "seeded" if options.data is None else str(options.data)
    return Verified(
        (sides[0], sides[1]), differences, tolerance, precision, source, inputs.batch
    )


def _opened(
    options: VerifyOptions,
    paths: tuple[Path, Path],
    kinds: tuple[Kind, Kind],
    listener: Listener,
) -> tuple[tuple[Runner, Runner], tuple[Facts, Facts]]:
    """The two runners, still to be entered, and what their files say.

    A plan first: where it cannot run, nothing else needs to be loaded.
    """
    found: dict[int, tuple[Runner, Facts]] = {}
    for i in sorted((0, 1), key=lambda i: kinds[i] != "engine"):
        device = "auto" if kinds[i] == "engine" else options.device
        artifact = Artifact(device=device, trust=options.trust)
        with about(paths[i]):
            artifact = replace(artifact, **{kinds[i]: paths[i]})
            found[i] = open_with_facts(artifact, listener)
    (a, facts_a), (b, facts_b) = found[0], found[1]
    return (a, b), (facts_a, facts_b)


def _compare(
    runners: tuple[Runner, Runner],
    inputs: Inputs,
    outputs: Sequence[tuple[str, str]],
    paths: Sequence[Path],
    listener: Listener,
) -> tuple[Difference, ...]:
    """Every batch through both; outputs go by the names that B gives them."""
    from vntools.verify.compare import Tally

    tally = Tally()
    with listener.progress("verify", inputs.batches) as advance:
        for shared in inputs:
            got, want = (
                _run(runner, feed, path)
                for runner, feed, path in zip(
                    runners, (shared.a, shared.b), paths, strict=True
                )
            )
            whole, n = inputs.batch, shared.samples
            with about(paths[0]):
                tally.add(
                    {b: _without_padding(got[a], whole, n) for a, b in outputs},
                    {b: _without_padding(want[b], whole, n) for _, b in outputs},
                )
            advance()
    return tally.differences()


def _without_padding(y: NDArray[Any], batch: int, samples: int) -> NDArray[Any]:
    """The first ``samples`` of an output of a batch that was filled up."""
    return y[:samples] if samples < batch and y.shape[:1] == (batch,) else y


def _run(
    runner: Runner, feeds: Mapping[str, NDArray[Any]], path: Path
) -> dict[str, NDArray[Any]]:
    """Outputs that are finite and not empty.

    Raises:
        CheckFailed: ``verify.nonfinite``, ``verify.outputs``.
    """
    with about(path):
        try:
            return runner.run(feeds)
        except InternalFault as e:
            if e.code != "runner.outputs":
                raise
            raise CheckFailed("verify.outputs", e.message) from e


def _tolerance(precisions: Sequence[str], asked: float | None) -> tuple[str, Tolerance]:
    """The coarsest precision, and what it allows.

    Raises:
        UsageFault: ``verify.tolerance``: a precision that none is known of.
    """
    from vntools.base.tolerance import Tolerance
    from vntools.precision import floats, int8

    known = {
        "fp32": Tolerance(
            1e-5,
            same_top1=True,
            why="float32 rounds by 2^-24, over the layers of a deep network some 1e-6; merged "
            "at a lambda of 0.9999 a network is off by 7e-5",
        ),
        "tf32": Tolerance(
            floats.TOLERANCES["fp16"].max_relative_l2,
            same_top1=False,
            why="on a GPU float32 may be multiplied as TF32, with float16's 11 bits",
        ),
        **floats.TOLERANCES,
        "int8": int8.TOLERANCE,
    }
    unknown = [p for p in precisions if p not in known]
    coarsest = unknown[0] if unknown else max(precisions, key=_PRECISIONS.index)
    if asked is not None:
        return coarsest, Tolerance(asked, same_top1=False, why="--tolerance")
    if unknown:
        raise UsageFault(
            "verify.tolerance",
            f"no tolerance is known for the precision {coarsest}",
            hint="give --tolerance",
        )
    return coarsest, known[coarsest]


def _paired_outputs(a: Runner, b: Runner) -> list[tuple[str, str]]:
    """Names of the same output in A and in B.

    Raises:
        DataFault: ``verify.head``, ``verify.signature``.
        CheckFailed: ``verify.empty``: there are none.
    """
    names = [[s.name for s in r.outputs] for r in (a, b)]
    if not names[0] and not names[1]:
        raise CheckFailed("verify.empty", "neither has an output")
    heads = [_HEADS.get(tuple(sorted(n))) for n in names]
    if None not in heads and heads[0] != heads[1]:
        raise DataFault(
            "verify.head",
            f"one gives {heads[0]}, the other {heads[1]}",
            hint="export both with the same --head",
        )
    pairs = paired(a.outputs, b.outputs)
    if pairs is None:
        raise CheckFailed(
            "verify.outputs",
            f"the outputs do not correspond: {first_three(names[0])} against "
            f"{first_three(names[1])}",
            hint="give both the same outputs",
        )
    return [(x.name, y.name) for x, y in pairs]
