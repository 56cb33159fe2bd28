"""What other tools leave of graphs that exact algebra makes smaller, and what vntools leaves.

    python docs/compare_tools.py [--only NAME]...     # measure, print, write the record
    python docs/compare_tools.py --write-docs         # the record's tables into algebra.md

Graphs: the training forms of tests/zoo as PyTorch's exporter writes them (dynamo, nothing
optimised, opset 20). Each tool gets each graph alone, as it is and after constant folding by
onnxscript, and runs as its manual has it: onnxsim.simplify, onnxslim.slim,
onnxoptimizer.optimize to a fixed point, onnxscript's optimizer and then its rewriter, ONNX
Runtime's offline optimisation (extended), ``vntools simplify`` less its verification. The
target is the author's own deploy form, constants folded, then onnxsim.

One counter counts them all: nodes that the output needs and that work on the data. What works
on constants or on shapes alone is not counted; ConvTranspose and FusedConv count as Conv, Sub
and Sum as Add, Div as Mul. Multiply-accumulates of one sample are those of Conv, Gemm and
MatMul at the sizes that a run has. The error is the largest difference to PyTorch in float64
on one seeded input, relative to the largest output; every graph runs in ONNX Runtime in
float32 with its optimisations off. Seconds are those of the processor, all threads.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from tests.zoo import Case

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "docs" / "measurements" / "tools.json"
DOCUMENT = ROOT / "docs" / "algebra.md"
BEGIN, END = "<!-- docs/compare_tools.py: begin -->\n", "<!-- docs/compare_tools.py: end -->\n"

OPSET = 20
TRAINING, TARGET, OURS = "training graph", "author's deploy form + onnxsim", "vntools"
COLUMNS = ("Conv", "BatchNormalization", "Add", "Mul", "Gemm, MatMul", "all")
_MATRIX = COLUMNS.index("Gemm, MatMul")
_SAME = {
    "ConvTranspose": "Conv",
    "FusedConv": "Conv",
    "FusedGemm": "Gemm",
    "FusedMatMul": "MatMul",
    "Sub": "Add",
    "Sum": "Add",
    "Div": "Mul",
}

Model = Any  # onnx.ModelProto: protobuf's classes are typed in part
Tool = Callable[[Model], Model]


def _onnxsim(model: Model) -> Model:
    import onnxsim

    return onnxsim.simplify(model)[0]


def _onnxslim(model: Model) -> Model:
    import onnxslim

    return onnxslim.slim(model)


def _onnxoptimizer(model: Model) -> Model:
    import onnxoptimizer

    return onnxoptimizer.optimize(model, fixed_point=True)


def _onnxscript(model: Model) -> Model:
    import onnxscript.optimizer
    import onnxscript.rewriter

    return onnxscript.rewriter.rewrite(onnxscript.optimizer.optimize(model))


def _onnxruntime(model: Model) -> Model:
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = _session_options()
        level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.graph_optimization_level = level
        options.optimized_model_filepath = str(Path(folder, "out.onnx"))
        onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return onnx.load(options.optimized_model_filepath)


def _vntools_passes(model: Model) -> Model:
    import onnx

    from vntools.export.rewrite import rewrite_model

    return onnx.load_from_string(rewrite_model(model.SerializeToString())[0])


def _vntools(model: Model) -> Model:
    import onnx_ir as ir

    from vntools.export.load import parse_onnx
    from vntools.export.rewrite import apply_passes
    from vntools.export.simplify import tidy

    parsed = parse_onnx(model.SerializeToString())
    apply_passes(parsed.graph)
    return ir.serde.serialize_model(tidy(parsed))


TOOLS: Mapping[str, Tool] = {
    "onnxsim": _onnxsim,
    "onnxslim": _onnxslim,
    "onnxoptimizer": _onnxoptimizer,
    "onnxscript": _onnxscript,
    "ONNX Runtime": _onnxruntime,
    "vntools, passes alone": _vntools_passes,
    OURS: _vntools,
}


def _folded(data: bytes) -> bytes:
    """A model with its constant sub-graphs folded, and nothing else done to it."""
    import onnx
    import onnx_ir as ir
    import onnxscript.optimizer
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    model = ir.serde.deserialize_model(onnx.load_from_string(data))
    onnxscript.optimizer.fold_constants(model)
    RemoveUnusedNodesPass()(model)
    return ir.serde.serialize_model(model).SerializeToString()


def _session_options() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return options


def live_nodes(model: Model) -> list[onnx.NodeProto]:
    """Nodes that the outputs need and that work on the data."""
    graph = model.graph
    held = {t.name for t in graph.initializer}
    carries = {v.name for v in graph.input} - held
    working: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type in ("Shape", "Size"):
            continue
        read = node.input[:1] if node.op_type == "CastLike" else node.input
        if carries & set(read):
            carries |= set(node.output)
            working.append(node)
    needed = {v.name for v in graph.output}
    found: list[onnx.NodeProto] = []
    for node in reversed(working):
        if needed & set(node.output):
            needed |= set(node.input)
            found.append(node)
    return found[::-1]


def counted(nodes: list[onnx.NodeProto]) -> list[int]:
    """Nodes by :data:`COLUMNS`."""
    types = Counter(_SAME.get(n.op_type, n.op_type) for n in nodes)
    named = [sum(types[op] for op in name.split(", ")) for name in COLUMNS[:-1]]
    return [*named, len(nodes)]


def run(model: Model, x: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
    """The output for ``x``, and the multiply-accumulates of one sample."""
    import onnx
    import onnxruntime

    graph = model.graph
    heavy = [n for n in live_nodes(model) if _SAME.get(n.op_type, n.op_type) in _HEAVY]
    sizes = {t.name: tuple(t.dims) for t in graph.initializer}
    known = {*sizes, *(v.name for v in (*graph.input, *graph.output))}
    wanted = dict.fromkeys(name for n in heavy for name in (*n.input[:2], n.output[0]))
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in known)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), _session_options(), providers=["CPUExecutionProvider"]
    )
    (source,) = (v.name for v in graph.input if v.name not in sizes)
    results: list[Any] = list(session.run(None, {source: x}))
    sizes |= {v.name: r.shape for v, r in zip(graph.output, results, strict=True)}
    sizes[source] = x.shape
    done = 0
    for node in heavy:
        left, right, out = (sizes[name] for name in (*node.input[:2], node.output[0]))
        if node.op_type == "ConvTranspose":
            done += math.prod(left) * math.prod(right[1:])
        elif _SAME.get(node.op_type) == "Conv" or node.op_type == "Conv":
            done += math.prod(out) * math.prod(right[1:])
        else:
            turned = any(a.name == "transA" and a.i for a in node.attribute)
            done += math.prod(out) * left[-1 - turned]
    return results[0], done // x.shape[0]


_HEAVY = ("Conv", "Gemm", "MatMul")


def measured(
    tool: Tool, data: bytes, x: NDArray[np.float32], want: NDArray[np.float64]
) -> dict[str, Any]:
    """What a tool makes of a graph; ``failed`` where it fails, or makes what does not run."""
    import numpy as np
    import onnx
    import onnx.inliner

    model = onnx.load_from_string(data)
    start = time.process_time()
    try:
        model = tool(model)
        seconds = time.process_time() - start
        model = onnx.inliner.inline_local_functions(model)
        nodes = counted(live_nodes(model))
        y, macs = run(model, x)
        error = float(np.abs(y - want).max() / np.abs(want).max())
    except Exception as e:  # noqa: BLE001  a tool may fail in any way
        return {
            "failed": f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"[:120]
        }
    return {
        "nodes": nodes,
        "macs": macs,
        "seconds": round(seconds, 4),
        "error": float(f"{error:.2e}"),
    }


def compare(case: Case) -> dict[str, Any]:
    """All tools on one graph."""
    import numpy as np
    import torch

    from tests.zoo import export_bytes

    raw = export_bytes(case.train(), case, "dynamo", opset=OPSET)
    deploy = export_bytes(case.deploy(), case, "dynamo", opset=OPSET)
    x = np.random.default_rng(0).standard_normal(case.input_shape).astype(np.float32)
    with torch.no_grad():
        want = case.train().double()(torch.from_numpy(x).double()).numpy()
    folded = _folded(raw)
    cells = {
        name: {
            how: measured(tool, data, x, want)
            for how, data in (("raw", raw), ("folded", folded))
        }
        for name, tool in {TRAINING: _unchanged, **TOOLS}.items()
    }
    cells[TARGET] = {"folded": measured(_onnxsim, _folded(deploy), x, want)}
    return {"name": case.name, "input": list(case.input_shape), "cells": cells}


def _unchanged(model: Model) -> Model:
    return model


def best(cell: Mapping[str, Any]) -> dict[str, Any]:
    """The run with fewer nodes, of the raw graph and of the folded one."""
    runs = [r for r in cell.values() if "nodes" in r]
    return min(runs, key=lambda r: r["nodes"][-1]) if runs else next(iter(cell.values()))


def _shown(result: Mapping[str, Any]) -> str:
    if "failed" in result:
        return f"fails: {result['failed'].split(':', maxsplit=1)[0]}"
    return "/".join(str(n) for i, n in enumerate(result["nodes"]) if i != _MATRIX)


def tables(record: Mapping[str, Any]) -> str:
    """The record as two tables in Markdown."""
    return f"{_versions(record)}\n{_totals(record['graphs'])}\n{_details(record['graphs'])}"


def _versions(record: Mapping[str, Any]) -> str:
    host = record["host"]
    listed = ", ".join(f"{k} {v}" for k, v in record["versions"].items() if k != "vntools")
    return _wrapped(
        f"Measured on {record['date']}, {host['cores']} cores of {host['cpu']}, Python "
        f"{host['python']}, {listed}."
    )


def _wrapped(text: str) -> str:
    import textwrap

    return textwrap.fill(text, 95, break_on_hyphens=False, break_long_words=False) + "\n"


def _totals(graphs: list[dict[str, Any]]) -> str:
    heads = ("tool", "input", *COLUMNS, "MMACs", "CPU s", "largest error", "fails")
    lines = [
        f"All {len(graphs)} graphs together; a graph that a tool fails on counts as it was.\n",
        "| " + " | ".join(heads) + " |",
        "|---" * len(heads) + "|",
    ]
    for name in graphs[0]["cells"]:
        for how in graphs[0]["cells"][name]:
            results = [g["cells"][name][how] for g in graphs]
            failed = sum("failed" in r for r in results)
            counts = [
                r if "nodes" in r else g["cells"][TRAINING][how]
                for g, r in zip(graphs, results, strict=True)
            ]
            nodes = [sum(column) for column in zip(*(r["nodes"] for r in counts), strict=True)]
            done = [r for r in results if "nodes" in r]
            idle = name == TRAINING
            seconds = "" if idle else f"{sum(r['seconds'] for r in done):.1f}"
            row = [
                name,
                how,
                *map(str, nodes),
                f"{sum(r['macs'] for r in counts) / 1e6:.3f}",
                seconds,
                f"{max((r['error'] for r in done), default=0):.0e}",
                str(failed or ""),
            ]
            lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def _details(graphs: list[dict[str, Any]]) -> str:
    names = [n for n in graphs[0]["cells"] if n != "vntools, passes alone"]
    text = (
        "Conv/BatchNormalization/Add/Mul/all nodes of each graph, the better of both inputs. "
        "kMACs of the training graph, of what vntools makes of it, and of the author's form."
    )
    lines = [
        _wrapped(text),
        "| graph | " + " | ".join(names) + " | kMACs |",
        "|---" * (len(names) + 2) + "|",
    ]
    for g in sorted(graphs, key=lambda g: not g["name"].endswith("-net")):
        shown = [best(g["cells"][n]) for n in names]
        macs = " → ".join(
            f"{best(g['cells'][n]).get('macs', 0) / 1e3:.0f}" for n in (TRAINING, OURS, TARGET)
        )
        lines.append(f"| {g['name']} | " + " | ".join(map(_shown, shown)) + f" | {macs} |")
    return "\n".join(lines) + "\n"


def with_tables(document: str, record: Mapping[str, Any]) -> str:
    """A document with the tables between its two marks."""
    head, rest = document.split(BEGIN)
    return head + BEGIN + tables(record) + END + rest.split(END)[1]


def _write_record(record: Mapping[str, Any], path: Path) -> None:
    """JSON, one graph a line."""
    graphs = ",\n  ".join(json.dumps(g, separators=(",", ":")) for g in record["graphs"])
    text = json.dumps({**record, "graphs": []}, indent=1).replace("[]", f"[\n  {graphs}\n ]")
    path.write_text(text + "\n", encoding="ascii")


def main() -> None:
    """Measure and print, or write the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", metavar="NAME", help="print, write nothing")
    parser.add_argument("--json", type=Path, default=RECORD)
    parser.add_argument("--write-docs", action="store_true")
    options = parser.parse_args()
    if options.write_docs:
        record = json.loads(options.json.read_text(encoding="ascii"))
        text = with_tables(DOCUMENT.read_text(encoding="utf-8"), record)
        DOCUMENT.write_text(text, encoding="utf-8")
        return
    sys.path.insert(0, str(ROOT))
    from tests.zoo import CASES
    from vntools.base.provenance import host, versions

    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    first = next(iter(CASES.values()))
    compare(first)  # what is imported and compiled once is nobody's time
    cases = [CASES[name] for name in options.only or CASES]
    record: dict[str, Any] = {
        "schema": 1,
        "date": time.strftime("%Y-%m-%d"),
        "host": host(),
        "versions": versions(
            *("torch", "onnx", "onnxsim", "onnxslim", "onnxoptimizer", "onnxscript"),
            "onnxruntime-gpu",
            "onnxruntime",
        ),
        "opset": OPSET,
        "columns": COLUMNS,
        "graphs": [],
    }
    for case in cases:
        record["graphs"].append(compare(case))
        print(case.name, file=sys.stderr, flush=True)
    print(tables(record))
    if not options.only:
        _write_record(record, options.json)


if __name__ == "__main__":
    main()
