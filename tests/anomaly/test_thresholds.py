from __future__ import annotations

import doctest
import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import anomaly.thresholds
from anomaly.adaptive import LEAST, MOST, STEP, follow, follower_dtype
from anomaly.thresholds import Budget, Resolver, ThresholdTable
from anomaly.verdict import Limits, judge, judge_each
from streams.control import ThresholdRule

NAN = math.nan
FIELDS = ("temperature", "humidity")
PATTERN = re.compile(r"(?P<site>[^/]+)/(?P<type>[a-z]+)")


def resolver(decades: bool = True, base: tuple[float, ...] = (4.0, 4.0), **rules: dict[str, Any]) -> Resolver:
    made = {name: ThresholdRule(**rule) for name, rule in rules.items()}
    return Resolver(made, "plant", FIELDS, np.array(base), decades, PATTERN)


def score(made: Resolver, sensor: str, column: int = 0) -> tuple[float, float]:
    return made.score(made.concerning(made.identity(sensor)), column)


def test_the_most_specific_rule_wins_setting_by_setting() -> None:
    made = resolver(
        sensor={"sensor": "east/pump-7", "threshold": 9.0},
        stream={"stream": "plant", "threshold": 5.0, "severity": "info"},
        site={"site": "east", "threshold": 7.0, "high": 80.0},
        pattern={"sensor": "east/pump-*", "threshold": 8.0},
        kind={"sensor_type": "pump", "threshold": 6.0, "low": 1.0},
        other={"stream": "hall", "threshold": 1.0},
    )
    names = ("east/pump-7", "east/pump-8", "east/fan", "west/pump", "x")
    assert [score(made, name)[0] for name in names] == [9.0, 8.0, 7.0, 6.0, 5.0]
    rules = made.concerning(made.identity("east/pump-7"))
    assert made.limits(rules, "temperature") == (1.0, 80.0)
    assert made.severity(rules) == "info"


def test_a_field_is_less_specific_than_a_sensor_and_later_wins_among_equals() -> None:
    made = resolver(
        a={"field": "temperature", "threshold": 5.0},
        b={"field": "temperature", "threshold": 6.0},
        c={"sensor": "x*", "threshold": 7.0},
    )
    assert [score(made, "y", column)[0] for column in (0, 1)] == [6.0, 4.0]
    assert score(made, "x1")[0] == 7.0


def test_a_joint_score_is_no_field_s() -> None:
    made = resolver(base=(4.0,), a={"field": "temperature", "threshold": 9.0}, b={"once_in": 1e6})
    assert score(made, "x") == (6.0, 0.0)


def test_once_in_says_nothing_to_a_detector_without_decades() -> None:
    assert score(resolver(decades=False, a={"once_in": 1e6}), "x") == (4.0, 0.0)


def test_who_shares_a_budget() -> None:
    for by, group in (("rule", "a"), ("site", "a/east"), ("sensor", "a/east/pump")):
        made = resolver(a={"budget_per_day": 3.0, "budget_by": by})
        who = made.identity("east/pump")
        assert made.budget(made.concerning(who), who) == Budget(group, 3.0)


@pytest.mark.parametrize(
    ("rule", "setting"),
    [
        ({}, ""),
        ({"threshold": 3.0, "once_in": 10.0}, "once_in"),
        ({"low": 3.0, "high": 2.0}, "low"),
        ({"field": "t", "budget_per_day": 1.0}, "budget_per_day"),
        ({"field": "t", "severity": "info"}, "severity"),
        ({"sensor": "", "high": 1.0}, "sensor"),
    ],
)
def test_faults_of_a_rule_are_told_by_setting(rule: dict[str, Any], setting: str) -> None:
    assert list(ThresholdRule(**rule).faults()) == [setting]


def test_the_table_has_what_the_rules_say_for_each_sensor() -> None:
    table = ThresholdTable(
        resolver(a={"site": "east", "high": 90.0, "field": "temp*"}, b={"adaptive": 100.0})
    )
    table.learn(["east/a", "west/b"], np.array([1, 0, 1], np.int32))
    assert table.high[0, 0] == 90.0
    assert np.isnan(table.high[1]).all()
    assert np.isnan(table.high[0, 1])
    assert table.span[0, 0] == 90.0
    assert (table.limited, table.adapts, table.governed) == (True, True, False)
    assert table.adaptive.tolist() == [[100.0, 100.0]] * 2


