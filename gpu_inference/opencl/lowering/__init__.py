"""Operators: each module registers the functions that turn its nodes into launches."""

from gpu_inference.opencl.lowering import (
    convolution,
    detection,
    elementwise,
    gridsample,
    movement,
    pooling,
    products,
    reductions,
    resize,
    scatter,
    topk,
)

__all__ = [
    "convolution",
    "detection",
    "elementwise",
    "gridsample",
    "movement",
    "pooling",
    "products",
    "reductions",
    "resize",
    "scatter",
    "topk",
]
