"""Which TensorRT is taken, and what is said where it is missing."""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from vntools.base.errors import Unavailable, UsageFault
from vntools.engine import backend
from vntools.engine.backend import choose, compute_capability, gpu_count, load


def install(monkeypatch: pytest.MonkeyPatch, name: str, version: str) -> ModuleType:
    """A module that imports under ``name``."""
    module: Any = ModuleType(name)
    module.__version__ = version
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make modules fail to import, as where they are not installed."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n in names else find_spec(n, *a)
    )
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


def gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(backend, "gpu_count", lambda: count)


def test_tensorrt_rtx_loads_from_the_wheels(rtx):
    assert (rtx.name, rtx.is_rtx) == ("tensorrt-rtx", True)
    assert rtx.major == int(rtx.version.split(".")[0]) >= 1
    assert rtx.trt.__name__ in ("tensorrt_rtx", "tensorrt_rtx_bindings")
    assert "trt" not in repr(rtx).replace("tensorrt", "")


@pytest.mark.parametrize(
    ("name", "modules", "extra"),
    [
        ("tensorrt", ["tensorrt"], "tensorrt"),
        ("tensorrt-rtx", ["tensorrt_rtx", "tensorrt_rtx_bindings"], "rtx"),
    ],
)
def test_a_missing_wheel_names_the_pip_line(monkeypatch, name, modules, extra):
    hide(monkeypatch, *modules)
    with pytest.raises(Unavailable) as caught:
        load(name)
    assert (caught.value.code, caught.value.exit_status) == ("trt.missing", 69)
    assert f"pip install '.[{extra}]'" in caught.value.line()


def test_an_installed_package_of_tensorrt_rtx_comes_first(monkeypatch):
    module = install(monkeypatch, "tensorrt_rtx", "9.9")
    assert load("tensorrt-rtx").trt is module


def test_libraries_are_opened_in_order_whatever_their_version(monkeypatch, tmp_path):
    folder = tmp_path / "onnxruntime_ep_nv_tensorrt_rtx"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    names = ["libtensorrt_rtx.so.9.8.7", "libtensorrt_onnxparser_rtx.so.9"]
    for name in (*names, "libtensorrt_plugins.so"):
        (folder / name).touch()
    hide(monkeypatch, "tensorrt_rtx")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    opened: list[tuple[str, int]] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda p, mode=0: opened.append((Path(p).name, mode)))
    install(monkeypatch, "tensorrt_rtx_bindings", "9.8.7")
    assert load("tensorrt-rtx").version == "9.8.7"
    assert opened == [(name, ctypes.RTLD_GLOBAL) for name in names]


def test_a_library_that_does_not_load_is_named(monkeypatch, tmp_path):
    folder = tmp_path / "onnxruntime_ep_nv_tensorrt_rtx"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "libtensorrt_rtx.so.1").write_bytes(b"no library")
    hide(monkeypatch, "tensorrt_rtx")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    with pytest.raises(Unavailable, match=r"cannot load libtensorrt_rtx\.so\.1") as caught:
        load("tensorrt-rtx")
    assert caught.value.code == "trt.missing"


def test_an_old_tensorrt_is_refused(monkeypatch):
    install(monkeypatch, "tensorrt", "8.6.1")
    with pytest.raises(Unavailable, match=r"8\.6\.1 is installed, expected 10") as caught:
        load("tensorrt")
    assert caught.value.code == "trt.version"


@pytest.mark.parametrize("call", [load, choose])
def test_an_unknown_backend(call):
    with pytest.raises(UsageFault, match="no backend 'trt'") as caught:
        call("trt")
    assert caught.value.code == "engine.backend"


@pytest.mark.parametrize(
    ("gpu", "installed", "name"),
    [
        (1, "11.4.1", "tensorrt"),
        (1, "10.0.1", "tensorrt"),
        (1, "8.6.1", "tensorrt-rtx"),
        (1, None, "tensorrt-rtx"),
        (0, "11.4.1", "tensorrt-rtx"),
        (0, None, "tensorrt-rtx"),
    ],
)
def test_auto(monkeypatch, gpu, installed, name):
    gpus(monkeypatch, gpu)
    hide(monkeypatch, "tensorrt")
    if installed:
        install(monkeypatch, "tensorrt", installed)
    assert choose().name == name
    assert choose("tensorrt-rtx").name == "tensorrt-rtx"


def test_tensorrt_needs_a_gpu(monkeypatch):
    install(monkeypatch, "tensorrt", "11.4.1")
    gpus(monkeypatch, 1)
    assert choose("tensorrt").major == 11
    gpus(monkeypatch, 0)
    with pytest.raises(Unavailable) as caught:
        choose("tensorrt")
    assert caught.value.code == "gpu.none"


class Driver(SimpleNamespace):
    """The CUDA driver library with two GPUs of compute capability 8.9."""

    init = 0
    count_status = 0
    attribute_status = 0

    def cuInit(self, flags: int) -> int:  # noqa: N802 - the library's name
        return self.init

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = 2
        return self.count_status

    def cuDeviceGetAttribute(self, value: Any, number: int, device: int) -> int:  # noqa: N802
        value._obj.value = {75: 8, 76: 9}[number]
        return self.attribute_status


@pytest.mark.parametrize(
    ("driver", "count", "capability"),
    [
        (Driver(), 2, 89),
        (Driver(init=100), 0, None),  # CUDA_ERROR_NO_DEVICE
        (Driver(count_status=3, attribute_status=101), 0, None),
    ],
)
def test_the_driver_is_asked(monkeypatch, driver, count, capability):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert gpu_count() == count
    assert compute_capability() == capability


def test_no_driver(monkeypatch):
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert gpu_count() == 0
    assert compute_capability() is None


def test_nothing_is_imported_before_it_is_asked_for():
    heavy = ["tensorrt", "tensorrt_rtx_bindings", "onnxruntime", "onnx", "numpy", "torch"]
    code = (
        "import sys, vntools.engine.build, vntools.engine.precision; "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
