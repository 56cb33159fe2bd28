"""Checkpoint, or any ONNX file, to a simplified, verified and self-contained ONNX file."""

from __future__ import annotations

__all__ = [
    "ExportOptions",
    "Exported",
    "SimplifyOptions",
    "export",
    "simplify",
]

import gc
import json
import os
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from vntools.base.artifacts import (
    SEAL_KEY,
    check_output,
    published,
    require_file,
    seal_and_hash,
    sha256_file,
)
from vntools.base.errors import about, first_three
from vntools.base.provenance import version_of
from vntools.base.tolerance import Tolerance
from vntools.pipeline.listener import Listener, Stopwatch
from vntools.pipeline.references import Source, make_references, seeded_feeds, share_cores
from vntools.pipeline.serialize import serialize

if TYPE_CHECKING:
    from torch import nn

    from vntools.export.graph import GraphStats
    from vntools.export.rewrite import Rewrite, Skip
    from vntools.models.checkpoint import Checkpoint
    from vntools.verify.compare import Comparison


@dataclass(frozen=True)
class ExportOptions:
    """Options of :func:`export`.

    Attributes:
        ckpt: a checkpoint in the released format, training or deploy form.
        out: the ONNX file to write.
        arch, key, image_size: where the file does not tell, or to override it.
        batch: a fixed batch; None leaves it dynamic.
        opset: of the ONNX domain; None takes the newest that TensorRT 10 and 11 parse.
        merge: whether the graph passes run; without them the training graph is only tidied.
        force: overwrite a file that vntools did not write.
    """

    ckpt: Path
    out: Path
    arch: str | None = None
    key: str | None = None
    image_size: int | None = None
    batch: int | None = None
    opset: int | None = None
    merge: bool = True
    force: bool = False


@dataclass(frozen=True)
class SimplifyOptions:
    """Options of :func:`simplify`: the ONNX file to read and the one to write."""

    source: Path
    out: Path
    force: bool = False


@dataclass
class Exported:
    """What :func:`export` or :func:`simplify` did.

    Attributes:
        before, after: the graph as it came and as it was written.
        comparison: against float64, on every seeded input.
        tolerance: what was allowed.
        pytorch: against PyTorch's own float32 forward; None where there is no module.
        seconds: by phase, and in all (``total``).
    """

    out: Path
    sha256: str
    size_bytes: int
    before: GraphStats
    after: GraphStats
    rewrites: list[Rewrite]
    skips: list[Skip]
    comparison: Comparison
    tolerance: Tolerance
    pytorch: Comparison | None
    metadata: dict[str, str]
    seconds: dict[str, float] = field(default_factory=dict)

    def to_record(self) -> dict[str, Any]:
        """As JSON."""
        verify = self.comparison.to_record(self.tolerance)
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
    share_cores()
    with _beside() as pool, _uncollected():
        digest = pool.submit(sha256_file, options.ckpt)
        with phase("load"):
            checkpoint, module = _load(options, listener)
        from vntools.export.trace import DEFAULT_OPSET, trace
        from vntools.models.vanillanet import deploy_name

        size = checkpoint.preprocessing.image_size
        with phase("trace"):
            opset = options.opset or DEFAULT_OPSET
            raw = trace(module, size, batch=options.batch, opset=opset)
        metadata = _metadata(checkpoint, options, digest.result())
    sources = [Source(raw, module)]
    del checkpoint, raw, module
    name = deploy_name if options.merge else str
    target = _Target(options.out, options.force, options.merge, name, samples_apart=True)
    return _finish(sources, target, metadata, phase)


def simplify(options: SimplifyOptions, listener: Listener) -> Exported:
    """Any ONNX file through the passes and onnxsim, verified against itself in float64.

    Raises:
        VntoolsError: as the parts do; nothing has been written then.
    """
    from vntools.export.load import load_onnx
    from vntools.export.naming import name_nodes

    require_file(options.source)
    check_output(options.out, force=options.force, inputs=(options.source,))
    phase = Stopwatch(listener)
    share_cores()
    with phase("load"):
        raw, digest = load_onnx(options.source)
        name_nodes(raw.graph)
    kept = {k: v for k, v in raw.metadata_props.items() if k != SEAL_KEY}
    metadata = {**kept, **_stamp(options.source, digest)}
    raw.metadata_props.clear()
    if overridable := [v.name or "" for v in raw.graph.inputs if v.is_initializer()]:
        listener.warn(
            "onnx.overridable",
            f"a caller may override {first_three(overridable)}; they are left alone",
        )
    sources = [Source(raw, None)]
    del raw
    with about(options.source):
        return _finish(sources, _Target(options.out, options.force), metadata, phase)


