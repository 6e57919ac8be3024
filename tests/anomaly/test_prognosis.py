"""Failure prediction: when alerts open, what they say, when they end, and any cut gives the same."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import numpy as np
import pytest

from anomaly.notice import Notice
from anomaly.prognosis import Prognosis
from anomaly.verdict import judge
from streams.config import LimitConfig, PrognosisConfig

START = 1.7e9
HIGH = PrognosisConfig(limits=[LimitConfig(field="temperature", high=90)])


def predict(
    values: np.ndarray, every_s: float, config: PrognosisConfig = HIGH, scores: np.ndarray | None = None
) -> list[Notice]:
    prognosis = Prognosis(config, ("temperature",), ("°C",))
    n = len(values)
    verdict = judge(np.zeros((n, 1)) if scores is None else scores[:, None], np.ones(1))
    rows, ts = np.zeros(n, np.int32), START + every_s * np.arange(n)
    return prognosis.update(prognosis.init(1), rows, values[:, None], ts, verdict)


def test_a_rise_is_foreseen_and_its_end_is_told() -> None:
    rng = np.random.default_rng(0)
    t = 10.0 * np.arange(30_000)
    values = 30 + rng.normal(size=len(t)) + t * 0.8 / 3600
    values[::97] += 500  # spikes count for nothing
    notices = predict(values, 10)
    opened, ended = notices[0], notices[-1]
    assert [n.state for n in notices[:-1]] == ["firing"] * (len(notices) - 1)
    truth = START + 60 / 0.8 * 3600
    assert opened.ts < truth - 10 * 3600
    hours = re.search(r"reaches 90 °C in [\d.]+ h, ([\d.]+) to ([\d.]+) h \(80%\)", opened.explanation)
    assert hours is not None, opened.explanation
    early, late = (opened.ts + 3600 * float(h) for h in hours.groups())
    assert early - 1800 <= truth <= late + 1800
    assert ended.state == "resolved"
    assert "has reached 90 °C" in ended.explanation
    assert abs(ended.ts - truth) < 3 * 3600
    assert len({n.alert_id("s", "a") for n in notices}) == 1


def test_an_alert_ends_when_the_trend_turns() -> None:
    rng = np.random.default_rng(1)
    t = 60.0 * np.arange(8000)
    rise = np.interp(t, [0, 150_000, 250_000, 480_000], [60, 60, 82, 40])
    notices = predict(rise + 0.5 * rng.normal(size=len(t)), 60)
    assert [n.state for n in notices][-1] == "resolved"
    assert "no longer heading for 90 °C" in notices[-1].explanation


@pytest.mark.parametrize("shape", ["daily", "noise", "spikes", "away"])
def test_what_is_no_trend_towards_the_limit_gives_no_alert(shape: str) -> None:
    rng = np.random.default_rng(2)
    t = 60.0 * np.arange(20 * 1440)
    values = 60 + rng.normal(size=len(t))
    if shape == "daily":
        values += 10 * np.sin(2 * math.pi * t / 86_400)
    elif shape == "spikes":
        values[rng.random(len(t)) < 0.02] = 200
    elif shape == "away":
        values -= t / 86_400
    assert predict(values, 60) == []


def test_a_low_bound_is_watched_from_above() -> None:
    t = 60.0 * np.arange(6000)
    values = 60 - 1e-4 * t + 0.3 * np.random.default_rng(3).normal(size=len(t))
    config = PrognosisConfig(limits=[LimitConfig(field="temperature", low=30)])
    opened = predict(values, 60, config)[0]
    assert "falling" in opened.explanation
    assert opened.subject == "temperature/low"


def test_the_life_of_a_bearing_grows_short_exponentially() -> None:
    rng = np.random.default_rng(4)
    t = 10.0 * np.arange(20_000)
    vibration = 0.1 * np.exp(t / 60_000) * rng.normal(size=len(t))
    limit = LimitConfig(field="temperature", of="rms", high=2, wear=True)
    opened = predict(vibration, 10, PrognosisConfig(limits=[limit]))[0]
    left = re.search(r"exponentially.*: ([\d.]+) h of life left", opened.explanation)
    assert left is not None, opened.explanation
    assert opened.ts + 3600 * float(left[1]) == pytest.approx(START + 60_000 * math.log(20), abs=6 * 3600)


def test_anomalies_that_add_up_reach_their_limit() -> None:
    rng = np.random.default_rng(5)
    strange = (rng.random(10_000) < 0.01).astype(float)
    limit = LimitConfig(field="temperature", of="anomalies", high=90, wear=True)
    notices = predict(np.zeros(10_000), 60, PrognosisConfig(limits=[limit]), strange)
    assert notices[0].value < 90
    assert "has reached 90" in notices[-1].explanation
    reached = START + 60 * np.flatnonzero(np.cumsum(strange) >= 90)[0]
    assert abs(notices[-1].ts - reached) < 4 * 3600


def _mixed(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    n = 6000
    rows = rng.integers(0, 4, n).astype(np.int32)
    ts = START + np.cumsum(rng.exponential(30, n))
    values = np.column_stack([60 + (ts - START) * 2e-4 + rng.normal(size=n), rng.normal(size=n)])
    values[rng.random((n, 2)) < 0.05] = np.nan
    ts[1000:1010] -= 5000
    ts[4000:] += 86_400
    values[77, 0], values[78, 1] = 1e308, -1e308
    return {"rows": rows, "values": values, "ts": ts, "scores": np.where(rng.random((n, 2)) < 0.02, 2.0, 0.0)}


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_any_cut_gives_the_same_notices_and_state(size: int) -> None:
    limits = [
        LimitConfig(field="a", high=90, low=50),
        LimitConfig(field="b", of="rms", high=3, wear=True),
        LimitConfig(field="a", of="anomalies", high=40),
    ]
    config = PrognosisConfig(limits=limits, horizon_s=20_000)
    prognosis = Prognosis(config, ("a", "b"), ("", ""))
    data = _mixed(6)

    def run(size: int) -> tuple[list[Notice], bytes]:
        state, found = prognosis.init(4), []
        for a, b in itertools.pairwise([*range(0, 6000, size), 6000]):
            part = {name: column[a:b] for name, column in data.items()}
            verdict = judge(part.pop("scores"), np.ones(2))
            for notice in prognosis.update(state, verdict=verdict, **part):
                notice.index += a
                found.append(notice)
        return found, state.tobytes()

    whole, cut = run(6000), run(size)
    assert whole[0]
    assert whole == cut
