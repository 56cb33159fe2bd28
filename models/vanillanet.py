"""VanillaNet in its two forms, with the state-dict keys of the released checkpoints.

``VanillaNet`` is what is trained: two convolutions, each with BatchNorm, and between them an
activation that fades to the identity. ``DeployVanillaNet`` is the network that is left of it:
one convolution a layer. They are two classes; what turns one into the other is algebra on the
ONNX graph, in ``vntools.export``.

Source: Chen et al. 2023, "VanillaNet: the Power of Minimalism in Deep Learning", sec. 3.
"""

from __future__ import annotations

__all__ = [
    "DeployVanillaNet",
    "FadingActivation",
    "SeriesActivation",
    "VanillaNet",
    "deploy_name",
    "initialize",
]

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from vntools.models.arch import Architecture

_BN_EPS = 1e-6


class _Conv2d(nn.Conv2d):
    """nn.Conv2d that draws no weights: they come from a checkpoint or from ``initialize``.

    Until then they are untouched memory, so a network costs none before it has weights.
    """

    def reset_parameters(self) -> None:
        """Leave weight and bias as they are."""


class FadingActivation(nn.Module):
    """The activation that deep training removes (Eq. 1).

    A'(x) = (1 - lambda) relu(x) + lambda x is a leaky ReLU of negative slope lambda. It is
    always written as one, so that the traced graph shows the slope: exactly 1 is what lets two
    convolutions be merged.
    """

    def __init__(self, activation_lambda: float = 1.0) -> None:
        super().__init__()
        self.activation_lambda = activation_lambda

    def forward(self, x: Tensor) -> Tensor:
        """``x`` with negative values times lambda; any shape."""
        return functional.leaky_relu(x, self.activation_lambda)


class SeriesActivation(nn.Module):
    """The series activation of the training form (Eq. 6).

    ReLU, a depthwise convolution without bias, BatchNorm, whose shift is the equation's b.

    Args:
        channels: C; input and output are (N, C, H, W).
        n: the kernel is 2n + 1 wide, zero-padded by n; n = 0 scales each channel.
    """

    def __init__(self, channels: int, n: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, 2 * n + 1, 2 * n + 1))
        self.bn = nn.BatchNorm2d(channels, eps=_BN_EPS)
        self.n = n

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        return self.bn(_depthwise(x, self.weight, None, padding=self.n))


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, *, padding: int) -> Tensor:
    rectified = functional.relu(x)
    return functional.conv2d(rectified, weight, bias, padding=padding, groups=weight.shape[0])


class _DeploySeriesActivation(nn.Module):
    """The series activation with its BatchNorm folded into the depthwise convolution."""

    def __init__(self, channels: int, n: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, 2 * n + 1, 2 * n + 1))
        self.bias = nn.Parameter(torch.empty(channels))
        self.n = n

    def forward(self, x: Tensor) -> Tensor:
        return _depthwise(x, self.weight, self.bias, padding=self.n)


def _conv_bn(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, padding: int = 0
) -> list[nn.Module]:
    return [
        _Conv2d(inputs, outputs, kernel, stride, padding),
        nn.BatchNorm2d(outputs, eps=_BN_EPS),
    ]


def _pool(stride: int, adaptive: int) -> nn.Module:
    if adaptive:
        return nn.AdaptiveMaxPool2d(adaptive)
    return nn.Identity() if stride == 1 else nn.MaxPool2d(stride)


class _Block(nn.Module):
    """Two 1x1 convolutions, pooling, series activation: (N, i, H, W) to (N, o, H/s, W/s)."""

    def __init__(self, inputs: int, outputs: int, n: int, pool: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(*_conv_bn(inputs, inputs))
        self.fade = FadingActivation()
        self.conv2 = nn.Sequential(*_conv_bn(inputs, outputs))
        self.pool = pool
        self.act = SeriesActivation(outputs, n)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.pool(self.conv2(self.fade(self.conv1(x)))))


