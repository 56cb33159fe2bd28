"""What a graph has to move and to multiply, and its floors, as text."""

from __future__ import annotations

__all__ = ["floor_lines", "inspected_text"]

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vntools.report.table import table

if TYPE_CHECKING:
    from vntools.bench.limits import Floor, LayerFloor
    from vntools.bench.work import Layer, Work
    from vntools.export.graph import GraphStats
    from vntools.pipeline.inspect import Inspected

_MOST_LAYERS = 60
_SHOWN_OPS = 3


def inspected_text(done: Inspected) -> str:
    """The file, its kernels or operators, what it has to do, its floors, layer by layer."""
    lines = [f"{done.path}: {done.size_bytes / 1e6:.1f} MB, SHA-256 {done.sha256}"]
    if done.sidecar is not None:
        lines += _sidecar_lines(done.sidecar)
    if done.graph is not None:
        lines += _graph_lines(done.graph)
    if done.work is not None:
        lines += _work_lines(done.work)
    if done.floor is not None:
        lines += floor_lines(done.floor)
    if done.work is not None:
        lines += ["", _layer_table(done.work, done.floor)]
        if more := len(done.work.layers) - _MOST_LAYERS:
            lines += [f"and {more:,} more (--json lists all)"] if more > 0 else []
    return "\n".join(lines)


def floor_lines(floor: Floor, measured_ms: float | None = None) -> list[str]:
    """Both floors, which term binds, and how far a measured time is from them.

    Args:
        floor: of the graph that was measured.
        measured_ms: median compute time, if there is one.
    """
    device, work = floor.device, floor.work
    peaks = ", ".join(f"{device.peak_of(p):.4g} TFLOPS in {p}" for p in work.operations)
    lines = [
        f"limits of {device.name}: {device.bandwidth_gb_s:.4g} GB/s"
        + (f", {peaks}" if peaks else "")
        + f" ({device.source})",
        f"floor of the network: {floor.ms:.4g} ms, {floor.binds} binds "
        f"(memory {floor.memory_ms:.4g} ms, compute {floor.compute_ms:.4g} ms)"
        + _over(measured_ms, floor.ms),
    ]
    memory = sum(f.ms for f in floor.per_layer if f.binds == "memory")
    share = f", memory binds in {memory / floor.layered_ms:.0%} of it" if memory else ""
    lines.append(
        f"floor layer by layer: {floor.layered_ms:.4g} ms{share}"
        + _over(measured_ms, floor.layered_ms)
    )
    return lines


def _over(measured_ms: float | None, floor_ms: float) -> str:
    if measured_ms is None or not floor_ms:
        return ""
    return f"; measured {measured_ms:.4g} ms is {measured_ms / floor_ms:.2f} times that"


def _sidecar_lines(sidecar: Mapping[str, Any]) -> list[str]:
    kernels = sidecar["kernels"]
    kinds = Counter(str(k["type"]) for k in kernels)
    capabilities = sidecar.get("compute_capabilities") or ()
    named = ", ".join(f"{c // 10}.{c % 10}" for c in capabilities)
    lines = [
        f"{sidecar.get('flavour')} {sidecar.get('version')}"
        + (f", compute capability {named}" if named else ""),
        f"precision {sidecar['precision']}, inputs and outputs {sidecar['io_type']}",
        f"built from {sidecar['source']['name']}",
    ]
    for name, shapes in sidecar["profile"].items():
        span = ", ".join(f"{k} {'x'.join(map(str, v))}" for k, v in shapes.items())
        lines.append(f"{name}: {span}")
    counted = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())
    rows = [("kernel", "type", "reads", "weights", "writes", "ONNX nodes")]
    rows += [
        (
            _short(k["name"]),
            str(k["type"]),
            *(", ".join(k.get(part, ())) for part in ("inputs", "weights", "outputs")),
            _short(", ".join(k["onnx"])),
        )
        for k in kernels[:_MOST_LAYERS]
    ]
    lines += ["", f"{len(kernels)} kernels: {counted}", table(rows, align="<<<<<<"), ""]
    return lines


def _graph_lines(graph: GraphStats) -> list[str]:
    ops = ", ".join(f"{n} {name}" for name, n in Counter(graph.ops).most_common())
    return [
        f"{graph.nodes} nodes: {ops}",
        f"{graph.parameters:,} parameters, {graph.size_bytes / 1e6:.2f} MB",
    ]


def _work_lines(work: Work) -> list[str]:
    multiplied = ", ".join(
        f"{n / 2:,.0f} MACs ({n / 1e9:.4g} GFLOP) in {p}" for p, n in work.operations.items()
    )
    layered = sum(layer.moved_bytes for layer in work.layers)
    parts = (work.moved_bytes, work.weight_bytes, work.input_bytes, work.output_bytes, layered)
    whole, weights, inputs, outputs, layered_mb = (f"{size / 1e6:.4g}" for size in parts)
    return [
        f"batch {work.batch}: {multiplied or 'nothing multiplied'}",
        f"network: {whole} MB (weights {weights}, inputs {inputs}, outputs {outputs})",
        f"layer by layer: {layered_mb} MB in {len(work.layers)} layers",
    ]


def _layer_table(work: Work, floor: Floor | None) -> str:
    header = ("layer", "operators", "type", "MMACs", "weights, kB", "activations, kB")
    found = floor.per_layer if floor is not None else ()
    rows = [_layer_row(layer) for layer in work.layers[:_MOST_LAYERS]]
    if floor is None:
        return table([header, *rows], align="<<<>>>")
    whole = floor.layered_ms
    timed = [(*row, *_floor_cells(f, whole)) for row, f in zip(rows, found, strict=False)]
    return table([(*header, "floor, ms", "share", "binds"), *timed], align="<<<>>>>><")


def _layer_row(layer: Layer) -> tuple[str, ...]:
    ops = " ".join(layer.ops[:_SHOWN_OPS])
    more = len(layer.ops) - _SHOWN_OPS
    activations = layer.read_bytes + layer.written_bytes
    return (
        _short(layer.name),
        ops + (f" +{more}" if more > 0 else ""),
        layer.precision,
        f"{layer.operations / 2e6:,.2f}",
        f"{layer.weight_bytes / 1e3:,.1f}",
        f"{activations / 1e3:,.1f}",
    )


def _floor_cells(floor: LayerFloor, whole_ms: float) -> tuple[str, str, str]:
    return f"{floor.ms:.3g}", f"{floor.ms / whole_ms:.1%}" if whole_ms else "", floor.binds


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."
