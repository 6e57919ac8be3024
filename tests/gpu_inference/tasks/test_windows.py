"""Windows of readings: against lists, whatever the cut."""

from __future__ import annotations

import numpy as np
import pytest

from gpu_inference.errors import ModelError
from gpu_inference.models.manifest import SeriesInput
from gpu_inference.tasks.windows import Windows

CONFIG = SeriesInput(fields=("a", "b"), window=5, stride=3, mean=(1.0, 2.0), std=(2.0, 0.5))


def readings(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, 2))
    values[rng.random((n, 2)) < 0.2] = np.nan
    return rng.integers(0, 4, n).astype(np.int32), values


def by_hand(config: SeriesInput, rows: np.ndarray, values: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Lists of complete readings by sensor."""
    last: dict[int, list[float]] = {}
    kept: dict[int, list[list[float]]] = {}
    found = []
    for i, (row, reading) in enumerate(zip(rows.tolist(), values.tolist(), strict=True)):
        before = last.setdefault(row, [np.nan] * 2)
        last[row] = [old if np.isnan(new) else new for old, new in zip(before, reading, strict=True)]
        if np.isnan(last[row]).any():
            continue
        kept.setdefault(row, []).append(list(last[row]))
        past = len(kept[row]) - config.window
        if past >= 0 and past % config.stride == 0:
            window = np.array(kept[row][-config.window :], np.float32)
            found.append((i, (window - np.array(config.mean)) / np.array(config.std)))
    return found


def test_windows_are_the_last_readings_of_their_sensor() -> None:
    rows, values = readings(400)
    windows = Windows(CONFIG)
    at, made = windows.push(np.zeros(4, windows.dtype), rows, values)
    wanted = by_hand(CONFIG, rows, values)
    assert at.tolist() == [i for i, _ in wanted]
    np.testing.assert_allclose(made, np.array([window for _, window in wanted]), rtol=1e-6)
    assert made.dtype == np.float32
    assert made.shape[1:] == windows.shape == (5, 2)


@pytest.mark.parametrize("cut", [1, 7, 100])
def test_any_cut_of_the_stream_gives_the_same_windows(cut: int) -> None:
    rows, values = readings(200, seed=1)
    windows = Windows(CONFIG)
    at, made = windows.push(np.zeros(4, windows.dtype), rows, values)
    state = np.zeros(4, windows.dtype)
    places, parts = [], []
    for start in range(0, 200, cut):
        here, part = windows.push(state, rows[start : start + cut], values[start : start + cut])
        places += (here + start).tolist()
        parts.append(part)
        state = np.frombuffer(state.tobytes(), windows.dtype).copy()  # as a changelog brings it back
    assert places == at.tolist()
    np.testing.assert_array_equal(np.concatenate(parts), made)


def test_fields_first_and_other_types() -> None:
    config = SeriesInput(fields=("a", "b"), window=3, layout="NFW", dtype="float16")
    windows = Windows(config)
    values = np.arange(8.0).reshape(4, 2)
    at, made = windows.push(np.zeros(1, windows.dtype), np.zeros(4, np.int32), values)
    assert at.tolist() == [2, 3]
    assert made.dtype == np.float16
    np.testing.assert_array_equal(made, [[[0, 2, 4], [1, 3, 5]], [[2, 4, 6], [3, 5, 7]]])


def test_readings_with_other_fields_are_refused() -> None:
    windows = Windows(CONFIG)
    with pytest.raises(ModelError, match="have not the fields a, b"):
        windows.push(np.zeros(1, windows.dtype), np.zeros(4, np.int32), np.zeros((4, 3)))
