"""VanillaNet architectures as data: widths, strides, pooling, cost, and published figures.

Nothing here needs torch. Parameters and multiply-accumulates (MACs) are worked out from the
widths, so a test can hold them against the paper and against the modules.
"""

from __future__ import annotations

__all__ = [
    "ARCHITECTURES",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Architecture",
    "Preprocessing",
    "Published",
]

from dataclasses import dataclass, replace
from itertools import pairwise

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """How an RGB image becomes an input.

    The shorter side is resized to ``int(image_size / crop_ratio)`` pixels, the centre cropped
    to ``image_size``, values scaled to [0, 1], less ``mean``, over ``std`` (per channel).
    """

    image_size: int
    crop_ratio: float
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bicubic"


@dataclass(frozen=True)
class Published:
    """What the authors published: a row of the paper's Table 1, and TensorRT latencies.

    Latencies are in milliseconds at batch 1; ``latency_ms`` is PyTorch on an A100. FLOPs are
    multiply-accumulates of the deploy form at 224x224. Accuracies are per cent on ImageNet.
    """

    parameters_m: float
    flops_g: float
    latency_ms: float
    top1: float
    real: float | None
    tensorrt_fp32_a100_ms: float | None = None
    tensorrt_fp16_a100_ms: float | None = None
    tensorrt_fp32_v100_ms: float | None = None


