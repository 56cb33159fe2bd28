"""Networks that are trained wide and deployed narrow, in miniature: both forms, and as ONNX.

Every case is made from a seed, so ``train`` and ``deploy`` hold the same weights.
"""

from __future__ import annotations

__all__ = ["CASES", "Case", "Exporter", "export_bytes"]

import io
import logging
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from tests.zoo import attention as a
from tests.zoo import convolutional as c
from tests.zoo import mixers as m
from tests.zoo.parts import ConvNorm, conv, deployed, norm, seeded

Exporter = Literal["dynamo", "dynamo-optimized", "torchscript", "torchscript-unfolded"]
"""dynamo: BatchNormalization kept, constants not folded. torchscript-unfolded: the same."""

Build = Callable[[], nn.Module]


@dataclass(frozen=True)
class Case:
    """A block or a small network.

    Attributes:
        name: unique.
        build: the training form, any weights.
        input_shape: (n, c, ..) of an example, n being 2.
        dynamic: whether height and width may change; the batch always may.
        floor: operators of which exact algebra leaves fewer than the authors and onnxsim do,
            and how many it leaves.
    """

    name: str
    build: Build
    input_shape: tuple[int, ...]
    dynamic: bool
    floor: Mapping[str, int] = field(default_factory=dict[str, int])

    def train(self) -> nn.Module:
        """The training form in eval mode, float32."""
        return seeded(self.build(), zlib.crc32(self.name.encode()))

    def deploy(self) -> nn.Module:
        """The author's deploy form of the same weights, made and held in float64."""
        return deployed(self.train().double()).eval()


def export_bytes(
    module: nn.Module, case: Case, how: Exporter, *, opset: int = 20, fixed: bool = False
) -> bytes:
    """``module`` in float32 as an ONNX file, its input ``x`` and its output ``y``.

    Sizes are dynamic as the case has them, unless ``fixed``. TorchScript writes opsets 7 to
    20; dynamo those from 18.
    """
    module = module.float()
    example = torch.zeros(case.input_shape)
    axes = [0, *(range(2, example.ndim) if case.dynamic else ())]
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            if how in ("dynamo", "dynamo-optimized"):
                sizes = dict.fromkeys(axes, torch.export.Dim.DYNAMIC)
                program = torch.onnx.export(
                    module,
                    (example,),
                    dynamo=True,
                    optimize=how == "dynamo-optimized",
                    dynamic_shapes=None if fixed else (sizes,),
                    input_names=["x"],
                    output_names=["y"],
                    opset_version=opset,
                    verbose=False,
                )
                assert program is not None  # a file name would have made it None
                return program.model_proto.SerializeToString()
            names = {axis: f"size{axis}" for axis in axes}
            file: Any = io.BytesIO()  # typed as a path, in error
            raw = how == "torchscript-unfolded"
            mode = torch.onnx.TrainingMode
            torch.onnx.export(
                module,
                (example,),
                file,
                dynamo=False,
                training=mode.PRESERVE if raw else mode.EVAL,
                do_constant_folding=not raw,
                dynamic_axes={} if fixed else {"x": names},
                input_names=["x"],
                output_names=["y"],
                opset_version=opset,
            )
            return file.getvalue()
    finally:
        logging.disable(logging.NOTSET)


def _chain(*blocks: Build) -> Build:
    return lambda: nn.Sequential(*(block() for block in blocks))


def _case(
    name: str, build: Build, shape: tuple[int, ...], *, dynamic: bool = True, **floor: int
) -> Case:
    return Case(name, build, (2, *shape), dynamic, floor)


