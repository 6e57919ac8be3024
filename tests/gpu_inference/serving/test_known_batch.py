"""The batch whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from gpu_inference import TensorInfo
from gpu_inference.serving.known_batch import MOST_LOOKED_AT, KnownBatch, has_nan


def known(expected: np.ndarray) -> KnownBatch:
    batch = KnownBatch({"x": np.zeros((1, 2), np.float32)}, (1,))
    batch.expected = {"y": expected}
    return batch


def test_engines_may_differ_by_a_little_broken_ones_differ_by_more() -> None:
    wanted = np.array([[0.0, 10.0, np.nan, np.inf]], np.float32)
    batch = known(wanted)
    assert batch.matches({"y": wanted + np.float32(0.4)})
    for wrong in (wanted + 1, np.nan_to_num(wanted), wanted[:, :3], -wanted):
        assert not batch.matches({"y": wrong})
    assert not batch.matches({"z": wanted})


def test_labels_may_turn_but_not_change_their_shape() -> None:
    batch = known(np.array([3]))
    assert batch.matches({"y": np.array([4])})
    assert not batch.matches({"y": np.array([3, 3])})


def test_noise_is_invented_for_free_dimensions_and_zeros_for_indices() -> None:
    infos = (
        TensorInfo("x", np.dtype(np.float32), (None, 3, None)),
        TensorInfo("i", np.dtype(np.int64), (None,)),
        TensorInfo("b", np.dtype(np.float32), None),
    )
    batch = KnownBatch.invented(infos, (1, 4)).batch(4)
    assert {name: array.shape for name, array in batch.items()} == {"x": (4, 3, 1), "i": (4,), "b": (4,)}
    assert batch["x"].any()
    assert not batch["i"].any()


@pytest.mark.parametrize("at", [0, 5, -1])
def test_nan_is_found_anywhere(at: int) -> None:
    array = np.zeros((2, 5, 3), np.float16)
    assert not has_nan({"y": array, "label": np.zeros(3, np.int64), "none": np.zeros((0, 4))})
    array.reshape(-1)[at] = np.nan
    assert has_nan({"y": array})


def test_of_a_very_large_output_some_elements_are_looked_at() -> None:
    array = np.zeros(3 * MOST_LOOKED_AT, np.float32)
    array[1] = np.nan
    assert not has_nan({"y": array})
    array[::100] = np.nan
    assert has_nan({"y": array})
