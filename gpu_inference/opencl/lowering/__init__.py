"""Operators: each module registers the functions that turn its nodes into launches."""

from gpu_inference.opencl.lowering import (
    columns,
    convolution,
    detection,
    elementwise,
    gridsample,
    movement,
    normalization,
    pooling,
    products,
    quantization,
    recurrent,
    reductions,
    resize,
    scatter,
    softmax,
    topk,
)

__all__ = [
    "columns",
    "convolution",
    "detection",
    "elementwise",
    "gridsample",
    "movement",
    "normalization",
    "pooling",
    "products",
    "quantization",
    "recurrent",
    "reductions",
    "resize",
    "scatter",
    "softmax",
    "topk",
]
