"""Checkpoint to a simplified, verified and self-contained ONNX file."""

from __future__ import annotations

__all__ = [
    "ExportOptions",
    "Exported",
    "beside",
    "export",
    "stamp",
    "publish_proved",
    "write_sealed",
]

import gc
import json
import os
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from vntools.base.artifacts import (
    check_output,
    published,
    require_file,
    seal_and_hash,
    sha256_and_identity,
)
from vntools.base.errors import IoFault, UsageFault, printable
from vntools.base.provenance import version_of
from vntools.base.tolerance import Tolerance
from vntools.pipeline.listener import Listener, Stopwatch
from vntools.pipeline.references import (
    Source,
    keep_memory,
    make_references,
    seeded_feeds,
    share_cores,
)
from vntools.pipeline.serialize import serialize

if TYPE_CHECKING:
    from torch import nn

    from vntools.export.graph import GraphStats
    from vntools.export.interface import Interface
    from vntools.export.rewrite import Rewrite, Skip
    from vntools.models.checkpoint import Checkpoint
    from vntools.pipeline.witness import Way
    from vntools.verify.compare import Comparison


T = TypeVar("T")


@dataclass(frozen=True)
class ExportOptions:
    """Options of :func:`export`.

    Attributes:
        ckpt: a checkpoint in the released format, training or deploy form.
        out: the ONNX file to write.
        arch, key, image_size: where the file does not tell, or to override it.
        num_classes: what the head must have.
        batch: a fixed batch; None leaves it dynamic.
        opset: of the ONNX domain; None takes the newest that TensorRT 10 and 11 parse.
        merge: whether the graph passes run; without them the training graph is only tidied.
        force: overwrite a file that vntools did not write.
        normalize: mean and std that the graph applies: ``imagenet``, or numbers as
            :func:`vntools.export.interface.parse_normalize` reads them; None leaves that to
            the host.
        input_type, layout, head: see :class:`vntools.export.interface.Interface`.
    """

    ckpt: Path
    out: Path
    arch: str | None = None
    key: str | None = None
    num_classes: int | None = None
    image_size: int | None = None
    batch: int | None = None
    opset: int | None = None
    merge: bool = True
    force: bool = False
    normalize: str | None = None
    input_type: str = "fp32"
    layout: str = "nchw"
    head: str = "logits"


@dataclass
class Exported:
    """What :func:`export` or :func:`vntools.pipeline.simplify.simplify` did.

    Attributes:
        before, after: the graph as it came and as it was written.
        comparison: against the graph as it came, on every seeded input; None where it cannot
            be run.
        tolerance: what was allowed.
        pytorch: against PyTorch's own float32 forward; None where there is no module.
        seconds: by phase, and in all (``total``).
        verified_by: what was compared with what: :data:`vntools.pipeline.witness.Way`.
    """

    out: Path
    sha256: str
    size_bytes: int
    before: GraphStats
    after: GraphStats
    rewrites: list[Rewrite]
    skips: list[Skip]
    comparison: Comparison | None
    tolerance: Tolerance | None
    pytorch: Comparison | None
    metadata: dict[str, str]
    seconds: dict[str, float] = field(default_factory=dict)
    verified_by: Way = "float64"

    def to_record(self) -> dict[str, Any]:
        """As JSON."""
        verify: dict[str, Any] = {"by": self.verified_by}
        if self.comparison is not None and self.tolerance is not None:
            verify |= self.comparison.to_record(self.tolerance)
        if self.pytorch is not None:
            verify["pytorch_relative_l2"] = self.pytorch.relative_l2
        return {
            "out": str(self.out),
            "sha256": self.sha256,
            "bytes": self.size_bytes,
            "graph": {"before": self.before.to_record(), "after": self.after.to_record()},
            "rewrites": [r.to_record() for r in self.rewrites],
            "skips": [s.to_record() for s in self.skips],
            "verify": verify,
            "metadata": self.metadata,
            "seconds": {k: round(v, 3) for k, v in self.seconds.items()},
        }


