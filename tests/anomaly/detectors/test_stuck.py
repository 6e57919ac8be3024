from __future__ import annotations

import doctest
import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

import anomaly.detectors.stuck
from anomaly.detectors.stuck import StuckConfig, StuckDetector


def examine(x: NDArray[np.float64], **settings: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores, and lengths of the stand at each reading, of one sensor."""
    detector = StuckDetector(StuckConfig(**{"warmup": 1, **settings}), ("a",))  # type: ignore[arg-type]
    rows, ts = np.zeros(len(x), np.int32), np.arange(float(len(x)))
    raw, why = detector.raw(detector.init(1), rows, x[:, None], ts)
    return np.maximum(raw[:, 0], 0), why[:, 0, 1]


def stands(x: NDArray[np.float64], tolerance: float) -> list[int]:
    """The definition of a stand, without clipped steps (there are none in these signals)."""
    lengths, run, anchor, within, steps = [1], 1, x[0], 0.0, []
    for before, value in itertools.pairwise(x):
        steps += [abs(value - before)] if value != before else []
        if abs(value - anchor) <= within:
            run += 1
        else:
            run, anchor, within = 1, value, tolerance * float(np.mean(steps))
        lengths.append(run)
    return lengths


@pytest.mark.parametrize("tolerance", [0.0, 0.05, 1.0])
def test_stands_are_those_of_the_definition(tolerance: float) -> None:
    rng = np.random.default_rng(0)
    x = np.round(rng.normal(20, 0.3, 400), 1)
    assert examine(x, tolerance=tolerance)[1].tolist()[1:] == stands(x, tolerance)[1:]


@pytest.mark.parametrize("resolution", [1e-9, 0.1, 1.0])
def test_a_value_that_freezes_is_found_within_some_readings(resolution: float) -> None:
    x = np.random.default_rng(1).normal(70, 1.5, 3000)
    x[2500:2600] = x[2500]
    x = np.round(x / resolution) * resolution
    scores, _ = examine(x)
    assert (scores[:2500] < 4).all()
    assert (scores[2540:2600] >= 4).all()
    assert (scores[2600:] < 4).all()


def test_one_that_shivers_far_less_than_it_moved_is_stuck_too() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(70, 1.5, 1000)
    x[900:] = 70 + rng.normal(0, 0.005, 100)
    assert (examine(x)[0][950:] >= 4).all()


def test_the_second_time_is_found_as_well_as_the_first() -> None:
    x = np.random.default_rng(3).normal(70, 1.5, 20_000)
    for begin in (5000, 8000, 11_000):
        x[begin : begin + 60] = 71
    scores, _ = examine(x)
    assert all(scores[begin + 59] >= 4 for begin in (5000, 8000, 11_000))


def test_a_switch_that_stands_for_hours_is_not_stuck() -> None:
    rng = np.random.default_rng(4)
    x = np.repeat(np.arange(80.0) % 2, rng.geometric(0.005, 80))
    assert (examine(x)[0] < 4).all()


def test_a_sensor_that_never_moves_is_not_stuck() -> None:
    assert not examine(np.full(20_000, 3.3))[0].any()


def test_a_short_stand_is_nothing() -> None:
    x = np.random.default_rng(5).normal(0, 1, 5000)
    x[4000:4009] = x[4000]
    assert not examine(x)[0].any()
    assert examine(x, at_least=5)[0][4008] >= 4


def test_the_documented_examples_run() -> None:
    assert doctest.testmod(anomaly.detectors.stuck).failed == 0
