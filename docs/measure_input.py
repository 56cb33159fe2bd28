"""What it saves to have normalisation and layout in the graph, side by side in one run.

    python docs/measure_input.py [--arch vanillanet_5] [--rounds 200] [--json FILE]

Four exports of one seeded checkpoint, all fed from the same decoded 224x224 images: ``host``
takes float32 NCHW that the host has normalised, ``in front`` takes bytes in NHWC and has the
normalisation as nodes before the network (what one writes by hand), ``folded`` is ``vntools
export --normalize imagenet --input-type uint8 --layout nhwc``, and ``folded, nchw`` the same
without the layout. Host work is numpy's, from the decoded image to the array that is fed, in
two spellings of which the faster counts. Latency is ONNX Runtime's on this CPU at batch 1, in
interleaved rounds of one process. FP16 plans are built with TensorRT-RTX for compute
capability 8.0, dynamic batch 1 to 8, and not run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from PIL import Image

from vntools.base.provenance import host, versions
from vntools.bench.compare import compare
from vntools.bench.measurement import BenchOptions
from vntools.cli._shared import Console
from vntools.export.graph import stats
from vntools.export.interface import Interface, Normalization
from vntools.models.arch import ARCHITECTURES, IMAGENET_MEAN, IMAGENET_STD
from vntools.models.seeded import write_seeded
from vntools.pipeline.engine import EngineOptions, build_engine
from vntools.pipeline.export import ExportOptions, export
from vntools.runtime.onnx_runner import OnnxRunner

FOLDED = {"normalize": "imagenet", "input_type": "uint8"}
FORMS: dict[str, dict[str, str]] = {
    "host": {},
    "in front": {},
    "folded": {**FOLDED, "layout": "nhwc"},
    "folded, nchw": FOLDED,
}
Array = NDArray[Any]


def normalized(image: Image.Image) -> Array:
    """As tutorials have it: scale, subtract, divide, transpose."""
    x = np.asarray(image, np.float32) / np.float32(255)
    x = (x - np.array(IMAGENET_MEAN, np.float32)) / np.array(IMAGENET_STD, np.float32)
    return np.ascontiguousarray(x.transpose(2, 0, 1))[None]


def tuned(image: Image.Image) -> Array:
    """One multiplication and one addition, channel by channel into the final array."""
    pixels = np.asarray(image)
    x = np.empty((1, 3, *pixels.shape[:2]), np.float32)
    for c, (mean, std) in enumerate(zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)):
        np.multiply(pixels[:, :, c], np.float32(1 / (255 * std)), out=x[0, c])
        x[0, c] -= np.float32(mean / std)
    return x


def planar(image: Image.Image) -> Array:
    """The layout alone."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))[None]


def as_decoded(image: Image.Image) -> Array:
    """Nothing but the array of the image."""
    return np.asarray(image)[None]


HOST_WORK: dict[str, dict[str, Callable[[Image.Image], Array]]] = {
    "host": {"as in tutorials": normalized, "tuned": tuned},
    "in front": {"as decoded": as_decoded},
    "folded": {"as decoded": as_decoded},
    "folded, nchw": {"planar": planar},
}


