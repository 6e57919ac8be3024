"""Device memory of a plan: slots that tensors share when their lives don't overlap.

A slot is a buffer of its own rather than a range of a big one, so that kernels need no offsets and no buffer
passes a driver's limit. Tensors take slots in execution order: the smallest free one that is large enough,
else the largest free one, grown, else a new one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from gpu_inference.errors import DeviceError

ALIGNMENT: Final = 256
MAX_BUFFER_BYTES: Final = 1 << 30


@dataclass(slots=True)
class SlotPlan:
    """Which slots there are, how large, and which are free. Planning state: no device memory.

    Attributes:
        sizes: bytes of each slot.
        free: slots that hold nothing that is still needed.
        fixed: slots that can't grow any more, since they hold something before the segment's first launch.
    """

    sizes: list[int] = field(default_factory=list)
    free: set[int] = field(default_factory=set)
    fixed: set[int] = field(default_factory=set)

    def take(self, size_bytes: int) -> int:
        """A slot for `size_bytes`.

        Raises:
            DeviceError: the tensor is larger than any buffer may be.
        """
        if size_bytes > MAX_BUFFER_BYTES:
            raise DeviceError(
                f"a tensor of {size_bytes / 2**30:.2f} GiB passes the limit of 1 GiB a buffer: "
                "run a smaller batch or smaller images"
            )
        size = max(-(-size_bytes // ALIGNMENT), 1) * ALIGNMENT
        fitting = [slot for slot in self.free if self.sizes[slot] >= size]
        if fitting:
            slot = min(fitting, key=lambda s: (self.sizes[s], s))
        elif self.free - self.fixed:
            slot = max(self.free - self.fixed, key=lambda s: (self.sizes[s], -s))
            self.sizes[slot] = size
        else:
            slot = len(self.sizes)
            self.sizes.append(size)
        self.free.discard(slot)
        return slot

    def give(self, slot: int) -> None:
        """The slot's content is no longer needed."""
        self.free.add(slot)

    def clone(self) -> SlotPlan:
        """An independent copy."""
        return SlotPlan(list(self.sizes), set(self.free), set(self.fixed))

    @property
    def total_bytes(self) -> int:
        """Device memory of all slots."""
        return sum(self.sizes)


class SlotPool:
    """The buffers behind slots, shared by all plans of a session: the i-th slot of any plan is buffer i.

    Args:
        context: a pyopencl.Context.
    """

    def __init__(self, context: Any) -> None:
        self._context = context
        self._buffers: list[Any] = []
        self._sizes: list[int] = []
        self.generation = 0

    def __getitem__(self, slot: int) -> Any:
        return self._buffers[slot]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of each buffer."""
        return tuple(self._sizes)

    @property
    def total_bytes(self) -> int:
        """Device memory held."""
        return sum(self._sizes)

    def ensure(self, sizes: list[int], live: set[int]) -> None:
        """Makes every buffer at least as large as `sizes`; `generation` rises when any buffer changed.

        Args:
            sizes: bytes of each slot.
            live: slots whose content must stay.

        Raises:
            DeviceError: the device has too little memory.
        """
        import pyopencl as cl

        for slot, size in enumerate(sizes):
            if slot < len(self._sizes) and self._sizes[slot] >= size:
                continue
            if slot in live:
                raise AssertionError(f"slot {slot} holds something and can't grow to {size} bytes")
            if slot < len(self._sizes):
                self._buffers[slot].release()
            try:
                buffer = cl.Buffer(self._context, cl.mem_flags.READ_WRITE, size)
            except cl.Error as error:
                self.generation += 1
                raise DeviceError(
                    f"no device memory for {size / 2**20:.1f} MiB ({self.total_bytes / 2**20:.1f} MiB held; "
                    f"{error}): run a smaller batch, or close other sessions"
                ) from error
            if slot < len(self._sizes):
                self._buffers[slot], self._sizes[slot] = buffer, size
            else:
                self._buffers.append(buffer)
                self._sizes.append(size)
            self.generation += 1

    def close(self) -> None:
        """Gives every buffer back."""
        for buffer in self._buffers:
            buffer.release()
        self._buffers.clear()
        self._sizes.clear()
        self.generation += 1
