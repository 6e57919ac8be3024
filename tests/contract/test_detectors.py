"""What every registered detector promises, whoever wrote it. A new detector gets these checks unasked."""

from __future__ import annotations

import itertools
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from anomaly import DETECTORS, Detector, StateMismatch, build_detector, state_from_bytes
from tests.onnx_models import forecaster

FIELDS = ("temperature", "humidity", "pressure")
#: What detectors need that don't run without being told something.
CONFIGS: dict[str, dict[str, Any]] = {
    "physics": {
        "balances": [
            {"name": "heat", "law": "d(temperature)/dt = (humidity - mean) / inertia"},
            "pressure = 1013 + 0.1 * (temperature - 70)",
        ],
        "constants": {"mean": 40.0, "inertia": 25.0},
    },
    "onnx": {"kind": "forecaster"},
}
SHAPES = ("noise", "stuck", "steps", "gaps", "extreme")


@pytest.fixture(scope="module", autouse=True)
def model(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = forecaster(tmp_path_factory.mktemp("models") / "forecaster.onnx", fields=len(FIELDS))
    CONFIGS["onnx"]["model"] = str(path)


def build(name: str) -> Detector:
    return build_detector({"type": name, **CONFIGS.get(name, {})}, FIELDS)


@pytest.fixture(params=sorted(DETECTORS))
def detector(request: pytest.FixtureRequest) -> Detector:
    return build(request.param)


class Readings:
    """Readings of some sensors with all that can be wrong with values."""

    def __init__(self, n: int, sensors: int, seed: int, shape: str = "noise") -> None:
        rng = np.random.default_rng(seed)
        self.sensors = sensors
        # some sensors far more often than others
        self.rows = np.minimum(rng.geometric(min(1.0, 2 / sensors), n) - 1, sensors - 1).astype(np.int32)
        self.values = rng.normal((70, 40, 1013), (3, 10, 0.5), (n, 3))
        self.ts = 1.75e9 + np.cumsum(rng.exponential(0.1, n))
        if shape == "stuck":
            self.values[:] = np.round(self.values[:1] / 10) * 10 + rng.integers(0, 2, (n, 1)) * (
                rng.random((n, 1)) < 0.01
            )
        elif shape == "steps":
            self.values += np.cumsum(rng.random((n, 1)) < 0.01, axis=0) * 50
        elif shape == "gaps":
            self.values[rng.random((n, 3)) < 0.3] = np.nan
            self.values[:, 1] = np.nan
            self.ts += np.cumsum(rng.random(n) < 0.02) * 86_400
        elif shape == "extreme":
            wild = rng.random((n, 3)) < 0.05
            self.values[wild] = rng.choice([0.0, -0.0, 1e-300, 1e150, -1e300, 1e308], int(wild.sum()))
        for column in (self.rows, self.values, self.ts):
            column.setflags(write=False)

    def score(
        self, detector: Detector, cuts: list[int] | None = None, state: NDArray[np.void] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[Any]]:
        state = detector.init(self.sensors) if state is None else state
        edges = [0, *sorted(cuts or []), len(self.rows)]
        scores = [
            detector.score(state, self.rows[a:b], self.values[a:b], self.ts[a:b])
            for a, b in itertools.pairwise(edges)
            if b > a
        ]
        return np.concatenate(scores), state


@settings(max_examples=60, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_a_batch_gives_what_one_by_one_gives_however_it_is_cut(name: str, data: st.DataObject) -> None:
    detector = build(name)
    n = data.draw(st.integers(1, 1500), "readings")
    readings = Readings(
        n, data.draw(st.integers(1, 60)), data.draw(st.integers(0, 999)), data.draw(st.sampled_from(SHAPES))
    )
    cuts = data.draw(st.lists(st.integers(0, n), max_size=12), "cuts")
    one, one_state = readings.score(detector, list(range(n)))
    for found, state in (readings.score(detector), readings.score(detector, cuts)):
        np.testing.assert_array_equal(found, one)
        assert state.tobytes() == one_state.tobytes()


@pytest.mark.parametrize("shape", SHAPES)
def test_scores_are_numbers_where_there_is_a_value(detector: Detector, shape: str) -> None:
    readings = Readings(4000, 20, 1, shape)
    scores, _ = readings.score(detector, [1, 2, 30, 1000])
    k = len(detector.thresholds)
    assert scores.dtype == np.float64
    assert scores.shape == (4000, k)
    assert not np.isinf(scores).any()
    assert (scores[~np.isnan(scores)] >= 0).all()
    if k == len(FIELDS):
        np.testing.assert_array_equal(np.isnan(scores), np.isnan(readings.values))


def test_the_same_input_gives_the_same_scores(detector: Detector) -> None:
    again = build(detector.name)
    readings = Readings(3000, 15, 2)
    first, state = readings.score(detector)
    second, other = readings.score(again)
    np.testing.assert_array_equal(first, second)
    assert state.tobytes() == other.tobytes()


def test_input_is_left_as_it_is(detector: Detector) -> None:
    readings = Readings(2000, 10, 3, "gaps")
    before = [column.copy() for column in (readings.rows, readings.values, readings.ts)]
    readings.score(detector, [7, 500])  # the columns are read-only: writing would raise
    for column, copy in zip((readings.rows, readings.values, readings.ts), before, strict=True):
        np.testing.assert_array_equal(column, copy)


def test_state_goes_through_bytes(detector: Detector) -> None:
    before, after = Readings(2000, 10, 4, "gaps"), Readings(500, 10, 5)
    _, state = before.score(detector)
    restored = state_from_bytes(detector, state.tobytes())
    there, _ = after.score(detector, state=state)
    here, _ = after.score(build(detector.name), state=restored)
    np.testing.assert_array_equal(there, here)
    with pytest.raises(StateMismatch, match=r"other fields or another version"):
        state_from_bytes(detector, state.tobytes()[:-1])


def test_a_score_knows_nothing_of_what_comes_later(detector: Detector) -> None:
    readings = Readings(2000, 10, 6)
    scores, _ = readings.score(detector)
    for m in (1, 10, 700):
        state = detector.init(10)
        alone = detector.score(state, readings.rows[:m], readings.values[:m], readings.ts[:m])
        np.testing.assert_array_equal(alone, scores[:m])


def test_sensors_do_not_touch_each_other(detector: Detector) -> None:
    readings = Readings(3000, 12, 7, "steps")
    scores, state = readings.score(detector)
    for row in range(12):
        mine = readings.rows == row
        alone = detector.init(1)
        rows = np.zeros(int(mine.sum()), np.int32)
        np.testing.assert_array_equal(
            detector.score(alone, rows, readings.values[mine], readings.ts[mine]), scores[mine]
        )
        assert alone[0].tobytes() == state[row].tobytes()


def test_new_sensors_may_come_at_any_time(detector: Detector) -> None:
    readings = Readings(3000, 40, 8)
    scores, _ = readings.score(detector)
    state = detector.init(0)
    found = []
    for begin in range(0, 3000, 250):
        part = slice(begin, begin + 250)
        missing = int(readings.rows[part].max()) + 1 - len(state)
        if missing > 0:
            state = np.concatenate([state, detector.init(missing)])
        found.append(detector.score(state, readings.rows[part], readings.values[part], readings.ts[part]))
    np.testing.assert_array_equal(np.concatenate(found), scores)


def test_an_empty_chunk_is_nothing(detector: Detector) -> None:
    state = detector.init(3)
    before = state.tobytes()
    scores = detector.score(state, np.empty(0, np.int32), np.empty((0, 3)), np.empty(0))
    assert scores.shape == (0, len(detector.thresholds))
    assert state.tobytes() == before


@pytest.mark.parametrize("size", [5, 2000])
def test_examine_scores_as_score_does_and_explains_every_reading(detector: Detector, size: int) -> None:
    readings = Readings(2000, 10, 9, "gaps")
    scores, _ = readings.score(detector)
    state = detector.init(10)
    for begin in range(0, 2000, size):
        part = slice(begin, begin + size)
        found, explain = detector.examine(
            state, readings.rows[part], readings.values[part], readings.ts[part]
        )
        np.testing.assert_array_equal(found, scores[part])
        for i in range(0, size, 41):
            for j in range(found.shape[1]):
                text = explain(i, j)
                assert text
                assert text == text.strip()


def test_memory_stays_bounded_over_100_000_readings(detector: Detector) -> None:
    readings = Readings(10_000, 100, 10)
    state = detector.init(100)
    readings.score(detector, state=state)
    tracemalloc.start()
    try:
        for _ in range(10):
            readings.score(detector, [3000], state)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 100_000
    assert state.nbytes == 100 * detector.dtype.itemsize


def test_a_sensor_that_relearns_is_one_that_was_never_seen(detector: Detector) -> None:
    relearn = getattr(detector, "relearn", None)
    if relearn is None:
        return  # drift then forgets the whole row itself
    _, state = Readings(1000, 3, 11).score(detector)
    before = state.copy()
    for column in range(len(FIELDS)):
        relearn(state, 1, column)
    assert state[1].tobytes() == detector.init(1)[0].tobytes()
    for row in (0, 2):
        assert state[row].tobytes() == before[row].tobytes()
