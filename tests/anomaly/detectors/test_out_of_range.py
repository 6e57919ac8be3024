from __future__ import annotations

import doctest
import math

import numpy as np
import pytest

import anomaly.detectors.out_of_range
from anomaly import BadDetector, build_detector


def scores(
    x: list[float], thresholds: dict[str, float | None] | None = None, **config: object
) -> list[float]:
    detector = build_detector({"type": "out_of_range", **config}, ["a"], thresholds)
    rows, ts = np.zeros(len(x), np.int32), np.arange(float(len(x)))
    return detector.score(detector.init(1), rows, np.array(x)[:, None], ts)[:, 0].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("low", "high", "span"),
    [(10.0, 30.0, 20.0), (None, 40.0, 40.0), (-8.0, None, 8.0), (0.0, None, 1.0), (None, None, 1.0)],
)
def test_the_score_is_the_threshold_and_the_distance_in_spans(
    low: float | None, high: float | None, span: float
) -> None:
    values = np.linspace(-500, 500, 201)
    config = {side: {"a": bound} for side, bound in (("low", low), ("high", high)) if bound is not None}
    expected = []
    for x in values:
        distance = max((low - x) if low is not None else 0, (x - high) if high is not None else 0)
        expected.append(3 * (1 + min(distance / span, 9)) if distance > 0 else 0.0)
    assert scores(values.tolist(), once_in=1000, **config) == pytest.approx(expected)


def test_a_value_at_the_bound_is_fine_and_one_beyond_is_anomalous_from_the_first_reading() -> None:
    low, fine, high = scores([9.999, 10.0, 30.001], low={"a": 10}, high={"a": 30})
    assert low >= 4
    assert fine == 0
    assert high >= 4


def test_beyond_the_bound_a_fields_own_threshold_is_reached_too() -> None:
    assert scores([31.0], {"a": 7.0}, high={"a": 30})[0] >= 7


def test_a_warm_up_is_not_scored() -> None:
    assert scores([99.0] * 4, high={"a": 30}, warmup=3)[:3] == [0, 0, 0]
    assert scores([99.0] * 4, high={"a": 30}, warmup=3)[3] > 4


def test_fields_without_bounds_are_never_out_of_range() -> None:
    detector = build_detector({"type": "out_of_range", "low": {"b": 0}}, ["a", "b"])
    values = np.array([[-1e9, -1.0], [1e9, math.nan]])
    found = detector.score(detector.init(1), np.zeros(2, np.int32), values, np.arange(2.0))
    assert found[:, 0].tolist() == [0, 0]
    assert found[0, 1] == 8
    assert math.isnan(found[1, 1])


def test_bad_bounds_are_told_with_their_path() -> None:
    def faults(**config: object) -> dict[str, str]:
        with pytest.raises(BadDetector) as caught:
            build_detector({"type": "out_of_range", **config}, ["a", "b"])
        return {fault.path: fault.message for fault in caught.value.faults}

    found = faults(low={"a": 3, "b": math.nan}, high={"a": 2}, warmup=-1)
    assert set(found) == {"low.a", "low.b", "warmup"}
    assert "high.a = 2" in found["low.a"]
    assert "use one of a, b" in faults(high={"c": 1})["high.c"]


def test_the_documented_examples_run() -> None:
    assert doctest.testmod(anomaly.detectors.out_of_range).failed == 0
