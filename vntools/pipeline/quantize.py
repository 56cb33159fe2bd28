"""A float32 graph to an INT8 one that is as accurate as asked, or a table of why not."""

from __future__ import annotations

__all__ = ["Int8Options", "Int8Refused", "Int8Report", "LayerReport", "Quantized", "to_int8"]

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vntools.base.artifacts import published
from vntools.base.errors import CheckFailed, DataFault
from vntools.pipeline.budget import Judge, Labelled, Probe, Step, Trial, choose
from vntools.pipeline.image_feeds import calibration_feeds
from vntools.pipeline.listener import Listener, Stopwatch
from vntools.pipeline.overflow import left_range

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    from vntools.pipeline.image_feeds import Feed, Feeds
    from vntools.precision.calibrate import Method, Ranges
    from vntools.precision.int8 import Layer
    from vntools.runtime.base import TensorSpec

_ALPHAS = (0.5, 0.25, 0.75)  # equalisation: the usual one first
_PROBED = 32  # images that equalisation is measured on
_FEW = 8  # images that each layer alone is measured on


@dataclass(frozen=True)
class Int8Options:
    """How a graph becomes INT8.

    Attributes:
        calib: folder of images, or an ``.npz`` of input batches.
        method: of :data:`vntools.precision.calibrate.METHODS`.
        cache: ranges are read from here if they are of this graph, and written otherwise.
        images: use at most so many; None is all.
        batch: images at a time, where the graph leaves it open.
        depthwise, head: INT8 there too.
        equalize: move channel ranges through the graph where that lowers the error.
        max_drop: points of top-1 that may be lost; None is no budget.
        eval_data: labelled images that these points are of; without, they are points of
            disagreement with the float32 graph on the calibration images.
        class_map: numbers of the class folders of ``eval_data``.
    """

    calib: Path
    method: Method = "minmax"
    cache: Path | None = None
    images: int | None = None
    batch: int = 8
    depthwise: bool = False
    head: bool = False
    equalize: bool = True
    max_drop: float | None = None
    eval_data: Path | None = None
    class_map: Path | None = None


@dataclass(frozen=True)
class LayerReport:
    """One layer that could be INT8.

    Attributes:
        name: of the node.
        role: ``dense``, ``depthwise`` or ``head``.
        int8: whether it became INT8.
        amax: what 127 stands for in its input; None where it was not asked for.
        range_ratio: largest over smallest range of its weight's output channels.
        weight_error: relative L2 of its weight in int8.
        error: relative L2 of the network's outputs where this layer alone is INT8; None where
            it was not asked for.
        macs: multiply-accumulates of one sample.
    """

    name: str
    role: str
    int8: bool
    amax: float | None
    range_ratio: float
    weight_error: float
    error: float | None
    macs: int | None


@dataclass(frozen=True)
class Int8Report:
    """What became INT8, and what that costs.

    Attributes:
        method: of calibration.
        images: the ranges are of.
        cached: whether they came from the cache file.
        alpha: of equalisation; None where channels stayed as they were.
        equalized: relative L2 of the outputs with every layer in INT8 that was asked for,
            before and after equalisation; None where that was not tried.
        layers: all that could be INT8, in the order of the graph.
        steps: what the budget tried; one step where there is no budget.
        max_drop: the budget.
        labelled: whether drops are of top-1 on labelled images.
    """

    method: str
    images: int
    cached: bool
    alpha: float | None
    equalized: tuple[float, float] | None
    layers: tuple[LayerReport, ...]
    steps: tuple[Step, ...]
    max_drop: float | None
    labelled: bool

    def to_record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


class Int8Refused(CheckFailed):
    """The INT8 graph is too far from the float32 one; ``report`` says which layers cost what.

    ``int8.budget``: no choice of layers is within ``--max-drop``. ``verify.mismatch``: it is
    further than an INT8 graph that works is, whatever the budget.

    Args:
        code: one of these.
        report: of what was tried.
        overflow: the first layer whose values leave the range of its float type, if any;
            QuantizeLinear makes finite numbers of what is infinite.
    """

    def __init__(self, code: str, report: Int8Report, *, overflow: str = "") -> None:
        self.report = report
        last = report.steps[-1]
        costly = sorted(report.layers, key=lambda v: (-(v.error or 0), v.name))
        names = ", ".join(v.name for v in costly[:3])
        lost = f"relative L2 {last.relative_l2:.1e}"
        if last.drop is not None:
            lost = f"{last.drop:.2f} points and {lost}"
        allowed = (
            "" if report.max_drop is None else f", {report.max_drop:g} points are allowed"
        )
        cause = f"costliest: {names}"
        hint = "give costly layers up with --max-drop or --fp16-layers, or use --fp16"
        if overflow:
            cause, hint = left_range(overflow)
        super().__init__(
            code,
            f"with {last.layers} INT8 layers {lost} are lost{allowed}; {cause}",
            hint=hint,
        )


