"""A session's device memory: weights, arena and staging, taken only after a plan's need was weighed."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu_inference.errors import DeviceError
from gpu_inference.opencl.arena import MAX_BUFFER_BYTES, SlotPool
from gpu_inference.opencl.launch import Buf
from gpu_inference.opencl.memory import SMALLEST_BUFFER, MemoryNeed, memory_need, mib
from gpu_inference.opencl.staging import BLOCKS, Staging, wanted

if TYPE_CHECKING:
    from gpu_inference.devices import DeviceHandle
    from gpu_inference.graph.ir import Array
    from gpu_inference.opencl.plan import Segment
    from gpu_inference.opencl.value import Value

_log = logging.getLogger(__name__)


class DeviceBuffers:
    """What one session holds on its device.

    Args:
        handle: of the device.
    """

    def __init__(self, handle: DeviceHandle) -> None:
        self._handle = handle
        self._pool = SlotPool(handle.context)
        self._constants: dict[str, Any] = {}
        self._sizes: dict[str, int] = {}
        self._staging = Staging(handle.context, BLOCKS if wanted() and not handle.unified_memory else 0)
        self._held = 0
        self._told = 0

    @property
    def constants(self) -> dict[str, Any]:
        """Buffers of weights by key; a live view."""
        return self._constants

    @property
    def constant_bytes(self) -> int:
        """Device memory of weights."""
        return sum(self._sizes.values())

    @property
    def slot_bytes(self) -> tuple[int, ...]:
        """Device memory of the arena, slot by slot."""
        return self._pool.sizes

    @property
    def generation(self) -> int:
        """Rises when a slot's buffer changed, so that kernels must be told."""
        return self._pool.generation

    @property
    def held_bytes(self) -> int:
        """Taken now; the staging counts from the beginning."""
        return self.constant_bytes + self._pool.total_bytes + self._staging.size_bytes

    def need(self, segment: Segment) -> MemoryNeed:
        """What will be held once this segment has run, with what is held already."""
        return memory_need(
            [segment],
            staging_bytes=self._staging.size_bytes,
            weights=self._sizes,
            slots=self._pool.sizes,
        )

    def check(self, segment: Segment) -> None:
        """Says what the segment needs, once it is more than before, and refuses what the device can't hold.

        Raises:
            DeviceError: with the numbers, and what to do.
        """
        need = self.need(segment)
        refusal = need.refusal(
            free_bytes=self._handle.free_bytes(),
            total_bytes=self._handle.memory_bytes,
            limit_bytes=min(MAX_BUFFER_BYTES, self._handle.max_buffer_bytes),
            held_bytes=self._held,
        )
        if refusal is not None:
            raise DeviceError(refusal)
        if need.peak_bytes > self._told:
            self._told = need.peak_bytes
            _log.info("the model takes %s of the device's %s", need, mib(self._handle.memory_bytes))

    def prepare(self, queue: Any, segment: Segment) -> None:
        """Uploads the segment's constants and makes the arena large enough.

        Raises:
            DeviceError: the device has too little memory; nothing was taken if that could be known.
        """
        self.check(segment)
        try:
            for key, array in segment.constants.items():
                self._upload(queue, key, array)
            segment.constants.clear()
            self._pool.ensure(segment.slot_bytes, segment.live)
        finally:
            self._account(self.held_bytes)

    def __getitem__(self, key: str) -> Any:
        return self._pool[int(key[5:])] if key.startswith("slot:") else self._constants[key]

    def resolve(self, buf: Buf) -> Any:
        """The buffer that a launch's argument names."""
        buffer = self[buf.tensor]
        return buffer[buf.offset_bytes :] if buf.offset_bytes else buffer

    def write(self, queue: Any, key: str, array: Array, dtype: np.dtype[Any]) -> None:
        """Puts an array on the device as `dtype`; it may be changed afterwards."""
        array = np.ascontiguousarray(array, dtype)
        if array.nbytes:
            self._staging.write(queue, self[key], array)

    def read(self, queue: Any, value: Value) -> Array:
        """A tensor's elements; where the host has them already, that very array."""
        if value.host is not None:
            return value.host
        dtype = np.dtype(np.float32) if value.dtype == np.float64 else value.dtype
        array = np.empty(value.shape, dtype)
        if array.nbytes:
            self._staging.read(queue, self[value.stores["plain"].key], array)
        return array.astype(value.dtype, copy=False)

    def close(self) -> None:
        """Gives everything back."""
        self._staging.close()
        self._pool.close()
        for buffer in self._constants.values():
            buffer.release()
        self._constants.clear()
        self._sizes.clear()
        self._account(0)

    def _account(self, held: int) -> None:
        self._handle.hold(held - self._held)
        self._held = held

    def _upload(self, queue: Any, key: str, array: Array) -> None:
        import pyopencl as cl

        if key in self._constants:
            return
        size = max(array.nbytes, SMALLEST_BUFFER)
        try:
            buffer = cl.Buffer(self._handle.context, cl.mem_flags.READ_ONLY, size)
        except cl.Error as error:
            raise DeviceError(
                f"no device memory for {size / 2**20:.1f} MiB of weights ({self.constant_bytes / 2**20:.1f} "
                f"MiB held; {error}): close other sessions, or take a smaller model"
            ) from error
        if array.nbytes:
            self._staging.write(queue, buffer, np.ascontiguousarray(array))
        self._constants[key], self._sizes[key] = buffer, size
