"""The micro-batcher beside a plain reference, on histories that hypothesis makes up."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_inference import EngineError
from gpu_inference.errors import BusyError
from gpu_inference.serving import Batch, CostCurve, Dropped, Item, Limits, MicroBatcher, Policy, Reason
from gpu_inference.serving.batcher import OLDEST_EVERY

GPU = {1: 0.0021, 8: 0.0028, 32: 0.0052}

OFFER = st.tuples(
    st.just("offer"), st.sampled_from("abcde"), st.sampled_from((0, 0, 0, 1, 5)), st.floats(0, 0.06)
)
WAIT = st.tuples(st.just("wait"), st.floats(0, 0.01))
TAKE = st.tuples(st.just("take"), st.integers(0, 3), st.integers(0, 2))
HISTORY = st.lists(st.one_of(OFFER, OFFER, OFFER, WAIT, TAKE), max_size=120)
LIMITS = st.builds(
    Limits,
    max_batch=st.sampled_from((1, 2, 5, 8)),
    max_delay_ms=st.sampled_from((0.0, 3.0, 20.0)),
    max_age_ms=st.sampled_from((None, 30.0)),
    max_queue=st.sampled_from((1, 4, 16)),
    policy=st.sampled_from(Policy),
    pad=st.booleans(),
)


class Reference:
    """What waits, as one list in order of arrival, and how the next batch is picked from it."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.waiting: list[tuple[float, Item[None]]] = []  # since when, what
        self.places = 0

    def arrive(self, item: Item[None], now_s: float) -> None:
        at = [i for i, (_, other) in enumerate(self.waiting) if other.source == item.source]
        if self.policy is Policy.LATEST and at:
            self.waiting[at[0]] = (self.waiting[at[0]][0], item)
        else:
            self.waiting.append((now_s, item))

    def drop(self, dropped: list[Dropped[None]]) -> None:
        gone = [d.item for d in dropped]
        self.waiting = [w for w in self.waiting if w[1] not in gone]

    def pick(self, count: int) -> list[Item[None]]:
        return [self.pick_one() for _ in range(count)]

    def pick_one(self) -> Item[None]:
        self.places += 1
        top: dict[str, int] = defaultdict(int)
        for _, item in self.waiting:
            top[item.source] = max(top[item.source], item.priority)
        heads = [next(w for w in self.waiting if w[1].source == source) for source in top]
        if self.places % OLDEST_EVERY == 0:
            chosen = min(heads, key=self.waiting.index)
        else:
            chosen = min(heads, key=lambda w: (-top[w[1].source], self.waiting.index(w)))
        self.waiting.remove(chosen)
        return chosen[1]


@settings(max_examples=300, deadline=None)
@given(LIMITS, HISTORY, st.sampled_from(({}, GPU, {2: 0.004, 4: 0.008})))
def test_every_item_comes_out_once_in_order_and_in_time(
    limits: Limits, history: list[tuple], measured: dict[int, float]
) -> None:
    batcher: MicroBatcher[None] = MicroBatcher(limits, CostCurve(measured))
    reference = Reference(limits.policy)
    tickets = itertools.count()
    now_s = 100.0
    offered: list[Item[None]] = []
    dropped: list[Dropped[None]] = []
    batches: list[Batch[None]] = []

    def take(free: int, busy: int) -> Batch[None] | None:
        lost = batcher.expire(now_s)
        reference.drop(lost)
        dropped.extend(lost)
        due_s = batcher.due_s()
        assert (due_s is None) == (not reference.waiting)
        if due_s is not None:
            assert due_s <= reference.waiting[0][0] + limits.max_delay_ms / 1e3 + 1e-12
        batch = batcher.take(now_s, free, busy)
        if batch is None:
            if due_s is not None and free:
                latest_s = min(since for since, _ in reference.waiting) + limits.max_delay_ms / 1e3
                assert now_s < latest_s
                renewed = batcher.due_s()
                assert renewed is not None
                assert now_s < renewed <= latest_s
            return None
        assert free or busy
        assert 1 <= len(batch.items) <= min(limits.max_batch, batch.size)
        assert batch.size == len(batch.items) or (limits.pad and batch.size in measured)
        assert list(batch.items) == reference.pick(len(batch.items))
        batches.append(batch)
        return batch

    for event, *details in history:
        if event == "wait":
            now_s += details[0]
        elif event == "take":
            batch = take(*details)
            if batch is not None:
                batcher.answered(batch, now_s)
        else:
            source, priority, age_s = details
            item = Item(source, next(tickets), now_s - age_s, None, priority)
            if limits.policy is Policy.BLOCK and batcher.full:
                with pytest.raises(BusyError):
                    batcher.offer(item, now_s)
                continue
            offered.append(item)
            lost = batcher.offer(item, now_s)
            if item not in [d.item for d in lost if d.reason in (Reason.EXPIRED, Reason.SAMPLED)]:
                reference.arrive(item, now_s)
            reference.drop(lost)
            dropped.extend(lost)
        assert len(batcher) == len(reference.waiting) <= limits.max_queue

    now_s += 1.0
    while take(1, 0) is not None:
        pass
    assert len(batcher) == 0
    taken = [item for batch in batches for item in batch.items]
    assert Counter(taken) + Counter(d.item for d in dropped) == Counter(offered)
    for source in "abcde":
        order = [item.sequence for item in taken if item.source == source]
        assert order == sorted(order)
    if limits.policy is Policy.BLOCK:
        assert dropped == []
    allowed = {
        Policy.BLOCK: set(),
        Policy.LATEST: {Reason.STALE, Reason.EXPIRED, Reason.QUEUE_FULL},
        Policy.SAMPLE: {Reason.SAMPLED, Reason.EXPIRED, Reason.QUEUE_FULL},
    }[limits.policy]
    assert {d.reason for d in dropped} <= allowed
    counts = batcher.counts
    assert counts.dropped == Counter(d.reason for d in dropped)
    assert (counts.offered, counts.batches) == (len(offered), len(batches))


