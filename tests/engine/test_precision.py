"""The gate on the precision of convolutions, and that it can close."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from vntools.base.errors import CheckFailed, UsageFault
from vntools.engine.build import BuildOptions, build
from vntools.engine.kernels import Kernel, Tensor
from vntools.engine.precision import check_convolutions

TARGETS = [(), (80,), (89,), (120,)]


def kernel(
    *onnx_layers: str,
    name: str = "k",
    layer_type: str = "correlation",
    inputs: tuple[str, ...] = ("fp16",),
    weights: str = "fp16",
) -> Kernel:
    """A kernel as convolutions are built: weights, a scale and a bias."""
    return Kernel(
        name=name,
        layer_type=layer_type,
        inputs=tuple(Tensor(f"x{i}", (-1, 8, 4, 4), t) for i, t in enumerate(inputs)),
        constants=(
            Tensor("scale", (1,), "fp32"),
            Tensor("w", (8, 8, 3, 3), weights),
            Tensor("b", (1, 8, 1, 1), weights),
        ),
        outputs=(Tensor("y", (-1, 8, 4, 4), "fp16"),),
        onnx_layers=onnx_layers,
    )


def closed(convs: dict[str, str], kernels: Sequence[Kernel] | None) -> str:
    """What the gate says when it closes."""
    with pytest.raises(CheckFailed) as caught:
        check_convolutions(convs, kernels)
    assert (caught.value.code, caught.value.exit_status) == ("engine.precision", 1)
    return caught.value.message


@pytest.mark.parametrize("capabilities", TARGETS, ids=str)
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("width", [16, 256])
def test_every_convolution_is_found(rtx, chain, convs_of, precision, capabilities, width):
    model = chain(precision, width=width)
    built = build(
        model.SerializeToString(), BuildOptions(rtx, compute_capabilities=capabilities)
    )
    reports = check_convolutions(convs_of(model, precision), built.kernels)
    assert [r.conv for r in reports] == [
        "stem",
        "depthwise",
        "pointwise",
        "depthwise_1",
        "head",
    ]
    assert {(*r.activations, *r.weights) for r in reports} == {(precision, precision)}
    kinds = {r.conv: r.layer_type for r in reports}
    gemm = precision == "fp16" and width == 256
    assert kinds["pointwise"] == ("runtime_fusion" if gemm else "correlation")
    assert kinds["stem"] == "correlation"  # not the cast in front of it, which names it too
    assert reports[0].to_record()["kernel"] == reports[0].kernel


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("batch", [1, 2, "batch"])
def test_the_stem_behind_a_kernel_that_pads_channels(rtx, chain, convs_of, channels, batch):
    model = chain("fp16", channels=channels, batch=batch)
    built = build(model.SerializeToString(), BuildOptions(rtx))
    assert len(check_convolutions(convs_of(model, "fp16"), built.kernels)) == 5


@pytest.mark.parametrize("odd", ["stem", "pointwise", "depthwise_1", "head"])
def test_one_convolution_in_another_precision_closes_the_gate(rtx, chain, convs_of, odd):
    model = chain("fp16", odd=(odd,))
    built = build(model.SerializeToString(), BuildOptions(rtx))
    message = closed(convs_of(model, "fp16"), built.kernels)
    assert message.startswith("1 of 5 convolutions were not built in fp16")
    assert f": {odd} (fp32)" in message
    asked = convs_of(model, "fp16") | {odd: "fp32"}
    assert len(check_convolutions(asked, built.kernels)) == 5


def test_a_convolution_that_tensorrt_takes_down_closes_the_gate(rtx, chain, convs_of):
    # TensorRT-RTX 1.7 builds Cast -> Conv -> Cast in the type around it, typing or not.
    model = chain("fp16", odd=("depthwise",))
    built = build(model.SerializeToString(), BuildOptions(rtx))
    asked = convs_of(model, "fp16") | {"depthwise": "fp32"}
    message = closed(asked, built.kernels)
    assert message == "1 of 5 convolutions were not built in fp32: depthwise (fp16)"


def test_a_dropped_kernel_closes_the_gate(rtx, chain, convs_of):
    model = chain("fp16")
    convs = convs_of(model, "fp16")
    kernels = build(model.SerializeToString(), BuildOptions(rtx)).kernels or ()
    for report in check_convolutions(convs, kernels):
        fewer = [k for k in kernels if k.name != report.kernel]
        assert f"{report.conv} (no kernel has its weights)" in closed(convs, fewer)
    # Metadata without the convolution's name is no better than no kernel.
    nameless = [replace(k, onnx_layers=()) for k in kernels]
    assert closed(convs, nameless).startswith("5 of 5")


@pytest.mark.parametrize("kernels", [None, []])
def test_unknown_kernels_close_the_gate(kernels):
    assert "unknown" in closed({"conv": "fp16"}, kernels)


@pytest.mark.parametrize("asked", ["fp16", "fp32", "bf16", "int8"])
def test_both_activations_and_weights_are_judged(asked):
    other = "fp32" if asked != "fp32" else "fp16"
    good = kernel("conv", inputs=(asked,), weights=asked)
    assert check_convolutions({"conv": asked}, [good])
    assert "conv (" in closed(
        {"conv": asked}, [kernel("conv", inputs=(other,), weights=asked)]
    )
    assert "conv (" in closed(
        {"conv": asked}, [kernel("conv", inputs=(asked,), weights=other)]
    )
    assert "conv (" in closed({"conv": asked}, [kernel("conv", inputs=(asked, other))])


def test_scales_and_what_is_written_are_not_judged():
    written = replace(kernel("conv"), outputs=(Tensor("y", (-1, 8, 4, 4), "fp32"),))
    assert check_convolutions({"conv": "fp16"}, [written])[0].as_asked


def test_one_kernel_may_do_two_convolutions_and_all_its_weights_count():
    both = kernel("a", "b")
    assert len(check_convolutions({"a": "fp16", "b": "fp16"}, [both])) == 2
    mixed = replace(both, constants=(*both.constants, Tensor("w2", (4, 8, 1, 1), "fp32")))
    assert closed({"a": "fp16", "b": "fp16"}, [mixed]).startswith("2 of 2")


def test_a_kernel_that_only_adds_the_bias_is_not_taken_for_the_convolution():
    bias = replace(
        kernel("conv", layer_type="kgen", inputs=("fp32",)),
        constants=(Tensor("b", (1, 8, 1, 1), "fp32"),),
    )
    quantised = kernel("conv", name="int8", inputs=("int8",), weights="int8")
    (report,) = check_convolutions({"conv": "int8"}, [quantised, bias])
    assert report.kernel == "int8"
    assert "conv (fp32)" in closed({"conv": "int8"}, [bias])


def test_a_generated_kernel_is_taken_only_where_no_other_has_weights():
    table = Tensor("table", (1, 8, 32, 32), "fp32")
    around = replace(
        kernel("conv", layer_type="kgen", inputs=("fp32",)), constants=(table,), name="around"
    )
    assert check_convolutions({"conv": "fp16"}, [around, kernel("conv")])[0].kernel == "k"
    assert check_convolutions({"conv": "fp32"}, [around])[0].kernel == "around"


def test_a_kernel_with_nothing_but_scales_has_no_weights():
    scales = replace(kernel("conv"), constants=(Tensor("scale", (1,), "fp16"),))
    assert "no kernel" in closed({"conv": "fp16"}, [scales])


def test_a_generated_kernel_may_cast_what_it_reads():
    # As TensorRT-RTX does for a 1x1 convolution of one channel right behind a cast.
    cast = kernel("conv", name="__myl_CastMul", layer_type="kgen", inputs=("fp32",))
    assert check_convolutions({"conv": "fp16"}, [cast])[0].as_asked
    assert closed({"conv": "fp32"}, [cast])
    assert closed({"conv": "fp16"}, [replace(cast, name="__myl_MulCast")])


def test_zeros_that_pad_channels_are_no_weights():
    pads = Kernel(
        name="__myl_CastConc_myl0_1",
        layer_type="kgen",
        inputs=(Tensor("x", (2, 3, 32, 32), "fp32"),),
        constants=(Tensor("zeros", (2, 1, 32, 32), "fp16"),),
        outputs=(Tensor("y", (2, 4, 32, 32), "fp16"),),
        onnx_layers=("conv",),
    )
    assert "no kernel" in closed({"conv": "fp16"}, [pads])
    # The same shapes in a kernel that convolves are weights: batch, channels and size agree.
    square = replace(pads, layer_type="correlation", inputs=kernel().inputs)
    assert check_convolutions({"conv": "fp16"}, [square])


def test_the_message_names_three_and_counts_the_rest():
    convs = {f"conv{i}": "fp16" for i in range(5)}
    message = closed(convs, [kernel("conv4")])
    assert message.startswith("4 of 5 convolutions were not built in fp16: conv0 (no kernel")
    assert message.endswith("and 1 more")


def test_an_unknown_precision_is_a_usage_fault():
    with pytest.raises(UsageFault, match="no precision 'half'") as caught:
        check_convolutions({"conv": "half"}, [kernel("conv")])
    assert caught.value.code == "engine.precision_name"
