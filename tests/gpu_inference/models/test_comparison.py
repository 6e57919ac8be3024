"""Comparisons of versions: the numbers against plain formulas, the rules against known differences."""

from __future__ import annotations

import base64

import msgspec
import numpy as np
import pytest

from gpu_inference.models.agreement import agreement
from gpu_inference.models.comparison import Comparison, Rules, Sums, wilson


def label(name: str, score: float = 0.9) -> dict[str, object]:
    return {"label": name, "score": score}


def box(name: str, *corners: float, score: float = 0.5) -> dict[str, object]:
    return {"label": name, "box": list(corners), "score": score}


def mask(name: str, pixels: np.ndarray) -> dict[str, object]:
    flat = pixels.T.reshape(-1).tolist()
    counts, inside = [0], False
    for pixel in flat:
        if pixel != inside:
            counts.append(0)
            inside = not inside
        counts[-1] += 1
    return {"label": name, "rle": {"size": list(pixels.shape), "counts": counts}}


def test_classes_agree_or_not() -> None:
    assert agreement(label("cat", 0.9), label("cat", 0.8)) == (1.0, pytest.approx(-0.1))
    assert agreement(label("cat"), label("dog"))[0] == 0
    assert agreement(label("cat"), {"error": "not_finite"}) == (0.0, None)
    assert agreement({"error": "not_finite"}, {"error": "not_finite"}) == (1.0, None)


def test_boxes_agree_as_far_as_both_find_them() -> None:
    a = {"boxes": [box("car", 0, 0, 10, 10), box("car", 20, 0, 30, 10), box("dog", 50, 0, 60, 10)]}
    b = {"boxes": [box("car", 1, 0, 11, 10, score=0.7), box("cat", 50, 0, 60, 10)]}
    assert agreement(a, b) == (pytest.approx(2 / 5), pytest.approx(0.2))
    assert agreement({"boxes": []}, {"boxes": []}) == (1.0, None)
    assert agreement(a, {"boxes": []}) == (0.0, None)
    twice = {"boxes": [box("car", 0, 0, 10, 10), box("car", 0, 0, 10, 9)]}
    assert agreement({"boxes": a["boxes"][:1]}, twice)[0] == pytest.approx(2 / 3)  # one box is found once


def test_masks_agree_by_their_intersection_over_union() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        first, second = rng.random((2, 6, 5)) < rng.uniform(0.1, 0.9)
        wanted = (first & second).sum() / max((first | second).sum(), 1)
        assert agreement({"masks": [mask("car", first)]}, {"masks": [mask("car", second)]})[
            0
        ] == pytest.approx(wanted)
    assert agreement({"masks": [mask("car", first)]}, {"masks": [mask("dog", first)]})[0] == 0
    assert agreement({"masks": []}, {"masks": []})[0] == 1


def test_numbers_agree_within_the_tolerance() -> None:
    a, b = {"values": {"x": 100.0, "y": 0.0, "z": 1.0}}, {"values": {"x": 104.0, "y": 0.0, "z": 2.0}}
    assert agreement(a, b, 0.05) == (pytest.approx(2 / 3), pytest.approx((4 / 104 + 0.5) / 3))
    assert agreement({"forecast": {"t": [1.0, 2.0]}}, {"forecast": {"t": [1.0, 3.0]}})[0] == 0.5
    packed = base64.b64encode(np.array([3, 4], "<f2").tobytes()).decode()
    assert agreement({"embedding": [0.6, 0.8]}, {"embedding": packed, "encoding": "float16"})[0] == 1
    assert agreement({"embedding": [0.6, 0.8]}, {"embedding": [0.8, -0.6]}) == (0.0, -1.0)


def test_the_report_is_that_of_plain_formulas() -> None:
    rng = np.random.default_rng(1)
    comparison = Comparison(Rules())
    shifts = rng.normal(0.05, 0.1, 400)
    for i, shift in enumerate(shifts):
        comparison.add(label("cat", 0.5), label("cat" if i % 4 else "dog", 0.5 + shift), 0.010, 0.012)
    told = comparison.report()
    assert (told.samples, told.agreement, told.errors) == (400, 0.75, 0)
    assert told.score_shift == pytest.approx(shifts.mean())
    half = 3 * shifts.std(ddof=1) / 20
    assert told.score_shift_interval == pytest.approx((shifts.mean() - half, shifts.mean() + half))
    assert told.latency_ratio == pytest.approx(1.2)
    assert Comparison(Rules()).report().agreement_interval == (0.0, 1.0)


def test_what_workers_saw_adds_up_to_what_one_would_have_seen() -> None:
    rng = np.random.default_rng(4)
    whole, workers = Comparison(Rules()), [Comparison(Rules()) for _ in range(4)]  # the last one sees nothing
    for i in range(300):
        other = {"error": "x"} if i % 50 == 0 else label("cat" if i % 3 else "dog", 0.5 + rng.normal())
        seconds = rng.uniform(0.01, 0.02, 2).tolist()
        for comparison in (whole, workers[i % 3]):
            comparison.add(label("cat", 0.5), other, *seconds)
    sums = Sums()
    for worker in workers:
        sums.add(msgspec.json.decode(msgspec.json.encode(worker.sums), type=Sums))
    added, wanted = Comparison(Rules(), sums).report(), whole.report()
    assert (added.samples, added.agreement, added.errors) == (wanted.samples, wanted.agreement, wanted.errors)
    assert added.score_shift == pytest.approx(wanted.score_shift)
    assert added.score_shift_interval == pytest.approx(wanted.score_shift_interval)
    assert added.latency_ratio == pytest.approx(wanted.latency_ratio)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    for p in (0.5, 0.95, 0.99):
        held = 0
        for successes in rng.binomial(300, p, 2000):
            low, high = wilson(float(successes), 300)
            held += low <= p <= high
        assert held / 2000 > 0.985


def trial(agree: float, rules: Rules, n: int, ratio: float = 1.0, errors: float = 0.0) -> tuple[str, int]:
    """Runs a trial to its end: the verdict and after how many inputs it came."""
    rng = np.random.default_rng(3)
    comparison = Comparison(rules)
    for i in range(1, n + 1):
        other = label("cat") if rng.random() < agree else label("dog")
        if rng.random() < errors:
            other = {"error": "not_finite"}
        comparison.add(label("cat"), other, 0.01, 0.01 * ratio)
        verdict = comparison.verdict()
        assert verdict.reason
        if verdict.action != "wait":
            return verdict.action, i
    return "wait", n


def test_a_version_that_agrees_is_promoted_and_one_that_does_not_goes_early() -> None:
    rules = Rules(min_samples=400, min_agreement=0.9)
    assert trial(0.99, rules, 1000) == ("promote", 400)
    action, after = trial(0.5, rules, 1000)
    assert action == "roll back"
    assert after < 100


def test_what_is_slow_or_fails_is_rolled_back() -> None:
    rules = Rules(min_samples=200, min_agreement=0.9, max_latency_ratio=1.5)
    assert trial(1.0, rules, 1000, ratio=1.4) == ("promote", 200)
    assert trial(1.0, rules, 1000, ratio=1.6) == ("roll back", 200)
    assert trial(1.0, rules, 1000, errors=0.3)[0] == "roll back"


def test_what_can_not_be_decided_waits_and_ends() -> None:
    rules = Rules(min_samples=100, max_samples=600, min_agreement=0.95)
    assert trial(0.95, rules, 500) == ("wait", 500)
    assert trial(0.95, rules, 1000) == ("roll back", 600)