@dataclass(frozen=True)
class _Target:
    """Where to, and how; ``samples_apart``: operators treat the samples of a batch apart."""

    out: Path
    force: bool
    merge: bool = True
    rename: Callable[[str], str] | None = None
    samples_apart: bool = False


@contextmanager
def _beside() -> Generator[ThreadPoolExecutor, None, None]:
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
        options.ckpt, key=options.key, arch=options.arch, image_size=options.image_size
    )
    for note in checkpoint.notes:
        listener.note(note)
    for code, text in checkpoint.warnings:
        listener.warn(code, text)
    if options.merge:
        require_merged(checkpoint)
    return checkpoint, to_module(checkpoint)


def _stamp(source: Path, digest: str) -> dict[str, str]:
    """Metadata that every file of ours has: its stage, and the artifact before it."""
    return {
        "vntools.version": version_of("vntools") or "",
        "vntools.stage": "verified",
        "vntools.source": source.name,
        "vntools.source_sha256": digest,
    }


def _metadata(checkpoint: Checkpoint, options: ExportOptions, digest: str) -> dict[str, str]:
    arch = checkpoint.arch
    return {
        **_stamp(options.ckpt, digest),
        "vntools.model": arch.name,
        "vntools.form": checkpoint.form if options.merge else f"{checkpoint.form}, not merged",
        "vntools.weights": checkpoint.key_used or "",
        "vntools.lambda": _lambda_text(checkpoint),
        "vntools.classes": str(arch.num_classes),
        "vntools.preprocessing": json.dumps(asdict(checkpoint.preprocessing)),
    }


def _lambda_text(checkpoint: Checkpoint) -> str:
    info = checkpoint.lambda_
    if info.value is None:
        return "none, deploy form"
    return "assumed 1" if info.assumed else f"{info.value:g}"


def _finish(
    sources: list[Source],
    target: _Target,
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
    from vntools.verify.compare import FLOAT32_FACTOR, FLOAT32_FLOOR, compare
    from vntools.verify.float32 import run_float32

    source = sources.pop()
    before, feeds = stats(source.raw.graph), seeded_feeds(source.raw)
    merged = source.raw.clone()
    with _beside() as pool:
        references = pool.submit(
            make_references, source, feeds, samples_apart=target.samples_apart
        )
        del source
        with phase("merge") as advance:
            applied = Applied()
            if target.merge:
                applied = apply_passes(merged.graph, advance=lambda _: advance())
            merged = tidy(merged)
            if target.rename is not None:
                rename(merged.graph, target.rename)
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
    with (
        published(target.out, force=target.force, size_hint=len(data)) as f,
        ThreadPoolExecutor(1) as pool,
    ):
        # The file is written while it is verified; it gets its name only when the block ends
        # well.
        written = pool.submit(_write, f, data)
        with phase("verify"):
            got = run_float32(data, feeds)
            what = "the exported graph against float64"
            comparison = compare(list(zip(got, known.float64, strict=True)), what)
            comparison.require(tolerance, what)
            pytorch = None
            if known.pytorch is not None:
                what = "the exported graph against PyTorch"
                pytorch = compare(list(zip(got, known.pytorch, strict=True)), what)
                pytorch.require(tolerance, what)
        with phase("publish"):
            digest, size = written.result()
    return Exported(
        target.out,
        digest,
        size,
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


def _write(file: IO[bytes], data: bytes) -> tuple[str, int]:
    """Write a model and its seal through to the disk; their SHA-256 and size."""
    tail, digest = seal_and_hash(data)
    file.write(data)
    file.write(tail)
    file.flush()
    os.fsync(file.fileno())
    return digest, len(data) + len(tail)
