"""Which device runs the next batch: three strategies over what the pool knows of each device. No clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeAlias

from gpu_inference.errors import EngineError

StrategyName: TypeAlias = Literal["round-robin", "least-loaded", "adaptive"]

EXPLORE_EVERY: Final = 64  # a device passed over so often gets a batch: it may have become faster


@dataclass(frozen=True, slots=True)
class DeviceLoad:
    """What a strategy knows of a device that may be chosen.

    Attributes:
        device: its place in the pool; stays the same while others come and go.
        batches: that wait or run there.
        work_s: seconds until they are done, as measured.
        batch_s: seconds that the new batch would take there; None while nobody has measured.
    """

    device: int
    batches: int
    work_s: float
    batch_s: float | None


class Strategy(Protocol):
    """Chooses among devices."""

    def choose(self, loads: Sequence[DeviceLoad]) -> int:
        """The place in `loads`, which isn't empty, of the device to take."""
        ...


class RoundRobin:
    """Each device in turn."""

    def __init__(self) -> None:
        self._last = -1

    def choose(self, loads: Sequence[DeviceLoad]) -> int:
        """See Strategy."""
        last = self._last
        at = min(range(len(loads)), key=lambda i: (loads[i].device <= last, loads[i].device))
        self._last = loads[at].device
        return at


class LeastLoaded:
    """The device with the fewest batches; of equal ones the one that had none for longest."""

    def __init__(self) -> None:
        self._turn = 0
        self._taken: dict[int, int] = {}

    def choose(self, loads: Sequence[DeviceLoad]) -> int:
        """See Strategy."""
        taken = self._taken
        at = min(range(len(loads)), key=lambda i: (loads[i].batches, taken.get(loads[i].device, 0)))
        self._turn += 1
        taken[loads[at].device] = self._turn
        return at


class Adaptive:
    """The device that would be done first: measured seconds of its queue and of the batch.

    A device that nobody has measured, or that was passed over `EXPLORE_EVERY` times, gets one batch, so that
    an old measurement never shuts it out.
    """

    def __init__(self) -> None:
        self._turn = 0
        self._taken: dict[int, int] = {}

    def choose(self, loads: Sequence[DeviceLoad]) -> int:
        """See Strategy."""
        self._turn += 1
        best, best_s = 0, float("inf")
        for i, load in enumerate(loads):
            unused = self._turn - self._taken.setdefault(load.device, self._turn) >= EXPLORE_EVERY
            if load.batch_s is None or unused:
                done_s = -1.0 if not load.batches else load.work_s
            else:
                done_s = load.work_s + load.batch_s
            if done_s < best_s:
                best, best_s = i, done_s
        self._taken[loads[best].device] = self._turn
        return best


def make_strategy(name: StrategyName) -> Strategy:
    """The strategy of that name.

    Raises:
        EngineError: there is none.
    """
    match name:
        case "round-robin":
            return RoundRobin()
        case "least-loaded":
            return LeastLoaded()
        case "adaptive":
            return Adaptive()
    raise EngineError(f"no strategy {name!r}: take 'round-robin', 'least-loaded' or 'adaptive'")
