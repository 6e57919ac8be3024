"""What planners must know of a device: limits, and rates for the cost model. No pyopencl here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

DeviceKind = Literal["gfx803", "nvidia", "cpu", "other"]

# Device names that drivers give Polaris, Fiji and Tonga: all gfx803 to the compiler, or close enough.
_GFX803_NAMES: Final = (
    "gfx803",
    "gfx802",
    "polaris",
    "ellesmere",
    "baffin",
    "rx 470",
    "rx 480",
    "rx 570",
    "rx 580",
    "rx 590",
    "fiji",
    "tonga",
)


@dataclass(frozen=True, slots=True)
class DeviceTraits:
    """One OpenCL device as the planners see it.

    Attributes:
        kind: which set of kernel variants it is offered.
        name: what the driver calls it; part of the tuner's key, never parsed again.
        compute_units: CUs, SMs or cores.
        local_memory_bytes: of one work-group.
        max_work_group: work-items of one work-group.
        simd_width: lanes that execute together (wavefront 64, warp 32, vector floats of a CPU).
        lanes: fp32 multiply-adds that a compute unit starts each clock.
        clock_ghz: sustained clock.
        bandwidth_gbs: of device memory, GB/s.
        cache_gbs: of the last-level cache, GB/s.
        cache_bytes: size of the last-level cache.
        registers: 32-bit registers of a compute unit.
        local_unit_bytes: local memory of a compute unit, shared by the groups that it interleaves.
        unit_threads: work-items that a compute unit interleaves at most.
    """

    kind: DeviceKind
    name: str
    compute_units: int
    local_memory_bytes: int = 32768
    max_work_group: int = 256
    simd_width: int = 64
    lanes: int = 64
    clock_ghz: float = 1.3
    bandwidth_gbs: float = 256.0
    cache_gbs: float = 700.0
    cache_bytes: int = 2 << 20
    registers: int = 65536
    local_unit_bytes: int = 65536
    unit_threads: int = 2560

    @property
    def peak_gflops(self) -> float:
        """fp32 multiply-adds count two."""
        return 2.0 * self.compute_units * self.lanes * self.clock_ghz

    @property
    def is_cpu(self) -> bool:
        """Work-items run one after the other on cores: barriers cost, vectors don't."""
        return self.kind == "cpu"


RX580: Final = DeviceTraits(
    kind="gfx803", name="AMD Radeon RX 580 (gfx803)", compute_units=36, clock_ghz=1.34, bandwidth_gbs=256.0
)


def traits_from_info(
    *,
    name: str,
    vendor: str,
    is_cpu: bool,
    compute_units: int,
    clock_mhz: int,
    local_memory_bytes: int,
    max_work_group: int,
    cache_bytes: int = 0,
    native_vector_width: int = 1,
) -> DeviceTraits:
    """Traits from what clGetDeviceInfo tells.

    Args:
        name: CL_DEVICE_NAME, or the board name where the driver has one.
        vendor: CL_DEVICE_VENDOR.
        is_cpu: CL_DEVICE_TYPE has the CPU bit.
        compute_units: CL_DEVICE_MAX_COMPUTE_UNITS.
        clock_mhz: CL_DEVICE_MAX_CLOCK_FREQUENCY; 0 where the driver doesn't know.
        local_memory_bytes: CL_DEVICE_LOCAL_MEM_SIZE.
        max_work_group: CL_DEVICE_MAX_WORK_GROUP_SIZE.
        cache_bytes: CL_DEVICE_GLOBAL_MEM_CACHE_SIZE.
        native_vector_width: CL_DEVICE_NATIVE_VECTOR_WIDTH_FLOAT, used on CPUs.
    """
    low = name.lower()
    clock = clock_mhz / 1000.0
    if is_cpu:
        return DeviceTraits(
            kind="cpu",
            name=name,
            compute_units=compute_units,
            local_memory_bytes=local_memory_bytes,
            max_work_group=min(max_work_group, 256),
            simd_width=max(native_vector_width, 4),
            lanes=2 * max(native_vector_width, 4),
            clock_ghz=clock or 2.5,
            bandwidth_gbs=20.0,
            cache_gbs=100.0,
            cache_bytes=cache_bytes or 32 << 20,
            registers=512,
        )
    if any(part in low for part in _GFX803_NAMES):
        return DeviceTraits(
            kind="gfx803",
            name=name,
            compute_units=compute_units,
            local_memory_bytes=min(local_memory_bytes, 32768),
            max_work_group=min(max_work_group, 256),
            clock_ghz=clock or 1.3,
            bandwidth_gbs=256.0 if compute_units > 20 else 112.0,
        )
    if "nvidia" in vendor.lower():
        data_centre = any(part in low for part in ("h100", "h200", "a100", "gh200"))
        return DeviceTraits(
            kind="nvidia",
            name=name,
            compute_units=compute_units,
            local_memory_bytes=min(local_memory_bytes, 49152),
            max_work_group=min(max_work_group, 256),
            simd_width=32,
            lanes=64 if "a100" in low else 128,
            clock_ghz=clock or 1.7,
            bandwidth_gbs=(4000.0 if "h200" in low else 2800.0) if data_centre else 400.0,
            cache_gbs=5300.0 if data_centre else 1500.0,
            cache_bytes=cache_bytes or 4 << 20,
            local_unit_bytes=227000 if data_centre else 98304,
            unit_threads=2048 if data_centre else 1536,
        )
    return DeviceTraits(
        kind="other",
        name=name,
        compute_units=compute_units,
        local_memory_bytes=min(local_memory_bytes, 32768),
        max_work_group=min(max_work_group, 256),
        clock_ghz=clock or 1.0,
    )
