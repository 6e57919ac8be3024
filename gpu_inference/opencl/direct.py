"""Convolution from registers alone (kernels/conv_direct.cl): CPUs, and groups of few channels anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_inference.opencl.conv_shape import ConvChoice, ConvShape, Pitches, ceil_div, round_up
from gpu_inference.opencl.epilogue import Epilogue
from gpu_inference.opencl.launch import Buf, Kernel, Launch
from gpu_inference.opencl.traits import DeviceTraits
from gpu_inference.opencl.weights import storage_defines, store, weight_arguments


def _vectors(og: int, vector: int) -> tuple[int, int]:
    """(VN, NV): floats of a vector and vectors of a block for groups of `og` output channels."""
    vn = vector
    while vn > 4 and vn // 2 >= og:
        vn //= 2
    nv = 2 if vn == vector and vector > 4 and og > vn else 1
    return vn, nv


def _blocks(shape: ConvShape, wide: int) -> int:
    """Blocks of output channels in a group; the last group's also cover the channels that pad the tensor."""
    return ceil_div(shape.og + shape.o4 - shape.o, wide)


def direct_choices(shape: ConvShape, device: DeviceTraits) -> list[ConvChoice]:
    """Strips of pixels for the device; CPUs have 32 vector registers, GPUs want many work-items."""
    if device.is_cpu:
        vector = 16 if device.simd_width >= 16 else 8
        pixels = [px for px in (4, 6, 8, 12) if px == 4 or px < 2 * shape.ow + 2]
        return [ConvChoice("direct", px=px, vector=vector) for px in pixels]
    return [ConvChoice("direct", px=px, vector=4) for px in (1, 2, 4)]


@dataclass(frozen=True, slots=True)
class DirectPlan:
    """See conv_shape.ConvPlan."""

    shape: ConvShape
    epilogue: Epilogue
    choice: ConvChoice
    device: DeviceTraits

    @property
    def packing(self) -> str:
        """Blocks of output channels."""
        vn, nv = _vectors(self.shape.og, self.choice.vector)
        return f"direct{vn * nv}"

    @property
    def workspace_bytes(self) -> int:
        """None."""
        return 0

    def pack(self, weights: NDArray[np.float32]) -> NDArray[Any]:
        """[o, cg, kh, kw] to [groups][blocks][kh][kw][cg][NV*VN], zeros past og."""
        return store(weights, self.shape.weights, self._lay_out)

    def _lay_out(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        groups, og = self.shape.groups, self.shape.og
        vn, nv = _vectors(og, self.choice.vector)
        blocks = _blocks(self.shape, vn * nv)
        _, cg, kh, kw = weights.shape
        padded = np.zeros((groups, blocks * vn * nv, cg, kh, kw), np.float32)
        padded[:, :og] = weights.reshape(groups, og, cg, kh, kw)
        lanes = padded.reshape(groups, blocks, vn * nv, cg, kh, kw)
        return np.ascontiguousarray(lanes.transpose(0, 1, 4, 5, 3, 2)).reshape(-1)

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
        """One launch."""
        s, at = self.shape, pitches or Pitches()
        vn, nv = _vectors(s.og, self.choice.vector)
        blocks, strips, rows = _blocks(s, vn * nv), ceil_div(s.ow, self.choice.px), s.n * s.oh
        group = 1 if self.device.is_cpu else 64
        defines = self.epilogue.defines | storage_defines(s.weights, s.halves)
        defines |= {
            "VN": vn,
            "NV": nv,
            "PX": self.choice.px,
            "NCHW": int(s.nchw),
            "GROUP": group,
            "BLOCKS_FIRST": int(not self.device.is_cpu),
        }
        numbers = [rows, strips, blocks, s.groups, s.cg, s.og, s.o4, at.x_offset, at.x or s.c4]
        numbers += [at.y_offset, at.y or s.o4, at.residual_offset, at.residual or s.o4]
        numbers += [s.h, s.w, s.oh, s.ow, s.kh, s.kw, s.sh, s.sw, s.pt, s.pl, s.dh, s.dw]
        first, second = blocks * s.groups, strips * rows
        if self.device.is_cpu:
            first, second = second, first
        extra = [b for b in (bias, residual) if b is not None]
        pointers = (x, *weight_arguments(weights, s.weights, s.o), *extra, y)
        return [
            Launch(
                kernel=Kernel("conv_direct.cl", "conv_direct", tuple(sorted(defines.items()))),
                global_size=(round_up(first, group), second, 1),
                local_size=(group, 1, 1),
                args=(*pointers, *map(np.int32, numbers), *self.epilogue.parameters),
                flops=s.flops,
                bytes=s.bytes,
            )
        ]
