"""The default detector: what it hears, what it leaves out, how often it is wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest

from anomaly import BadDetector, build_detector
from anomaly.detectors.auto import AutoDetector


def auto(**config: object) -> AutoDetector:
    detector = build_detector({"type": "auto", **config}, ("x",))
    assert isinstance(detector, AutoDetector)
    return detector


def scores_of(detector: AutoDetector, values: np.ndarray, gap_s: float = 300.0) -> np.ndarray:
    n = len(values)
    ts = 1.7e9 + gap_s * np.arange(n)
    return detector.score(detector.init(1), np.zeros(n, np.int32), values[:, None], ts)[:, 0]


def noise(kind: str, n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "exponential":
        return rng.exponential(1.0, n)
    x = rng.standard_normal(n)
    if kind == "wandering":
        for t in range(1, n):
            x[t] += 0.9 * x[t - 1]
    elif kind == "daily":
        x += 10 * np.sin(2 * math.pi * np.arange(n) / 288)
    return x


@pytest.mark.parametrize("kind", ["white", "exponential", "wandering", "daily"])
def test_alarms_on_a_sensor_without_faults_come_as_rarely_as_asked(kind: str) -> None:
    detector = auto()
    found = np.concatenate([scores_of(detector, noise(kind, 20_000, s))[300:] for s in range(4)])
    for decades in (1.5, 2.0, 2.5, 3.0):
        # more rarely is no harm: where `seasonal` learns a strong rhythm, hardly anything is strange
        assert decades - 0.4 <= -math.log10(np.mean(found >= decades)) <= decades + 1.0, decades


def test_memory_for_a_sensor_and_field_is_at_most_8_kb() -> None:
    assert auto().dtype.itemsize <= 8192


@pytest.mark.parametrize("fault", ["spike", "gap", "shift", "flat"])
def test_it_finds_faults_of_many_kinds(fault: str) -> None:
    values = noise("daily", 8000, 1)
    at = 7000
    if fault == "spike":
        values[at] += 15
    elif fault == "gap":  # a usual value, at the wrong time of the day
        at = 288 * 24 + 72
        values[at] = -10
    elif fault == "shift":
        values[at : at + 100] += 20
    else:
        values[at : at + 60] = values[at - 1]
    detector = auto()
    found = scores_of(detector, values)
    assert found[at : at + 60].max() >= detector.thresholds[0]


def test_one_event_is_one_alarm() -> None:
    values = noise("white", 3000, 2)
    values[2000:2015] += np.linspace(30, 31, 15)
    detector = auto()
    assert (scores_of(detector, values)[2000:2015] >= detector.thresholds[0]).sum() <= 2


def test_a_sensor_that_sends_every_second_is_not_flagged_every_ten_minutes() -> None:
    values = noise("white", 40_000, 3)
    detector = auto()
    often = (scores_of(detector, values, 1.0)[300:] >= detector.thresholds[0]).sum()
    assert often <= 8  # two days are 172,800 readings
    assert (scores_of(auto(once_in_days=0.0), values, 1.0)[300:] >= detector.thresholds[0]).sum() > 20


def test_it_says_what_it_picked_and_why() -> None:
    n = 6000
    for kind, wanted in (("white", "knn 0.7"), ("daily", "knn 1.00")):
        detector = auto()
        state = detector.init(1)
        ts = 1.7e9 + 300.0 * np.arange(n)
        detector.score(state, np.zeros(n, np.int32), noise(kind, n, 5)[:, None], ts)
        told = detector.describe(state, 0)["x"]
        assert wanted in told
        assert ("season explains 8" in told) == (kind == "daily"), told
    assert detector.describe(detector.init(1), 0) == {"x": "warming up: 0 of 150 readings"}


def test_members_are_picked_within_the_budget() -> None:
    detector = auto(budget_us=0.8)
    state = detector.init(1)
    detector.score(state, np.zeros(200, np.int32), noise("white", 200, 6)[:, None], np.arange(200.0))
    told = detector.describe(state, 0)["x"]
    assert "novelty 1.00" in told
    assert "knn left out (budget of 0.8 us)" in told
    with pytest.raises(BadDetector, match=r"budget_us: 0\.1 is not in"):
        auto(budget_us=0.1)


def test_an_alarm_is_explained_by_the_members_that_heard_it() -> None:
    n = 3000
    values = noise("daily", n, 7)
    values[2900] = 40
    ts = 1.7e9 + 300.0 * np.arange(n)
    detector = auto()
    _, explain = detector.examine(detector.init(1), np.zeros(n, np.int32), values[:, None], ts)
    told = explain(2900, 0)
    assert told.startswith("40 is ")
    assert "the nearest of the last 2,900 values" in told or "above the usual" in told
    assert "once in" in told
    assert explain(10, 0) == "still warming up"


def test_a_sensor_that_relearns_starts_again_in_that_field_alone() -> None:
    n = 400
    detector = build_detector({"type": "auto"}, ("x", "y"))
    state = detector.init(2)
    values = np.stack([noise("white", n, 1), noise("white", n, 2)], axis=1)
    rows = (np.arange(n) % 2).astype(np.int32)
    detector.score(state, rows, values, np.arange(n) * 60.0)
    before = state.copy()
    detector.relearn(state, 0, 1)  # type: ignore[attr-defined]
    assert not state["cells"][0, 1].tobytes().strip(b"\0")
    for row, column in ((0, 0), (1, 0), (1, 1)):
        assert state["cells"][row, column].tobytes() == before["cells"][row, column].tobytes()
