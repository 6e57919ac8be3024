from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from streams.config import (
    ClipConfig,
    DeltaConfig,
    FieldConfig,
    RateConfig,
    RollingConfig,
    ScaleConfig,
    TransformConfig,
)
from streams.transforms import PANES, Pipeline

NAN = math.nan


def pipeline(*transforms: TransformConfig) -> Pipeline:
    return Pipeline({"x": FieldConfig(transforms=list(transforms))})


def apply(
    transform: TransformConfig, values: list[float], ts: list[float] | None = None, rows: Any = None
) -> list[float]:
    made = pipeline(transform)
    n = len(values)
    at = np.zeros(n, np.int32) if rows is None else np.array(rows, np.int32)
    out = made.apply(
        made.init(int(at.max()) + 1),
        at,
        np.array(values, float)[:, None],
        np.arange(float(n)) if ts is None else np.array(ts, float),
    )
    return [round(x, 9) for x in out[:, 0].tolist()]


def same(found: list[float], expected: list[float]) -> None:
    np.testing.assert_array_equal(found, expected)


def test_scale_and_clip_keep_what_is_missing() -> None:
    same(apply(ScaleConfig(factor=1.8, offset=32), [0, 100, NAN]), [32, 212, NAN])
    same(apply(ClipConfig(min=0, max=10), [-5, 5, 15, NAN]), [0, 5, 10, NAN])
    same(apply(ClipConfig(max=10), [-1e9, 15]), [-1e9, 10])


def test_delta_is_the_difference_to_the_sensors_last_value() -> None:
    same(apply(DeltaConfig(), [1, 5, NAN, 4]), [NAN, 4, NAN, -1])
    same(apply(DeltaConfig(), [1, 100, 3, 90], rows=[0, 1, 0, 1]), [NAN, NAN, 2, -10])


def test_rate_is_per_time_and_none_where_time_did_not_go_on() -> None:
    same(apply(RateConfig(per_s=60), [1, 2, 4, 8], ts=[0, 30, 30, 60]), [NAN, 2, NAN, 8])
    same(apply(RateConfig(), [1, 2, 4], ts=[10, 5, 7]), [NAN, NAN, 1])


def test_rolling_forgets_what_is_older_than_the_window() -> None:
    same(apply(RollingConfig(stat="mean", window_s=16), [2, 4, 9], ts=[0, 15, 17]), [2, 3, 6.5])
    same(apply(RollingConfig(stat="max", window_s=16), [9, 1, 2, 1], ts=[0, 15, 16, 40]), [9, 9, 2, 1])
    same(apply(RollingConfig(stat="min", window_s=16), [1, NAN, 3, 2], ts=[0, 8, 16, 17]), [1, NAN, 3, 2])


def test_a_late_reading_counts_only_while_the_window_reaches_it() -> None:
    rolling = RollingConfig(stat="max", window_s=16)
    same(apply(rolling, [1, 7, 2], ts=[100, 90, 101]), [1, 7, 7])
    same(apply(rolling, [1, 7, 2], ts=[100, 50, 101]), [1, 1, 2])


def test_transforms_are_applied_in_order_and_by_field() -> None:
    made = Pipeline(
        {
            "a": FieldConfig(transforms=[DeltaConfig(), ScaleConfig(factor=10), ClipConfig(max=25)]),
            "b": FieldConfig(),
        }
    )
    values = np.array([[1.0, 1.0], [2.0, 2.0], [9.0, 3.0]])
    out = made.apply(made.init(1), np.zeros(3, np.int32), values, np.arange(3.0))
    np.testing.assert_array_equal(out, [[NAN, 1], [10, 2], [25, 3]])


def test_a_pipeline_without_transforms_hands_the_values_on() -> None:
    made = Pipeline({"a": FieldConfig(), "b": FieldConfig()})
    assert not made.active
    assert made.dtype.itemsize == 0
    values = np.ones((4, 2))
    assert made.apply(made.init(1), np.zeros(4, np.int32), values, np.zeros(4)) is values


