"""What a checkpoint holds: keys, forms, architecture, lambda, and faulty weights."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vntools.base.errors import DataFault, UsageFault, VntoolsError
from vntools.models.arch import ARCHITECTURES, Architecture
from vntools.models.checkpoint import load_checkpoint, require_merged, to_module
from vntools.models.inference import Arguments, form_of, infer
from vntools.models.vanillanet import DeployVanillaNet, VanillaNet

Files = Callable[..., Path]


def error(path: Path, **options: Any) -> VntoolsError:
    with pytest.raises(VntoolsError) as caught:
        load_checkpoint(path, **options)
    assert str(path) in caught.value.line()
    return caught.value


# The released format


def test_a_released_file_loads_as_it_is(
    checkpoint_file: Files, network: Callable[..., nn.Module], small: Architecture
) -> None:
    checkpoint = load_checkpoint(
        checkpoint_file(optimizer={"state": {}, "lr": 0.1}, scaler=None)
    )
    assert checkpoint.arch == small
    assert checkpoint.form == "training"
    assert checkpoint.key_used == "model"
    assert checkpoint.lambda_.value == 1
    assert checkpoint.warnings == ()
    expected = network().state_dict()
    assert set(checkpoint.state) == {n for n in expected if "num_batches" not in n}
    assert all(torch.equal(t, expected[n]) for n, t in checkpoint.state.items())
    require_merged(checkpoint)


def test_the_module_computes_what_was_saved(
    checkpoint_file: Files, network: Callable[..., nn.Module]
) -> None:
    x = torch.randn(3, 3, 32, 32, generator=torch.manual_seed(0))
    for deploy, kind in ((False, VanillaNet), (True, DeployVanillaNet)):
        module = to_module(load_checkpoint(checkpoint_file(deploy=deploy)))
        assert isinstance(module, kind)
        assert not module.training
        assert not any(t.is_meta for t in module.state_dict().values())
        with torch.no_grad():
            torch.testing.assert_close(module(x), network(deploy=deploy)(x), rtol=0, atol=0)


def test_the_averaged_weights_are_preferred(
    checkpoint_file: Files, network: Callable[..., nn.Module]
) -> None:
    average = network(seed=1).state_dict()
    path = checkpoint_file(model_ema=average)
    checkpoint = load_checkpoint(path)
    assert checkpoint.key_used == "model_ema"
    assert "using 'model_ema' (also present: 'model')" in checkpoint.notes
    assert torch.equal(checkpoint.state["stem1.0.weight"], average["stem1.0.weight"])
    other = load_checkpoint(path, key="model")
    assert other.key_used == "model"
    assert not torch.equal(other.state["stem1.0.weight"], average["stem1.0.weight"])


@pytest.mark.parametrize("key", ["state_dict", "module", "teacher"])
def test_other_keys(
    key: str, checkpoint_file: Files, network: Callable[..., nn.Module]
) -> None:
    path = checkpoint_file(model=..., **{key: network().state_dict()})
    if key == "teacher":
        assert "--key names one of: teacher" in error(path).line()
    checkpoint = load_checkpoint(path, key="teacher" if key == "teacher" else None)
    assert checkpoint.key_used == key


def test_a_key_that_is_not_there(checkpoint_file: Files) -> None:
    for key in ("model_ema", "epoch", "args"):
        fault = error(checkpoint_file(), key=key)
        assert (fault.code, fault.exit_status) == ("ckpt.key", 2)
        assert "present: model" in fault.message


def test_a_bare_state_dict(save: Files, network: Callable[..., nn.Module]) -> None:
    state = OrderedDict(network().state_dict())
    fault = error(save(state))
    assert (fault.code, fault.exit_status) == ("ckpt.arch", 65)  # nothing tells the strides


@pytest.mark.parametrize(
    "content", [[1], {"epoch": 3}, {}, {"model": {"a": 1}}, {"model": None}]
)
def test_a_file_without_weights(content: object, save: Files) -> None:
    assert error(save(content)).code == "ckpt.format"


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_prefixes_are_dropped(
    prefix: str, checkpoint_file: Files, network: Callable[..., nn.Module]
) -> None:
    state = {prefix + n: t for n, t in network().state_dict().items()}
    checkpoint = load_checkpoint(checkpoint_file(model=state))
    assert "stem1.0.weight" in checkpoint.state
    assert sum("dropped the prefix" in note for note in checkpoint.notes) == prefix.count(".")


def test_a_prefix_on_some_keys_is_refused(checkpoint_file: Files) -> None:
    path = checkpoint_file(
        edit=lambda s: s.update({"module.cls2.0.bias": s.pop("cls2.0.bias")})
    )
    fault = error(path)
    assert fault.code == "ckpt.keys"
    assert "only some keys have the prefix 'module.'" in fault.message


# Types


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_become_float32(
    dtype: torch.dtype, checkpoint_file: Files, network: Callable[..., nn.Module]
) -> None:
    state = network().to(dtype).state_dict()
    checkpoint = load_checkpoint(checkpoint_file(model=state))
    assert {t.dtype for t in checkpoint.state.values()} == {torch.float32}
    name = str(dtype).removeprefix("torch.")
    assert f"converted {name} weights to float32" in checkpoint.notes
    assert all(torch.equal(t, state[n].float()) for n, t in checkpoint.state.items())


def test_a_double_beyond_float32_is_refused(checkpoint_file: Files) -> None:
    def edit(state: dict[str, Tensor]) -> None:
        state["cls2.0.bias"] = torch.full((5,), 1e39, dtype=torch.float64)

    fault = error(checkpoint_file(edit=edit))
    assert fault.code == "ckpt.overflow"
    assert "cls2.0.bias (5)" in fault.message


def test_large_finite_values_are_not_taken_for_infinite(checkpoint_file: Files) -> None:
    path = checkpoint_file(edit=lambda s: s["cls2.0.bias"].fill_(3e38))
    assert load_checkpoint(path).state["cls2.0.bias"].isfinite().all()


def test_weights_are_contiguous_and_mapped(checkpoint_file: Files) -> None:
    def edit(state: dict[str, Tensor]) -> None:
        name = "stages.0.conv1.0.weight"
        state[name] = state[name].permute(1, 0, 2, 3).contiguous().permute(1, 0, 2, 3)
        state["cls2.0.bias"] = torch.arange(10.0)[::2]

    path = checkpoint_file(edit=edit)
    checkpoint = load_checkpoint(path)
    assert all(t.is_contiguous() for t in checkpoint.state.values())
    assert checkpoint.state["cls2.0.bias"].tolist() == [0, 2, 4, 6, 8]
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in lines if line.endswith(str(path))]

    def mapped(tensor: Tensor) -> bool:
        return any(int(a, 16) <= tensor.data_ptr() < int(b, 16) for a, b in spans)

    copied = {n for n, t in checkpoint.state.items() if not mapped(t)}
    assert copied == {"stages.0.conv1.0.weight", "cls2.0.bias"}


def test_parameters_and_shared_storage(
    checkpoint_file: Files, network: Callable[..., nn.Module]
) -> None:
    flat = torch.arange(8.0)
    state: dict[str, Any] = dict(network().named_parameters())
    state |= {n: b for n, b in network().named_buffers() if "num_batches" not in n}
    state |= {"stem1.1.bias": flat, "stem1.1.running_mean": flat}
    checkpoint = load_checkpoint(checkpoint_file(model=state))
    assert checkpoint.state["stem1.1.bias"].tolist() == flat.tolist()
    assert not checkpoint.state["stem1.0.weight"].requires_grad


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (torch.zeros(5, dtype=torch.int64), "ckpt.tensor"),
        (torch.zeros(1).expand(1 << 40), "ckpt.tensor"),
        (torch.zeros(1).as_strided((5,), (0,)), "ckpt.tensor"),
        (0.5, "ckpt.keys"),
        (None, "ckpt.keys"),
    ],
)
def test_entries_that_are_no_weights(value: object, code: str, checkpoint_file: Files) -> None:
    path = checkpoint_file(edit=lambda s: s.update({"cls2.0.bias": value}))
    fault = error(path)
    assert (fault.code, fault.exit_status) == (code, 65)
    assert "cls2.0.bias" in fault.message


@pytest.mark.parametrize("key", [3, "a b", "x\x1b[31m", "k" * 201, ""])
def test_keys_that_name_nothing(key: object, checkpoint_file: Files) -> None:
    fault = error(checkpoint_file(edit=lambda s: s.update({key: torch.zeros(1)})))
    assert fault.code == "ckpt.keys"
    assert "\x1b" not in fault.line()


# Strict names, shapes and values


def drop(*names: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: [state.pop(n) for n in names]


def test_missing_weights_are_named(checkpoint_file: Files) -> None:
    names = ("cls1.2.weight", "stages.1.act.weight", "stem2.1.bias", "stem1.1.running_var")
    fault = error(checkpoint_file(edit=drop(*names)))
    assert fault.code == "ckpt.keys"
    assert fault.message.startswith("4 missing: ")
    assert fault.message.endswith(" and 1 more")


@pytest.mark.parametrize("name", ["stem1.0.weight", "stem2.2.weight", "cls2.0.weight"])
def test_a_missing_weight_that_tells_the_shape(name: str, checkpoint_file: Files) -> None:
    assert f"1 missing: {name}" in error(checkpoint_file(edit=drop(name))).message


def test_unexpected_weights_are_named(checkpoint_file: Files) -> None:
    fault = error(checkpoint_file(edit=lambda s: s.update(extra=torch.zeros(1))))
    assert (fault.code, fault.message) == ("ckpt.keys", "1 unexpected: extra")


def test_misshapen_weights_are_named(checkpoint_file: Files) -> None:
    fault = error(checkpoint_file(edit=lambda s: s.update({"stem1.1.bias": torch.zeros(9)})))
    assert fault.code == "ckpt.shape"
    assert fault.message == "stem1.1.bias is (9,), expected (8,)"


@pytest.mark.parametrize("shape", [(8,), (8, 3, 4, 3), (0, 3, 4, 4)])
def test_a_stem_that_is_no_square_convolution(shape: Any, checkpoint_file: Files) -> None:
    path = checkpoint_file(edit=lambda s: s.update({"stem1.0.weight": torch.zeros(shape)}))
    assert error(path).code == "ckpt.shape"


def test_an_even_activation_kernel(checkpoint_file: Files) -> None:
    path = checkpoint_file(
        edit=lambda s: s.update({"stem2.2.weight": torch.zeros(8, 1, 6, 6)})
    )
    assert error(path).code == "ckpt.shape"


def test_a_gap_between_blocks(checkpoint_file: Files) -> None:
    def edit(state: dict[str, Tensor]) -> None:
        for name in [n for n in state if n.startswith("stages.0.")]:
            state.pop(name)

    assert "no block 0" in error(checkpoint_file(edit=edit)).message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite(value: float, checkpoint_file: Files) -> None:
    def edit(state: dict[str, Tensor]) -> None:
        state["cls2.0.bias"][1:3] = value
        state["stages.0.conv1.0.weight"][0, 0] = value

    fault = error(checkpoint_file(edit=edit))
    assert fault.code == "ckpt.nonfinite"
    assert "cls2.0.bias (2)" in fault.message
    assert "stages.0.conv1.0.weight (1)" in fault.message


def test_negative_variances(checkpoint_file: Files) -> None:
    path = checkpoint_file(edit=lambda s: s["stem1.1.running_var"][:3].fill_(-1e-3))
    fault = error(path)
    assert fault.code == "ckpt.variance"
    assert "stem1.1.running_var (3)" in fault.message


def test_tiny_variances_are_warned_of(checkpoint_file: Files) -> None:
    path = checkpoint_file(edit=lambda s: s["stem1.1.running_var"][:3].fill_(0))
    ((code, text),) = load_checkpoint(path).warnings
    assert code == "ckpt.variance_small"
    assert text.startswith("3 channels")


# Form and architecture


def test_a_deploy_form(checkpoint_file: Files) -> None:
    checkpoint = load_checkpoint(checkpoint_file(deploy=True, epoch=3))
    assert checkpoint.form == "deploy"
    assert "already in deploy form" in checkpoint.notes
    assert checkpoint.lambda_.value is None
    require_merged(checkpoint)


def test_a_mix_of_both_forms(checkpoint_file: Files) -> None:
    path = checkpoint_file(edit=lambda s: s.update({"stages.1.conv.weight": torch.zeros(1)}))
    assert error(path).code == "ckpt.mixed"


def test_another_network(save: Files) -> None:
    fault = error(save({"model": {"layer1.0.conv1.weight": torch.zeros(1)}}))
    assert fault.code == "ckpt.arch"
    assert "layer1.0.conv1.weight" in fault.message


NO_ARGS = Arguments()


def inferred(arch: Architecture, args: Arguments = NO_ARGS, **options: Any) -> str:
    """The name that the shapes and ``args`` give, in the training and in the deploy form."""
    found: set[str] = set()
    for form in (VanillaNet, DeployVanillaNet):
        with torch.device("meta"):
            tensors = form(arch).state_dict()
        options = {"arch_name": None, "image_size": None} | options
        found.add(infer(tensors, form_of(tensors), args, **options)[0].name)
    (name,) = found
    return name


@pytest.mark.parametrize("arch", ARCHITECTURES.values(), ids=lambda a: a.name)
def test_published_architectures_are_known_by_their_shapes(arch: Architecture) -> None:
    if "x1_5" not in arch.name:
        assert inferred(arch) == arch.name
    else:
        with pytest.raises(UsageFault, match="vanillanet_13_x1_5_ada_pool") as caught:
            inferred(arch)
        assert caught.value.code == "ckpt.arch_unknown"
        assert inferred(arch, arch_name=arch.name) == arch.name
        assert inferred(arch, Arguments(model=arch.name)) == arch.name


def test_arch_wins_over_args() -> None:
    arch = ARCHITECTURES["vanillanet_13_x1_5"]
    args = Arguments(model="vanillanet_13_x1_5_ada_pool")
    assert inferred(arch, args, arch_name=arch.name) == arch.name


@pytest.mark.parametrize(
    ("args", "options", "kind"),
    [
        (Arguments(model="vanillanet_6"), {}, DataFault),
        (Arguments(), {"arch_name": "vanillanet_6"}, DataFault),
        (Arguments(act_num=4), {}, DataFault),
        (Arguments(), {"arch_name": "resnet_50"}, UsageFault),
        (Arguments(), {"image_size": 16}, UsageFault),
        (Arguments(input_size=16), {}, DataFault),
        (Arguments(dims=(8, 8), strides=(1,)), {}, DataFault),
        (Arguments(dims=(8, 8), strides=(1, 1)), {}, DataFault),
    ],
)
def test_contradictions_are_refused(
    args: Arguments, options: dict[str, Any], kind: type[VntoolsError]
) -> None:
    arch = ARCHITECTURES["vanillanet_5"]
    assert inferred(arch, Arguments(model=arch.name, act_num=3, input_size=32)) == arch.name
    with pytest.raises(kind):
        inferred(arch, args, **options)


def test_an_image_too_small_for_the_pools_is_a_wrong_option() -> None:
    with pytest.raises(UsageFault, match="16") as e:
        inferred(ARCHITECTURES["vanillanet_5"], Arguments(), image_size=16)
    assert e.value.code == "ckpt.image_size"


def test_shapes_and_args_fill_in_the_rest(checkpoint_file: Files) -> None:
    args = {"stem_stride": 2, "stem_padding": 1, "adaptive": (3, 0), "input_size": 20}
    args |= {"crop_ratio": 1.0, "mean": (0.1, 0.2, 0.3), "std": (1.0, 2.0, 3.0)}
    checkpoint = load_checkpoint(checkpoint_file(args=args))
    arch, used = checkpoint.arch, checkpoint.preprocessing
    assert (arch.stem_kernel, arch.stem_stride, arch.stem_padding) == (4, 2, 1)
    assert (arch.adaptive, arch.num_classes, arch.image_size) == ((3, 0), 5, 20)
    assert (used.image_size, used.crop_ratio) == (20, 1.0)
    assert (used.mean, used.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))


def test_image_size_is_the_argument_else_that_of_args(checkpoint_file: Files) -> None:
    assert load_checkpoint(checkpoint_file()).arch.image_size == 32
    larger = load_checkpoint(checkpoint_file(), image_size=64)
    assert (larger.arch.image_size, larger.preprocessing.image_size) == (64, 64)


def test_num_classes_must_be_those_of_the_head(checkpoint_file: Files) -> None:
    assert load_checkpoint(checkpoint_file(), num_classes=5).arch.num_classes == 5
    fault = error(checkpoint_file(), num_classes=1000)
    assert (fault.code, fault.message) == ("ckpt.classes", "its head has 5 outputs, not 1000")


@pytest.mark.parametrize(
    "wrong",
    [
        {"decay_epochs": 100.0},
        {"decay_epochs": -1},
        {"decay_linear": 1},
        {"act_num": "3"},
        {"act_num": True},
        {"dims": 8},
        {"dims": (8, 12.0, 16)},
        {"mean": (0.5, 0.5)},
        {"std": (1.0, 1.0, 0.0)},
        {"std": (1.0, 1.0, float("nan"))},
        {"crop_ratio": 0.0},
        {"model": ["vanillanet_5"]},
    ],
)
def test_args_of_another_kind_are_refused(
    wrong: dict[str, Any], checkpoint_file: Files
) -> None:
    fault = error(checkpoint_file(args=wrong))
    assert fault.code == "ckpt.args"
    assert f"args.{next(iter(wrong))}" in fault.message


def test_args_may_be_a_dict_and_hold_anything_else(
    save: Files,
    network: Callable[..., nn.Module],
    namespace: Callable[..., argparse.Namespace],
) -> None:
    args = vars(namespace(device="cuda", lr=0.1, nested=[{"a": None}], model=None, mean=None))
    path = save({"model": network().state_dict(), "epoch": 100, "args": args})
    assert load_checkpoint(path).args.act_num == 3


# lambda


@pytest.mark.parametrize(
    ("epoch", "args", "value"),
    [
        (100, {}, 1.0),
        (99, {}, 0.99),
        (40, {}, 0.4),
        (40, {"decay_linear": True}, 0.4),
        (40, {"decay_linear": False}, 0.3454915),
        (40, {"decay_epochs": 0}, 1.0),
        (40, {"decay_epochs": ...}, 1.0),
    ],
)
def test_lambda_is_worked_out(
    epoch: int, args: dict[str, Any], value: float, checkpoint_file: Files
) -> None:
    checkpoint = load_checkpoint(checkpoint_file(epoch=epoch, args=args))
    assert checkpoint.lambda_.value == pytest.approx(value)
    assert checkpoint.warnings == ()
    module: Any = to_module(checkpoint)
    assert module.cls_fade.activation_lambda == pytest.approx(value)


def test_a_network_in_deep_training_is_not_merged(checkpoint_file: Files) -> None:
    checkpoint = load_checkpoint(checkpoint_file(epoch=40))
    with pytest.raises(DataFault) as caught:
        require_merged(checkpoint)
    assert caught.value.code == "ckpt.lambda"
    assert "epoch 40 of decay_epochs 100: lambda = 0.4" in caught.value.line()
    assert "--no-merge" in caught.value.hint


def test_lambda_just_below_1_is_not_rounded_to_1(checkpoint_file: Files) -> None:
    checkpoint = load_checkpoint(checkpoint_file(epoch=99_999, args={"decay_epochs": 100_000}))
    with pytest.raises(DataFault, match="lambda = 1 - 1e-05, "):
        require_merged(checkpoint)


@pytest.mark.parametrize("epoch", [..., "best", "best-ema"])
def test_an_unknown_lambda_is_assumed_and_warned_of(
    epoch: object, checkpoint_file: Files
) -> None:
    checkpoint = load_checkpoint(checkpoint_file(epoch=epoch))
    assert checkpoint.lambda_.assumed
    assert [code for code, _ in checkpoint.warnings] == ["ckpt.lambda_assumed"]
    require_merged(checkpoint)
