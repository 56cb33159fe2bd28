"""vntools export and simplify, as a user calls them."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import Result

from tests.pipeline.conftest import SMALL, write_checkpoint
from vntools.base.artifacts import sealed
from vntools.models.checkpoint import load_checkpoint, to_module
from vntools.pipeline import export as export_module
from vntools.pipeline import references as references_module

Invoke = Callable[..., Result]
Record = Callable[[str], dict[str, Any]]


def test_the_record_says_what_happened(record: Record) -> None:
    found = record("net")
    before, after = found["graph"]["before"], found["graph"]["after"]
    assert before["ops"]["BatchNormalization"] == 10
    assert after["ops"] == {
        "Conv": 7, "Flatten": 1, "GlobalAveragePool": 1, "MaxPool": 1, "Relu": 3,
    }  # fmt: skip
    assert after["parameters"] == SMALL.deploy_parameters()
    assert after["macs"] == SMALL.deploy_macs() < before["macs"]
    assert {r["rule"] for r in found["rewrites"]} >= {"collapse-linear"}
    assert all(r["error"] < 1e-13 for r in found["rewrites"])
    assert all("would cost" in s["reason"] for s in found["skips"])
    verify = found["verify"]
    assert 0 < verify["relative_l2"] <= verify["allowed"] < 1e-5
    assert verify["top1_agreement"] == 1.0
    assert found["ok"]
    assert found["schema"] == 1
    assert set(found["seconds"]) >= {"load", "trace", "merge", "verify", "total"}


def test_the_file_is_one_valid_sealed_model(made: Path, record: Record) -> None:
    path = made / "net.onnx"
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert sealed(path)
    assert [i.name for i in model.graph.input] == ["input"]
    assert [o.name for o in model.graph.output] == ["logits"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert model.ir_version <= 10
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
    said = {p.key: p.value for p in model.metadata_props}
    assert (
        said["vntools.source_sha256"]
        == hashlib.sha256((made / "net.pth").read_bytes()).hexdigest()
    )
    assert said["vntools.weights"] == "model_ema"
    assert said["vntools.classes"] == "10"
    assert json.loads(said["vntools.preprocessing"])["image_size"] == 32
    assert record("net")["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert str(made) not in path.read_bytes().decode("latin-1"), "no path of this machine"


def test_it_computes_what_the_checkpoint_does(made: Path) -> None:
    x = np.random.default_rng(5).standard_normal((4, 3, 32, 32), dtype=np.float32)
    with torch.inference_mode():
        want = to_module(load_checkpoint(made / "net.pth"))(torch.from_numpy(x)).numpy()
    for name in ("net.onnx", "training.onnx"):
        session = onnxruntime.InferenceSession(made / name)
        got = np.asarray(session.run(None, {"input": x})[0])
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_onnx_runtime_loads_it_without_a_warning(
    made: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("net.onnx", "training.onnx"):
        onnxruntime.InferenceSession(made / name)
    assert capfd.readouterr().err == ""


def test_same_input_same_bytes(work: Path, invoke: Invoke) -> None:
    assert invoke("export", "--ckpt", "net.pth", "--out", "again.onnx").exit_code == 0
    assert Path("again.onnx").read_bytes() == (work / "net.onnx").read_bytes()


def test_without_merge_the_training_graph_is_kept(record: Record) -> None:
    found = record("training")
    assert found["rewrites"] == []
    assert found["graph"]["after"]["ops"]["BatchNormalization"] == 10
    assert found["graph"]["after"]["ops"]["LeakyRelu"] == 4


def test_simplify_makes_the_same_of_the_training_graph(
    work: Path, invoke: Invoke, record: Record
) -> None:
    result = invoke("simplify", "training.onnx", "--out", "simplified.onnx", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    after = record("net")["graph"]["after"]
    assert found["graph"]["after"] == after
    assert found["metadata"]["vntools.source"] == "training.onnx"
    assert found["metadata"]["vntools.preprocessing"], "what the source said is kept"
    assert sealed(work / "simplified.onnx")


def test_a_fixed_batch(work: Path, invoke: Invoke) -> None:
    result = invoke("export", "--ckpt", "net.pth", "--out", "two.onnx", "--batch", 2)
    assert result.exit_code == 0, result.stderr
    dims = onnx.load("two.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_value for d in dims] == [2, 3, 32, 32]


def test_lambda_below_one_is_refused_and_can_be_exported_as_it_is(
    work: Path, invoke: Invoke
) -> None:
    write_checkpoint(work / "early.pth", epoch=40)
    refused = invoke("export", "--ckpt", "early.pth", "--out", "early.onnx")
    assert refused.exit_code == 65
    for said in ("ckpt.lambda", "epoch 40", "100", "0.4"):
        assert said in refused.stderr
    assert not Path("early.onnx").exists()
    as_is = invoke("export", "--ckpt", "early.pth", "--out", "early.onnx", "--no-merge")
    assert as_is.exit_code == 0, as_is.stderr
    nodes = onnx.load("early.onnx").graph.node
    slopes = [a.f for n in nodes for a in n.attribute if a.name == "alpha"]
    assert slopes == pytest.approx([0.4] * 4)


def test_a_faded_graph_is_not_merged_by_simplify(work: Path, invoke: Invoke) -> None:
    write_checkpoint(work / "early.pth", epoch=40)
    invoke("export", "--ckpt", "early.pth", "--out", "early.onnx", "--no-merge")
    result = invoke("simplify", "early.onnx", "--out", "out.onnx", "--json")
    found = json.loads(result.stdout)
    assert found["graph"]["after"]["ops"]["LeakyRelu"] == 4
    assert any("its slope is 0.4, not 1" in s["reason"] for s in found["skips"])


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["export", "--ckpt", "nope.pth", "--out", "x.onnx"], 66, "nope.pth"),
        (["export", "--ckpt", ".", "--out", "x.onnx"], 66, "regular"),
        (["export", "--ckpt", "net.pth", "--out", "nope/x.onnx"], 73, "folder"),
        (["export", "--ckpt", "net.pth", "--out", "net.pth"], 2, "overwrite"),
        (["export", "--ckpt", "net.pth", "--out", "mine.txt"], 73, "--force"),
        (["export", "--ckpt", "net.onnx", "--out", "x.onnx"], 65, "net.onnx"),
        (["export", "--ckpt", "net.pth", "--out", "x.onnx", "--key", "nope"], 2, "nope"),
        (["export", "--ckpt", "net.pth", "--out", "x.onnx", "--opset", "99"], 2, "opset 99"),
        (["export", "--ckpt", "net.pth"], 2, "--out"),
        (["simplify", "net.pth", "--out", "x.onnx"], 65, "net.pth"),
        (["simplify", "empty.onnx", "--out", "x.onnx"], 65, "empty"),
        (["simplify", "nope.onnx", "--out", "x.onnx"], 66, "nope.onnx"),
    ],
)
def test_wrong_inputs(
    work: Path, invoke: Invoke, words: list[str], status: int, said: str
) -> None:
    (work / "mine.txt").write_text("mine")
    (work / "empty.onnx").write_bytes(b"")
    before = {p.name: p.read_bytes() for p in work.iterdir()}
    result = invoke(*words, "--quiet")
    assert (result.exit_code, said in result.stderr) == (status, True), result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
    assert {p.name: p.read_bytes() for p in work.iterdir()} == before, "nothing was touched"


def test_what_vntools_wrote_is_replaced_until_somebody_changes_it(
    work: Path, invoke: Invoke
) -> None:
    words = ("export", "--ckpt", "net.pth", "--out", "net.onnx", "--batch", 1)
    assert invoke(*words).exit_code == 0
    with Path("net.onnx").open("ab") as f:
        f.write(b"\0")
    assert invoke(*words).exit_code == 73
    assert invoke(*words, "--force").exit_code == 0


def test_the_gate_closes_on_a_wrong_rewrite(
    work: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what the passes cannot see themselves: their weights as they are written."""
    import vntools.export.emit as module

    true = module._cast
    monkeypatch.setattr(module, "_cast", lambda a, *to: true(a * (1 + 1e-4), *to))
    result = invoke("export", "--ckpt", "net.pth", "--out", "wrong.onnx")
    assert result.exit_code == 1
    assert "verify.mismatch" in result.stderr
    assert not list(work.glob("*wrong*")), "nothing published, no temporary left"


