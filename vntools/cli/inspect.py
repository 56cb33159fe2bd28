"""``vntools inspect``: what a plan or an ONNX file is, and how fast it can be at all."""

from __future__ import annotations

__all__ = ["command"]

from pathlib import Path

import click

from vntools.cli._shared import Console, json_option

_ABOVE_0 = click.FloatRange(0, min_open=True)


@click.command()
@click.argument("path", type=Path, metavar="FILE")
@click.option("--onnx", type=Path, metavar="FILE",
              help="The graph that a plan was built from; default: beside it.")  # fmt: skip
@click.option("--batch", type=click.IntRange(1), metavar="N",
              help="Default: the plan's optimum, or the graph's own.")  # fmt: skip
@click.option("--device", metavar="NAME", help="Limits of a device, such as 'RTX 4090'.")
@click.option("--peak", type=_ABOVE_0, metavar="TFLOPS", help="Limits, with --bandwidth.")
@click.option("--bandwidth", type=_ABOVE_0, metavar="GB/S", help="Limits, with --peak.")
@click.option("--measure-peak", is_flag=True,
              help="Limits: what large copies and products achieve here.")  # fmt: skip
@json_option
@click.pass_obj
def command(
    console: Console,
    path: Path,
    onnx: Path | None,
    batch: int | None,
    device: str | None,
    peak: float | None,
    bandwidth: float | None,
    measure_peak: bool,
) -> None:
    """Show kernels, layers, bytes, operations and floors; nothing is executed."""
    from vntools.pipeline.inspect import InspectOptions, inspect
    from vntools.pipeline.peak import LimitOptions
    from vntools.report.limits import inspected_text

    limit = LimitOptions(device, peak, bandwidth, "auto" if measure_peak else None)
    done = inspect(InspectOptions(path, onnx, batch, limit), console)
    console.result(done.to_record(), inspected_text(done))
