from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer

from connectors.errors import BadInput
from polarstream.cli.app import app
from polarstream.cli.main import INTERRUPTED
from streams import errors

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()


def commands(group: Any, path: str = "") -> set[str]:
    if not hasattr(group, "commands"):
        return {path.strip()}
    return {name for key, sub in group.commands.items() for name in commands(sub, f"{path} {key}")}


def test_the_page_lists_exactly_the_commands_that_there_are() -> None:
    table = PAGE.split("## Commands")[1].split("###")[0]
    first_cells = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    listed = {name for cell in first_cells for name in re.findall(r"`([a-z -]+)`", cell)}
    assert listed == commands(typer.main.get_command(app))


def test_the_page_lists_every_exit_code() -> None:
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}
    used = {0, 1, INTERRUPTED, BadInput.exit_code}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    used |= {kind.exit_code for kind in kinds if issubclass(kind, errors.PolarstreamError)}
    assert used == listed
