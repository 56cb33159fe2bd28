"""Training graph against exported graph: size, kernels, and CPU latency side by side.

    python docs/measure.py [--arch vanillanet_13] [--json FILE]

Seeded weights. FP16 plans are built with TensorRT-RTX for compute capability 8.0, dynamic
batch 1 to 8, FP32 inputs and outputs, and not run; latency is ONNX Runtime's on this CPU at
batch 1, in interleaved rounds of one process.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from vntools.bench.compare import compare
from vntools.bench.measurement import BenchOptions
from vntools.cli._shared import Console
from vntools.models.arch import ARCHITECTURES
from vntools.models.seeded import write_seeded
from vntools.pipeline.engine import EngineOptions, build_engine
from vntools.pipeline.export import ExportOptions, export
from vntools.runtime.onnx_runner import OnnxRunner


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="vanillanet_13")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    console = Console()
    console.quiet = True
    made: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        ckpt = Path(folder, "net.pth")
        write_seeded(ckpt, ARCHITECTURES[options.arch])
        for name in ("training", "exported"):
            out = Path(folder, f"{name}.onnx")
            merge = name == "exported"
            exported = export(ExportOptions(ckpt, out, merge=merge), console).to_record()
            plan = build_engine(
                EngineOptions(
                    out,
                    precision="fp16",
                    backend="tensorrt-rtx",
                    max_batch=8,
                    compute_capabilities=(80,),
                ),
                console,
            ).to_record()
            made[name] = {
                "graph": exported["graph"]["after"],
                "onnx_bytes": exported["bytes"],
                "verify": exported["verify"],
                "plan_bytes": plan["engine"]["bytes"],
                "kernels": len(plan["engine"]["kernels"]),
                "fp16_verify": plan["verify"],
                "engine": f"{plan['engine']['flavour']} {plan['engine']['version']}",
            }
        files = {n: Path(folder, f"{n}.onnx").read_bytes() for n in made}
    with OnnxRunner(files["training"]) as before, OnnxRunner(files["exported"]) as after:
        latency = compare(
            {"training": before, "exported": after}, BenchOptions(duration_s=20)
        ).to_record()
    record = {
        "schema": 1,
        "command": f"python docs/measure.py --arch {options.arch}",
        "arch": options.arch,
        **made,
        "latency": latency,
    }
    _print(record)
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="ascii")


def _print(record: dict[str, Any]) -> None:
    before, after = record["training"], record["exported"]
    was, now = record["latency"]["contenders"]
    rows = [
        ("nodes", before["graph"]["nodes"], after["graph"]["nodes"]),
        ("Conv", before["graph"]["ops"]["Conv"], after["graph"]["ops"]["Conv"]),
        ("parameters, M", *(f"{r['graph']['parameters'] / 1e6:.2f}" for r in (before, after))),
        ("MACs, G", *(f"{r['graph']['macs'] / 1e9:.2f}" for r in (before, after))),
        ("ONNX, MB", *(f"{r['onnx_bytes'] / 1e6:.1f}" for r in (before, after))),
        ("FP16 plan, MB", *(f"{r['plan_bytes'] / 1e6:.1f}" for r in (before, after))),
        ("kernels in it", before["kernels"], after["kernels"]),
        ("CPU latency, ms", *(f"{c['median_ms']:.1f}" for c in (was, now))),
        ("error, L2", *(f"{r['verify']['relative_l2']:.1e}" for r in (before, after))),
    ]
    print(f"{record['arch']:16} {'training':>10} {'exported':>10}")
    for name, first, second in rows:
        print(f"{name:16} {first!s:>10} {second!s:>10}")
    relation = now["relation"]
    print(
        f"latency ratio {relation['ratio']:.3f}, "
        f"95 % interval {relation['low']:.3f} to {relation['high']:.3f}, "
        f"{relation['verdict']}"
    )


if __name__ == "__main__":
    main()
