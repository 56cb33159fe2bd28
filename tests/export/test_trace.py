"""What the tracer writes down, and what it refuses to."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.networks import deploy, narrow, traced, training
from vntools.base.errors import DataFault, InternalFault, UsageFault
from vntools.export.trace import OPSETS, trace
from vntools.models.arch import ARCHITECTURES
from vntools.models.vanillanet import VanillaNet
from vntools.verify.float32 import run_float32

Forward = Callable[[Tensor], Tensor]


class Calls(nn.Module):
    """A module that is one call on its input, with a convolution's weight at hand."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.call = forward
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


def outputs(module: nn.Module, *, size: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """(ours, PyTorch's) for two seeded samples."""
    x = np.random.default_rng(0).standard_normal((2, 3, size, size)).astype(np.float32)
    with torch.inference_mode():
        want = module(torch.from_numpy(x)).numpy()
    return run_float32(trace(module, size), [{"input": x}])[0]["logits"], want


@pytest.mark.parametrize("form", ["training", "deploy"])
@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_every_shape_is_the_one_that_onnx_infers(name: str, form: str) -> None:
    model = traced(name, form)
    written = {v.name: v.shape for node in model.graph for v in node.outputs}
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    inferred = onnx.shape_inference.infer_shapes(
        ir.serde.serialize_model(model), check_type=True, strict_mode=True, data_prop=True
    )
    found = {
        v.name: v.type.tensor_type.shape.dim
        for v in inferred.graph.value_info
        if v.name in written
    }
    assert set(written) - set(found) == {"logits"}
    for value, dims in found.items():
        assert [d.dim_param or d.dim_value for d in dims] == [
            d.value if isinstance(d, ir.SymbolicDim) else d for d in written[value] or ()
        ]


def test_the_weights_are_the_modules_own_memory() -> None:
    network = training("vanillanet_5")
    state, graph = network.state_dict(), traced("vanillanet_5").graph
    assert set(graph.initializers) == {k for k in state if "num_batches" not in k}
    for name, value in graph.initializers.items():
        assert value.const_value is not None
        assert np.shares_memory(value.const_value.numpy(), state[name].numpy())


def test_nodes_are_named_as_the_module_is() -> None:
    graph = traced("vanillanet_5").graph
    for node in graph:
        if node.op_type in ("Conv", "BatchNormalization"):
            assert node.inputs[1] is not None
            assert node.inputs[1].name == f"{node.name}.weight"
    names = [node.name for node in graph]
    assert len(set(names)) == len(names)


def test_a_fixed_batch_is_fixed_everywhere() -> None:
    graph = trace(training("vanillanet_5"), narrow("vanillanet_5").image_size, batch=7).graph
    values = [*graph.inputs, *(v for node in graph for v in node.outputs)]
    assert {v.shape[0] for v in values if v.shape is not None} == {7}


@pytest.mark.parametrize("opset", [OPSETS[0], 17, OPSETS[-1]])
def test_every_opset_says_the_same(opset: int) -> None:
    arch = narrow("vanillanet_6")
    model = trace(deploy("vanillanet_6"), arch.image_size, opset=opset)
    assert model.opset_imports == {"": opset}
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    x = np.ones((1, 3, arch.image_size, arch.image_size), np.float32)
    got, want = (
        run_float32(m, [{"input": x}])[0] for m in (model, traced("vanillanet_6", "deploy"))
    )
    assert np.array_equal(got["logits"], want["logits"])


@pytest.mark.parametrize("opset", [OPSETS[0] - 1, OPSETS[-1] + 1])
def test_an_opset_of_another_meaning_is_refused(opset: int) -> None:
    with pytest.raises(UsageFault, match=f"opset {opset}") as e:
        trace(training("vanillanet_5"), 64, opset=opset)
    assert e.value.code == "export.opset"


ZEROS, ONES = torch.zeros(3), torch.ones(3)
KERNEL = torch.arange(2.0 * 3 * 3 * 2).reshape(2, 3, 3, 2) / 9


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(3, 6, (3, 2), (2, 1), (1, 0), (1, 2), groups=3),
        nn.Conv2d(3, 2, 5, bias=False),
        nn.MaxPool2d((3, 2), (2, 3), (1, 0), dilation=2),
        nn.MaxPool2d(3),
        nn.AdaptiveMaxPool2d((5, 7)),
        nn.AdaptiveMaxPool2d(6),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Dropout(0.5), nn.LeakyReLU(0.3)),
        nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3, eps=0.1), nn.Identity()),
        Calls(lambda x: x.flatten(1)),
    ],
    ids=lambda m: type(m).__name__,
)
def test_every_operator_is_what_pytorch_computes(module: nn.Module) -> None:
    torch.manual_seed(0)
    got, want = outputs(module.eval())
    assert got.shape == want.shape
    assert np.allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("forward", "named"),
    [
        (torch.sigmoid, "sigmoid"),
        (lambda x: x + 1, "add"),
        (lambda x: functional.relu(x, inplace=True), "relu in place"),
        (lambda x: functional.leaky_relu(x, 0.1, inplace=True), "leaky_relu in place"),
        (lambda x: functional.dropout(x, 0.5, training=True), "dropout in training"),
        (lambda x: functional.max_pool2d(x, 2, ceil_mode=True), "ceil_mode"),
        (lambda x: functional.max_pool2d(x, 2, return_indices=True)[0], "indices"),
        (lambda x: functional.adaptive_max_pool2d(x, 2, return_indices=True)[0], "indices"),
        (lambda x: functional.adaptive_avg_pool2d(x, 2), "more than one place"),
        (lambda x: x.flatten(2), "flatten"),
        (lambda x: x.flatten(1, 2), "flatten"),
        (lambda x: torch.conv2d(x, KERNEL), "neither its own"),
        (lambda x: torch.conv2d(x, KERNEL, padding="same"), "conv2d"),
        (
            lambda x: functional.batch_norm(x, ZEROS, ONES, ONES, ZEROS, training=True),
            "batch_norm by the statistics of the batch",
        ),
    ],
)  # fmt: skip
def test_what_has_no_place_in_the_table_is_named(forward: Forward, named: str) -> None:
    with pytest.raises(InternalFault, match=named) as caught:
        trace(Calls(forward), 12)
    assert caught.value.code == "export.failed"


def test_a_module_in_training_mode_is_refused() -> None:
    with pytest.raises(DataFault) as caught:
        trace(VanillaNet(narrow("vanillanet_5")), 64)
    assert caught.value.code == "export.training_mode"


def test_nothing_of_pytorchs_own_exporter_is_imported() -> None:
    code = (
        "import sys\n"
        "from vntools.export.trace import trace\n"
        "from torch import nn\n"
        "trace(nn.Conv2d(3, 4, 1).eval(), 8)\n"
        "assert not {'onnxscript', 'torch._dynamo'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
