"""Frames of one model gathered into batches: what waits, what is dropped, when a batch goes. No clock."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from heapq import heapify, heappop, heappush
from typing import Final, Generic, TypeVar

from gpu_inference.errors import BusyError, EngineError
from gpu_inference.serving.cost_curve import CostCurve

T = TypeVar("T")

OLDEST_EVERY: Final = (
    8  # every so manieth place goes to who waited longest: a low priority is slow, not starved
)
RATE_WINDOW_S: Final = 1.0  # over which arrivals are counted: longer than the gaps between chunks of a topic


class Policy(StrEnum):
    """What happens when frames come faster than they are answered."""

    BLOCK = "block"  # nothing is dropped: the caller stops reading while the queue is full
    LATEST = "latest"  # only the newest frame of a source waits
    SAMPLE = "sample"  # every k-th frame of the busiest sources is kept, so that all keep an even share


class Reason(StrEnum):
    """Why an item is never answered."""

    STALE = "stale"  # a newer frame of its source came (latest)
    SAMPLED = "sampled"  # it fell between those that are kept (sample)
    EXPIRED = "expired"  # it grew older than max_age_ms while it waited (latest, sample)
    QUEUE_FULL = "queue_full"  # there was no room, and no fairer item to drop (latest, sample)
    FAILED = "failed"  # no device could run it
    REVOKED = "revoked"  # the caller took it back: another worker has its partition now


@dataclass(frozen=True, slots=True)
class Limits:
    """What a batcher may do.

    Attributes:
        max_batch: items of a batch at most.
        max_delay_ms: that an item waits for company at most, given a free device.
        max_age_ms: of a frame when its answer is due, from its `created_s`; None for no deadline. Older ones
            are dropped by `latest` and `sample`, answered late by `block`.
        max_queue: items that wait at most.
        policy: for items that name none.
        target_load: the share of time that devices may be busy with this model; where small batches would
            take more, items wait for larger ones, up to max_delay_ms. Below 1 leaves more for other models.
        pad: batches have measured sizes only (see Batch.size): for engines that make a plan for each shape.
    """

    max_batch: int = 32
    max_delay_ms: float = 5.0
    max_age_ms: float | None = None
    max_queue: int = 256
    policy: Policy = Policy.BLOCK
    target_load: float = 0.9
    pad: bool = False

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_queue", "max_age_ms", "target_load"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise EngineError(f"{name} = {value} is not positive: set it above 0")
        if self.max_delay_ms < 0:
            raise EngineError(f"max_delay_ms = {self.max_delay_ms} is negative: set 0 or more")


@dataclass(frozen=True, slots=True, eq=False)  # arrays have no equality
class Item(Generic[T]):
    """One frame that waits.

    Attributes:
        source: its camera; items of a source leave in the order in which they came.
        sequence: a ticket that means something to the caller only.
        created_s: when the frame was taken, on the clock of `now_s`.
        payload: whatever the caller needs to run it.
        priority: higher ones go first.
        policy: of its stream, the same for all items of a source; None for the batcher's.
    """

    source: str
    sequence: int
    created_s: float
    payload: T
    priority: int = 0
    policy: Policy | None = None


@dataclass(frozen=True, slots=True)
class Dropped(Generic[T]):
    """An item that will never be answered, and why."""

    item: Item[T]
    reason: Reason


@dataclass(frozen=True, slots=True)
class Batch(Generic[T]):
    """What to run now.

    Attributes:
        items: 1 to max_batch of them.
        size: rows to run the model with, at least one for each item: more only where limits.pad is set; the
            rows beyond the items may hold anything.
    """

    items: tuple[Item[T], ...]
    size: int


@dataclass(slots=True)
class Counts:
    """What became of the items so far; `offered` is the sum of the rest and of what waits or runs.

    Attributes:
        offered: all that came.
        on_time: answered before their deadline, or without one.
        late: answered after it.
        dropped: never answered, by reason.
        batches: taken.
    """

    offered: int = 0
    on_time: int = 0
    late: int = 0
    dropped: Counter[Reason] = field(default_factory=Counter)
    batches: int = 0


@dataclass(slots=True)
class _Waiting(Generic[T]):
    """An item with its place: since when it (or the frame that it replaced) waits."""

    item: Item[T]
    since_s: float
    ticket: int
    index: int  # of the item within its source


class _Source(Generic[T]):
    """What waits of one source, oldest first."""

    def __init__(self) -> None:
        self.queue: deque[_Waiting[T]] = deque()
        self.policy = Policy.BLOCK
        self.stride = 1  # sample: only items whose index it divides are kept
        self.count = 0
        self.priorities: Counter[int] = Counter()

    @property
    def top(self) -> int:
        """The priority at which its head goes: the highest of all, since none may overtake the head."""
        return max(self.priorities)

    def push(self, waiting: _Waiting[T]) -> None:
        self.queue.append(waiting)
        self.priorities[waiting.item.priority] += 1

    def pop(self) -> _Waiting[T]:
        waiting = self.queue.popleft()
        self._forget(waiting)
        return waiting

    def remove(self, unwanted: Callable[[_Waiting[T]], bool]) -> list[_Waiting[T]]:
        gone = [waiting for waiting in self.queue if unwanted(waiting)]
        if gone:
            self.queue = deque(waiting for waiting in self.queue if not unwanted(waiting))
            for waiting in gone:
                self._forget(waiting)
        return gone

    def _forget(self, waiting: _Waiting[T]) -> None:
        priority = waiting.item.priority
        self.priorities[priority] -= 1
        if not self.priorities[priority]:
            del self.priorities[priority]


class MicroBatcher(Generic[T]):
    """Gathers the frames of one model on one worker.

    A batch goes when it is large enough, when its oldest item has waited for max_delay_ms, or when its most
    urgent one must go to be in time. Large enough is the smallest batch with which the devices keep up with
    the arrivals (`CostCurve.enough`): with little to do a frame goes at once, under load waiting for more
    saves the device's time. That is all that it can save: an idle device that starts at once answers soonest.
    Simulated, 2 ms + 0.1 ms a frame, a fifth of what the device can do: 73% busy instead of 98%, p95 6.0
    instead of 4.6 ms (benchmarks/batching_simulated.py). With max_delay_ms = 0 nothing waits. How many then
    go is what the curve and the deadlines say (`CostCurve.choose`), shared among the free devices.

    The caller's loop: while not `full`, `offer`; `expire`; `take` until it gives None; run each batch, then
    call `answered` or `give_up`; sleep until `due_s` or news. Every item comes out exactly once: in a batch,
    or in what `offer`, `expire`, `revoke` return. Not for several threads.

    Args:
        limits: what it may do.
        curve: costs of the model; shared with who measures them. Without measurements a free device takes
            what there is.

    Example:
        >>> batcher = MicroBatcher(Limits(max_batch=2, max_delay_ms=5))
        >>> batcher.offer(Item("door", 1, created_s=10.0, payload=None), now_s=10.01)
        []
        >>> [item.source for item in batcher.take(now_s=10.02, free_devices=1).items]
        ['door']
    """

    def __init__(self, limits: Limits, curve: CostCurve | None = None) -> None:
        self.limits = limits
        self.curve = curve if curve is not None else CostCurve()
        self.counts = Counts()
        self._sources: dict[str, _Source[T]] = {}
        self._waiting = 0
        self._running = 0
        self._devices = 1
        self._tickets = 0
        self._places = 0
        self._rate_hz = 0.0
        self._rate_s: float | None = None
        self._max_age_s = None if limits.max_age_ms is None else limits.max_age_ms / 1e3

    def __len__(self) -> int:
        """Items that wait."""
        return self._waiting

    @property
    def full(self) -> bool:
        """Whether a reader with policy `block` has to stop."""
        return self._waiting >= self.limits.max_queue

    @property
    def rate_hz(self) -> float:
        """Arrivals in a second, replaced and sampled ones left out."""
        return self._rate_hz

    def offer(self, item: Item[T], now_s: float) -> list[Dropped[T]]:
        """Lets an item wait.

        Returns:
            What is dropped for it, perhaps the item itself.

        Raises:
            BusyError: the queue is full and the item's policy is `block`; nothing was changed.
        """
        policy = item.policy or self.limits.policy
        if policy is Policy.BLOCK and self.full:
            raise BusyError(f"{self._waiting} items wait, the limit: offer again when `full` is False")
        source = self._sources.get(item.source)
        if source is None:
            source = self._sources[item.source] = _Source()
        source.policy = policy
        self.counts.offered += 1
        index = source.count
        source.count += 1
        if policy is not Policy.BLOCK and self._expired(item, now_s):
            return self._drop([item], Reason.EXPIRED)
        if policy is Policy.SAMPLE and index % source.stride:
            return self._drop([item], Reason.SAMPLED)
        dropped: list[Dropped[T]] = []
        self._tickets += 1
        waiting = _Waiting(item, now_s, self._tickets, index)
        if policy is Policy.LATEST and source.queue:
            # it takes the place of the frame that it replaces, or a fast camera would never get its turn
            waiting.since_s, waiting.ticket = source.queue[0].since_s, source.queue[0].ticket
            dropped = self._remove(source, lambda _: True, Reason.STALE)
        else:
            self._arrived(now_s)
        source.push(waiting)
        self._waiting += 1
        while self._waiting > self.limits.max_queue:
            dropped += self._make_room()
        return dropped

    def expire(self, now_s: float) -> list[Dropped[T]]:
        """Drops what has grown too old to be answered in time (`latest`, `sample`). Call it before `take`."""
        dropped: list[Dropped[T]] = []
        if self._max_age_s is not None:
            for source in self._sources.values():
                if source.policy is not Policy.BLOCK:
                    dropped += self._remove(source, lambda w: self._expired(w.item, now_s), Reason.EXPIRED)
        return dropped

    def take(self, now_s: float, free_devices: int, busy_devices: int = 0) -> Batch[T] | None:
        """The next batch to run, or None where waiting is better or no device is free.

        Args:
            now_s: on the clock of `offer`.
            free_devices: that could start a batch now.
            busy_devices: others that run one, and could have the next one ready: where no device is free, a
                full batch goes to them, since it has nothing to gain by waiting here.
        """
        if not self._waiting:
            return None
        if free_devices < 1:
            if busy_devices < 1 or self._waiting < self.limits.max_batch:
                return None
            free_devices = busy_devices
        else:
            self._devices = free_devices + self._running
            if self._waiting < self._enough() and now_s < self._latest_s():
                return None
        enough, share = self._enough(), math.ceil(self._waiting / free_devices)
        most = min(self._waiting, self.limits.max_batch, max(enough, share))
        spare_s = [deadline - now_s for deadline in self._deadlines()]
        items, size = self.curve.choose(most, spare_s[:most], pad=self.limits.pad) or (most, most)
        taken = tuple(self._pop(items))
        self._running += 1
        self.counts.batches += 1
        self._relax()
        return Batch(taken, max(size, len(taken)))

    def due_s(self) -> float | None:
        """When `take` would next give a batch on a free device though nothing new came; None if none waits.

        A time that has passed means now. It is never later than the oldest item's arrival + max_delay_ms.
        While no device is free it says nothing: an answer is what to wait for then.
        """
        if not self._waiting:
            return None
        return self._oldest_s() if self._waiting >= self._enough() else self._latest_s()

    def is_late(self, item: Item[T], now_s: float) -> bool:
        """Whether an answer now comes after the item's deadline."""
        return self._expired(item, now_s)

    def answered(self, batch: Batch[T], now_s: float) -> int:
        """The batch's answers go out now.

        Returns:
            How many of them are late.
        """
        late = sum(self._expired(item, now_s) for item in batch.items)
        self.counts.late += late
        self.counts.on_time += len(batch.items) - late
        self._running -= 1
        return late

    def give_up(self, batch: Batch[T]) -> list[Dropped[T]]:
        """No device could run the batch."""
        self._running -= 1
        return self._drop(batch.items, Reason.FAILED)

    def revoke(self, unwanted: Callable[[Item[T]], bool]) -> list[Dropped[T]]:
        """Takes back those waiting items that another worker will answer. Batches that run aren't touched."""
        dropped: list[Dropped[T]] = []
        for source in self._sources.values():
            dropped += self._remove(source, lambda w: unwanted(w.item), Reason.REVOKED)
        return dropped

    # ---- when

    def _enough(self) -> int:
        limits = self.limits
        devices = max(1, self._devices)
        return self.curve.enough(self._rate_hz, devices, limits.target_load, limits.max_batch, pad=limits.pad)

    def _latest_s(self) -> float:
        """When a batch must go however small it is."""
        latest = self._oldest_s() + self.limits.max_delay_ms / 1e3
        if self._max_age_s is not None:
            seconds = self.curve.seconds(min(self._waiting, self.limits.max_batch)) or 0.0
            latest = min(latest, self._deadlines()[0] - seconds)
        return latest

    def _oldest_s(self) -> float:
        return min(source.queue[0].since_s for source in self._sources.values() if source.queue)

    def _deadlines(self) -> list[float]:
        if self._max_age_s is None:
            return []
        created = (w.item.created_s for source in self._sources.values() for w in source.queue)
        return sorted(at + self._max_age_s for at in created)

    def _expired(self, item: Item[T], now_s: float) -> bool:
        return self._max_age_s is not None and now_s > item.created_s + self._max_age_s

    def _arrived(self, now_s: float) -> None:
        if self._rate_s is not None:
            self._rate_hz *= math.exp(min(0.0, self._rate_s - now_s) / RATE_WINDOW_S)
        self._rate_s = now_s
        self._rate_hz += 1 / RATE_WINDOW_S

    # ---- which

    def _pop(self, count: int) -> list[Item[T]]:
        """The next items: by priority, then by arrival, every `OLDEST_EVERY`-th place by arrival alone."""
        ready = [self._rank(source) for source in self._sources.values() if source.queue]
        heapify(ready)
        taken = []
        for _ in range(count):
            self._places += 1
            if self._places % OLDEST_EVERY == 0 and ready[0][0] != max(ready)[0]:
                entry = min(ready, key=lambda entry: entry[1:3])
                ready.remove(entry)
                heapify(ready)
            else:
                entry = heappop(ready)
            source = entry[3]
            taken.append(source.pop().item)
            if source.queue:
                heappush(ready, self._rank(source))
        self._waiting -= count
        return taken

    def _rank(self, source: _Source[T]) -> tuple[int, float, int, _Source[T]]:
        head = source.queue[0]
        return (-source.top, head.since_s, head.ticket, source)

    # ---- what is dropped

    def _make_room(self) -> list[Dropped[T]]:
        """Drops at least one item: of the source that holds the most, so that all keep an even share."""
        busy = [s for s in self._sources.values() if s.queue and s.policy is not Policy.BLOCK]
        sampled = [s for s in busy if s.policy is Policy.SAMPLE and len(s.queue) > 1]
        if sampled:
            source = max(sampled, key=lambda s: len(s.queue))
            dropped: list[Dropped[T]] = []
            while not dropped:  # ends: its items differ in their index
                source.stride *= 2
                dropped = self._remove(source, lambda w: w.index % source.stride != 0, Reason.SAMPLED)
            return dropped
        source = min(busy, key=lambda s: (s.top, -len(s.queue), s.queue[0].since_s, s.queue[0].ticket))
        self._waiting -= 1
        return self._drop([source.pop().item], Reason.QUEUE_FULL)

    def _relax(self) -> None:
        """Keeps more again once the pressure is gone, and forgets sources that have nothing here."""
        if 4 * self._waiting <= self.limits.max_queue:
            for source in self._sources.values():
                source.stride = max(1, source.stride // 2)
        if len(self._sources) > 2 * self._waiting + 64:
            self._sources = {n: s for n, s in self._sources.items() if s.queue or s.stride > 1}

    def _remove(
        self, source: _Source[T], unwanted: Callable[[_Waiting[T]], bool], reason: Reason
    ) -> list[Dropped[T]]:
        gone = source.remove(unwanted)
        self._waiting -= len(gone)
        return self._drop([waiting.item for waiting in gone], reason)

    def _drop(self, items: Iterable[Item[T]], reason: Reason) -> list[Dropped[T]]:
        dropped = [Dropped(item, reason) for item in items]
        self.counts.dropped[reason] += len(dropped)
        return dropped
