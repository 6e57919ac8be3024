"""Ensembles and cascades: one answer of several, and honest about those that failed."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_inference.errors import ModelError
from gpu_inference.models.ensemble import CascadeRule, Ensemble, fuse

LABELS = ("cat", "dog", "cow")


def classes(*scores: float) -> dict[str, Any]:
    ranked = sorted(range(len(scores)), key=lambda i: -scores[i])
    top = [{"label": LABELS[i], "class": i, "score": scores[i]} for i in ranked]
    return {"label": top[0]["label"], "score": top[0]["score"], "top": top}


def box(label: str, score: float, *corners: float) -> dict[str, Any]:
    return {"label": label, "class": LABELS.index(label), "score": score, "box": list(corners)}


THREE = {"a": classes(0.9, 0.1, 0.0), "b": classes(0.3, 0.4, 0.3), "c": classes(0.2, 0.45, 0.35)}


@pytest.mark.parametrize(
    ("method", "weights", "label", "score"),
    [
        ("mean", None, "cat", 0.4667),
        ("weighted", (1, 4, 4), "dog", (0.1 + 1.6 + 1.8) / 9),
        ("vote", None, "dog", (0.1 + 0.4 + 0.45) / 3),
        ("median", None, "dog", 0.4),
    ],
)
def test_classes_are_combined(method: Any, weights: Any, label: str, score: float) -> None:
    answer = Ensemble(("a", "b", "c"), method, weights).combine(THREE)
    assert (answer["label"], answer["members"]) == (label, "3 of 3")
    assert answer["score"] == pytest.approx(score, abs=1e-4)
    assert "failed" not in answer
    assert answer["top"][0] == {"label": label, "class": LABELS.index(label), "score": answer["score"]}


def test_a_failed_member_degrades_the_answer_and_is_told() -> None:
    ensemble = Ensemble(("a", "b", "c"))
    answer = ensemble.combine({"a": THREE["a"], "b": {"error": "device_lost"}})
    assert answer["members"] == "1 of 3"
    assert answer["failed"] == {"b": "device_lost", "c": "no answer"}
    assert answer["label"] == "cat"
    assert answer["score"] == 0.9
    nobody = ensemble.combine({"a": {"error": "not_finite"}})
    assert nobody["error"] == "no_member"
    assert nobody["members"] == "0 of 3"


def test_numbers_are_combined_by_name() -> None:
    given = {
        name: {"values": {"x": x, "y": -x}, "units": {"x": "m"}}
        for name, x in (("a", 1.0), ("b", 2.0), ("c", 9.0))
    }
    assert Ensemble("abc").combine(given)["values"] == {"x": 4.0, "y": -4.0}
    assert Ensemble("abc", "median").combine(given)["values"] == {"x": 2.0, "y": -2.0}
    weighted = Ensemble("abc", "weighted", (1, 1, 2)).combine(given)
    assert (weighted["values"], weighted["units"]) == ({"x": 5.25, "y": -5.25}, {"x": "m"})
    series = {"a": {"forecast": {"t": [1.0, 2.0, 3.0]}}, "b": {"forecast": {"t": [3.0, 4.0]}}}
    assert Ensemble("ab").combine(series)["forecast"] == {"t": [2.0, 3.0]}
    with pytest.raises(ModelError, match="numbers can't vote"):
        Ensemble("abc", "vote").combine(given)
    with pytest.raises(ModelError, match="different values"):
        Ensemble("ab").combine({"a": {"values": {"x": 1.0}}, "b": {"values": {"y": 1.0}}})


def test_boxes_are_fused_by_score_and_weight() -> None:
    given = [
        [box("cat", 0.8, 0, 0, 10, 10), box("dog", 0.6, 50, 50, 60, 60)],
        [box("cat", 0.4, 1, 0, 11, 10), box("dog", 0.9, 0, 0, 10, 10)],
    ]
    fused = fuse(given, [1, 1], 0.55)
    assert [(one["label"], one["score"]) for one in fused] == [("cat", 0.6), ("dog", 0.45), ("dog", 0.3)]
    assert fused[0]["box"] == [
        pytest.approx(0.4 / 1.2, abs=0.01),
        0,
        pytest.approx(10 + 0.4 / 1.2, abs=0.01),
        10,
    ]
    heavy = fuse(given, [1, 3], 0.55)
    assert heavy[0]["box"] == box("dog", 0, 0, 0, 10, 10)["box"]
    assert [one["label"] for one in fuse(given, [1, 1], 0.55, by_majority=True)] == ["cat"]
    answer = Ensemble("ab", "vote").combine({"a": {"boxes": given[0]}, "b": {"boxes": given[1]}})
    assert [one["label"] for one in answer["boxes"]] == ["cat"]
    assert Ensemble("ab").combine({"a": {"boxes": []}, "b": {"boxes": []}})["boxes"] == []
    with pytest.raises(ModelError, match="no median"):
        Ensemble("ab", "median").combine({"a": {"boxes": []}, "b": {"boxes": []}})


def test_two_boxes_of_one_member_stay_two() -> None:
    near = [box("cat", 0.8, 0, 0, 10, 10), box("cat", 0.7, 1, 0, 11, 10)]
    assert len(fuse([near], [1], 0.55)) == 2
    assert [one["score"] for one in fuse([near, near], [1, 1], 0.55)] == [0.8, 0.7]


def test_what_can_not_be_combined_is_refused() -> None:
    with pytest.raises(ModelError, match="different tasks"):
        Ensemble("ab").combine({"a": {"boxes": []}, "b": {"values": {}}})
    with pytest.raises(ModelError, match="2 weights for 1 members"):
        Ensemble("a", "weighted", (1, 2))
    with pytest.raises(ModelError, match="named twice"):
        Ensemble("aa")


def test_a_cascade_asks_the_second_model_where_its_rule_says_so() -> None:
    unsure = CascadeRule(max_score=0.8)
    assert unsure.wants_second(classes(0.6, 0.4, 0))
    assert not unsure.wants_second(classes(0.9, 0.1, 0))
    assert unsure.wants_second({"error": "not_finite"})
    cats = CascadeRule(labels=("cat",), min_score=0.5)
    assert cats.wants_second({"boxes": [box("dog", 0.9, 0, 0, 1, 1), box("cat", 0.6, 0, 0, 1, 1)]})
    assert not cats.wants_second({"boxes": [box("dog", 0.9, 0, 0, 1, 1), box("cat", 0.4, 0, 0, 1, 1)]})
    assert not cats.wants_second({"masks": [{"label": "dog"}]})
    assert cats.wants_second({"masks": [{"label": "cat"}]})


def test_a_cascade_says_which_model_has_answered() -> None:
    rule, first, second = CascadeRule(), {"label": "cat"}, {"label": "lynx"}
    assert rule.final(first, None) == {"label": "cat", "stage": 1}
    assert rule.final(first, second) == {"label": "lynx", "stage": 2}
    assert rule.final(first, {"error": "device_lost"}) == {
        "label": "cat",
        "stage": 1,
        "failed": {"second": "device_lost"},
    }
    assert rule.final({"error": "a"}, {"error": "b"}) == {"error": "b", "stage": 2}
