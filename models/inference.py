"""Which VanillaNet a state dict is: what its shapes tell, and what only ``args`` can tell.

Widths, kernel sizes and classes stand in the shapes. Strides and pooling do not, so they come
from ``args`` (a published name, or the fields that ``vntools train`` writes) or from the one
published architecture with these widths.
"""

from __future__ import annotations

__all__ = ["ARGUMENTS", "Arguments", "Form", "form_of", "infer", "read_arguments"]

import argparse
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal, TypeVar, cast

from torch import Tensor

from vntools.base.errors import DataFault, UsageFault, first_three
from vntools.models.arch import ARCHITECTURES, Architecture, Preprocessing
from vntools.models.schedule import Schedule

Form = Literal["training", "deploy"]
_T = TypeVar("_T", bool, int, float, str)

_MAX_NAME = 200  # characters
# What a file may ask for without the user's word, because the network will be run: values of a
# feature map, as many as there are weights but at least few, and multiply-accumulates.
_FEW_VALUES, _MAX_VALUES, _MAX_MACS = 1 << 21, 1 << 25, 1 << 38
_TRAINING_KEY = re.compile(r"(stem[12]|cls[12]|stages\.\d+\.(conv[12]|act\.bn))\.")
_DEPLOY_KEY = re.compile(r"(stem|cls|stages\.\d+\.conv)\.|stages\.\d+\.act\.bias$")
_STAGE = re.compile(r"stages\.(\d{1,6})\.")
# Modules whose weights' shapes tell the stem, its activation, a block's output, the classes.
_TELLING: dict[Form, tuple[str, str, str, str]] = {
    "training": ("stem1.0", "stem2.2", "stages.{}.conv2.0", "cls2.0"),
    "deploy": ("stem.0", "stem.1", "stages.{}.conv", "cls.2"),
}


@dataclass(frozen=True)
class Arguments:
    """The fields of a file's ``args`` that are read, each None where absent.

    The first group is the released format's, the second what ``vntools train`` adds to it.
    """

    present: bool = False
    model: str | None = None
    decay_epochs: int | None = None
    decay_linear: bool | None = None
    act_num: int | None = None
    input_size: int | None = None

    dims: tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None
    adaptive: tuple[int, ...] | None = None
    stem_stride: int | None = None
    stem_padding: int | None = None
    crop_ratio: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def schedule(self) -> Schedule:
        """How lambda grew; linear, as in Eq. 1, unless the file says otherwise."""
        return "cosine" if self.decay_linear is False else "linear"

    def preprocessing(self, arch: Architecture) -> Preprocessing:
        """What images go through; mean and std are ImageNet's unless the file says other."""
        plain = Preprocessing(arch.image_size, self.crop_ratio or arch.crop_ratio)
        if self.mean is None or self.std is None:
            return plain
        (m0, m1, m2), (s0, s1, s2) = self.mean, self.std
        return replace(plain, mean=(m0, m1, m2), std=(s0, s1, s2))


ARGUMENTS = frozenset(f.name for f in fields(Arguments)) - {"present"}
"""The names of the fields of ``args`` that are read."""


def read_arguments(held: object) -> Arguments:
    """The known fields of a file's ``args``; nothing else of it is looked at.

    Args:
        held: an argparse.Namespace or a dict; of anything else nothing is read.

    Raises:
        DataFault: ``ckpt.args``, a field of a type or value that the format does not have.
    """
    values = vars(held) if type(held) is argparse.Namespace else held
    if type(values) is not dict:
        return Arguments()
    known = cast("dict[object, object]", values)

    def one(name: str, kind: type[_T]) -> _T | None:
        value = known.get(name)
        if value is None or type(value) is kind:
            return value
        raise DataFault("ckpt.args", f"args.{name} is no {kind.__name__}")

    def many(name: str, kind: type[_T]) -> tuple[_T, ...] | None:
        value = known.get(name)
        if value is None:
            return None
        if type(value) in (tuple, list):
            items = tuple(cast("list[object]", value))
            if all(type(v) is kind for v in items) and len(items) < 10000:
                return cast("tuple[_T, ...]", items)
        raise DataFault("ckpt.args", f"args.{name} is no sequence of {kind.__name__}")

    return _plausible(
        Arguments(
            present=True,
            model=one("model", str),
            decay_epochs=one("decay_epochs", int),
            decay_linear=one("decay_linear", bool),
            act_num=one("act_num", int),
            input_size=one("input_size", int),
            dims=many("dims", int),
            strides=many("strides", int),
            adaptive=many("adaptive", int),
            stem_stride=one("stem_stride", int),
            stem_padding=one("stem_padding", int),
            crop_ratio=one("crop_ratio", float),
            mean=many("mean", float),
            std=many("std", float),
        )
    )


