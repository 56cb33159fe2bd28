"""The command line: ``vntools COMMAND``, one file of this package per command.

A file ``build_engine.py`` holds a click command named ``command``; ``vntools build-engine``
runs it. Files whose names begin with an underscore are no commands. A command file imports
nothing heavy at its top, so that ``vntools --help`` stays quick. This file imports nothing at
all at its top, so that the console script minds signals a moment after it has begun.
"""

from __future__ import annotations

__all__ = ["main", "vntools"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from vntools.cli._commands import vntools


def __getattr__(name: str) -> Any:
    if name == "vntools":
        from vntools.cli._commands import vntools

        return vntools
    raise AttributeError(f"module {__name__} has no attribute {name}")


def main() -> NoReturn:
    """The console script ``vntools``."""
    from vntools.cli._supervisor import supervise

    supervise()
