from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from anomaly.calibration import TAIL, calibrate, rarity
from anomaly.detectors.lagged import LAGGED, keep, turn

Array = NDArray[np.float64]
BLOCK = 32


def surprises(raw: Array, threshold: float = 4.0, patience_s: float = 0.0, window_s: float = 0.0) -> Array:
    state = np.zeros(1, LAGGED)[0]
    found = np.empty(len(raw))
    for t, x in enumerate(raw.tolist()):
        turn(state, float(t), BLOCK, window_s, patience_s)
        found[t] = rarity(state["tail"], x)
        keep(state, x, found[t] >= threshold, 1)
    return found


def noise(n: int, seed: int) -> Array:
    return np.abs(np.random.default_rng(seed).normal(0, 1, n))


def plain(raw: Array) -> Array:
    return calibrate(np.zeros((1, 1), TAIL), np.zeros(len(raw), np.int32), raw[:, None])[:, 0]


@pytest.mark.parametrize("window_s", [0.0, 100.0])
def test_a_score_is_compared_with_the_blocks_before_the_last(window_s: float) -> None:
    raw = noise(5000, 0)
    found, block = surprises(raw, 99.0, window_s=window_s), max(BLOCK, int(window_s))
    for i in (3000, 4017, 4999):
        known = raw[: (i // block - 1) * block]
        # below the tail the probability is the empirical one
        if raw[i] < 1.5:
            share = (known >= raw[i]).mean()
            assert found[i] == pytest.approx(-np.log10(share), abs=0.05)


def test_a_lasting_fault_stays_strange_and_so_does_the_next() -> None:
    raw = noise(9000, 1)
    raw[4000:6000] += 9
    raw[8000:] += 9
    found = surprises(raw)
    assert (found[4000:6000] >= 4).all()
    assert (found[6000:8000] < 4).mean() > 0.999
    assert (found[8000:] >= 4).all()


def test_a_fault_that_grows_slowly_is_not_taken_for_usual() -> None:
    raw = noise(9000, 2)
    raw[8000:] += np.minimum(np.arange(1000) / 20, 9)  # 0.05 a reading
    assert (surprises(raw)[8200:] >= 4).all()
    assert (plain(raw)[8200:] >= 4).mean() < 0.1


def test_what_has_been_strange_for_long_becomes_usual() -> None:
    raw = noise(9000, 3)
    raw[4000:] += 9
    found = surprises(raw, patience_s=1000.0)
    assert (found[4000:5000] >= 4).all()
    assert (found[5200:] >= 4).mean() < 0.01


def test_what_is_strange_now_and_then_is_learned() -> None:
    raw = noise(60_000, 4)
    for threshold in (2.0, 3.0):
        mine, theirs = surprises(raw, threshold), plain(raw)
        assert 0.8 < (mine >= threshold).sum() / (theirs >= threshold).sum() < 1.3
