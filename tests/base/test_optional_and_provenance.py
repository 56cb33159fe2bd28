"""Optional imports, versions and the host."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import vntools
from vntools.base.errors import Unavailable
from vntools.base.optional import require
from vntools.base.provenance import host, version_of, versions


def test_require_imports() -> None:
    assert require("math", extra=None) is math


@pytest.mark.parametrize(
    ("extra", "line"),
    [(None, "pip install '.'"), ("tensorrt", "pip install '.[tensorrt]'")],
)
def test_a_missing_module_says_what_brings_it(extra: str | None, line: str) -> None:
    with pytest.raises(Unavailable, match="no_such_module") as caught:
        require("no_such_module", extra=extra, code="trt.missing")
    assert caught.value.code == "trt.missing"
    assert caught.value.hint == f"run in vntools' sources: {line}"


def test_a_module_whose_library_does_not_load_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_installed.py").write_text('raise OSError("libx.so.1: not found\\nmore")')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Unavailable, match=r"libx\.so\.1: not found\)"):
        require("half_installed", extra="rtx")


def test_versions_name_what_is_installed_and_nothing_else() -> None:
    assert versions("click", "no-such-distribution") == {
        "vntools": vntools.__version__,
        "click": version_of("click"),
    }
    assert version_of("no-such-distribution") is None


def test_host_fits_into_json() -> None:
    found = host()
    assert set(found) == {"system", "python", "cpu", "cores"}
    assert int(found["cores"]) >= 1
    json.dumps(found)
