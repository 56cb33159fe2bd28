"""Released-format checkpoints: which weights, which architecture, which lambda.

A file holds the weights under ``model_ema``, ``model``, ``state_dict`` or ``module``, or bare,
and often ``epoch`` and ``args``; a safetensors file holds them bare, and those fields in its
metadata. Only the chosen weights are read. Widths come from their shapes, strides from
``args`` or a published architecture; what does not agree is refused.
"""

from __future__ import annotations

__all__ = ["Checkpoint", "Form", "load_checkpoint", "require_merged", "to_module"]

import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from vntools.base.errors import DataFault, UsageFault, about, first_three
from vntools.models.arch import Architecture, Preprocessing
from vntools.models.archive import Archive, open_archive
from vntools.models.inference import (
    ARGUMENTS,
    Arguments,
    Form,
    form_of,
    infer,
    read_arguments,
)
from vntools.models.schedule import LambdaInfo, lambda_of
from vntools.models.vanillanet import DeployVanillaNet, VanillaNet

_WEIGHT_KEYS = ("model_ema", "model", "state_dict", "module")
_PREFIXES = ("module.", "_orig_mod.")
_COUNTER = ".num_batches_tracked"
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_NAME = re.compile(r"[A-Za-z0-9_.]{1,200}")
_TINY_VARIANCE = 1e-10


@dataclass(frozen=True)
class Checkpoint:
    """A network's weights, ready to use, and what the file says of them.

    Attributes:
        state: float32, contiguous, with the names of ``form``; mapped from the file where it
            holds them so. ``num_batches_tracked`` is left out.
        identity: see :func:`vntools.base.artifacts.identity`.
        key_used: the key whose weights these are; None where they lie bare in the file.
        args: the fields of the file's ``args`` that were read.
        notes: what was chosen or converted, for the user to read.
        warnings: (code, text) of what was assumed or looks odd.
    """

    path: Path
    identity: tuple[int, ...]
    arch: Architecture
    form: Form
    state: dict[str, Tensor]
    key_used: str | None
    lambda_: LambdaInfo
    preprocessing: Preprocessing
    args: Arguments
    notes: tuple[str, ...]
    warnings: tuple[tuple[str, str], ...]


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    key: str | None = None,
    arch: str | None = None,
    image_size: int | None = None,
    num_classes: int | None = None,
) -> Checkpoint:
    """Load a checkpoint in the released format, or a state dict alone, in either form.

    Args:
        path: a file that torch.save wrote, or a safetensors file.
        key: the weights to use, instead of ``model_ema`` or else ``model``.
        arch: name of the published architecture, where the file does not tell.
        image_size: pixels; else ``args.input_size``, else the architecture's.
        num_classes: what the head must have.

    Raises:
        NoInput, NoPermission: the file cannot be opened.
        UsageFault: ``ckpt.key`` (not in the file), ``ckpt.arch_unknown`` (the file
            fits several architectures), ``ckpt.image_size``.
        DataFault: the file is damaged (``vntools.models.archive``), or its weights are not
            those of one VanillaNet: ``ckpt.format``, ``ckpt.keys``, ``ckpt.tensor``,
            ``ckpt.mixed``, ``ckpt.arch``, ``ckpt.shape``, ``ckpt.classes``, ``ckpt.args``,
            ``ckpt.crc``, ``ckpt.nonfinite``, ``ckpt.overflow``, ``ckpt.variance``.
    """
    archive = open_archive(path, ARGUMENTS | {"epoch"})
    with about(path):
        return _interpret(archive, key, arch, image_size, num_classes)


