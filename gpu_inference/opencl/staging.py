"""Copies between the host's arrays and the device through pinned memory that is taken once and used again.

A driver copies from ordinary memory in a detour of its own; from pinned memory the card fetches by itself. A
copy goes block by block through a small ring: while the card moves one block, the host fills the next. So the
memory is bounded whatever the tensors' sizes, and a write returns as soon as the array has been read.

Off unless the environment has POLARSTREAM_STAGING=1. On an H100 whole runs took 2 to 12% longer with it
(ResNet-50 and MobileNetV2, batch 1 to 32), and single copies up to twice as long; PoCL gained nothing. Nobody
has measured it on an RX 580, whose drivers copy from ordinary memory in other ways. Devices that share the
host's memory (processors, integrated GPUs) always copy directly."""

from __future__ import annotations

import os
from collections import deque
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpu_inference.opencl.traits import DeviceTraits

BLOCKS: Final = 4
BLOCK_BYTES: Final = 2 << 20


def wanted() -> bool:
    """Whether copies go through pinned memory where the device has memory of its own."""
    return os.environ.get("POLARSTREAM_STAGING") == "1"


def staging_bytes_of(device: DeviceTraits) -> int:
    """Pinned memory of a session on such a device."""
    return 0 if device.is_cpu or not wanted() else BLOCKS * BLOCK_BYTES


class Staging:
    """A ring of pinned blocks, made at the first copy and given back by `close`.

    Args:
        context: a pyopencl.Context.
        blocks: of the ring; 0 copies directly.
        block_bytes: of each.
    """

    def __init__(self, context: Any, blocks: int = BLOCKS, block_bytes: int = BLOCK_BYTES) -> None:
        self._context, self._count, self._block_bytes = context, blocks, block_bytes
        self._buffer: Any = None
        self._map: Any = None
        self._blocks: list[NDArray[np.uint8]] = []
        self._events: list[Any] = []
        self._next = 0

    @property
    def size_bytes(self) -> int:
        """What it holds when it is in use."""
        return self._count * self._block_bytes

    def write(self, queue: Any, buffer: Any, array: NDArray[Any]) -> None:
        """Copies a contiguous array to the start of a device buffer; the array may be changed afterwards."""
        import pyopencl as cl

        if not self._count:
            cl.enqueue_copy(queue, buffer, array, is_blocking=True)
            return
        data = array.reshape(-1).view(np.uint8)
        for start in range(0, data.nbytes, self._block_bytes):
            index, block = self._take(queue)
            part = block[: min(self._block_bytes, data.nbytes - start)]
            np.copyto(part, data[start : start + part.nbytes])
            self._events[index] = cl.enqueue_copy(queue, buffer, part, dst_offset=start, is_blocking=False)
            queue.flush()

    def read(self, queue: Any, buffer: Any, array: NDArray[Any]) -> None:
        """Fills a contiguous array from the start of a device buffer, and waits for that."""
        import pyopencl as cl

        if not self._count:
            cl.enqueue_copy(queue, array, buffer, is_blocking=True)
            return
        data = array.reshape(-1).view(np.uint8)
        pending: deque[tuple[int, NDArray[np.uint8], int]] = deque()
        for start in range(0, data.nbytes, self._block_bytes):
            if len(pending) == self._count:
                self._drain(pending, data)
            index, block = self._take(queue)
            part = block[: min(self._block_bytes, data.nbytes - start)]
            self._events[index] = cl.enqueue_copy(queue, part, buffer, src_offset=start, is_blocking=False)
            queue.flush()
            pending.append((index, part, start))
        while pending:
            self._drain(pending, data)

    def close(self) -> None:
        """Waits for what is under way and gives the memory back."""
        for event in self._events:
            if event is not None:
                event.wait()
        self._events.clear()
        self._blocks.clear()
        if self._map is not None:
            self._map.release()
            self._buffer.release()
            self._map = self._buffer = None

    def _drain(self, pending: deque[tuple[int, NDArray[np.uint8], int]], data: NDArray[np.uint8]) -> None:
        index, part, start = pending.popleft()
        self._events[index].wait()
        np.copyto(data[start : start + part.nbytes], part)

    def _take(self, queue: Any) -> tuple[int, NDArray[np.uint8]]:
        """The next block, once nobody copies from or to it any more."""
        if not self._blocks:
            self._open(queue)
        index, self._next = self._next, (self._next + 1) % self._count
        if self._events[index] is not None:
            self._events[index].wait()
        return index, self._blocks[index]

    def _open(self, queue: Any) -> None:
        import pyopencl as cl

        flags = cl.mem_flags.READ_WRITE | cl.mem_flags.ALLOC_HOST_PTR
        self._buffer = cl.Buffer(self._context, flags, self.size_bytes)
        access = cl.map_flags.READ | cl.map_flags.WRITE
        shape = (self._count, self._block_bytes)
        mapped, _ = cl.enqueue_map_buffer(queue, self._buffer, access, 0, shape, np.uint8, is_blocking=True)
        self._map, self._blocks = mapped.base, list(mapped)
        self._events = [None] * self._count