def test_beyond_a_limit_a_reading_is_anomalous_whatever_its_score() -> None:
    scores = np.array([[0.0, 5.0], [0.0, 1.0], [0.0, 1.0], [NAN, NAN], [0.0, 0.0]])
    values = np.array([[50.0, 0.0], [92.0, 0.0], [200.0, 0.0], [91.0, 0.0], [5.0, 0.0]])
    shape = (5, 1)
    low, high = np.tile([10.0, NAN], shape), np.tile([90.0, NAN], shape)
    limits = Limits(low, high, np.tile([80.0, 1.0], shape))
    verdict = judge_each(scores, np.full((5, 2), 4.0), values, limits)
    assert verdict.is_anomaly.tolist() == [True, True, True, True, True]
    assert verdict.field.tolist() == [1, 0, 0, 0, 0]
    assert [verdict.limit_of(i) for i in range(5)] == [None, 90.0, 90.0, 90.0, 10.0]
    assert verdict.ratio[1] == 1 + 2 / 80
    assert verdict.ratio[2] > 2


@given(st.integers(0, 9999), st.integers(1, 40))
def test_thresholds_of_single_sensors_that_are_all_the_same_judge_as_one(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    scores = np.where(rng.random((n, 3)) < 0.2, NAN, rng.random((n, 3)) * 9)
    one, each = judge(scores, np.full(3, 4.0)), judge_each(scores, np.full((n, 3), 4.0), scores)
    for name in ("field", "score", "ratio", "is_anomaly"):
        np.testing.assert_array_equal(getattr(one, name), getattr(each, name))


def plain_follow(scores: Any, rows: Any, base: float, n: float) -> list[float]:
    """The formula of the module, reading by reading."""
    held: dict[int, tuple[float, bool]] = {}
    out = []
    for s, row in zip(scores, rows, strict=True):
        q, above = held.get(row, (base, False))
        q = min(max(q, LEAST * base), MOST * base)
        out.append(q)
        if s > 0:
            if s >= q:
                q, above = (q if above else q * math.exp(STEP)), True
            else:
                q, above = q * math.exp(-STEP / n), False
        held[row] = (q, above)
    return out


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 200))
def test_any_cut_follows_as_the_plain_formula(seed: int, cut: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 3, 200).astype(np.int32)
    scores = np.where(rng.random(200) < 0.1, NAN, rng.exponential(2, 200))
    state = np.zeros(3, follower_dtype(1))
    found: list[float] = []
    for start in range(0, 200, cut):
        part = slice(start, start + cut)
        size = len(rows[part])
        base, once_in = np.full((size, 1), 4.0), np.full((size, 1), 50.0)
        found += follow(state, rows[part], scores[part, None], base, once_in)[:, 0].tolist()
    np.testing.assert_allclose(found, plain_follow(scores.tolist(), rows.tolist(), 4.0, 50.0), rtol=1e-12)


def test_an_adaptive_threshold_comes_to_what_a_sensor_reaches_once_in_n() -> None:
    rng = np.random.default_rng(1)
    n = 60_000
    scores = rng.exponential(1.0, (n, 1))
    state = np.zeros(1, follower_dtype(1))
    rows = np.zeros(n, np.int32)
    q = follow(state, rows, scores, np.full((n, 1), 4.0), np.full((n, 1), 200.0))[n // 2 :, 0]
    assert 0.7 / 200 < (scores[n // 2 :, 0] >= q).mean() < 1.4 / 200


def test_a_long_anomaly_raises_an_adaptive_threshold_once() -> None:
    scores = np.full((50, 1), 30.0)
    state = np.zeros(1, follower_dtype(1))
    q = follow(state, np.zeros(50, np.int32), scores, np.full((50, 1), 4.0), np.full((50, 1), 1000.0))
    assert q[-1, 0] == pytest.approx(4 * math.exp(STEP))


def test_the_documented_examples_run() -> None:
    assert doctest.testmod(anomaly.thresholds).failed == 0
