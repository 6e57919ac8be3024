from __future__ import annotations

import math

import numpy as np
import pytest

from anomaly.detectors.lengths import HORIZON, LENGTHS, count_length, length_surprise


def history(lengths: list[float], weight: float = 1.0) -> np.void:
    past = np.zeros(1, LENGTHS)[0]
    for length in lengths:
        count_length(past, length, weight)
    return past


def test_within_the_past_the_surprise_is_the_share_of_lengths_as_long() -> None:
    # powers of two lie on edges of bins, so that the shares are exact
    past = history([1.0] * 90 + [2.0] * 8 + [16.0] * 2)
    assert length_surprise(past, 2.0) == pytest.approx(-math.log10(10.5 / 101))
    assert length_surprise(past, 8.0) == pytest.approx(-math.log10(2.5 / 101))
    assert length_surprise(past, 1.0) == pytest.approx(-math.log10(100.5 / 101))


def test_beyond_the_past_a_heavy_tail_surprises_less_than_a_light_one() -> None:
    rng = np.random.default_rng(0)
    heavy, light = history([*(1 + rng.pareto(1.0, 3000))]), history([*rng.gamma(50, 0.02, 3000)])
    far = (length_surprise(past, 5 * past["longest"]) for past in (heavy, light))
    h, t = next(far), next(far)
    assert h == pytest.approx(math.log10(6002) + 1.0 * math.log10(5), abs=0.25)
    assert t > h + 1.5


def test_nothing_is_known_of_a_sensor_without_a_past() -> None:
    assert length_surprise(history([]), 1e6) == 0


def test_few_lengths_make_nothing_impossible() -> None:
    past = history([10.0] * 5)
    assert length_surprise(past, 15.0) < 2
    assert length_surprise(past, 1e9) <= 15


def test_the_far_past_fades() -> None:
    past = history([100.0] * 2000 + [1.0] * int(4 * HORIZON))
    assert past["n"] <= HORIZON + 1
    assert length_surprise(past, 64.0) > 2


def test_what_is_usual_stays_so_when_counts_are_halved() -> None:
    lengths = np.random.default_rng(1).exponential(1, int(1.4 * HORIZON))
    past = history([])
    above = 0
    for length in lengths.tolist():
        above += length_surprise(past, length) >= 4
        count_length(past, length, 1.0)
    assert above <= 8
