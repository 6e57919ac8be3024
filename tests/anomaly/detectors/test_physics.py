from __future__ import annotations

import doctest
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import anomaly.detectors.physics
from anomaly import BadDetector, build_detector
from anomaly.detector import Detector
from anomaly.detectors.physics import PhysicsDetector

Array = NDArray[np.float64]
FIELDS = ("level", "inflow", "outflow")
LAW = "d(level)/dt = (inflow - outflow) / area"
TANK = {"law": LAW, "window_s": 60}


def build(*laws: str | dict[str, Any], **settings: Any) -> Detector:
    table = {"type": "physics", "balances": list(laws), "constants": {"area": 40.0}, **settings}
    return build_detector(table, FIELDS)


def plant(n: int, seed: int = 0, leak_from: int | None = None, gap_s: float = 1.0) -> tuple[Array, Array]:
    """A tank with noise on every sensor, at irregular times: values [n, 3] and ts."""
    rng = np.random.default_rng(seed)
    ts = 1.75e9 + np.cumsum(rng.uniform(0.5, 1.5, n)) * gap_s
    t = ts - ts[0]
    inflow = 2 + np.sin(t / 300)
    outflow = 2 + np.cos(t / 170)
    leak = np.where(np.arange(n) >= (n if leak_from is None else leak_from), 0.8, 0.0)
    net = (inflow - outflow - leak) / 40
    level = 10 + np.concatenate([[0], np.cumsum(0.5 * (net[1:] + net[:-1]) * np.diff(t))])
    noise = rng.normal(0, (0.01, 0.05, 0.05), (n, 3))
    return np.stack([level, inflow, outflow], 1) + noise, ts


def scores_of(detector: Detector, values: Array, ts: Array) -> Array:
    return detector.score(detector.init(1), np.zeros(len(ts), np.int32), values, ts)[:, 0]


def evidence_of(detector: Detector, values: Array, ts: Array) -> Array:
    """float64 [n, evidence], 0 where a law has no score yet."""
    assert isinstance(detector, PhysicsDetector)
    return detector.raw(detector.init(1), np.zeros(len(ts), np.int32), values, ts)[1][:, 0]


def test_sides_are_averages_over_the_window_by_the_definition() -> None:
    values, ts = plant(400)
    values[50:60] = np.nan
    evidence = evidence_of(build(TANK, warmup=1, once_in=1e15), values, ts)
    kept = ~np.isnan(values[:, 0])
    (level, inflow, outflow), t = values[kept].T, ts[kept]
    dt = np.diff(t)
    net = (inflow - outflow) / 40
    left, right = np.diff(level) / dt, 0.5 * (net[1:] + net[:-1])
    for i in (300, 340, 389):
        age = t[i] - t[1 : i + 1]
        weight = np.exp(-age / 60) * (1 - np.exp(-dt[:i] / 60))
        expected = [(weight * side[:i]).sum() / weight.sum() for side in (left, right)]
        np.testing.assert_allclose(evidence[kept][i, 2:4], expected, rtol=1e-9)


def test_the_usual_residual_is_learned_from_the_blocks_before_the_last() -> None:
    values, ts = plant(500)
    law = {"law": "inflow = outflow + level / 10"}
    evidence = evidence_of(build(law, warmup=100, once_in=1e15), values, ts)
    residual = values[:, 1] - values[:, 2] - values[:, 0] / 10
    mean = spread = 0.0
    n, away, clipped = 0, np.zeros(500), residual.copy()
    for i, r in enumerate(residual):
        if i % 32 == 0 and i >= 64:
            block = slice(i - 64, i - 32)
            n += 32
            mean += 32 / n * (clipped[block].mean() - mean)
            spread += 32 / n * (away[block].mean() - spread)
        away[i] = abs(r - mean)
        if n >= 100:
            sd = 1.2533 * spread
            np.testing.assert_allclose(evidence[i, 4:6], [mean, sd], rtol=1e-9)
            clipped[i] = mean + np.clip(r - mean, -4 * sd, 4 * sd)
    assert n > 300


def test_a_plant_that_keeps_its_laws_is_left_alone() -> None:
    values, ts = plant(20_000)
    assert (scores_of(build(TANK), values, ts) >= 4).sum() <= 20


@pytest.mark.parametrize("gap_s", [1.0, 20.0, 600.0])
def test_a_leak_is_found_and_stays_found_while_it_lasts(gap_s: float) -> None:
    values, ts = plant(6000, leak_from=5000, gap_s=gap_s)
    scores = scores_of(build(TANK, patience_s=0), values, ts)
    assert (scores[2000:5000] >= 4).sum() <= 5
    assert (scores[5000:5060] >= 4).any()
    assert (scores[5100:] >= 4).all()


def test_a_small_leak_that_shows_slowly_does_not_become_usual() -> None:
    values, ts = plant(40_000, leak_from=30_000)
    values[30_000:, 0] += 0.8 / 40 * 0.98 * (ts[30_000:] - ts[30_000])  # 2% of the leak above is left
    scores = scores_of(build(LAW, patience_s=0), values, ts)
    assert (scores[10_000:30_000] >= 4).mean() < 0.001
    assert (scores[31_500:] >= 4).mean() > 0.95


