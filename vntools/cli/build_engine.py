"""``vntools build-engine``: a verified ONNX file to a TensorRT plan."""

from __future__ import annotations

__all__ = ["command"]

import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vntools.base.errors import UsageFault, printable
from vntools.cli._shared import Console, json_option

if TYPE_CHECKING:
    from vntools.precision.calibrate import Method

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


def _points(_ctx: click.Context, _param: click.Parameter, value: float | None) -> float | None:
    """Not NaN, which lies in every range of click's."""
    if value is not None and math.isnan(value):
        raise click.BadParameter("nan is no number of points")
    return value


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


def _check(there: bool, given: Mapping[str, object], needed: str) -> None:
    """Refuse options that mean nothing without another.

    Raises:
        UsageFault: ``engine.option``.
    """
    for option, value in given.items():
        if not there and not (value is None or value is False or value == ()):
            raise UsageFault("engine.option", f"{option} needs {needed}")


@click.command()
@click.argument("model", type=Path, required=False, metavar="[MODEL.onnx]")
@click.option("--fp32", is_flag=True, help="Single precision, TF32 allowed (default).")
@click.option("--fp16", is_flag=True, help="Half precision.")
@click.option("--bf16", is_flag=True, help="bfloat16.")
@click.option("--int8", is_flag=True, help="INT8 by Q/DQ; the rest FP16, or as given beside.")
@click.option("--calib", type=Path, metavar="DIR",
              help="INT8: images, or an .npz of input batches.")  # fmt: skip
@click.option("--calib-method", type=click.Choice(["minmax", "entropy", "percentile"]),
              show_default="minmax", help="INT8: how ranges are found.")  # fmt: skip
@click.option("--calib-cache", type=Path, metavar="FILE",
              help="INT8: ranges to reuse, written if not there.")  # fmt: skip
@click.option("--calib-images", type=click.IntRange(1), metavar="N",
              help="INT8: at most so many, spread evenly.")  # fmt: skip
@click.option("--int8-depthwise", is_flag=True, help="Grouped convolutions in INT8 too.")
@click.option("--int8-head", is_flag=True, help="The classifier in INT8 too.")
@click.option("--equalize/--no-equalize", default=True,
              help="INT8: even out channel ranges where it helps.")  # fmt: skip
@click.option("--max-drop", type=click.FloatRange(0, 100), callback=_points,
              metavar="POINTS",
              help="INT8: top-1 that may be lost; costly layers stay float.")  # fmt: skip
@click.option("--eval-data", type=Path, metavar="DIR",
              help="INT8: labelled images that --max-drop is of.")  # fmt: skip
@click.option("--class-map", type=Path, metavar="FILE",
              help="Numbers of the class folders of --eval-data.")  # fmt: skip
@click.option("--fp16-layers", multiple=True, metavar="PATTERN",
              help="Layers that are not INT8, such as 'stem.*'.")  # fmt: skip
@click.option("--fp32-layers", multiple=True, metavar="PATTERN",
              help="Layers that stay single precision.")  # fmt: skip
@click.option("--keep-onnx", type=Path, metavar="FILE", help="Write the typed graph too.")
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
    fp32: bool,
    fp16: bool,
    bf16: bool,
    int8: bool,
    calib: Path | None,
    calib_method: Method | None,
    calib_cache: Path | None,
    calib_images: int | None,
    int8_depthwise: bool,
    int8_head: bool,
    equalize: bool,
    max_drop: float | None,
    eval_data: Path | None,
    class_map: Path | None,
    fp16_layers: tuple[str, ...],
    fp32_layers: tuple[str, ...],
    keep_onnx: Path | None,
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
    floats = [name for name, given in
              (("fp32", fp32), ("fp16", fp16), ("bf16", bf16)) if given]  # fmt: skip
    if len(floats) > 1:
        raise UsageFault(
            "engine.precision_twice", f"--{floats[0]} and --{floats[1]} exclude each other"
        )
    quantize = None
    if int8:
        if calib is None:
            raise UsageFault(
                "calib.required",
                "--int8 needs real images to find ranges with",
                hint="add --calib DIR; some hundred images like those the engine will see",
            )
        from vntools.pipeline.quantize import Int8Options

        quantize = Int8Options(
            calib,
            method=calib_method or "minmax",
            cache=calib_cache,
            images=calib_images,
            depthwise=int8_depthwise,
            head=int8_head,
            equalize=equalize,
            max_drop=max_drop,
            eval_data=eval_data,
            class_map=class_map,
        )
    given = {
        "--calib": calib, "--calib-method": calib_method, "--calib-cache": calib_cache,
        "--calib-images": calib_images, "--int8-depthwise": int8_depthwise,
        "--int8-head": int8_head, "--no-equalize": not equalize, "--max-drop": max_drop,
        "--eval-data": eval_data, "--fp16-layers": fp16_layers,
    }  # fmt: skip
    _check(int8, given, "--int8")
    typed = int8 or floats in (["fp16"], ["bf16"])
    _check(typed, {"--fp32-layers": fp32_layers}, "--fp16, --bf16 or --int8")
    _check(max_drop is not None, {"--eval-data": eval_data}, "--max-drop")
    _check(eval_data is not None, {"--class-map": class_map}, "--eval-data")
    from vntools.pipeline.engine import EngineOptions, build_engine
    from vntools.pipeline.quantize import Int8Refused
    from vntools.report.engines import engine_text, int8_text

    options = EngineOptions(
        model or _chosen(console),
        out=out,
        precision="int8" if int8 else floats[0] if floats else "fp32",
        rest=floats[0] if floats else "fp16",
        int8=quantize,
        fp16_layers=fp16_layers,
        fp32_layers=fp32_layers,
        keep_onnx=keep_onnx,
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
    try:
        done = build_engine(options, console)
    except Int8Refused as e:
        console.result({"int8": e.report.to_record()}, int8_text(e.report))
        raise
    console.result(done.to_record(), engine_text(done))
