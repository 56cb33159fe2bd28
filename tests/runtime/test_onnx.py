"""ONNX Runtime: what it loads, where it runs, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from vntools.base.artifacts import sha256_bytes
from vntools.base.errors import DataFault, Unavailable
from vntools.engine import backend
from vntools.runtime import onnx_runner
from vntools.runtime.onnx_runner import OnnxCudaRunner, OnnxRunner, OnnxTensorrtRunner
from vntools.runtime.onnx_weights import weight_bytes


@pytest.fixture
def ort_warnings(capfd: pytest.CaptureFixture[str]) -> Callable[[bytes], list[str]]:
    """The warnings and errors that ONNX Runtime writes while it loads a model."""

    def load(model: bytes) -> list[str]:
        capfd.readouterr()
        with OnnxRunner(model):
            pass
        said = capfd.readouterr().err.splitlines()
        return [line for line in said if "[W:" in line or "[E:" in line]

    return load


def test_a_clean_model_loads_without_a_warning(net: Any, ort_warnings: Any):
    assert ort_warnings(net.onnx_model()) == []


def test_warnings_of_onnx_runtime_are_visible(net: Any, ort_warnings: Any):
    model = onnx.load_model_from_string(net.onnx_model())
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "unused"))
    assert any("unused" in line for line in ort_warnings(model.SerializeToString()))


def test_details(net: Any):
    model = net.onnx_model()
    with OnnxRunner(model, threads=1) as runner:
        assert runner.backend == "onnxruntime-cpu"
        assert runner.details["threads"] == 1
        assert runner.details["precision"] == "float32"
        assert runner.details["providers"] == {"CPUExecutionProvider": 2}
        assert runner.details["sha256"] == sha256_bytes(model)


def test_the_precision_is_that_of_the_weights(net: Any):
    with OnnxRunner(net.onnx_model(dtype=TensorProto.FLOAT16)) as runner:
        assert runner.details["precision"] == "float16 (wider types allowed)"
        assert runner.inputs[0].dtype == "float16"
        x = net.images(2).astype(np.float16)
        y = runner.run({"input": x})["logits"]
        assert np.allclose(y, net.reference(x), atol=2e-2)


def test_a_fixed_batch_is_part_of_the_specification(net: Any):
    with OnnxRunner(net.onnx_model(batch=2)) as runner:
        assert runner.inputs[0].shape == (2, *net.shape)
        runner.run({"input": net.images(2)})
        with pytest.raises(DataFault, match="has shape 1x3x5x4"):
            runner.run({"input": net.images(1)})


@pytest.mark.parametrize("model", [b"", b"<html>", b"PK\x03\x04" * 9])
def test_what_is_no_model(model: bytes):
    with pytest.raises(DataFault) as e, OnnxRunner(model):
        pass
    assert e.value.code == "onnx.invalid"


def test_a_cut_model(net: Any):
    model = net.onnx_model()
    for length in range(0, len(model), 7):
        with pytest.raises(DataFault) as e, OnnxRunner(model[:length]):
            pass
        assert e.value.code == "onnx.invalid"


def test_an_unknown_operator(net: Any):
    model = onnx.load_model_from_string(net.onnx_model())
    model.graph.node[1].op_type = "Sigmund"
    with pytest.raises(DataFault, match="Sigmund") as e, OnnxRunner(model.SerializeToString()):
        pass
    assert e.value.code == "onnx.invalid"


def test_an_input_that_is_no_tensor():
    value = helper.make_tensor_sequence_value_info("input", TensorProto.FLOAT, None)
    out = helper.make_tensor_value_info("y", TensorProto.INT64, [])
    node = helper.make_node("SequenceLength", ["input"], ["y"])
    graph = helper.make_graph([node], "g", [value], [out])
    opsets = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    with pytest.raises(DataFault) as e, OnnxRunner(model.SerializeToString()):
        pass
    assert e.value.code == "onnx.io"


def test_weights_in_another_file_are_refused(net: Any):
    model = onnx.load_model_from_string(net.onnx_model())
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../secret")
    with pytest.raises(DataFault) as e, OnnxRunner(model.SerializeToString()):
        pass
    assert e.value.code == "onnx.external"


def test_two_inputs_must_agree_on_the_batch():
    names = ("a", "b")
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 2]) for n in names]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["y"])], "g", inputs, [out])
    opsets = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    one, two = np.ones((1, 2), np.float32), np.ones((2, 2), np.float32)
    with OnnxRunner(model.SerializeToString()) as runner:
        assert runner.run({"b": two, "a": two})["y"].sum() == 8
        with pytest.raises(DataFault, match="n = 1") as e:
            runner.run({"a": two, "b": one})
        assert e.value.code == "feeds.shape"


# --- CUDA asked for


def test_cuda_without_a_gpu(net: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backend, "gpu_count", lambda: 0)
    with (
        pytest.raises(Unavailable, match="no NVIDIA GPU") as e,
        OnnxCudaRunner(net.onnx_model()),
    ):
        pass
    assert e.value.code == "provider.missing"


@pytest.mark.skipif(backend.gpu_count() > 0, reason="CUDA may really be there")
def test_cuda_that_silently_became_the_cpu(
    gpu: Any, net: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(backend, "gpu_count", lambda: 1)
    with pytest.raises(Unavailable, match="CUDA") as e, OnnxCudaRunner(net.onnx_model()):
        pass
    assert e.value.code == "provider.missing"


@pytest.mark.parametrize(
    ("nodes", "fits"),
    [
        ({"CUDAExecutionProvider": ["Conv", "Relu"]}, True),
        (
            {"CUDAExecutionProvider": ["Conv"], "CPUExecutionProvider": ["Shape", "Gather"]},
            True,
        ),
        ({"CUDAExecutionProvider": ["Conv"], "CPUExecutionProvider": ["Relu"]}, False),
        ({"CPUExecutionProvider": ["Conv", "Relu"]}, False),
        ({"CPUExecutionProvider": ["Shape"]}, False),
    ],
)
def test_nodes_must_be_where_they_were_asked_to_be(nodes: dict[str, list[str]], fits: bool):
    assert onnx_runner._all_on("CUDAExecutionProvider", nodes) is fits


# --- TensorRT asked for


def test_tensorrt_without_a_gpu(net: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backend, "gpu_count", lambda: 0)
    with (
        pytest.raises(Unavailable, match="TensorrtExecutionProvider was asked for") as e,
        OnnxTensorrtRunner(net.onnx_model()),
    ):
        pass
    assert e.value.code == "provider.missing"


@pytest.mark.skipif(backend.gpu_count() > 0, reason="TensorRT may really be there")
def test_tensorrt_that_silently_became_the_cpu(
    gpu: Any, net: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(backend, "gpu_count", lambda: 1)
    with (
        pytest.raises(Unavailable, match=r"Tensorrt.* was asked for, and ONNX Runtime") as e,
        OnnxTensorrtRunner(net.onnx_model()),
    ):
        pass
    assert e.value.code == "provider.missing"


@pytest.mark.parametrize(
    ("types", "flags", "said"),
    [
        (("float32",), {}, "float32 (TF32 allowed)"),
        (("float16",), {"trt_fp16_enable"}, "float16 (wider types allowed)"),
        (("bfloat16", "float32"), {"trt_bf16_enable"}, "bfloat16 (wider types allowed)"),
        (("int8", "float16"), {"trt_int8_enable", "trt_fp16_enable"},
         "int8 (wider types allowed)"),
    ],
)  # fmt: skip
def test_tensorrts_flags_are_the_types_of_the_graph(
    types: tuple[str, ...], flags: set[str], said: str
):
    runner = OnnxTensorrtRunner(b"")
    runner._types = types
    assert runner._provider_options() == dict.fromkeys(flags, "1")
    assert runner._precision() == said


@pytest.mark.parametrize(
    ("nodes", "runs"),
    [
        ({"TensorrtExecutionProvider": ["Conv", "Relu"]}, True),
        ({"TensorrtExecutionProvider": ["Conv"], "CUDAExecutionProvider": ["Relu"]}, False),
        ({"CUDAExecutionProvider": ["Conv", "Relu"]}, False),
    ],
)
def test_tensorrt_must_have_the_nodes(
    gpu: Any,
    net: Any,
    monkeypatch: pytest.MonkeyPatch,
    nodes: dict[str, list[str]],
    runs: bool,
):
    """ONNX Runtime's CPU sessions, told to say that they are TensorRT's."""
    real, asked = onnxruntime.InferenceSession, []

    class Session(real):
        def __init__(self, model: bytes, options: Any, providers: list[Any]) -> None:
            asked.extend(providers)
            super().__init__(model, options, providers=["CPUExecutionProvider"])

        def get_providers(self) -> list[str]:
            return list(nodes)

        def get_provider_graph_assignment_info(self) -> list[Any]:
            return [
                SimpleNamespace(
                    ep_name=name,
                    get_nodes=lambda ops=ops: [SimpleNamespace(op_type=o) for o in ops],
                )
                for name, ops in nodes.items()
            ]

    monkeypatch.setattr(backend, "gpu_count", lambda: 1)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    opened = OnnxTensorrtRunner(net.onnx_model(dtype=TensorProto.FLOAT16))
    if not runs:
        with pytest.raises(Unavailable, match=r"TensorrtExecutionProvider was asked for"):
            opened.__enter__()
        return
    with opened as runner:
        assert runner.backend == "onnxruntime-tensorrt"
        assert runner.details["precision"] == "float16 (wider types allowed)"
        assert runner.details["cuda_graph"].startswith("not used")
        assert runner.details["gpu"]["name"] == "Numpy A100"
    ((provider, options),) = asked
    assert provider == "TensorrtExecutionProvider"
    assert options["trt_fp16_enable"] == "1"
    assert int(options["user_compute_stream"]) in gpu.streams


# --- the wire


def test_weights_are_counted_by_type():
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.standard_normal((40, 30)).astype(np.float16),
        "b": rng.standard_normal(9).astype(np.float32),
        "c": rng.integers(-9, 9, (50, 50)).astype(np.int8),
    }
    graph = helper.make_graph([], "g", [], [])
    graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    graph.initializer.append(helper.make_tensor("d", TensorProto.DOUBLE, [2], [1.0, 2.0]))
    model = helper.make_model(graph)
    sizes = weight_bytes(model.SerializeToString())
    assert list(sizes) == ["int8", "float16", "float32", "float64"]
    for name, array in zip(("float16", "float32", "int8"), arrays.values(), strict=True):
        assert array.nbytes < sizes[name] < array.nbytes + 32


def test_the_wire_format_is_read_to_the_end_or_refused():
    assert weight_bytes(b"") == {}
    for bad in (b"\x3a", b"\x3a\x05abc", b"\x0b", b"\xff" * 12, b"\x09\x00"):
        with pytest.raises(DataFault):
            weight_bytes(bad)
