from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anomaly.calibration import TAIL, calibrate
from anomaly.detectors.patient import PATIENT, patient_surprise

Array = NDArray[np.float64]


def surprises(raw: Array, threshold: float = 4.0, patience_s: float = 0.0) -> Array:
    state = np.zeros(1, PATIENT)
    return np.array(
        [patient_surprise(state[0], x, float(t), threshold, patience_s) for t, x in enumerate(raw.tolist())]
    )


def test_without_anything_strange_it_is_the_calibration_of_the_others() -> None:
    raw = np.abs(np.random.default_rng(0).normal(0, 1, 3000))
    plain = calibrate(np.zeros((1, 1), TAIL), np.zeros(3000, np.int32), raw[:, None])[:, 0]
    np.testing.assert_array_equal(surprises(raw, threshold=99.0), plain)


def test_a_lasting_fault_stays_strange_and_so_does_the_next() -> None:
    raw = np.abs(np.random.default_rng(1).normal(0, 1, 9000))
    raw[4000:6000] += 9
    raw[8000:] += 9
    found = surprises(raw)
    assert (found[4000:6000] >= 4).all()
    assert (found[6000:8000] < 4).mean() > 0.999
    assert (found[8000:] >= 4).all()


def test_what_has_been_strange_for_long_becomes_usual() -> None:
    raw = np.abs(np.random.default_rng(2).normal(0, 1, 9000))
    raw[4000:] += 9
    found = surprises(raw, patience_s=1000.0)
    assert (found[4000:5000] >= 4).all()
    assert (found[5200:] >= 4).mean() < 0.01


def test_the_rate_of_alarms_is_that_of_the_plain_calibration() -> None:
    raw = np.abs(np.random.default_rng(3).normal(0, 1, 60_000))
    plain = calibrate(np.zeros((1, 1), TAIL), np.zeros(60_000, np.int32), raw[:, None])[:, 0]
    for threshold in (2.0, 3.0):
        mine = (surprises(raw, threshold) >= threshold).sum()
        assert 0.8 < mine / (plain >= threshold).sum() < 1.5
