"""The figures of devices, and how they are found."""

from __future__ import annotations

import pytest

from vntools.base.errors import UsageFault
from vntools.bench.devices import Device, device_named, device_of_gpu, devices

ASKED = (
    "A100",
    "H100",
    "H200",
    "L4",
    "RTX 3090",
    "RTX 4090",
    "RTX 5090",
    "Orin",
    "V100",
    "T4",
)


@pytest.mark.parametrize("name", ASKED)
def test_the_devices_of_the_field_are_held(name: str) -> None:
    assert any(set(name.split()) <= set(d.name.split()) for d in devices())


@pytest.mark.parametrize("device", devices(), ids=lambda d: d.name)
def test_figures_are_plausible_dense_and_cited(device: Device) -> None:
    peak = device.peak_tflops
    assert device.source.startswith("https://")
    assert "nvidia.com/" in device.source
    assert 100 < device.bandwidth_gb_s < 10_000
    assert {"fp32", "fp16"} <= peak.keys() <= {"fp32", "tf32", "fp16", "bf16", "fp8", "int8"}
    assert peak["fp32"] < peak["fp16"] < 1_000, "a sparse figure of an H100 would be 1979"
    assert peak.get("int8", 2 * peak["fp16"]) == pytest.approx(2 * peak["fp16"], rel=0.01)
    assert peak.get("fp8", 2 * peak["fp16"]) == pytest.approx(2 * peak["fp16"], rel=0.01)
    assert peak.get("bf16", peak["fp16"]) <= peak["fp16"]
    assert device_named(device.name) is device
    assert all(device_of_gpu(gpu) is device for gpu in device.gpu)


def test_names_and_gpu_names_are_those_of_one_device() -> None:
    names = [d.name for d in devices()]
    gpus = [gpu for d in devices() for gpu in d.gpu]
    assert len(set(names)) == len(names)
    assert len(set(gpus)) == len(gpus)
    assert device_of_gpu("NVIDIA TITAN V") is None


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("t4", "T4"),
        ("a100-sxm-80gb", "A100 SXM 80GB"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("h200 nvl", "H200 NVL"),
        ("orin 64gb", "AGX Orin 64GB"),
    ],
)
def test_a_name_in_any_form(said: str, meant: str) -> None:
    assert device_named(said).name == meant


@pytest.mark.parametrize(("said", "hinted"), [("A100", "A100 PCIe 80GB"), ("RTX", "RTX 5090"),
                                              ("TPU", "T4"), ("", "T4")])  # fmt: skip
def test_a_name_of_none_or_of_many_is_refused(said: str, hinted: str) -> None:
    with pytest.raises(UsageFault, match=hinted) as caught:
        device_named(said)
    assert caught.value.code == "limit.device"
    assert len(caught.value.line()) <= 300


def test_a_peak_is_that_of_the_best_way() -> None:
    v100, h100 = device_named("V100 SXM"), device_named("H100 SXM")
    assert v100.peak_of("int8") == 125, "no units for int8: FP16's"
    assert v100.peak_of("bf16") == 15.7, "float16 has not bfloat16's range"
    assert h100.peak_of("fp32") == 494.7, "as TF32"
    assert h100.peak_of("int8") == 1978.9
    with pytest.raises(UsageFault, match="fp4"):
        h100.peak_of("fp4")
