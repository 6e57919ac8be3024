"""The page of the optimiser against its transforms."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import pytest

from gpu_inference.errors import RecipeError
from gpu_inference.optimiser import TRANSFORMS
from gpu_inference.optimiser.recipe import recipe_of

PAGE = (Path(__file__).parents[2] / "docs" / "optimising.md").read_text(encoding="utf-8")


def rows() -> dict[str, tuple[str, str]]:
    """Group and number of each step of the table."""
    found = {}
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[0].startswith("`"):
            found |= dict.fromkeys(re.findall(r"`([a-z0-9-]+)`", cells[0]), (cells[1], cells[3]))
    return found


def test_the_page_lists_exactly_the_transforms_with_their_usual_numbers() -> None:
    assert list(rows()) == list(TRANSFORMS)
    for name, (_, number) in rows().items():
        usual = TRANSFORMS[name].usual
        assert number.endswith(f", {usual:g}") if usual is not None else number == ""


def test_steps_of_one_group_exclude_each_other_and_no_others_do() -> None:
    for one, other in combinations(TRANSFORMS, 2):
        group = rows()[one][0]
        if group and group == rows()[other][0]:
            with pytest.raises(RecipeError, match="exclude each other"):
                recipe_of({one: None, other: None})
        else:
            recipe_of({one: None, other: None})