def test_the_second_leak_is_found_as_well_as_the_first() -> None:
    values, ts = plant(9000)
    for begin in (4000, 6000, 8000):
        values[begin : begin + 300, 1] += 0.8  # inflow that doesn't arrive
    scores = scores_of(build(TANK), values, ts)
    for begin in (4000, 6000, 8000):
        assert (scores[begin + 60 : begin + 300] >= 4).all()
        assert (scores[begin + 800 : begin + 1900] < 4).mean() > 0.99


def test_after_its_patience_a_broken_law_is_usual() -> None:
    values, ts = plant(9000)
    values[4000:, 1] += 0.8
    scores = scores_of(build(TANK, patience_s=1000), values, ts)
    assert (scores[4100:4900] >= 4).all()
    assert (scores[5500:] >= 4).mean() < 0.01


def test_one_wild_value_breaks_a_law_for_a_moment_only() -> None:
    values, ts = plant(6000)
    values[4000, 0] += 50
    values[5000, 1] = 1e150
    scores = scores_of(build(TANK), values, ts)
    assert scores[4000] >= 4
    assert (scores[4300:5000] < 4).mean() > 0.99
    assert scores[5000] >= 4
    assert (scores[5900:] < 4).all()


def test_a_wrong_constant_is_learned_as_usual() -> None:
    values, ts = plant(20_000)
    assert (scores_of(build(TANK, constants={"area": 42.0}), values, ts)[5000:] >= 4).mean() < 0.001


def test_an_idle_start_blinds_nobody() -> None:
    values, ts = plant(6000, leak_from=5500)
    values[:600] = (values[600, 0], 0.0, 0.0)
    scores = scores_of(build(TANK, patience_s=600), values, ts)
    assert (scores[3000:5500] >= 4).mean() < 0.01
    assert (scores[5600:] >= 4).all()


def test_a_difference_within_the_tolerance_is_never_strange() -> None:
    values, ts = plant(6000, leak_from=5000)
    assert (scores_of(build({**TANK, "tolerance": 0.04}), values, ts) < 0.01).all()


def test_the_explanation_names_the_broken_law_with_both_sides() -> None:
    values, ts = plant(6000, leak_from=5000)
    detector = build({"law": "inflow = 2 + 0 * outflow", "name": "supply"}, {**TANK, "name": "tank"})
    rows = np.zeros(6000, np.int32)
    scores, explain = detector.examine(detector.init(1), rows, values, ts)
    text = explain(5900, 0)
    assert scores[5900, 0] >= 4
    assert text.startswith("law 'tank' is broken: d(level)/dt is 0.0171")
    assert "but (inflow - outflow) / area is 0.0369" in text
    assert "over the last 60 s" in text
    assert " holds: " in explain(4000, 0)


def test_a_law_without_its_values_is_left_out() -> None:
    values, ts = plant(4000)
    values[:, 2] = np.nan
    one = scores_of(build("inflow = 2 + level / 100"), values, ts)
    assert np.isnan(scores_of(build(TANK), values, ts)).all()
    both = scores_of(build(TANK, "inflow = 2 + level / 100"), values, ts)
    np.testing.assert_allclose(both, np.maximum(one - np.log10(2), 0), atol=1e-12)


def test_a_law_without_a_value_has_no_score_there() -> None:
    values, ts = plant(3000)
    values[2000, 0] = -1
    scores = scores_of(build("outflow = sqrt(level)", "outflow = 2 + 0 * sqrt(level)"), values, ts)
    assert np.flatnonzero(np.isnan(scores)).tolist() == [2000]


def test_what_happened_in_a_gap_is_not_guessed() -> None:
    values, ts = plant(6000)
    values[3000:, 0] += 5  # emptied and filled by hand meanwhile
    ts[3000:] += 7200
    scores = scores_of(build(TANK), values, ts)
    assert (scores[3000:3030] == 0).all()
    assert (scores[3000:] >= 4).mean() < 0.01


def test_time_that_stands_still_or_goes_back_breaks_no_law() -> None:
    values, ts = plant(6000)
    ts[3000:3010] = ts[2999]
    ts[4000] += 86_400
    ts[5000:] -= 3600
    scores = scores_of(build(TANK), values, ts)
    assert (scores >= 4).mean() < 0.01
    assert (scores[5500:] > 0).any()


def faults(*laws: Any, **settings: Any) -> dict[str, str]:
    with pytest.raises(BadDetector) as caught:
        build(*laws, **settings)
    return {fault.path: fault.message for fault in caught.value.faults}


def test_every_fault_is_told_with_its_path() -> None:
    found = faults(
        "d(levl)/dt = 1", {"law": "level = ", "name": "x"}, LAW, constants={"area": 1.0, "inflow": 2.0}
    )
    assert set(found) == {"balances[0]", "balances[1].law", "constants.inflow"}
    assert "at character 3" in found["balances[0]"]
    assert set(faults()) == {"balances"}
    found = faults({**TANK, "window_s": -1, "tolerance": float("nan")}, patience_s=-1)
    assert set(found) == {"balances[0].window_s", "balances[0].tolerance", "patience_s"}
    with pytest.raises(BadDetector, match="balances: is missing"):
        build_detector({"type": "physics"}, FIELDS)


def test_the_documented_examples_run() -> None:
    assert doctest.testmod(anomaly.detectors.physics).failed == 0
