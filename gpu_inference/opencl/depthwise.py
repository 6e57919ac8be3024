"""Depthwise convolution (kernels/depthwise.cl)."""

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

# Unrolled taps x rows a work-item keeps apart: beyond it the compile time and the registers explode.
_MAX_TAPS = 49


def supports_depthwise(shape: ConvShape) -> bool:
    """One filter a channel, small enough to unroll."""
    return (
        shape.depthwise and not shape.nchw and shape.kh * shape.kw <= _MAX_TAPS and shape.dh * shape.dw <= 4
    )


def depthwise_choices(shape: ConvShape, device: DeviceTraits) -> list[ConvChoice]:
    """Pixels of a work-item: more share more input, fewer fill the device."""
    vector = 4
    if device.is_cpu:
        vector = next(v for v in (16, 8, 4) if v <= device.simd_width and shape.c4 % v == 0)
    shares: tuple[tuple[int, int], ...] = ((1, 1), (1, 2), (2, 2), (1, 4), (2, 4))
    if device.is_cpu:
        shares = ((1, 4), (2, 4), (1, 7))
    if shape.kh * shape.kw > 9:
        shares = ((1, 1), (1, 2), (1, 4))
    return [ConvChoice("depthwise", px=px, py=py, vector=vector) for py, px in shares]


@dataclass(frozen=True, slots=True)
class DepthwisePlan:
    """See conv_shape.ConvPlan."""

    shape: ConvShape
    epilogue: Epilogue
    choice: ConvChoice
    device: DeviceTraits

    @property
    def packing(self) -> str:
        """Any share of pixels reads the same weights."""
        return "depthwise"

    @property
    def workspace_bytes(self) -> int:
        """None."""
        return 0

    def pack(self, weights: NDArray[np.float32]) -> NDArray[Any]:
        """[c, 1, kh, kw] to [kh][kw][c4]."""
        return store(weights, self.shape.weights, self._lay_out)

    def _lay_out(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        c, _, kh, kw = weights.shape
        out = np.zeros((kh, kw, round_up(c, 4)), np.float32)
        out[..., :c] = weights[:, 0].transpose(1, 2, 0)
        return out.reshape(-1)

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
        s, at, choice = self.shape, pitches or Pitches(), self.choice
        vectors = s.c4 // choice.vector
        strips_x, strips_y = ceil_div(s.ow, choice.px), ceil_div(s.oh, choice.py)
        work = vectors * strips_x
        group = 64
        if self.device.is_cpu:
            group = vectors if vectors <= 32 else 8
        defines = self.epilogue.defines | storage_defines(s.weights, s.halves)
        defines |= {
            "VN": choice.vector,
            "PX": choice.px,
            "PY": choice.py,
            "KH": s.kh,
            "KW": s.kw,
            "SH": s.sh,
            "SW": s.sw,
            "DH": s.dh,
            "DW": s.dw,
            "GROUP": group,
        }
        numbers = [vectors, strips_x, strips_y, at.x_offset, at.x or s.c4, at.y_offset, at.y or s.o4]
        numbers += [at.residual_offset, at.residual or s.o4, s.h, s.w, s.oh, s.ow, s.pt, s.pl]
        extra = [b for b in (bias, residual) if b is not None]
        pointers = (x, *weight_arguments(weights, s.weights, s.o), *extra, y)
        return [
            Launch(
                kernel=Kernel("depthwise.cl", "depthwise", tuple(sorted(defines.items()))),
                global_size=(round_up(work, group), strips_y * s.n, 1),
                local_size=(group, 1, 1),
                args=(*pointers, *map(np.int32, numbers), *self.epilogue.parameters),
                flops=s.flops,
                bytes=s.bytes,
            )
        ]
