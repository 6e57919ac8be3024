"""A device's measured peak: what multiply-adds and copies reach when nothing else is in the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from gpu_inference.devices import DeviceInfo

# Eight independent chains of multiply-adds in registers: no memory, no dependency that stalls.
_MADS = """
__kernel void mads(__global float *out, const int rounds) {
    float8 a = (float8)(get_global_id(0) * 1e-9f), b = a + 0.1f, c = a + 0.2f, d = a + 0.3f;
    const float8 x = 0.999f, y = 0.001f;
    for (int i = 0; i < rounds; ++i) {
        a = a * x + y; b = b * x + y; c = c * x + y; d = d * x + y;
    }
    const float8 s = a + b + c + d;
    out[get_global_id(0)] = s.s0 + s.s1 + s.s2 + s.s3 + s.s4 + s.s5 + s.s6 + s.s7;
}
"""
_COPY = """
__kernel void copy(__global const float4 *from, __global float4 *to) {
    to[get_global_id(0)] = from[get_global_id(0)];
}
"""


def measure_peak(info: DeviceInfo) -> tuple[float, float]:
    """Measure a device: (GFLOP/s of fp32 multiply-adds, GB/s of a copy, reads and writes counted)."""
    from gpu_inference.devices import open_device
    from gpu_inference.opencl.launch import Buf, Kernel, Launch
    from gpu_inference.opencl.timing import LaunchTimer

    timer = LaunchTimer(open_device(info).context)
    items = 1 << 14 if info.traits.is_cpu else 1 << 20
    rounds = 256
    mads = Launch(Kernel(None, "mads", (), _MADS), (items,), (64,), (Buf("out"), np.int32(rounds)))
    us = timer.time_us([mads], {"out": timer.empty(items * 4)}, repeats=10)
    gflops = items * rounds * 32 * 2 / us / 1e3
    size = min(256 << 20, info.max_buffer_bytes // 4)
    size -= size % 4096
    copy = Launch(Kernel(None, "copy", (), _COPY), (size // 16,), (64,), (Buf("from"), Buf("to")))
    us = timer.time_us([copy], {"from": timer.empty(size), "to": timer.empty(size)}, repeats=10)
    return gflops, 2 * size / us / 1e3