def export(options: ExportOptions, listener: Listener) -> Exported:
    """A checkpoint to a merged, verified, self-contained ONNX file.

    The graph is held against two references before it is published, on seeded inputs at the
    exported size: the traced graph in float64, and PyTorch's float32 forward of the module.

    Raises:
        VntoolsError: as the parts do; nothing has been written then.
    """
    require_file(options.ckpt)
    check_output(options.out, force=options.force, inputs=(options.ckpt,))
    phase = Stopwatch(listener)
    keep_memory()
    share_cores()
    with beside() as pool, _uncollected():
        hashing = pool.submit(sha256_and_identity, options.ckpt)
        with phase("load"):
            interface = _interface(options)
            checkpoint, module = _load(options, listener)
        _check_normalize(interface, checkpoint, listener)
        from vntools.export.trace import DEFAULT_OPSET, trace

        size = checkpoint.preprocessing.image_size
        with phase("trace"):
            opset = options.opset or DEFAULT_OPSET
            raw = trace(module, size, batch=options.batch, opset=opset)
            interface.add_to(raw)
        digest, hashed = hashing.result()
        if hashed != checkpoint.identity:
            raise IoFault("input.changed", "changed while it was read", path=options.ckpt)
        metadata = _metadata(checkpoint, options, interface, digest)
    sources = [Source(raw, module, interface)]
    del checkpoint, raw, module
    return _finish(sources, options, metadata, phase)


@contextmanager
def beside() -> Generator[ThreadPoolExecutor, None, None]:
    """A thread for work that only reads; after an error or a signal it is not waited for."""
    pool = ThreadPoolExecutor(1)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


