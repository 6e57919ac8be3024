"""Operators: each module registers the functions that turn its nodes into launches."""

from gpu_inference.opencl.lowering import (
    convolution,
    elementwise,
    gridsample,
    movement,
    pooling,
    products,
    reductions,
    resize,
    scatter,
)

__all__ = [
    "convolution",
    "elementwise",
    "gridsample",
    "movement",
    "pooling",
    "products",
    "reductions",
    "resize",
    "scatter",
]
