"""Any ONNX file to a simplified and verified one, with its weights inside where they fit."""

from __future__ import annotations

__all__ = ["SimplifyOptions", "simplify"]

import gc
import json
import mmap
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vntools.base.artifacts import (
    SEAL_KEY,
    check_output,
    data_path,
    published_with_data,
    require_file,
    sha256_bytes,
)
from vntools.base.errors import InternalFault, about, first_three
from vntools.pipeline.export import Exported, publish_proved, stamp, write_sealed
from vntools.pipeline.listener import Listener, Stopwatch
from vntools.pipeline.serialize import DATA_KEY, move_weights, serialize, too_big
from vntools.pipeline.witness import Witness, find_witness

if TYPE_CHECKING:
    import onnx_ir as ir

    from vntools.export.rewrite import Applied
    from vntools.verify.compare import Comparison

_SOURCE_DATA_KEY = "vntools.source_data"


@dataclass(frozen=True)
class SimplifyOptions:
    """Options of :func:`simplify`: the ONNX file to read and the one to write."""

    source: Path
    out: Path
    force: bool = False


@dataclass(frozen=True)
class _Published:
    sha256: str
    size_bytes: int
    comparison: Comparison | None


def simplify(options: SimplifyOptions, listener: Listener) -> Exported:
    """Any ONNX file through the passes and onnxsim, verified against itself.

    Weights beside the model are read from where they lie; weights beyond what protobuf holds
    are written to ``OUT.onnx.data`` beside ``OUT.onnx``, the two together or not at all.

    Raises:
        VntoolsError: as the parts do; nothing has been written then.
    """
    from vntools.export.graph import stats
    from vntools.export.load import load_onnx
    from vntools.export.naming import name_nodes

    require_file(options.source)
    check_output(options.out, force=options.force, inputs=(options.source,))
    phase = Stopwatch(listener)
    with phase("load"):
        raw, digest, files = load_onnx(options.source)
        name_nodes(raw.graph)
    _check_outputs(options, raw, files)
    kept = {k: v for k, v in raw.metadata_props.items() if k not in (SEAL_KEY, DATA_KEY)}
    metadata = {**kept, **stamp(options.source, digest)}
    raw.metadata_props.clear()
    if overridable := [v.name or "" for v in raw.graph.inputs if v.is_initializer()]:
        listener.warn(
            "onnx.overridable",
            f"a caller may override {first_three(overridable)}; they are left alone",
        )
    before = stats(raw.graph)
    with about(options.source):
        with phase("references"):
            witness = find_witness(raw)
            metadata |= _digests(files)
        with phase("merge") as advance:
            proved = witness.tolerance is not None
            applied, tidied, trouble = _rewrite(raw, advance, tidied=proved)
        if witness.reason:
            listener.warn("verify.limited", witness.reason)
        if tidied is None:
            listener.warn("onnxsim.left_out", f"the graph is not tidied: {trouble}")
        final = tidied or raw
        del tidied, raw, files
        gc.collect()  # graphs refer to themselves
        after = stats(final.graph)
        published = _publish(options, final, metadata, witness, phase)
    return Exported(
        options.out,
        published.sha256,
        published.size_bytes,
        before,
        after,
        applied.rewrites,
        applied.skips,
        published.comparison,
        witness.tolerance,
        None,
        metadata,
        phase.seconds(),
        witness.way,
    )


def _check_outputs(
    options: SimplifyOptions, raw: ir.Model, files: Mapping[str, memoryview]
) -> None:
    """Before the work: neither output is one of the inputs, and both can be written.

    Raises:
        VntoolsError: as :func:`vntools.base.artifacts.check_output`.
    """
    folder = Path(os.path.realpath(options.source)).parent
    inputs = (options.source, *(folder / name for name in files))
    outputs = [options.out]
    if too_big(raw):
        outputs.append(data_path(os.path.realpath(options.out)))
    for out in outputs:
        check_output(out, force=options.force, inputs=inputs)


def _digests(files: Mapping[str, memoryview]) -> dict[str, str]:
    """Metadata that says which data files the source had."""
    if not files:
        return {}
    return {_SOURCE_DATA_KEY: json.dumps({k: sha256_bytes(v) for k, v in files.items()})}


def _rewrite(
    model: ir.Model, advance: Callable[..., None], *, tidied: bool
) -> tuple[Applied, ir.Model | None, str]:
    """The passes in place; what onnxsim makes of it if ``tidied``, or why it cannot.

    onnxsim runs what is constant, so it is given no graph that has not been run before.
    """
    from vntools.export.rewrite import apply_passes
    from vntools.export.simplify import tidy

    applied = apply_passes(model.graph, advance=lambda _: advance())
    if not tidied:
        return applied, None, "nothing would have verified what it does"
    try:
        return applied, tidy(model), ""
    except InternalFault as e:
        return applied, None, e.message


def _publish(
    options: SimplifyOptions,
    model: ir.Model,
    metadata: dict[str, str],
    witness: Witness,
    phase: Stopwatch,
) -> _Published:
    """Written while it is verified; it gets its name only when both have ended well."""
    if too_big(model):
        return _publish_large(options, model, metadata, witness, phase)
    data = serialize(model, metadata)
    written, comparison = publish_proved(
        options.out, data, lambda: witness.check(data), phase, force=options.force
    )
    return _Published(*written, comparison)


def _publish_large(
    options: SimplifyOptions,
    model: ir.Model,
    metadata: dict[str, str],
    witness: Witness,
    phase: Stopwatch,
) -> _Published:
    """The weights into a file of theirs; what is verified is read back from it."""
    from vntools.export.external import ExternalFiles
    from vntools.export.load import parse_onnx

    location = data_path(os.path.realpath(options.out)).name
    size = sum(
        v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value
    )
    with published_with_data(options.out, force=options.force, size_hint=size) as (f, g):
        with phase("publish"):
            metadata[DATA_KEY] = move_weights(model, g, location)
            data = serialize(model, metadata)
            digest, light = write_sealed(f, data)
            g.flush()
            size = g.tell()
        with phase("verify"):
            view = memoryview(mmap.mmap(g.fileno(), size, access=mmap.ACCESS_READ))
            files = ExternalFiles(options.out.parent, options.out, {location: view})
            comparison = witness.check(parse_onnx(data, options.out, files=files))
    return _Published(digest, light + size, comparison)