@dataclass(frozen=True)
class Quantized:
    """The INT8 graph, its INT8 layers, the report, and some calibration images."""

    model: ir.Model
    layers: frozenset[str]
    report: Int8Report
    feeds: list[Feed]


def to_int8(
    model: ir.Model,
    options: Int8Options,
    rest: Callable[[ir.Model, str], ir.Model],
    listener: Listener,
    phase: Stopwatch,
    *,
    sha256: str,
    io_type: str,
    floats: frozenset[str],
) -> Quantized:
    """Calibrate, equalise, order the layers by what they cost, and choose.

    Args:
        model: the merged float32 graph.
        options: see there.
        rest: gives a float32 graph the types of what is not INT8, and of inputs and outputs.
        listener: hears of every phase.
        phase: times them.
        sha256: of the file that ``model`` was read from; the cache is tied to it.
        io_type: of the result's inputs and outputs.
        floats: names of layers that stay float.

    Raises:
        DataFault: ``calib.*``: images or ranges are no good; ``int8.layers``: none is
            left.
        Int8Refused: ``int8.budget``.
    """
    from vntools.precision.int8 import find_layers, quantize

    layers = {layer.name: layer for layer in find_layers(model.graph)}
    wanted = [
        name
        for name, layer in layers.items()
        if name not in floats
        and (layer.role == "dense" or getattr(options, layer.role) is True)
    ]
    if not wanted:
        raise DataFault(
            "int8.layers",
            "it has no layer that could be INT8",
            hint="weights must be float32 constants; a graph with Q/DQ needs no --int8",
        )
    feeds = calibration_feeds(
        options.calib,
        _specs(model),
        model.metadata_props,
        batch=options.batch,
        limit=options.images,
        listener=listener,
    )
    labelled = _labelled(model, options, listener)
    tensors = sorted({layers[name].tensor for name in wanted})
    work = _Ranges(model, options, tensors, sha256)
    ranges, cached = work.found(feeds, listener, phase)
    trial = Trial(model, layers, {n: ranges.amax[layers[n].tensor] for n in wanted})
    with phase("sensitivity") as advance:
        probe = Probe(model, feeds)
        alpha = equalized = None
        if options.equalize:
            trial, alpha, equalized = _equalized(trial, ranges, wanted, probe)
        alone: dict[str, float] = {}
        for name in wanted:
            alone[name] = probe.measure(trial.graph([name]), images=_FEW).relative_l2
            advance(1, len(wanted))

    def build(names: Sequence[str], io_type: str = "fp32") -> ir.Model:
        gc.collect()  # graphs refer to themselves
        chosen = {name: trial.amax[name] for name in names}
        return quantize(rest(trial.model, io_type), trial.model, chosen, layers)

    with phase("budget") as advance:
        judge = Judge(model, probe, options.max_drop, labelled=labelled)
        order = sorted(wanted, key=lambda name: (-alone[name], name))
        chosen, steps = choose(order, layers, judge, build, advance)
    report = Int8Report(
        ranges.method,
        ranges.images,
        cached,
        alpha,
        equalized,
        tuple(
            _layer_report(layer, trial, alone.get(name), int8=name in chosen)
            for name, layer in layers.items()
        ),
        tuple(steps),
        options.max_drop,
        options.eval_data is not None,
    )
    if not chosen:
        raise Int8Refused("int8.budget", report)
    return Quantized(build(chosen, io_type), frozenset(chosen), report, probe.first(_PROBED))


@dataclass(frozen=True)
class _Ranges:
    """Ranges of tensors, from the cache file or from images."""

    model: ir.Model
    options: Int8Options
    tensors: list[str]
    sha256: str

    def found(self, feeds: Feeds, listener: Listener, phase: Stopwatch) -> tuple[Ranges, bool]:
        """The ranges, and whether the cache file had them."""
        from vntools.precision.calibrate import calibrate, read_cache, write_cache_bytes

        method, cache = self.options.method, self.options.cache
        if cache is not None and cache.exists():
            known = read_cache(cache, self.sha256, method, self.tensors)
            if known is not None:
                listener.note(f"ranges of {known.images} images from {cache}")
                return known, True
            listener.note(f"{cache} is of another graph or method; it is written anew")

        def steps(advance: Callable[..., None]) -> Callable[[int], None]:
            """Images seen, which begin anew with a second pass, as steps."""
            last = [0]

            def seen(images: int) -> None:
                advance(images - (last[0] if images > last[0] else 0))
                last[0] = images

            return seen

        with phase("calibrate") as advance:
            ranges = calibrate(
                self.model,
                self.tensors,
                feeds,
                method=method,
                graph_sha256=self.sha256,
                progress=steps(advance),
            )
        ranges = replace(ranges, images=feeds.images)  # without what fills the last batch
        if cache is not None:
            with published(cache, force=True) as f:
                f.write(write_cache_bytes(ranges))
        return ranges, False


