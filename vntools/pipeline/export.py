"""Checkpoint, or any ONNX file, to a simplified, verified and self-contained ONNX file."""

from __future__ import annotations

__all__ = [
    "ExportOptions",
    "Exported",
    "SimplifyOptions",
    "export",
    "seeded_feeds",
    "simplify",
]

import gc
import json
import os
from collections.abc import Callable, Generator, Mapping, Sequence
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
from vntools.base.errors import DataFault, InternalFault, about, first_three
from vntools.base.provenance import version_of
from vntools.base.tolerance import Tolerance
from vntools.pipeline.listener import Listener, Stopwatch

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray
    from torch import nn

    from vntools.export.graph import GraphStats
    from vntools.export.rewrite import Rewrite, Skip
    from vntools.models.checkpoint import Checkpoint
    from vntools.verify.compare import Comparison

_BATCHES = (
    1,
    3,
)  # a seeded input of each, where the batch is dynamic; the last is the largest
_LARGEST_PROTOBUF = (1 << 31) - (1 << 20)  # bytes, with room for the graph
_DYNAMIC_EXTENT = 224  # pixels, where height or width is dynamic


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
        verify = {
            "relative_l2": self.comparison.relative_l2,
            "max_abs": self.comparison.max_abs,
            "top1_agreement": self.comparison.top1_agreement,
            "allowed": self.tolerance.max_relative_l2,
        }
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
    sources = [_Source(raw, module)]
    del checkpoint, raw, module
    target = _Target(
        options.out, options.force, options.merge, deploy_name, samples_apart=True
    )
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
    sources = [_Source(raw, None)]
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


def seeded_feeds(model: ir.Model) -> list[dict[str, NDArray[Any]]]:
    """Seeded standard normal inputs of batch 3, and the first sample of them as batch 1.

    Where the batch is fixed there is one input, of that batch. Other dynamic axes are 224
    long.

    Raises:
        DataFault: ``onnx.shape``: an input has no type or rank.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    large: dict[str, NDArray[Any]] = {}
    dynamic: set[str] = set()
    for value in model.graph.inputs:
        if value.is_initializer() or value.name is None:
            continue
        if value.shape is None or value.dtype is None:
            raise DataFault("onnx.shape", f"input {value.name} has no type or rank")
        dims = [d if isinstance(d, int) else _DYNAMIC_EXTENT for d in value.shape]
        if dims and not isinstance(value.shape[0], int):
            dims[0] = _BATCHES[-1]
            dynamic.add(value.name)
        large[value.name] = rng.standard_normal(dims).astype(value.dtype.numpy())
    if not dynamic:
        return [large]
    return [
        {name: x[:n] if name in dynamic else x for name, x in large.items()} for n in _BATCHES
    ]


def _pytorch(
    module: nn.Module, feeds: Sequence[Mapping[str, NDArray[Any]]]
) -> list[dict[str, NDArray[Any]]]:
    """PyTorch's own float32 forward of the module."""
    import torch

    with torch.inference_mode():
        whole = {"logits": module(torch.from_numpy(feeds[-1]["input"])).numpy()}
    return _for_each(whole, feeds)


def _for_each(
    whole: Mapping[str, NDArray[Any]], feeds: Sequence[Mapping[str, NDArray[Any]]]
) -> list[dict[str, NDArray[Any]]]:
    """Outputs for every feed, from those for the last: the others are its first samples.

    True of a VanillaNet, whose operators all treat samples apart.
    """
    batches = [len(next(iter(feed.values()))) for feed in feeds]
    return [{name: y[:n] for name, y in whole.items()} for n in batches]


@dataclass(frozen=True)
class _Source:
    """A traced or loaded graph, and the module that it is of, if any."""

    raw: ir.Model
    module: nn.Module | None


@dataclass(frozen=True)
class _References:
    """What the exported graph is held against, and how far from it the training graph is.

    Attributes:
        float64: outputs of the unsimplified graph for every feed.
        pytorch: outputs of the module; None where there is none.
        noise: the unsimplified graph in float32 against float64.
    """

    float64: list[dict[str, NDArray[Any]]]
    pytorch: list[dict[str, NDArray[Any]]] | None
    noise: Comparison


def _references(
    source: _Source, feeds: list[dict[str, NDArray[Any]]], *, samples_apart: bool
) -> _References:
    from vntools.verify.compare import compare
    from vntools.verify.float32 import run_float32
    from vntools.verify.float64 import evaluate

    raw = source.raw
    native = None if source.module is None else _pytorch(source.module, feeds)
    if samples_apart:
        want = _for_each(evaluate(raw.graph, feeds[-1]), feeds)
    else:
        want = [evaluate(raw.graph, feed) for feed in feeds]
    try:
        unsimplified = run_float32(raw, feeds[:1])
    except InternalFault as e:  # not our doing: nothing was rewritten yet
        raise DataFault("onnx.unsupported", e.message) from e
    noise = compare([(unsimplified[0], want[0])], "the unsimplified graph")
    return _References(want, native, noise)


def _finish(
    sources: list[_Source],
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
            _references, source, feeds, samples_apart=target.samples_apart
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
        data = _serialized(merged, metadata)
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


def _serialized(model: ir.Model, metadata: Mapping[str, str]) -> bytes:
    """The bytes of a model; the same model gives the same bytes.

    Raises:
        DataFault: ``onnx.too_big``: beyond the 2 GiB that protobuf can hold.
    """
    import onnx_ir as ir

    size = sum(
        v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value
    )
    if size >= _LARGEST_PROTOBUF:
        raise DataFault(
            "onnx.too_big", f"its weights take {size / 1e9:.1f} GB, protobuf holds 2"
        )
    model.metadata_props.clear()
    model.metadata_props.update(metadata)
    return ir.serde.serialize_model(model).SerializeToString(deterministic=True)


def _write(file: IO[bytes], data: bytes) -> tuple[str, int]:
    """Write a model and its seal through to the disk; their SHA-256 and size."""
    tail, digest = seal_and_hash(data)
    file.write(data)
    file.write(tail)
    file.flush()
    os.fsync(file.fileno())
    return digest, len(data) + len(tail)