def make(curve: dict[int, float] | None = None, **limits: object) -> MicroBatcher[None]:
    return MicroBatcher(Limits(**limits), CostCurve(curve or {}))  # type: ignore[arg-type]


def offer(batcher: MicroBatcher[None], source: str, n: int, now_s: float, **more: object) -> list[Reason]:
    dropped = batcher.offer(Item(source, n, now_s, None, **more), now_s)  # type: ignore[arg-type]
    return [d.reason for d in dropped]


def test_with_little_to_do_a_frame_goes_at_once() -> None:
    batcher = make(GPU, max_batch=32, max_delay_ms=20)
    offer(batcher, "a", 1, 10.0)
    assert batcher.due_s() == 10.0
    batch = batcher.take(10.0, 1)
    assert batch is not None
    assert len(batch.items) == 1


def test_under_load_frames_wait_for_company_but_never_longer_than_the_delay() -> None:
    batcher = make(GPU, max_batch=32, max_delay_ms=20, target_load=1.0)
    for n in range(4000):  # 4,000/s: batches of 1 can be served 476 times a second
        now_s = 10 + n / 4000
        offer(batcher, "a", n, now_s)
        if (batch := batcher.take(now_s, 1)) is not None:
            batcher.answered(batch, now_s)
    rate_hz, enough = batcher.rate_hz, 0
    while enough * 1.0 / (0.0021 + (enough - 1) * 0.0001) < rate_hz:
        enough += 1
    for _ in range(3):
        while batcher.take(11.0, 1):
            pass
    sizes = []
    for n in range(4000, 4400):
        now_s = 10 + n / 4000
        offer(batcher, "a", n, now_s)
        if (batch := batcher.take(now_s, 1)) is not None:
            sizes.append(len(batch.items))
            batcher.answered(batch, now_s)
    assert set(sizes[1:]) <= set(range(enough - 1, enough + 2))
    assert enough > 3
    due_s = batcher.due_s()
    assert due_s is None or due_s <= now_s + 0.02


def test_a_frame_that_must_be_in_time_does_not_wait() -> None:
    batcher = make({8: 0.010}, max_batch=8, max_delay_ms=1000, max_age_ms=50, target_load=1e-6)
    offer(batcher, "a", 1, 10.0)
    assert batcher.due_s() == pytest.approx(10.040)  # 50 ms less the 10 that it takes
    assert batcher.take(10.039, 1) is None
    assert batcher.take(10.0401, 1) is not None


def test_free_devices_share_what_waits() -> None:
    batcher = make(max_batch=32, max_delay_ms=0)
    for n in range(10):
        offer(batcher, "a", n, 10.0)
    sizes = []
    for free in (2, 1):
        batch = batcher.take(10.0, free)
        assert batch is not None
        sizes.append(len(batch.items))
    assert sizes == [5, 5]


def test_a_busy_device_gets_full_batches_only() -> None:
    batcher = make(max_batch=4, max_delay_ms=0)
    for n in range(7):
        offer(batcher, "a", n, 10.0)
    assert batcher.take(11.0, 0) is None
    batch = batcher.take(11.0, 0, 1)
    assert batch is not None
    assert len(batch.items) == 4
    assert batcher.take(11.0, 0, 1) is None


def test_latest_keeps_the_place_of_the_frame_that_it_replaces() -> None:
    batcher = make(max_batch=1, policy=Policy.LATEST)
    assert offer(batcher, "fast", 1, 10.0) == []
    assert offer(batcher, "slow", 2, 10.1) == []
    assert offer(batcher, "fast", 3, 10.2) == [Reason.STALE]
    taken = [batcher.take(11.0, 1) for _ in range(2)]
    assert [batch.items[0].sequence for batch in taken if batch] == [3, 2]


