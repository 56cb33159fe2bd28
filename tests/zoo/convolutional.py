"""Blocks of convolutions: RepVGG, MobileOne, ACNet, Diverse Branch, RepLKNet, their kin."""

from __future__ import annotations

__all__ = [
    "SqueezeExcite",
    "acnet",
    "diverse_branch",
    "ghost_v3",
    "lcnet",
    "mobile_one",
    "rep_ghost",
    "rep_lk",
    "rep_vgg",
    "vanilla",
]

from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.parts import (
    Affine,
    ConvNorm,
    Reparameterised,
    Residual,
    Sum,
    channelwise,
    conv,
    like,
    norm,
    scale_and_shift,
)


class SqueezeExcite(nn.Module):
    """x gate(mean(x)): the gate is computed from data, so nothing passes it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = conv(channels, 4), conv(4, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w)."""
        gate = self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


def rep_vgg(i: int, o: int, *, stride: int = 1, groups: int = 1, axes: int = 2) -> nn.Module:
    """ReLU(BN(kxk) + BN(1x1) + BN(x)); Ding et al. 2021, sec. 3."""
    # dynamo writes the zero bias of a conv3d without one with two axes, which nothing runs.
    shape: dict[str, Any] = {"stride": stride, "groups": groups, "bias": axes == 3}
    terms: list[nn.Module] = [ConvNorm(i, o, k, axes=axes, **shape) for k in (3, 1)]
    if i == o and stride == 1:
        terms.append(norm(i, axes))
    return nn.Sequential(Sum(*terms), nn.ReLU())


def mobile_one(
    i: int,
    o: int,
    kernel: int = 1,
    *,
    stride: int = 1,
    groups: int = 1,
    branches: int = 4,
    squeeze: bool = False,
) -> nn.Module:
    """k parallel BN(kxk), BN(1x1) beside a larger kernel, BN(x); Vasu et al. 2023."""
    terms: list[nn.Module] = [
        ConvNorm(i, o, kernel, stride=stride, groups=groups) for _ in range(branches)
    ]
    if kernel > 1:
        terms.append(ConvNorm(i, o, 1, stride=stride, groups=groups))
    if i == o and stride == 1:
        terms.append(norm(i))
    return nn.Sequential(Sum(*terms), *([SqueezeExcite(o)] if squeeze else []), nn.ReLU())


def acnet(i: int, o: int, *, stride: int = 1, groups: int = 1) -> nn.Module:
    """ReLU(BN(3x3) + BN(3x1) + BN(1x3)); Ding et al. 2019."""
    kernels: tuple[Any, ...] = (3, (3, 1), (1, 3))
    terms = [ConvNorm(i, o, k, stride=stride, groups=groups) for k in kernels]
    return nn.Sequential(Sum(*terms), nn.ReLU())


class _Bordered(Reparameterised):
    """BN(second(BN(1x1(x)))), the border of the middle being what the 1x1 makes of zeros.

    The second is a kxk convolution or an average; both see a padded map and do not pad. The
    border is written as a padded 1x1, or as ``padded_input``: the 1x1 over a padded x.
    """

    def __init__(
        self,
        i: int,
        o: int,
        kernel: int,
        *,
        stride: int,
        groups: int,
        average: bool,
        padded_input: bool,
    ) -> None:
        super().__init__()
        middle = o if average else i
        pad = kernel // 2
        self.pad = nn.ZeroPad2d(pad if padded_input else 0)
        self.first = ConvNorm(i, middle, 1, groups=groups, padding=0 if padded_input else pad)
        self.second: Any = (
            nn.AvgPool2d(kernel, stride)
            if average
            else conv(i, o, kernel, stride=stride, groups=groups, padding=0, bias=False)
        )
        self.norm = norm(o)
        self.groups, self.kernel = groups, kernel

    def forward(self, x: Tensor) -> Tensor:
        """(n, i, h, w) to (n, o, ..)."""
        return self.norm(self.second(self.first(self.pad(x))))

    def affine(self) -> Affine:
        first, shift = self.first.affine()
        g, k = self.groups, self.kernel
        if isinstance(self.second, nn.AvgPool2d):
            weight, bias = first.expand(-1, -1, k, k) / k**2, shift
        else:
            second = self.second.weight.detach()
            inner = first[:, :, 0, 0].reshape(g, -1, first.shape[1])
            outer = second.reshape(g, -1, *second.shape[1:])
            weight = torch.einsum("gomhw,gmi->goihw", outer, inner).flatten(0, 1)
            bias = (outer.sum((3, 4)) @ shift.reshape(g, -1, 1)).flatten()
        scale, last = scale_and_shift(self.norm)
        return weight * channelwise(scale, 4), bias * scale + last


