"""Reading what was built from the log of TensorRT-RTX and from TensorRT's engine inspector."""

from __future__ import annotations

import json

import pytest

from vntools.engine.kernels import Tensor, from_inspector, from_log

HALF = "Strides: [64,1,8,4], StrideOrder: [3,0,2,1], Datatype: Half, Format: (NHWC) major"
FLOAT = "Strides: [1], StrideOrder: [0], Datatype: Float, Format: (Linear) Row major linear"


def line(**fields: str) -> str:
    """A line of the log, of a depthwise convolution unless fields say otherwise."""
    parts = {
        "Name": "conv_myl0_3",
        "LayerType": "correlation",
        "Inputs": f"[ {{ Name: x_myl0, Dimensions: [-1,16,8,8], {HALF} }}]",
        "Constants": f"[ {{ Name: w, Dimensions: [16,1,7,7], {HALF} }}, "
        f"{{ Name: one, Dimensions: [1], {FLOAT} }}, "
        f"{{ Name: b, Dimensions: [1,16,1,1], {HALF} }}]",
        "Outputs": f"[ {{ Name: y_myl0, Dimensions: [-1,16,8,8], {HALF} }}]",
        "TacticName": "__myelin_CASK_STUB",
        "StreamId": "0",
        "Metadata": "[ONNX Layer: conv]",
        **fields,
    }
    return ", ".join(f"{k}: {v}" for k, v in parts.items())


def test_a_line_of_the_log():
    (kernel,) = from_log(["Layers:\n" + line() + "\n"])
    assert (kernel.name, kernel.layer_type) == ("conv_myl0_3", "correlation")
    assert kernel.inputs == (Tensor("x_myl0", (-1, 16, 8, 8), "fp16"),)
    assert [c.name for c in kernel.constants] == ["w", "one", "b"]
    assert [w.name for w in kernel.weights] == ["w"]
    assert kernel.onnx_layers == ("conv",)
    assert kernel.to_record() == {
        "name": "conv_myl0_3",
        "type": "correlation",
        "onnx": ["conv"],
        "inputs": ["fp16"],
        "weights": ["fp16"],
        "outputs": ["fp16"],
    }


def test_lines_of_several_messages_and_no_others():
    assert len(from_log([line() + "\n" + line(), "Engine generation completed.", line()])) == 3
    assert from_log([]) == ()


def test_a_kernel_without_operands():
    empty = line(
        LayerType="shape_call", Inputs="[]", Constants="[]", Outputs="[]", Metadata=""
    )
    (kernel,) = from_log([empty])
    assert (kernel.inputs, kernel.constants, kernel.weights) == ((), (), ())
    assert kernel.onnx_layers == ()


@pytest.mark.parametrize(
    ("metadata", "names"),
    [
        ("[ONNX Layer: a][ONNX Layer: b]", ("a", "b")),
        ("[ONNX Layer: a]\x1f[ONNX Layer: b]", ("a", "b")),
        ("[ONNX Layer: a]\x1e[ONNX Layer: b]\x1e[ONNX Layer: a]", ("a", "b")),
        ("[ONNX Layer: a]\x1f[ONNX Layer: b]__gemm_from_conv1x1", ("a", "b")),
        ("[ONNX Layer: a]__gemm_from_conv1x1\x1f[ONNX Layer: b]", ("a", "b")),
        (
            "[ONNX Layer: /stages.0/conv[1]/Conv][ONNX Layer: b]",
            ("/stages.0/conv[1]/Conv", "b"),
        ),
        ("something else", ()),
    ],
)
def test_onnx_layers(metadata, names):
    (kernel,) = from_log([line(Metadata=metadata)])
    assert kernel.onnx_layers == names


def test_names_may_hold_braces_brackets_and_commas():
    tensor = "{ForeignNode[a...b]}, {x: [1], y}"
    (kernel,) = from_log(
        [
            line(
                Name="{fused [a, b], c}",
                Inputs=f"[ {{ Name: {tensor}, Dimensions: [2,3], {HALF} }}, "
                f"{{ Name: z, Dimensions: [2,3], {FLOAT} }}]",
            )
        ]
    )
    assert kernel.name == "{fused [a, b], c}"
    assert kernel.inputs == (Tensor(tensor, (2, 3), "fp16"), Tensor("z", (2, 3), "fp32"))


