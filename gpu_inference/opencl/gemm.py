"""Matrix products: Gemm and MatMul of row-major matrices, batched.

    shape = GemmShape(m=197, n=3072, k=768, constant_b=True)
    plan = plan_gemm(shape, Epilogue(bias=True, activation="silu"), device)
    packed = plan.pack(b)                     # only with constant_b: upload once, share by plan.packing
    launches = plan.launches(a, packed_buffer, bias, None, c, workspace)

The bias is read as bias[m * bias_strides[0] + n * bias_strides[1]], unpadded, so that every broadcast that
Gemm allows is one of (0, 1) a row, (1, 0) a column, (n, 1) a matrix, (0, 0) a scalar. beta belongs into a
constant bias, or set the residual instead (always [.., m, n]).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gpu_inference.opencl.conv_shape import ceil_div, round_up
from gpu_inference.opencl.cost_model import product_cost_us, rates_of
from gpu_inference.opencl.epilogue import Epilogue
from gpu_inference.opencl.launch import Argument, Buf, Kernel, Launch
from gpu_inference.opencl.tile import Tile, tiles_for
from gpu_inference.opencl.traits import DeviceTraits
from gpu_inference.opencl.weights import WeightType, storage_defines, store, weight_arguments, weight_bytes

GEMV_ROWS = 4


@dataclass(frozen=True, slots=True)
class GemmShape:
    """c[batch, m, n] = alpha * a[batch, m, k] b[batch, k, n], all sizes concrete, row-major.

    Attributes:
        m: rows of the result.
        n: its columns.
        k: inner dimension, at least 1.
        batch: up to three leading dimensions of the result; c is dense.
        a_strides: floats from one matrix of a to the next in each of them; 0 broadcasts.
        b_strides: the same for b.
        trans_a: a is stored as [k, m].
        trans_b: b is stored as [n, k].
        constant_b: b is a weight without batch strides; `plan.pack` lays it out.
        alpha: factor of the product.
        bias_strides: floats from one bias to the next along m and n.
        weights: how a constant b is stored on the card.
        halves: a, b where it isn't constant, residual and c are stored as float16.
    """

    m: int
    n: int
    k: int
    batch: tuple[int, ...] = ()
    a_strides: tuple[int, ...] = ()
    b_strides: tuple[int, ...] = ()
    trans_a: bool = False
    trans_b: bool = False
    constant_b: bool = False
    alpha: float = 1.0
    bias_strides: tuple[int, int] = (0, 1)
    weights: WeightType = "fp32"
    halves: bool = False

    @property
    def flops(self) -> float:
        """Multiply-adds count two."""
        return 2.0 * math.prod(self.batch) * self.m * self.n * self.k

    @property
    def bytes(self) -> float:
        """Every operand once, as if nothing were broadcast."""
        each = 2.0 if self.halves else 4.0
        b = (weight_bytes(self.weights) if self.constant_b else each) * self.k * self.n
        return math.prod(self.batch) * (each * (self.m * self.k + self.m * self.n) + b)


@dataclass(frozen=True, slots=True)
class GemmChoice:
    """How to compute a product: tile (with split parts of k), direct (CPU) or gemv (few rows)."""

    algorithm: Literal["tile", "direct", "gemv"]
    tile: Tile | None = None
    split: int = 1
    rows: int = 4
    lanes: int = 32

    @property
    def label(self) -> str:
        """Short and unique among the candidates of a shape."""
        if self.algorithm == "tile" and self.tile is not None:
            return f"tile {self.tile.label}" + (f" split{self.split}" if self.split > 1 else "")
        return f"direct {self.rows}" if self.algorithm == "direct" else f"gemv {self.lanes}"


@dataclass(frozen=True, slots=True)
class GemmPlan:
    """One product, decided.

    Attributes:
        shape: what is computed.
        epilogue: and what is done to it.
        choice: how.
        device: for which device.
    """

    shape: GemmShape
    epilogue: Epilogue
    choice: GemmChoice
    device: DeviceTraits

    @property
    def packing(self) -> str:
        """Plans with the same packing and shape.weights share packed weights."""
        return "gemv" if self.choice.algorithm == "gemv" else "rows"

    @property
    def workspace_bytes(self) -> int:
        """The parts of a split inner dimension."""
        return 4 * self.choice.split * self.shape.m * self.shape.n if self.choice.split > 1 else 0

    def pack(self, b: NDArray[np.float32]) -> NDArray[Any]:
        """Constant b, float32 [k, n] ([n, k] with trans_b), as the kernel reads it: weights.store, 1-D.

        Raises:
            ValueError: the shape says that b isn't constant.
        """
        if not self.shape.constant_b:
            raise ValueError("b of this product is not constant: pass the tensor itself to launches()")
        return store(b if self.shape.trans_b else b.T, self.shape.weights, self._lay_out)

    def _lay_out(self, columns: NDArray[np.float32]) -> NDArray[np.float32]:
        rows = columns if self.choice.algorithm == "gemv" else columns.T
        out = np.zeros((rows.shape[0], round_up(rows.shape[1], 4)), np.float32)
        out[:, : rows.shape[1]] = rows
        return out.reshape(-1)

    def launches(
        self,
        a: Buf,
        b: Buf,
        bias: Buf | None,
        residual: Buf | None,
        c: Buf,
        workspace: Buf | None = None,
    ) -> list[Launch]:
        """The launches in order.

        Args:
            a: float [batch, m, k] ([batch, k, m] with trans_a).
            b: what `pack` made, or the tensor where b isn't constant.
            bias: unpadded floats, exactly when epilogue.bias.
            residual: float [batch, m, n], exactly when epilogue.residual isn't "none".
            c: float [batch, m, n]; may be the residual's buffer, must not be a's or b's.
            workspace: at least workspace_bytes; needed when that isn't 0.
        """
        extra = [buffer for buffer in (bias, residual) if buffer is not None]
        if self.choice.algorithm == "gemv":
            return [self._gemv(a, b, extra, c)]
        if self.choice.algorithm == "direct":
            return [self._direct(a, b, extra, c)]
        return self._tile(a, b, extra, c, workspace)

    def _numbers(self) -> list[int]:
        s = self.shape
        lda = s.m if s.trans_a else s.k
        trans_b = s.trans_b and not s.constant_b
        ldb = s.k if trans_b else round_up(s.n, 4) if s.constant_b else s.n
        batch = (1,) * (3 - len(s.batch)) + s.batch
        a = (0,) * (3 - len(s.batch)) + s.a_strides
        b = (0, 0, 0) if s.constant_b else (0,) * (3 - len(s.batch)) + s.b_strides
        return [s.m, s.n, s.k, lda, ldb, batch[1], batch[2], *a, *b]

    def _operands(self) -> dict[str, int | str]:
        s = self.shape
        trans = {"TRANS_A": int(s.trans_a), "TRANS_B": int(s.trans_b and not s.constant_b)}
        return {**trans, "PACKED": int(s.constant_b), **storage_defines(s.weights, s.halves)}

    def _b(self, b: Buf) -> tuple[Argument, ...]:
        return weight_arguments(b, self.shape.weights, self.shape.n)

    def _tile(self, a: Buf, b: Buf, extra: list[Buf], c: Buf, workspace: Buf | None) -> list[Launch]:
        s, tile, split = self.shape, self.choice.tile, self.choice.split
        if tile is None:
            raise ValueError("the tile algorithm needs a tile: take the choice from candidates()")
        steps = ceil_div(s.k, tile.bk)
        inner = Epilogue() if split > 1 else self.epilogue
        numbers = self._numbers()
        row_bias = s.bias_strides[1] == 1
        defines = tile.defines | inner.defines | self._operands()
        defines |= {
            "SPLIT": int(split > 1),
            "VEC_A": int(all(v % 4 == 0 for v in (numbers[3], *s.a_strides))),
            "VEC_B": int(s.constant_b or all(v % 4 == 0 for v in (numbers[4], *s.b_strides))),
            "VEC_C": int(s.n % 4 == 0 and (not row_bias or s.bias_strides[0] % 4 == 0)),
            "BIAS_ROW": int(row_bias),
        }
        exact = s.m % tile.bm == s.n % tile.bn == s.k % tile.bk == 0
        defines["EXACT"] = int(exact and defines["VEC_A"] == defines["VEC_B"] == 1)
        target = c
        if split > 1:
            if workspace is None:
                raise ValueError(f"{self.choice.label} needs a workspace of {self.workspace_bytes} bytes")
            target = workspace
        numbers += [ceil_div(steps, split), *s.bias_strides]
        pointers = [a, *self._b(b), *(extra if split == 1 else []), target]
        batch = math.prod(s.batch)
        product = Launch(
            kernel=Kernel("gemm.cl", "gemm", tuple(sorted(defines.items()))),
            global_size=(
                ceil_div(s.n, tile.bn) * tile.threads,
                ceil_div(s.m, tile.bm),
                batch * split,
            ),
            local_size=(tile.threads, 1, 1),
            args=(*pointers, *map(np.int32, numbers), np.float32(s.alpha), *inner.parameters),
            flops=s.flops,
            bytes=s.bytes,
        )
        if split == 1:
            return [product]
        numbers = [s.m, s.n // 4, split, 0, s.n, 0, s.n]
        endings = self.epilogue.defines | {"HALVES": int(s.halves)}
        reduce = Launch(
            kernel=Kernel("splitk.cl", "splitk_reduce", tuple(sorted(endings.items()))),
            global_size=(round_up(s.m * s.n // 4, 64), 1, 1),
            local_size=(64, 1, 1),
            args=(target, *extra, c, *map(np.int32, numbers), *self.epilogue.parameters),
            bytes=4.0 * (split + 1) * s.m * s.n,
        )
        return [product, reduce]

    def _direct(self, a: Buf, b: Buf, extra: list[Buf], c: Buf) -> Launch:
        s, rows = self.shape, self.choice.rows
        vector = 16 if self.device.simd_width >= 16 else 8
        defines = self.epilogue.defines | self._operands() | {"PM": rows, "VN": vector}
        numbers = [*self._numbers(), *s.bias_strides]
        return Launch(
            kernel=Kernel("gemm_direct.cl", "gemm_direct", tuple(sorted(defines.items()))),
            global_size=(ceil_div(s.m, rows), ceil_div(s.n, 2 * vector), math.prod(s.batch)),
            local_size=(1, 1, 1),
            args=(
                a,
                *self._b(b),
                *extra,
                c,
                *map(np.int32, numbers),
                np.float32(s.alpha),
                *self.epilogue.parameters,
            ),
            flops=s.flops,
            bytes=s.bytes,
        )

    def _gemv(self, a: Buf, b: Buf, extra: list[Buf], c: Buf) -> Launch:
        s, lanes = self.shape, self.choice.lanes
        defines = self.epilogue.defines | {"ROWS": s.m, "LANES": lanes, "VEC_A": int(s.k % 4 == 0)}
        defines |= storage_defines(s.weights, s.halves)
        numbers = [s.n, s.k, *s.bias_strides]
        return Launch(
            kernel=Kernel("gemv.cl", "gemv", tuple(sorted(defines.items()))),
            global_size=(ceil_div(s.n, 256 // lanes) * 256, 1, 1),
            local_size=(256, 1, 1),
            args=(
                a,
                *self._b(b),
                *extra,
                c,
                *map(np.int32, numbers),
                np.float32(s.alpha),
                *self.epilogue.parameters,
            ),
            flops=s.flops,
            bytes=s.bytes,
        )


def candidates(shape: GemmShape, device: DeviceTraits) -> list[GemmChoice]:
    """Every choice that the device is offered for the shape; never empty."""
    if device.is_cpu:
        return [GemmChoice("direct", rows=rows) for rows in (1, 2, 4, 8) if rows < 2 * shape.m]
    few_rows = shape.m <= GEMV_ROWS and not shape.batch and shape.constant_b and not shape.trans_a
    choices = [GemmChoice("gemv", lanes=lanes) for lanes in (32, 64)] if few_rows else []
    for tile in tiles_for(device):
        choices += [GemmChoice("tile", tile=tile, split=split) for split in _splits(shape, tile, device)]
    return choices


def _splits(shape: GemmShape, tile: Tile, device: DeviceTraits) -> list[int]:
    plain = shape.alpha == 1.0 and shape.bias_strides == (0, 1) and shape.n % 4 == 0
    if shape.batch or not plain:
        return [1]
    groups = ceil_div(shape.m, tile.bm) * ceil_div(shape.n, tile.bn)
    steps = ceil_div(shape.k, tile.bk)
    options = [1]
    for split in (2, 4, 8, 16):
        if groups * split > 3 * device.compute_units or steps < 3 * split:
            break
        if ceil_div(steps, ceil_div(steps, split)) == split:
            options.append(split)
    return options


def cost_us(shape: GemmShape, choice: GemmChoice, device: DeviceTraits) -> float:
    """Predicted device time of the product computed by `choice`, µs."""
    batch, rates = math.prod(shape.batch), rates_of(device)
    if choice.algorithm == "tile" and choice.tile is not None:
        cost = product_cost_us(
            shape.m,
            shape.n,
            shape.k,
            batch,
            choice.tile,
            choice.split,
            device,
            weights=shape.weights,
            itemsize=2.0 if shape.halves else 4.0,
        )
        cost += rates.launch_us
        if choice.split > 1:
            parts = 4e-3 * shape.m * shape.n * (choice.split + 1)
            cost += parts / device.cache_gbs + rates.second_us
        return cost
    memory_us = 1e-3 * shape.bytes / device.bandwidth_gbs
    if choice.algorithm == "gemv":
        return 1.3 * memory_us + rates.launch_us + (0.1 if choice.lanes == 64 else 0.0)
    blocks = ceil_div(shape.m, choice.rows) * choice.rows
    padded = shape.flops * blocks / shape.m * (1 + 1 / choice.rows)
    return max(memory_us, 1e-3 * padded / device.peak_gflops) + rates.launch_us


def default_choice(shape: GemmShape, device: DeviceTraits) -> GemmChoice:
    """The candidate with the lowest predicted time."""
    return min(candidates(shape, device), key=lambda choice: cost_us(shape, choice, device))


def plan_gemm(
    shape: GemmShape, epilogue: Epilogue, device: DeviceTraits, choice: GemmChoice | None = None
) -> GemmPlan:
    """The plan of a product; `choice` is one of `candidates(shape, device)`, None for the cost model's.

    Raises:
        ValueError: an extent is zero, batch and strides don't match, or weights are stored that are none.
    """
    if min(shape.m, shape.n, shape.k, *shape.batch, 1) < 1:
        raise ValueError(f"an empty product {shape}: handle empty tensors before planning")
    strides = (shape.a_strides, shape.a_strides if shape.constant_b else shape.b_strides)
    if len(shape.batch) > 3 or any(len(s) != len(shape.batch) for s in strides):
        raise ValueError(
            f"batch {shape.batch} needs as many strides, at most three (a {shape.a_strides}, "
            f"b {shape.b_strides}): merge dimensions that are contiguous in both"
        )
    if shape.weights != "fp32" and not shape.constant_b:
        raise ValueError(f"b of {shape} is no weight: it is fp32, whatever the weights are stored as")
    return GemmPlan(shape, epilogue, choice or default_choice(shape, device), device)