def test_sample_gives_every_camera_an_even_share_in_even_steps() -> None:
    batcher = make(max_batch=4, max_queue=64, policy=Policy.SAMPLE)
    answered: dict[str, list[int]] = defaultdict(list)
    for tick in range(4000):  # 1 ms each: 1,000 frames/s of one camera, 50/s of three, 200/s can be run
        now_s = 10 + tick / 1000
        offer(batcher, "fast", tick, now_s)
        if tick % 20 == 0:
            for slow in "abc":
                offer(batcher, slow, tick, now_s)
        if tick % 20 == 10:
            batch = batcher.take(now_s, 1)
            assert batch is not None
            for item in batch.items:
                answered[item.source].append(item.sequence)
    shares = {source: len(ticks) for source, ticks in answered.items()}
    assert all(150 <= share <= 250 for share in shares.values()), shares
    steps = {b - a for a, b in itertools.pairwise(answered["fast"][20:])}
    assert steps <= {4, 8, 16, 32, 64}, steps


def test_sample_keeps_all_again_once_the_pressure_is_gone() -> None:
    batcher = make(max_batch=8, max_queue=8, policy=Policy.SAMPLE)
    for n in range(100):
        offer(batcher, "a", n, 10.0)
    for _ in range(20):
        while batcher.take(11.0, 1):
            pass
        offer(batcher, "a", 100, 11.0)
    assert [offer(batcher, "a", n, 12.0) for n in range(5)] == [[]] * 5


def test_no_priority_starves() -> None:
    batcher = make(max_batch=1, max_delay_ms=0)
    offer(batcher, "low", 0, 10.0)
    for n in range(1, 2 * OLDEST_EVERY):
        offer(batcher, "high", n, 10.0 + n, priority=1)
        batch = batcher.take(10.0 + n, 1)
        assert batch is not None
        if batch.items[0].source == "low":
            return
    pytest.fail("the low priority never went")


def test_an_urgent_frame_pulls_those_of_its_camera_before_it() -> None:
    batcher = make(max_batch=3, max_delay_ms=0)
    offer(batcher, "b", 1, 10.0)
    offer(batcher, "a", 2, 10.1)
    offer(batcher, "a", 3, 10.2, priority=9)
    batch = batcher.take(10.3, 1)
    assert batch is not None
    assert [item.sequence for item in batch.items] == [2, 3, 1]


def test_a_full_queue_drops_the_least_urgent() -> None:
    batcher = make(max_queue=2, policy=Policy.LATEST)
    offer(batcher, "a", 1, 10.0, priority=1)
    offer(batcher, "b", 2, 10.0)
    assert offer(batcher, "c", 3, 10.0, priority=1) == [Reason.QUEUE_FULL]
    batch = batcher.take(11.0, 1)
    assert batch is not None
    assert [item.source for item in batch.items] == ["a", "c"]


def test_frames_that_may_not_be_dropped_outlast_those_that_may() -> None:
    batcher = make(max_queue=2)
    offer(batcher, "a", 1, 10.0)
    offer(batcher, "b", 2, 10.0, policy=Policy.SAMPLE)
    assert batcher.full
    assert offer(batcher, "c", 3, 10.0, policy=Policy.LATEST) == [Reason.QUEUE_FULL]
    batch = batcher.take(11.0, 1)
    assert batch is not None
    assert [item.source for item in batch.items] == ["a", "c"]


def test_late_and_never_are_kept_apart() -> None:
    batcher = make(max_age_ms=100, max_batch=2)
    offer(batcher, "a", 1, 10.0)
    offer(batcher, "a", 2, 10.09)
    assert batcher.expire(20.0) == []  # block answers, however late
    batch = batcher.take(10.09, 1)
    assert batch is not None
    assert [batcher.is_late(item, 10.15) for item in batch.items] == [True, False]
    assert batcher.answered(batch, 10.15) == 1
    assert offer(batcher, "b", 3, 10.2, policy=Policy.LATEST) == []
    assert [d.reason for d in batcher.expire(10.4)] == [Reason.EXPIRED]
    offer(batcher, "c", 4, 10.4)
    failed = batcher.take(10.5, 1)
    assert failed is not None
    assert [d.reason for d in batcher.give_up(failed)] == [Reason.FAILED]
    counts = batcher.counts
    assert (counts.on_time, counts.late) == (1, 1)
    assert counts.dropped == {Reason.EXPIRED: 1, Reason.FAILED: 1}
    assert counts.offered == counts.on_time + counts.late + counts.dropped.total()


def test_items_of_a_revoked_partition_are_taken_back() -> None:
    batcher = make()
    for n in range(6):
        offer(batcher, f"camera-{n}", n, 10.0)
    dropped = batcher.revoke(lambda item: item.sequence % 2 == 0)
    assert [(d.item.sequence, d.reason) for d in dropped] == [(n, Reason.REVOKED) for n in (0, 2, 4)]
    assert len(batcher) == 3


def test_sources_that_went_are_forgotten() -> None:
    batcher = make(max_delay_ms=0, policy=Policy.SAMPLE, max_queue=16)
    for n in range(5000):
        offer(batcher, f"camera-{n}", n, 10.0)
        batcher.take(10.0, 1)
    assert len(batcher._sources) < 200


@pytest.mark.parametrize(
    "wrong", [{"max_batch": 0}, {"max_queue": 0}, {"max_age_ms": -1}, {"max_delay_ms": -1}]
)
def test_impossible_limits_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(EngineError, match=next(iter(wrong))):
        Limits(**wrong)  # type: ignore[arg-type]
