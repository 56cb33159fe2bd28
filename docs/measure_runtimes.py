"""Training graph, exported graph, and what other tools make of the training graph, on a CPU.

    python docs/measure_runtimes.py [--json FILE] [--duration S]
    python docs/measure_runtimes.py --write-docs     # the table of docs/bench.md

Seeded vanillanet_5, 9 and 13. For each, every graph in ONNX Runtime and in OpenVINO, and the
training and the merged module in PyTorch, eager and compiled, are measured side by side in one
process: batch 1, float32, one thread a core, in random turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import onnxsim
import onnxslim
import torch

sys.path.insert(0, str(Path(__file__).parent))
from bench_export import merged_module

from vntools.base.provenance import versions
from vntools.bench.compare import compare, relate
from vntools.bench.measurement import BenchOptions
from vntools.cli._shared import Console
from vntools.models.arch import ARCHITECTURES
from vntools.models.checkpoint import load_checkpoint, to_module
from vntools.models.seeded import write_seeded
from vntools.pipeline.export import ExportOptions, export
from vntools.runtime.base import Runner
from vntools.runtime.onnx_runner import OnnxRunner
from vntools.runtime.openvino_runner import OpenvinoRunner
from vntools.runtime.torch_compile_runner import TorchCompileRunner
from vntools.runtime.torch_runner import TorchRunner

RECORD = Path(__file__).parent / "measurements" / "runtimes.json"
PAGE = Path(__file__).parent / "bench.md"
START, END = "<!-- runtimes -->\n", "<!-- end of runtimes -->\n"
GRAPHS = ("training", "onnxsim", "onnxslim", "exported")
RUNTIMES = ("PyTorch", "torch.compile", "ONNX Runtime", "OpenVINO")


def main() -> None:
    """Measure, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", nargs="+", default=[f"vanillanet_{n}" for n in (5, 9, 13)])
    parser.add_argument("--duration", type=float, default=12, help="seconds of each column")
    parser.add_argument("--json", type=Path, default=RECORD)
    parser.add_argument("--write-docs", action="store_true")
    given = parser.parse_args()
    if not given.write_docs:
        measured = {name: one_network(name, given.duration) for name in given.arch}
        record = {
            "schema": 1,
            "command": "python docs/measure_runtimes.py",
            "tools": versions("onnxsim", "onnxslim", "openvino"),
            "networks": measured,
        }
        given.json.write_text(json.dumps(record, indent=1) + "\n", encoding="ascii")
    text = table(json.loads(given.json.read_text("ascii")))
    print(text, end="")
    if given.write_docs:
        before, _, rest = PAGE.read_text("utf-8").partition(START)
        PAGE.write_text(before + START + text + END + rest.partition(END)[2], "utf-8")


def one_network(name: str, duration_s: float) -> dict[str, Any]:
    """Every graph of one network in every runtime; the training graph in PyTorch is first."""
    console = Console()
    console.quiet = True
    graphs: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        ckpt = Path(folder, "net.pth")
        write_seeded(ckpt, ARCHITECTURES[name])
        checkpoint = load_checkpoint(ckpt)
        for graph in ("training", "exported"):
            out = Path(folder, f"{graph}.onnx")
            export(ExportOptions(ckpt, out, merge=graph == "exported"), console)
            graphs[graph] = out.read_bytes()
    raw: Any = onnx.load_from_string(graphs["training"])
    slimmed: Any = onnxslim.slim(raw)
    graphs["onnxsim"] = onnxsim.simplify(raw)[0].SerializeToString()
    graphs["onnxslim"] = slimmed.SerializeToString()
    network = to_module(checkpoint)
    merged = merged_module(ARCHITECTURES[name], network.state_dict())
    runners: dict[str, Runner] = {}
    shape = (3, 224, 224)
    modules: dict[str, torch.nn.Module] = {"training": network, "exported": merged}
    for graph, module in modules.items():
        runners[f"PyTorch, {graph}"] = TorchRunner(module, shape)
        runners[f"torch.compile, {graph}"] = TorchCompileRunner(module, shape)
    for graph in GRAPHS:
        runners[f"ONNX Runtime, {graph}"] = OnnxRunner(graphs[graph])
        runners[f"OpenVINO, {graph}"] = OpenvinoRunner(graphs[graph])
    with ExitStack() as stack:
        opened = {n: stack.enter_context(runner) for n, runner in runners.items()}
        done = compare(opened, BenchOptions(duration_s=duration_s))
    nodes = {n: len(onnx.load_from_string(data).graph.node) for n, data in graphs.items()}
    medians = {c.name: [statistics.median(r) for r in c.rounds_ms] for c in done.contenders}
    relations = {
        runtime: asdict(
            relate(
                *(medians[f"{runtime}, {g}"] for g in ("exported", "training")),
                same=0.01,
                seed=0,
            )
        )
        for runtime in RUNTIMES
    }
    return {"nodes": nodes, "relations": relations, "comparison": done.to_record()}


def table(record: dict[str, Any]) -> str:
    """Milliseconds, a row a network and graph, and the exported graph's ratio a runtime."""
    lines = [
        "| network | graph | nodes | " + " | ".join(RUNTIMES) + " |",
        "|---" * (3 + len(RUNTIMES)) + "|",
    ]
    for name, network in record["networks"].items():
        medians = {c["name"]: c["median_ms"] for c in network["comparison"]["contenders"]}
        for graph in GRAPHS:
            cells = [medians.get(f"{runtime}, {graph}") for runtime in RUNTIMES]
            shown = ["" if ms is None else f"{ms:.1f}" for ms in cells]
            lines.append(
                f"| {name} | {graph} | {network['nodes'][graph]} | " + " | ".join(shown) + " |"
            )
        found = [network["relations"][runtime] for runtime in RUNTIMES]
        ratios = [f"{r['ratio']:.2f} ({r['low']:.2f} to {r['high']:.2f})" for r in found]
        lines.append(f"| | exported / training | | {' | '.join(ratios)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
