"""Random command lines: what every command promises holds of each, and the check can fail."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from tests.fuzz.command_line import Case, cases, check
from vntools.cli import _commands
from vntools.cli._shared import Console, json_option

BATCHES, COUNT = 8, 40


@pytest.mark.parametrize("seed", range(BATCHES))
def test_command_lines(tmp_path: Path, seed: int) -> None:
    for i, case in enumerate(cases(seed, COUNT)):
        folder = tmp_path / str(i)
        folder.mkdir()
        try:
            check(case, folder)
        except AssertionError as e:
            raise AssertionError(f"{case}: {e}") from e


def test_the_same_seed_gives_the_same_cases() -> None:
    assert list(cases(1, 40)) == list(cases(1, 40))
    assert list(cases(1, 40)) != list(cases(2, 40))


def test_every_command_is_drawn() -> None:
    drawn = {case.words[0] for case in cases(0, 400)}
    assert drawn >= set(_commands.vntools.list_commands(click.Context(_commands.vntools)))


@pytest.mark.parametrize("fault", ["status", "internal", "printed", "temporary"])
def test_the_check_can_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    @click.command()
    @json_option
    @click.pass_obj
    def command(console: Console) -> None:
        if fault == "status":
            raise click.exceptions.Exit(3)
        if fault == "internal":
            raise TypeError
        if fault == "printed":
            click.echo("by the way")
        Path(".out.onnx.0123.vntmp").touch()

    monkeypatch.setattr(_commands, "_load", lambda name: command)
    with pytest.raises((AssertionError, ValueError)):
        check(Case(("models", "--json")), tmp_path)
