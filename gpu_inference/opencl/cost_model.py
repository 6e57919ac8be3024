"""Predicted device time of a choice: the untuned default, and what to expect of a card that we don't have.

A tiled product is bounded by four things, and the prediction is a smooth maximum of them:

- issue: the busiest compute unit's groups, each a number of steps; a step issues its multiply-adds, its local
  reads (which local memory must also serve) and the loads of the next tile. The last partial wave of groups
  counts whole, because the busiest unit has one group more;
- latency: a step can't be shorter than a memory access, as tiles are fetched one step ahead; a unit hides it
  by interleaving as many groups as its registers, local memory and work-item slots hold;
- device memory: input, weights and output once;
- cache: what the groups read again.

The constants of "nvidia" are fitted to 6,600 timings of candidates (ResNet-50, MobileNetV2 at batch 1, 8 and
32 on an H200, benchmarks/engine_kernels.py): its choices lose 2 to 6% against the fastest candidates there.
Those of gfx803 are read from the compiled ISA (gfx803.py: share of mads in the loop, registers) and AMD's
documents; they rank candidates, and no RX 580 has confirmed the absolute times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gpu_inference.opencl.conv_shape import ConvChoice, ConvShape, ceil_div, round_up
from gpu_inference.opencl.tile import Tile
from gpu_inference.opencl.traits import DeviceKind, DeviceTraits
from gpu_inference.opencl.weights import WeightType, conversion_slots, weight_bytes


@dataclass(frozen=True, slots=True)
class Rates:
    """How a kind of device executes our kernels.

    Attributes:
        launch_us: device time of an empty launch, as its events show it.
        second_us: what each further launch of a plan adds.
        efficiency: multiply-adds that get their issue slot.
        local_clock_bytes: bytes a clock that a unit's local memory serves, broadcasts counted for each lane.
        load_a: issue slots a float4 of A, pixels in order.
        load_gather: further slots where taps are found and bounds checked.
        load_nchw: further slots where the input is NCHW.
        load_b: issue slots a float4 of B.
        load_uniform: issue slots a float4 that is the same for a whole wavefront.
        latency_uniform: clocks that a wave waits for such loads in a step of 16 channels.
        latency_step: clocks of a barrier and the first local reads.
        latency_memory: clocks of a memory access.
        latency_group: clocks to start and end a group.
        epilogue: issue slots a float4 of the result.
        sharpness: of the smooth maximum.
    """

    launch_us: float
    second_us: float
    efficiency: float
    local_clock_bytes: float
    load_a: float
    load_gather: float
    load_nchw: float
    load_b: float
    load_uniform: float
    latency_uniform: float
    latency_step: float
    latency_memory: float
    latency_group: float
    epilogue: float
    sharpness: float


_NVIDIA: Final = Rates(
    launch_us=6.2,
    second_us=5.6,
    efficiency=0.757,
    local_clock_bytes=256.0,
    load_a=13.5,
    load_gather=7.3,
    load_nchw=85.0,
    load_b=24.7,
    load_uniform=8.0,
    latency_uniform=1000.0,
    latency_step=210.0,
    latency_memory=859.0,
    latency_group=1164.0,
    epilogue=49.8,
    sharpness=2.84,
)
# 97% mad in the loop, a wave's 4 clocks a VALU instruction; local memory 128 bytes a clock.
_GFX803: Final = Rates(
    launch_us=8.0,
    second_us=8.0,
    efficiency=0.9,
    local_clock_bytes=128.0,
    load_a=12.0,
    load_gather=12.0,
    load_nchw=30.0,
    load_b=10.0,
    load_uniform=0.0,
    latency_uniform=2000.0,
    latency_step=250.0,
    latency_memory=700.0,
    latency_group=1500.0,
    epilogue=20.0,
    sharpness=3.0,
)
_RATES: Final[dict[DeviceKind, Rates]] = {
    "nvidia": _NVIDIA,
    "gfx803": _GFX803,
    "other": _GFX803,
    "cpu": _GFX803,
}


def rates_of(device: DeviceTraits) -> Rates:
    """The constants of the device's kind."""
    return _RATES[device.kind]


