from __future__ import annotations

import doctest
import math
from collections import defaultdict
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import streams.aligned
from streams.config import HoppingConfig, SessionConfig, TumblingConfig, WindowConfig
from streams.errors import ConfigError
from streams.windows import WindowAggregator, WindowResult

FIELDS = ("a", "b")
T0 = 1_750_000_000.0


def plain(
    config: WindowConfig, sensors: list[str], values: NDArray[np.float64], ts: NDArray[np.float64]
) -> tuple[list[tuple[Any, ...]], int]:
    """The windows of one configuration, reading by reading, and how many readings were late."""
    held: dict[str, list[tuple[float, float, list[Any]]]] = defaultdict(list)  # (start, end, readings)
    results: list[tuple[Any, ...]] = []
    late, high = 0, -math.inf
    for sensor, x, t in zip(sensors, values, ts.tolist(), strict=True):
        mark = high - config.allowed_lateness_s
        windows = held[sensor]
        if isinstance(config, SessionConfig):
            gap = config.gap_s
            touching = [w for w in windows if w[0] - gap <= t <= w[1]]
            if touching or t + gap > mark:
                for w in touching:
                    windows.remove(w)
                start = min([t, *(w[0] for w in touching)])
                end = max([t + gap, *(w[1] for w in touching)])
                windows.append((start, end, [x, *(y for w in touching for y in w[2])]))
            else:
                late += 1
        else:
            hop = config.hop_s if isinstance(config, HoppingConfig) else config.size_s
            newest = math.floor(t / hop)
            spans = [(w * hop, w * hop + config.size_s) for w in range(newest - 40, newest + 1)]
            inside = [span for span in spans if span[0] <= t < span[1]]
            for start, end in inside:
                if end > mark:
                    known = [w for w in windows if w[0] == start]
                    if known:
                        known[0][2].append(x)
                    else:
                        windows.append((start, end, [x]))
            late += bool(inside) and inside[-1][1] <= mark
        high = max(high, t)
        for name in held:
            for w in [w for w in held[name] if w[1] <= high - config.allowed_lateness_s]:
                held[name].remove(w)
                for j, field in enumerate(FIELDS):
                    y = np.array([reading[j] for reading in w[2] if not math.isnan(reading[j])])
                    if len(y):
                        p50, p95 = np.quantile(y, (0.5, 0.95), method="lower")
                        numbers = (len(y), y.mean(), y.min(), y.max(), y.std(), p50, p95)
                        results.append((name, field, w[0], w[1], *numbers))
    return sorted(results), late


def as_tuples(results: list[WindowResult]) -> list[tuple[Any, ...]]:
    return sorted(
        (r.sensor, r.field, r.start, r.end, r.count, r.mean, r.min, r.max, r.std, r.p50, r.p95)
        for r in results
    )


def sensors_of(n: int, sensors: int, rng: np.random.Generator) -> list[str]:
    return [f"s{i}" for i in rng.integers(0, sensors, n)]


CONFIGS: list[WindowConfig] = [
    TumblingConfig(name="w", size_s=10),
    TumblingConfig(name="w", size_s=10, allowed_lateness_s=2.5),
    HoppingConfig(name="w", size_s=10, hop_s=4),
    HoppingConfig(name="w", size_s=12, hop_s=3, allowed_lateness_s=1),
    HoppingConfig(name="w", size_s=5, hop_s=8),
    SessionConfig(name="w", gap_s=3),
    SessionConfig(name="w", gap_s=2, allowed_lateness_s=4),
]


