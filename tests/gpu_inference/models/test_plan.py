"""Ensembles and cascades by records: what runs, and one answer whatever fails."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_inference.errors import ModelNotReady, RecordError, UnknownModel
from gpu_inference.models.live import LiveModels, Route
from gpu_inference.models.plan import plan

SHA = "ab" * 32


def state_of(*ready: str, loading: str = "") -> LiveModels:
    state = LiveModels()
    for name in (*ready, *filter(None, [loading])):
        state.apply(*state.added(name, "1", SHA))
        state.apply(*state.promote(name, "1"))
        if name in ready:
            state.loaded(name, "1")
            state.warmed(name, "1")
    return state


def label(name: str, score: float) -> dict[str, Any]:
    return {"label": name, "score": score, "top": [{"label": name, "class": ord(name[0]), "score": score}]}


def test_a_single_model_is_a_plan_too() -> None:
    made = plan(state_of("a"), "a", "cam")
    assert made.routes == {"a": Route("a", "1")}
    assert made.final({"a": label("cat", 0.9)}) == label("cat", 0.9)
    assert made.final({}) == {"error": "no answer"}
    assert not made.wants_second(label("cat", 0.9))
    with pytest.raises(UnknownModel):
        plan(state_of("a"), "b", "cam")


def test_an_ensemble_runs_its_members_and_says_who_is_missing() -> None:
    state = state_of("a", "b", loading="c")
    state.apply(b"ensemble/yard", b'{"members": ["a", "b", "c"], "method": "weighted", "weights": [1, 3, 1]}')
    made = plan(state, "yard", "cam")
    assert made.routes.keys() == {"a", "b"}
    answer = made.final({"a": label("cat", 0.8), "b": label("dog", 0.6)})
    assert (answer["label"], answer["members"]) == ("dog", "2 of 3")
    assert "not ready" in answer["failed"]["c"]
    state.loaded("c", "1")
    state.warmed("c", "1")
    whole = plan(state, "yard", "cam")
    assert whole.missing == {}
    assert whole.final({name: label("cat", 0.5) for name in "abc"})["members"] == "3 of 3"


def test_a_cascade_runs_the_second_model_where_its_rule_says_so() -> None:
    state = state_of("quick", "exact")
    state.apply(b"cascade/gate", b'{"first": "quick", "second": "exact", "rule": {"max_score": 0.8}}')
    made = plan(state, "gate", "cam")
    assert made.routes == {"first": Route("quick", "1"), "second": Route("exact", "1")}
    sure, unsure, dear = label("cat", 0.9), label("cat", 0.6), label("lynx", 0.7)
    assert not made.wants_second(sure)
    assert made.final({"first": sure}) == sure | {"stage": 1}
    assert made.wants_second(unsure)
    assert made.final({"first": unsure, "second": dear}) == dear | {"stage": 2}
    assert made.final({"first": unsure})["failed"] == {"second": "no answer"}


def test_a_cascade_goes_on_with_the_model_that_it_has() -> None:
    state = state_of("quick", loading="exact")
    state.apply(b"cascade/gate", b'{"first": "quick", "second": "exact", "rule": {"max_score": 0.8}}')
    made = plan(state, "gate", "cam")
    assert not made.wants_second(label("cat", 0.6))
    answer = made.final({"first": label("cat", 0.6)})
    assert (answer["label"], answer["stage"]) == ("cat", 1)
    assert "not ready" in answer["failed"]["second"]
    assert made.final({"first": label("cat", 0.9)}) == label("cat", 0.9) | {"stage": 1}


def test_nothing_ready_is_told_with_the_reasons() -> None:
    state = state_of(loading="a")
    state.apply(b"ensemble/yard", b'{"members": ["a", "b"]}')
    with pytest.raises(
        ModelNotReady, match=r"no member of 'yard' is ready \(a: .*; b: no model or alias 'b'"
    ):
        plan(state, "yard", "cam")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (b"ensemble/yard", b'{"members": []}', "members"),
        (b"ensemble/yard", b'{"members": ["a", "a"]}', "named twice"),
        (b"ensemble/yard", b'{"members": ["a", "b"], "weights": [1]}', "1 weights for 2 members"),
        (b"ensemble/yard", b'{"members": ["a"], "method": "best"}', "method"),
        (b"cascade/gate", b'{"first": "a", "second": "b"}', "rule"),
    ],
)
def test_records_that_make_no_plan_are_refused(key: bytes, value: bytes, reason: str) -> None:
    state = state_of("a")
    with pytest.raises(RecordError, match=reason):
        state.apply(key, value)
    assert state.ensembles == {}
