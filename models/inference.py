"""Which VanillaNet a state dict is: what its shapes tell, and what only ``args`` can tell.

Widths, kernel sizes and classes stand in the shapes. Strides and pooling do not, so they come from
``args`` (a published name, or the fields that ``vntools train`` writes) or from the one published
architecture with these widths.
"""

from __future__ import annotations

__all__ = ["Arguments", "Form", "form_of", "infer", "read_arguments"]

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal

from torch import Tensor

from vntools.base.errors import DataFault, UsageFault, VntoolsError, first_three
from vntools.models.arch import ARCHITECTURES, Architecture, Preprocessing
from vntools.models.schedule import Schedule

Form = Literal["training", "deploy"]

_TRAINING_KEY = re.compile(r"(stem[12]|cls[12]|stages\.\d+\.(conv[12]|act\.bn))\.")
_DEPLOY_KEY = re.compile(r"(stem|cls|stages\.\d+\.conv)\.|stages\.\d+\.act\.bias$")
_STAGE = re.compile(r"stages\.(\d{1,6})\.")
# Tensors whose shapes give the stem, its activation, a block's output and the classes.
_TELLING: dict[Form, tuple[str, str, str, str]] = {
    "training": ("stem1.0", "stem2.2", "stages.{}.conv2.0", "cls2.0"),
    "deploy": ("stem.0", "stem.1", "stages.{}.conv", "cls.2"),
}


@dataclass(frozen=True)
class Arguments:
    """The fields of a file's ``args`` that are read, each None where absent.

    The first group is the released format's; the second is what ``vntools train`` adds.
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
        """How lambda grew; linear unless the file says otherwise."""
        return "cosine" if self.decay_linear is False else "linear"

    def preprocessing(self, arch: Architecture) -> Preprocessing:
        """What the images go through; ImageNet's unless the file says otherwise."""
        size, ratio = arch.image_size, arch.crop_ratio
        if self.mean is None or self.std is None:
            return Preprocessing(size, ratio)
        (m0, m1, m2), (s0, s1, s2) = self.mean, self.std
        return Preprocessing(size, ratio, (m0, m1, m2), (s0, s1, s2))


_SCALARS = {"str": str, "int": int, "bool": bool, "float": float}


def read_arguments(content: object) -> Arguments:
    """The known fields of ``content["args"]``; the types are checked, nothing else is looked at.

    Raises:
        DataFault: ``ckpt.args``, a field of another type than the released format's.
    """
    held = content.get("args") if isinstance(content, Mapping) else None
    values = vars(held) if type(held) is argparse.Namespace else held
    if type(values) is not dict:
        return Arguments()
    found: dict[str, object] = {"present": True}
    for field in fields(Arguments)[1:]:
        value = values.get(field.name)
        if value is None:
            continue
        kind = str(field.type).removesuffix(" | None")
        many = kind.startswith("tuple")
        scalar = _SCALARS[kind[6:].split(",")[0] if many else kind]
        items = tuple(value) if many and type(value) in (tuple, list) else (value,)
        if (many and value is items) is None or any(type(v) is not scalar for v in items):
            raise DataFault("ckpt.args", f"args.{field.name} is not {kind}")
        found[field.name] = items if many else value
    return Arguments(**found)  # pyright: ignore[reportArgumentType]
