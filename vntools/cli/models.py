"""``vntools models``: the published architectures as a table."""

from __future__ import annotations

__all__ = ["command"]

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from vntools.cli._shared import Console, json_option
from vntools.report.table import table

if TYPE_CHECKING:
    from vntools.models.arch import Architecture

_HEADER = (
    "name",
    "depth",
    "params M",
    "GMACs",
    "top-1 %",
    "PyTorch ms",
    "FP32 ms",
    "FP16 ms",
    "dims",
    "strides",
)


@click.command()
@json_option
@click.pass_obj
def command(console: Console) -> None:
    """List the VanillaNet architectures with their published figures.

    Parameters and MACs are those of the deploy form (--json has the training form's too).
    Latencies are the authors', on an A100 at batch 1: PyTorch, TensorRT FP32 and FP16. Strides
    above 2 are output sizes of adaptive pooling.
    """
    from vntools.models.arch import ARCHITECTURES

    records: list[dict[str, Any]] = []
    rows: list[tuple[str, ...]] = [_HEADER]
    for arch in ARCHITECTURES.values():
        deploy = {"parameters": arch.deploy_parameters(), "macs": arch.deploy_macs()}
        training = {"parameters": arch.training_parameters(), "macs": arch.training_macs()}
        counted = {"depth": arch.depth, "deploy": deploy, "training": training}
        records.append(asdict(arch) | counted)
        rows.append(_row(arch))
    console.result({"architectures": records}, table(rows, align="<>>>>>>><<"))


def _row(arch: Architecture) -> tuple[str, ...]:
    published = arch.published
    figures: tuple[float | None, ...] = (None,) * 4
    if published is not None:
        figures = (
            published.top1,
            published.latency_ms,
            published.tensorrt_fp32_a100_ms,
            published.tensorrt_fp16_a100_ms,
        )
    return (
        arch.name,
        str(arch.depth),
        f"{arch.deploy_parameters() / 1e6:.2f}",
        f"{arch.deploy_macs() / 1e9:.2f}",
        *("-" if figure is None else f"{figure:.2f}" for figure in figures),
        _runs(arch.dims),
        " ".join(str(a or s) for a, s in zip(arch.adaptive, arch.strides, strict=True)),
    )


def _runs(values: tuple[int, ...]) -> str:
    """Values with repeats counted: 512 512 1024 as ``512x2 1024``."""
    found: list[list[int]] = []
    for value in values:
        if found and found[-1][0] == value:
            found[-1][1] += 1
        else:
            found.append([value, 1])
    return " ".join(f"{value}x{times}" if times > 1 else str(value) for value, times in found)
