"""Ranges of activations for symmetric INT8, by ONNX Runtime's own calibrators.

Theirs are which values are observed and how a range follows from them. Four things are not:

- The graph is run with its optimizations; their own sessions have none, and take 2 to 4 times
  as long.
- Batches are collected one at a time, and their ranges merged here: theirs cannot merge
  ranges per channel, and with ``max_intermediate_outputs`` they drop all but the last ones.
- NaN, which ReduceMin, ReduceMax and ``numpy.nanmax`` pass over, is found by a sum.
- Histograms begin with the range over all images, from a pass before: each then is what one
  collection of all images at once gives. A histogram that starts with the first batch grows
  with the range of later ones, without bound.

Source: onnxruntime.quantization.calibrate; entropy: Migacz, "8-bit Inference with TensorRT",
GTC 2017.
"""

from __future__ import annotations

__all__ = ["METHODS", "Method", "Ranges", "calibrate", "read_cache", "write_cache_bytes"]

import contextlib
import io
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vntools.base.artifacts import read_input, require_file, sha256_bytes
from vntools.base.errors import DataFault, InternalFault, first_three, from_os_error
from vntools.base.provenance import host
from vntools.export.graph import free_name, value_names, without_weights

if TYPE_CHECKING:
    import onnx

Method = Literal["minmax", "entropy", "percentile"]
METHODS: tuple[Method, ...] = get_args(Method)

Feeds = Iterable[Mapping[str, NDArray[Any]]]
Progress = Callable[[int], object]

_CODES = 255  # of symmetric int8: -127 to 127
_PERCENTILE = 99.999
_BINS = {"entropy": 2049, "percentile": 2048}
"""Over -amax to amax, an odd number so that one bin has zero in its middle; over 0 to amax.

By default ONNX Runtime's entropy has 128 bins for 128 codes: one candidate, no search.
"""

_SMALLEST = 127 * float(np.finfo(np.float32).smallest_normal)  # amax with a normal scale
_SCHEMA = 1
_LARGEST_CACHE = 1 << 26  # bytes


@dataclass(frozen=True)
class Ranges:
    """Largest magnitudes of tensors over calibration images.

    Attributes:
        sha256: of the graph that was calibrated.
        method: one of :data:`METHODS`.
        images: how many were seen.
        amax: by tensor, what symmetric INT8 maps to 127; positive and finite.
        channels: by tensor, the largest magnitude of each channel (axis 1); with every method
            that of all values seen, and so never all below ``amax``.
    """

    sha256: str
    method: str
    images: int
    amax: Mapping[str, float]
    channels: Mapping[str, tuple[float, ...]]


def calibrate(
    model: ir.Model,
    tensors: Sequence[str],
    feeds: Feeds,
    *,
    method: Method,
    graph_sha256: str,
    progress: Progress | None = None,
) -> Ranges:
    """Ranges of ``tensors`` over ``feeds``; the same feeds give the same ranges.

    What is held at a time is one batch: with ``minmax`` its activations inside ONNX Runtime,
    with the other methods the named ones also here. Weights are lent and not copied, and no
    weight is written to a disk.

    Args:
        model: float32; left as it is.
        tensors: float tensors of at least two axes, graph inputs among them or not.
        feeds: batches, first axis images. ``entropy`` and ``percentile`` go over them twice.
        method: ``minmax``: the largest magnitude; ``percentile``: what 99.999 % of the
            magnitudes are below; ``entropy``: what loses least of the distribution.
        graph_sha256: of the bytes of ``model``, for the record.
        progress: told the number of images seen after each batch, in each pass from the
            beginning.

    Raises:
        DataFault: ``calib.empty``: no batch; ``calib.range``: a tensor is NaN, infinite or
            zero throughout; ``calib.shape``: a tensor is absent or has no known rank of two
            or more; ``calib.changed``: a second pass saw another number of images.
        InternalFault: ``calib.run``: ONNX Runtime cannot run the graph.
    """
    names = tuple(dict.fromkeys(tensors))
    graph = _observable(model, names)
    channels, images = _largest_by_channel(graph, feeds, progress=progress)
    amax = {name: float(channels[name].max()) for name in names}
    _refuse_zero(amax, f"zero in all {images} images")
    if method != "minmax":
        amax = _thresholds(
            graph, feeds, progress=progress, method=method, amax=amax, images=images
        )
        _refuse_zero(amax, f"zero by {method}; try minmax")
    found = {name: tuple(map(float, channels[name])) for name in names}
    return Ranges(graph_sha256, method, images, amax, found)


@dataclass(frozen=True)
class _Observable:
    """A graph without its weights, the weights, and the tensors to look at.

    Attributes:
        sums: names of outputs by tensor: sums of magnitudes, not finite where the tensor is
            not.
    """

    light: ir.Model
    weights: Mapping[str, NDArray[Any]]
    tensors: tuple[str, ...]
    sums: Mapping[str, str]


