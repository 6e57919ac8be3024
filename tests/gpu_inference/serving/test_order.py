"""Answers in the order of their frames."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_inference.serving import Item, SourceOrder


@settings(deadline=None)
@given(st.data(), st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=5), max_size=8))
def test_each_source_is_answered_in_order_and_nothing_is_kept(
    data: st.DataObject, batches: list[list[str]]
) -> None:
    order: SourceOrder[None, int] = SourceOrder()
    flying: list[Item[None]] = []
    out: list[Item[None]] = []
    failed: set[int] = set()
    taken = 0

    def end_some(all_of_them: bool) -> None:
        while flying and (all_of_them or data.draw(st.booleans())):
            item = flying.pop(data.draw(st.integers(0, len(flying) - 1)))
            if data.draw(st.integers(0, 4)) == 0:
                failed.add(item.sequence)
            answer = None if item.sequence in failed else 10 * item.sequence
            waiting_before = [i for i in flying if i.source == item.source and i.sequence < item.sequence]
            released = order.ended(item, answer)
            assert not (waiting_before and released)
            assert all(known == 10 * released_item.sequence for released_item, known in released)
            out.extend(released_item for released_item, _ in released)

    for sources in batches:
        items = [Item(source, taken + n, 0.0, None) for n, source in enumerate(sources)]
        taken += len(items)
        order.began(items)
        flying += items
        end_some(all_of_them=False)
    end_some(all_of_them=True)
    assert sorted(item.sequence for item in out) == sorted(set(range(taken)) - failed)
    for source in "abc":
        sequence = [item.sequence for item in out if item.source == source]
        assert sequence == sorted(sequence)
    assert len(order) == 0
    assert order._flying == {}


def test_an_answer_waits_only_for_those_before_it_of_its_own_source() -> None:
    order: SourceOrder[None, str] = SourceOrder()
    a1, a2, b3 = Item("a", 1, 0.0, None), Item("a", 2, 0.0, None), Item("b", 3, 0.0, None)
    order.began([a1, a2, b3])
    assert order.ended(a2, "second") == []
    assert order.ended(b3, "other") == [(b3, "other")]
    assert order.ended(a1, None) == [(a2, "second")]
