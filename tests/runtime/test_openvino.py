"""OpenVINO: what is asked of it, what is read back, and a stand-in for what it may answer.

The stand-in has the part of OpenVINO's Python API that the runner uses; where OpenVINO itself
is installed it is held against the contract of runners and against the tests at the end.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from vntools.base.artifacts import sha256_bytes
from vntools.base.errors import DataFault, InternalFault, Unavailable
from vntools.runtime.base import TensorSpec
from vntools.runtime.openvino_runner import OpenvinoRunner

real = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino is not installed"
)


class FakeDimension:
    def __init__(self, extent: int) -> None:
        self.is_dynamic = extent < 0
        self.get_length = lambda: extent


class FakeShape(list[FakeDimension]):
    rank = SimpleNamespace(is_dynamic=False)


def port(value: Any) -> Any:
    axes = value.type.tensor_type.shape.dim
    dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    return SimpleNamespace(
        any_name=value.name,
        partial_shape=FakeShape(FakeDimension(a.dim_value or -1) for a in axes),
        element_type=SimpleNamespace(to_dtype=lambda: dtype),
    )


class FakeModel:
    def __init__(self, graph: Any) -> None:
        self.inputs, self.outputs = map(port, graph.input), map(port, graph.output)
        self.graph, self.shapes = graph, {}

    def clone(self) -> FakeModel:
        return FakeModel(self.graph)

    def reshape(self, shapes: dict[str, list[int]]) -> None:
        self.shapes = shapes


class FakeOpenvino(ModuleType):
    """Computes the network of the tests; ``does`` says what it makes of the hints."""

    __version__ = "2026.4.1-1-abc"

    def __init__(self, net: Any) -> None:
        super().__init__("openvino")
        self.net = net
        self.asked: list[tuple[dict[str, list[int]], dict[str, Any]]] = []
        self.does: dict[str, Any] = {}
        self.fails = False

    def Core(self) -> Any:  # noqa: N802 - OpenVINO's name
        return SimpleNamespace(read_model=self._read, compile_model=self._compile)

    def _read(self, model: bytes) -> FakeModel:
        graph = onnx.ModelProto.FromString(model).graph
        if graph.node[0].op_type != "Conv":
            raise RuntimeError(
                "Exception from src/core.cpp:105:\nUnable to read the model.\n\n"
            )
        return FakeModel(graph)

    def _compile(self, model: FakeModel, device: str, hints: dict[str, Any]) -> Any:
        assert device == "CPU"
        self.asked.append((model.shapes, hints))
        precision = self.does.get("precision", hints["INFERENCE_PRECISION_HINT"])
        threads = self.does.get("threads", hints["INFERENCE_NUM_THREADS"])
        layers = [("Reorder", "f32"), ("Convolution", precision), ("Output", "f32")]
        rt_infos = [
            {
                "layerType": SimpleNamespace(value=kind),
                "runtimePrecision": SimpleNamespace(value=said),
            }
            for kind, said in layers
        ]
        ops = [SimpleNamespace(get_rt_info=lambda info=info: info) for info in rt_infos]
        x = np.zeros(model.shapes["input"], np.float32)
        y = np.zeros((len(x), 4, *x.shape[2:]), np.float32)

        def infer(*, share_outputs: bool) -> None:
            assert share_outputs
            if self.fails:
                raise RuntimeError("Exception from src/infer.cpp:1:\nno more memory\n")
            y[...] = self.net.reference(x)

        request = SimpleNamespace(
            infer=infer,
            get_tensor=lambda name: SimpleNamespace(data=x if name == "input" else y),
        )
        return SimpleNamespace(
            get_property={"INFERENCE_NUM_THREADS": threads}.__getitem__,
            get_runtime_model=lambda: SimpleNamespace(get_ordered_ops=lambda: ops),
            create_infer_request=lambda: request,
        )


@pytest.fixture
def openvino(net: Any, monkeypatch: pytest.MonkeyPatch) -> FakeOpenvino:
    fake = FakeOpenvino(net)
    monkeypatch.setitem(sys.modules, "openvino", fake)
    return fake


def test_it_computes_and_says_how(openvino: FakeOpenvino, net: Any):
    model = net.onnx_model()
    with OpenvinoRunner(model, threads=2) as runner:
        assert runner.inputs == (TensorSpec("input", ("batch", 3, 5, 4), "float32"),)
        assert runner.outputs == (TensorSpec("logits", ("batch", 4, 5, 4), "float32"),)
        for batch in (1, 3, 3):
            x = net.images(batch, seed=batch)
            assert np.allclose(runner.run({"input": x})["logits"], net.reference(x), atol=1e-5)
        assert runner.backend == "openvino-cpu"
        assert runner.details == {
            "version": "2026.4.1",
            "precision": "float32",
            "threads": 2,
            "sha256": sha256_bytes(model),
            "layers": {"f32": 1},
        }
        json.dumps(runner.details)
    # Once for each shape, and in the latency mode.
    assert [shapes["input"][0] for shapes, _ in openvino.asked] == [1, 3]
    assert openvino.asked[0][1] == {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": 2,
        "PERFORMANCE_HINT": "LATENCY",
    }


def test_bfloat16_instead_of_float32_is_an_error(openvino: FakeOpenvino, net: Any):
    openvino.does["precision"] = "bf16"
    with OpenvinoRunner(net.onnx_model()) as runner:
        with pytest.raises(Unavailable, match=r"f32 was asked for.* bf16 in 1 layers") as e:
            runner.prepare({"input": net.images(1)})
        assert e.value.code == "runner.precision"


def test_other_threads_are_an_error(openvino: FakeOpenvino, net: Any):
    openvino.does["threads"] = 1
    with OpenvinoRunner(net.onnx_model(), threads=2) as runner:
        with pytest.raises(Unavailable, match=r"2 threads were asked for.* uses 1") as e:
            runner.prepare({"input": net.images(1)})
        assert e.value.code == "runner.threads"


@pytest.mark.parametrize(
    ("types", "hint", "does", "accepted"),
    [
        ({"float16": 9}, "f16", "f16", True),
        ({"float16": 9}, "f16", "f32", False),
        ({"bfloat16": 9}, "bf16", "bf16", True),
        ({"int8": 9, "float16": 1}, "f16", "i8", True),
        ({"int8": 9, "float32": 1}, "f32", "u8", True),
        ({"int8": 9, "float32": 1}, "f32", "f32", False),
        ({}, "f32", "f32", True),
    ],
)
def test_the_hint_is_the_type_of_the_graph(
    openvino: FakeOpenvino,
    net: Any,
    monkeypatch: pytest.MonkeyPatch,
    types: dict[str, int],
    hint: str,
    does: str,
    accepted: bool,
):
    monkeypatch.setattr("vntools.runtime.openvino_runner.weight_bytes", lambda _: types)
    openvino.does["precision"] = does
    with OpenvinoRunner(net.onnx_model()) as runner:
        if accepted:
            runner.prepare({"input": net.images(1)})
        else:
            with pytest.raises(Unavailable, match="was asked for"):
                runner.prepare({"input": net.images(1)})
    assert openvino.asked[0][1]["INFERENCE_PRECISION_HINT"] == hint


def test_a_failure_is_one_line(openvino: FakeOpenvino, net: Any):
    openvino.fails = True
    with OpenvinoRunner(net.onnx_model()) as runner:
        with pytest.raises(InternalFault, match="OpenVINO failed: no more memory") as e:
            runner.run({"input": net.images(1)})
        assert e.value.code == "runner.failed"


def test_a_model_that_does_not_load(openvino: FakeOpenvino, net: Any):
    model = onnx.load_model_from_string(net.onnx_model())
    model.graph.node[0].op_type = "Sigmund"
    with (
        pytest.raises(DataFault, match="Unable to read the model") as e,
        OpenvinoRunner(model.SerializeToString()),
    ):
        pass
    assert e.value.code == "onnx.invalid"


def test_without_openvino(net: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with (
        pytest.raises(Unavailable, match=r"\.\[openvino\]") as e,
        OpenvinoRunner(net.onnx_model()),
    ):
        pass
    assert e.value.code == "dependency.missing"


def _can(precision: str) -> bool:
    """Whether this processor computes in it."""
    core: Any = importlib.import_module("openvino").Core()
    return precision in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@real
def test_openvino_itself_reads_no_garbage():
    with pytest.raises(DataFault), OpenvinoRunner(b"PK\x03\x04" * 9):
        pass


@real
@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_openvino_itself_computes_in_the_type_of_the_graph(net: Any, dtype: int):
    if dtype == TensorProto.FLOAT16 and not _can("FP16"):
        pytest.skip("this processor has no float16")
    with OpenvinoRunner(net.onnx_model(dtype=dtype), threads=1) as runner:
        x = net.images(2).astype(runner.inputs[0].dtype)
        y = runner.run({"input": x})["logits"]
        assert set(runner.details["layers"]) == {"f32" if y.dtype == np.float32 else "f16"}
        assert np.allclose(y, net.reference(x), atol=2e-2)


@real
def test_openvino_itself_left_alone_may_choose_another_precision(net: Any):
    """The negative control: its own choice is caught where the processor has bfloat16."""
    if not _can("BF16"):
        pytest.skip("this processor has no bfloat16")
    with OpenvinoRunner(net.onnx_model()) as runner:
        runner._hint = "bf16"
        runner.prepare({"input": net.images(1)})
        assert runner.details["layers"] == {"bf16": 1}
