"""How to build a plan: the options, checked before any work."""

from __future__ import annotations

__all__ = ["POOLS", "BuildOptions"]

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vntools.base.errors import UsageFault
from vntools.engine.backend import Backend

# trtexec's names of the memory pools that a GPU has, and MemoryPoolType's.
POOLS = {"workspace": "WORKSPACE", "tacticSharedMem": "TACTIC_SHARED_MEMORY"}

_DEFAULT_MAX_BATCH = 8
_OPTIMIZATION_LEVELS = range(6)


@dataclass(frozen=True)
class BuildOptions:
    """How to build; every option is checked here, before any work.

    Attributes:
        backend: the TensorRT to build with.
        min_batch: smallest batch of the optimization profile; None is 1.
        opt_batch: the batch that is optimised for; None is the smallest.
        max_batch: largest batch; None is 8, or ``opt_batch`` if that is more. For a graph
            whose batch is fixed all three are that batch, and another one is refused.
        compute_capabilities: the GPUs that a TensorRT-RTX plan is for, such as 89 for 8.9;
            none is its default, a plan for all from 8.0 up.
        optimization_level: 0 (quick build) to 5 (quick plan); None is TensorRT's own default.
        mem_pool_size: limits in MiB by trtexec's names, ``workspace`` and ``tacticSharedMem``.
        timing_cache: file of kernel timings to read and to write back; TensorRT only.
    """

    backend: Backend
    min_batch: int | None = None
    opt_batch: int | None = None
    max_batch: int | None = None
    compute_capabilities: tuple[int, ...] = ()
    optimization_level: int | None = None
    mem_pool_size: Mapping[str, float] = field(default_factory=dict[str, float])
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        low, opt, high = self.batches()
        if not 1 <= low <= opt <= high:
            raise UsageFault(
                "engine.batch", f"batches {low}, {opt}, {high} are not in order from 1"
            )
        level = self.optimization_level
        if level is not None and level not in _OPTIMIZATION_LEVELS:
            raise UsageFault("engine.level", f"no optimization level {level}; it is 0 to 5")
        for pool, size_mib in self.mem_pool_size.items():
            if pool not in POOLS or not size_mib > 0:
                raise UsageFault(
                    "engine.mem_pool",
                    f"no memory pool limit {pool}:{size_mib}",
                    hint=f"give MiB for {' or '.join(POOLS)}",
                )
        if self.backend.is_rtx:
            self._check_rtx()
        elif self.compute_capabilities:
            raise UsageFault(
                "engine.compute_capability",
                "TensorRT builds for the GPU at hand and takes no compute capability",
                hint="use --backend tensorrt-rtx to build for another GPU",
            )

    def _check_rtx(self) -> None:
        if self.timing_cache is not None:
            raise UsageFault(
                "engine.timing_cache",
                "a timing cache does nothing: TensorRT-RTX times no kernels while it builds",
                hint="leave --timing-cache out, or use --backend tensorrt",
            )
        members = dir(self.backend.trt.ComputeCapability)
        known = [name[2:] for name in members if name.startswith("SM") and name[2:].isdigit()]
        asked = [str(c) for c in self.compute_capabilities]
        if not set(asked) <= set(known) or len(set(asked)) < len(asked):
            raise UsageFault(
                "engine.compute_capability",
                f"TensorRT-RTX {self.backend.version} does not build for {', '.join(asked)}",
                hint=f"give each once, of {', '.join(sorted(known, key=int))}",
            )

    def batches(self) -> tuple[int, int, int]:
        """Smallest, optimal and largest batch of a dynamic graph."""
        low = 1 if self.min_batch is None else self.min_batch
        opt = low if self.opt_batch is None else self.opt_batch
        high = max(_DEFAULT_MAX_BATCH, opt) if self.max_batch is None else self.max_batch
        return low, opt, high
