from __future__ import annotations

import math

import numpy as np
import pytest

from anomaly import build_detector
from anomaly.detectors.pca import PcaConfig, PcaDetector
from anomaly.detectors.symmetric import eigen, f_beyond

FIELDS = ("level", "inflow", "outflow")
TRAIN = 400


def plant(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    load = rng.normal(0, 1, n)
    return np.stack([50 + rng.normal(0, 2, n), 10 + load, 10 + load + rng.normal(0, 0.1, n)], 1)


def run(values: np.ndarray, **settings: float) -> tuple[np.ndarray, PcaDetector, list[str]]:
    detector = build_detector({"type": "pca", **settings}, FIELDS)
    assert isinstance(detector, PcaDetector)
    n = len(values)
    scores, explain = detector.examine(detector.init(1), np.zeros(n, np.int32), values, np.arange(float(n)))
    return scores[:, 0], detector, [explain(i, 0) for i in range(0, n, 50)]


def test_eigenvectors_are_those_of_numpy() -> None:
    rng = np.random.default_rng(1)
    for p in (1, 2, 8):
        a = rng.normal(size=(p, p))
        matrix = a @ a.T
        values, vectors = eigen(matrix)
        np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix)[::-1], rtol=1e-9)
        np.testing.assert_allclose(vectors.T @ np.diag(values) @ vectors, matrix, atol=1e-9)


@pytest.mark.parametrize("under", [2.0, 7.0, 30.0])
@pytest.mark.parametrize("f", [0.3, 1.0, 4.0, 50.0])
def test_the_f_tail_has_its_closed_form_at_two_degrees(f: float, under: float) -> None:
    # with two degrees over, P(F >= f) = (1 + 2 f / under)^(-under/2)
    assert f_beyond(f, 2.0, under) == pytest.approx((1 + 2 * f / under) ** (-under / 2), rel=1e-9)


def test_the_statistic_is_the_mahalanobis_distance_of_the_smoothed_fields() -> None:
    values = plant(600, 2)
    smoothed, s = [], np.zeros(3)
    for i, x in enumerate(values):
        s = s + max(0.1, 1 / (i + 1)) * (x - s)
        smoothed.append(s)
    past = np.array(smoothed[:TRAIN])
    away = np.array(smoothed[TRAIN:]) - past.mean(0)
    inverse = np.linalg.inv(np.cov(past.T, bias=True))
    t2 = np.einsum("ij,jk,ik->i", away, inverse, away)
    n, p = TRAIN * 0.1 / 1.9, 3
    f = t2 * n * (n - p) / (p * (n + 1) * (n - 1))
    wanted = [-math.log10(f_beyond(x, p, n - p)) for x in f]
    found, _, _ = run(values, train=TRAIN)
    np.testing.assert_allclose(found[TRAIN:], wanted, rtol=1e-6)
    assert (found[:TRAIN] == 0).all()


def test_a_broken_relation_is_found_for_as_long_as_it_lasts_and_named() -> None:
    values = plant(1200, 3)
    values[600:900, 2] -= 0.6  # well inside what outflow does, but not beside this inflow
    scores, detector, words = run(values, train=TRAIN)
    threshold = detector.thresholds[0]
    assert (scores[640:900] >= threshold).all()
    assert (scores[TRAIN:600] < threshold).all()
    assert (scores[960:] < threshold).all()
    assert "outflow" in words[16]
    assert words[0] == "still warming up"


def test_what_drifts_in_training_may_drift_on() -> None:
    values = plant(1000, 4)
    values[:, 0] = 50 + 0.02 * np.arange(1000) + np.random.default_rng(5).normal(0, 0.05, 1000)
    scores, detector, _ = run(values[:600], train=TRAIN)
    assert (scores[TRAIN:] < detector.thresholds[0]).all()


def test_without_a_clean_start_it_learns_a_lasting_change() -> None:
    values = plant(9000, 6)
    values[3000:, 2] -= 1
    scores, detector, _ = run(values, memory=500)
    threshold = detector.thresholds[0]
    # smoothed scores come in runs: one false alarm lasts about 1/smooth readings
    assert (scores[:3000] >= threshold).sum() <= 12
    assert (scores[3002:3006] >= threshold).all()  # its start; the calibration then gets used to it
    assert (scores[8000:] >= threshold).mean() < 0.01


def test_a_field_without_values_is_left_out() -> None:
    values = plant(800, 7)
    values[:, 0] = np.nan
    values[600:, 2] -= 1
    scores, detector, _ = run(values, train=TRAIN)
    assert (scores[TRAIN:600] < detector.thresholds[0]).all()
    assert (scores[650:] >= detector.thresholds[0]).all()


def test_faults_are_told() -> None:
    faults = PcaConfig(train=3, smooth=0, share=2, memory=1).faults()
    assert set(faults) == {"train", "smooth", "share", "memory"}