def _observable(model: ir.Model, tensors: tuple[str, ...]) -> _Observable:
    light, held = without_weights(model)
    graph = light.graph
    values = {v.name: v for v in graph.inputs if v.name not in held}
    values.update({v.name: v for node in graph for v in node.outputs})
    taken, sums = value_names(graph), dict[str, str]()
    for name in tensors:
        value = values.get(name)
        if value is None or value.shape is None or len(value.shape) < 2:
            raise DataFault(
                "calib.shape", f"no tensor {name!r} of two or more axes: it has no channels"
            )
        node = ir.Node("", "ReduceL1", [value])
        total = node.outputs[0]
        total.name = sums[name] = free_name(f"{name}_sum", taken)
        total.type, total.shape = (
            ir.TensorType(ir.DataType.FLOAT),
            ir.Shape([1] * len(value.shape)),
        )
        taken.add(total.name)
        graph.append(node)
        graph.outputs.append(total)
    weights = {name: np.ascontiguousarray(t.numpy()) for name, t in held.items()}
    return _Observable(light, weights, tensors, sums)


class _Session:
    """A session as the calibrators use one; counts images, and stops at NaN.

    Attributes:
        images: how many were run.
    """

    def __init__(self, proto: onnx.ModelProto, graph: _Observable) -> None:
        import onnxruntime as ort

        _declare(proto, graph.weights)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = int(host()["cores"])
        # Kept: ONNX Runtime reads the arrays where they lie.
        self._lent = [ort.OrtValue.ortvalue_from_numpy(a) for a in graph.weights.values()]
        options.add_external_initializers(list(graph.weights), self._lent)
        self._session = ort.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self.get_inputs, self.get_outputs = self._session.get_inputs, self._session.get_outputs
        made = [output.name for output in self.get_outputs()]
        self._sums = {name: made.index(total) for name, total in graph.sums.items()}
        self.images = 0

    def run(self, names: None, feeds: Mapping[str, NDArray[Any]]) -> list[Any]:
        """All outputs."""
        try:
            outputs: Any = self._session.run(names, feeds)
        except Exception as e:
            raise _failed(e) from e
        first, self.images = self.images + 1, self.images + len(next(iter(feeds.values())))
        bad = [name for name, at in self._sums.items() if not np.isfinite(outputs[at]).all()]
        if bad:
            raise DataFault(
                "calib.range",
                f"NaN or infinite in images {first} to {self.images}: {first_three(bad)}",
                hint="an input or a weight is not finite, or too large for float32",
            )
        return outputs


def _failed(error: Exception) -> InternalFault:
    why = (str(error).splitlines() or [type(error).__name__])[0]
    return InternalFault("calib.run", f"ONNX Runtime failed: {why[:200]}")


def _declare(proto: onnx.ModelProto, weights: Mapping[str, NDArray[Any]]) -> None:
    """Make initializers of inputs whose values the session will be lent."""
    import onnx

    kept = [v for v in proto.graph.input if v.name not in weights]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    for name, array in weights.items():
        tensor = proto.graph.initializer.add(
            name=name,
            dims=array.shape,
            data_type=onnx.helper.np_dtype_to_tensor_dtype(array.dtype),
            data_location=onnx.TensorProto.EXTERNAL,
        )
        tensor.external_data.add(key="location", value="lent")


def _calibrator(graph: _Observable, kind: str, **options: Any) -> Any:
    """A calibrator of ONNX Runtime, ready to collect ``graph``'s tensors and no others."""
    from onnxruntime.quantization import calibrate as ort

    try:
        # The calibrators want files; what is in them is the graph without its weights.
        with tempfile.TemporaryDirectory(prefix="vntools-calibrate-") as folder:
            path = Path(folder) / "graph.onnx"
            ir.save(graph.light, path)
            augmented = str(path.with_name("augmented.onnx"))
            calibrator = getattr(ort, kind)(path, None, augmented, symmetric=True, **options)
            infos = calibrator.select_tensors_to_calibrate(calibrator.model)[1]
            calibrator.select_tensors_to_calibrate = lambda _: (graph.tensors, infos)
            calibrator.augment_graph()
        calibrator.infer_session = _Session(calibrator.get_augment_model(), graph)
    except OSError as e:
        raise from_os_error(e, tempfile.gettempdir(), writing=True) from e
    except Exception as e:
        raise _failed(e) from e
    return calibrator


def _collected(calibrator: Any, feeds: Feeds, *, progress: Progress | None) -> Iterator[None]:
    """Let ``calibrator`` collect batch by batch."""
    for feed in feeds:
        with contextlib.redirect_stdout(io.StringIO()):
            calibrator.collect_data(SimpleNamespace(get_next=iter((feed, None)).__next__))
        yield
        if progress is not None:
            progress(calibrator.infer_session.images)