class _Average(Reparameterised):
    """BN(AvgPool(x)), padded places counted: the average branch of a depthwise block."""

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.pool, self.norm = nn.AvgPool2d(kernel, stride, kernel // 2), norm(channels)
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) to (n, c, ..)."""
        return self.norm(self.pool(x))

    def affine(self) -> Affine:
        scale, shift = scale_and_shift(self.norm)
        k = self.kernel
        return channelwise(scale / k**2, 4).expand(-1, 1, k, k), shift


def diverse_branch(
    i: int,
    o: int,
    kernel: int = 3,
    *,
    stride: int = 1,
    groups: int = 1,
    padded_input: bool = False,
) -> nn.Module:
    """BN(kxk) + BN(1x1) + BN(1x1-kxk) + BN(1x1-average); Ding et al. 2021, sec. 3.2.

    A depthwise block has no 1x1, neither alone nor before the average.
    """
    terms: list[nn.Module] = [ConvNorm(i, o, kernel, stride=stride, groups=groups)]
    shape: dict[str, Any] = {
        "stride": stride,
        "groups": groups,
        "padded_input": padded_input,
    }
    terms.append(_Bordered(i, o, kernel, average=False, **shape))
    if groups < o:
        terms.append(_Bordered(i, o, kernel, average=True, **shape))
        terms.append(ConvNorm(i, o, 1, stride=stride, groups=groups))
    else:
        terms.append(_Average(o, kernel, stride))
    return nn.Sequential(Sum(*terms), nn.ReLU())


def rep_lk(channels: int, *, kernel: int = 13, small: int = 5) -> nn.Module:
    """x + BN(1x1(ReLU(BN(kxk dw) + BN(5x5 dw)))) behind BN, BN(1x1) and ReLU, then the FFN.

    The author's switch leaves both leading BatchNorms; Ding et al. 2022, sec. 3.
    """
    c, wide = channels, 2 * channels
    large = Sum(ConvNorm(c, c, kernel, groups=c), ConvNorm(c, c, small, groups=c))
    return nn.Sequential(
        Residual(norm(c), ConvNorm(c, c), nn.ReLU(), large, nn.ReLU(), ConvNorm(c, c)),
        Residual(norm(c), ConvNorm(c, wide), nn.GELU(), ConvNorm(wide, c)),
    )


class _RepGhostModule(nn.Module):
    """[ReLU](BN(3x3 dw(x')) + BN(x')) of x' = ReLU(BN(1x1(x)))."""

    def __init__(self, i: int, o: int, *, relu: bool = True) -> None:
        super().__init__()
        self.primary = nn.Sequential(ConvNorm(i, o), nn.ReLU())
        self.cheap = Sum(ConvNorm(o, o, 3, groups=o), norm(o))
        self.last = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(n, i, h, w) to (n, o, h, w)."""
        return self.last(self.cheap(self.primary(x)))


class _Shortcut(nn.Module):
    """body(x) + shortcut(x), both with non-linearities or strides of their own."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(n, i, h, w) to (n, o, ..)."""
        return self.body(x) + self.shortcut(x)


def rep_ghost(
    i: int, middle: int, o: int, *, stride: int = 1, squeeze: bool = False
) -> nn.Module:
    """The bottleneck of two modules; Chen et al. 2022, fig. 5."""
    body: list[nn.Module] = [_RepGhostModule(i, middle)]
    if stride > 1:
        body.append(ConvNorm(middle, middle, 3, stride=stride, groups=middle))
    body += [SqueezeExcite(middle)] if squeeze else []
    body.append(_RepGhostModule(middle, o, relu=False))
    shortcut = nn.Identity()
    if stride > 1 or i != o:
        shortcut = nn.Sequential(ConvNorm(i, i, 3, stride=stride, groups=i), ConvNorm(i, o))
    return _Shortcut(nn.Sequential(*body), shortcut)


class _GhostV3(nn.Module):
    """cat(x1, ReLU(sum of depthwise branches of x1)), gated where ``gate``."""

    def __init__(self, i: int, o: int, *, gate: bool) -> None:
        super().__init__()
        half = o // 2
        primary: list[nn.Module] = [ConvNorm(i, half) for _ in range(3)]
        self.primary = Sum(*primary, *([norm(i)] if i == half else []))
        cheap = [ConvNorm(half, half, 3, groups=half) for _ in range(3)]
        self.cheap = Sum(*cheap, ConvNorm(half, half, 1, groups=half), norm(half))
        self.gate = None
        if gate:
            self.gate = nn.Sequential(
                ConvNorm(i, o),
                ConvNorm(o, o, (1, 5), groups=o),
                ConvNorm(o, o, (5, 1), groups=o),
                nn.Sigmoid(),
            )

    def forward(self, x: Tensor) -> Tensor:
        """(n, i, h, w) to (n, o, h, w)."""
        first = torch.relu(self.primary(x))
        y = torch.cat([first, torch.relu(self.cheap(first))], dim=1)
        return y if self.gate is None else y * self.gate(x)


def ghost_v3(i: int, o: int, *, gate: bool = False) -> nn.Module:
    """3 x BN(1x1) [+ BN(x)], then 3 x BN(3x3 dw) + BN(1x1 dw) + BN(x); Liu et al. 2024."""
    return _GhostV3(i, o, gate=gate)


def lcnet(i: int, o: int, kernel: int = 5, *, stride: int = 1) -> nn.Module:
    """BN(5x5 dw) + BN(3x3 dw) + BN(1x1 dw), the last at stride 1 only; then BN(1x1)."""
    kernels = [k for k in range(kernel, 0, -2) if k > 1 or stride == 1]
    terms = [ConvNorm(i, i, k, stride=stride, groups=i) for k in kernels]
    block = nn.Sequential(Sum(*terms), nn.ReLU(), ConvNorm(i, o), nn.ReLU())
    return Residual(block) if stride == 1 and i == o else block


class _Vanilla(Reparameterised):
    """BN(1x1(LeakyReLU(BN(kxk(x))))) at a slope of 1, at the end of its training."""

    def __init__(self, i: int, o: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.first = ConvNorm(i, o, kernel, stride=stride, padding=0, bias=True)
        self.second = ConvNorm(o, o, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """(n, i, h, w) to (n, o, ..)."""
        return self.second(nn.functional.leaky_relu(self.first(x), 1.0))

    def deploy(self) -> nn.Module:
        (w1, b1), (w2, b2) = self.first.affine(), self.second.affine()
        matrix = w2[:, :, 0, 0]
        made: Any = like(
            self.first.conv,
            (torch.einsum("om,mihw->oihw", matrix, w1), matrix @ b1 + b2),
        )
        made.padding = (0, 0)
        return made


def vanilla(i: int, o: int, *, pool: int = 2, stem: bool = False) -> nn.Module:
    """A stage, or the 4x4 stride 4 stem, with the series activation; Chen et al. 2023."""
    merged = _Vanilla(i, o, 4 if stem else 1, 4 if stem else 1)
    pooled = [nn.MaxPool2d(pool)] if pool > 1 else []
    return nn.Sequential(merged, *pooled, nn.ReLU(), ConvNorm(o, o, 7, groups=o))