class _DeployBlock(nn.Module):
    """One 1x1 convolution, pooling, series activation: (N, i, H, W) to (N, o, H/s, W/s)."""

    def __init__(self, inputs: int, outputs: int, n: int, pool: nn.Module) -> None:
        super().__init__()
        self.conv = _Conv2d(inputs, outputs, 1)
        self.pool = pool
        self.act = _DeploySeriesActivation(outputs, n)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.pool(self.conv(x)))


def _blocks(arch: Architecture, block: type[_Block] | type[_DeployBlock]) -> nn.ModuleList:
    shapes = zip(pairwise(arch.dims), arch.strides, arch.adaptive, strict=True)
    return nn.ModuleList(
        block(i, o, arch.activation_n, _pool(s, a)) for (i, o), s, a in shapes
    )


class VanillaNet(nn.Module):
    """The training form; (N, 3, S, S) images to (N, classes) logits.

    Args:
        arch: widths, strides and pooling.
        activation_lambda: lambda of Eq. 1, the slope of every fading activation.
        dropout: probability, before the classifier (the paper trains with 0.05).
    """

    def __init__(
        self, arch: Architecture, *, activation_lambda: float = 1.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        first, last, classes = arch.dims[0], arch.dims[-1], arch.num_classes
        stem = (arch.stem_kernel, arch.stem_stride, arch.stem_padding)
        self.stem1 = nn.Sequential(*_conv_bn(3, first, *stem))
        self.stem_fade = FadingActivation()
        self.stem2 = nn.Sequential(
            *_conv_bn(first, first), SeriesActivation(first, arch.activation_n)
        )
        self.stages = _blocks(arch, _Block)
        self.cls1 = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Dropout(dropout), *_conv_bn(last, classes)
        )
        self.cls_fade = FadingActivation()
        self.cls2 = nn.Sequential(_Conv2d(classes, classes, 1))
        self.set_lambda(activation_lambda)

    def set_lambda(self, value: float) -> None:
        """Give every fading activation the slope ``value``; 0 is ReLU, 1 the identity."""
        if not 0 <= value <= 1:
            raise ValueError(f"lambda is {value}, and must lie between 0 and 1")
        for module in self.modules():
            if isinstance(module, FadingActivation):
                module.activation_lambda = float(value)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, S, S) images to (N, classes) logits."""
        x = self.stem2(self.stem_fade(self.stem1(x)))
        for stage in self.stages:
            x = stage(x)
        return self.cls2(self.cls_fade(self.cls1(x))).flatten(1)


class DeployVanillaNet(nn.Module):
    """The deploy form; (N, 3, S, S) images to (N, classes) logits."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        first = arch.dims[0]
        self.stem = nn.Sequential(
            _Conv2d(3, first, arch.stem_kernel, arch.stem_stride, arch.stem_padding),
            _DeploySeriesActivation(first, arch.activation_n),
        )
        self.stages = _blocks(arch, _DeployBlock)
        self.cls = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Dropout(0.0),
            _Conv2d(arch.dims[-1], arch.num_classes, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, S, S) images to (N, classes) logits."""
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.cls(x).flatten(1)


def initialize(network: VanillaNet, *, generator: torch.Generator) -> None:
    """Draw the weights that training starts from: truncated normal, biases zero.

    The paper's Table 8 gives a deviation of 0.2; the released code and the networks here use
    0.02.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | SeriesActivation):
            nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)


_DEPLOY_NAMES = {"stem2.0": "stem.0", "stem2.2": "stem.1", "cls2.0": "cls.2"}


def deploy_name(module: str) -> str:
    """Where the deploy form keeps what the training form's ``module`` becomes.

    ``module`` is the last convolution of a layer (its name in the training form, or already in
    the deploy form): ``stem2.0`` is ``stem.0``, ``stages.3.conv2.0`` is ``stages.3.conv``.
    """
    return _DEPLOY_NAMES.get(
        module, module.removesuffix("2.0") if ".conv2." in module else module
    )
