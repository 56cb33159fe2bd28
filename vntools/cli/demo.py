"""``vntools demo``: a real network on real images, all the way."""

from __future__ import annotations

__all__ = ["command"]

import os
import tempfile
from pathlib import Path

import click

from vntools.base.errors import CannotCreate
from vntools.cli._shared import Console, json_option


@click.command()
@click.option("--keep", type=Path, metavar="DIR", help="Keep the files there (a new folder).")
@json_option
@click.pass_obj
def command(console: Console, keep: Path | None) -> None:
    """Train, export, verify, type, build and compare a small network, in minutes."""
    if keep is not None:
        try:
            keep.mkdir()
        except FileExistsError as e:
            raise CannotCreate(
                "out.exists", "exists", hint="name a new folder", path=keep
            ) from e
    # As in vntools train: threads that spin while they wait take the other core's time.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from vntools.demo import run_demo
    from vntools.report.demo import demo_text

    with tempfile.TemporaryDirectory(prefix="vntools-demo-") as scratch:
        result = run_demo(keep or Path(scratch), console)
        console.result(result.to_record(), demo_text(result))
