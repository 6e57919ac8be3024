"""Predicted device time of a choice, for the untuned default and for reports about devices we don't have."""

from __future__ import annotations

from gpu_inference.opencl.conv_shape import ConvChoice, ConvShape, ceil_div, round_up
from gpu_inference.opencl.tile import Tile
from gpu_inference.opencl.traits import DeviceTraits


def product_cost_us(
    m: int, o: int, k: int, batch: int, tile: Tile, split: int, device: DeviceTraits
) -> float:
    """Device time of `batch` tiled products [m, k] x [k, o], µs."""
    groups = ceil_div(m, tile.bm) * ceil_div(o, tile.bn) * batch * split
    steps = ceil_div(ceil_div(k, tile.bk), split)
    shares = tile.tm * tile.tn
    # local memory serves simd_width * 4 bytes a clock: a step reads (tm + tn) floats a row and work-item
    mads = tile.threads * shares * (tile.bk // tile.ks)
    lds = tile.threads * (tile.tm + tile.tn) * (tile.bk // tile.ks) / 32
    clocks_step = max(mads / device.lanes, lds) + 40
    registers = shares + 2 * (tile.tm + tile.tn) + 40
    resident = max(1, min(device.registers // (registers * tile.threads), 8))
    resident = min(resident, max(1, 2 * device.local_memory_bytes // tile.local_bytes))
    latency = 900 + steps * 350
    waves = ceil_div(groups, device.compute_units)
    busy = waves * steps * clocks_step
    clocks = max(busy, ceil_div(groups, device.compute_units * resident) * latency)
    traffic = 4.0 * batch * (m * k * ceil_div(o, tile.bn) + ceil_div(m, tile.bm) * k * o + m * o * split)
    memory_us = 4.0 * batch * (m * k + k * o + m * o) / device.bandwidth_gbs / 1e3
    cache_us = traffic / device.cache_gbs / 1e3
    return max(clocks / device.clock_ghz / 1e3, memory_us, cache_us) + device.launch_us


def conv_cost_us(shape: ConvShape, choice: ConvChoice, device: DeviceTraits) -> float:
    """Device time of a convolution computed by `choice`, µs."""
    memory_us = shape.bytes / device.bandwidth_gbs / 1e3
    if choice.algorithm == "tile" and choice.tile is not None:
        o, k = round_up(shape.og, 4), shape.kh * shape.kw * round_up(shape.cg, 4)
        cost = product_cost_us(shape.m, o, k, shape.groups, choice.tile, choice.split, device)
        if choice.split > 1:
            parts = 4.0 * shape.m * shape.o4 * (choice.split + 1)
            cost += parts / device.cache_gbs / 1e3 + device.launch_us
        return cost
    share = choice.px * choice.py
    items = ceil_div(shape.ow, choice.px) * ceil_div(shape.oh, choice.py) * shape.n * shape.o4 // 4
    full = device.compute_units * device.lanes * 4
    idle = max(1.0, full / max(items, 1))
    waste = ceil_div(shape.ow, choice.px) * choice.px * ceil_div(shape.oh, choice.py) * choice.py
    compute_us = shape.flops / device.peak_gflops / 1e3 * (1 + 3 / share) * waste / (shape.oh * shape.ow)
    return max(memory_us, compute_us) * min(idle, 8.0) + device.launch_us
