"""Raw scores to tail probabilities, against distributions whose tails are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from anomaly.calibration import BEYOND, HORIZON, NOT_YET, TAIL, WARMUP, calibrate


def surprises(raw: np.ndarray) -> np.ndarray:
    tails = np.zeros((1, 1), TAIL)
    return calibrate(tails, np.zeros(len(raw), np.int32), raw[:, None])[:, 0]


@pytest.mark.parametrize("law", ["normal", "exponential", "pareto"])
def test_a_surprise_of_d_decades_is_met_once_in_10_to_the_d(law: str) -> None:
    rng = np.random.default_rng(3)
    n = 200_000
    raw = {
        "normal": np.abs(rng.standard_normal(n)),
        "exponential": rng.exponential(3.0, n),
        "pareto": rng.pareto(3.0, n),
    }[law]
    found = surprises(raw)[1000:]
    for decades in (1.0, 2.0, 3.0):
        met = -math.log10(np.mean(found >= decades))
        assert met == pytest.approx(decades, abs=0.25), decades


def test_beyond_everything_seen_larger_is_still_stranger() -> None:
    rng = np.random.default_rng(4)
    raw = rng.exponential(1.0, 20_000)
    decades = [surprises(np.append(raw, x))[-1] for x in (7.5, 8.5, 9.5)]
    assert 3.0 < decades[0] < decades[1] < decades[2]
    # exp(-8.5): the GPD finds the tail of an exponential
    assert decades[1] == pytest.approx(8.5 / math.log(10), abs=1.5)


def test_a_short_past_makes_no_large_claims() -> None:
    raw = np.append(np.random.default_rng(5).exponential(1.0, 60), 1e6)
    assert surprises(raw)[-1] <= math.log10(60) + BEYOND


def test_a_score_is_0_in_warmup_and_nan_where_there_is_none() -> None:
    found = surprises(np.array([NOT_YET, math.nan, *[1.0] * WARMUP, 50.0]))
    assert math.isnan(found[1])
    np.testing.assert_array_equal(np.delete(found, 1)[:-1], 0.0)
    assert found[-1] > 1


def test_the_far_past_fades() -> None:
    rng = np.random.default_rng(6)
    quiet, wild = rng.exponential(1.0, 3 * HORIZON), rng.exponential(100.0, 300)
    found = surprises(np.concatenate([wild, quiet, [50.0]]))
    assert found[-1] > 3


def test_scores_of_one_value_surprise_no_one() -> None:
    assert surprises(np.full(3000, 2.5)).max() < 1.0
    assert surprises(np.zeros(3000)).max() < 0.5
    assert surprises(np.append(np.zeros(3000), 1.0))[-1] > 3


@pytest.mark.parametrize("law", ["normal", "exponential", "t"])
def test_young_sensors_are_not_alarmed_much_more_often_than_asked(law: str) -> None:
    """A tail fitted to 50 scores is uncertain; taken as it is, 4 decades came six times as often."""
    rng = np.random.default_rng(7)
    sensors, n = 100, 8000
    raw = {
        "normal": np.abs(rng.standard_normal((n, sensors))),
        "exponential": rng.exponential(3.0, (n, sensors)),
        "t": np.abs(rng.standard_t(4, (n, sensors))),
    }[law]
    tails = np.zeros((sensors, 1), TAIL)
    rows = np.tile(np.arange(sensors, dtype=np.int32), n)
    found = calibrate(tails, rows, raw.reshape(-1, 1)).reshape(n, sensors)[1000:]
    for decades in (2.5, 3.0, 3.5, 4.0):
        assert 0.4 < (found >= decades).mean() * 10**decades < 3.0, decades
