"""Convolution as one tiled matrix product (kernels/conv_nhwc.cl), with split-K for small outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpu_inference.opencl.conv_shape import ConvChoice, ConvShape, Pitches, ceil_div, round_up
from gpu_inference.opencl.epilogue import Epilogue
from gpu_inference.opencl.launch import Argument, Buf, Kernel, Launch
from gpu_inference.opencl.tile import Tile, tiles_for
from gpu_inference.opencl.traits import DeviceTraits
from gpu_inference.opencl.weights import WeightType, storage_defines, store, weight_arguments, weight_bytes

# Rows of packed weights are padded to this, the largest bk, so that every tile can share them.
K_MULTIPLE: Final = 64


# Rows of w that a kernel reading NCHW has a table for.
MAX_NCHW_K: Final = 640


def supports_tile(shape: ConvShape) -> bool:
    """Groups must be whole float4 of channels on both sides; NCHW input needs few taps."""
    if shape.nchw:
        return shape.groups == 1 and shape.c * shape.kh * shape.kw <= MAX_NCHW_K - K_MULTIPLE
    return shape.groups == 1 or (shape.cg % 4 == 0 and shape.og % 4 == 0)


def pack_tile(weights: NDArray[np.float32], groups: int) -> NDArray[np.float32]:
    """[o, cg, kh, kw] to [groups][K padded to K_MULTIPLE][og4] with K = (ky, kx, c4)."""
    o, cg, kh, kw = weights.shape
    og, cg4 = o // groups, round_up(cg, 4)
    k = kh * kw * cg4
    out = np.zeros((groups, round_up(k, K_MULTIPLE), round_up(og, 4)), np.float32)
    rows = out[:, :k].reshape(groups, kh, kw, cg4, -1)
    rows[..., :cg, :og] = weights.reshape(groups, og, cg, kh, kw).transpose(0, 3, 4, 2, 1)
    return out.reshape(-1)


def pack_nchw(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """[o, c, kh, kw] to [K padded to K_MULTIPLE][o4] with K = (c, ky, kx)."""
    o = weights.shape[0]
    rows = weights.reshape(o, -1).T
    out = np.zeros((round_up(rows.shape[0], K_MULTIPLE), round_up(o, 4)), np.float32)
    out[: rows.shape[0], :o] = rows
    return out.reshape(-1)


def product_launch(
    *,
    tile: Tile,
    m: int,
    c: int,
    o: int,
    batch: int,
    w_stride: int,
    kind: WeightType,
    x: Buf,
    weights: Buf,
    y: Buf,
    y_offset: int = 0,
) -> Launch:
    """`batch` products y[b] = x[b] w[b]: x [m, c], w [c padded, o], y [m, o]. No epilogue (for Winograd).

    Weights of type `kind` have no scales: there is one for each column and product.
    """
    steps = ceil_div(c, tile.bk)
    defines = tile.defines | {"SPLIT": 0, "POINTWISE": 1, "BATCH": 1, "NCHW": 0} | Epilogue().defines
    defines |= storage_defines(kind, False)
    numbers = (m, c, o, steps, steps, 1, w_stride // 4, 0, c, y_offset, o, 0, 0)
    return Launch(
        kernel=Kernel("conv_nhwc.cl", "conv_nhwc", tuple(sorted(defines.items()))),
        global_size=(ceil_div(o, tile.bn) * tile.threads, ceil_div(m, tile.bm), batch),
        local_size=(tile.threads, 1, 1),
        args=(x, weights, y, *map(np.int32, numbers), np.float32(0.0), np.float32(0.0)),
        flops=2.0 * batch * m * c * o,
        bytes=batch * (4.0 * (m * c + m * o) + weight_bytes(kind) * c * o),
    )


@dataclass(frozen=True, slots=True)
class TilePlan:
    """See conv_shape.ConvPlan."""

    shape: ConvShape
    epilogue: Epilogue
    choice: ConvChoice
    device: DeviceTraits

    @property
    def packing(self) -> str:
        """Any tile reads the same packed weights."""
        return "stem" if self.shape.nchw else "tile"

    @property
    def workspace_bytes(self) -> int:
        """The parts of a split inner dimension."""
        s = self.shape
        return 4 * self.choice.split * s.m * s.o4 if self.choice.split > 1 else 0

    def pack(self, weights: NDArray[np.float32]) -> NDArray[Any]:
        """See pack_tile and pack_nchw."""
        s = self.shape
        return store(weights, s.weights, pack_nchw if s.nchw else lambda w: pack_tile(w, s.groups))

    def launches(
        self,
        x: Buf,
        weights: Buf,
        bias: Buf | None,
        residual: Buf | None,
        y: Buf,
        workspace: Buf | None = None,
        pitches: Pitches | None = None,
    ) -> list[Launch]:
        """One launch, or two with a split inner dimension."""
        s, at, split = self.shape, pitches or Pitches(), self.choice.split
        tile = self.choice.tile
        if tile is None:
            raise ValueError("the tile algorithm needs a tile: take the choice from candidates()")
        c, o = s.c if s.nchw else round_up(s.cg, 4), round_up(s.og, 4)
        k = s.kh * s.kw * c
        steps = ceil_div(k, tile.bk)
        part_steps = ceil_div(steps, split)
        o_all = s.groups * o
        ldx, ldy, ldres = at.x or s.c4, at.y or s.o4, at.residual or s.o4
        inner = Epilogue() if split > 1 else self.epilogue
        defines = tile.defines | inner.defines | storage_defines(s.weights, s.halves)
        pointwise = s.pointwise and not s.nchw
        defines |= {"SPLIT": int(split > 1), "POINTWISE": int(pointwise), "BATCH": 0, "NCHW": int(s.nchw)}
        if s.nchw:
            defines["MAX_K"] = round_up(k, K_MULTIPLE)
        pointers: list[Argument] = [x, *weight_arguments(weights, s.weights, s.o)]
        if split == 1:
            pointers += [b for b in (bias, residual) if b is not None]
        target = y
        if split > 1:
            if workspace is None:
                raise ValueError(f"{self.choice.label} needs a workspace of {self.workspace_bytes} bytes")
            target = workspace
        y_offset, y_pitch = (at.y_offset, ldy) if split == 1 else (0, o_all)
        numbers = [s.m, c, o, steps, part_steps, split, round_up(k, K_MULTIPLE) * o // 4, at.x_offset, ldx]
        numbers += [y_offset, y_pitch, at.residual_offset, ldres]
        if not pointwise:
            numbers += [s.h, s.w, s.oh, s.ow, s.kh, s.kw, s.sh, s.sw, s.pt, s.pl, s.dh, s.dw]
        product = Launch(
            kernel=Kernel("conv_nhwc.cl", "conv_nhwc", tuple(sorted(defines.items()))),
            global_size=(ceil_div(o, tile.bn) * tile.threads, ceil_div(s.m, tile.bm), s.groups * split),
            local_size=(tile.threads, 1, 1),
            args=(*pointers, target, *map(np.int32, numbers), *inner.parameters),
            flops=s.flops,
            bytes=s.bytes,
        )
        if split == 1:
            return [product]
        return [product, split_reduction(s, self.epilogue, split, (target, bias, residual, y), at)]


def split_reduction(
    shape: ConvShape,
    epilogue: Epilogue,
    split: int,
    buffers: tuple[Buf, Buf | None, Buf | None, Buf],
    at: Pitches,
) -> Launch:
    """Adds the parts [split, m, channels] of a convolution: (parts, bias, residual, y), then the epilogue."""
    parts, bias, residual, y = buffers
    pointers = [parts, *(b for b in (bias, residual) if b is not None), y]
    quads = shape.groups * round_up(shape.og, 4) // 4
    numbers = [shape.m, quads, split, at.y_offset, at.y or shape.o4]
    numbers += [at.residual_offset, at.residual or shape.o4]
    defines = epilogue.defines | {"HALVES": int(shape.halves)}
    return Launch(
        kernel=Kernel("splitk.cl", "splitk_reduce", tuple(sorted(defines.items()))),
        global_size=(round_up(shape.m * quads, 64), 1, 1),
        local_size=(64, 1, 1),
        args=(*pointers, *map(np.int32, numbers), *epilogue.parameters),
        bytes=4.0 * (split + 1) * shape.m * shape.o4,
    )


def nchw_tiles(shape: ConvShape, device: DeviceTraits) -> list[Tile]:
    """Tiles that can read NCHW: whole rows of pixels at a time, and room for the table of taps."""
    table = 8 * round_up(shape.c * shape.kh * shape.kw, K_MULTIPLE)
    return [
        tile
        for tile in tiles_for(device)
        if tile.threads % tile.bm == 0 and tile.local_bytes + table <= device.local_memory_bytes
    ]


def split_options(shape: ConvShape, tile: Tile, device: DeviceTraits) -> list[int]:
    """Splits worth trying: while the groups fill less than two waves, and a part keeps at least 4 steps."""
    o = round_up(shape.og, 4)
    groups = ceil_div(shape.m, tile.bm) * ceil_div(o, tile.bn) * shape.groups
    steps = ceil_div(shape.kh * shape.kw * round_up(shape.cg, 4), tile.bk)
    options = [1]
    for split in (2, 3, 4, 6, 8, 12, 16):
        if groups * split > 3 * device.compute_units or steps < 3 * split:
            break
        # every part has work
        if ceil_div(steps, ceil_div(steps, split)) == split:
            options.append(split)
    return options
