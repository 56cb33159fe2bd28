"""What the blocks are made of: seeded weights, folds in PyTorch, and the switch to deploy."""

from __future__ import annotations

__all__ = [
    "Affine",
    "ConvNorm",
    "Reparameterised",
    "Residual",
    "Sum",
    "affine_of",
    "centred",
    "channelwise",
    "conv",
    "deployed",
    "folded",
    "identity",
    "like",
    "norm",
    "scale_and_shift",
    "seeded",
    "total",
]

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

Affine = tuple[Tensor, Tensor]
"""Weight (o, i / g, ..) and bias (o,) of a convolution; weight (o, i) of a Linear."""

_CONVS: Sequence[Any] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS: Sequence[Any] = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Reparameterised(nn.Module):
    """A module whose author has another one for inference."""

    def affine(self) -> Affine:
        """It as one convolution, where it is one."""
        raise NotImplementedError

    def deploy(self) -> nn.Module:
        """The author's deploy form, in this module's precision."""
        raise NotImplementedError


def deployed(module: nn.Module) -> nn.Module:
    """A copy with every :class:`Reparameterised` part, the outermost first, switched over."""
    if isinstance(module, Reparameterised):
        return module.deploy()
    result = copy.copy(module)
    result._modules = {
        name: None if child is None else deployed(child)
        for name, child in module._modules.items()
    }
    return result


def seeded(module: nn.Module, seed: int) -> nn.Module:
    """``module`` in eval mode with weights from ``seed``.

    A BatchNormalization's first gamma is 0, its second is negative: both are legal.
    """
    draw = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor, std: float) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=draw) * std)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=draw) * (high - low) + low)

    with torch.no_grad():
        for part in module.modules():
            weights = dict(part.named_parameters(recurse=False))
            if isinstance(part, _BATCH_NORMS):
                uniform(part.weight, 0.5, 1.5)
                part.weight[0], part.weight[1] = 0.0, -part.weight[1]
                normal(part.bias, 0.5)
                normal(cast("Tensor", part.running_mean), 0.5)
                uniform(cast("Tensor", part.running_var), 0.3, 2.0)
            elif isinstance(part, nn.LayerNorm | nn.GroupNorm):
                uniform(part.weight, 0.5, 1.5)
                normal(part.bias, 0.5)
            else:
                for name, weight in weights.items():
                    fan_in = weight[0].numel() if weight.ndim > 1 else 4
                    normal(weight, fan_in**-0.5 if name == "weight" else 0.5)
    return module.eval()


