from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly.budgets import DAY_S, Budgets, window
from anomaly.thresholds import Budget

HOUR = 3600.0


def ask(budgets: Budgets, at: float, ratio: float = 1.5, offset: int = 0, per_day: float = 4) -> float | None:
    return budgets.allows(Budget("g", per_day), ratio, at, (offset, -1), counted=False)


def test_the_threshold_rises_with_use_and_relaxes_when_alerts_are_a_day_old() -> None:
    budgets = Budgets()
    found = [ask(budgets, n * HOUR, offset=n) for n in range(4)]
    assert found == [1.0, 1.0, 1.0, None]
    # a stranger one comes through, then the budget is used up
    assert ask(budgets, 5 * HOUR, ratio=2.5, offset=5) == 2.0
    assert ask(budgets, 6 * HOUR, ratio=1e9, offset=6) is None
    assert ask(budgets, DAY_S + 3 * HOUR, offset=7) == 1.0


def test_what_is_held_back_is_counted_and_told_in_ever_larger_steps() -> None:
    budgets = Budgets()
    for n in range(20):
        ask(budgets, float(n), offset=n, per_day=1)
    notices = budgets.take_notices()
    assert [notice.held for notice in notices] == [1, 2, 4, 8, 16]
    assert all(notice.firing for notice in notices)
    assert budgets.take_held() == {"g": 19}
    assert budgets.take_held() == {}
    ask(budgets, 2 * DAY_S, offset=99, per_day=1)
    assert budgets.take_suppressed("g") == 19
    [closed] = budgets.take_notices()
    assert (closed.firing, closed.held) == (False, 19)


def test_a_notice_closes_by_time_alone() -> None:
    budgets = Budgets()
    for n in range(3):
        ask(budgets, float(n), offset=n, per_day=1)
    budgets.take_notices()
    budgets.relax(HOUR)
    assert budgets.take_notices() == []
    budgets.relax(DAY_S + 5)
    assert [notice.firing for notice in budgets.take_notices()] == [False]
    assert not budgets.has_notices


def test_a_part_of_a_budget_below_one_a_day_is_one_in_more_days() -> None:
    assert window(0.5) == (2 * DAY_S, 1)
    budgets = Budgets(share=0.25)
    found = [ask(budgets, day * DAY_S, offset=day, per_day=1) for day in range(9)]
    assert [day for day, raised in enumerate(found) if raised] == [0, 4, 8]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 3 * DAY_S), st.floats(1, 50)), max_size=60),
    st.floats(0.4, 20),
    st.integers(0, 60),
    st.integers(0, 60),
)
def test_no_window_holds_more_than_the_budget_and_a_restart_changes_nothing(
    asked: list[tuple[float, float]], per_day: float, checkpoint: int, crash: int
) -> None:
    """The crash is in the middle of a checkpoint: what is written is newer than where the replay begins."""
    asked.sort()
    whole = Budgets()
    expected = [ask(whole, at, ratio, i, per_day) for i, (at, ratio) in enumerate(asked)]
    length, allowed = window(per_day)
    opened = [at for (at, _), raised in zip(asked, expected, strict=True) if raised is not None]
    for at in opened:
        assert sum(at - length < other <= at for other in opened) <= allowed
    budgets = Budgets()
    first, second = sorted((min(checkpoint, len(asked)), min(crash, len(asked))))
    for i, (at, ratio) in enumerate(asked[:first]):
        ask(budgets, at, ratio, i, per_day)
    budgets.dump()
    for i, (at, ratio) in enumerate(asked[first:second], first):
        ask(budgets, at, ratio, i, per_day)
    data = budgets.dump()
    again = Budgets()
    again.restore(data, second - 1)
    found = [ask(again, at, ratio, i, per_day) for i, (at, ratio) in enumerate(asked[first:], first)]
    assert found == expected[first:]
    held = sum(raised is None for raised in expected)
    told = sum(raised is None for raised in expected[:second])
    assert sum(again.take_held().values()) == held - told
    assert math.isfinite(sum(x or 0 for x in found))
