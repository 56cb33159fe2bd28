"""Narrow copies of the published architectures: random weights, traced once, merged here."""

from __future__ import annotations

__all__ = [
    "deploy",
    "exported",
    "merged_state",
    "narrow",
    "pixels",
    "traced",
    "training",
]

from dataclasses import replace
from functools import cache

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vntools.export.naming import rename
from vntools.export.rewrite import apply_passes
from vntools.export.simplify import tidy
from vntools.export.trace import trace
from vntools.models.arch import ARCHITECTURES, Architecture
from vntools.models.vanillanet import DeployVanillaNet, VanillaNet, deploy_name


def narrow(name: str) -> Architecture:
    """1/64 of the channels and 10 classes; small images where the pooling allows them."""
    arch = ARCHITECTURES[name]
    size = arch.image_size if any(arch.adaptive) else 64
    dims = tuple(d // 64 for d in arch.dims)
    return replace(arch, dims=dims, num_classes=10, image_size=size)


def pixels(name: str, *, batch: int) -> NDArray[np.float32]:
    """Standard normal images for the narrow network."""
    size = narrow(name).image_size
    drawn = np.random.default_rng(batch).standard_normal((batch, 3, size, size))
    return drawn.astype(np.float32)


@cache
def training(name: str) -> VanillaNet:
    """The narrow network in training form, with statistics that are not those of a new one."""
    network = VanillaNet(narrow(name))
    draw = torch.Generator().manual_seed(0)
    for module in network.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=draw)
            nn.init.normal_(module.bias, generator=draw)
            module.get_buffer("running_mean").normal_(generator=draw)
            module.get_buffer("running_var").uniform_(0.2, 2.0, generator=draw)
        elif weight is not None:
            nn.init.normal_(weight, std=weight[0].numel() ** -0.5, generator=draw)
            bias = getattr(module, "bias", None)
            if bias is not None:
                nn.init.normal_(bias, generator=draw)
    return network.eval()


def merged_state(network: VanillaNet, *, epsilon: float = 1e-6) -> dict[str, Tensor]:
    """What the deploy form holds: Eq. 2 and Eq. 4 over a state dict, in float64."""
    state = {k: v.double() for k, v in network.state_dict().items()}
    merged: dict[str, Tensor] = {}

    def folded(conv: str, norm: str) -> tuple[Tensor, Tensor]:
        weight = state[f"{conv}.weight"]
        scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + epsilon).sqrt()
        bias = state.get(f"{conv}.bias", torch.zeros(len(weight)))
        shift = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
        return weight * scale[:, None, None, None], bias * scale + shift

    def layer(
        target: str, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor] | None = None
    ) -> None:
        weight, bias = first
        if second is not None:
            matrix = second[0][:, :, 0, 0]
            weight, bias = (
                torch.einsum("om,mihw->oihw", matrix, weight),
                matrix @ bias + second[1],
            )
        merged[f"{target}.weight"], merged[f"{target}.bias"] = weight, bias

    layer("stem.0", folded("stem1.0", "stem1.1"), folded("stem2.0", "stem2.1"))
    layer("stem.1", folded("stem2.2", "stem2.2.bn"))
    for i in range(len(network.stages)):
        s = f"stages.{i}"
        layer(
            f"{s}.conv",
            folded(f"{s}.conv1.0", f"{s}.conv1.1"),
            folded(f"{s}.conv2.0", f"{s}.conv2.1"),
        )
        layer(f"{s}.act", folded(f"{s}.act", f"{s}.act.bn"))
    layer("cls.2", folded("cls1.2", "cls1.3"), (state["cls2.0.weight"], state["cls2.0.bias"]))
    return merged


@cache
def deploy(name: str) -> DeployVanillaNet:
    """The same function in deploy form."""
    network = DeployVanillaNet(narrow(name))
    merged = merged_state(training(name))
    network.load_state_dict({k: v.float() for k, v in merged.items()})
    return network.eval()


@cache
def _traced(name: str, form: str) -> ir.Model:
    network = training(name) if form == "training" else deploy(name)
    return trace(network, narrow(name).image_size)


def traced(name: str, form: str = "training") -> ir.Model:
    """The raw graph; traced once a session, a copy for each caller."""
    return _traced(name, form).clone()


@cache
def _exported(name: str, form: str) -> ir.Model:
    model = traced(name, form)
    apply_passes(model.graph)
    model = tidy(model)
    rename(model.graph, deploy_name)
    return model


def exported(name: str, form: str = "training") -> ir.Model:
    """The graph behind the passes, tidied and named, as ``vntools export`` has it."""
    return _exported(name, form).clone()
