"""The cost curve beside plain references."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_inference.serving import CostCurve
from gpu_inference.serving.cost_curve import TOLERANCE

SECONDS = st.floats(1e-4, 1.0)
CURVES = st.dictionaries(st.integers(1, 64), SECONDS, min_size=1, max_size=8)


def isotonic(values: list[float]) -> list[float]:
    """The minimax formula of isotonic regression."""
    n = len(values)
    return [
        max(min(float(np.mean(values[j : k + 1])) for k in range(i, n)) for j in range(i + 1))
        for i in range(n)
    ]


@settings(deadline=None)
@given(CURVES)
def test_it_is_the_isotonic_fit_at_measured_sizes_and_linear_between(measured: dict[int, float]) -> None:
    curve = CostCurve(measured)
    sizes = sorted(measured)
    fitted = isotonic([measured[size] for size in sizes])
    assert curve.sizes == tuple(sizes)
    for n in range(1, sizes[-1] + 1):
        assert curve.seconds(n) == pytest.approx(float(np.interp(n, sizes, fitted)))


@settings(deadline=None)
@given(CURVES, st.integers(1, 100))
def test_it_never_falls_with_the_size(measured: dict[int, float], n: int) -> None:
    curve = CostCurve(measured)
    low, high = curve.seconds(n), curve.seconds(n + 1)
    assert low is not None
    assert high is not None
    assert high >= low * (1 - 1e-12)


def test_nothing_measured_is_nothing_known() -> None:
    curve = CostCurve()
    assert curve.seconds(3) is None
    assert curve.choose(3) is None
    assert curve.enough(1000, 1, 1.0, 32) == 1


def test_it_follows_what_is_observed() -> None:
    curve = CostCurve({8: 0.010})
    for _ in range(30):
        curve.observe(8, 0.020)
    assert curve.seconds(8) == pytest.approx(0.020, rel=0.01)
    curve.observe(8, 20.0)  # one stall
    stalled = curve.seconds(8)
    assert stalled is not None
    assert stalled < 0.040


@settings(deadline=None)
@given(CURVES, st.integers(1, 64), st.lists(st.floats(-0.1, 2.0), min_size=64, max_size=64), st.booleans())
def test_no_batch_has_a_better_goodput_than_the_chosen(
    measured: dict[int, float], waiting: int, spare: list[float], pad: bool
) -> None:
    curve, spare = CostCurve(measured), sorted(spare[:waiting])
    chosen = curve.choose(waiting, spare, pad=pad)
    assert chosen is not None

    def goodput(items: int, size: int) -> tuple[float, float]:
        seconds = curve.seconds(size)
        assert seconds is not None
        return sum(s >= seconds for s in spare[:items]) / seconds, items / seconds

    if pad:
        every = [(min(waiting, size), size) for size in measured]
        assert chosen[1] in measured
    else:
        # between two measured sizes a deadline can make another one best: the search leaves those out
        every = [(size, size) for size in measured if size <= waiting] + [(waiting, waiting)]
    assert 1 <= chosen[0] <= min(waiting, chosen[1])
    rates = [goodput(*option) for option in every]
    which = 0 if any(rate[0] for rate in rates) else 1
    assert goodput(*chosen)[which] >= TOLERANCE * max(rate[which] for rate in rates) * (1 - 1e-9)


@settings(deadline=None)
@given(CURVES, st.floats(0, 1e4), st.integers(1, 4), st.integers(1, 64), st.booleans())
def test_enough_is_the_first_size_that_keeps_up(
    measured: dict[int, float], rate_hz: float, devices: int, max_batch: int, pad: bool
) -> None:
    curve = CostCurve(measured)

    def load(items: int) -> float:
        size = min((s for s in measured if s >= items), default=items) if pad else items
        seconds = curve.seconds(size)
        assert seconds is not None
        return rate_hz * seconds / (items * devices)

    enough = curve.enough(rate_hz, devices, 0.8, max_batch, pad=pad)
    assert 1 <= enough <= max_batch
    keep_up = [n for n in range(1, max_batch + 1) if load(n) <= 0.8]
    if keep_up and not math.isclose(load(keep_up[0]), 0.8):
        assert enough == keep_up[0]


def test_the_largest_of_equally_good_sizes_is_chosen() -> None:
    straight = CostCurve({n: 0.001 * n for n in (1, 2, 4, 8, 16)})
    assert straight.choose(13) == (13, 13)


def test_a_size_with_a_cliff_is_left_alone() -> None:
    assert CostCurve({1: 0.002, 8: 0.003, 16: 0.030}).choose(16) == (8, 8)


def test_a_smaller_batch_goes_where_only_that_is_in_time() -> None:
    curve = CostCurve({1: 0.002, 8: 0.008, 32: 0.026})
    assert curve.choose(32, [0.009] * 32) == (8, 8)
    assert curve.choose(32, [-1.0] * 32) == (32, 32)
