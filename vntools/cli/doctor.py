"""``vntools doctor``."""
from __future__ import annotations
import click
from vntools.cli._shared import Console, json_option
@click.command()
@json_option
@click.pass_obj
def command(console: Console) -> None:
    """Say what is installed."""
    console.result({"a": 1}, "a 1")
