from __future__ import annotations

import math

import numpy as np
import pytest

from anomaly import build_detector
from anomaly.detectors.graph import GraphConfig, GraphDetector
from anomaly.detectors.symmetric import f_beyond, sweep

FIELDS = ("load", "flow", "heat", "wind")


def plant(n: int, seed: int) -> np.ndarray:
    """Flow and heat follow the load; the wind follows nothing."""
    rng = np.random.default_rng(seed)
    load = rng.normal(0, 1, n)
    noise = rng.normal(0, 0.1, (2, n))
    return np.stack(
        [50 + 5 * load, 10 + load + noise[0], 300 - 20 * (load + noise[1]), rng.normal(4, 1, n)], 1
    )


def run(values: np.ndarray, **settings: float) -> tuple[np.ndarray, GraphDetector, list[str]]:
    detector = build_detector({"type": "graph", **settings}, FIELDS[: values.shape[1]])
    assert isinstance(detector, GraphDetector)
    n = len(values)
    scores, explain = detector.examine(detector.init(1), np.zeros(n, np.int32), values, np.arange(float(n)))
    return scores[:, 0], detector, [explain(i, 0) for i in range(n)]


def test_sweeping_all_inverts_and_sweeping_some_regresses() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 5)) @ rng.normal(size=(5, 5))
    covariance = x.T @ x
    matrix = covariance.copy()
    for k in (1, 3):
        sweep(matrix, k)
    coefficients, left = np.linalg.lstsq(x[:, [1, 3]], x[:, 0])[:2]
    np.testing.assert_allclose(matrix[[1, 3], 0], coefficients, rtol=1e-9)
    assert matrix[0, 0] == pytest.approx(left[0], rel=1e-9)
    for k in (0, 2, 4):
        sweep(matrix, k)
    np.testing.assert_allclose(matrix, np.linalg.inv(covariance), rtol=1e-8)


def test_the_score_is_the_largest_residual_of_a_regression_on_the_neighbours() -> None:
    values, train = plant(500, 2), 400
    past = values[:train]
    z = (values - past.mean(0)) / past.std(0)
    precision = np.linalg.inv(np.corrcoef(past.T))
    partial = abs(precision) / np.sqrt(np.outer(np.diag(precision), np.diag(precision)))
    wanted = np.zeros(100)
    for j in range(4):
        near = [k for k in range(4) if k != j and partial[j, k] >= 0.15]  # 3 / sqrt(400)
        coefficients = np.linalg.lstsq(z[:train][:, near], z[:train, j])[0] if near else np.empty(0)
        residual = z[:, j] - z[:, near] @ coefficients
        free = train - len(near) - 1
        t = residual[train:] / np.sqrt((residual[:train] ** 2).sum() / free)
        decades = [max(-math.log10(4 * f_beyond(x * x, 1.0, free)), 0) for x in t]
        wanted = np.maximum(wanted, decades)
    scores, _, words = run(values, train=train)
    np.testing.assert_allclose(scores[train:], wanted, rtol=2e-3, atol=2e-3)  # the ridge
    assert (scores[:train] == 0).all()
    assert words[0] == "still warming up"


@pytest.mark.parametrize("train", [0, 400])
def test_the_field_that_leaves_its_neighbours_is_named_with_them(train: int) -> None:
    values = plant(3000, 3)
    values[2500] = 55, 9.4, 280, 4  # load and heat as at a high load, the flow is low
    scores, detector, words = run(values, train=train)
    assert scores[2500] >= detector.thresholds[0]
    assert (scores[:2500] >= detector.thresholds[0]).mean() < 0.002
    assert words[2500].startswith("flow is 9.4, ")
    assert "sd below the 1" in words[2500]
    assert "load 55" in words[2500]
    assert "heat" not in words[2500]  # it tells nothing of the flow that the load doesn't


def test_what_all_fields_do_together_is_hardly_strange() -> None:
    values = plant(3000, 4)
    values[2500, :3] += (4 * 5, 4, -4 * 20)  # a load that never was, and all follow
    scores, _, _ = run(values)
    alone = values.copy()
    alone[2500, 0] -= 4 * 5
    assert scores[2500] < 3 < run(alone)[0][2500]


def test_a_spike_blinds_nobody_and_a_lasting_change_is_learned() -> None:
    values = plant(9000, 5)
    values[1000, 1] += 1000
    values[1020, 1] += 3
    values[3000:, 2] += 200
    values[8500, 2] -= 60
    scores, detector, _ = run(values, memory=500)
    assert (scores[[1000, 1020, 3000]] >= (3.5, 1.9, 3)).all()
    assert (scores[6000:8500] >= 3).mean() < 0.01
    raw, _ = detector.raw(detector.init(1), np.zeros(9000, np.int32), values, np.arange(9000.0))
    assert raw[8500] > 20
    assert np.quantile(raw[6000:8500], 0.99) < 5


def test_copies_and_values_that_stand_still_are_no_trouble() -> None:
    values = plant(2000, 6)
    values[:, 1] = values[:, 0]
    values[:, 3] = 7
    scores, _, _ = run(values)
    assert np.isfinite(scores).all()
    assert (scores >= 4).mean() < 0.003
    values[1900, 1] += 1
    values[1950, 3] += 1
    scores, _, words = run(values)
    assert scores[1900] >= 4
    assert "usual 7 " in words[1950]


def test_fields_that_come_in_turn_are_put_together() -> None:
    rng = np.random.default_rng(7)
    load = np.sin(np.arange(6000) / 100)
    values = np.stack([50 + 5 * load, 10 + load], 1) + rng.normal(0, (0.25, 0.05), (6000, 2))
    values[::2, 1] = values[1::2, 0] = np.nan
    values[5001, 1] += 0.5
    scores, _, words = run(values)
    assert scores[5001] >= 3.5
    assert (scores[:5000] >= 3.5).sum() <= 4
    assert words[5001].startswith("flow")


def test_faults_are_told() -> None:
    faults = GraphConfig(train=3, smooth=0, neighbours=0, memory=1).faults()
    assert set(faults) == {"train", "smooth", "neighbours", "memory"}