def conv(
    inputs: int,
    outputs: int,
    kernel: int | tuple[int, ...] = 1,
    *,
    stride: int = 1,
    groups: int = 1,
    bias: bool = True,
    axes: int = 2,
    padding: int | None = None,
) -> nn.Module:
    if not axes:
        return nn.Linear(inputs, outputs, bias=bias)
    size = (kernel,) * axes if isinstance(kernel, int) else kernel
    pads = tuple(k // 2 if padding is None else padding for k in size)
    return _CONVS[axes](
        inputs, outputs, size, stride=stride, padding=pads, groups=groups, bias=bias
    )


class ConvNorm(Reparameterised):
    """BatchNorm(Conv(x)), the convolution without a bias.

    With 0 axes it is LeViT's and EfficientViT's linear layer, whose BatchNorm1d sees
    (tokens, channels): (batch, tokens, channels) is flattened and restored.
    """

    def __init__(self, *args: Any, axes: int = 2, **kwargs: Any) -> None:
        super().__init__()
        self.conv: Any = conv(*args, axes=axes, **{"bias": False, **kwargs})
        self.norm: Any = norm(args[1], axes)

    def forward(self, x: Tensor) -> Tensor:
        """Of (n, c, ..); of (n, c) or (n, t, c) with 0 axes."""
        x = self.conv(x)
        if x.ndim == 3 and isinstance(self.conv, nn.Linear):
            return self.norm(x.flatten(0, 1)).reshape_as(x)
        return self.norm(x)

    def affine(self) -> Affine:
        weight, bias = folded(self.conv)
        scale, shift = scale_and_shift(self.norm)
        return weight * channelwise(scale, weight.ndim), bias * scale + shift

    def deploy(self) -> nn.Module:
        return like(self.conv, self.affine())


class Sum(Reparameterised):
    """A sum of branches over one input; deployed as one convolution like the first branch.

    The first is a convolution with the largest kernel; the others are convolutions with odd
    kernels, BatchNorm(x) or, as nn.Identity, x itself. ``last``, if given, is a BatchNorm
    behind the sum.
    """

    def __init__(self, *branches: nn.Module, last: nn.Module | None = None) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.last: Any = last

    def forward(self, x: Tensor) -> Tensor:
        """(n, i, ..) to (n, o, ..)."""
        y = self.branches[0](x)
        for branch in list(self.branches)[1:]:
            y = y + branch(x)
        return y if self.last is None else self.last(y)

    def affine(self) -> Affine:
        first = self.branches[0]
        widest: Any = first.conv if isinstance(first, ConvNorm) else first
        size, groups = widest.weight.shape[2:], widest.groups
        weight, bias = total(
            [affine_of(b, widest.weight, groups) for b in self.branches], size
        )
        if self.last is None:
            return weight, bias
        scale, shift = scale_and_shift(self.last)
        return weight * channelwise(scale, weight.ndim), bias * scale + shift

    def deploy(self) -> nn.Module:
        first = self.branches[0]
        return like(first.conv if isinstance(first, ConvNorm) else first, self.affine())


def affine_of(branch: Any, weight: Tensor, groups: int) -> Affine:
    """``branch`` as a convolution of ``groups`` groups; ``weight`` is one beside it."""
    if isinstance(branch, Reparameterised):
        return branch.affine()
    if isinstance(branch, _BATCH_NORMS):
        scale, shift = scale_and_shift(branch)
    elif isinstance(branch, nn.Identity):
        scale, shift = torch.ones(len(weight)), torch.zeros(len(weight))
    else:
        return folded(branch)
    kernel = identity(len(weight), groups, weight.ndim - 2).to(weight)
    return kernel * channelwise(scale.to(weight), weight.ndim), shift.to(weight)


def norm(channels: int, axes: int = 2) -> nn.Module:
    """A BatchNorm over (n, c, ..)."""
    return _NORMS[axes](channels)


def like(pattern: Any, affine: Affine) -> nn.Module:
    """One convolution or Linear with the stride and groups of ``pattern``."""
    weight, bias = affine
    axes = weight.ndim - 2 if weight.ndim > 2 else 0
    made: Any = conv(
        weight.shape[1] * (pattern.groups if axes else 1),
        weight.shape[0],
        tuple(weight.shape[2:]),
        stride=pattern.stride[0] if axes else 1,
        groups=pattern.groups if axes else 1,
        axes=axes,
    )
    made.weight = nn.Parameter(weight.contiguous())
    made.bias = nn.Parameter(bias)
    return made.eval()


class Residual(nn.Module):
    """x + body(x)."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = body[0] if len(body) == 1 else nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape that the body keeps."""
        return x + self.body(x)


def channelwise(vector: Tensor, ndim: int) -> Tensor:
    """(c,) as (c, 1, ..) with ``ndim`` axes."""
    return vector.reshape(-1, *(1,) * (ndim - 1))


def scale_and_shift(norm: Any) -> Affine:
    """a and c of BatchNorm(x) = a x + c, both (c,)."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale.detach(), (norm.bias - norm.running_mean * scale).detach()


def folded(layer: Any) -> Affine:
    """Weight and bias of a convolution or Linear."""
    weight = layer.weight.detach()
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach()
    return weight, bias


def centred(affine: Affine, kernel: Sequence[int]) -> Affine:
    """The same convolution with a kernel of size ``kernel``, zeros around its taps."""
    weight, bias = affine
    edges: list[int] = []
    for k, wanted in zip(reversed(weight.shape[2:]), reversed(kernel), strict=True):
        edges += [(wanted - k) // 2] * 2
    return nn.functional.pad(weight, edges), bias


def identity(channels: int, groups: int, axes: int) -> Tensor:
    """The 1x1 kernel (c, c / g, 1, ..) that hands its input on."""
    width = channels // groups
    return torch.eye(width).repeat(groups, 1).reshape(channels, width, *(1,) * axes)


def total(terms: Sequence[Affine], kernel: Sequence[int]) -> Affine:
    """The sum of convolutions over one input, as one with the kernel size ``kernel``."""
    grown = [centred(term, kernel) for term in terms]
    return sum(w for w, _ in grown), sum(b for _, b in grown)  # pyright: ignore[reportReturnType]
