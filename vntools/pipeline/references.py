"""What an exported graph is held against, and how far from it the training graph is."""

from __future__ import annotations

__all__ = [
    "References",
    "Source",
    "keep_memory",
    "make_references",
    "seeded_feeds",
    "share_cores",
]

import ctypes
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vntools.base.errors import DataFault, InternalFault

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray
    from torch import nn

    from vntools.export.interface import Interface
    from vntools.verify.compare import Comparison

_BLAS_THREADS = "OPENBLAS_NUM_THREADS"
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_BATCHES = (1, 3)  # where the batch is dynamic; the last is the largest
_DYNAMIC_EXTENT = 224  # pixels, where height or width is dynamic


@dataclass(frozen=True)
class Source:
    """A traced graph, the module that it is of, and what is around it."""

    raw: ir.Model
    module: nn.Module
    interface: Interface


@dataclass(frozen=True)
class References:
    """What the exported graph is held against, and how far from it the training graph is.

    Attributes:
        float64: outputs of the unsimplified graph for every feed, as they are to be compared
            (:meth:`vntools.export.interface.Interface.compared`).
        pytorch: outputs of the module, likewise.
        noise: the unsimplified graph in float32 against float64.
    """

    float64: list[dict[str, NDArray[Any]]]
    pytorch: list[dict[str, NDArray[Any]]]
    noise: Comparison


def share_cores() -> None:
    """Give the references' matrix products one half of the cores, the passes' the other.

    Both run at once, and OpenBLAS's threads spin where another one's product has their core.
    It takes a number of threads when it is loaded and not later, so this does nothing where
    numpy has been imported, or where the user has set a number.
    """
    if "numpy" in sys.modules or _BLAS_THREADS in os.environ:
        return
    os.environ[_BLAS_THREADS] = str(_half_of_the_cores())
    importlib.import_module("numpy")
    del os.environ[_BLAS_THREADS]


def keep_memory() -> None:
    """Let freed memory be used again rather than given back to the system.

    Every merge and every layer of the reference needs large arrays for a moment; to fault them
    in anew each time takes a tenth of an export. Only glibc has this switch (mallopt).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def _half_of_the_cores() -> int:
    return max(_cores() // 2, 1)


def _cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def make_references(source: Source, feeds: list[dict[str, NDArray[Any]]]) -> References:
    """The references of ``source`` for ``feeds``, in float64 and as PyTorch computes.

    Args:
        source: what they are of.
        feeds: inputs by name, the largest batch last.

    Raises:
        DataFault: the graph cannot be evaluated or run as it came.
        CheckFailed: its outputs are not finite, or zero.
    """
    from vntools.verify.compare import compare
    from vntools.verify.float32 import run_float32
    from vntools.verify.float64 import evaluate

    raw = source.raw
    native = _pytorch(source.module, feeds, source.interface)
    want = _for_each(evaluate(raw.graph, feeds[-1]), feeds)
    try:
        unsimplified = run_float32(raw, feeds[:1])
    except InternalFault as e:  # not our doing: nothing was rewritten yet
        raise DataFault("onnx.unsupported", e.message) from e
    compared = source.interface.compared
    want, native = [compared(y) for y in want], [compared(y) for y in native]
    noise = compare([(compared(unsimplified[0]), want[0])], "the unsimplified graph")
    return References(want, native, noise)


def seeded_feeds(model: ir.Model) -> list[dict[str, NDArray[Any]]]:
    """Seeded inputs of batch 3, and the first sample of them as batch 1.

    Bytes are uniform, 0 to 255; all others are standard normal.

    Where the batch is fixed there is one input, of that batch. Other dynamic axes are 224
    long.

    Raises:
        DataFault: ``onnx.shape``: an input has no type or rank.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    large: dict[str, NDArray[Any]] = {}
    dynamic: set[str] = set()
    for value in model.graph.inputs:
        if value.is_initializer() or value.name is None:
            continue
        if value.shape is None or value.dtype is None:
            raise DataFault("onnx.shape", f"input {value.name} has no type or rank")
        dims = [d if isinstance(d, int) else _DYNAMIC_EXTENT for d in value.shape]
        if dims and not isinstance(value.shape[0], int):
            dims[0] = _BATCHES[-1]
            dynamic.add(value.name)
        dtype = value.dtype.numpy()
        drawn = (
            rng.integers(256, size=dims) if dtype == np.uint8 else rng.standard_normal(dims)
        )
        large[value.name] = drawn.astype(dtype)
    if not dynamic:
        return [large]
    return [
        {name: x[:n] if name in dynamic else x for name, x in large.items()} for n in _BATCHES
    ]


def _pytorch(
    module: nn.Module,
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    interface: Interface,
) -> list[dict[str, NDArray[Any]]]:
    """PyTorch's own float32 forward of the module, its interface worked out on the host."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(_half_of_the_cores())
    try:
        with torch.inference_mode():
            x = torch.from_numpy(interface.network_input(feeds[-1]["input"]))
            whole = interface.outputs(module(x).numpy())
    finally:
        torch.set_num_threads(threads)
    return _for_each(whole, feeds)


def _for_each(
    whole: Mapping[str, NDArray[Any]], feeds: Sequence[Mapping[str, NDArray[Any]]]
) -> list[dict[str, NDArray[Any]]]:
    """Outputs for every feed, from those for the last: the others are its first samples.

    True of a VanillaNet, whose operators all treat samples apart.
    """
    batches = [len(next(iter(feed.values()))) for feed in feeds]
    return [{name: y[:n] for name, y in whole.items()} for n in batches]
