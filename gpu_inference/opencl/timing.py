"""Runs and times launches on a device by itself: for the tuner, the micro-benchmarks and the kernel tests."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpu_inference.errors import KernelError
from gpu_inference.opencl.program import ProgramCache
from gpu_inference.opencl.traits import DeviceTraits, traits_from_info

if TYPE_CHECKING:
    from gpu_inference.opencl.launch import Kernel, Launch


def traits_of(device: Any) -> DeviceTraits:
    """Traits of a pyopencl.Device."""
    import pyopencl as cl

    return traits_from_info(
        name=device.name,
        vendor=device.vendor,
        is_cpu=bool(device.type & cl.device_type.CPU),
        compute_units=device.max_compute_units,
        clock_mhz=device.max_clock_frequency,
        local_memory_bytes=device.local_mem_size,
        max_work_group=device.max_work_group_size,
        cache_bytes=device.global_mem_cache_size,
        native_vector_width=device.native_vector_width_float,
    )


class LaunchTimer:
    """Builds kernels, binds named buffers, runs launches and reads their events.

    Args:
        context: a pyopencl.Context with one device.
    """

    def __init__(self, context: Any) -> None:
        import pyopencl as cl

        self._cl = cl
        self._context = context
        self._device = context.devices[0]
        properties = cl.command_queue_properties.PROFILING_ENABLE
        self._queue = cl.CommandQueue(context, properties=properties)
        self._programs = ProgramCache(context)
        self._scratch: dict[str, Any] = {}
        self._scratch_bytes: dict[str, int] = {}
        self.traits = traits_of(self._device)

    def build(self, kernel: Kernel) -> Any:
        """The kernel, its program built once."""
        return self._programs.kernel(kernel)

    def upload(self, array: NDArray[Any]) -> Any:
        """A buffer with the array's bytes."""
        flags = self._cl.mem_flags
        return self._cl.Buffer(
            self._context, flags.READ_WRITE | flags.COPY_HOST_PTR, hostbuf=np.ascontiguousarray(array)
        )

    def empty(self, size_bytes: int) -> Any:
        """A buffer filled with NaN, so that what a kernel forgets to write shows."""
        buffer = self._cl.Buffer(self._context, self._cl.mem_flags.READ_WRITE, max(size_bytes, 16))
        pattern = np.array(0x7FFF7FFF, np.uint32)  # NaN as a float, and twice NaN as a half
        self._cl.enqueue_fill_buffer(self._queue, buffer, pattern, 0, max(size_bytes, 16) // 4 * 4)
        return buffer

    def download(self, buffer: Any, shape: tuple[int, ...], dtype: type[Any] = np.float32) -> NDArray[Any]:
        """The first elements of a buffer."""
        out = np.empty(shape, dtype)
        self._cl.enqueue_copy(self._queue, out, buffer)
        return out

    def bind(self, launches: Sequence[Launch], buffers: Mapping[str, Any]) -> list[tuple[Any, Launch]]:
        """Kernels with their arguments set; a Buf names its buffer by `tensor`."""
        bound = []
        for launch in launches:
            kernel = self.build(launch.kernel)
            for index, arg in enumerate(launch.args):
                kernel.set_arg(index, buffers[arg.tensor] if hasattr(arg, "tensor") else arg)
            bound.append((kernel, launch))
        return bound

    def enqueue(self, bound: Sequence[tuple[Any, Launch]]) -> list[Any]:
        """Enqueues everything once; returns the events."""
        enqueue = self._cl.enqueue_nd_range_kernel
        return [
            enqueue(self._queue, kernel, launch.global_size, launch.local_size) for kernel, launch in bound
        ]

    def run(self, launches: Sequence[Launch], buffers: Mapping[str, Any]) -> None:
        """Runs once and waits."""
        self.enqueue(self.bind(launches, buffers))
        self._queue.finish()

    def time_us(
        self, launches: Sequence[Launch], buffers: Mapping[str, Any], *, repeats: int = 10, warmup: int = 2
    ) -> float:
        """Median device time from the first launch's start to the last one's end, µs."""
        bound = self.bind(launches, buffers)
        for _ in range(warmup):
            self.enqueue(bound)
        rounds = [self.enqueue(bound) for _ in range(repeats)]
        self._queue.finish()
        return float(statistics.median(1e-3 * (r[-1].profile.end - r[0].profile.start) for r in rounds))

    def measure(self, launches: Sequence[Launch], sizes: Mapping[str, int]) -> float:
        """Device time in scratch buffers of at least these sizes (tuner.Measure), µs.

        Raises:
            KernelError: the driver refuses or fails a launch.
        """
        try:
            for name, size in sizes.items():
                if size > self._scratch_bytes.get(name, 0):
                    self._scratch.pop(name, None)
                    self._scratch[name] = self._noise(size)
                    self._scratch_bytes[name] = size
            return self.time_us(launches, self._scratch, repeats=7)
        except self._cl.Error as error:
            raise KernelError(f"{launches[0].kernel.name} can't be timed on this device: {error}") from error

    def release(self) -> None:
        """Gives the scratch buffers of `measure` back."""
        self._scratch.clear()
        self._scratch_bytes.clear()

    def _noise(self, size_bytes: int) -> Any:
        # repeated numbers of normal size: denormals, infinities and zeros can change what arithmetic costs
        block = np.random.default_rng(0).standard_normal(65536, np.float32)
        return self.upload(np.resize(block, size_bytes // 4 + 4))
