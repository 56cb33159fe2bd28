"""``vntools eval``: top-1 and top-5 on a folder of images."""

from __future__ import annotations

__all__ = ["command"]

from pathlib import Path

import click

from vntools.cli._shared import Console, json_option
from vntools.cli._trust import trust_options


@click.command()
@click.option("--engine", type=Path, metavar="FILE", help="A TensorRT plan.")
@click.option("--onnx", type=Path, metavar="FILE", help="An ONNX file, in ONNX Runtime.")
@click.option("--ckpt", type=Path, metavar="FILE", help="A checkpoint, in PyTorch.")
@click.option("--data", type=Path, required=True, metavar="DIR",
              help="Images in class folders.")  # fmt: skip
@click.option("--real-labels", type=Path, metavar="FILE",
              help="real.json of ImageNet-ReaL.")  # fmt: skip
@click.option("--class-map", type=Path, metavar="FILE",
              help="Number of each class folder: JSON, or lines of both.")  # fmt: skip
@click.option("--compare", type=Path, metavar="FILE",
              help="Another artifact on the same images.")  # fmt: skip
@click.option("--min-top1", type=click.FloatRange(0, 100), metavar="P",
              help="Exit 1 below P per cent.")  # fmt: skip
@click.option("--skip-bad", is_flag=True, help="Leave out images that cannot be read.")
@click.option("--crop-ratio", type=click.FloatRange(0.1, 1), metavar="R",
              help="Default: the artifact's.")  # fmt: skip
@click.option("--batch", type=click.IntRange(1), metavar="N",
              help="Images in a query. Default: 8, or as the artifact has it.")  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto",
              show_default=True, help="auto: a GPU where one answers.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1), metavar="N", help="On a CPU.")
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Threads that decode.")
@trust_options
@json_option
@click.pass_obj
def command(
    console: Console,
    engine: Path | None,
    onnx: Path | None,
    ckpt: Path | None,
    data: Path,
    real_labels: Path | None,
    class_map: Path | None,
    compare: Path | None,
    min_top1: float | None,
    skip_bad: bool,
    crop_ratio: float | None,
    batch: int | None,
    device: str,
    threads: int | None,
    workers: int | None,
    trust_plan: bool,
    sha256: tuple[str, ...],
) -> None:
    """Measure top-1 and top-5 with the preprocessing of the artifact.

    torchrun --no-python --nproc-per-node N vntools eval ... spreads the images over N
    processes, each with a GPU of its own where there are GPUs.
    """
    from vntools.base.artifacts import require_file
    from vntools.engine.plan import Trust
    from vntools.pipeline.bench import Artifact

    artifact = Artifact(engine, onnx, ckpt, device, threads, Trust(trust_plan, sha256))
    require_file(artifact.path)
    from vntools.pipeline.evaluate import EvalOptions, evaluate
    from vntools.report.evaluation import evaluation_text

    options = EvalOptions(
        artifact,
        data,
        batch=batch,
        real_labels=real_labels,
        class_map=class_map,
        compare=compare,
        skip_bad=skip_bad,
        min_top1_percent=min_top1,
        workers=workers,
        crop_ratio=crop_ratio,
    )
    done = evaluate(options, console)
    if done is None:
        console.json = False  # the first process prints
        return
    console.result(done.to_record(), evaluation_text(done))
    done.require(min_top1)
