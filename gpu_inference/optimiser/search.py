"""The best recipe within a budget: single transforms first, then changes of what lies on the Pareto front.

The front holds the models that no other beats in size, time and what they keep together. Each further trial
takes one of it and changes one of its steps, so the search goes where models are good; the seed fixes it, but
for the times that are measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from gpu_inference.errors import ModelError, RecipeError
from gpu_inference.optimiser.measure import Judge, Measured
from gpu_inference.optimiser.recipe import USUAL, Recipe, parse_recipe, recipe_of

Progress = Callable[[int, int, str], None]

_FIRST: Final = (
    "fold",
    "fp16",
    "int8",
    "int8-static",
    "int8-dynamic",
    "int4",
    "int4+repair",
    "channels=0.25",
    "low-rank=0.95",
    "prune=0.8+sparse",
    "channels=0.25+int8",
    "low-rank=0.95+int8",
)
_CHANNELS: Final = (None, 0.125, 0.25, 0.375, 0.5, 0.625)
_ENERGIES: Final = (None, 0.99, 0.97, 0.95, 0.9, 0.8)
_SPARSITIES: Final = (None, 0.7, 0.8, 0.9)
_STORAGES: Final = (None, "fp16", "int8", "int8-static", "int8-dynamic", "int4")
_ATTEMPTS: Final = 200


@dataclass(frozen=True, slots=True)
class Budget:
    """What a model may cost beside the original; None where it may cost anything.

    Attributes:
        size: of the file, by the original's.
        time: of a run on the first target, by the original's.
        floor: the least that it keeps (Measured.kept).
    """

    size: float | None = None
    time: float | None = None
    floor: float = 0.99


@dataclass(frozen=True, slots=True)
class Found:
    """What a search tried.

    Attributes:
        original: the model itself.
        trials: models in the order in which they were tried.
        front: those of them, and the original, that no other beats, the smallest first.
        best: the one that keeps most within the budget; None where none is in it.
        nearest: the best, or else, of those that keep the floor, the one that is nearest to the budget.
        failed: recipes that can't be done to this model, and why.
    """

    original: Measured
    trials: tuple[Measured, ...]
    front: tuple[Measured, ...]
    best: Measured | None
    nearest: Measured | None
    failed: dict[str, str] = field(default_factory=dict)


def parse_budget(parts: Sequence[str], floor: float) -> Budget:
    """A budget as people write it: `size=0.5`, `time=0.8`, or both with a comma between them.

    Raises:
        RecipeError: it has another name, or no number above 0.
    """
    limits: dict[str, float] = {}
    for part in ",".join(parts).split(","):
        name, _, number = part.strip().partition("=")
        try:
            limit = float(number)
        except ValueError:
            limit = math.nan
        if name not in ("size", "time") or not 0 < limit < math.inf:
            raise RecipeError(
                f"no budget {part!r}: write size=0.5, time=0.8 or both with a comma between them"
            )
        limits[name] = limit
    if not 0 <= floor <= 1:
        raise RecipeError(f"a floor of {floor:g} is out of range: give a share from 0 to 1")
    return Budget(limits.get("size"), limits.get("time"), floor)


def compare(
    judge: Judge, recipes: Sequence[Recipe] = (), progress: Progress = lambda done, of, note: None
) -> Found:
    """Measures some recipes; the only one, where there is one, is the best.

    Args:
        judge: with the data and the targets.
        recipes: none for the usual ones, of which some may fail.
        progress: called with (done, of, recipe).

    Raises:
        ModelError: one that was given can't be done to this model.
    """
    todo = recipes or USUAL
    original = judge.measure(judge.original, "original")
    tried: list[Measured] = []
    failed: dict[str, str] = {}
    for done, recipe in enumerate(todo):
        progress(done, len(todo), str(recipe))
        try:
            tried.append(judge.measure(recipe.apply(judge.original, judge), str(recipe)))
        except ModelError as error:
            if recipes:
                raise
            failed[str(recipe)] = str(error)
    progress(len(todo), len(todo), "done")
    front = _front([original, *tried], lambda one: (one.ratio,))
    best = tried[0] if len(recipes) == 1 else None
    return Found(original, tuple(tried), tuple(front), best, best, failed)


def search(
    judge: Judge,
    budget: Budget,
    trials: int = 24,
    seed: int = 0,
    progress: Progress = lambda done, of, note: None,
) -> Found:
    """Tries recipes on the judge's model.

    Args:
        judge: with the data, and with targets if the budget has a time.
        budget: what the best one has to meet.
        trials: how many recipes, failed ones among them.
        seed: of every choice.
        progress: called with (done, of, recipe).

    Raises:
        RecipeError: the budget has a time, but there is no target, or the original doesn't run on it.
    """
    original = judge.measure(judge.original, "original")
    if budget.time is not None and not _seconds(judge, original):
        raise RecipeError("a budget of time needs a device that runs the model: name one with --device")
    measured: dict[Recipe, Measured] = {}
    failed: dict[str, str] = {}

    def costs(one: Measured) -> tuple[float, ...]:
        size = one.size_bytes / original.size_bytes
        if budget.time is None:
            return (size,)
        mine, whole = _seconds(judge, one), _seconds(judge, original)
        return size, mine / whole if mine and whole else math.inf

    def excess(one: Measured) -> float:
        """At most 1 within the budget."""
        limits = (budget.size, budget.time)
        return max(
            (cost / limit for cost, limit in zip(costs(one), limits, strict=False) if limit is not None),
            default=0.0,
        )

    def front() -> list[Recipe]:
        good = {id(one) for one in _front(list(measured.values()), costs)}
        return [recipe for recipe, one in measured.items() if id(one) in good]

    chance = np.random.default_rng(seed)
    seen: set[str] = set()
    for done in range(trials):
        recipe = next((r for r in _candidates(chance, front) if str(r) not in seen), None)
        if recipe is None:
            break
        seen.add(str(recipe))
        progress(done, trials, str(recipe))
        try:
            measured[recipe] = judge.measure(recipe.apply(judge.original, judge), str(recipe))
        except ModelError as error:
            failed[str(recipe)] = str(error)
    progress(trials, trials, "done")
    tried = tuple(measured.values())
    fitting = [one for one in (original, *tried) if one.kept >= budget.floor]
    within = [one for one in fitting if excess(one) <= 1]
    best = max(within, key=lambda one: (one.kept, -excess(one), -one.size_bytes), default=None)
    nearest = best or min(fitting, key=excess, default=None)
    return Found(original, tried, tuple(_front([original, *tried], costs)), best, nearest, failed)


def _front(models: Sequence[Measured], costs: Callable[[Measured], tuple[float, ...]]) -> list[Measured]:
    """Those that no other beats, the smallest first; of equal ones the first."""
    left: dict[tuple[float, ...], Measured] = {}
    for one in models:
        if not any(_beats(costs(other), other.kept, costs(one), one.kept) for other in models):
            left.setdefault((*costs(one), one.kept), one)
    return sorted(left.values(), key=lambda one: one.size_bytes)


def _seconds(judge: Judge, one: Measured) -> float | None:
    return one.seconds.get(judge.targets[0].name) if judge.targets else None


def _beats(costs: tuple[float, ...], kept: float, other: tuple[float, ...], others: float) -> bool:
    """Whether one is as good in everything, and better in something."""
    as_good = kept >= others and all(a <= b for a, b in zip(costs, other, strict=True))
    return as_good and (kept > others or costs != other)


def _candidates(chance: np.random.Generator, front: Callable[[], list[Recipe]]) -> Iterator[Recipe]:
    """The first ones in their order, then changes of the front's, without an end in sight."""
    yield from (parse_recipe(text) for text in _FIRST)
    best = front()
    for _ in range(_ATTEMPTS if best else 0):
        yield _changed(chance, best[chance.integers(len(best))])


