"""The choice among candidates."""

from __future__ import annotations

import pytest

from gpu_inference.errors import ModelError
from gpu_inference.models.selection import Candidate, choose

SMALL = Candidate("small", "1", 0.70, (), 0.004)
MIDDLE = Candidate("middle", "1", 0.77, (), 0.012)
LARGE = Candidate("large", "3", 0.84, (), 0.060)
HEAT = Candidate("heat", "1", 0.60, ("thermal",), 0.005)
ALL = (SMALL, MIDDLE, LARGE, HEAT)


@pytest.mark.parametrize(
    ("budget_s", "name", "within"),
    [(0.1, "large", True), (0.02, "middle", True), (0.005, "small", True), (0.001, "small", False)],
)
def test_the_most_accurate_one_within_the_budget_is_taken(budget_s: float, name: str, within: bool) -> None:
    choice = choose(ALL, "colour", budget_s)
    assert (choice.candidate.model, choice.within_budget) == (name, within)


def test_the_reason_names_numbers() -> None:
    assert choose(ALL, "colour", 0.02).reason == (
        "accuracy 0.770 in 12 of 20 ms, the best of 2 that are quick enough; large 3 would take 60 ms"
    )
    assert choose(ALL, "colour", 0.001).reason == "none answers in 1 ms; the quickest takes 4 ms"


def test_load_counts_as_latency() -> None:
    busy = Candidate("middle", "1", 0.77, (), 0.012, queue_s=0.010)
    assert choose((SMALL, busy), "", 0.02).candidate.model == "small"


def test_only_models_made_for_the_data_and_loaded_are_taken() -> None:
    assert choose((HEAT,), "thermal", 1).candidate is HEAT
    cold = Candidate("cold", "1", 0.99, (), 0.001, ready=False)
    assert choose((cold, SMALL), "thermal", 1).candidate is SMALL
    with pytest.raises(ModelError, match="heat 1: made for thermal; cold 1: not loaded"):
        choose((HEAT, cold), "colour", 1)
    with pytest.raises(ModelError, match="none is given"):
        choose((), "colour", 1)


def test_of_equal_ones_the_quickest_is_taken_and_unknown_accuracy_counts_least() -> None:
    unknown = Candidate("unknown", "1", None, (), 0.001)
    slow = Candidate("slow", "1", 0.70, (), 0.009)
    assert choose((unknown, slow, SMALL), "", 1).candidate is SMALL
    assert choose((unknown,), "", 1).reason.startswith("unknown accuracy")


def test_what_runs_stays_while_it_fits_and_no_other_is_clearly_better() -> None:
    near = Candidate("near", "1", 0.772, (), 0.010)
    assert choose((MIDDLE, near), "", 0.02, current=("middle", "1")).candidate is MIDDLE
    assert choose((MIDDLE, near), "", 0.02).candidate is near
    assert choose((MIDDLE, LARGE), "", 0.1, current=("middle", "1")).candidate is LARGE
    assert choose((MIDDLE, near), "", 0.011, current=("middle", "1")).candidate is near