def _interpret(
    archive: Archive,
    key: str | None,
    arch_name: str | None,
    image_size: int | None,
    num_classes: int | None,
) -> Checkpoint:
    content = _entries(archive.content)
    used, raw, notes = _choose(content, key)
    if archive.metadata is not None:
        # No released file: what it does not tell of deep training is not known.
        epoch = archive.metadata.get("epoch")
        args = replace(read_arguments(dict(archive.metadata)), present=False)
    else:
        epoch = content.get("epoch")
        args = read_arguments(content.get("args") if used is not None else None)
    tensors, stripped = _strip_prefixes(_check_tensors(raw))
    notes += [f"dropped the prefix {p!r} from every key" for p in stripped]
    form = form_of(tensors)
    arch, why = infer(tensors, form, args, arch_name=arch_name, image_size=image_size)
    if num_classes is not None and num_classes != arch.num_classes:
        raise DataFault(
            "ckpt.classes", f"its head has {arch.num_classes} outputs, not {num_classes}"
        )
    notes += [why] if form == "training" else [why, "already in deploy form"]
    # Without memory: the widths are the file's word until its shapes are known to agree.
    with torch.device("meta"):
        _check_names_and_shapes(tensors, _skeleton(arch, form))
    state, warnings = _read(archive, tensors)
    dtypes = {str(t.dtype).removeprefix("torch.") for t in tensors.values()} - {"float32"}
    if dtypes:
        notes.append(f"converted {' and '.join(sorted(dtypes))} weights to float32")
    lambda_ = _lambda_info(epoch, form, args)
    if lambda_.assumed:
        text = "the file does not say its epoch and decay_epochs; lambda is assumed to be 1"
        warnings.append(("ckpt.lambda_assumed", text))
    return Checkpoint(
        path=archive.path,
        identity=archive.identity,
        arch=arch,
        form=form,
        state=state,
        key_used=used,
        lambda_=lambda_,
        preprocessing=args.preprocessing(arch),
        args=args,
        notes=tuple(notes),
        warnings=tuple(warnings),
    )


def require_merged(checkpoint: Checkpoint) -> None:
    """Refuse a network whose fading activations are not yet the identity.

    Raises:
        DataFault: ``ckpt.lambda``.
    """
    info = checkpoint.lambda_
    if info.value is None or info.value == 1.0:
        return
    shown = f"{info.value:.4g}"
    if shown == "1":
        shown = f"1 - {1 - info.value:.1g}"
    raise DataFault(
        "ckpt.lambda",
        f"epoch {info.epoch} of decay_epochs {info.decay_epochs}: lambda = {shown}, "
        "so its convolutions cannot be merged yet",
        hint="--no-merge exports the network as it is",
        path=checkpoint.path,
    )


def to_module(checkpoint: Checkpoint) -> nn.Module:
    """The checkpoint's network in eval mode, sharing its weights' memory."""
    network = _skeleton(checkpoint.arch, checkpoint.form)
    if isinstance(network, VanillaNet) and checkpoint.lambda_.value is not None:
        network.set_lambda(checkpoint.lambda_.value)
    counters = {
        name: torch.zeros((), dtype=torch.int64)
        for name in network.state_dict()
        if name.endswith(_COUNTER)
    }
    network.load_state_dict(checkpoint.state | counters, assign=True)
    return network.eval().requires_grad_(False)


def _skeleton(arch: Architecture, form: Form) -> nn.Module:
    """The network, its weights' memory still untouched."""
    return VanillaNet(arch) if form == "training" else DeployVanillaNet(arch)


def _entries(held: object) -> dict[object, object]:
    """The items of a dict, whatever attributes the file has given it.

    Raises:
        DataFault: ``ckpt.format``, it is none.
    """
    if not isinstance(held, dict):
        raise DataFault("ckpt.format", "holds no dict of weights")
    return dict(dict.items(cast("dict[object, object]", held)))


def _choose(
    content: dict[object, object], key: str | None
) -> tuple[str | None, dict[object, object], list[str]]:
    """The key used (None for a bare state dict), the weights under it, and a note."""
    # Each dict once: a file may hold one under a million keys.
    dicts = {id(v): v for v in content.values() if isinstance(v, dict)}
    weights = {
        i for i, v in dicts.items() if any(isinstance(x, Tensor) for x in dict.values(v))
    }
    present = [k for k, v in content.items() if isinstance(k, str) and id(v) in weights]
    if key is not None and key not in present:
        listed = first_three(present) or "none, its weights are bare"
        raise UsageFault("ckpt.key", f"has no weights under --key {key}; present: {listed}")
    used = key or next((k for k in _WEIGHT_KEYS if k in present), None)
    if used is not None:
        others = [repr(k) for k in present if k in _WEIGHT_KEYS and k != used]
        also = f" (also present: {', '.join(others)})" if others else ""
        return used, _entries(content[used]), [f"using {used!r}{also}"]
    if any(isinstance(v, Tensor) for v in content.values()):
        return None, content, ["using the bare state dict"]
    hint = f"--key names one of: {first_three(present)}" if present else ""
    keys = first_three(str(k)[:50] for k in content if isinstance(k, str))
    raise DataFault("ckpt.format", f"has no weights under a known key: {keys}", hint=hint)