@settings(max_examples=60, deadline=None)
@given(
    config=st.sampled_from(CONFIGS),
    seed=st.integers(0, 9999),
    n=st.integers(1, 400),
    sensors=st.sampled_from([1, 2, 8, 60]),
    disorder=st.sampled_from([0.0, 0.5, 5.0]),
    pace_s=st.sampled_from([0.05, 1.0, 30.0]),
    cut=st.sampled_from([1, 7, 100, 400]),
    restart=st.booleans(),
)
def test_any_cut_and_any_restart_give_the_plain_windows(
    config: WindowConfig,
    seed: int,
    n: int,
    sensors: int,
    disorder: float,
    pace_s: float,
    cut: int,
    restart: bool,
) -> None:
    rng = np.random.default_rng(seed)
    ids = sensors_of(n, sensors, rng)
    values = rng.normal(1013, 0.5, (n, 2))
    values[rng.random(values.shape) < 0.1] = math.nan
    ts = T0 + np.cumsum(rng.exponential(pace_s, n)) + rng.normal(0, 1, n) * disorder
    made = WindowAggregator([config], FIELDS, "plant")
    results = []
    for begin in range(0, n, cut):
        part = slice(begin, begin + cut)
        results += made.add(ids[part], values[part], ts[part])
        if restart and rng.random() < 0.3:
            saved = made.snapshot()
            made = WindowAggregator([config], FIELDS, "plant")
            assert made.restore(saved)
    made.snapshot()  # takes what waits
    expected, late = plain(config, ids, values, ts)
    found = as_tuples(results)
    assert [r[:2] + r[4:5] for r in found] == [r[:2] + r[4:5] for r in expected]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours[2:9], theirs[2:9], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(ours[9:], theirs[9:], rtol=2.001e-4)
    assert made.late == {"w": late}


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 999), cut=st.integers(3, 200), disorder=st.sampled_from([0.0, 3.0]))
def test_results_come_in_the_same_order_however_readings_are_cut(
    seed: int, cut: int, disorder: float
) -> None:
    rng = np.random.default_rng(seed)
    n = 200
    configs = [msgspec.structs.replace(c, name=f"w{i}") for i, c in enumerate(CONFIGS)]
    ids, values = sensors_of(n, 9, rng), rng.normal(0, 1, (n, 2))
    ts = T0 + np.cumsum(rng.exponential(1.0, n)) + rng.normal(0, 1, n) * disorder
    orders = []
    for size in (n, cut):
        made = WindowAggregator(configs, FIELDS)
        results = [
            r
            for i in range(0, n, size)
            for r in made.add(ids[i : i + size], values[i : i + size], ts[i : i + size])
        ]
        orders.append([[r.key for r in results if r.window == c.name] for c in configs])
    assert orders[0] == orders[1]


def one(config: WindowConfig, ts: list[float], rows: list[str] | None = None) -> WindowAggregator:
    made = WindowAggregator([config], FIELDS, "plant")
    made.add(rows or ["s"] * len(ts), np.ones((len(ts), 2)), np.array(ts))
    return made


def test_a_window_closes_when_the_watermark_reaches_its_end() -> None:
    made = one(TumblingConfig(name="w", size_s=10, allowed_lateness_s=2), [1, 9.5, 11.9])
    results = made.add(["other"], np.ones((1, 2)), np.array([12.0]))
    assert [(r.sensor, r.field, r.start, r.end, r.count) for r in results] == [
        ("s", "a", 0, 10, 2),
        ("s", "b", 0, 10, 2),
    ]


def test_a_late_reading_is_counted_and_left_out() -> None:
    made = one(TumblingConfig(name="w", size_s=10), [1, 12])
    assert made.add(["s"], np.ones((1, 2)), np.array([9.0])) == []
    assert made.advance(12) == []
    assert made.late == {"w": 1}


def test_a_reading_late_for_one_window_still_counts_in_the_next() -> None:
    made = one(HoppingConfig(name="w", size_s=10, hop_s=5), [1, 12, 9])
    results = made.add(["s"], np.ones((1, 2)), np.array([30.0]))
    assert {(r.start, r.count) for r in results if r.field == "a"} == {(5, 2), (10, 1)}
    assert made.late == {"w": 0}


def test_a_reading_between_two_sessions_joins_them() -> None:
    made = one(SessionConfig(name="w", gap_s=3, allowed_lateness_s=10), [1, 6, 3.5])
    results = made.add(["s"], np.ones((1, 2)), np.array([100.0]))
    assert [(r.start, r.end, r.count) for r in results if r.field == "a"] == [(1, 9, 3)]


def test_a_silent_partition_is_closed_by_the_wall_clock_when_asked() -> None:
    made = one(TumblingConfig(name="w", size_s=10, allowed_lateness_s=2), [1, 5])
    assert made.advance(11.9) == []
    assert [r.count for r in made.advance(12.0)] == [2, 2]
    assert made.advance(50.0) == []
    made.add(["s"], np.ones((1, 2)), np.array([9.0]))
    assert made.advance(50.0) == []
    assert made.late == {"w": 1}
    assert made.open_windows == 0


