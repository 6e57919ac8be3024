"""Winograd convolution for 3x3 filters with stride 1 (kernels/winograd.cl): F(2x2, 3x3) and F(4x4, 3x3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpu_inference.opencl.conv_shape import ConvChoice, ConvShape, Pitches, ceil_div, round_up
from gpu_inference.opencl.epilogue import Epilogue
from gpu_inference.opencl.implicit import K_MULTIPLE, product_launch
from gpu_inference.opencl.launch import Buf, Kernel, Launch
from gpu_inference.opencl.tile import tiles_for
from gpu_inference.opencl.traits import DeviceTraits
from gpu_inference.opencl.weights import is_quantised, store

_G: Final[dict[int, NDArray[np.float64]]] = {
    2: np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]),
    4: np.array(
        [
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ]
    ),
}


def supports_winograd(shape: ConvShape) -> bool:
    """3x3, stride 1, dense, and enough channels that the products outweigh the transforms.

    Transformed filters are what would be stored: integers with one scale a channel are too coarse for them.
    """
    square = (shape.kh, shape.kw, shape.sh, shape.sw, shape.dh, shape.dw) == (3, 3, 1, 1, 1, 1)
    dense = shape.groups == 1 and not shape.nchw and not is_quantised(shape.weights)
    return square and dense and min(shape.c, shape.o) >= 16


def winograd_choices(shape: ConvShape, device: DeviceTraits) -> list[ConvChoice]:
    """Both output tiles with every product tile; the vector follows from the registers of the device.

    F(4x4, 3x3) makes ten times as much of rounded weights: with halves it would be off by 0.5%.
    """
    vector = 1 if device.kind in ("gfx803", "other") else 2
    return [
        ConvChoice("winograd2" if out == 2 else "winograd4", tile=tile, vector=vector)
        for out in ((2, 4) if shape.weights == "fp32" else (2,))
        for tile in tiles_for(device)
    ]


@dataclass(frozen=True, slots=True)
class WinogradPlan:
    """See conv_shape.ConvPlan."""

    shape: ConvShape
    epilogue: Epilogue
    choice: ConvChoice
    device: DeviceTraits

    @property
    def out(self) -> int:
        """Rows and columns of an output tile."""
        return 2 if self.choice.algorithm == "winograd2" else 4

    @property
    def tiles(self) -> tuple[int, int]:
        """Tiles of an image, down and across."""
        return ceil_div(self.shape.oh, self.out), ceil_div(self.shape.ow, self.out)

    @property
    def packing(self) -> str:
        """Any product tile reads the same transformed filters."""
        return f"winograd{self.out}"

    @property
    def workspace_bytes(self) -> int:
        """Transformed input, and the products."""
        tiles = self.shape.n * self.tiles[0] * self.tiles[1]
        return 4 * (self.out + 2) ** 2 * tiles * (self.shape.c4 + self.shape.o4)

    def pack(self, weights: NDArray[np.float32]) -> NDArray[Any]:
        """[o, c, 3, 3] to G g G^T as [(out+2)^2][c padded to K_MULTIPLE][o4], computed in float64."""
        return store(weights, self.shape.weights, self._transformed)

    def _transformed(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        g = _G[self.out]
        o, c = weights.shape[:2]
        u = np.einsum("iy,ocyx,jx->ijco", g, weights.astype(np.float64), g, optimize=True)
        padded = np.zeros((len(g) ** 2, round_up(c, K_MULTIPLE), round_up(o, 4)), np.float32)
        padded[:, :c, :o] = u.reshape(-1, c, o)
        return padded.reshape(-1)

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
        """Three launches: input transform, products, output transform."""
        s, at, vector = self.shape, pitches or Pitches(), self.choice.vector
        if workspace is None or self.choice.tile is None:
            raise ValueError(
                f"{self.choice.label} needs a tile and {self.workspace_bytes} bytes of workspace"
            )
        alpha2 = (self.out + 2) ** 2
        down, across = self.tiles
        tiles = s.n * down * across
        products = alpha2 * tiles * s.c4
        common: dict[str, int | str] = {"OUT": self.out, "VN": vector, "HALVES": int(s.halves)}
        numbers = [tiles, across, down, s.c4 // vector, at.x_offset, at.x or s.c4, s.h, s.w, s.pt, s.pl]
        inputs = Launch(
            kernel=Kernel("winograd.cl", "winograd_input", tuple(sorted(common.items()))),
            global_size=(round_up(tiles * s.c4 // vector, 64), 1, 1),
            local_size=(64, 1, 1),
            args=(x, workspace, *map(np.int32, numbers)),
            bytes=s.c4 * (s.itemsize * s.n * s.h * s.w + 4.0 * alpha2 * tiles),
        )
        multiply = product_launch(
            tile=self.choice.tile,
            m=tiles,
            c=s.c4,
            o=s.o4,
            batch=alpha2,
            w_stride=round_up(s.c, K_MULTIPLE) * s.o4,
            kind=s.weights,
            x=workspace,
            weights=weights,
            y=workspace,
            y_offset=products,
        )
        numbers = [tiles, across, down, s.o4 // vector, products, at.y_offset, at.y or s.o4]
        numbers += [at.residual_offset, at.residual or s.o4, s.oh, s.ow]
        extra = [buffer for buffer in (bias, residual) if buffer is not None]
        defines = common | self.epilogue.defines
        outputs = Launch(
            kernel=Kernel("winograd.cl", "winograd_output", tuple(sorted(defines.items()))),
            global_size=(round_up(tiles * s.o4 // vector, 64), 1, 1),
            local_size=(64, 1, 1),
            args=(workspace, *extra, y, *map(np.int32, numbers), *self.epilogue.parameters),
            bytes=s.o4 * (s.itemsize * s.m + 4.0 * alpha2 * tiles),
        )
        return [inputs, multiply, outputs]
