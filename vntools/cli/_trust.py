"""The options of every command that takes a plan: what the user vouches for."""

from __future__ import annotations

__all__ = ["trust_options"]

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])


def _digests(
    _ctx: click.Context, _param: click.Parameter, texts: tuple[str, ...]
) -> tuple[str, ...]:
    """SHA-256 digests in lower case."""
    for text in texts:
        if re.fullmatch(r"[0-9a-fA-F]{64}", text) is None:
            raise click.BadParameter(f"{text!r} is no SHA-256 in hexadecimal")
    return tuple(text.lower() for text in texts)


def trust_options(command: _F) -> _F:
    """The options ``--trust-plan`` and ``--sha256``, the fields of ``Trust``."""
    pinned = click.option(
        "--sha256",
        multiple=True,
        callback=_digests,
        metavar="HEX",
        help="Load a plan of this SHA-256 and no other.",
    )
    trusted = click.option(
        "--trust-plan",
        is_flag=True,
        help="Load a plan that has no sidecar, or that others can write.",
    )
    return trusted(pinned(command))
