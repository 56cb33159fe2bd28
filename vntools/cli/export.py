"""``vntools export``: a checkpoint to a merged, verified ONNX file."""

from __future__ import annotations

__all__ = ["command"]

from pathlib import Path

import click

from vntools.cli._shared import Console, json_option


@click.command()
@click.option(
    "--ckpt", type=Path, required=True, metavar="FILE", help="Checkpoint (.pth, .safetensors)."
)
@click.option("--out", type=Path, required=True, metavar="FILE", help="ONNX file to write.")
@click.option("--arch", metavar="NAME", help="Architecture, where the file does not tell.")
@click.option("--key", metavar="NAME", help="Weights to use (default: model_ema, else model).")
@click.option("--num-classes", type=click.IntRange(1), metavar="N",
              help="What the head must have.")  # fmt: skip
@click.option(
    "--image-size", type=click.IntRange(1), metavar="PIXELS", help="Height and width."
)
@click.option("--batch", type=click.IntRange(1), metavar="N", help="Fix the batch.")
@click.option(
    "--opset", type=click.IntRange(18), metavar="N", help="ONNX opset (default: 20)."
)
@click.option("--normalize", metavar="imagenet|MEAN,STD",
              help="Normalise in the graph: pixels over 255, less MEAN, over STD; two numbers "
              "or six (R, G, B each). Default: left to the host.")  # fmt: skip
@click.option("--input-type", type=click.Choice(["uint8", "fp32", "fp16"]), default="fp32",
              show_default=True, help="Type of the input; uint8 holds 0..255 and needs "
              "--normalize.")  # fmt: skip
@click.option("--layout", type=click.Choice(["nchw", "nhwc"]), default="nchw",
              show_default=True, help="Of the input; a decoded image is nhwc.")  # fmt: skip
@click.option("--head", type=click.Choice(["logits", "softmax", "top5"]), default="logits",
              show_default=True, help="What the graph gives.")  # fmt: skip
@click.option("--no-merge", is_flag=True, help="Write the training graph, tidied only.")
@click.option("--force", is_flag=True, help="Overwrite a file that vntools did not write.")
@json_option
@click.pass_obj
def command(
    console: Console,
    ckpt: Path,
    out: Path,
    arch: str | None,
    key: str | None,
    num_classes: int | None,
    image_size: int | None,
    batch: int | None,
    opset: int | None,
    normalize: str | None,
    input_type: str,
    layout: str,
    head: str,
    no_merge: bool,
    force: bool,
) -> None:
    """Collapse a training checkpoint into one verified ONNX file."""
    from vntools.pipeline.export import ExportOptions, export
    from vntools.report.graphs import exported_text

    options = ExportOptions(
        ckpt,
        out,
        arch=arch,
        key=key,
        num_classes=num_classes,
        image_size=image_size,
        batch=batch,
        opset=opset,
        merge=not no_merge,
        force=force,
        normalize=normalize,
        input_type=input_type,
        layout=layout,
        head=head,
    )
    done = export(options, console)
    console.result(done.to_record(), exported_text(done))
