"""A plan is a program: which bytes TensorRT may be given, decided before it is called.

What ties a plan to a build of one's own is its sidecar. Both files are read once, so the bytes
that are held against the sidecar are the bytes that are loaded.
"""

from __future__ import annotations

__all__ = ["SIDECAR_ONLY", "Plan", "Trust", "read_plan", "rebuild"]

import contextlib
import os
import shlex
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vntools.base.artifacts import read_input, read_sidecar, sha256_bytes, sidecar_path
from vntools.base.errors import DataFault, NoPermission, quoted
from vntools.engine.backend import FLAVOURS, PLAN_MAGIC

_PRECISIONS = {
    "fp32": [], "fp16": ["--fp16"], "bf16": ["--bf16"], "int8": ["--int8", "--calib", "DIR"],
}  # fmt: skip


@dataclass(frozen=True)
class Trust:
    """What the user vouches for beside what a sidecar says.

    Attributes:
        any_plan: load a plan that has no sidecar, or that others could have written.
        sha256: digests in hexadecimal; where there are any a plan must have one of them, and
            then needs no more to be trusted.
    """

    any_plan: bool = False
    sha256: tuple[str, ...] = ()


SIDECAR_ONLY = Trust()
"""The user vouches for nothing: the sidecar decides."""


@dataclass(frozen=True)
class Plan:
    """A plan that may be loaded.

    Attributes:
        data: its bytes.
        sidecar: what was written beside it; where it has none, ``flavour`` and ``sha256``.
    """

    data: bytes = field(repr=False)
    sidecar: Mapping[str, Any]


def read_plan(
    path: str | os.PathLike[str], trust: Trust, *, compute_capability: int | None
) -> Plan:
    """A plan, its bytes held against its sidecar and against what the user vouches for.

    Args:
        path: ``NAME.plan``, with ``NAME.plan.json`` beside it.
        trust: what the user vouches for.
        compute_capability: of the GPU that it is to run on, such as 89; None where unknown.

    Raises:
        NoInput: as :func:`vntools.base.artifacts.read_input`.
        NoPermission: ``plan.untrusted``: it has no sidecar; ``plan.perms``: others can write
            it.
        DataFault: ``plan.manifest``, ``plan.format``, ``plan.sha256``, ``plan.flavour``,
            ``plan.gpu``: the sidecar is damaged, or bytes, sidecar and GPU disagree.
    """
    data = read_input(path)
    digest = sha256_bytes(data)
    if trust.sha256 and digest not in trust.sha256:
        raise DataFault(
            "plan.sha256", f"its SHA-256 is {digest}, not what --sha256 says", path=path
        )
    flavour = PLAN_MAGIC.get(data[:4])
    sidecar = read_sidecar(path)
    if sidecar is not None:
        _check_sidecar(sidecar, path)
        _check_bytes(data, digest, sidecar, path)
    if flavour is None:
        raise DataFault(
            "plan.format", "not a TensorRT plan", hint=rebuild(sidecar, path), path=path
        )
    vouched = trust.any_plan or bool(trust.sha256)
    if sidecar is None:
        if vouched:
            return Plan(data, {"flavour": flavour, "sha256": digest})
        raise NoPermission(
            "plan.untrusted",
            "it has no sidecar that says who built it, and a plan is a program",
            hint="--trust-plan loads it nevertheless, if you built it",
            path=path,
        )
    if not vouched:
        _check_writers(Path(path))
    if sidecar["flavour"] != flavour:
        raise DataFault(
            "plan.flavour",
            f"its sidecar says {sidecar['flavour']}, its bytes {flavour}",
            hint=rebuild(sidecar, path),
            path=path,
        )
    _check_gpu(sidecar, compute_capability, path)
    return Plan(data, sidecar)