def _largest_by_channel(
    graph: _Observable, feeds: Feeds, *, progress: Progress | None
) -> tuple[dict[str, NDArray[Any]], int]:
    """The largest magnitude of each channel of each tensor, and the number of images."""
    calibrator = _calibrator(graph, "MinMaxCalibrater", per_channel=True)
    largest: dict[str, NDArray[Any]] = {}
    for _ in _collected(calibrator, feeds, progress=progress):
        for name, data in calibrator.compute_data().items():
            found: NDArray[Any] = data.range_value[1].reshape(-1)
            largest[name] = np.maximum(found, largest.get(name, found))
        calibrator.calibrate_tensors_range = None
    images = calibrator.infer_session.images
    if images == 0:
        raise DataFault("calib.empty", "no images to calibrate with")
    return largest, images


def _thresholds(
    graph: _Observable,
    feeds: Feeds,
    *,
    progress: Progress | None,
    method: Method,
    amax: Mapping[str, float],
    images: int,
) -> dict[str, float]:
    """Ranges from histograms of all values, by tensor."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    bins = _BINS[method]
    calibrator = _calibrator(graph, f"{method.capitalize()}Calibrater", num_bins=bins)
    calibrator.collector = HistogramCollector(
        method=method,
        symmetric=True,
        num_bins=bins,
        num_quantized_bins=_CODES,
        percentile=_PERCENTILE,
        scenario="same",
    )
    histograms = calibrator.collector.get_histogram_dict()
    for name, largest in amax.items():
        top = np.float32(largest)
        bottom = -top if method == "entropy" else np.float32(0)
        edges = np.linspace(bottom, top, bins + 1, dtype=np.float32)
        seen = np.float32(0)  # least and largest value so far
        empty = (np.zeros(bins, np.int64), edges, seen, seen)
        histograms[name] = (*empty, top) if method == "entropy" else empty
    for _ in _collected(calibrator, feeds, progress=progress):
        pass
    if calibrator.infer_session.images != images:
        raise DataFault(
            "calib.changed",
            f"{images} images first, {calibrator.infer_session.images} when read again",
        )
    with contextlib.redirect_stdout(io.StringIO()):
        found = {n: data.range_value for n, data in calibrator.compute_data().items()}
    return {n: min(largest, float(np.abs(found[n]).max())) for n, largest in amax.items()}


def _refuse_zero(amax: Mapping[str, float], why: str) -> None:
    zero = [name for name, largest in amax.items() if largest < _SMALLEST]
    if zero:
        raise DataFault(
            "calib.range",
            f"{why}: {first_three(zero)}",
            hint="such a range has no scale; calibrate with other images",
        )


def write_cache_bytes(ranges: Ranges) -> bytes:
    """``ranges`` as a file: JSON, ASCII, a line for each tensor, sorted; same in, same out."""
    tensors = {
        name: {"amax": ranges.amax[name], "channels": list(ranges.channels[name])}
        for name in sorted(ranges.amax)
    }
    head: dict[str, Any] = {
        "schema": _SCHEMA,
        "kind": "vntools calibration",
        "sha256": ranges.sha256,
        "method": ranges.method,
        "images": ranges.images,
    }
    head["digest"] = _digest(head, tensors)
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    rows = [f"  {json.dumps(name)}: {json.dumps(held)}" for name, held in tensors.items()]
    lines.append(' "tensors": {\n' + ",\n".join(rows) + "\n }")
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode("ascii")


def _digest(head: Mapping[str, Any], tensors: Mapping[str, Any]) -> str:
    """SHA-256 of what a cache says, however it is laid out."""
    held = {**{k: v for k, v in head.items() if k != "digest"}, "tensors": tensors}
    return sha256_bytes(json.dumps(held, sort_keys=True, allow_nan=False).encode("ascii"))


def read_cache(
    path: str | os.PathLike[str], sha256: str, method: Method, tensors: Sequence[str]
) -> Ranges | None:
    """The ranges of ``tensors`` in a cache; None where it is of another graph or method.

    None also where it lacks one of ``tensors``; ranges of others are left out.

    Raises:
        DataFault: ``calib.cache``: this is no cache, one of another version, or one that was
            changed.
        NoInput: there is no such file.
    """
    fault = DataFault(
        "calib.cache",
        "not a calibration cache that this vntools wrote, or changed since",
        hint="remove it and calibrate again",
        path=path,
    )
    if require_file(path).stat().st_size > _LARGEST_CACHE:
        raise fault
    try:
        record = json.loads(read_input(path))
        held = record.pop("tensors")
        if record["schema"] != _SCHEMA or record["digest"] != _digest(record, held):
            raise fault
        amax = {name: float(one["amax"]) for name, one in held.items()}
        channels = {name: tuple(map(float, one["channels"])) for name, one in held.items()}
        sane = all(
            _SMALLEST <= amax[name] <= max(found) < math.inf
            for name, found in channels.items()
        )
        found = Ranges(
            record["sha256"], record["method"], int(record["images"]), amax, channels
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise fault from e
    if not sane or found.images < 1:
        raise fault
    if (found.sha256, found.method) != (sha256, method) or not amax.keys() >= set(tensors):
        return None
    return Ranges(
        sha256,
        method,
        found.images,
        {name: amax[name] for name in tensors},
        {name: channels[name] for name in tensors},
    )