def _changed(chance: np.random.Generator, recipe: Recipe) -> Recipe:
    steps: dict[str, float | None] = {step.name: step.number for step in recipe.steps if step.name != "fold"}
    match chance.integers(5):
        case 0:
            _set(steps, "channels", _CHANNELS[chance.integers(len(_CHANNELS))])
        case 1:
            _set(steps, "low-rank", _ENERGIES[chance.integers(len(_ENERGIES))])
        case 2:
            share = _SPARSITIES[chance.integers(len(_SPARSITIES))]
            _set(steps, "prune", share)
            steps.pop("sparse", None)
            if share is not None:  # zeros are left out of float32 files only
                steps = {name: number for name, number in steps.items() if name not in _STORAGES}
                steps["sparse"] = None
        case 3:
            _set(steps, "repair", None)
            if "repair" not in {step.name for step in recipe.steps}:
                steps["repair"] = None
        case _:
            storage = _STORAGES[chance.integers(len(_STORAGES))]
            gone = _STORAGES if storage is None else (*_STORAGES, "prune", "sparse")
            steps = {name: number for name, number in steps.items() if name not in gone}
            if storage is not None:
                steps[storage] = None
    return recipe_of(steps)


def _set(steps: dict[str, float | None], name: str, number: float | None) -> None:
    steps.pop(name, None)
    if number is not None:
        steps[name] = number