def test_a_line_of_tensorrt_10():
    old = (
        "Name: n, LayerType: kgen, Inputs: [ { Name: x, Location: Device, Dimensions: [10,1], "
        "Format/Datatype: Float }], Outputs: [ { Name: y, Dimensions: [10,1], "
        "Format/Datatype: Half }], TacticName: t, StreamId: 0, Metadata: "
    )
    (kernel,) = from_log([old])
    assert kernel.inputs == (Tensor("x", (10, 1), "fp32"),)
    assert kernel.outputs == (Tensor("y", (10, 1), "fp16"),)


@pytest.mark.parametrize(
    "broken",
    [
        line().replace("Outputs: ", "Results: "),
        line(Inputs="[ { Name: x, Shape: [1,2] }]"),
        line(Inputs="[ { Name: x, Dimensions: [1,2] }]"),
        "LayerType: correlation",
    ],
)
def test_a_line_of_another_form_is_an_error(broken):
    with pytest.raises(ValueError, match="not a"):
        from_log([broken])


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ("Half", "fp16"),
        ("Float", "fp32"),
        ("BFloat16", "bf16"),
        ("Int8", "int8"),
        ("UInt8", "uint8"),
        ("Float8E4M3", "fp8"),
        ("Channel major FP16 format where channel % 8 == 0", "fp16"),
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"),
        ("N/A due to dynamic shapes", "N/A due to dynamic shapes"),
    ],
)
def test_types_in_the_words_of_the_inspector(text, dtype):
    document = {"Layers": [{"Name": "k", "Inputs": [{"Name": "x", "Format/Datatype": text}]}]}
    (kernel,) = from_inspector(json.dumps(document | {"Bindings": ["x"]}))
    assert [t.dtype for t in kernel.inputs] == [dtype]


def inspector(version: int, dtype: str = "Half") -> str:
    """The same engine as the inspectors of TensorRT 10 and 11 describe it."""

    def tensor(name: str, *dims: int) -> dict[str, object]:
        known: dict[str, object] = {
            "Name": name,
            "Location": "Device",
            "Dimensions": list(dims),
        }
        if version == 10:
            return known | {"Format/Datatype": f"Row major linear {dtype} format"}
        return known | {"Format": "Row major linear format", "Datatype": dtype}

    layers = [
        {
            "Name": "stem + relu",
            "LayerType": "CaskConvolution",
            "Inputs": [tensor("input", 1, 3, 32, 32)],
            "Outputs": [tensor("a", 1, 16, 8, 8)],
            "Weights": {"Type": dtype, "Count": 768},
            "Bias": {"Type": "Float", "Count": 16},
            "Metadata": "[ONNX Layer: stem]\x1e[ONNX Layer: relu]",
        },
        {
            "Name": "head_myl0_1",
            "LayerType": "gemm",
            "Inputs": [tensor("__mye12_dconst", 1, 10, 16), tensor("a", 1, 16, 1)],
            "Outputs": [tensor("logits", 1, 10, 1)],
            "Metadata": "[ONNX Layer: head]",
        },
    ]
    if version == 10:
        return json.dumps({"Layers": layers, "Bindings": ["input", "logits"]})
    ends = [{"Name": n, "IOMode": m} for n, m in (("input", "Input"), ("logits", "Output"))]
    return json.dumps({"Layers": layers, "I/O Tensors": ends})


@pytest.mark.parametrize("version", [10, 11])
def test_the_inspector_of_both_major_versions(version):
    stem, head = from_inspector(inspector(version))
    assert stem.onnx_layers == ("stem", "relu")
    assert stem.inputs == (Tensor("input", (1, 3, 32, 32), "fp16"),)
    assert stem.weights == (Tensor("Weights", (768,), "fp16"),)
    assert [t.name for t in head.inputs] == ["a"]
    assert head.weights == (Tensor("__mye12_dconst", (1, 10, 16), "fp16"),)


def test_inputs_that_nothing_produces_stay_inputs_where_all_are_so():
    layer = {
        "Name": "k",
        "Inputs": [
            {"Name": "view_of_a", "Dimensions": [1, 4], "Datatype": "Half"},
            {"Name": "__mye1_dconst", "Dimensions": [4, 4], "Datatype": "Half"},
        ],
    }
    (kernel,) = from_inspector(json.dumps({"Layers": [layer]}))
    assert [t.name for t in kernel.inputs] == ["view_of_a"]
    assert [t.name for t in kernel.constants] == ["__mye1_dconst"]


@pytest.mark.parametrize("text", ["{}", "[]", '{"Layers": []}', '{"Layers": ["stem"]}', "?"])
def test_a_document_that_tells_nothing_is_an_error(text):
    with pytest.raises(ValueError, match=r".+"):
        from_inspector(text)
