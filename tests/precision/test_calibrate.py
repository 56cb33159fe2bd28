"""Calibration: ranges of exactly the named tensors, in bounded memory, with nothing hidden."""

from __future__ import annotations

import json
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnxruntime.quantization import calibrate as ort

from tests.graphs import graph
from tests.networks import exported, pixels
from vntools.base.errors import CannotCreate, DataFault, InternalFault, NoInput, VntoolsError
from vntools.precision import calibrate as module
from vntools.precision.calibrate import (
    METHODS,
    Method,
    Ranges,
    calibrate,
    read_cache,
    write_cache_bytes,
)
from vntools.verify.float32 import run_float32

NET = """(float[n,3,8,8] x) => (float[n,6] y)
<float[200,3,3,3] W, float[200] b, float[5,200,1,1] V, float[6,5] H>
{ [one] a = Conv<pads=[1,1,1,1]>(x, W, b)
  [relu] r = Relu(a)
  [two] s = Conv(r, V)
  [pool] p = GlobalMaxPool(s)
  [flat] f = Flatten<axis=1>(p)
  [head] y = Gemm<transB=1>(f, H)
}"""
TENSORS = ("x", "r", "s", "f")
PASS = "(float[n,c,h,w] x) => (float[n,c,h,w] y) { [relu] y = Relu(x) }"
SHA = "ab" * 32

Feed = dict[str, np.ndarray]


