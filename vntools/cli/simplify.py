"""``vntools simplify``: the graph passes on any ONNX file."""

from __future__ import annotations

__all__ = ["command"]

from pathlib import Path

import click

from vntools.cli._shared import Console, json_option


@click.command()
@click.argument("source", type=Path, metavar="IN.onnx")
@click.option("--out", type=Path, required=True, metavar="FILE", help="ONNX file to write.")
@click.option("--force", is_flag=True, help="Overwrite a file that vntools did not write.")
@json_option
@click.pass_obj
def command(console: Console, source: Path, out: Path, force: bool) -> None:
    """Collapse the linear parts of any ONNX file, verified."""
    from vntools.pipeline.simplify import SimplifyOptions, simplify
    from vntools.report.graphs import exported_text

    done = simplify(SimplifyOptions(source, out, force), console)
    console.result(done.to_record(), exported_text(done))