def _plausible(args: Arguments) -> Arguments:
    """``args``, if its numbers can be meant."""
    if args.model is not None and len(args.model) > _MAX_NAME:
        raise DataFault("ckpt.args", f"args.model has {len(args.model)} characters")
    if args.decay_epochs is not None and args.decay_epochs < 0:
        raise DataFault("ckpt.args", f"args.decay_epochs is {args.decay_epochs}")
    if args.crop_ratio is not None and not 0 < args.crop_ratio <= 1:
        raise DataFault("ckpt.args", f"args.crop_ratio is {args.crop_ratio}, not in (0, 1]")
    for name, values in (("mean", args.mean), ("std", args.std)):
        if values is not None and (len(values) != 3 or not all(map(math.isfinite, values))):
            raise DataFault("ckpt.args", f"args.{name} is not three finite numbers")
    if args.std is not None and min(args.std) <= 0:
        raise DataFault("ckpt.args", "args.std has a channel that is not positive")
    return args


@dataclass(frozen=True)
class _Told:
    """What the shapes alone say."""

    dims: tuple[int, ...]
    stem_kernel: int
    activation_n: int
    num_classes: int

    def fits(self, arch: Architecture) -> bool:
        return self.dims == arch.dims and self.stem_kernel == arch.stem_kernel

    def __str__(self) -> str:
        dims = " ".join(map(str, self.dims[:16]))
        return f"{len(self.dims) - 1} blocks with dims {dims}"


def form_of(tensors: Mapping[str, Tensor]) -> Form:
    """Training or deploy form, by the names.

    Raises:
        DataFault: names of both (``ckpt.mixed``) or of neither (``ckpt.arch``).
    """
    training = [n for n in tensors if _TRAINING_KEY.match(n)]
    deploy = [n for n in tensors if _DEPLOY_KEY.match(n)]
    if training and deploy:
        raise DataFault(
            "ckpt.mixed",
            f"has keys of the training form ({training[0]}) and the deploy form ({deploy[0]})",
            hint="merge all layers or none; vntools merges them itself",
        )
    if not training and not deploy:
        raise DataFault("ckpt.arch", f"is not a VanillaNet: {first_three(tensors)}")
    return "training" if training else "deploy"


def infer(
    tensors: Mapping[str, Tensor],
    form: Form,
    args: Arguments,
    *,
    arch_name: str | None,
    image_size: int | None,
) -> tuple[Architecture, str]:
    """The architecture of a state dict, and how it was found.

    Raises:
        UsageFault: ``ckpt.arch_unknown``: several architectures fit, or ``arch_name`` is none
            of the published; ``ckpt.image_size``: too small for this network.
        DataFault: ``ckpt.arch``, ``ckpt.keys``, ``ckpt.shape`` or ``ckpt.args``: the shapes
            are not those of a VanillaNet, or ``args`` says otherwise or cannot be meant.
    """
    told = _tell(tensors, form)
    base, why = _base(told, args, arch_name)
    if args.act_num is not None and args.act_num != told.activation_n:
        raise DataFault(
            "ckpt.arch",
            f"its activations have n = {told.activation_n}, its args say {args.act_num}",
        )
    try:
        arch = replace(
            base,
            activation_n=told.activation_n,
            num_classes=told.num_classes,
            image_size=image_size or args.input_size or base.image_size,
        )
        _check_cost(arch, told_by_file=image_size is None)
    except ValueError as e:
        if image_size is not None:
            raise UsageFault("ckpt.image_size", str(e)) from e
        raise DataFault("ckpt.args", str(e)) from e
    return arch, f"architecture {arch.name} ({why})"


