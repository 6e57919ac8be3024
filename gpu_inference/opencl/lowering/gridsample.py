"""Sampling at computed positions: AffineGrid makes them, GridSample reads there."""

from __future__ import annotations

import math
from typing import Final

from gpu_inference.graph.ir import Node
from gpu_inference.opencl.builder import Builder
from gpu_inference.opencl.lowering.per_element import element_type, per_element
from gpu_inference.opencl.lowering.registry import Unsupported, lowers

_MODES: Final = {"nearest": 0, "linear": 1, "bilinear": 1, "cubic": 2, "bicubic": 2}
_PADDINGS: Final = {"zeros": 0, "border": 1, "reflection": 2}


@lowers("GridSample")
def lower_grid_sample(node: Node, builder: Builder) -> None:
    """Images or volumes at the grid's positions."""
    shape, grid, dtype = builder.shape(0), builder.shape(1), builder.dtype(0)
    dims = len(shape) - 2
    if dtype.kind != "f" or builder.dtype(1) != dtype or dims not in (2, 3):
        raise Unsupported(
            f"GridSample of {dtype} with {dims} spatial dimensions at {builder.dtype(1)} positions"
        )
    mode = str(builder.attr("mode", "linear"))
    padding = str(builder.attr("padding_mode", "zeros"))
    positions = math.prod(grid[1:-1])
    x, g = builder.buf(0), builder.buf(1)
    y = builder.output(0, (*shape[:2], *grid[1:-1]), dtype)
    count = shape[0] * shape[1] * positions
    sizes = [1] * (3 - dims) + list(shape[2:])
    defines = [
        *element_type(dtype, "GridSample"),
        ("ALIGN", int(builder.attr("align_corners", 0))),
        ("DIMS", dims),
        ("MODE", _MODES[mode]),
        ("PADDING", _PADDINGS[padding]),
    ]
    per_element(
        builder,
        ("grid_sample.cl", "grid_sample"),
        count,
        [x, g, y, count, shape[1], positions, *sizes],
        defines,
    )


@lowers("AffineGrid")
def lower_affine_grid(node: Node, builder: Builder) -> None:
    """Positions for GridSample: an affine map of the regular grid of `size`."""
    size, dtype = builder.ints(1), builder.dtype(0)
    spatial = size[2:]
    if dtype.kind != "f" or len(spatial) not in (2, 3):
        raise Unsupported(f"AffineGrid of {dtype} with {len(spatial)} spatial dimensions")
    theta = builder.buf(0)
    y = builder.output(0, (size[0], *spatial, len(spatial)), dtype)
    count = size[0] * math.prod(spatial)
    defines = [
        *element_type(dtype, "AffineGrid"),
        ("ALIGN", int(builder.attr("align_corners", 0))),
        ("DIMS", len(spatial)),
    ]
    dhw = [1] * (3 - len(spatial)) + spatial
    per_element(builder, ("affine_grid.cl", "affine_grid"), count, [theta, y, count, *dhw], defines)
