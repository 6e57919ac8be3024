"""novelty, knn and seasonal, each against a plain reference that keeps everything."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly import build_detector
from anomaly.detectors.memory import BLOCK, HORIZON, MEMORY, SETTLED, remember, unfold


def raw_of(name: str, values: np.ndarray, ts: np.ndarray | None = None, **config: object) -> np.ndarray:
    detector = build_detector({"type": name, **config}, ("x",))
    n = len(values)
    ts = 1.75e9 + 300.0 * np.arange(n) if ts is None else ts
    return detector.raw(detector.init(1), np.zeros(n, np.int32), values[:, None], ts)[0][:, 0]  # type: ignore[attr-defined]


def series(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return 20 + 5 * np.sin(np.arange(n) / 40) + rng.normal(0, 0.3, n)


def spread(values: np.ndarray) -> float:
    """The mean distance of the first values from the mean of those before each."""
    means = np.concatenate([[0.0], np.cumsum(values[: SETTLED - 1]) / np.arange(1, SETTLED)])
    return float(np.abs(values[:SETTLED] - means).mean())


def test_memory_gives_back_the_last_values_in_order() -> None:
    memory = np.zeros(1, MEMORY)
    line = np.empty(HORIZON, np.float32)
    values = series(3 * HORIZON)
    for i, x in enumerate(values):
        remember(memory[0], x)
        if i in (0, 5, BLOCK - 1, BLOCK, 1000, HORIZON, len(values) - 1):
            n = unfold(memory[0], line)
            assert n >= min(i + 1, HORIZON - BLOCK)
            np.testing.assert_allclose(line[:n], values[i + 1 - n : i + 1], atol=2e-4)


def test_an_outlier_blurs_its_own_block_alone() -> None:
    memory = np.zeros(1, MEMORY)
    values = series(6 * BLOCK)
    values[70] = 1e9
    for x in values:
        remember(memory[0], x)
    line = np.empty(HORIZON, np.float32)
    unfold(memory[0], line)
    assert line[70] == pytest.approx(1e9)
    np.testing.assert_allclose(line[BLOCK : 6 * BLOCK], values[BLOCK:], atol=2e-4)


@pytest.mark.parametrize("block", [1, 5])
def test_novelty_is_the_distance_to_the_nearest_mean_of_the_past(block: int) -> None:
    values = series(1500)
    found = raw_of("novelty", values, block=block)
    means = np.convolve(values, np.ones(block) / block, "valid")
    for t in range(200, 1500, 13):
        past = means[: t - 2 * block + 2]
        wanted = np.abs(past - means[t - block + 1]).min() / spread(means)
        assert found[t] == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("window", [4, 7])
def test_knn_is_the_distance_to_the_nearest_run_of_the_past(window: int) -> None:
    values = series(1500)
    found = raw_of("knn", values, window=window)
    for t in range(200, 1500, 13):
        now = values[t - window + 1 : t + 1]
        runs = np.lib.stride_tricks.sliding_window_view(values[: t - window + 1], window)
        wanted = np.sqrt(((runs - now) ** 2).mean(1)).min() / spread(values)
        assert found[t] == pytest.approx(wanted, abs=1e-4)


def test_seasonal_is_the_distance_from_the_mean_of_the_slot() -> None:
    hours = np.arange(24 * 7 * 6)
    ts = hours * 3600.0
    # weekdays and weekends differ, so the week tells more than the day
    values = np.where(hours // 24 % 7 < 5, 20.0, 10.0) + 3 * (hours % 24 > 12)
    values += np.random.default_rng(1).normal(0, 0.1, len(hours))
    found = raw_of("seasonal", values, ts, alpha=0.1)
    for t in range(24 * 7 * 4, len(hours), 17):
        met = values[t % 168 : t : 168]
        wanted = abs(values[t] - met.mean()) / spread(values)
        assert found[t] == pytest.approx(wanted, abs=1e-3)


def test_a_usual_value_at_the_wrong_hour_is_strange_to_seasonal_alone() -> None:
    hours = np.arange(24 * 60)
    ts = hours * 3600.0
    values = 20 + 5.0 * (hours % 24 > 12) + np.random.default_rng(2).normal(0, 0.2, len(hours))
    values[24 * 59 + 3] += 5
    scores = {}
    for name in ("seasonal", "novelty"):
        detector = build_detector({"type": name}, ("x",))
        rows = np.zeros(len(hours), np.int32)
        scores[name] = detector.score(detector.init(1), rows, values[:, None], ts)[24 * 59 + 3, 0]
    assert scores["seasonal"] > 3
    assert scores["novelty"] < 1.5


def test_a_value_in_a_gap_is_strange_to_novelty() -> None:
    rng = np.random.default_rng(3)
    values = rng.choice([10.0, 30.0], 2000) + rng.normal(0, 0.5, 2000)
    values[1990] = 20.0
    detector = build_detector({"type": "novelty"}, ("x",))
    scores = detector.score(detector.init(1), np.zeros(2000, np.int32), values[:, None], np.arange(2000.0))[
        :, 0
    ]
    assert scores[1990] > 4
    assert scores[1990] == scores[300:].max()


def test_a_missing_beat_is_strange_to_knn_alone() -> None:
    t = np.arange(3000)
    values = 10.0 * (t % 12 == 0) + np.random.default_rng(4).normal(0, 0.1, 3000)
    values[2988] -= 10
    scores = {}
    for name, window in (("knn", 14), ("novelty", None)):
        config = {"type": name, "window": window} if window else {"type": name}
        detector = build_detector(config, ("x",))
        found = detector.score(detector.init(1), np.zeros(3000, np.int32), values[:, None], t + 0.0)
        scores[name] = found[2980:, 0].max()
    assert scores["knn"] > 2.5
    assert scores["novelty"] < 2
