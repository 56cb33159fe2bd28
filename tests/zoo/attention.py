"""Blocks with attention, or a state of the whole map: LeViT, EfficientViT and their kin."""

from __future__ import annotations

__all__ = [
    "cascaded",
    "levit_attention",
    "levit_mlp",
    "next_attention",
    "self_attention",
    "sh_vit",
    "state_space",
    "tiny_attention",
]

from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.mixers import Blend, ScaledResidual, ffn
from tests.zoo.parts import (
    ConvNorm,
    Reparameterised,
    Residual,
    Sum,
    folded,
    like,
    norm,
    scale_and_shift,
)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k' / sqrt(d) + bias) v of (.., t, d)."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return (scores if bias is None else scores + bias).softmax(-1) @ v


def mapped(tokens: Tensor, x: Tensor) -> Tensor:
    """(n, d, h w) as (n, d, h, w), h and w being those of ``x``."""
    return tokens.reshape(*tokens.shape[:2], *x.shape[2:])


class _SelfAttention(nn.Module):
    """Attention over the places of (n, c, h, w), q, k and v from one Linear without a bias."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w)."""
        n, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        qkv = self.qkv(tokens).reshape(n, h * w, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = attend(q, k, v).transpose(1, 2).reshape(n, h * w, c)
        return self.proj(y).transpose(1, 2).reshape(n, c, h, w)


def self_attention(channels: int, heads: int = 2) -> nn.Module:
    """FastViT's last stage: LayerScale residuals around BN-attention and the FFN."""
    return nn.Sequential(
        ScaledResidual(channels, norm(channels), _SelfAttention(channels, heads)),
        ScaledResidual(channels, *ffn(channels, kernel=7)),
    )


class _LevitAttention(nn.Module):
    """Attention with a bias for each pair of tokens; q from every second token to halve them.

    With 2 ``axes`` the linear layers are 1x1 convolutions over (n, c, h, w).
    """

    def __init__(self, channels: int, tokens: int, *, axes: int, halve: bool) -> None:
        super().__init__()
        self.heads, self.axes, self.step = 2, axes, 2 if halve else 1
        self.q = ConvNorm(channels, channels, axes=axes)
        self.kv = ConvNorm(channels, 3 * channels, axes=axes)
        self.proj = nn.Sequential(nn.Hardswish(), ConvNorm(2 * channels, channels, axes=axes))
        queries = -(-tokens // self.step)
        self.bias = nn.Parameter(torch.zeros(self.heads, queries, tokens))

    def forward(self, x: Tensor) -> Tensor:
        """(n, t, c) or (n, c, h, w)."""
        q = self.q(x[:, :: self.step] if self.axes == 0 else x)
        q, kv = self._heads(q), self._heads(self.kv(x))
        d = q.shape[-1]
        y = attend(q, kv[..., :d], kv[..., d:], self.bias)
        if self.axes == 0:
            return self.proj(y.transpose(1, 2).flatten(2))
        return self.proj(mapped(y.transpose(2, 3).flatten(1, 2), x))

    def _heads(self, x: Tensor) -> Tensor:
        """(n, heads, t, d)."""
        if self.axes == 0:
            return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)
        return x.reshape(x.shape[0], self.heads, -1, x.shape[2] * x.shape[3]).transpose(2, 3)


def levit_attention(
    channels: int, tokens: int, *, axes: int = 0, halve: bool = False
) -> nn.Module:
    """x + attention(x), or attention to fewer tokens; Graham et al. 2021, sec. 4."""
    body = _LevitAttention(channels, tokens, axes=axes, halve=halve)
    return body if halve else Residual(body)


def levit_mlp(channels: int, *, axes: int = 0) -> nn.Module:
    """x + BN(linear(Hardswish(BN(linear(x)))))."""
    wide = 2 * channels
    return Residual(
        ConvNorm(channels, wide, axes=axes),
        nn.Hardswish(),
        ConvNorm(wide, channels, axes=axes),
    )


class _Cascaded(nn.Module):
    """A head's input is its part of x plus the last head's output."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        part = channels // heads
        self.key, self.part = 4, part
        self.qkv = nn.ModuleList([ConvNorm(part, 8 + part) for _ in range(heads)])
        self.dw = nn.ModuleList([ConvNorm(4, 4, k, groups=4) for k in (5, 3)[:heads]])
        self.proj = nn.Sequential(nn.ReLU(), ConvNorm(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w)."""
        outputs: list[Tensor] = []
        for i, feature in enumerate(x.split(self.part, dim=1)):
            given = outputs[-1] + feature if outputs else feature
            q, k, v = self.qkv[i](given).split((4, 4, self.part), dim=1)
            q, k, v = (t.flatten(2).transpose(1, 2) for t in (self.dw[i](q), k, v))
            mixed = attend(q, k, v).transpose(1, 2)
            outputs.append(mapped(mixed, x))
        return self.proj(torch.cat(outputs, dim=1))


def cascaded(channels: int, *, attention: bool = True) -> nn.Module:
    """x + BN(dw(x)), FFN, attention, x + BN(dw(x)), FFN; Liu et al. 2023, fig. 3.

    The authors leave x + BN(dw(x)) as it is.
    """
    c = channels
    return nn.Sequential(
        Residual(ConvNorm(c, c, 3, groups=c)),
        Residual(ConvNorm(c, 2 * c), nn.ReLU(), ConvNorm(2 * c, c)),
        *([Residual(_Cascaded(c, 2))] if attention else []),
        Residual(ConvNorm(c, c, 3, groups=c)),
    )


class _TinyAttention(nn.Module):
    """x + attention(LayerNorm(x)), BN(3x3 dw), x + MLP(LayerNorm(x))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        c = channels
        self.norm, self.qkv, self.proj = nn.LayerNorm(c), nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.local = ConvNorm(c, c, 3, groups=c)
        self.mlp = nn.Sequential(
            nn.LayerNorm(c), nn.Linear(c, 2 * c), nn.GELU(), nn.Linear(2 * c, c)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w)."""
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(tokens)).chunk(3, dim=2)
        tokens = tokens + self.proj(attend(q, k, v))
        x = self.local(mapped(tokens.transpose(1, 2), x))
        tokens = x.flatten(2).transpose(1, 2)
        return mapped((tokens + self.mlp(tokens)).transpose(1, 2), x)