def test_the_gate_closes_on_a_wrong_trace(
    work: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = references_module._pytorch

    def off(*args: Any) -> Any:
        return [{k: v * np.float32(1 + 1e-4) for k, v in y.items()} for y in true(*args)]

    monkeypatch.setattr(references_module, "_pytorch", off)
    result = invoke("export", "--ckpt", "net.pth", "--out", "wrong.onnx")
    assert result.exit_code == 1
    assert "PyTorch" in result.stderr


@pytest.mark.parametrize("phase", ["trace", "merge"])
def test_ctrl_c_in_the_middle_leaves_nothing(work: Path, phase: str) -> None:
    before = sorted(work.iterdir())
    words = ("export", "--ckpt", "net.pth", "--out", "new.onnx")
    with subprocess.Popen(
        (sys.executable, "-P", "-c", "from vntools.cli import main; main()", *words),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stderr is not None
        while not (line := running.stderr.readline()).startswith(phase):
            assert line, "it ended early"
        running.send_signal(signal.SIGINT)
        last = running.stderr.read().splitlines()[-1]
    assert running.returncode == 130
    assert last == "vntools export: error[interrupted]: ended by SIGINT"
    assert sorted(work.iterdir()) == before


def test_an_error_does_not_wait_for_the_work_beside_it() -> None:
    release, start = threading.Event(), time.monotonic()
    with pytest.raises(KeyboardInterrupt), export_module.beside() as pool:
        pool.submit(release.wait, 60)
        raise KeyboardInterrupt
    assert time.monotonic() - start < 30
    release.set()


def model_of(*nodes: onnx.NodeProto, out: str) -> onnx.ModelProto:
    """x (n, 3, 4, 4) through ``nodes``, which read weights w and v of 1x1 kernels."""
    rng = np.random.default_rng(0)
    dims = ["n", 3, 4, 4]
    held = [rng.standard_normal((3, 3, 1, 1)).astype(np.float32) for _ in range(2)]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, dims)],
        [onnx.helper.make_tensor_value_info(out, 1, dims)],
        [onnx.numpy_helper.from_array(a, n) for a, n in zip(held, "wv", strict=True)],
    )
    opsets = [onnx.helper.make_opsetid("", 20)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)


