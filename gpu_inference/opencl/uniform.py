"""1x1 convolutions with wave-uniform weights (kernels/conv_uniform.cl): scalar registers on GCN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpu_inference.opencl.conv_shape import ConvChoice, ConvShape, Pitches, ceil_div, round_up
from gpu_inference.opencl.epilogue import Epilogue
from gpu_inference.opencl.implicit import split_reduction
from gpu_inference.opencl.launch import Argument, Buf, Kernel, Launch
from gpu_inference.opencl.traits import DeviceKind, DeviceTraits
from gpu_inference.opencl.weights import storage_defines, store, weight_arguments

WAVE: Final = 64
# Steps of four channels that a lane reads at once: a cache line of 64 bytes, which would be gone before its
# next part is read. With one, clang also spills scalar registers for blocks of 32.
DEPTH: Final = 4

# (pixels, output channels) of a lane. gfx803 by its compiler: 35 VGPRs and 7 waves, 51 and 4, 72 and 3, all
# with 99 to 100% multiply-adds in the loop. Elsewhere such weights are vector loads: more pixels share them.
_SHARES: Final[dict[DeviceKind, tuple[tuple[int, int], ...]]] = {
    "gfx803": ((1, 16), (1, 32), (2, 16)),
    "other": ((1, 16), (1, 32), (2, 16)),
    "nvidia": ((1, 32), (2, 16), (4, 16)),
    "cpu": (),
}


def supports_uniform(shape: ConvShape) -> bool:
    """Rows of x must be rows of the product, and weights floats.

    The kernel reads other types too, but a weight that serves one or two pixels of a lane isn't worth turning
    into a float: on gfx803 50% of the loop would be multiply-adds with halves, 33% with int8, 22% with int4,
    against 94% of the tiled kernel.
    """
    return shape.pointwise and shape.groups == 1 and not shape.nchw and shape.weights == "fp32"


def uniform_choices(shape: ConvShape, device: DeviceTraits) -> list[ConvChoice]:
    """Shares of a lane, and splits where there are few wavefronts."""
    found = []
    for px, vector in _SHARES[device.kind]:
        groups = ceil_div(shape.m, WAVE * px) * ceil_div(shape.o4, vector)
        steps = ceil_div(shape.c4, 4 * DEPTH)
        for split in (1, 2, 4, 8):
            part = ceil_div(steps, split)
            if split > 1 and (groups * split > 16 * device.compute_units or part < 4):
                break
            if ceil_div(steps, part) == split:
                found.append(ConvChoice("uniform", split=split, px=px, vector=vector))
    return found


@dataclass(frozen=True, slots=True)
class UniformPlan:
    """See conv_shape.ConvPlan."""

    shape: ConvShape
    epilogue: Epilogue
    choice: ConvChoice
    device: DeviceTraits

    @property
    def packing(self) -> str:
        """Blocks of output channels."""
        return f"uniform{self.choice.vector}"

    @property
    def workspace_bytes(self) -> int:
        """The parts of a split inner dimension."""
        return 4 * self.choice.split * self.shape.m * self.shape.o4 if self.choice.split > 1 else 0

    def pack(self, weights: NDArray[np.float32]) -> NDArray[Any]:
        """[o, c, 1, 1] to [blocks][c padded to whole steps][ON], zeros past o and c."""
        return store(weights, self.shape.weights, self._lay_out)

    def _lay_out(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        on = self.choice.vector
        o, c = weights.shape[:2]
        blocks, rows = ceil_div(o, on), round_up(c, 4)
        # the last step of the last block reads on past its channels
        out = np.zeros(blocks * rows * on + 4 * DEPTH * on, np.float32)
        padded = np.zeros((blocks * on, rows), np.float32)
        padded[:o, :c] = weights.reshape(o, c)
        out[: blocks * rows * on] = padded.reshape(blocks, on, rows).transpose(0, 2, 1).reshape(-1)
        return out

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
        s, at, choice = self.shape, pitches or Pitches(), self.choice
        split, target = choice.split, y
        inner = Epilogue() if split > 1 else self.epilogue
        pointers: list[Argument] = [x, *weight_arguments(weights, s.weights, s.o)]
        if split == 1:
            pointers += [b for b in (bias, residual) if b is not None]
        elif workspace is None:
            raise ValueError(f"{choice.label} needs a workspace of {self.workspace_bytes} bytes")
        else:
            target = workspace
        defines = inner.defines | storage_defines(s.weights, s.halves)
        defines |= {
            "DEPTH": DEPTH,
            "ON": choice.vector,
            "PX": choice.px,
            "SPLIT": int(split > 1),
        }
        part = ceil_div(ceil_div(s.c4, 4 * DEPTH), split) * 4 * DEPTH
        numbers = [s.m, s.c4, s.o4, part, at.x_offset, at.x or s.c4]
        numbers += [at.y_offset, at.y or s.o4] if split == 1 else [0, s.o4]
        numbers += [at.residual_offset, at.residual or s.o4]
        product = Launch(
            kernel=Kernel("conv_uniform.cl", "conv_uniform", tuple(sorted(defines.items()))),
            global_size=(ceil_div(s.m, WAVE * choice.px) * WAVE, ceil_div(s.o4, choice.vector), split),
            local_size=(WAVE, 1, 1),
            args=(*pointers, target, *map(np.int32, numbers), *inner.parameters),
            flops=s.flops,
            bytes=s.bytes,
        )
        if split == 1:
            return [product]
        return [product, split_reduction(s, self.epilogue, split, (target, bias, residual, y), at)]