def whole(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Small whole numbers: sums of their products are exact in float32, in any order."""
    return rng.integers(-4, 5, shape).astype(np.float32)


def net() -> ir.Model:
    rng = np.random.default_rng(1)
    shapes = {"W": (200, 3, 3, 3), "b": (200,), "V": (5, 200, 1, 1), "H": (6, 5)}
    return graph(NET, **{name: whole(rng, *shape) for name, shape in shapes.items()})


def images(count: int = 3, batch: int = 4) -> list[Feed]:
    rng = np.random.default_rng(2)
    return [{"x": whole(rng, batch, 3, 8, 8)} for _ in range(count)]


def measured(
    model: ir.Model,
    feeds: Any,
    tensors: Sequence[str] = TENSORS,
    method: Method = "minmax",
    progress: Callable[[int], object] | None = None,
) -> Ranges:
    return calibrate(model, tensors, feeds, method=method, graph_sha256=SHA, progress=progress)


def values(model: ir.Model, feeds: list[Feed], names: Sequence[str]) -> dict[str, np.ndarray]:
    """All values of the named tensors, batch upon batch, without a calibrator."""
    seen = model.clone()
    inner = {v.name: v for node in seen.graph for v in node.outputs}
    seen.graph.outputs.extend(
        inner[n] for n in names if n in inner and not inner[n].is_graph_output()
    )
    runs = run_float32(seen, feeds)
    return {
        n: np.concatenate([{**f, **r}[n] for f, r in zip(feeds, runs, strict=True)])
        for n in names
    }


def at_once(
    kind: str, feeds: list[Feed], folder: Path, tensors: Sequence[str], **options: Any
) -> dict[str, float]:
    """What ONNX Runtime's calibrator finds by itself, all batches in one collection."""
    path = folder / "model.onnx"
    ir.save(net(), path)
    calibrator = getattr(ort, kind)(
        path, None, str(folder / "augmented.onnx"), symmetric=True, **options
    )
    infos = calibrator.select_tensors_to_calibrate(calibrator.model)[1]
    calibrator.select_tensors_to_calibrate = lambda _: (tensors, infos)
    calibrator.augment_graph()
    calibrator.create_inference_session()
    calibrator.collect_data(SimpleNamespace(get_next=iter((*feeds, None)).__next__))
    return {
        name: max(float(np.abs(v).max()) for v in data.range_value)
        for name, data in calibrator.compute_data().items()
    }


def test_min_max_is_the_largest_magnitude_exactly() -> None:
    model, feeds = net(), images()
    got = measured(model, feeds)
    for name, seen in values(model, feeds, TENSORS).items():
        axes = (0, *range(2, seen.ndim))
        assert got.channels[name] == tuple(np.abs(seen).max(axis=axes).tolist())
        assert got.amax[name] == np.abs(seen).max()
    assert tuple(got.amax) == tuple(got.channels) == TENSORS
    assert (got.sha256, got.method, got.images) == (SHA, "minmax", 12)


def test_a_negative_value_may_be_the_largest() -> None:
    x = np.zeros((2, 3, 8, 8), np.float32)
    x[0, 0, 0, 0], x[1, 1, 1, 1], x[1, 2, 0, 0] = 2, -3, 1
    got = measured(graph(PASS), [{"x": x}], ["x"])
    assert got.channels["x"] == (2, 3, 1)
    assert got.amax["x"] == 3


@pytest.mark.parametrize(
    ("method", "kind", "options"),
    [
        ("entropy", "EntropyCalibrater", {"num_bins": 2049, "num_quantized_bins": 255}),
        ("percentile", "PercentileCalibrater", {"num_bins": 2048, "percentile": 99.999}),
    ],
)
def test_batch_by_batch_is_what_all_at_once_gives(
    method: Method, kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model, feeds = net(), images()
    feeds[0]["x"] = feeds[0]["x"] / 1024  # a dark batch comes first
    got = measured(model, feeds, ("r", "f"), method)
    amax, want = dict(got.amax), at_once(kind, feeds, tmp_path, ("r", "f"), **options)
    if method == "percentile":  # its first edge is the least magnitude; here it is zero
        assert amax.pop("f") == pytest.approx(want.pop("f"), rel=1e-5)
    assert amax == want
    assert got.channels == measured(model, feeds, ("r", "f")).channels


def test_the_methods_differ() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((4, 3, 160, 160)).astype(np.float32)
    x[0, 0, 0, 0] = 40
    found = {m: measured(graph(PASS), [{"x": x}], ["x"], m).amax["x"] for m in METHODS}
    assert found["minmax"] == 40
    below = np.quantile(np.abs(x), 0.99999)
    assert found["percentile"] == pytest.approx(below, abs=40 / 2048)
    assert found["entropy"] < 0.5 * found["minmax"]


def test_ranges_of_a_merged_network() -> None:
    model = exported("vanillanet_5")
    name = model.graph.inputs[0].name or ""
    tensors = [n.inputs[0].name or "" for n in model.graph if n.op_type == "Conv"]  # pyright: ignore[reportOptionalMemberAccess]
    feeds = [{name: pixels("vanillanet_5", batch=2)}, {name: pixels("vanillanet_5", batch=1)}]
    got = measured(model, feeds, tensors)
    assert got.images == 3
    for tensor, seen in values(model, feeds, tensors).items():
        want = np.abs(seen).max(axis=(0, 2, 3))
        assert got.channels[tensor] == pytest.approx(want.tolist(), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("opset", [13, 20])
def test_pixels_normalised_in_the_graph(opset: int) -> None:
    text = """(uint8[n,3,4,4] x) => (float[n,3,4,4] y) <float[1] s>
    { [cast] a = Cast<to=1>(x)  [scale] b = Mul(a, s)  [relu] y = Relu(b) }"""
    x = np.arange(96, dtype=np.uint8).reshape(2, 3, 4, 4)
    got = measured(graph(text, opset=opset, s=0.5), [{"x": x}], ["b", "y"])
    assert got.channels["b"] == got.channels["y"] == (63 * 0.5, 79 * 0.5, 95 * 0.5)


def test_model_and_weights_are_left_as_they_are() -> None:
    model = net()
    before = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    measured(model, images())
    after = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    assert after == before


@pytest.mark.parametrize("method", METHODS)
def test_progress_and_silence(method: Method, capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []
    measured(net(), images(), ["r"], method, seen.append)
    assert seen == [4, 8, 12] * (1 if method == "minmax" else 2)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("method", METHODS)
def test_the_same_images_give_the_same_bytes(method: Method) -> None:
    once, again = (
        write_cache_bytes(measured(net(), images(), ["r"], method)) for _ in range(2)
    )
    assert once == again


BATCH_BYTES = 4 * 3 * 128 * 128 * 4


class Stream:
    """Batches made one at a time, as often as asked."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Feed]:
        rng = np.random.default_rng(4)
        for _ in range(self.batches):
            yield {"x": rng.random((4, 3, 128, 128), np.float32)}


def peak_bytes(call: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("method", METHODS)
def test_memory_does_not_grow_with_the_batches(
    method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module._BINS, "entropy", 257)  # a search under tracemalloc is slow
    model = graph(PASS)

    def peak(batches: int) -> int:
        return peak_bytes(lambda: measured(model, Stream(batches), ["x", "y"], method))

    peak(1)  # imports
    assert peak(16) < peak(3) + BATCH_BYTES // 2


def test_the_measure_of_memory_sees_batches_that_are_kept() -> None:
    def kept(batches: int) -> int:
        return peak_bytes(lambda: list(Stream(batches)))

    assert kept(16) > kept(3) + 12 * BATCH_BYTES


def test_no_file_is_left_and_none_lies_there_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def interrupt(_: int) -> None:
        assert list(tmp_path.iterdir()) == []
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(net(), images(), progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_no_weight_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    sizes: list[int] = []
    augment = ort.MinMaxCalibrater.augment_graph

    def watched(self: Any) -> None:
        augment(self)
        sizes.extend(f.stat().st_size for f in tmp_path.rglob("*.onnx"))

    monkeypatch.setattr(ort.MinMaxCalibrater, "augment_graph", watched)
    measured(net(), images())
    weights = 4 * 200 * 3 * 3 * 3
    assert len(sizes) == 2
    assert max(sizes) < weights


def test_no_folder_for_temporaries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(CannotCreate):
        measured(net(), images())


def refused(kind: type[VntoolsError], code: str, *words: str, **kwargs: Any) -> None:
    model = kwargs.pop("model", None) or graph(PASS)
    with pytest.raises(kind) as caught:
        measured(model, **kwargs)
    assert caught.value.code == code
    for word in words:
        assert word in caught.value.line()


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_that_is_always_zero_is_named(method: Method) -> None:
    x = np.full((2, 3, 4, 4), -1, np.float32)
    feeds = [{"x": x}, {"x": x}]
    refused(
        DataFault, "calib.range", "zero in all 4 images: y",
        feeds=feeds, tensors=["x", "y"], method=method,
    )  # fmt: skip
    assert measured(graph(PASS), feeds, ["x"], method).amax["x"] == pytest.approx(1, rel=0.01)


def test_a_range_whose_scale_is_subnormal_is_zero() -> None:
    x = np.full((1, 3, 4, 4), 1e-37, np.float32)
    refused(DataFault, "calib.range", feeds=[{"x": x}], tensors=["x"])


def test_a_percentile_of_almost_only_zeros() -> None:
    x = np.zeros((8, 3, 80, 80), np.float32)
    x[3, 1, 40, 40] = 1
    feeds = [{"x": x}]
    assert measured(graph(PASS), feeds, ["x"]).amax["x"] == 1
    refused(
        DataFault, "calib.range", "try minmax: x",
        feeds=feeds, tensors=["x"], method="percentile",
    )  # fmt: skip


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_found(bad: float) -> None:
    feeds = images()
    feeds[1]["x"][2, 1, 3, 3] = bad
    refused(
        DataFault, "calib.range", "images 5 to 8: x",
        model=net(), feeds=feeds, tensors=TENSORS,
    )  # fmt: skip


def test_onnx_runtime_by_itself_passes_over_nan(tmp_path: Path) -> None:
    feeds = images()
    feeds[1]["x"][2, 1, 3, 3] = np.nan
    found = at_once("MinMaxCalibrater", feeds, tmp_path, TENSORS)
    assert np.isfinite(list(found.values())).all()


def test_an_activation_that_overflows_is_named() -> None:
    text = "(float[n,1,2,2] x) => (float[n,1,2,2] y) { [m] a = Mul(x, x)  [r] y = Relu(a) }"
    x = np.full((1, 1, 2, 2), 1e20, np.float32)
    refused(
        DataFault, "calib.range", ": a, y;",
        model=graph(text), feeds=[{"x": x}], tensors=["x", "a", "y"],
    )  # fmt: skip


def test_no_batch() -> None:
    refused(DataFault, "calib.empty", feeds=[], tensors=["x"])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (PASS, "absent"),
        ("(float[n] x) => (float[n] y) { [relu] y = Relu(x) }", "x"),
        (NET, "W"),
    ],
)
def test_a_tensor_without_channels(text: str, name: str) -> None:
    refused(DataFault, "calib.shape", repr(name), model=graph(text), feeds=[], tensors=[name])


def test_images_that_are_gone_the_second_time() -> None:
    left = images()

    class Vanishing:
        def __iter__(self) -> Iterator[Feed]:
            while left:
                yield left.pop()

    refused(
        DataFault, "calib.changed", "12 images first, 0",
        model=net(), feeds=Vanishing(), tensors=TENSORS, method="entropy",
    )  # fmt: skip


def test_a_batch_that_does_not_fit() -> None:
    wrong = [{"x": np.zeros((1, 4, 8, 8), np.float32)}]
    refused(InternalFault, "calib.run", model=net(), feeds=wrong, tensors=TENSORS)


def test_a_graph_that_onnx_runtime_cannot_open() -> None:
    text = "(float[n,3] x) => (float[n,3] y) { [odd] y = odd.Absent(x) }"
    feeds = [{"x": np.ones((1, 3), np.float32)}]
    refused(
        InternalFault,
        "calib.run",
        model=graph(text, foreign="odd"),
        feeds=feeds,
        tensors=["x"],
    )


AMAX = {'relu "0" \N{GREEK SMALL LETTER MU}': 1.1, "input": 3.0}
CHANNELS = {'relu "0" \N{GREEK SMALL LETTER MU}': (1.1, 0.0), "input": (1e-9, 3.0, 2.5)}
RANGES = Ranges(SHA, "minmax", 64, AMAX, CHANNELS)


def cached(folder: Path, data: bytes | None = None) -> Path:
    path = folder / "calibration.json"
    path.write_bytes(write_cache_bytes(RANGES) if data is None else data)
    return path


def test_a_cache_gives_back_what_was_written(tmp_path: Path) -> None:
    path = cached(tmp_path)
    assert read_cache(path, SHA, "minmax", list(AMAX)) == RANGES
    fewer = read_cache(path, SHA, "minmax", ["input"])
    assert fewer == Ranges(SHA, "minmax", 64, {"input": 3.0}, {"input": CHANNELS["input"]})


def test_a_measured_range_goes_through_a_cache_unchanged(tmp_path: Path) -> None:
    x = np.random.default_rng(5).standard_normal((2, 30, 4, 4)).astype(np.float32)
    ranges = measured(graph(PASS), [{"x": x}], ["x", "y"])
    path = cached(tmp_path, write_cache_bytes(ranges))
    assert read_cache(path, SHA, "minmax", ["x", "y"]) == ranges


def test_a_cache_is_readable_and_does_not_depend_on_order(tmp_path: Path) -> None:
    data = write_cache_bytes(RANGES)
    turned = {name: AMAX[name] for name in reversed(AMAX)}
    assert write_cache_bytes(Ranges(SHA, "minmax", 64, turned, CHANNELS)) == data
    text = data.decode("ascii")
    assert text.splitlines()[1] == ' "schema": 1,'
    assert '\n  "input": {"amax": 3.0, "channels": [1e-09, 3.0, 2.5]},\n' in text


@pytest.mark.parametrize(
    ("sha256", "method", "tensors"),
    [
        ("cd" * 32, "minmax", ["input"]),
        (SHA, "entropy", ["input"]),
        (SHA, "minmax", ["input", "other"]),
    ],
)
def test_a_cache_of_something_else_is_none(
    sha256: str, method: Method, tensors: list[str], tmp_path: Path
) -> None:
    assert read_cache(cached(tmp_path), sha256, method, tensors) is None


def forged(**changes: Any) -> bytes:
    """A cache with other content, and the digest that belongs to it."""
    record = json.loads(write_cache_bytes(RANGES)) | changes
    tensors = record.pop("tensors")
    record["digest"] = module._digest(record, tensors)
    return json.dumps(record | {"tensors": tensors}).encode()


GOOD = write_cache_bytes(RANGES)
DAMAGED = {
    "empty": b"",
    "cut": GOOD[:-20],
    "digit": GOOD.replace(b"2.5", b"2.6"),
    "of another graph, by hand": GOOD.replace(SHA.encode(), b"cd" * 32),
    "no JSON": b"\x00\xff" * 50,
    "list": b"[]",
    "deep": b"[" * 100_000,
    "schema": forged(schema=2),
    "NaN": GOOD.replace(b"2.5", b"NaN"),
    "negative": forged(tensors={"input": {"amax": -1.0, "channels": [1.0]}}),
    "zero": forged(tensors={"input": {"amax": 0.0, "channels": [1.0]}}),
    "beyond its channels": forged(tensors={"input": {"amax": 2.0, "channels": [1.0]}}),
    "no channels": forged(tensors={"input": {"amax": 2.0, "channels": []}}),
    "no number": forged(tensors={"input": {"amax": "x", "channels": [1.0]}}),
    "no tensor": forged(tensors={"input": 3}),
    "no tensors": forged(tensors=7),
    "no images": forged(images=0),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_cache_is_refused(damage: str, tmp_path: Path) -> None:
    with pytest.raises(DataFault) as caught:
        read_cache(cached(tmp_path, DAMAGED[damage]), "cd" * 32, "minmax", ["input"])
    assert caught.value.code == "calib.cache"
    assert "calibration.json" in caught.value.line()


def test_forging_is_what_it_says(tmp_path: Path) -> None:
    assert read_cache(cached(tmp_path, forged()), SHA, "minmax", list(AMAX)) == RANGES


def test_a_huge_cache_is_not_read(tmp_path: Path) -> None:
    path = cached(tmp_path)
    with path.open("r+b") as f:
        f.truncate(1 << 40)
    with pytest.raises(DataFault):
        read_cache(path, SHA, "minmax", ["input"])


def test_no_cache(tmp_path: Path) -> None:
    with pytest.raises(NoInput):
        read_cache(tmp_path / "absent.json", SHA, "minmax", ["input"])
    with pytest.raises(NoInput):
        read_cache(tmp_path, SHA, "minmax", ["input"])