_P = partial
_ODD, _EVEN = (8, 13, 11), (8, 12, 14)
_CASES = (
    _case("repvgg", _P(c.rep_vgg, 8, 8), _ODD),
    _case("repvgg-wider", _P(c.rep_vgg, 8, 12), _EVEN),
    _case("repvgg-stride2", _P(c.rep_vgg, 8, 16, stride=2), _ODD),
    _case("repvgg-stride2-even", _P(c.rep_vgg, 8, 8, stride=2), _EVEN),
    _case("repvgg-grouped", _P(c.rep_vgg, 8, 8, groups=2), _EVEN),
    _case("repvgg-grouped-stride2", _P(c.rep_vgg, 8, 16, groups=4, stride=2), _ODD),
    _case("repvgg-1d", _P(c.rep_vgg, 8, 8, axes=1), (8, 17)),
    _case("repvgg-3d", _P(c.rep_vgg, 8, 8, axes=3), (8, 5, 6, 7)),
    _case(
        "repvgg-net",
        _chain(
            _P(c.rep_vgg, 3, 8, stride=2),
            _P(c.rep_vgg, 8, 8),
            _P(c.rep_vgg, 8, 16, groups=2, stride=2),
            _P(m.Pooled, nn.Linear(16, 10)),
        ),
        (3, 33, 32),
    ),
    _case("mobileone-pointwise", _P(c.mobile_one, 8, 8), _EVEN),
    _case("mobileone-depthwise", _P(c.mobile_one, 8, 8, 3, groups=8), _ODD),
    _case("mobileone-stride2", _P(c.mobile_one, 8, 8, 3, groups=8, stride=2), _EVEN),
    _case(
        "mobileone-net",
        _chain(
            _P(c.mobile_one, 3, 8, 3, stride=2, branches=1),
            _P(c.mobile_one, 8, 8, 3, groups=8),
            _P(c.mobile_one, 8, 8),
            _P(c.mobile_one, 8, 8, 3, groups=8, squeeze=True, branches=1),
            _P(c.mobile_one, 8, 16, squeeze=True, branches=2),
        ),
        (3, 21, 18),
    ),
    _case("acnet", _P(c.acnet, 8, 8), _ODD),
    _case("acnet-grouped-stride2", _P(c.acnet, 8, 16, groups=2, stride=2), _EVEN),
    _case("acnet-net", _chain(_P(c.acnet, 3, 8, stride=2), _P(c.acnet, 8, 8)), (3, 16, 17)),
    _case("dbb", _P(c.diverse_branch, 8, 12), _ODD),
    _case("dbb-stride2", _P(c.diverse_branch, 8, 8, stride=2), _EVEN),
    _case("dbb-grouped", _P(c.diverse_branch, 8, 8, groups=2), _EVEN),
    _case("dbb-depthwise", _P(c.diverse_branch, 8, 8, 5, groups=8), _ODD),
    _case("dbb-padded-input", _P(c.diverse_branch, 8, 8, padded_input=True), _ODD),
    _case(
        "dbb-net",
        _chain(_P(c.diverse_branch, 3, 8, stride=2), _P(c.diverse_branch, 8, 8)),
        (3, 17, 16),
    ),
    _case("replk", _P(c.rep_lk, 8), (8, 17, 16), BatchNormalization=0),
    _case("repghost", _P(c.rep_ghost, 8, 16, 8, squeeze=True), _ODD),
    _case("repghost-stride2", _P(c.rep_ghost, 8, 12, 16, stride=2), _EVEN),
    _case(
        "repghost-net",
        _chain(
            _P(ConvNorm, 3, 8, 3, stride=2),
            nn.ReLU,
            _P(c.rep_ghost, 8, 8, 8),
            _P(c.rep_ghost, 8, 12, 16, stride=2, squeeze=True),
        ),
        (3, 25, 24),
    ),
    _case("ghostv3", _P(c.ghost_v3, 8, 16), _ODD),
    _case("ghostv3-gated", _P(c.ghost_v3, 8, 12, gate=True), _EVEN),
    _case("lcnet", _P(c.lcnet, 8, 8), _ODD),
    _case("lcnet-stride2", _P(c.lcnet, 8, 16, stride=2), _EVEN),
    _case(
        "lcnet-net",
        _chain(
            _P(ConvNorm, 3, 8, 3, stride=2), nn.ReLU, _P(c.lcnet, 8, 8), _P(c.lcnet, 8, 8, 3)
        ),
        (3, 19, 22),
    ),
    _case("vanilla", _P(c.vanilla, 8, 16), _EVEN),
    _case(
        "vanilla-net",
        _chain(_P(c.vanilla, 3, 8, stem=True, pool=1), _P(c.vanilla, 8, 16)),
        (3, 32, 32),
    ),
    _case("repmixer", _P(m.rep_mixer, 8), _ODD),
    _case("repcpe", _P(m.rep_cpe, 8), _EVEN),
    _case("fastvit-attention", _P(a.self_attention, 8), (8, 5, 6), dynamic=False, Mul=1),
    _case(
        "fastvit-net",
        _chain(
            _P(c.mobile_one, 3, 8, 3, stride=2, branches=1),
            _P(m.rep_mixer, 8),
            _P(m.patch_embed, 8, 16),
            _P(m.rep_cpe, 16),
            _P(a.self_attention, 16),
        ),
        (3, 20, 20),
        dynamic=False,
        Mul=1,
    ),
    _case("repvit", _P(m.rep_vit, 8), _ODD),
    _case(
        "repvit-net",
        _chain(
            _P(ConvNorm, 3, 8, 3, stride=2),
            nn.GELU,
            _P(m.rep_vit, 8, squeeze=True),
            _P(m.rep_vit, 8),
            _P(m.Pooled, m.Distilled(8, 10)),
        ),
        (3, 18, 21),
    ),
    _case("distilled-head", _P(m.Distilled, 16, 10), (16,), dynamic=False),
    _case("norm-linear-head", _P(m.NormLinear, 16, 10), (16,), dynamic=False),
    _case("levit-attention", _P(a.levit_attention, 8, 9), (9, 8), dynamic=False, Mul=0),
    _case("levit-mlp", _P(a.levit_mlp, 8), (9, 8), dynamic=False),
    _case(
        "levit-net",
        _chain(
            _P(a.levit_attention, 8, 9),
            _P(a.levit_mlp, 8),
            _P(a.levit_attention, 8, 9, halve=True),
            _P(m.Pooled, m.Distilled(8, 10)),
        ),
        (9, 8),
        dynamic=False,
        Mul=0,
    ),
    _case(
        "levit-conv-net",
        _chain(_P(a.levit_attention, 8, 12, axes=2), _P(a.levit_mlp, 8, axes=2)),
        (8, 3, 4),
        dynamic=False,
        Mul=0,
    ),
    _case("efficientvit", _P(a.cascaded, 8, attention=False), _ODD, Add=1),
    _case(
        "efficientvit-net",
        _chain(_P(a.cascaded, 16), _P(m.Pooled, m.NormLinear(16, 10))),
        (16, 5, 6),
        dynamic=False,
        Add=3,
        Mul=0,
    ),
    _case("tinyvit-mbconv", _P(m.mb_conv, 8, 8), _ODD),
    _case(
        "tinyvit-net",
        _chain(
            _P(ConvNorm, 3, 8, 3, stride=2),
            nn.GELU,
            _P(m.mb_conv, 8, 8),
            _P(m.mb_conv, 8, 16, stride=2),
            _P(a.tiny_attention, 16),
        ),
        (3, 20, 16),
        dynamic=False,
    ),
    _case("iformer", _P(m.Blend, 8, 7, "towards"), _ODD),
    _case(
        "iformer-net",
        _chain(
            _P(ConvNorm, 3, 8, 5, stride=2),
            nn.GELU,
            _P(m.Blend, 8, 3, "towards"),
            nn.GELU,
            _P(m.rep_cpe, 8, 3),
        ),
        (3, 23, 20),
    ),
    _case("shvit", _P(a.sh_vit, 16), (16, 5, 6), dynamic=False),
    _case("efficientvim", _P(a.state_space, 8), (8, 5, 6), dynamic=False),
    _case("nextvit-conv", _P(m.next_conv, 8), _ODD),
    _case("nextvit-attention", _P(a.next_attention, 8), (8, 4, 6), dynamic=False, Mul=0),
    _case("nextvit-pooled", _P(a.next_attention, 8, 4), (8, 4, 6), dynamic=False),
    _case(
        "nextvit-net",
        _chain(
            _P(m.next_conv, 8),
            _P(conv, 8, 8),
            _P(a.next_attention, 8, 4),
            _P(m.Pooled, nn.Linear(8, 10), norm(8)),
        ),
        (8, 8, 6),
        dynamic=False,
        Mul=0,
        BatchNormalization=0,
    ),
    _case("lora-linear", _P(m.low_rank, 16, 12), (16,), dynamic=False),
    _case("lora-tokens", _P(m.low_rank, 16, 12), (5, 16), dynamic=False),
    _case("lora-conv", _P(m.low_rank, 8, 8, axes=2, kernel=3), _ODD),
    _case(
        "lora-net",
        _chain(_P(m.low_rank, 16, 32), nn.GELU, _P(m.low_rank, 32, 16)),
        (5, 16),
        dynamic=False,
    ),
)

CASES: Mapping[str, Case] = {case.name: case for case in _CASES}
"""By name."""
