"""The two forms: names, sizes and cost on the meta device, and equality after a merge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vntools.models.arch import ARCHITECTURES, Architecture
from vntools.models.vanillanet import (
    DeployVanillaNet,
    FadingActivation,
    SeriesActivation,
    VanillaNet,
    deploy_name,
    initialize,
)

BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
CONV = ("weight", "bias")


def names(module: str, parts: tuple[str, ...]) -> set[str]:
    return {f"{module}.{part}" for part in parts}


def training_names(blocks: int) -> set[str]:
    expected = names("cls1.2", CONV) | names("cls1.3", BN) | names("cls2.0", CONV)
    for layer in ("stem1", "stem2"):
        expected |= names(f"{layer}.0", CONV) | names(f"{layer}.1", BN)
    expected |= {"stem2.2.weight"} | names("stem2.2.bn", BN)
    for i in range(blocks):
        for layer in (f"stages.{i}.conv1", f"stages.{i}.conv2"):
            expected |= names(f"{layer}.0", CONV) | names(f"{layer}.1", BN)
        expected |= {f"stages.{i}.act.weight"} | names(f"stages.{i}.act.bn", BN)
    return expected


def deploy_names(blocks: int) -> set[str]:
    expected = names("stem.0", CONV) | names("stem.1", CONV) | names("cls.2", CONV)
    for i in range(blocks):
        expected |= names(f"stages.{i}.conv", CONV) | names(f"stages.{i}.act", CONV)
    return expected


def on_meta(form: Callable[[Architecture], nn.Module], arch: Architecture) -> nn.Module:
    with torch.device("meta"):
        return form(arch)


def counted_macs(network: nn.Module, image_size: int) -> int:
    """Multiply-accumulates of the convolutions that one forward on the meta device runs."""
    total = 0

    class Count(torch.overrides.TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            if getattr(func, "__name__", "") == "conv2d":
                nonlocal total
                total += result.numel() * args[1][0].numel()
            return result

    with Count(), torch.no_grad():
        assert (
            network.eval()(torch.empty(1, 3, image_size, image_size, device="meta")).ndim == 2
        )
    return total


@pytest.mark.parametrize("arch", ARCHITECTURES.values(), ids=lambda a: a.name)
def test_sizes_of_the_modules_are_those_of_the_data(arch: Architecture) -> None:
    training, deploy = on_meta(VanillaNet, arch), on_meta(DeployVanillaNet, arch)
    counts = [sum(p.numel() for p in n.parameters()) for n in (training, deploy)]
    assert counts == [arch.training_parameters(), arch.deploy_parameters()]
    macs = [counted_macs(n, arch.image_size) for n in (training, deploy)]
    assert macs == [arch.training_macs(), arch.deploy_macs()]


@pytest.mark.parametrize("arch", ARCHITECTURES.values(), ids=lambda a: a.name)
def test_names_are_those_of_the_released_checkpoints(arch: Architecture) -> None:
    blocks = len(arch.strides)
    assert set(on_meta(VanillaNet, arch).state_dict()) == training_names(blocks)
    assert set(on_meta(DeployVanillaNet, arch).state_dict()) == deploy_names(blocks)


def test_every_batchnorm_has_the_papers_epsilon() -> None:
    network = on_meta(VanillaNet, ARCHITECTURES["vanillanet_6"])
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 3 + 3 * 4 + 1
    assert {m.eps for m in norms} == {1e-6}


def folded(
    weight: Tensor, bias: Tensor | float, norm: nn.BatchNorm2d
) -> tuple[Tensor, Tensor]:
    """Eq. 2, written here from the definition of BatchNorm alone."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return weight * scale[:, None, None, None], (bias - norm.running_mean) * scale + norm.bias


def merged(first: Any, second: Any) -> tuple[Tensor, Tensor]:
    """Eq. 4: a 1x1 convolution behind any other, each with its BatchNorm where it has one."""
    w1, b1 = folded(first[0].weight, first[0].bias, first[1])
    w2, b2 = second[0].weight, second[0].bias
    if len(second) > 1:
        w2, b2 = folded(w2, b2, second[1])
    weight = torch.einsum("om,mikl->oikl", w2[:, :, 0, 0], w1)
    return weight, w2[:, :, 0, 0] @ b1 + b2


def merged_state(network: Any) -> dict[str, Tensor]:
    pairs: dict[str, tuple[Tensor, Tensor]] = {
        "stem.0": merged(network.stem1, network.stem2),
        "stem.1": folded(network.stem2[2].weight, 0.0, network.stem2[2].bn),
        "cls.2": merged(network.cls1[2:], network.cls2),
    }
    for i, stage in enumerate(network.stages):
        pairs[f"stages.{i}.conv"] = merged(stage.conv1, stage.conv2)
        pairs[f"stages.{i}.act"] = folded(stage.act.weight, 0.0, stage.act.bn)
    return {
        f"{n}.{k}": v for n, pair in pairs.items() for k, v in zip(CONV, pair, strict=True)
    }