def rolling_reference(
    rows: NDArray[np.int32],
    x: NDArray[np.float64],
    ts: NDArray[np.float64],
    stat: str,
    window_s: float,
) -> list[float]:
    """All values whose pane is among the newest 16 of the sensor's, up to this reading."""
    out, newest = [], {}
    kept: dict[int, list[tuple[float, float]]] = {}
    for row, value, t in zip(rows.tolist(), x.tolist(), ts.tolist(), strict=True):
        if math.isnan(value):
            out.append(NAN)
            continue
        pane = math.floor(t / (window_s / PANES))
        kept.setdefault(row, []).append((pane, value))
        newest[row] = max(newest.get(row, pane), pane)
        held = [v for p, v in kept[row] if p > newest[row] - PANES]
        out.append({"mean": np.mean, "min": min, "max": max}[stat](held))
    return out


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999),
    n=st.integers(1, 500),
    sensors=st.sampled_from([1, 3, 50, 300]),
    late=st.sampled_from([0.0, 0.1, 3.0]),
    stat=st.sampled_from(["mean", "min", "max"]),
)
def test_rolling_agrees_with_plain_lists(seed: int, n: int, sensors: int, late: float, stat: Any) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, sensors, n).astype(np.int32)
    x = rng.normal(50, 10, n)
    x[rng.random(n) < 0.05] = NAN
    ts = 1.75e9 + np.cumsum(rng.exponential(0.05, n)) + rng.normal(0, 1, n) * late
    made = pipeline(RollingConfig(stat=stat, window_s=2.0))
    out = made.apply(made.init(sensors), rows, x[:, None], ts)[:, 0]
    np.testing.assert_allclose(out, rolling_reference(rows, x, ts, stat, 2.0), rtol=1e-12)


ALL: list[TransformConfig] = [
    DeltaConfig(),
    RateConfig(per_s=60),
    RollingConfig(stat="mean", window_s=1.0),
    RollingConfig(stat="min", window_s=1.0),
    RollingConfig(stat="max", window_s=1.0),
]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999),
    n=st.integers(1, 800),
    sensors=st.sampled_from([1, 4, 60, 500]),
    late=st.sampled_from([0.0, 0.3]),
    cuts=st.lists(st.integers(0, 800), max_size=8),
)
def test_any_cut_gives_the_same_values_and_state_bit_for_bit(
    seed: int, n: int, sensors: int, late: float, cuts: list[int]
) -> None:
    rng = np.random.default_rng(seed)
    made = Pipeline({str(i): FieldConfig(transforms=[t, ScaleConfig(factor=2)]) for i, t in enumerate(ALL)})
    rows = rng.integers(0, sensors, n).astype(np.int32)
    values = rng.normal(0, 1, (n, len(ALL)))
    values[rng.random(values.shape) < 0.1] = NAN
    values[rng.random(values.shape) < 0.05] = -0.0
    values.setflags(write=False)
    ts = 1.75e9 + np.cumsum(rng.exponential(0.02, n)) + rng.normal(0, 1, n) * late
    whole_state = made.init(sensors)
    whole = made.apply(whole_state, rows, values, ts)
    for edges in (sorted(min(cut, n) for cut in cuts), list(range(min(n, 60)))):
        state = made.init(sensors)
        parts = [
            made.apply(state, rows[part], values[part], ts[part]) for part in np.split(np.arange(n), edges)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        assert state.tobytes() == whole_state.tobytes()


@pytest.mark.parametrize("transform", ALL)
def test_extreme_values_raise_no_warning(transform: TransformConfig) -> None:
    made = pipeline(transform)
    values = np.array([[1e308], [-1e308], [1e308], [1e308], [5e-324]])
    for rows in (np.zeros(5, np.int32), np.arange(5, dtype=np.int32)):
        made.apply(made.init(5), rows, values, np.array([0.0, 5e-324, 1e-9, 1e300, 1e-9]))
