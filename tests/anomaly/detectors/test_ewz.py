from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import anomaly.detectors.ewz
from anomaly.detectors.ewz import MOST, EwzConfig, EwzDetector, number


def reference(rows: NDArray[np.int32], values: NDArray[np.float64], config: EwzConfig) -> NDArray[np.float64]:
    """The definition, reading by reading."""
    scores = np.full(values.shape, np.nan)
    held: dict[tuple[int, int], tuple[int, float, float]] = {}
    for (i, j), x in np.ndenumerate(values):
        if not math.isnan(x):
            n, mean, var = held.get((rows[i], j), (0, 0.0, 0.0))
            scores[i, j] = 0 if n < config.warmup else abs(x - mean) / max(math.sqrt(var), config.min_sd)
            w, d = max(config.alpha, 1 / (n + 1)), x - mean
            held[rows[i], j] = n + 1, mean + w * d, (1 - w) * (var + w * d * d)
    return scores


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 999),
    n=st.integers(1, 1200),
    sensors=st.integers(1, 80),
    missing=st.sampled_from([0.0, 0.0, 0.2, 1.0]),
    alpha=st.sampled_from([0.02, 0.5, 1.0, 0.001]),
    warmup=st.sampled_from([1, 5, 30]),
    cuts=st.lists(st.integers(0, 1200), max_size=8),
)
def test_scores_are_those_of_the_definition_bit_for_bit(
    seed: int, n: int, sensors: int, missing: float, alpha: float, warmup: int, cuts: list[int]
) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, sensors, n).astype(np.int32)
    values = rng.normal(71, 3, (n, 2))
    values[rng.random((n, 2)) < missing] = np.nan
    detector = EwzDetector(EwzConfig(alpha=alpha, warmup=warmup), ("a", "b"))
    state = detector.init(sensors)
    parts = [
        detector.score(state, rows[part], values[part], np.zeros(len(part)))
        for part in np.split(np.arange(n), sorted(min(cut, n) for cut in cuts))
    ]
    np.testing.assert_array_equal(np.concatenate(parts), reference(rows, values, detector.config))


def test_a_stuck_sensor_scores_0_and_its_first_move_stands_out() -> None:
    detector = EwzDetector(EwzConfig(), ("a",))
    values = np.full((5001, 1), 71.3)
    values[5000] = 71.4
    scores = detector.score(detector.init(1), np.zeros(5001, np.int32), values, np.arange(5001.0))
    assert not scores[:5000].any()
    assert scores[5000] > 1e6


def test_warmup_is_counted_for_each_sensor_and_field() -> None:
    detector = EwzDetector(EwzConfig(warmup=3), ("a", "b"))
    values = np.array([[1, 5], [2, np.nan], [3, 6], [9, 7], [9, 9]], float)
    scores = detector.score(detector.init(1), np.zeros(5, np.int32), values, np.zeros(5))
    np.testing.assert_array_equal(scores[:, 0] > 0, [False, False, False, True, True])
    np.testing.assert_array_equal(scores[:, 1] > 0, [False, False, False, False, True])
    assert math.isnan(scores[1, 1])


@pytest.mark.parametrize("others", [0, 100])
@pytest.mark.parametrize("wild", [1e200, -1e308, math.inf, -math.inf])
def test_a_value_beyond_all_measure_is_scored_and_not_learned(wild: float, others: int) -> None:
    detector = EwzDetector(EwzConfig(warmup=5), ("a",))
    state = detector.init(2)
    usual = np.random.default_rng(0).normal(20, 1, (60, 1))
    detector.score(state, np.zeros(60, np.int32), usual, np.zeros(60))
    before = state[0].copy()
    rows = np.array([0] + [1] * others, np.int32)
    scores = detector.score(state, rows, np.full((1 + others, 1), wild), np.zeros(1 + others))
    assert 1e100 < scores[0, 0] < math.inf
    assert state[0] == before


def test_the_count_of_readings_stops_before_it_overflows() -> None:
    detector = EwzDetector(EwzConfig(), ("a",))
    for n in (3, 300):
        state = detector.init(1)
        state["n"] = MOST - 1
        detector.score(state, np.zeros(n, np.int32), np.ones((n, 1)), np.zeros(n))
        assert state["n"][0, 0] == MOST


@pytest.mark.parametrize("busy", [0, 500])
def test_the_explanation_speaks_of_the_state_before_the_reading(busy: int) -> None:
    detector = EwzDetector(EwzConfig(), ("temperature",))
    state = detector.init(2)
    state["n"], state["mean"], state["var"] = 1000, 71.0, 3.5**2
    values = np.concatenate([[[92.4], [50.0], [np.nan]], np.full((busy, 1), 71.0)])
    rows = np.array([0, 1, 0] + [1] * busy, np.int32)
    _, explain = detector.examine(state, rows, values, np.zeros(3 + busy))
    assert explain(0, 0) == "6.1 sd above the usual 71.0 ± 3.5"
    assert explain(1, 0) == "6.0 sd below the usual 71.0 ± 3.5"
    assert explain(2, 0) == "no value"


def test_field_thresholds_override_the_detectors_own() -> None:
    detector = EwzDetector(EwzConfig(threshold=5.0), ("a", "b"), {"b": 9.0})
    assert detector.thresholds.tolist() == [5.0, 9.0]


def test_numbers_have_the_decimals_that_the_deviation_makes_meaningful() -> None:
    assert number(1013.24, 0.5) == "1013.24"
    assert number(1013.24, 12.0) == "1013.2"
    assert number(0.000123456, 1e-9) == "0.000123456"
    assert number(3.4e12, 1.0) == "3.4e+12"
    assert number(math.inf, 1.0) == "inf"


def test_the_documented_examples_run() -> None:
    assert doctest.testmod(anomaly.detectors.ewz).failed == 0
