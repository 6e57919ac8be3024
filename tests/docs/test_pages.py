"""Links, file names and commands in all Markdown pages."""

from __future__ import annotations

import functools
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import connectors.errors  # noqa: F401  (its errors have exit codes)
from polarstream.cli.app import app
from streams.errors import PolarstreamError

ROOT = Path(__file__).parents[2]
SKIPPED = {"node_modules", "results", "build", "dist"}
LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")
COMMAND = typer.main.get_command(app)


@functools.cache
def files(suffix: str) -> list[Path]:
    """The project's own files; what is hidden or made is not looked into."""
    found = []
    for folder, inner, names in os.walk(ROOT):
        inner[:] = [name for name in inner if not name.startswith(".") and name not in SKIPPED]
        found += [Path(folder, name).relative_to(ROOT) for name in names if name.endswith(suffix)]
    return sorted(found)


PAGES = files(".md")


def text_of(page: Path) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def leaves(command: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every command that does something, by its name."""
    for name, inner in getattr(command, "commands", {}).items():
        if hasattr(inner, "commands"):
            yield from leaves(inner, f"{path}{name} ")
        else:
            yield f"{path}{name}", inner


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for match in LINK.finditer(re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)):
        target, _, anchor = match["target"].partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        there = (ROOT / page.parent / target).resolve() if target else ROOT / page
        found = there.exists() and there.is_relative_to(ROOT)
        if found and anchor:
            found = anchor in anchors(there.relative_to(ROOT))
        if not found:
            broken.append(match["target"])
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_python_file_that_is_named_exists(page: Path) -> None:
    known = {f"/{path.as_posix()}" for path in files(".py")}
    named = set(re.findall(r"`([\w/]+\.py)\b", text_of(page)))
    assert {name for name in named if not any(path.endswith(f"/{name}") for path in known)} == set()


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_command_line_that_is_shown_is_one(page: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", text_of(page), re.DOTALL)
    for line in "\n".join(blocks).splitlines():
        words = shlex.split(line.rpartition("| ")[2], comments=True)
        if words[:1] != ["polarstream"]:
            continue
        command: Any = COMMAND
        del words[0]
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        command.make_context(command.name, words)  # raises for an option that there is not


def test_the_page_of_the_command_line_has_every_command() -> None:
    page = text_of(Path("docs/cli.md"))
    assert {name for name, _ in leaves(COMMAND) if f"`{name}`" not in page} == set()
    listed = {
        word
        for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
        for word in re.findall(r"`([^`]+)`", row)
    }
    assert listed <= {name for name, _ in leaves(COMMAND)}


def test_the_page_of_the_command_line_has_every_exit_code() -> None:
    def kinds(kind: type[PolarstreamError]) -> Iterator[type[PolarstreamError]]:
        yield kind
        for inner in kind.__subclasses__():
            yield from kinds(inner)

    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", text_of(Path("docs/cli.md")), re.MULTILINE)}
    raised = {kind.exit_code for kind in kinds(PolarstreamError)}
    assert raised - codes == set()
    assert codes - raised == {0, 130}


def test_every_command_shows_examples() -> None:
    assert [name for name, command in leaves(COMMAND) if "polarstream " not in (command.epilog or "")] == []