def product_cost_us(
    m: int,
    o: int,
    k: int,
    batch: int,
    tile: Tile,
    split: int,
    device: DeviceTraits,
    *,
    gather: bool = False,
    nchw: bool = False,
    x_bytes: float | None = None,
    weights: WeightType = "fp32",
    itemsize: float = 4.0,
) -> float:
    """Device time of `batch` tiled products [m, k] x [k, o], µs, without the launch itself.

    Args:
        m: rows of the result.
        o: its columns.
        k: inner dimension.
        batch: independent products.
        tile: of a group.
        split: parts of the inner dimension.
        device: what runs it.
        gather: A is found tap by tap (a convolution that isn't pointwise).
        nchw: A is read float by float from NCHW.
        x_bytes: what A really holds, where taps overlap; None for m * k floats.
        weights: how B is stored.
        itemsize: bytes of an element of A and of the result.
    """
    rates = rates_of(device)
    threads, share = tile.threads, tile.tm * tile.tn
    columns, rows = ceil_div(o, tile.bn), ceil_div(m, tile.bm)
    groups = rows * columns * batch * split
    steps = ceil_div(ceil_div(k, tile.bk), split)

    depth = tile.bk // tile.ks
    loads_a = ceil_div(tile.bm * tile.bk // 4, threads)
    loads_b = ceil_div(tile.bk * tile.bn // 4, threads)
    mads = share * depth
    reads = (tile.tm + tile.tn) // 4 * depth
    slots_a = rates.load_a + rates.load_gather * gather + rates.load_nchw * nchw
    others = reads + loads_a * slots_a + loads_b * (rates.load_b + conversion_slots(weights))
    issue = threads / device.lanes * (mads / rates.efficiency + others)
    local = threads * (tile.tm + tile.tn) * depth * 4 / rates.local_clock_bytes
    kept = share / tile.ks + 0.5 * share * (tile.ks - 1) / tile.ks
    ending = threads / device.lanes * rates.epilogue * kept / 4

    busiest = ceil_div(groups, device.compute_units)
    registers = min(share + 2 * (tile.tm + tile.tn) + 4 * (loads_a + loads_b) + 36, 255)
    resident = min(
        device.registers // (registers * threads),
        device.unit_threads // threads,
        device.local_unit_bytes // (tile.local_bytes + 1024),
    )
    issue_us = busiest * (steps * max(issue, local) + ending) / device.clock_ghz / 1e3
    alone = (mads + others) * max(1.0, threads / device.lanes)
    step = max(rates.latency_memory, alone + rates.latency_step)
    rounds = ceil_div(busiest, max(resident, 1))
    latency_us = rounds * (steps * step + rates.latency_group) / device.clock_ghz / 1e3

    written = (itemsize if split == 1 else 4.0) * batch * m * o * split
    x = itemsize * batch * m * k if x_bytes is None else x_bytes
    stored = weight_bytes(weights)
    memory_us = (x + stored * batch * k * o + written) / device.bandwidth_gbs / 1e3
    again = itemsize * m * k * columns / (4.0 if gather else 1.0) + stored * rows * k * o
    cache_us = (batch * again + written) / device.cache_gbs / 1e3

    p = rates.sharpness
    return float((issue_us**p + latency_us**p + memory_us**p + cache_us**p) ** (1.0 / p))


def conv_cost_us(shape: ConvShape, choice: ConvChoice, device: DeviceTraits) -> float:
    """Device time of a convolution computed by `choice`, µs."""
    rates, tile = rates_of(device), choice.tile
    if choice.algorithm in ("winograd2", "winograd4") and tile is not None:
        out = 2 if choice.algorithm == "winograd2" else 4
        points, tiles = (out + 2) ** 2, shape.n * ceil_div(shape.oh, out) * ceil_div(shape.ow, out)
        outside = shape.n * shape.h * shape.w * shape.c4 + shape.m * shape.o4
        moved = shape.itemsize * outside + 4.0 * points * tiles * (shape.c4 + shape.o4)
        transforms_us = 1e-3 * moved / device.bandwidth_gbs
        product = product_cost_us(tiles, shape.o4, shape.c4, points, tile, 1, device, weights=shape.weights)
        return product + transforms_us + rates.launch_us + 2 * rates.second_us
    if tile is not None:
        c = shape.c if shape.nchw else round_up(shape.cg, 4)
        o, k = round_up(shape.og, 4), shape.kh * shape.kw * c
        cost = rates.launch_us + product_cost_us(
            shape.m,
            o,
            k,
            shape.groups,
            tile,
            choice.split,
            device,
            gather=not shape.pointwise and not shape.nchw,
            nchw=shape.nchw,
            x_bytes=shape.itemsize * shape.n * shape.h * shape.w * c * shape.groups,
            weights=shape.weights,
            itemsize=shape.itemsize,
        )
        if choice.split > 1:
            parts = shape.m * o * shape.groups * (choice.split + 1)
            cost += 4e-3 * parts / device.cache_gbs + rates.second_us
        return cost
    if choice.algorithm == "uniform":
        return _uniform_cost_us(shape, choice, device)
    return _register_cost_us(shape, choice, device)


def _uniform_cost_us(shape: ConvShape, choice: ConvChoice, device: DeviceTraits) -> float:
    """Groups of 64 work-items without local memory; weights are scalar loads on GCN."""
    rates, px, on = rates_of(device), choice.px, choice.vector
    # GCN: four SIMDs a unit, each a wave's instruction in four clocks
    at_once = 4 if device.simd_width >= 64 else max(1, device.lanes // 64)
    blocks = ceil_div(shape.o4, on)
    groups = ceil_div(shape.m, 64 * px) * blocks * choice.split
    steps = ceil_div(ceil_div(shape.c4, 16), choice.split)
    # of one step of 16 channels: multiply-adds, four reads of each pixel, the weights
    slots = (
        16 * px * on / 0.97
        + 4 * px * rates.load_a
        + 4 * on * (rates.load_uniform + conversion_slots(shape.weights))
    )
    clocks = slots * at_once * 64 / device.lanes
    ending = rates.epilogue * px * on / 4 * clocks / slots
    rounds = ceil_div(groups, device.compute_units * at_once)
    issue_us = rounds * (steps * clocks + ending) / device.clock_ghz / 1e3
    resident = min(device.registers // (64 * (px * on + 16 * px + 12)), device.unit_threads // 64)
    passes = ceil_div(groups, device.compute_units * max(resident, 1))
    alone = clocks + rates.latency_memory + rates.latency_uniform
    latency_us = passes * (steps * alone + rates.latency_group) / device.clock_ghz / 1e3
    parts = float(shape.m * shape.o4 * choice.split)
    memory_us = (shape.bytes + 4.0 * parts) / device.bandwidth_gbs / 1e3
    cache_us = 1e-3 * (shape.itemsize * shape.m * shape.c4 * blocks + 4.0 * parts) / device.cache_gbs
    p = rates.sharpness
    total = (issue_us**p + latency_us**p + memory_us**p + cache_us**p) ** (1.0 / p) + rates.launch_us
    if choice.split > 1:
        total += 4e-3 * (parts + shape.m * shape.o4) / device.cache_gbs + rates.second_us
    return float(total)


def _register_cost_us(shape: ConvShape, choice: ConvChoice, device: DeviceTraits) -> float:
    """The kernels without local memory: direct and depthwise."""
    across, down = ceil_div(shape.ow, choice.px), ceil_div(shape.oh, choice.py)
    share = choice.px * choice.py
    covered = across * down * share / (shape.oh * shape.ow)
    items = across * down * shape.n * ceil_div(shape.o4, choice.vector)
    memory_us = shape.bytes / device.bandwidth_gbs / 1e3
    compute_us = shape.flops / device.peak_gflops / 1e3 * covered * (1 + 2 / share)
    if device.is_cpu:
        return max(memory_us, compute_us) + 10.0
    # rows of taps that neighbouring pixels share, and work-items to hide a memory access behind
    window = (choice.py - 1) * shape.sh + (shape.kh - 1) * shape.dh + 1
    window *= (choice.px - 1) * shape.sw + (shape.kw - 1) * shape.dw + 1
    cached_us = 1e-3 * shape.itemsize * items * choice.vector * (window + share) / device.cache_gbs
    rates = rates_of(device)
    rounds = ceil_div(items, device.compute_units * min(device.unit_threads, 768))
    latency_us = rounds * (rates.latency_memory * 1.5 + 40.0 * window) / device.clock_ghz / 1e3
    p = rates.sharpness
    total: float = (memory_us**p + compute_us**p + cached_us**p + latency_us**p) ** (1.0 / p)
    return total + rates.launch_us
