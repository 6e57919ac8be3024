"""Drift: lasting changes are told once and soon, nothing else is, and the detector learns anew there."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from anomaly.drift import DriftWatch, examine_in_parts
from anomaly.notice import Notice
from anomaly.registry import build_detector
from streams.config import DriftConfig

BY_COUNT = DriftConfig(lasting_s=0)


def watch(values: np.ndarray, every_s: float = 60.0, config: DriftConfig = BY_COUNT) -> list[Notice]:
    drift = DriftWatch(config, ("temperature",), ("°C",))
    n = len(values)
    ts = 1.7e9 + every_s * np.arange(n)
    return drift.update(drift.init(1), np.zeros(n, np.int32), values[:, None], ts)


def ar1(seed: int, n: int, phi: float) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=n)
    values = np.empty(n)
    x = 0.0
    for i, e in enumerate(noise.tolist()):
        x = phi * x + math.sqrt(1 - phi * phi) * e
        values[i] = x
    return values


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9, 0.99])
def test_stationary_noise_gives_less_than_one_in_100_000(phi: float) -> None:
    assert len([n for seed in range(4) for n in watch(ar1(seed, 100_000, phi))]) < 4


@pytest.mark.parametrize("phi", [0.0, 0.5])
def test_a_shift_of_3_sd_is_told_once_within_200_readings(phi: float) -> None:
    for seed in range(5):
        values = 71 + ar1(seed, 8000, phi)
        values[5000:] += 3
        (told,) = watch(values)
        assert 0 < (told.ts - 1.7e9) / 60 - 5000 <= 200
        assert abs((told.started_at - 1.7e9) / 60 - 5000) <= 48
        assert "higher" in told.explanation
        assert (told.state, told.severity) == ("resolved", "info")


def test_most_shifts_of_3_sd_are_told_where_the_noise_itself_wanders() -> None:
    told = []
    for seed in range(20):
        values = ar1(seed, 8000, 0.9)
        values[5000:] += 3
        told.append(watch(values))
    assert sum(len(notices) == 1 for notices in told) >= 13
    assert all(len(notices) <= 1 for notices in told)


def test_a_change_of_spread_is_told() -> None:
    values = np.random.default_rng(1).normal(size=8000)
    values[5000:] *= 2.5
    (told,) = watch(values)
    assert "x;" in told.explanation


@pytest.mark.parametrize("shape", ["daily", "spikes", "burst", "still", "ramp"])
def test_what_is_no_lasting_change_is_not_told(shape: str) -> None:
    rng = np.random.default_rng(2)
    n = 30 * 1440
    values = rng.normal(size=n)
    if shape == "daily":
        values += 10 * np.sin(2 * np.pi * np.arange(n) / 1440)
    elif shape == "spikes":
        values[rng.random(n) < 0.005] += 50
    elif shape == "burst":
        values[20_000:20_100] += 20
        values[30_000:30_100] *= 20
    elif shape == "still":
        values[:] = 5
    else:
        values += np.arange(n) / 500
    assert watch(values, 60, DriftConfig()) == []


def test_random_walks_are_seldom_taken_for_changes() -> None:
    told = [watch(np.cumsum(np.random.default_rng(seed).normal(size=50_000))) for seed in range(8)]
    assert sum(map(len, told)) <= 3  # in 400,000 readings


@pytest.mark.parametrize("kind", ["ewz", "rate_of_change"])
@pytest.mark.parametrize("size", [1, 97])
def test_the_detector_learns_anew_at_the_same_reading_however_it_is_cut(kind: str, size: int) -> None:
    rng = np.random.default_rng(3)
    n = 9000
    rows = rng.integers(0, 2, n).astype(np.int32)
    values = rng.normal(size=(n, 2))
    values[6000:, 0] += 8
    values[rng.random((n, 2)) < 0.02] = np.nan
    ts = 1.7e9 + np.arange(n)
    detector = build_detector({"type": kind}, ("a", "b"))
    drift = DriftWatch(BY_COUNT, ("a", "b"), ("", ""))

    def run(size: int) -> tuple[list[int], np.ndarray, bytes]:
        state, watched = detector.init(2), drift.init(2)
        scores, at = [], []
        for a, b in itertools.pairwise([*range(0, n, size), n]):
            part = rows[a:b], values[a:b], ts[a:b]
            changes = drift.update(watched, *part)
            found, explain = examine_in_parts(detector, state, *part, changes)
            assert explain(b - a - 1, 0)
            scores.append(found)
            at += [a + change.index for change in changes]
        return at, np.concatenate(scores), state.tobytes() + watched.tobytes()

    whole, cut = run(n), run(size)
    assert len(whole[0]) == 2
    assert whole[0] == cut[0]
    np.testing.assert_array_equal(whole[1], cut[1])
    assert whole[2] == cut[2]
    # warm-up right after the change, of this field of this sensor alone
    row, at = rows[whole[0][0]], whole[0][0]
    after = np.flatnonzero((rows == row) & (np.arange(n) > at))[:20]
    assert np.nanmax(whole[1][after, 0]) == 0
    assert np.nanmax(whole[1][after, 1]) > 0