def _equalized(
    trial: Trial, ranges: Ranges, wanted: Sequence[str], probe: Probe
) -> tuple[Trial, float | None, tuple[float, float] | None]:
    """The best of three ways to equalise, if one is better than none."""
    from vntools.precision.equalize import equalize, rescaled

    before = probe.measure(trial.graph(wanted), images=_PROBED).relative_l2
    found: list[tuple[float, float, Trial]] = []
    for alpha in _ALPHAS:
        even = equalize(trial.model, ranges.channels, alpha=alpha)
        if not even.moved:
            continue
        after = rescaled(ranges.channels, even.moved)
        # Entropy and percentile cut a range; the same part of the new range is cut.
        amax = {
            name: cut
            * max(after[trial.layers[name].tensor])
            / max(ranges.channels[trial.layers[name].tensor])
            for name, cut in trial.amax.items()
        }
        other = Trial(even.model, trial.layers, amax)
        error = probe.measure(other.graph(wanted), images=_PROBED).relative_l2
        found.append((error, alpha, other))
    if not found:
        return trial, None, None
    error, alpha, best = min(found, key=lambda f: f[0])
    if not error < before:
        return trial, None, (before, error)
    return best, alpha, (before, error)


def _specs(model: ir.Model) -> list[TensorSpec]:
    """What the graph takes."""
    from vntools.runtime.base import TensorSpec

    specs: list[TensorSpec] = []
    for value in model.graph.inputs:
        if value.is_initializer() or value.shape is None or value.dtype is None:
            continue
        shape = tuple(
            d if isinstance(d, int) else d.value or f"{value.name}.{axis}"
            for axis, d in enumerate(value.shape)
        )
        specs.append(TensorSpec(value.name or "", shape, str(value.dtype.numpy())))
    return specs


def _labelled(model: ir.Model, options: Int8Options, listener: Listener) -> Labelled | None:
    """The images that a drop is measured on.

    Raises:
        NoInput, DataFault: ``eval.*``: images, class folders or their numbers are no good.
    """
    from vntools.pipeline.image_feeds import ImageFeeds
    from vntools.pipeline.image_input import ImageInput
    from vntools.pipeline.labels import class_numbers, labelled_files

    if options.eval_data is None:
        return None
    shape = model.graph.outputs[0].shape
    classes = shape[-1] if shape is not None and len(model.graph.outputs) == 1 else None
    if not isinstance(classes, int):
        raise DataFault("eval.output", "its outputs are not the scores of classes")
    root, listing = labelled_files(options.eval_data, listener)
    files = listing.files
    numbers = class_numbers(files, root, classes, listener, class_map=options.class_map)
    if numbers is None:
        raise DataFault("eval.labels", "its images lie in no class folders", path=root)
    want = ImageInput.of(_specs(model), model.metadata_props, listener)

    def refuse(fault: DataFault) -> None:
        raise fault

    def batches() -> Iterator[tuple[Feed, NDArray[np.int64]]]:
        images = ImageFeeds(
            files, [want], batch=want.batch or options.batch, on_bad=refuse, pad=True
        )
        for batch in images:
            yield batch.feeds[0], numbers[batch.indices]

    return Labelled(batches)


def _layer_report(
    layer: Layer, trial: Trial, error: float | None, *, int8: bool
) -> LayerReport:
    import numpy as np
    import onnx_ir as ir

    from vntools.export.graph import constant
    from vntools.precision.equalize import weight_range_ratio
    from vntools.precision.int8 import weight_error

    node = next(n for n in trial.model.graph if n.name == layer.name)
    weight = constant(node.inputs[1])
    assert weight is not None
    rows = np.moveaxis(weight, layer.channel_axis, 0)
    return LayerReport(
        layer.name,
        layer.role,
        int8,
        trial.amax.get(layer.name),
        weight_range_ratio(rows),
        weight_error(weight, layer.channel_axis, ir.DataType.FLOAT),
        error,
        layer.macs,
    )