def _check_cost(arch: Architecture, *, told_by_file: bool) -> None:
    """Refuse maps that a small file cannot mean, whose memory is not in proportion to it.

    Raises:
        ValueError: what they are.
    """
    sizes, image = arch.map_sizes(), arch.image_size
    if max(sizes) > image:
        raise ValueError(f"maps of {max(sizes)} pixels, larger than the image of {image}")
    values = max(3 * image**2, *(s**2 * d for s, d in zip(sizes, arch.dims, strict=True)))
    fitting = min(max(_FEW_VALUES, arch.deploy_parameters()), _MAX_VALUES)
    if told_by_file and (values > fitting or arch.training_macs() > _MAX_MACS):
        raise ValueError(
            f"images of {image} pixels, with maps of {values} values; --image-size {image} "
            "if that is meant"
        )


def _tell(tensors: Mapping[str, Tensor], form: Form) -> _Told:
    def shape(module: str) -> tuple[int, int, int, int]:
        name = f"{module}.weight"
        if name not in tensors:
            raise DataFault("ckpt.keys", f"1 missing: {name}")
        found = tuple(tensors[name].shape)
        if len(found) != 4 or min(found) < 1 or found[2] != found[3]:
            raise DataFault("ckpt.shape", f"{name} is {found}, not a square convolution")
        return found[0], found[1], found[2], found[3]

    stem, activation, block, head = _TELLING[form]
    indices = {int(m[1]) for n in tensors if (m := _STAGE.match(n))}
    if indices != set(range(len(indices))):
        gap = next(i for i in range(len(indices)) if i not in indices)
        raise DataFault("ckpt.keys", f"has a block {max(indices)} but no block {gap}")
    if not indices:
        raise DataFault("ckpt.arch", "has no blocks (stages.0...)")
    kernel = shape(activation)[2]
    if kernel % 2 == 0:
        raise DataFault("ckpt.shape", f"{activation}.weight has an even kernel of {kernel}")
    return _Told(
        dims=(shape(stem)[0], *(shape(block.format(i))[0] for i in range(len(indices)))),
        stem_kernel=shape(stem)[2],
        activation_n=kernel // 2,
        num_classes=shape(head)[0],
    )


def _base(told: _Told, args: Arguments, arch_name: str | None) -> tuple[Architecture, str]:
    """The architecture that ``--arch``, ``args`` or the widths name, and which did."""
    if arch_name is not None:
        if arch_name not in ARCHITECTURES:
            what = f"--arch {arch_name} is no published architecture"
            raise UsageFault("ckpt.arch_unknown", what, hint="vntools models lists them")
        said = args.model not in (None, arch_name)
        why = f"--arch, against args.model {args.model}" if said else "--arch"
        return _fitting(ARCHITECTURES[arch_name], told, "--arch"), why
    if args.dims is not None and args.strides is not None:
        return _fitting(_custom(args, told), told, "args"), "dims and strides in args"
    if args.model in ARCHITECTURES:
        named = ARCHITECTURES[args.model]
        return _fitting(named, told, f"args.model {args.model}"), "args.model"
    candidates = [a for a in ARCHITECTURES.values() if told.fits(a)]
    if not candidates:
        raise DataFault("ckpt.arch", f"is not a published VanillaNet: {told}")
    if len(candidates) > 1:
        names = " or ".join(a.name for a in candidates)
        raise UsageFault("ckpt.arch_unknown", f"fits {names}", hint="say which with --arch")
    return candidates[0], "by its widths"


def _fitting(arch: Architecture, told: _Told, whose: str) -> Architecture:
    if told.fits(arch):
        return arch
    wanted = _Told(arch.dims, arch.stem_kernel, arch.activation_n, arch.num_classes)
    raise DataFault("ckpt.arch", f"the weights have {told}; {whose}: {wanted}")


def _custom(args: Arguments, told: _Told) -> Architecture:
    """An architecture of the widths and strides that ``vntools train`` wrote into ``args``."""
    plain = ARCHITECTURES["vanillanet_5"]
    stride = plain.stem_stride if args.stem_stride is None else args.stem_stride
    try:
        return Architecture(
            name=args.model or "vanillanet",
            dims=args.dims or (),
            strides=args.strides or (),
            stem_kernel=told.stem_kernel,
            stem_stride=stride,
            stem_padding=args.stem_padding or 0,
            adaptive=args.adaptive or (),
            crop_ratio=args.crop_ratio or plain.crop_ratio,
        )
    except ValueError as e:
        raise DataFault("ckpt.args", str(e)) from e