def _check_tensors(raw: dict[object, object]) -> dict[str, Tensor]:
    """Every entry is a plain tensor of a kind that weights have; no data is touched."""
    tensors: dict[str, Tensor] = {}
    for name, value in raw.items():
        if not (isinstance(name, str) and _NAME.fullmatch(name)):
            shown = name[:50] if isinstance(name, str) else f"a {type(name).__name__}"
            raise DataFault("ckpt.keys", f"has a key that names no weight: {shown}")
        if not isinstance(value, Tensor):
            raise DataFault("ckpt.keys", f"{name} is a {type(value).__name__}, not a tensor")
        counter = name.endswith(_COUNTER)
        plain = value.layout == torch.strided and value.device.type == "cpu"
        if not plain or value.dtype not in ((torch.int64,) if counter else _FLOATS):
            raise DataFault("ckpt.tensor", f"{name} is a {value.dtype} {value.layout} tensor")
        claimed = value.numel() * value.element_size()
        stored = value.untyped_storage().nbytes()
        if claimed > stored:
            raise DataFault("ckpt.tensor", f"{name} claims {claimed} bytes, stores {stored}")
        if not counter:
            tensors[name] = value.detach()
    return tensors


def _strip_prefixes(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors without the prefixes that wrappers put on every key, and those prefixes."""
    stripped: list[str] = []
    while found := next((p for p in _PREFIXES if any(n.startswith(p) for n in tensors)), None):
        without = [n for n in tensors if not n.startswith(found)]
        if without:
            why = f"only some keys have the prefix {found!r}; not {first_three(without)}"
            raise DataFault("ckpt.keys", why)
        tensors = {n.removeprefix(found): t for n, t in tensors.items()}
        stripped.append(found)
    return tensors, stripped


def _check_names_and_shapes(tensors: dict[str, Tensor], skeleton: nn.Module) -> None:
    shapes = {n: t.shape for n, t in skeleton.state_dict().items()}
    expected = {n: s for n, s in shapes.items() if not n.endswith(_COUNTER)}
    for problem, names in (
        ("missing", [n for n in expected if n not in tensors]),
        ("unexpected", [n for n in tensors if n not in expected]),
    ):
        if names:
            raise DataFault("ckpt.keys", f"{len(names)} {problem}: {first_three(names)}")
    misshapen = [
        f"{n} is {tuple(tensors[n].shape)}, expected {tuple(shape)}"
        for n, shape in expected.items()
        if tensors[n].shape != shape
    ]
    if misshapen:
        raise DataFault("ckpt.shape", first_three(misshapen))


_FAULTS = {
    "ckpt.nonfinite": "NaN or infinite values in",
    "ckpt.overflow": "values beyond float32 in",
    "ckpt.variance": "negative running variances in",
}


def _read_one(item: tuple[str, Tensor]) -> tuple[Tensor, dict[str, int]]:
    """A tensor in float32, and how many of its values have which fault."""
    name, stored = item
    tensor = stored.to(torch.float32).contiguous()
    counts: dict[str, int] = {}
    # A sum is much faster than isfinite, and is finite only if every value is.
    if not torch.isfinite(tensor.sum()):
        bad = int((~torch.isfinite(stored)).sum())
        counts["ckpt.nonfinite"] = bad
        counts["ckpt.overflow"] = int((~torch.isfinite(tensor)).sum()) - bad
    if name.endswith(".running_var"):
        counts["ckpt.variance"] = int((tensor < 0).sum())
        counts["ckpt.variance_small"] = int((tensor < _TINY_VARIANCE).sum())
    return tensor, counts


def _read(
    archive: Archive, tensors: dict[str, Tensor]
) -> tuple[dict[str, Tensor], list[tuple[str, str]]]:
    """The weights in float32, every value looked at, and warnings."""
    archive.check_storages(tensors)
    with ThreadPoolExecutor(max_workers=2) as pool:
        read = dict(zip(tensors, pool.map(_read_one, tensors.items()), strict=True))
    for code, what in _FAULTS.items():
        faulty = [f"{n} ({c[code]})" for n, (_, c) in read.items() if c.get(code)]
        if faulty:
            raise DataFault(code, f"{what} {first_three(faulty)}")
    tiny = sum(c.get("ckpt.variance_small", 0) for _, c in read.values())
    warnings: list[tuple[str, str]] = []
    if tiny:
        text = f"{tiny} channels have a running variance below {_TINY_VARIANCE}: dead channels"
        warnings.append(("ckpt.variance_small", text))
    return {n: t for n, (t, _) in read.items()}, warnings


def _lambda_info(epoch: object, form: Form, args: Arguments) -> LambdaInfo:
    if form == "deploy":
        return LambdaInfo(None)
    return lambda_of(epoch, args.decay_epochs, schedule=args.schedule, has_args=args.present)
