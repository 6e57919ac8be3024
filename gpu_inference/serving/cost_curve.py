"""Seconds by batch size of a model on a device, measured, and the batch size that pays best. No clock."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Final

TOLERANCE: Final = 0.95  # sizes within 5% of the best rate are as good: timings are no more exact than that
CLIP: Final = 4.0  # a single run counts at most as so many times the mean: a stall of the machine is no trend


class CostCurve:
    """What a batch of n costs, in seconds of the device.

    Measured at warm-up, then kept up to date by `observe`. Between measured sizes it is linear; it never
    falls with the size (measurements that say so are pooled); above the largest it grows in proportion.
    Readers on other threads see it before or after an observation, never between; observers take turns.

    Args:
        seconds: measured seconds by batch size.
        weight: of a new observation in the exponentially weighted mean, in (0, 1].

    Example:
        >>> curve = CostCurve({1: 0.002, 8: 0.003, 32: 0.008})
        >>> round(curve.seconds(20), 6)
        0.0055
        >>> curve.choose(32)
        (32, 32)
    """

    def __init__(self, seconds: Mapping[int, float] | None = None, weight: float = 0.2) -> None:
        self._means: dict[int, float] = dict(sorted((seconds or {}).items()))
        self._weight = weight
        self._points: tuple[tuple[int, ...], tuple[float, ...]] = ((), ())
        self._rebuild()

    @property
    def sizes(self) -> tuple[int, ...]:
        """The batch sizes that were measured, ascending."""
        return self._points[0]

    @property
    def measured(self) -> dict[int, float]:
        """The mean seconds of each measured size, as they are."""
        return dict(self._means)

    def observe(self, size: int, seconds: float) -> None:
        """A batch of `size` took so long. One thread at a time."""
        mean = self._means.get(size)
        if mean is None:
            self._means = dict(sorted({**self._means, size: seconds}.items()))
        else:
            self._means[size] = mean + self._weight * (min(seconds, CLIP * mean) - mean)
        self._rebuild()

    def seconds(self, size: int) -> float | None:
        """What a batch of `size` would take; None while nothing was measured."""
        sizes, seconds = self._points
        if not sizes:
            return None
        at = bisect_left(sizes, size)
        if at == len(sizes):
            return seconds[-1] * size / sizes[-1]
        if sizes[at] == size or at == 0:
            return seconds[at]
        low, high = sizes[at - 1], sizes[at]
        return seconds[at - 1] + (seconds[at] - seconds[at - 1]) * (size - low) / (high - low)

    def enough(self, rate_hz: float, devices: int, load: float, max_batch: int, *, pad: bool = False) -> int:
        """The smallest batch with which the devices keep up with the arrivals.

        In batches of n, `devices` are busy for rate * seconds(n) / (n * devices) of the time. Where no size
        brings that under `load`, the size that serves most a second is the answer: waiting for it pays most.

        Args:
            rate_hz: items that arrive in a second.
            devices: that work in parallel.
            load: the share of time that they may be busy.
            max_batch: the largest size.
            pad: see `choose`.
        """
        if not self.sizes:
            return 1
        needed_hz = rate_hz / (load * devices)  # of each device
        below, best, best_hz = 0, 1, 0.0

        def suffices(items: int) -> bool:
            return items >= needed_hz * self._cost(items, pad)

        for size in self._candidates(max_batch):
            if suffices(size):
                between = range(below + 1, size)
                return below + 1 + bisect_left(between, True, key=suffices)
            below = size
            served_hz = size / self._cost(size, pad)
            if served_hz > best_hz:
                best, best_hz = size, served_hz
        return best

    def choose(
        self, waiting: int, spare_s: Sequence[float] = (), *, pad: bool = False
    ) -> tuple[int, int] | None:
        """How many of the waiting to run, in a batch of what size, for the highest goodput.

        Goodput: items that are answered in time for each second of the device; where none can be in time any
        more, all items. Of sizes that are equally good the largest is taken.

        Args:
            waiting: items that may go, at least 1 and at most the largest batch.
            spare_s: seconds that each of them has left, ascending; empty where there is no deadline.
            pad: only measured sizes are run, filled up where there are fewer items: for engines that make a
                plan for each shape.

        Returns:
            Items and size of the batch; None while nothing was measured.
        """
        if pad:
            sizes = self.sizes
            options = [(min(waiting, s), s) for s in sizes if s < waiting] + [
                (waiting, s) for s in sizes if s >= waiting
            ][:1]
        else:
            options = [(s, s) for s in self._candidates(waiting)]
        scored = []
        for items, size in options:
            seconds = self._cost(size, pad=False)
            on_time = items - bisect_left(spare_s, seconds, 0, items) if spare_s else items
            scored.append((on_time / seconds, items / seconds, items, size))
        if not scored or not self.sizes:
            return None
        by = 0 if any(option[0] for option in scored) else 1
        limit = TOLERANCE * max(option[by] for option in scored)
        return max((option[2], option[3]) for option in scored if option[by] >= limit)

    def _cost(self, items: int, pad: bool) -> float:
        """Seconds of a batch that holds so many items; some have been measured."""
        if pad:
            at = bisect_left(self.sizes, items)
            items = self.sizes[at] if at < len(self.sizes) else items
        return max(self.seconds(items) or 0.0, 1e-9)

    def _candidates(self, largest: int) -> list[int]:
        """Sizes that can be best: between two measured ones the rate only rises or only falls."""
        return [size for size in self.sizes if size < largest] + [largest]

    def _rebuild(self) -> None:
        """Pools neighbours that fall with the size (isotonic regression), so that the curve never does."""
        blocks: list[tuple[float, int]] = []
        for mean in self._means.values():
            blocks.append((mean, 1))
            while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
                (left, n), (right, m) = blocks[-2:]
                blocks[-2:] = [((left * n + right * m) / (n + m), n + m)]
        seconds = tuple(mean for mean, count in blocks for _ in range(count))
        self._points = (tuple(self._means), seconds)
