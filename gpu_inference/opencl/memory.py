"""How much device memory a plan takes, known before any of it is allocated.

need = memory_need([segment], staging_bytes=STAGING_BYTES)
need.peak_bytes, need.largest_bytes
need.refusal(free_bytes=..., total_bytes=..., limit_bytes=...)      # None where it fits
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gpu_inference.opencl.plan import Segment

#: A buffer holds at least so much: drivers refuse empty ones.
SMALLEST_BUFFER: Final = 16


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Device memory of a model at the shapes that were planned.

    Attributes:
        weight_bytes: weights, as the chosen kernels want them packed.
        slot_bytes: the arena, slot by slot; each is one buffer.
        staging_bytes: pinned host memory that copies go through; a driver may count it as the card's.
        largest_bytes: of the buffers of weights and intermediate tensors.
        complete: False where the plan stops at what only a run can tell, so that more may follow.
    """

    weight_bytes: int
    slot_bytes: tuple[int, ...]
    staging_bytes: int
    largest_bytes: int
    complete: bool = True

    @property
    def arena_bytes(self) -> int:
        """Intermediate tensors, at the moment when most of them live."""
        return sum(self.slot_bytes)

    @property
    def peak_bytes(self) -> int:
        """All of it."""
        return self.weight_bytes + self.arena_bytes + self.staging_bytes

    def __str__(self) -> str:
        parts = f"{mib(self.weight_bytes)} of weights, {mib(self.arena_bytes)} of intermediate tensors"
        if self.staging_bytes:
            parts += f", {mib(self.staging_bytes)} for copies"
        least = "" if self.complete else "at least "
        return f"{least}{mib(self.peak_bytes)} ({parts}; largest buffer {mib(self.largest_bytes)})"

    def refusal(
        self, *, free_bytes: int, total_bytes: int, limit_bytes: int, held_bytes: int = 0
    ) -> str | None:
        """Why a device can't hold it, with the numbers and what to do; None where it can.

        Args:
            free_bytes: of the device's memory, beside what is held already.
            total_bytes: of the device.
            limit_bytes: of one buffer.
            held_bytes: of the need, what the asking session holds already.
        """
        fits = self.peak_bytes - held_bytes <= free_bytes
        if fits and self.largest_bytes <= limit_bytes:
            return None
        room = f"{mib(free_bytes)} free" + (f" and {mib(held_bytes)} taken by this model" * bool(held_bytes))
        text = f"the model needs {self}, the device has {mib(total_bytes)}, {room}, and buffers of at most "
        text += f"{mib(limit_bytes)}: "
        if self.largest_bytes > max(self.slot_bytes, default=0) and self.largest_bytes > limit_bytes:
            return text + "one of its weights is too large for a buffer, take a smaller model"
        if self.weight_bytes > free_bytes + held_bytes:
            return text + "take a smaller model, or a larger device"
        if self.peak_bytes <= total_bytes and self.largest_bytes <= limit_bytes:
            return text + "close other sessions and programs that use it, or run a smaller batch"
        return text + "run a smaller batch or smaller images, or take a larger device"


def mib(size_bytes: int) -> str:
    """Bytes for people; tenths below 10 MiB."""
    size = size_bytes / 2**20
    return f"{size:.1f} MiB" if size < 10 else f"{size:.0f} MiB"


def memory_need(
    segments: Iterable[Segment],
    *,
    staging_bytes: int = 0,
    weights: Mapping[str, int] | None = None,
    slots: Iterable[int] = (),
) -> MemoryNeed:
    """What a session takes that runs these plans: weights are shared, and so are slots of the same number.

    Args:
        segments: of plans made for one graph, for one batch size or several.
        staging_bytes: of the session.
        weights: bytes by key, of what is on the device before.
        slots: bytes of each, of what is on the device before.
    """
    sizes, arena, complete = dict(weights or {}), list(slots), True
    for segment in segments:
        for key, array in segment.constants.items():
            sizes.setdefault(key, max(array.nbytes, SMALLEST_BUFFER))
        arena = [max(pair) for pair in zip_longest(arena, segment.slot_bytes, fillvalue=0)]
        complete = complete and segment.state is None
    largest = max([*sizes.values(), *arena], default=0)
    return MemoryNeed(sum(sizes.values()), tuple(arena), staging_bytes, largest, complete)
