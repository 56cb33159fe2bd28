"""The other networks of the paper's Table 1, as published, and what timm calls them."""

from __future__ import annotations

__all__ = ["BASELINES", "Baseline"]

from dataclasses import dataclass
from typing import Any

from vntools.models.arch import Published


@dataclass(frozen=True)
class Baseline:
    """A network that the paper compares VanillaNet with.

    Attributes:
        name: as Table 1 has it.
        timm: its name in timm; empty where timm lacks it.
        depth: non-linear layers, as the paper counts them.
        published: its row, and the TensorRT latencies that the authors published.
    """

    name: str
    timm: str
    depth: int
    published: Published


def _row(
    name: str, timm: str, depth: int, *figures: Any, tensorrt: tuple[float | None, ...] = ()
) -> Baseline:
    return Baseline(name, timm, depth, Published(*figures, *tensorrt))


# Parameters (M), multiply-accumulates (G), latency (ms), top-1 and ReaL (%); TensorRT FP32 and
# FP16 on an A100 and FP32 on a V100 (ms).
BASELINES = (
    _row("MobileNetV3-Small", "mobilenetv3_small_100", 48, 2.5, 0.06, 6.65, 67.67, 74.33),
    _row("MobileNetV3-Large", "mobilenetv3_large_100", 48, 5.5, 0.22, 7.83, 74.04, 80.01),
    _row("RepVGG-A0", "repvgg_a0", 23, 8.1, 1.36, 3.22, 72.41, 79.33),
    _row("RepVGG-A1", "repvgg_a1", 23, 12.8, 2.37, 3.24, 74.46, 81.02),
    _row("RepVGG-B0", "repvgg_b0", 29, 14.3, 3.1, 3.88, 75.14, 81.74),
    _row("RepVGG-B3", "repvgg_b3", 29, 110.9, 26.2, 4.21, 80.50, 86.44),
    _row("ConvNeXtV2-A", "convnextv2_atto", 41, 3.7, 0.55, 6.07, 76.2, 82.79),
    _row("ConvNeXtV2-F", "convnextv2_femto", 41, 5.2, 0.78, 6.17, 78.0, 84.08),
    _row("ConvNeXtV2-P", "convnextv2_pico", 41, 9.1, 1.37, 6.29, 79.7, 85.60),
    _row(
        *("ConvNeXtV2-N", "convnextv2_nano", 47, 15.6, 2.45, 6.85, 81.2, None),
        tensorrt=(None, None, 2.81),
    ),
    _row("ConvNeXtV2-T", "convnextv2_tiny", 59, 28.6, 4.47, 8.40, 82.5, None),
    _row("ConvNeXtV2-B", "convnextv2_base", 113, 88.7, 15.4, 15.41, 84.3, None),
    _row(
        *("Swin-T", "swin_tiny_patch4_window7_224", 48, 28.3, 4.5, 10.51, 81.18, 86.64),
        tensorrt=(1.41, 0.98, 4.71),
    ),
    _row("Swin-S", "swin_small_patch4_window7_224", 96, 49.6, 8.7, 20.25, 83.21, 87.60),
    _row(
        *("ResNet-18", "resnet18", 18, 11.7, 1.8, 3.12, 70.6, 79.4),
        tensorrt=(0.41, 0.28, 1.63),
    ),
    _row(
        *("ResNet-34", "resnet34", 34, 21.8, 3.7, 5.57, 75.5, 83.4),
        tensorrt=(0.77, 0.49, 2.18),
    ),
    _row(
        *("ResNet-50", "resnet50", 50, 25.6, 4.1, 7.64, 79.8, 85.7),
        tensorrt=(0.80, 0.54, 3.03),
    ),
)
