"""Time and memory of the passes grow with the graph, and no faster."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

CHANNELS = 4
# Runs in a process of its own: its memory is its own, and nobody else's garbage is collected.
MEASURE = """
import json, re, sys, time
from collections import Counter
from pathlib import Path
import onnx
from tests.export.test_scale import chain
from vntools.export.rewrite import rewrite_model
rewrite_model(chain(sys.argv[1], 20))
for blocks in map(int, sys.argv[2:]):
    data = chain(sys.argv[1], blocks)
    begin = time.process_time()
    after, applied = rewrite_model(data)
    seconds = time.process_time() - begin
    ops = Counter(n.op_type for n in onnx.load_model_from_string(after).graph.node)
    # Not getrusage, which begins at what the parent had.
    status = Path("/proc/self/status").read_text()
    peak = int(re.search(r"VmHWM:\\s*(\\d+) kB", status)[1]) / 1024
    print(json.dumps({"seconds": seconds, "peak_mib": peak, "ops": ops}))
"""


def chain(kind: str, blocks: int) -> bytes:
    """``blocks`` of Conv and BatchNormalization; "residual" with a skip and a Relu each."""
    rng = np.random.default_rng(0)
    statistics = [rng.uniform(0.5, 1, CHANNELS).astype(np.float32) for _ in "gsmv"]
    held = [numpy_helper.from_array(a, n) for a, n in zip(statistics, "gsmv", strict=True)]
    nodes: list[onnx.NodeProto] = []
    value = "x"
    for i in range(blocks):
        weight = rng.standard_normal((CHANNELS, CHANNELS, 1, 1)) / 2
        held.append(numpy_helper.from_array(weight.astype(np.float32), f"W{i}"))
        nodes += [
            helper.make_node("Conv", [value, f"W{i}"], [f"c{i}"], name=f"conv{i}"),
            helper.make_node(
                "BatchNormalization", [f"c{i}", *"gsmv"], [f"b{i}"], name=f"norm{i}"
            ),
        ]
        if kind == "residual":
            nodes += [
                helper.make_node("Add", [value, f"b{i}"], [f"a{i}"], name=f"add{i}"),
                helper.make_node("Relu", [f"a{i}"], [f"r{i}"], name=f"relu{i}"),
            ]
        value = nodes[-1].output[0]
    dims = ["n", CHANNELS, 8, 8]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", 1, dims)],
        [helper.make_tensor_value_info(value, 1, dims)],
        held,
    )
    opsets = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


@cache
def measured(kind: str) -> tuple[dict[str, object], ...]:
    """Of 1,000 blocks and of 4,000."""
    run = subprocess.run(
        (sys.executable, "-c", MEASURE, kind, "1000", "4000"),
        stdout=subprocess.PIPE,
        check=True,
        cwd=Path(__file__).parents[2],
        text=True,
    )
    return tuple(json.loads(line) for line in run.stdout.splitlines())


each_kind = pytest.mark.parametrize("kind", ["linear", "residual"])


@each_kind
def test_time_grows_as_the_graph_does(kind: str) -> None:
    small, large = (float(str(m["seconds"])) for m in measured(kind))
    assert large < 6 * small


@each_kind
def test_4000_blocks_are_small_work(kind: str) -> None:
    """10,000 take under 20 s and 1 GB where nothing else runs."""
    large = measured(kind)[1]
    left = {"residual": {"Conv": 4000, "Relu": 4000}, "linear": {"Conv": 1}}
    assert large["ops"] == left[kind]
    assert float(str(large["peak_mib"])) < 500
    assert float(str(large["seconds"])) < 40, "several times what it is"
