"""Imports of packages that only some commands need, made at the point of use."""

from __future__ import annotations

__all__ = ["pip_line", "require"]

import importlib
from types import ModuleType

from vntools.base.errors import Unavailable


def pip_line(extra: str | None) -> str:
    """How to install vntools with an extra; it is not on PyPI, where the name is another's."""
    target = "." if extra is None else f".[{extra}]"
    return f"run in vntools' sources: pip install '{target}'"


def require(module: str, *, extra: str | None, code: str = "dependency.missing") -> ModuleType:
    """Import ``module``, or say which extra of vntools brings it.

    Raises:
        Unavailable: the module does not import; the message has the reason and the pip line.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as e:
        why = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise Unavailable(code, f"cannot import {module} ({why})", hint=pip_line(extra)) from e