def test_a_field_without_values_has_no_result() -> None:
    made = WindowAggregator([TumblingConfig(name="w", size_s=10)], FIELDS)
    values = np.array([[1.0, math.nan], [2.0, math.nan]])
    made.add(["s", "s"], values, np.array([0.0, 1.0]))
    assert [(r.field, r.mean, r.std) for r in made.advance(99)] == [("a", 1.5, 0.5)]


def test_a_small_deviation_at_a_large_level_is_kept() -> None:
    made = WindowAggregator([TumblingConfig(name="w", size_s=1e4)], ("a",))
    x = 1e9 + np.random.default_rng(0).normal(0, 1e-3, 5000)
    for part in np.array_split(np.arange(5000), 50):
        made.add(["s"] * len(part), x[part, None], part.astype(float))
    (result,) = made.advance(1e9)
    assert result.std == pytest.approx(x.std(), rel=1e-4)
    assert x.min() <= result.p50 <= result.p95 <= x.max()


def test_no_extreme_value_raises_a_warning_or_breaks_a_window() -> None:
    made = WindowAggregator([TumblingConfig(name="w", size_s=10), SessionConfig(name="s", gap_s=5)], ("a",))
    x = np.array([1e308, -1e308, 0.0, 5e-324, 1e200])
    made.add(list("vwxyz"), x[:, None], np.arange(5.0))
    made.add(["v"] * 5, x[:, None], np.arange(5.0))
    results = made.advance(1e6)
    assert {r.sensor for r in results} == set("vwxyz")
    assert all(r.min <= r.p50 <= r.max for r in results)


def test_closed_windows_leave_nothing_behind() -> None:
    made = WindowAggregator(
        [
            TumblingConfig(name="t", size_s=5),
            HoppingConfig(name="h", size_s=5, hop_s=1),
            SessionConfig(name="s", gap_s=5),
        ],
        FIELDS,
    )
    rng = np.random.default_rng(0)
    sizes = []
    for step in range(60):
        n = 500
        ids = [f"s{step}-{i}" for i in rng.integers(0, 200, n)]  # sensors come and never come again
        made.add(ids, rng.normal(0, 1, (n, 2)), T0 + step * 10 + np.sort(rng.random(n)) * 10)
        sizes.append(len(made.snapshot()))
    assert max(sizes[30:]) < 1.2 * max(sizes[:10])
    made.advance(T0 + 1e6)
    assert made.open_windows == 0
    assert len(made.snapshot()) < 1000


def test_a_snapshot_of_other_windows_or_fields_is_not_taken() -> None:
    saved = one(TumblingConfig(name="w", size_s=10), [1, 2]).snapshot()
    for config, fields in (
        (TumblingConfig(name="w", size_s=20), FIELDS),
        (TumblingConfig(name="w", size_s=10), ("a", "c")),
    ):
        other = WindowAggregator([config], fields)
        assert not other.restore(saved)
        assert other.open_windows == 0


def test_a_hop_that_cuts_windows_too_fine_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"hop_s: 7\.001 and size_s 3600 divide only into panes"):
        WindowAggregator([HoppingConfig(name="w", size_s=3600, hop_s=7.001)], FIELDS)


def test_rows_may_be_located_first() -> None:
    made = WindowAggregator([TumblingConfig(name="w", size_s=10)], FIELDS)
    rows = made.locate(["x", "y"])[np.array([0, 1, 1])]
    made.add(rows, np.ones((3, 2)), np.arange(3.0))
    assert {(r.sensor, r.count) for r in made.advance(99)} == {("x", 1), ("y", 2)}


def test_a_result_is_json_with_the_documented_keys() -> None:
    made = one(TumblingConfig(name="minute", size_s=10), [1, 2])
    result = made.advance(99)[0]
    assert msgspec.json.decode(msgspec.json.encode(result)) == {
        "stream": "plant",
        "window": "minute",
        "sensor": "s",
        "field": "a",
        "start": 0.0,
        "end": 10.0,
        "count": 2,
        "mean": 1.0,
        "min": 1.0,
        "max": 1.0,
        "std": 0.0,
        "p50": 1.0,
        "p95": 1.0,
    }
    assert result.key == "plant/minute/s/a/0.0"


def test_the_documented_examples_run() -> None:
    assert doctest.testmod(streams.aligned).failed == 0
