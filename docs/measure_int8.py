"""INT8 on a trained network and on a large one: accuracy, sizes, kernels, time and memory.

    python docs/measure_int8.py digits [--json FILE]
    python docs/measure_int8.py vanillanet_13 [--images 512] [--json FILE]

``digits`` deep-trains the network of ``vntools demo`` on scikit-learn's handwritten digits,
calibrates on its training images and measures top-1 on the others, in ONNX Runtime on the
typed graphs that the plans are built from.

``vanillanet_13`` has seeded weights; its BatchNormalization statistics are those of
calibration images, crops of scikit-learn's two photographs, and its shifts are 1, so that
outputs depend on the image. It is not trained: what it loses says how errors are measured and
nothing about a trained network. Plans are built with
TensorRT-RTX for compute capability 8.0, 8.9 and 12.0 each, dynamic batch 1 to 8, and not run.
Calibration is timed against bare forward passes over the same batches, in turns of one
process; latency is ONNX Runtime's on this CPU at batch 1, in interleaved rounds.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vntools.base.provenance import host, versions
from vntools.cli._shared import Console
from vntools.models.arch import ARCHITECTURES, Preprocessing
from vntools.models.seeded import write_seeded
from vntools.pipeline.engine import EngineOptions, build_engine
from vntools.pipeline.export import ExportOptions, export
from vntools.pipeline.quantize import Int8Options

if TYPE_CHECKING:
    from vntools.models.data import Images

_CAPABILITIES = (80, 89, 120)
_BUILT = 64  # images that the plans are calibrated and compared on


def _console() -> Console:
    console = Console()
    console.quiet = True
    return console


def _write(images: Images, folder: Path) -> None:
    """As PNG files in a folder for each class."""
    for i, (opener, label) in enumerate(zip(images.openers, images.labels, strict=True)):
        path = folder / images.classes[label] / f"{i:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        opener().save(path)


def digits(folder: Path) -> dict[str, Any]:
    """Top-1 of the digits network in each precision."""
    from vntools.models.arch import Architecture
    from vntools.models.data import digits as digit_images
    from vntools.models.schedule import TrainOptions
    from vntools.models.train import train, write_checkpoint
    from vntools.pipeline.bench import Artifact
    from vntools.pipeline.evaluate import EvalOptions, evaluate

    console = _console()
    learn, test = digit_images()
    arch = Architecture("vanillanet", (64, 128, 256, 512), (2, 2, 1), image_size=32)
    trained = train(TrainOptions(arch=arch), learn, test, on_epoch=lambda _: None)
    ckpt, graph = folder / "digits.pth", folder / "digits.onnx"
    write_checkpoint(trained, ckpt, force=False)
    export(ExportOptions(ckpt, graph), console)
    for images, name in ((learn, "learn"), (test, "test")):
        _write(images, folder / name)
    calib = Int8Options(folder / "learn", images=512)
    ways: dict[str, tuple[str, Int8Options | None]] = {
        "FP16": ("fp16", None),
        "INT8": ("int8", calib),
        "INT8, not equalised": ("int8", Int8Options(calib.calib, images=512, equalize=False)),
        "INT8 with depthwise": ("int8", Int8Options(calib.calib, images=512, depthwise=True)),
        "INT8 with depthwise, not equalised": (
            "int8",
            Int8Options(calib.calib, images=512, depthwise=True, equalize=False),
        ),
    }
    files, records = {"FP32": graph}, dict[str, Any]()
    for name, (precision, int8) in ways.items():
        files[name] = folder / f"{len(files)}.onnx"
        options = EngineOptions(
            graph,
            folder / f"{len(files)}.plan",
            precision=precision,
            int8=int8,
            backend="tensorrt-rtx",
            compute_capabilities=(80,),
            keep_onnx=files[name],
        )
        records[name] = build_engine(options, console).to_record()
    rows: dict[str, Any] = {}
    for name, path in files.items():
        found = evaluate(
            EvalOptions(Artifact(onnx=path, device="cpu"), folder / "test", compare=graph),
            console,
        )
        assert found is not None
        whole = found.to_record()
        rows[name] = {k: whole[k] for k in ("top1", "top1_percent", "images")}
        rows[name]["agreeing"] = whole["compare"]["agreeing"]
        if name in records and "int8" in records[name]["engine"]:
            rows[name]["int8"] = records[name]["engine"]["int8"]
    return {"images": len(test), "rows": rows}


def _photographs(folder: Path, count: int) -> None:
    """Square crops of two photographs, each of its own place and size."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    folder.mkdir()
    rng = np.random.default_rng(0)
    photographs = load_sample_images().images
    for i in range(count):
        whole = photographs[i % len(photographs)]
        side = int(rng.integers(160, min(whole.shape[:2])))
        top, left = (int(rng.integers(0, n - side)) for n in whole.shape[:2])
        crop = whole[top : top + side, left : left + side]
        Image.fromarray(crop).save(folder / f"{i:04}.png")


def _fit_statistics(ckpt: Path, pixels: Any) -> None:
    """Make the BatchNormalization statistics of a checkpoint those of its activations."""
    import torch

    from vntools.models.vanillanet import VanillaNet

    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(ckpt, weights_only=True)
    network = VanillaNet(ARCHITECTURES[content["args"].model])
    network.load_state_dict(content["model"])
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = None  # the mean over all batches
            part.reset_running_stats()
            torch.nn.init.ones_(part.bias)
        elif isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    with torch.no_grad():
        network.train()(torch.from_numpy(pixels))
    weights = {k: v for k, v in network.state_dict().items() if k in content["model"]}
    torch.save({**content, "model": weights, "model_ema": weights}, ckpt)