def host_work(images: list[Image.Image], rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds an image of every way to prepare it, in turns."""
    times: dict[str, dict[str, list[float]]] = {
        form: {name: [] for name in ways} for form, ways in HOST_WORK.items()
    }
    for i in range(rounds):
        for form, ways in HOST_WORK.items():
            for name, prepare in ways.items():
                begin = time.perf_counter_ns()
                prepare(images[i % len(images)])
                times[form][name].append((time.perf_counter_ns() - begin) * 1e-6)  # ns -> ms
    return {
        form: {name: statistics.median(ms) for name, ms in ways.items()}
        for form, ways in times.items()
    }


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="vanillanet_5")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    console = Console()
    console.quiet = True
    rng = np.random.default_rng(0)
    images = [
        Image.fromarray(rng.integers(256, size=(224, 224, 3)).astype(np.uint8))
        for _ in range(8)
    ]
    forms: dict[str, dict[str, Any]] = {}
    answers: dict[str, Array] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ckpt = folder / "net.pth"
        write_seeded(ckpt, ARCHITECTURES[options.arch])
        files: dict[str, bytes] = {}
        for form, asked in FORMS.items():
            out = folder / f"{form}.onnx"
            if form == "in front":
                _put_in_front(folder / "host.onnx", out)
            else:
                export(ExportOptions(ckpt, out, **asked), console)  # pyright: ignore[reportArgumentType]
            forms[form] = _described(out, console)
            files[form] = out.read_bytes()
    work = host_work(images, options.rounds)
    runners = {form: OnnxRunner(data) for form, data in files.items()}
    for form, runner in runners.items():
        with runner:
            fed = {w: prepare(images[0]) for w, prepare in HOST_WORK[form].items()}
            for x in fed.values():
                answers[form] = runner.run({"input": x})["logits"]
            forms[form]["input_bytes"] = next(iter(fed.values())).nbytes
            forms[form]["host_ms"] = work[form]
            base = answers["host"]
            gap = np.linalg.norm(answers[form] - base) / np.linalg.norm(base)
            forms[form]["difference_to_host"] = float(gap)
    first, *rest = (OnnxRunner(files[form]) for form in FORMS)
    with first, rest[0], rest[1], rest[2]:
        contenders = dict(zip(FORMS, (first, *rest), strict=True))
        latency = compare(contenders, BenchOptions(duration_s=8)).to_record()
    record = {
        "schema": 1,
        "command": f"python docs/measure_input.py --arch {options.arch}",
        "arch": options.arch,
        "host": host(),
        "versions": versions("numpy", "pillow", "onnxruntime-gpu", "onnxruntime"),
        "rounds": options.rounds,
        "forms": forms,
        "latency": latency,
    }
    _print(record)
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="ascii")


def _put_in_front(source: Path, out: Path) -> None:
    """The exported network with the steps before it, as nodes that nobody folds."""
    model = ir.load(source)
    steps = Interface(Normalization(IMAGENET_MEAN, IMAGENET_STD), "uint8", "nhwc")
    steps.add_to(model)
    ir.save(model, out)


def _described(path: Path, console: Console) -> dict[str, Any]:
    """Nodes of a graph, and kernels of its FP16 plan."""
    graph = stats(ir.load(path).graph)
    plan = build_engine(
        EngineOptions(
            path,
            precision="fp16",
            backend="tensorrt-rtx",
            max_batch=8,
            compute_capabilities=(80,),
        ),
        console,
    ).to_record()["engine"]
    return {
        "nodes": graph.nodes,
        "ops": graph.ops,
        "kernels": len(plan["kernels"]),
        "kernel_names": [k["name"] for k in plan["kernels"]],
        "engine": f"{plan['flavour']} {plan['version']}",
    }


def _print(record: dict[str, Any]) -> None:
    forms = record["forms"]
    medians = {c["name"]: c["median_ms"] for c in record["latency"]["contenders"]}
    host_ms = {form: min(f["host_ms"].values()) for form, f in forms.items()}
    rows = [
        ("host work, ms", [f"{host_ms[f]:.3f}" for f in forms]),
        ("bytes an image", [f"{f['input_bytes']}" for f in forms.values()]),
        ("nodes", [f"{f['nodes']}" for f in forms.values()]),
        ("kernels, FP16", [f"{f['kernels']}" for f in forms.values()]),
        ("CPU latency, ms", [f"{medians[f]:.2f}" for f in forms]),
        ("both, ms", [f"{host_ms[f] + medians[f]:.2f}" for f in forms]),
        ("difference", [f"{f['difference_to_host']:.1e}" for f in forms.values()]),
    ]
    print(f"{record['arch']:16}" + "".join(f"{form:>14}" for form in forms))
    for name, cells in rows:
        print(f"{name:16}" + "".join(f"{cell:>14}" for cell in cells))
    slow = forms["host"]["host_ms"]
    print("host work of 'host', ms: " + ", ".join(f"{k} {v:.3f}" for k, v in slow.items()))
    for contender in record["latency"]["contenders"][1:]:
        r = contender["relation"]
        print(
            f"{contender['name']}: latency ratio {r['ratio']:.3f}, 95 % interval "
            f"{r['low']:.3f} to {r['high']:.3f}, {r['verdict']}"
        )


if __name__ == "__main__":
    main()
