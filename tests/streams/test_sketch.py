from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.sketch import ACCURACY, MOST_BUCKETS, BucketCounts, decode, encode, quantiles

NUMBERS = st.floats(-1e140, 1e140, allow_nan=False)


@given(st.lists(NUMBERS, min_size=1))
def test_a_bucket_is_within_its_accuracy_and_keeps_order(numbers: list[float]) -> None:
    x = np.array(numbers)
    codes = encode(x)
    middle = decode(codes)
    small = np.abs(x) <= 1.001e-12
    np.testing.assert_allclose(middle[~small], x[~small], rtol=ACCURACY * 1.000001)
    np.testing.assert_allclose(middle[small], 0, atol=1e-11)
    order = np.argsort(x)
    assert (np.diff(codes[order]) >= 0).all()


def test_values_beyond_the_range_are_held_at_its_ends() -> None:
    np.testing.assert_allclose(decode(encode(np.array([1e300, -1e300]))), [1e150, -1e150], rtol=ACCURACY)


@settings(deadline=None)
@given(st.integers(0, 999), st.integers(1, 6), st.integers(0, 400))
def test_quantiles_are_those_of_the_values(seed: int, cells: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    cell = rng.integers(0, cells, n)
    x = rng.normal(0, 10, n).round(int(rng.integers(0, 3)))
    held = BucketCounts()
    for part in np.array_split(np.arange(n), 5):
        held.add(cell[part], x[part])
    wanted = rng.permutation(cells)
    owner, codes, counts = held.of(wanted)
    assert counts.sum() == n
    found = quantiles(owner, codes, counts, cells, (0.0, 0.5, 0.95, 1.0))
    for place, number in enumerate(wanted.tolist()):
        mine = x[cell == number]
        if len(mine):
            expected = np.quantile(mine, (0.0, 0.5, 0.95, 1.0), method="lower")
            np.testing.assert_allclose(found[place], expected, rtol=ACCURACY * 1.000001, atol=1e-12)
        else:
            assert np.isnan(found[place]).all()


def test_cells_move_and_are_dropped() -> None:
    held = BucketCounts()
    held.add(np.array([0, 1, 1, 2]), np.array([1.0, 2.0, 3.0, 4.0]))
    held.move(np.array([1]), np.array([0]))
    held.drop(np.array([False, True, False]))
    owner, codes, _ = held.of(np.array([0, 1, 2]))
    assert owner.tolist() == [0, 0, 0, 2]
    np.testing.assert_allclose(decode(codes), [1, 2, 3, 4], rtol=ACCURACY)


@pytest.mark.parametrize("pieces", [1, 7])
def test_a_cell_that_spans_many_decades_stays_bounded(pieces: int) -> None:
    held = BucketCounts()
    x = np.geomspace(1e-9, 1e9, 50_000)
    np.random.default_rng(0).shuffle(x)
    for part in np.array_split(x, pieces):
        held.add(np.zeros(len(part), np.intp), part)
        held.add(np.ones(len(part), np.intp), np.full(len(part), 5.0))
        held.of(np.arange(2))
    owner, codes, counts = held.of(np.arange(2))
    assert np.count_nonzero(owner == 0) == MOST_BUCKETS
    assert counts[owner == 0].sum() == counts[owner == 1].sum() == 50_000
    high = quantiles(owner, codes, counts, 2, (0.99,))[0, 0]
    assert high == pytest.approx(np.quantile(x, 0.99, method="lower"), rel=ACCURACY * 1.01)


def test_what_is_dumped_can_be_loaded() -> None:
    held, other = BucketCounts(), BucketCounts()
    held.add(np.array([3, 1, 3]), np.array([1.0, 2.0, 1.0]))
    other.load(*held.dump(np.array([-1, -1, -1, 0])))
    owner, codes, counts = other.of(np.array([0]))
    assert (owner.tolist(), counts.tolist()) == ([0], [2])
    np.testing.assert_allclose(decode(codes), [1.0], rtol=ACCURACY)