def vanillanet_13(folder: Path, images: int) -> dict[str, Any]:
    """Errors, sizes, kernels, time and memory of the largest network."""
    console = _console()
    ckpt, graph, photographs = folder / "net.pth", folder / "net.onnx", folder / "photographs"
    _photographs(photographs, images)
    write_seeded(ckpt, ARCHITECTURES["vanillanet_13"])
    pixels = _pixels(photographs, 32)
    _fit_statistics(ckpt, pixels)
    exported = export(ExportOptions(ckpt, graph), console)
    del pixels
    gc.collect()
    record: dict[str, Any] = {
        "images": _BUILT,
        "onnx_bytes": exported.size_bytes,
        "calibration": {"images": images, **_apart(_calibration, graph, photographs)},
        "plans": {},
    }
    cache = folder / "ranges.json"
    kept: dict[str, Path] = {"FP32": graph}
    for capability in _CAPABILITIES:
        for name, rest in (("FP16", None), ("INT8", "fp16")):
            out = folder / f"{name}.onnx"
            first = capability == _CAPABILITIES[0]
            options = EngineOptions(
                graph,
                folder / f"{name}-{capability}.plan",
                precision="int8" if rest else "fp16",
                int8=Int8Options(photographs, images=_BUILT, cache=cache) if rest else None,
                backend="tensorrt-rtx",
                compute_capabilities=(capability,),
                keep_onnx=out if first else None,
            )
            built = build_engine(options, console).to_record()
            kernels = built["engine"]["kernels"]
            record["plans"].setdefault(str(capability), {})[name] = {
                "bytes": built["engine"]["bytes"],
                "kernels": len(kernels),
                "kernel_types": Counter(k["type"] for k in kernels),
                "convolutions": Counter(c["asked"] for c in built["engine"]["convolutions"]),
                "verify": built["verify"],
            }
            if first:
                kept[name] = out
            if first and rest:
                record["int8"] = built["engine"]["int8"]
                record["kernels"] = [[k["name"], k["type"]] for k in kernels]
    mixed = folder / "INT8 and FP32.onnx"
    build_engine(
        EngineOptions(
            graph,
            folder / "mixed.plan",
            precision="int8",
            rest="fp32",
            int8=Int8Options(photographs, images=_BUILT, cache=cache),
            backend="tensorrt-rtx",
            keep_onnx=mixed,
        ),
        console,
    )
    kept["INT8 and FP32"] = mixed
    record["latency"] = _latency(kept)
    return record


def _pixels(photographs: Path, count: int) -> Any:
    import numpy as np

    from vntools.models.images import evaluation_view, open_rgb, to_input

    arch = ARCHITECTURES["vanillanet_13"]
    used = Preprocessing(arch.image_size, arch.crop_ratio)
    files = sorted(photographs.iterdir())[:count]
    views = [np.asarray(evaluation_view(open_rgb(f), used)) for f in files]
    return to_input(np.stack(views), used)


def _apart(work: Callable[..., dict[str, Any]], *args: Path) -> dict[str, Any]:
    """In a process of its own, whose peak memory is that of the work."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *args).result()


def _calibration(graph: Path, photographs: Path) -> dict[str, Any]:
    """Min-max calibration and bare forward passes over the same images, in turns."""
    import onnxruntime as ort

    from vntools.export.load import load_onnx
    from vntools.export.naming import name_nodes
    from vntools.pipeline.image_feeds import calibration_feeds
    from vntools.precision.calibrate import calibrate
    from vntools.precision.int8 import find_layers
    from vntools.runtime.base import TensorSpec

    loaded = load_onnx(graph)
    name_nodes(loaded.model.graph)
    tensors = sorted({layer.tensor for layer in find_layers(loaded.model.graph)})
    spec = TensorSpec("input", ("batch", 3, 224, 224), "float32")
    feeds = calibration_feeds(
        photographs,
        [spec],
        loaded.model.metadata_props,
        batch=8,
        limit=None,
        listener=_console(),
    )
    seconds: dict[str, list[float]] = {"bare": [], "calibrated": []}

    def bare() -> None:
        session = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
        for feed in feeds:
            session.run(None, feed)

    def calibrated() -> None:
        calibrate(loaded.model, tensors, feeds, method="minmax", graph_sha256=loaded.sha256)

    for name, work in (("bare", bare), ("calibrated", calibrated)):
        start = time.perf_counter()
        work()
        seconds[name].append(time.perf_counter() - start)
        gc.collect()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "seconds": seconds,
        "ratio": seconds["calibrated"][0] / seconds["bare"][0],
        "peak_bytes_of_the_process": peak,
        "tensors": len(tensors),
    }


def _latency(files: dict[str, Path]) -> dict[str, Any]:
    from contextlib import ExitStack

    from vntools.bench.compare import compare
    from vntools.bench.measurement import BenchOptions
    from vntools.runtime.onnx_runner import OnnxRunner

    with ExitStack() as stack:
        runners = {
            name: stack.enter_context(OnnxRunner(path.read_bytes()))
            for name, path in files.items()
        }
        return compare(runners, BenchOptions(duration_s=20)).to_record()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["digits", "vanillanet_13"])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = options.what == "digits"
        found = digits(folder) if whole else vanillanet_13(folder, options.images)
    record = {
        "schema": 1,
        "command": f"python docs/measure_int8.py {options.what}",
        "host": host(),
        "versions": versions("vntools", "torch", "onnx", "onnxruntime-gpu", "scikit-learn"),
        **found,
    }
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="ascii")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
