"""``vntools build-engine``: a verified ONNX file to a TensorRT plan."""

from __future__ import annotations

__all__ = ["command"]

import re
import sys
from pathlib import Path

import click

from vntools.base.errors import UsageFault, printable
from vntools.cli._shared import Console, json_option

_MIB = {"B": 2.0**-20, "K": 2.0**-10, "": 1.0, "M": 1.0, "G": 1024.0}


def _pools(
    _ctx: click.Context, _param: click.Parameter, texts: tuple[str, ...]
) -> dict[str, float]:
    """``workspace:4G`` to MiB by pool; a bare number is MiB, as trtexec takes it."""
    pools: dict[str, float] = {}
    for text in (part for t in texts for part in t.split(",")):
        match = re.fullmatch(r"(\w+):(\d+(?:\.\d+)?)([BKMG]?)(?:i?B)?", text)
        if match is None:
            raise click.BadParameter(f"{text!r} is not of the form workspace:4G")
        pools[match[1]] = float(match[2]) * _MIB[match[3]]
    return pools


def _capability(text: str) -> int:
    """``89``, ``8.9`` or ``SM89`` as 89."""
    match = re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", text, re.IGNORECASE)
    if match is None:
        raise click.BadParameter(f"{text!r} is no compute capability such as 8.9")
    return int(match[1] + match[2])


def _capabilities(
    _ctx: click.Context, _param: click.Parameter, texts: tuple[str, ...]
) -> tuple[int, ...]:
    return tuple(_capability(part) for t in texts for part in t.split(","))


def _chosen(console: Console) -> Path:
    """The one ONNX file of this folder that vntools wrote, or the one that the user picks."""
    from vntools.pipeline.engine import find_models

    models = find_models(Path())
    names = [str(m) for m in models]
    if len(models) == 1:
        console.note(f"taking {names[0]}")
        return models[0]
    if not models:
        raise UsageFault(
            "engine.model",
            "no ONNX file in this folder was written by vntools",
            hint="name one, or run vntools export first",
        )
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageFault(
            "engine.model",
            f"several ONNX files are here: {', '.join(map(printable, names))}",
            hint="name one",
        )
    return Path(click.prompt("Which one", type=click.Choice(names), err=True))


@click.command()
@click.argument("model", type=Path, required=False, metavar="[MODEL.onnx]")
@click.option("--fp16", is_flag=True, help="Half precision.")
@click.option("--fp32", is_flag=True, help="Single precision, TF32 allowed (default).")
@click.option("--io-type", type=click.Choice(["fp32", "fp16"]), default="fp32",
              show_default=True, help="Type of inputs and outputs.")  # fmt: skip
@click.option("--out", "--saveEngine", type=Path, metavar="FILE", help="Plan to write.")
@click.option("--backend", type=click.Choice(["auto", "tensorrt", "tensorrt-rtx"]),
              default="auto", show_default=True, help="Which TensorRT builds.")  # fmt: skip
@click.option("--min-batch", type=click.IntRange(1), metavar="N", help="Default: 1.")
@click.option(
    "--opt-batch", type=click.IntRange(1), metavar="N", help="Default: the smallest."
)
@click.option("--max-batch", type=click.IntRange(1), metavar="N", help="Default: 8.")
@click.option("--compute-capability", multiple=True, callback=_capabilities, metavar="X.Y",
              help="GPU to build for (TensorRT-RTX; repeatable).")  # fmt: skip
@click.option("--builder-optimization-level", "--builderOptimizationLevel",
              type=click.IntRange(0, 5), metavar="0-5", help="Build effort.")  # fmt: skip
@click.option("--mem-pool-size", "--memPoolSize", multiple=True, callback=_pools,
              metavar="POOL:SIZE", help="workspace:4G; a bare number is MiB.")  # fmt: skip
@click.option("--timing-cache", "--timingCacheFile", type=Path, metavar="FILE",
              help="Kernel timings to reuse (TensorRT).")  # fmt: skip
@click.option("--force", is_flag=True, help="Overwrite a file that vntools did not write.")
@json_option
@click.pass_obj
def command(
    console: Console,
    model: Path | None,
    fp16: bool,
    fp32: bool,
    io_type: str,
    out: Path | None,
    backend: str,
    min_batch: int | None,
    opt_batch: int | None,
    max_batch: int | None,
    compute_capability: tuple[int, ...],
    builder_optimization_level: int | None,
    mem_pool_size: dict[str, float],
    timing_cache: Path | None,
    force: bool,
) -> None:
    """Build a TensorRT plan and prove that it is what was asked for."""
    if fp16 and fp32:
        raise UsageFault("engine.precision_twice", "--fp16 and --fp32 exclude each other")
    from vntools.pipeline.engine import EngineOptions, build_engine
    from vntools.report.engines import engine_text

    options = EngineOptions(
        model or _chosen(console),
        out=out,
        precision="fp16" if fp16 else "fp32",
        io_type=io_type,
        backend=backend,
        min_batch=min_batch,
        opt_batch=opt_batch,
        max_batch=max_batch,
        compute_capabilities=compute_capability,
        optimization_level=builder_optimization_level,
        mem_pool_size=mem_pool_size,
        timing_cache=timing_cache,
        force=force,
    )
    done = build_engine(options, console)
    console.result(done.to_record(), engine_text(done))
