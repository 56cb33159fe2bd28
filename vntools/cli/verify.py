"""``vntools verify``: two artifacts of any kind, held against each other."""

from __future__ import annotations

__all__ = ["command"]

from pathlib import Path

import click

from vntools.cli._shared import Console, json_option
from vntools.cli._trust import trust_options


@click.command()
@click.argument("path", type=Path, metavar="A")
@click.option("--against", type=Path, required=True, metavar="B",
              help="Checkpoint, ONNX file or plan to hold A against.")  # fmt: skip
@click.option("--data", type=Path, metavar="DIR",
              help="Images, or a .npz of inputs; default: seeded inputs.")  # fmt: skip
@click.option("--batch", type=click.IntRange(1), metavar="N",
              help="Samples at a time; default: 8, or as A and B are fixed.")  # fmt: skip
@click.option("--limit", type=click.IntRange(1), metavar="N",
              help="Samples at most; default: all of DIR, or 16 seeded.")  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto",
              show_default=True, help="Of all but plans; auto: a GPU if any.")  # fmt: skip
@click.option("--tolerance", type=click.FloatRange(0, 1, max_open=True), metavar="REL",
              help="Relative L2 to allow; default: by precision.")  # fmt: skip
@trust_options
@json_option
@click.pass_obj
def command(
    console: Console,
    path: Path,
    against: Path,
    data: Path | None,
    batch: int | None,
    limit: int | None,
    device: str,
    tolerance: float | None,
    trust_plan: bool,
    sha256: tuple[str, ...],
) -> None:
    """Compare the outputs of any two artifacts, within what their precision allows."""
    from vntools.engine.plan import Trust
    from vntools.pipeline.verify import VerifyOptions, verify
    from vntools.report.verification import verified_text

    trust = Trust(trust_plan, sha256)
    options = VerifyOptions(path, against, data, batch, limit, device, trust, tolerance)
    done = verify(options, console)
    console.result(done.to_record(), verified_text(done))
    done.require()