@dataclass(frozen=True)
class Architecture:
    """One VanillaNet: a stem, ``len(strides)`` blocks and a classifier (Table 7).

    Args:
        name: ``vanillanet_5`` and so on, or any name for widths of one's own.
        dims: channels behind the stem and behind each block.
        strides: pooling stride of each block; 1 is no pooling.
        adaptive: output height and width of each block's adaptive max pooling, which then
            replaces its strided one; 0 is none. Empty means none anywhere.
        activation_n: n of Eq. 6; the series activation's kernel is 2n + 1 wide.
        crop_ratio: the part of the resized image that evaluation sees (Table 8).

    Raises:
        ValueError: the widths, strides and pooling sizes do not fit together.
    """

    name: str
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    stem_kernel: int = 4
    stem_stride: int = 4
    stem_padding: int = 0
    adaptive: tuple[int, ...] = ()
    activation_n: int = 3
    num_classes: int = 1000
    image_size: int = 224
    crop_ratio: float = 0.875
    published: Published | None = None

    def __post_init__(self) -> None:
        if not self.adaptive:
            object.__setattr__(self, "adaptive", (0,) * len(self.strides))
        blocks = len(self.strides)
        if len(self.dims) != blocks + 1 or len(self.adaptive) != blocks:
            raise ValueError(
                f"{len(self.dims)} dims need {len(self.dims) - 1} strides (found {blocks}) "
                f"and as many adaptive pooling sizes, if any (found {len(self.adaptive)})"
            )
        least_one = (*self.dims, *self.strides, self.stem_kernel, self.stem_stride)
        if min(*least_one, self.num_classes, self.image_size) < 1:
            raise ValueError("dims, strides, stem sizes, classes, image size must be positive")
        if min(*self.adaptive, self.stem_padding, self.activation_n, 0) < 0:
            raise ValueError("padding, adaptive sizes and activation n cannot be negative")
        if any(a and s == 1 for a, s in zip(self.adaptive, self.strides, strict=True)):
            raise ValueError("a block of stride 1 has no pooling, so no adaptive pooling size")

    @property
    def depth(self) -> int:
        """Non-linear layers: the stem, the blocks, and the classifier counted once."""
        return len(self.strides) + 2

    def map_sizes(self, image_size: int | None = None) -> tuple[int, ...]:
        """Height (and width) of the maps behind the stem and behind each block.

        Raises:
            ValueError: ``image_size`` is too small for the stem or a pooling.
        """
        size = image_size or self.image_size
        sizes = [(size + 2 * self.stem_padding - self.stem_kernel) // self.stem_stride + 1]
        for stride, adaptive in zip(self.strides, self.adaptive, strict=True):
            sizes.append(adaptive or sizes[-1] // stride)
        if min(sizes) < 1:
            raise ValueError(f"an image of {size}x{size} is too small: maps of {sizes} pixels")
        return tuple(sizes)

    def deploy_parameters(self) -> int:
        """Parameters of the deploy form: one convolution a layer, BatchNorm folded away."""
        taps = (2 * self.activation_n + 1) ** 2
        stem = self.dims[0] * (3 * self.stem_kernel**2 + 1)
        blocks = sum(i * o + o for i, o in pairwise(self.dims))
        activations = sum(d * (taps + 1) for d in self.dims)
        return stem + blocks + activations + self.num_classes * (self.dims[-1] + 1)

    def training_parameters(self) -> int:
        """Parameters of the training form; BatchNorm has two a channel (scale and shift)."""
        taps = (2 * self.activation_n + 1) ** 2
        first, last, classes = self.dims[0], self.dims[-1], self.num_classes
        stem = first * (3 * self.stem_kernel**2 + 3) + first * (first + 3)
        blocks = sum((i + o) * (i + 3) for i, o in pairwise(self.dims))
        activations = sum(d * (taps + 2) for d in self.dims)
        return stem + blocks + activations + classes * (last + 3) + classes * (classes + 1)

    def deploy_macs(self, image_size: int | None = None) -> int:
        """Multiply-accumulates of the deploy form for one square image."""
        sizes = self.map_sizes(image_size)
        taps = (2 * self.activation_n + 1) ** 2
        stem = sizes[0] ** 2 * self.dims[0] * 3 * self.stem_kernel**2
        widths = zip(sizes[:-1], pairwise(self.dims), strict=True)
        blocks = sum(s * s * i * o for s, (i, o) in widths)
        activations = sum(s * s * d * taps for s, d in zip(sizes, self.dims, strict=True))
        return stem + blocks + activations + self.dims[-1] * self.num_classes

    def training_macs(self, image_size: int | None = None) -> int:
        """Multiply-accumulates of the training form's convolutions for one square image."""
        sizes = self.map_sizes(image_size)
        second_of_stem = sizes[0] ** 2 * self.dims[0] ** 2
        inputs = zip(sizes[:-1], self.dims[:-1], strict=True)
        first_of_blocks = sum(s * s * i * i for s, i in inputs)
        extra = second_of_stem + first_of_blocks + self.num_classes**2
        return self.deploy_macs(image_size) + extra


def _of_depth(depth: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Widths and strides of the networks of 5 to 13 layers (Table 7)."""
    if depth == 5:
        return (512, 1024, 2048, 4096), (2, 2, 2)
    if depth == 6:
        return (512, 1024, 2048, 4096, 4096), (2, 2, 2, 1)
    middle = depth - 6
    dims = (512, 512, 1024, *(2048,) * middle, 4096, 4096)
    return dims, (1, 2, 2, *(1,) * (middle - 1), 2, 1)


# Table 1 without its last two rows, then TensorRT FP32 A100, FP16 A100, FP32 V100.
_PUBLISHED = {
    5: Published(15.5, 5.2, 1.61, 72.49, 79.66, 0.33, 0.27, 1.60),
    6: Published(32.5, 6.0, 2.01, 76.36, 82.86, 0.40, 0.33, 1.84),
    7: Published(32.8, 6.9, 2.27, 77.98, 84.16, 0.47, 0.39, 2.02),
    8: Published(37.1, 7.7, 2.56, 79.13, 85.14, 0.52, 0.45, 2.26),
    9: Published(41.4, 8.6, 2.91, 79.87, 85.66, 0.58, 0.49, 2.55),
    10: Published(45.7, 9.4, 3.24, 80.57, 86.25, 0.63, 0.53, 2.84),
    11: Published(50.0, 10.3, 3.59, 81.08, 86.54, 0.69, 0.58, 3.14),
    12: Published(54.3, 11.1, 3.82, 81.55, 86.81, 0.75, 0.62, 3.44),
    13: Published(58.6, 11.9, 4.26, 82.05, 87.15, 0.82, 0.67, 3.69),
}


def _architectures() -> dict[str, Architecture]:
    found: dict[str, Architecture] = {}
    for depth, published in _PUBLISHED.items():
        dims, strides = _of_depth(depth)
        name = f"vanillanet_{depth}"
        crop = 0.95 if depth >= 12 else 0.875
        found[name] = Architecture(name, dims, strides, crop_ratio=crop, published=published)
    wide = replace(
        found["vanillanet_13"],
        name="vanillanet_13_x1_5",
        dims=tuple(d * 3 // 2 for d in found["vanillanet_13"].dims),
        published=Published(127.8, 26.5, 7.83, 82.53, 87.48),
    )
    # The paper's appendix says 40/20/10; the released model and Table 1's FLOPs have 38/19/10.
    adaptive = replace(
        wide,
        name="vanillanet_13_x1_5_ada_pool",
        stem_stride=3,
        stem_padding=1,
        adaptive=(0, 38, 19, 0, 0, 0, 0, 0, 0, 10, 0),
        published=Published(127.8, 48.9, 9.72, 83.11, 87.85),
    )
    return found | {wide.name: wide, adaptive.name: adaptive}


ARCHITECTURES: dict[str, Architecture] = _architectures()
