"""Real plans, built by TensorRT-RTX on the CPU, and a build that is cancelled or fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest
from onnx import TensorProto, helper, parser

from vntools.base.errors import DataFault, Interrupted, TryLater, UsageFault
from vntools.engine.backend import choose
from vntools.engine.build import BuildOptions, build
from vntools.engine.log import collected, logger
from vntools.engine.precision import check_convolutions


@pytest.mark.parametrize("capabilities", [(), (80,), (89,), (120,), (80, 120)], ids=str)
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_a_plan_and_its_record(rtx, chain, precision, capabilities):
    options = BuildOptions(
        rtx, min_batch=2, opt_batch=4, max_batch=16, compute_capabilities=capabilities
    )
    built = build(chain(precision).SerializeToString(), options)
    assert built.plan.startswith(b"vtrt")
    assert built.seconds > 0
    assert built.record == {
        "flavour": "tensorrt-rtx",
        "version": rtx.version,
        "compute_capabilities": list(capabilities),
        "profile": {
            "input": {"min": [2, 3, 32, 32], "opt": [4, 3, 32, 32], "max": [16, 3, 32, 32]}
        },
        "inputs": [{"name": "input", "shape": [-1, 3, 32, 32], "dtype": "float32"}],
        "outputs": [
            {"name": built.record["outputs"][0]["name"], "shape": [-1, 10]}
            | {"dtype": "float32"}
        ],
        "builder_optimization_level": 3,
        "mem_pool_size": {},
        "timing_cache": None,
        "warnings": [],
    }
    assert json.loads(json.dumps(built.record)) == built.record
    assert {"shape_call", "correlation", "maxpool", "kgen"} <= {
        k.layer_type for k in built.kernels or ()
    }


def test_the_same_graph_gives_the_same_record(rtx, chain):
    data = chain().SerializeToString()
    first, second = build(data, BuildOptions(rtx)), build(data, BuildOptions(rtx))
    assert first.record == second.record
    assert first.kernels == second.kernels
    assert build(chain(width=8).SerializeToString(), BuildOptions(rtx)).plan != first.plan


def test_batches_by_default_and_of_a_fixed_graph(rtx, chain):
    dynamic = build(chain().SerializeToString(), BuildOptions(rtx)).record["profile"]["input"]
    assert [shape[0] for shape in dynamic.values()] == [1, 1, 8]
    data = chain(batch=4).SerializeToString()
    for options in (BuildOptions(rtx), BuildOptions(rtx, opt_batch=4, min_batch=4)):
        fixed = build(data, options).record["profile"]["input"]
        assert fixed == {k: [4, 3, 32, 32] for k in ("min", "opt", "max")}
    with pytest.raises(UsageFault, match="fixed at 4; another"):
        build(data, BuildOptions(rtx, max_batch=8))


def test_inputs_and_outputs_in_half(rtx, chain):
    record = build(chain("fp16", io="fp16").SerializeToString(), BuildOptions(rtx)).record
    assert [t["dtype"] for t in (*record["inputs"], *record["outputs"])] == ["float16"] * 2


def test_options_reach_the_builder(rtx, chain):
    data = chain().SerializeToString()
    options = BuildOptions(rtx, optimization_level=5, mem_pool_size={"workspace": 512})
    record = build(data, options).record
    assert record["builder_optimization_level"] == 5
    assert record["mem_pool_size"] == {"workspace": 512}
    with pytest.raises(TryLater, match="workspace limit") as caught:
        build(data, BuildOptions(rtx, mem_pool_size={"workspace": 0.5}))
    assert caught.value.code == "gpu.memory"


def test_only_the_batch_may_be_dynamic(rtx):
    model = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18]> '
        "g (float[N,3,H,8] x) => (float[N,3,H,8] y) { y = Relu(x) }"
    )
    with pytest.raises(DataFault, match="input x has shape") as caught:
        build(model.SerializeToString(), BuildOptions(rtx))
    assert caught.value.code == "onnx.shape"


@pytest.mark.parametrize("data", [b"", b"<html></html>"])
def test_what_the_parser_takes_for_an_empty_model(rtx, data):
    with pytest.raises(DataFault) as caught:
        build(data, BuildOptions(rtx))
    assert caught.value.code == "onnx.format"


def test_what_the_parser_refuses(rtx):
    graph = helper.make_graph(
        [helper.make_node("Bar", ["x"], ["y"], "odd_one", domain="foo")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("foo", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    with pytest.raises(DataFault, match=r"\(Bar\): ") as caught:
        build(model.SerializeToString(), BuildOptions(rtx))
    assert caught.value.code == "onnx.unsupported"
    with pytest.raises(DataFault, match="Failed to parse") as caught:
        build(b"\x80 no protobuf" * 9, BuildOptions(rtx))
    assert caught.value.code == "onnx.format"


def test_progress_counts_every_phase_to_its_end(rtx, chain):
    seen: dict[str, list[tuple[int, int]]] = {}
    build(
        chain().SerializeToString(),
        BuildOptions(rtx),
        progress=lambda phase, done, total: seen.setdefault(phase, []).append((done, total)),
    )
    assert "Building engine" in seen
    for steps in seen.values():
        assert steps[0][0] == 0
        assert steps[-1][0] == steps[-1][1] > 0
        assert all(done <= total for done, total in steps)


class Raiser:
    """A progress callback that sends this process a signal at its first or its last call."""

    def __init__(self, when: str, signum: int, taken: Callable[[], bool]) -> None:
        self.when, self.signum, self.taken = when, signum, taken
        self.calls = 0
        self.sent = False

    def __call__(self, phase: str, done: int, total: int) -> None:
        self.calls += 1
        due = self.when == "first" or (phase == "Building engine" and done == total)
        if due and not self.sent:
            self.sent = True
            os.kill(os.getpid(), self.signum)
            wait_for(self.taken)


def wait_for(condition: Callable[[], bool]) -> None:
    """Give the main thread time to run a signal handler; what is missing fails later."""
    deadline_s = time.perf_counter() + 5
    while not condition() and time.perf_counter() < deadline_s:
        time.sleep(0.001)


@pytest.fixture
def handler():
    """Sets handlers of signals, and puts back what was there."""
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    yield signal.signal
    for signum, old in before.items():
        signal.signal(signum, old)


@pytest.mark.parametrize("when", ["first", "last"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_a_callback_that_sets_a_flag(rtx, chain, handler, when, signum):
    flag: list[int] = []
    handler(signum, lambda number, _frame: flag.append(number))
    progress = Raiser(when, signum, lambda: bool(flag))
    with pytest.raises(Interrupted) as caught:
        build(
            chain().SerializeToString(),
            BuildOptions(rtx),
            progress=progress,
            cancelled=lambda: flag[-1] if flag else 0,
        )
    assert caught.value.signum == signum
    # The build was cancelled, not awaited: no callback came after the signal was seen.
    assert progress.calls == 1 or when == "last"


@pytest.mark.parametrize("when", ["first", "last"])
def test_a_signal_during_a_callback_with_pythons_own_handler(rtx, chain, handler, when):
    handler(signal.SIGINT, signal.default_int_handler)
    progress = Raiser(when, signal.SIGINT, lambda: True)
    with pytest.raises(KeyboardInterrupt):
        build(chain().SerializeToString(), BuildOptions(rtx), progress=progress)


def test_what_a_callback_raises_comes_out_and_the_next_build_works(rtx, chain):
    data = chain().SerializeToString()

    def fail(phase: str, done: int, total: int) -> None:
        raise LookupError(phase)

    def interrupt(phase: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(LookupError):
        build(data, BuildOptions(rtx), progress=fail)
    with pytest.raises(KeyboardInterrupt):
        build(data, BuildOptions(rtx), progress=interrupt)
    with pytest.raises(ZeroDivisionError):
        build(data, BuildOptions(rtx), cancelled=lambda: 1 // 0)
    with pytest.raises(Interrupted) as caught:
        build(data, BuildOptions(rtx), cancelled=lambda: int(signal.SIGHUP))
    assert caught.value.signum == signal.SIGHUP
    assert build(data, BuildOptions(rtx), cancelled=lambda: 0).plan


def test_a_build_does_not_hold_back_signal_handlers(rtx, chain, handler):
    """A handler runs while native code builds, not when it has ended."""
    ran_at_s: list[float] = []
    handler(signal.SIGTERM, lambda *_: ran_at_s.append(time.perf_counter()))
    sent_at_s: list[float] = []

    def progress(phase: str, done: int, total: int) -> None:
        if not sent_at_s:
            sent_at_s.append(time.perf_counter())
            os.kill(os.getpid(), signal.SIGTERM)
            wait_for(lambda: bool(ran_at_s))

    build(chain().SerializeToString(), BuildOptions(rtx), progress=progress)
    assert ran_at_s
    assert ran_at_s[0] - sent_at_s[0] < 4


def test_messages_of_builds_are_kept_apart(rtx, chain):
    data, other = chain().SerializeToString(), chain("fp32", width=8).SerializeToString()
    alone = build(data, BuildOptions(rtx)).kernels
    keep_alive = rtx.trt.Builder(logger(rtx.trt))
    assert build(data, BuildOptions(rtx)).kernels == alone
    del keep_alive
    found: dict[str, object] = {}

    def run(name: str, model: bytes) -> None:
        found[name] = build(model, BuildOptions(rtx)).kernels

    threads = [threading.Thread(target=run, args=a) for a in (("a", data), ("b", other))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found["a"] == alone
    assert found["b"] not in (None, alone)


def test_a_collection_ends_with_its_block(rtx):
    with collected(rtx.trt) as log:
        assert log.last_error() == "it logged no error"
        logger(rtx.trt).log(rtx.trt.ILogger.ERROR, "inside\n")
        logger(rtx.trt).log(rtx.trt.ILogger.WARNING, "careful")
        logger(rtx.trt).log(rtx.trt.ILogger.VERBOSE, "megabytes")
        logger(rtx.trt).log(object(), "no severity")
    logger(rtx.trt).log(rtx.trt.ILogger.ERROR, "outside")
    assert (log.errors, log.warnings, log.kernel_lists) == (["inside\n"], ["careful"], [])
    assert log.last_error() == "inside"
    assert isinstance(log.failure, TypeError)


def test_a_process_that_built_ends_well(chain, tmp_path):
    path = tmp_path / "chain.onnx"
    path.write_bytes(chain().SerializeToString())
    code = (
        "import sys; from vntools.engine.backend import choose; "
        "from vntools.engine.build import BuildOptions, build; "
        "b = build(open(sys.argv[1], 'rb').read(), BuildOptions(choose('tensorrt-rtx'))); "
        "print(len(b.plan) > 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_tensorrt_on_a_gpu(chain, convs_of, precision, tmp_path):
    cache = tmp_path / "timing.cache"
    model = chain(precision)
    timings = b""
    options = BuildOptions(choose("tensorrt"), timing_cache=cache)
    for _ in range(2):
        built = build(model.SerializeToString(), options)
        check_convolutions(convs_of(model, precision), built.kernels)
        assert (built.record["timing_cache"] is None) == (not timings)
        timings = cache.read_bytes()
        assert timings
