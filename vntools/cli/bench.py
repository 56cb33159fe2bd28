"""``vntools bench``: latency and throughput of a plan, an ONNX file or a checkpoint."""

from __future__ import annotations

__all__ = ["command"]

from pathlib import Path

import click

from vntools.cli._shared import Console, json_option


def _percentiles(_ctx: click.Context, _param: click.Parameter, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as e:
        raise click.BadParameter(f"{text!r} is no list of numbers such as 90,95,99") from e


@click.command()
@click.option("--engine", "--loadEngine", type=Path, metavar="FILE", help="A TensorRT plan.")
@click.option("--onnx", type=Path, metavar="FILE", help="An ONNX file, in ONNX Runtime.")
@click.option("--ckpt", type=Path, metavar="FILE", help="A checkpoint, in PyTorch.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto",
              show_default=True, help="auto: a GPU where one answers.")  # fmt: skip
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, metavar="N",
              help="Images in a query.")  # fmt: skip
@click.option("--warm-up", "--warmUp", type=click.FloatRange(0), default=200,
              show_default=True, metavar="MS", help="Time not counted.")  # fmt: skip
@click.option("--duration", type=click.FloatRange(0), default=3, show_default=True,
              metavar="S", help="Least measured time.")  # fmt: skip
@click.option("--iterations", type=click.IntRange(1), default=10, show_default=True,
              metavar="N", help="Least number of queries.")  # fmt: skip
@click.option("--percentile", default="90,95,99", show_default=True, callback=_percentiles,
              metavar="P,P", help="Percentiles to report.")  # fmt: skip
@click.option("--include-data-transfers", "--includeDataTransfers", is_flag=True,
              help="Copy inputs and outputs in every query.")  # fmt: skip
@click.option(
    "--no-cuda-graph", "--noCudaGraph", is_flag=True, help="Launch kernel by kernel."
)
@click.option("--threads", type=click.IntRange(1), metavar="N", help="On a CPU.")
@click.option("--trust-plan", is_flag=True, help="Load a plan that has no sidecar.")
@json_option
@click.pass_obj
def command(
    console: Console,
    engine: Path | None,
    onnx: Path | None,
    ckpt: Path | None,
    device: str,
    batch: int,
    warm_up: float,
    duration: float,
    iterations: int,
    percentile: tuple[float, ...],
    include_data_transfers: bool,
    no_cuda_graph: bool,
    threads: int | None,
    trust_plan: bool,
) -> None:
    """Measure latency and throughput by trtexec's definitions."""
    from vntools.base.artifacts import require_file
    from vntools.pipeline.bench import Artifact, bench

    artifact = Artifact(engine, onnx, ckpt, device, threads, trust_plan, not no_cuda_graph)
    require_file(artifact.path)
    from vntools.bench.measurement import BenchOptions
    from vntools.report.rows import rows

    options = BenchOptions(
        warm_up_ms=warm_up,
        duration_s=duration,
        iterations=iterations,
        percentiles=percentile,
        batch=batch,
        transfers=include_data_transfers,
    )
    measurement = bench(artifact, options, console)
    console.result(measurement.to_record(), "\n".join(rows(measurement)))
