"""``vntools train``: deep-train a small VanillaNet and write a checkpoint."""

from __future__ import annotations

__all__ = ["command"]

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vntools.base.artifacts import check_output
from vntools.base.errors import UsageFault
from vntools.cli._shared import Console, json_option
from vntools.models.arch import Architecture
from vntools.models.schedule import Schedule, TrainOptions

if TYPE_CHECKING:
    from vntools.models.data import Images
    from vntools.models.train import EpochReport


def _integers(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[int, ...]:
    """Whole numbers with commas or spaces between."""
    try:
        return tuple(int(word) for word in value.replace(",", " ").split())
    except ValueError as e:
        raise click.BadParameter(f"{value!r} is no list such as 64,128,256") from e


@click.command()
@click.option(
    "--data", required=True, metavar="digits|DIR", help="Images: a folder per class."
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Checkpoint to write."
)
@click.option("--dims", callback=_integers, default="64,128,256,512", show_default=True)
@click.option("--strides", callback=_integers, default="2,2,1", show_default=True)
@click.option(
    "--act-num",
    type=click.IntRange(0),
    default=Architecture.activation_n,
    show_default=True,
    help="n, Eq. 6.",
)
@click.option("--image-size", type=click.IntRange(1), help="Default: 32 for digits, else 224.")
@click.option(
    "--epochs", type=click.IntRange(1), default=TrainOptions.epochs, show_default=True
)
@click.option(
    "--decay-epochs",
    type=click.IntRange(0),
    default=TrainOptions.decay_epochs,
    show_default=True,
    help="Epochs in which lambda goes from 0 to 1; the rest run at 1.",
)
@click.option(
    "--schedule",
    type=click.Choice(["linear", "cosine"]),
    default=TrainOptions.schedule,
    show_default=True,
)
@click.option(
    "--batch-size", type=click.IntRange(2), default=TrainOptions.batch_size, show_default=True
)
@click.option(
    "--lr",
    type=click.FloatRange(0, min_open=True),
    default=TrainOptions.learning_rate,
    show_default=True,
)
@click.option("--seed", type=click.IntRange(0), default=TrainOptions.seed, show_default=True)
@click.option("--force", is_flag=True, help="Overwrite --out.")
@json_option
@click.pass_obj
def command(
    console: Console,
    *,
    data: str,
    out: Path,
    dims: tuple[int, ...],
    strides: tuple[int, ...],
    act_num: int,
    image_size: int | None,
    epochs: int,
    decay_epochs: int,
    schedule: Schedule,
    batch_size: int,
    lr: float,
    seed: int,
    force: bool,
) -> None:
    """Deep-train a small VanillaNet and write a checkpoint in the released format.

    --data is a folder that holds one folder of images per class (or train/ and val/ with such
    folders), or the word digits: scikit-learn's handwritten digits.
    """
    check_output(out, force=force)
    # OpenMP threads that spin while they wait make training many times slower where another
    # process wants the cores; this is read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    training, test = _images(data)

    from vntools.models.train import train, write_checkpoint

    try:
        arch = Architecture(
            name="vanillanet",
            dims=dims,
            strides=strides,
            activation_n=act_num,
            image_size=image_size or training.preprocessing.image_size,
        )
        arch.map_sizes()
    except ValueError as e:
        raise UsageFault("train.arch", str(e)) from e
    options = TrainOptions(
        arch=arch,
        epochs=epochs,
        decay_epochs=decay_epochs,
        schedule=schedule,
        batch_size=batch_size,
        learning_rate=lr,
        seed=seed,
    )
    console.note(f"{len(training)} images to learn from, {len(test)} to measure on")
    with console.progress("training", epochs) as advance:

        def on_epoch(report: EpochReport) -> None:
            advance()
            console.note(
                f"epoch {report.epoch}: lambda {report.activation_lambda:.2f}, "
                f"loss {report.loss:.3f}, test top-1 {report.top1_percent:.2f} %"
            )

        trained = train(options, training, test, on_epoch=on_epoch)
    write_checkpoint(trained, out, force=force)
    top1 = trained.history[-1].top1_percent
    record = {
        "checkpoint": str(out),
        "top1_percent": top1,
        "parameters": trained.arch.training_parameters(),
        "epochs": [asdict(report) for report in trained.history],
    }
    console.result(record, f"{out}: test top-1 {top1:.2f} %")


def _images(data: str) -> tuple[Images, Images]:
    """A training and a test part of what --data names."""
    from vntools.models.data import digits, image_folder

    return digits() if data == "digits" else image_folder(data)