@contextmanager
def _uncollected() -> Generator[None, None, None]:
    """Without garbage collection, for work that makes a great many objects that stay.

    Importing torch and tracing take a fifth less time so.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _load(options: ExportOptions, listener: Listener) -> tuple[Checkpoint, nn.Module]:
    from vntools.models.checkpoint import load_checkpoint, require_merged, to_module

    checkpoint = load_checkpoint(
        options.ckpt,
        key=options.key,
        arch=options.arch,
        image_size=options.image_size,
        num_classes=options.num_classes,
    )
    for note in checkpoint.notes:
        listener.note(note)
    for code, text in checkpoint.warnings:
        listener.warn(code, text)
    if options.merge:
        require_merged(checkpoint)
    return checkpoint, to_module(checkpoint)


def stamp(source: Path, digest: str) -> dict[str, str]:
    """Metadata that every file of ours has: its stage, and the artifact before it."""
    return {
        "vntools.version": version_of("vntools") or "",
        "vntools.stage": "verified",
        "vntools.source": printable(source.name),
        "vntools.source_sha256": digest,
    }


def _interface(options: ExportOptions) -> Interface:
    """What the user asks for, before anything is read.

    Raises:
        UsageFault: ``export.normalize``.
    """
    from vntools.export.interface import Interface, Normalization, parse_normalize
    from vntools.models.arch import IMAGENET_MEAN, IMAGENET_STD

    normalize = None
    try:
        if options.normalize == "imagenet":
            normalize = Normalization(IMAGENET_MEAN, IMAGENET_STD)
        elif options.normalize is not None:
            normalize = parse_normalize(options.normalize)
    except ValueError as e:
        raise UsageFault("export.normalize", f"--normalize: {e}") from e
    return Interface(normalize, options.input_type, options.layout, options.head)


def _check_normalize(interface: Interface, checkpoint: Checkpoint, listener: Listener) -> None:
    """Warn where the network was trained on images normalised otherwise."""
    asked, used = interface.normalize, checkpoint.preprocessing
    if asked is not None and (asked.mean, asked.std) != (used.mean, used.std):
        listener.warn(
            "export.normalize",
            f"the checkpoint says mean {used.mean} and std {used.std}, not those asked for",
        )


def _metadata(
    checkpoint: Checkpoint, options: ExportOptions, interface: Interface, digest: str
) -> dict[str, str]:
    arch, preprocessing = checkpoint.arch, checkpoint.preprocessing
    if interface.normalize is not None:
        preprocessing = replace(preprocessing, **asdict(interface.normalize))
    return {
        **stamp(options.ckpt, digest),
        "vntools.model": arch.name,
        "vntools.form": checkpoint.form if options.merge else f"{checkpoint.form}, not merged",
        "vntools.weights": checkpoint.key_used or "",
        "vntools.lambda": _lambda_text(checkpoint),
        "vntools.classes": str(arch.num_classes),
        "vntools.preprocessing": json.dumps(
            {**asdict(preprocessing), **interface.to_record()}
        ),
    }


def _lambda_text(checkpoint: Checkpoint) -> str:
    info = checkpoint.lambda_
    if info.value is None:
        return "none, deploy form"
    return "assumed 1" if info.assumed else f"{info.value:g}"


def _finish(
    sources: list[Source],
    options: ExportOptions,
    metadata: dict[str, str],
    phase: Stopwatch,
) -> Exported:
    """Raw graph to published file: passes, and beside them the references; proof; seal.

    The one source is taken out of its list, so that its weights can go when they have been
    read.
    """
    from vntools.export.graph import stats
    from vntools.export.naming import rename
    from vntools.export.rewrite import Applied, apply_passes
    from vntools.export.simplify import tidy
    from vntools.models.vanillanet import deploy_name
    from vntools.verify.compare import FLOAT32_FACTOR, FLOAT32_FLOOR, compare
    from vntools.verify.float32 import run_float32

    source = sources.pop()
    interface = source.interface
    before, feeds = stats(source.raw.graph), seeded_feeds(source.raw)
    merged = source.raw.clone()
    with beside() as pool:
        references = pool.submit(make_references, source, feeds)
        del source
        with phase("merge") as advance:
            applied = Applied()
            if options.merge:
                applied = apply_passes(merged.graph, advance=lambda _: advance())
            merged = tidy(merged)
            rename(merged.graph, deploy_name if options.merge else str)
        after = stats(merged.graph)
        data = serialize(merged, metadata)
        del merged
        with phase("references"):
            known = references.result()
    del references
    gc.collect()  # graphs refer to themselves: only now the training weights are let go
    tolerance = Tolerance(
        max(FLOAT32_FACTOR * known.noise.relative_l2, FLOAT32_FLOOR),
        same_top1=True,
        why="rounding of the unsimplified float32 graph in this run, times 8",
    )

    def prove() -> tuple[Comparison, Comparison]:
        got = [interface.compared(y) for y in run_float32(data, feeds)]
        found: list[Comparison] = []
        for what, known_outputs in (("float64", known.float64), ("PyTorch", known.pytorch)):
            what = f"the exported graph against {what}"  # noqa: PLW2901
            found.append(compare(list(zip(got, known_outputs, strict=True)), what))
            found[-1].require(tolerance, what)
        return found[0], found[1]

    published_file, (comparison, pytorch) = publish_proved(
        options.out, data, prove, phase, force=options.force
    )
    return Exported(
        options.out,
        *published_file,
        before,
        after,
        applied.rewrites,
        applied.skips,
        comparison,
        tolerance,
        pytorch,
        metadata,
        phase.seconds(),
    )


def publish_proved(
    out: Path, data: bytes, prove: Callable[[], T], phase: Stopwatch, *, force: bool
) -> tuple[tuple[str, int], T]:
    """Write a model while it is proved; it gets its name only when both have ended well.

    Returns:
        The file's SHA-256 and size, and what ``prove`` returned.
    """
    with (
        published(out, force=force, size_hint=len(data)) as f,
        ThreadPoolExecutor(1) as pool,
    ):
        written = pool.submit(write_sealed, f, data)
        with phase("verify"):
            proof = prove()
        with phase("publish"):
            return written.result(), proof


def write_sealed(file: IO[bytes], data: bytes) -> tuple[str, int]:
    """Write a model and its seal through to the disk; their SHA-256 and size."""
    tail, digest = seal_and_hash(data)
    file.write(data)
    file.write(tail)
    file.flush()
    os.fsync(file.fileno())
    return digest, len(data) + len(tail)
