"""One evaluation by many processes, as ``torchrun`` starts them."""

from __future__ import annotations

__all__ = ["Ranks"]

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from vntools.base.errors import Unavailable, UsageFault
from vntools.base.provenance import host

_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Ranks:
    """This process among those that share the work.

    Attributes:
        rank: its number, from 0.
        world: how many there are.
        local: its number on this machine, which is that of its GPU.
        local_world: how many there are on this machine.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    local_world: int = 1

    @classmethod
    def of_environment(cls) -> Ranks:
        """As torchrun says by RANK, WORLD_SIZE, LOCAL_RANK; else one process alone.

        Raises:
            UsageFault: ``eval.ranks``: they are no such numbers.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
            return cls()
        try:
            ranks = cls(*(int(os.environ[name]) for name in names))
        except (KeyError, ValueError) as e:
            raise UsageFault(
                "eval.ranks", f"{', '.join(names)} are not set by torchrun"
            ) from e
        if not (0 <= ranks.rank < ranks.world and 0 <= ranks.local < ranks.local_world):
            raise UsageFault("eval.ranks", f"rank {ranks.rank} of {ranks.world} is none")
        return ranks

    @property
    def cores(self) -> int:
        """How many cores are this process's share."""
        return max(1, int(host()["cores"]) // self.local_world)

    @contextmanager
    def joined(self, device: str) -> Generator[None, None, None]:
        """Join the others, each with a GPU of its own; before anything touches CUDA.

        Args:
            device: ``auto``, ``cpu`` or ``cuda``.

        Raises:
            Unavailable: ``gpu.none``: some processes have a GPU and some have none.
        """
        if self.world == 1:
            yield
            return
        given = os.environ.get(_VISIBLE)
        names = list(map(str, range(self.local_world))) if given is None else given.split(",")
        os.environ[_VISIBLE] = names[self.local] if self.local < len(names) else ""
        from torch import distributed

        from vntools.engine.backend import gpu_count

        # What is exchanged are a few counts in host memory: gloo does on any machine. Who is
        # done first waits as long as it takes; torchrun ends all when one fails.
        distributed.init_process_group("gloo", timeout=timedelta(days=7))
        if device != "cpu" and len(set(self.gather(gpu_count() > 0))) > 1:
            raise Unavailable(
                "gpu.none",
                f"of {self.world} processes some have no GPU of their own",
                hint="start as many as there are GPUs, or give --device cpu",
            )
        yield
        distributed.destroy_process_group()

    def gather(self, value: Any) -> list[Any]:
        """``value`` of every process, by rank."""
        if self.world == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.world
        distributed.all_gather_object(values, value)
        return values