@torch.no_grad()
def distance(arch: Architecture, network: Any) -> float:
    """Relative L2 distance of the two forms in float64, the deploy form merged here."""
    deploy = DeployVanillaNet(arch).double().eval()
    deploy.load_state_dict(merged_state(network))
    size = arch.image_size
    x = torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.manual_seed(1))
    want, got = network(x), deploy(x)
    assert want.shape == (2, arch.num_classes)
    assert want.norm() > 0.1
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_forms_are_equal_at_lambda_1(
    name: str, narrow: Callable[..., Architecture], network: Callable[..., nn.Module]
) -> None:
    arch = narrow(name)
    assert distance(arch, network(arch).double()) < 1e-12


@pytest.mark.parametrize("n", [0, 1, 4])
def test_the_forms_are_equal_for_every_n(
    n: int, small: Architecture, network: Callable[..., nn.Module]
) -> None:
    arch = Architecture("own", small.dims, small.strides, activation_n=n, image_size=32)
    assert distance(arch, network(arch).double()) < 1e-12


@pytest.mark.parametrize("value", [0.0, 0.5, 0.9999])
def test_the_forms_differ_below_lambda_1(
    value: float, small: Architecture, network: Callable[..., Any]
) -> None:
    training = network(small).double()
    training.set_lambda(value)
    assert distance(small, training) > 1e-6


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_fading_activation_is_eq_1(value: float) -> None:
    x = torch.linspace(-3, 3, 13)
    expected = (1 - value) * torch.relu(x) + value * x
    torch.testing.assert_close(FadingActivation(value)(x), expected)


def test_lambda_reaches_every_fading_activation(small: Architecture) -> None:
    network = VanillaNet(small)
    fading = [m for m in network.modules() if isinstance(m, FadingActivation)]
    assert [m.activation_lambda for m in fading] == [1.0] * (small.depth)
    network.set_lambda(0.25)
    assert [m.activation_lambda for m in fading] == [0.25] * (small.depth)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_lambda_out_of_range_is_refused(value: float, small: Architecture) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        VanillaNet(small, activation_lambda=value)


@pytest.mark.parametrize("n", [0, 1, 2])
@torch.no_grad()
def test_series_activation_is_eq_6(n: int) -> None:
    channels, size = 2, 5
    module = SeriesActivation(channels, n).eval()
    nn.init.normal_(module.weight, generator=torch.manual_seed(0))
    nn.init.normal_(module.bn.bias, generator=torch.manual_seed(1))
    x = torch.randn(1, channels, size, size, generator=torch.manual_seed(2))
    expected = torch.zeros_like(x)
    for c in range(channels):
        for h in range(size):
            for w in range(size):
                for i in range(-n, n + 1):
                    for j in range(-n, n + 1):
                        if 0 <= h + i < size and 0 <= w + j < size:
                            a = module.weight[c, 0, i + n, j + n]
                            expected[0, c, h, w] += a * x[0, c, h + i, w + j].clamp(min=0)
    expected = expected / (1 + 1e-6) ** 0.5 + module.bn.bias[:, None, None]
    torch.testing.assert_close(module(x), expected)


def test_initial_weights_follow_the_seed(small: Architecture) -> None:
    drawn: list[dict[str, Tensor]] = []
    for seed in (0, 0, 1):
        network = VanillaNet(small)
        initialize(network, generator=torch.Generator().manual_seed(seed))
        drawn.append(network.state_dict())
    same, equal, other = drawn
    assert all(torch.equal(same[n], equal[n]) for n in same)
    assert not torch.equal(same["stem1.0.weight"], other["stem1.0.weight"])
    assert float(same["stages.1.conv2.0.weight"].std()) == pytest.approx(0.02, rel=0.2)
    assert float(same["stem2.2.weight"].std()) == pytest.approx(0.02, rel=0.2)
    assert not same["stages.1.conv2.0.bias"].any()


def test_deploy_names_of_last_convolutions(small: Architecture) -> None:
    last = ("stem2.0", "stem2.2", "stages.0.conv2.0", "stages.0.act", "stages.1.conv2.0")
    renamed = {deploy_name(m) for m in (*last, "stages.1.act", "cls2.0")}
    convolutions = {n.removesuffix(".weight") for n in deploy_names(2) if n.endswith("weight")}
    assert renamed == convolutions
    assert {deploy_name(m) for m in convolutions} == convolutions