def tiny_attention(channels: int) -> nn.Module:
    """TinyViT's block, its window the whole map."""
    return _TinyAttention(channels)


class _SingleHead(nn.Module):
    """Attention of a quarter of the channels behind GroupNorm, joined with the rest."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.part = channels // 4
        self.norm = nn.GroupNorm(1, self.part)
        self.qkv = ConvNorm(self.part, 8 + self.part)
        self.proj = nn.Sequential(nn.ReLU(), ConvNorm(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w)."""
        first, rest = x.split((self.part, x.shape[1] - self.part), dim=1)
        parts = self.qkv(self.norm(first)).split((4, 4, self.part), dim=1)
        q, k, v = (t.flatten(2).transpose(1, 2) for t in parts)
        mixed = mapped(attend(q, k, v).transpose(1, 2), x)
        return self.proj(torch.cat([mixed, rest], dim=1))


def sh_vit(channels: int) -> nn.Module:
    """x + BN(dw(x)), x + single-head attention, x + FFN(x); Yun and Ro 2024, fig. 4."""
    c = channels
    return nn.Sequential(
        Sum(ConvNorm(c, c, 3, groups=c), nn.Identity()),
        Residual(_SingleHead(c)),
        Residual(ConvNorm(c, 2 * c), nn.ReLU(), ConvNorm(2 * c, c)),
    )


class _StateSpace(nn.Module):
    """EfficientViM's mixer: Conv1d-BN to B, C and dt, a state of the map, Conv1d-BN."""

    def __init__(self, channels: int, states: int = 4) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        self.bcd = ConvNorm(channels, 3 * states, axes=1)
        self.dw = ConvNorm(3 * states, 3 * states, 3, groups=3 * states)
        self.hidden = ConvNorm(channels, 2 * channels, axes=1)
        self.out = ConvNorm(channels, channels, axes=1)
        self.decay = nn.Parameter(torch.ones(states, 1))
        self.direct = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w)."""
        flat = self.norm(x).flatten(2)
        bcd = self.dw(mapped(self.bcd(flat), x)).flatten(2)
        b, c, dt = bcd.chunk(3, dim=1)
        weights = (dt + self.decay).softmax(-1) * b
        h, z = self.hidden(flat @ weights.transpose(1, 2)).chunk(2, dim=1)
        state = self.out(h * nn.functional.silu(z) + h * self.direct)
        return mapped(state @ c, x)


def state_space(channels: int) -> nn.Module:
    """Blends with BN(dw(x)) around the mixer, and the FFN; Lee et al. 2025, fig. 3."""
    c = channels
    return nn.Sequential(
        Blend(c, 3, "lerp"),
        Residual(_StateSpace(c)),
        Blend(c, 3, "lerp"),
        Residual(ConvNorm(c, 2 * c), nn.ReLU(), ConvNorm(2 * c, c)),
    )


class _NextAttention(Reparameterised):
    """x + attention(BN(x)), k and v from BN(AvgPool(tokens)) where ``ratio`` is above 1."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        c = channels
        self.first: Any = norm(c)
        self.second: Any = norm(c, 1) if ratio > 1 else nn.Identity()
        self.pool = nn.AvgPool1d(ratio, ratio) if ratio > 1 else nn.Identity()
        self.q, self.k, self.v, self.proj = (nn.Linear(c, c) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w)."""
        flat = self.first(x).flatten(2)
        few = self.second(self.pool(flat)).transpose(1, 2)
        y = self.proj(attend(self.q(flat.transpose(1, 2)), self.k(few), self.v(few)))
        return x + mapped(y.transpose(1, 2), x)

    def deploy(self) -> nn.Module:
        result: Any = _NextAttention(len(self.first.weight), 1).to(self.first.weight.dtype)
        scale, shift = scale_and_shift(self.first)
        few_scale, few_shift = scale, shift
        if not isinstance(self.second, nn.Identity):
            again, last = scale_and_shift(self.second)
            few_scale, few_shift = scale * again, shift * again + last
        for name in ("q", "k", "v"):
            weight, bias = folded(getattr(self, name))
            a, c = (scale, shift) if name == "q" else (few_scale, few_shift)
            setattr(result, name, like(self.q, (weight * a, weight @ c + bias)))
        result.first, result.second = nn.Identity(), nn.Identity()
        result.pool, result.proj = self.pool, self.proj
        return result.eval()


def next_attention(channels: int, ratio: int = 1) -> nn.Module:
    """NextViT's transformer block up to its MLP."""
    return _NextAttention(channels, ratio)
