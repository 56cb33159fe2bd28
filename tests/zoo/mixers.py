"""FastViT's, RepViT's, NextViT's and TinyViT's convolutional blocks, adapters and heads."""

from __future__ import annotations

__all__ = [
    "Blend",
    "Distilled",
    "NormLinear",
    "Pooled",
    "ScaledResidual",
    "ffn",
    "low_rank",
    "mb_conv",
    "next_conv",
    "patch_embed",
    "rep_cpe",
    "rep_mixer",
    "rep_vit",
]

from typing import Any, Literal

import torch
from torch import Tensor, nn

from tests.zoo.convolutional import SqueezeExcite, mobile_one
from tests.zoo.parts import (
    Affine,
    ConvNorm,
    Reparameterised,
    Residual,
    Sum,
    affine_of,
    channelwise,
    conv,
    folded,
    like,
    norm,
    scale_and_shift,
    total,
)


class ScaledResidual(nn.Module):
    """x + gamma body(x), gamma (c, 1, 1): LayerScale, which the authors leave."""

    def __init__(self, channels: int, *body: nn.Module) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1))
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w)."""
        return x + self.gamma * self.body(x)


def ffn(channels: int, *, kernel: int = 0) -> tuple[nn.Module, ...]:
    """[BN(kxk dw),] 1x1, GELU, 1x1; without the depthwise one the 1x1 have BatchNorms."""
    c, wide = channels, 2 * channels
    if not kernel:
        return ConvNorm(c, wide), nn.GELU(), ConvNorm(wide, c)
    first = ConvNorm(c, c, kernel, groups=c)
    return first, conv(c, wide), nn.GELU(), conv(wide, c)


Spelling = Literal["mixer", "towards", "lerp"]


class Blend(Reparameterised):
    """One depthwise convolution, written as a blend of x and other branches.

    mixer: x + gamma (M(x) - BN(x)), FastViT's RepMixer, M as MobileOne has it;
    towards: x + sigmoid(a) (BN(dw(x)) - x), iFormer;
    lerp: (1 - sigmoid(a)) x + sigmoid(a) BN(dw(x)), EfficientViM.
    """

    def __init__(self, channels: int, kernel: int, spelling: Spelling) -> None:
        super().__init__()
        c = channels
        self.main: Any = ConvNorm(c, c, kernel, groups=c)
        if spelling == "mixer":
            self.main = Sum(self.main, ConvNorm(c, c, 1, groups=c), norm(c))
        self.other = norm(c) if spelling == "mixer" else nn.Identity()
        shape = (1,) if spelling == "towards" else (c, 1, 1)
        self.gamma = nn.Parameter(torch.ones(shape))
        self.spelling = spelling

    def weight(self) -> Tensor:
        """How much of the main branch."""
        return self.gamma if self.spelling == "mixer" else torch.sigmoid(self.gamma)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w)."""
        weight = self.weight()
        if self.spelling == "lerp":
            return (1 - weight) * x + weight * self.main(x)
        return x + weight * (self.main(x) - self.other(x))

    def affine(self) -> Affine:
        kernel, bias = self.main.affine()
        c = len(kernel)
        weight = self.weight().detach().flatten().expand(c)
        one, none = affine_of(nn.Identity(), kernel, c)
        other, shift = affine_of(self.other, kernel, c)
        column = channelwise(weight, 4)
        terms = [
            (one, none),
            (column * kernel, weight * bias),
            (-column * other, -weight * shift),
        ]
        return total(terms, kernel.shape[2:])

    def deploy(self) -> nn.Module:
        main = self.main.branches[0] if isinstance(self.main, Sum) else self.main
        return like(main.conv, self.affine())


def rep_mixer(channels: int) -> nn.Module:
    """RepMixer and the convolutional FFN; Vasu et al. 2023, FastViT, sec. 3."""
    return nn.Sequential(
        Blend(channels, 3, "mixer"), ScaledResidual(channels, *ffn(channels, kernel=7))
    )


def patch_embed(i: int, o: int) -> nn.Module:
    """BN(7x7) + BN(3x3), halving, one group for an input channel; then MobileOne's 1x1."""
    terms = [ConvNorm(i, o, k, stride=2, groups=i) for k in (7, 3)]
    return nn.Sequential(Sum(*terms), nn.GELU(), mobile_one(o, o, branches=1))


def rep_cpe(channels: int, kernel: int = 7) -> nn.Module:
    """x + dw(x), the dw with a bias and no BatchNorm: a position encoding."""
    return Sum(conv(channels, channels, kernel, groups=channels), nn.Identity())