def _check_sidecar(sidecar: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Refuse a sidecar without what a plan is loaded by.

    Raises:
        DataFault: ``plan.manifest``.
    """
    capabilities = sidecar.get("compute_capabilities")
    if not (
        sidecar.get("flavour") in FLAVOURS
        and isinstance(sidecar.get("version"), str)
        and isinstance(capabilities, list)
        and all(isinstance(c, int) for c in capabilities)
    ):
        raise DataFault(
            "plan.manifest",
            "its sidecar names no flavour, version or compute capabilities",
            hint=rebuild(None, path),
            path=path,
        )


def _check_bytes(
    data: bytes, digest: str, sidecar: Mapping[str, Any], path: str | os.PathLike[str]
) -> None:
    """Refuse bytes that a sidecar does not speak of.

    Raises:
        DataFault: ``plan.sha256``.
    """
    if sidecar["sha256"] == digest:
        return
    message = "its bytes are not those that its sidecar names"
    if sidecar.get("bytes") not in (None, len(data)):
        message = f"it has {len(data)} bytes, its sidecar says {sidecar['bytes']}"
    raise DataFault("plan.sha256", message, hint=rebuild(sidecar, path), path=path)


def _check_gpu(
    sidecar: Mapping[str, Any], here: int | None, path: str | os.PathLike[str]
) -> None:
    """Refuse a plan for other GPUs; one that names none is for all.

    Raises:
        DataFault: ``plan.gpu``.
    """
    built_for: list[int] = sidecar["compute_capabilities"]
    if here is None or not built_for or here in built_for:
        return
    raise DataFault(
        "plan.gpu",
        f"built for compute capability {', '.join(map(_dotted, built_for))}, this GPU has "
        f"{_dotted(here)}",
        hint=rebuild({**sidecar, "compute_capabilities": []}, path),
        path=path,
    )


def _dotted(capability: int) -> str:
    """89 as 8.9."""
    return f"{capability // 10}.{capability % 10}"


def _check_writers(plan: Path) -> None:
    """Refuse a plan that somebody else could have written, or whose name points elsewhere.

    Raises:
        NoPermission: ``plan.perms``.
    """
    for name in (plan, sidecar_path(plan)):
        real = Path(os.path.realpath(name))
        for place in (real, real.parent, name.absolute().parent):
            if why := _other_writer(place.stat()):
                where = "it" if place == real and name == plan else quoted(place)
                raise NoPermission(
                    "plan.perms",
                    f"{where} {why}, and a plan is a program",
                    hint="mend owner and mode (chmod go-w), or --trust-plan if you built it",
                    path=plan,
                )


def _other_writer(about: os.stat_result) -> str:
    """Who but the user and root can write a file or a folder, in words; empty for nobody."""
    if about.st_uid not in (0, os.geteuid()):
        return f"belongs to user {about.st_uid}"
    mode = about.st_mode
    if stat.S_ISDIR(mode) and mode & stat.S_ISVTX:
        return ""  # others can add names to it, and not replace those of the user
    # A group of the user's number is by custom the user's own.
    if mode & stat.S_IWOTH or (mode & stat.S_IWGRP and about.st_gid != about.st_uid):
        return "can be written by others"
    return ""


def rebuild(sidecar: Mapping[str, Any] | None, path: str | os.PathLike[str]) -> str:
    """A hint: the command that builds a plan again, as far as its sidecar says.

    What a sidecar says is text of a file: it is quoted for a shell, and only known options of
    it are repeated.
    """
    words = ["vntools", "build-engine"]
    if sidecar is not None:
        # Where it lacks something, the command without options is still right.
        with contextlib.suppress(AttributeError, IndexError, KeyError, TypeError, ValueError):
            words += _as_built(sidecar, Path(path).name)
    return f"rebuild it: {shlex.join(words)}"


def _as_built(sidecar: Mapping[str, Any], name: str) -> list[str]:
    """Model and options of ``build-engine``, as far as they are not the defaults."""
    model = Path(str(sidecar["source"]["name"])).name
    words = [model, *_PRECISIONS[sidecar["precision"]]]
    if sidecar["io_type"] == "fp16":
        words += ["--io-type", "fp16"]
    if sidecar["flavour"] == "tensorrt-rtx":
        words += ["--backend", "tensorrt-rtx"]
        for capability in sidecar["compute_capabilities"]:
            words += ["--compute-capability", _dotted(capability)]
    dynamic = [t["name"] for t in sidecar["inputs"] if t["shape"][0] == -1]
    if dynamic:
        shapes = sidecar["profile"][dynamic[0]]
        low, opt, high = (int(shapes[k][0]) for k in ("min", "opt", "max"))
        for option, value, default in (("min", low, 1), ("opt", opt, low), ("max", high, 8)):
            if value != default:
                words += [f"--{option}-batch", str(value)]
    if name != Path(model).with_suffix(".plan").name:
        words += ["--out", name]
    return words
