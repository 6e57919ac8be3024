from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly.silence import KEPT, KEPT_YOUNG, REGULAR, SIGN, blame, hear, init, overdue

AFTER, LEAST = 5.0, 3.0


def plain(rows: Any, ts: Any, published: Any) -> list[tuple[int, int]]:
    """What ends a silence, as the module says it."""
    held: dict[int, list[float]] = {}
    ends = []
    for i, (row, t, p) in enumerate(zip(rows, ts, published, strict=True)):
        if row in held:
            n, heard, last, gap = held[row]
            if n >= REGULAR and p - heard > max(AFTER * gap, LEAST):
                ends.append((i, row))
            new = max(t - last, p - heard)
            if n >= REGULAR:
                new = min(new, 2 * gap)
            kept = KEPT if n >= REGULAR else KEPT_YOUNG
            n += SIGN * (p - heard) >= gap
            if new > 0:
                gap = max(new, kept * gap)
            held[row] = [n, max(heard, p), max(last, t), gap]
        else:
            held[row] = [1, p, t, 0.0]
    return ends


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 300))
def test_any_cut_finds_the_silences_of_the_plain_rule(seed: int, cut: int) -> None:
    rng = np.random.default_rng(seed)
    n = 300
    rows = rng.integers(0, 4, n).astype(np.int32)
    published = 1e9 + np.cumsum(np.where(rng.random(n) < 0.02, 60.0, rng.exponential(0.3, n)))
    ts = published - rng.random(n)
    state = init(4)
    found = []
    for start in range(0, n, cut):
        part = slice(start, start + cut)
        ends = hear(state, rows[part], ts[part], published[part], AFTER, LEAST)
        found += [(end.reading + start, end.row) for end in ends]
    assert found == plain(rows.tolist(), ts.tolist(), published.tolist())


def regular(gap: float, count: int = 30, batch: int = 1) -> tuple[Any, float]:
    state = init(1)
    ts = 1000 + gap * np.arange(count * batch)
    published = 1000 + gap * batch * (np.arange(count * batch) // batch)
    assert hear(state, np.zeros(len(ts), np.int32), ts, published, AFTER, LEAST) == []
    return state, float(published[-1])


def test_a_regular_sensor_is_missing_after_its_gaps_and_half_way_quiet() -> None:
    state, last = regular(2.0)
    for waited, missing, quiet in ((4, False, False), (6, False, True), (10.5, True, True)):
        found = overdue(state, last + waited, AFTER, LEAST)
        assert [bool(part[0]) for part in found] == [missing, quiet]


def test_a_sensor_that_was_never_regular_is_not_missing() -> None:
    state, last = regular(2.0, count=REGULAR - 1)
    assert not overdue(state, last + 1e6, AFTER, LEAST)[0].any()


def test_readings_that_come_in_batches_or_are_replayed_fast_have_the_gap_of_their_batches() -> None:
    state, last = regular(1.0, batch=60)
    assert not overdue(state, last + 100, AFTER, LEAST)[0].any()
    assert overdue(state, last + 310, AFTER, LEAST)[0].all()
    fast = init(1)
    ts = 60.0 * np.arange(100)
    hear(fast, np.zeros(100, np.int32), ts, 1e9 + ts * 1e-6, AFTER, LEAST)
    assert not overdue(fast, 1e9 + 250, AFTER, LEAST)[0].any()


def test_a_sensor_that_has_become_slower_is_believed_after_a_while() -> None:
    state, last = regular(1.0)
    ends = 0
    for _ in range(12):
        last += 60
        at = np.array([last])
        ends += len(hear(state, np.zeros(1, np.int32), at, at, AFTER, LEAST))
    assert 1 <= ends <= 4
    assert not overdue(state, last + 250, AFTER, LEAST)[0].any()


def test_sensor_link_and_broker_are_told_apart() -> None:
    assert blame({"east": 1}, {"east": 3, "west": 2}, True) == {"east": "sensor"}
    assert blame({"east": 3}, {"west": 1}, True) == {"east": "link"}
    assert blame({"east": 1}, {"west": 1}, True) == {"east": "sensor"}
    assert blame({"east": 3, "west": 2}, {}, True) == {"east": "broker", "west": "broker"}
    assert blame({"east": 3}, {}, True) == {"east": "link"}
    assert blame({"east": 3}, {}, False) == {"east": "broker"}