def rep_vit(channels: int, *, squeeze: bool = False) -> nn.Module:
    """BN(BN(3x3 dw) + 1x1 dw + x), [SE,] then x + FFN(x); Wang et al. 2024, fig. 2."""
    c = channels
    terms = (ConvNorm(c, c, 3, groups=c), conv(c, c, 1, groups=c), nn.Identity())
    return nn.Sequential(
        Sum(*terms, last=norm(c)),
        *([SqueezeExcite(c)] if squeeze else []),
        Residual(*ffn(c)),
    )


class NormLinear(Reparameterised):
    """Linear(BN(x)) of (n, c)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.norm: Any = norm(channels, 0)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c) to (n, classes)."""
        return self.linear(self.norm(x))

    def affine(self) -> Affine:
        scale, shift = scale_and_shift(self.norm)
        weight, bias = folded(self.linear)
        return weight * scale, weight @ shift + bias

    def deploy(self) -> nn.Module:
        return like(self.linear, self.affine())


class Distilled(Reparameterised):
    """(A(x) + B(x)) / 2: the class and distillation heads, of one Linear when deployed."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.a, self.b = NormLinear(channels, classes), NormLinear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c) to (n, classes)."""
        return (self.a(x) + self.b(x)) / 2

    def deploy(self) -> nn.Module:
        (w1, b1), (w2, b2) = self.a.affine(), self.b.affine()
        return like(self.a.linear, ((w1 + w2) / 2, (b1 + b2) / 2))


class Pooled(nn.Module):
    """head(mean(x)) of a map or of tokens; ``first`` works on the map, and is the author's."""

    def __init__(self, head: nn.Module, first: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Identity() if first is None else first
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) or (n, t, c) to (n, classes)."""
        x = self.first(x)
        pooled = (
            x.mean(1) if x.ndim == 3 else nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)
        )
        return self.head(pooled)


def mb_conv(i: int, o: int, *, stride: int = 1) -> nn.Module:
    """TinyViT: GELU(x + BN(1x1(GELU(BN(3x3 dw(GELU(BN(1x1(x)))))))), or halving; 2022."""
    wide = 2 * o
    body = [
        ConvNorm(i, wide),
        nn.GELU(),
        ConvNorm(wide, wide, 3, stride=stride, groups=wide),
        nn.GELU(),
        ConvNorm(wide, o),
    ]
    if stride > 1 or i != o:
        return nn.Sequential(*body)
    return nn.Sequential(Residual(*body), nn.GELU())


class _NextConv(Reparameterised):
    """x + MLP(BN(x)), the author's merge going into the first 1x1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        c = channels
        self.norm: Any = norm(c)
        self.first, self.last = conv(c, 2 * c), conv(2 * c, c)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w)."""
        return x + self.last(torch.relu(self.first(self.norm(x))))

    def deploy(self) -> nn.Module:
        scale, shift = scale_and_shift(self.norm)
        weight, bias = folded(self.first)
        first = like(
            self.first, (weight * channelwise(scale, 3), bias + weight[:, :, 0, 0] @ shift)
        )
        return Residual(first, nn.ReLU(), self.last)


def next_conv(channels: int, heads: int = 2) -> nn.Module:
    """x + 1x1(ReLU(BN(grouped 3x3(x)))), then x + MLP(BN(x)); Li et al. 2022, fig. 4."""
    c = channels
    mixer = ConvNorm(c, c, 3, groups=c // heads)
    return nn.Sequential(Residual(mixer, nn.ReLU(), conv(c, c, bias=False)), _NextConv(c))


class _LowRank(Reparameterised):
    """base(x) + s up(down(x)), up a Linear or a 1x1; Hu et al. 2022, sec. 4."""

    def __init__(self, i: int, o: int, rank: int, *, axes: int, **shape: Any) -> None:
        super().__init__()
        self.base = conv(i, o, axes=axes, **shape)
        self.down = conv(i, rank, axes=axes, bias=False, **shape)
        self.up = conv(rank, o, axes=axes, bias=False)
        self.scale = 2.0 / rank

    def forward(self, x: Tensor) -> Tensor:
        """(n, .., i) or (n, i, ..)."""
        return self.base(x) + self.up(self.down(x)) * self.scale

    def deploy(self) -> nn.Module:
        weight, bias = folded(self.base)
        up, down = folded(self.up)[0], folded(self.down)[0]
        low = torch.einsum("or,ri...->oi...", up.flatten(1), down)
        return like(self.base, (weight + self.scale * low, bias))


def low_rank(i: int, o: int, *, rank: int = 4, axes: int = 0, **shape: Any) -> nn.Module:
    """LoRA beside a Linear, or beside a convolution with ``shape``."""
    return _LowRank(i, o, rank, axes=axes, **shape)