def test_nodes_without_names_or_with_the_same(work: Path, invoke: Invoke) -> None:
    nodes = (
        onnx.helper.make_node("Conv", ["x", "w"], ["a"]),
        onnx.helper.make_node("Conv", ["a", "v"], ["b"], name="k"),
        onnx.helper.make_node("Relu", ["b"], ["c"], name="k"),
    )
    onnx.save(model_of(*nodes, out="c"), work / "in.onnx")
    result = invoke("simplify", "in.onnx", "--out", "out.onnx")
    assert result.exit_code == 0, result.stderr
    assert "collapse-linear: Conv_0 + k -> k;" in result.stdout
    assert [n.name for n in onnx.load("out.onnx").graph.node] == ["k", "Relu_2"]


@pytest.mark.parametrize("why", ["groups", "channels"])
def test_a_model_that_cannot_run_is_its_authors_fault(
    work: Path, invoke: Invoke, why: str
) -> None:
    conv = onnx.helper.make_node("Conv", ["x", "w"], ["y"], group=int(why != "groups"))
    model = model_of(conv, out="y")
    if why == "channels":
        wide = onnx.numpy_helper.from_array(np.ones((3, 5, 1, 1), np.float32), "w")
        model.graph.initializer[0].CopyFrom(wide)
    onnx.save(model, work / "in.onnx")
    result = invoke("simplify", "in.onnx", "--out", "out.onnx", "--quiet")
    assert result.exit_code == 65, result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not Path("out.onnx").exists()


def test_the_text_names_every_rewrite(work: Path, invoke: Invoke) -> None:
    result = invoke("export", "--ckpt", "net.pth", "--out", "net.onnx")
    assert (
        "stages.0.conv1.0 + stages.0.conv1.1 + leakyrelu_1 + stages.0.conv2.0" in result.stdout
    )
    assert "BatchNormalization" in result.stdout
    assert "relative L2 error against float64" in result.stdout


def _parsed(text: str, path: Path) -> Path:
    onnx.save(
        onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}'), path
    )
    return path


def test_a_stride_of_zero_never_reaches_native_code(work: Path, invoke: Invoke) -> None:
    _parsed(
        "g (float[1,1,4,4] x) => (float[1,1,4,4] y) <float[1,1,1,1] w = {1}> "
        "{ y = Conv <strides = [0, 0]> (x, w) }",
        work / "zero.onnx",
    )
    result = invoke("simplify", "zero.onnx", "--out", "x.onnx")
    assert result.exit_code == 65
    assert "onnx.attr" in result.stderr


def test_weights_that_a_caller_may_override_are_said(work: Path, invoke: Invoke) -> None:
    _parsed(
        "g (float[1,1,4,4] x, float[1,1,1,1] w) => (float[1,1,4,4] y) "
        "<float[1,1,1,1] w = {2}> { a = Conv (x, w) y = Conv (a, w) }",
        work / "open.onnx",
    )
    result = invoke("simplify", "open.onnx", "--out", "x.onnx", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert [w["code"] for w in found["warnings"]] == ["onnx.overridable"]
    assert found["graph"]["after"]["ops"] == {"Conv": 2}


def test_control_flow_builds_no_engine(work: Path, invoke: Invoke) -> None:
    _parsed(
        "g (float[1,1,4,4] x, bool[1] c) => (float[1,1,4,4] y) { y = If (c) "
        "<then_branch = t () => (float[1,1,4,4] a) { a = Relu (x) }, "
        "else_branch = e () => (float[1,1,4,4] b) { b = Neg (x) }> }",
        work / "if.onnx",
    )
    result = invoke("build-engine", "if.onnx", "--fp16")
    assert result.exit_code == 65
    assert "onnx.control_flow" in result.stderr
