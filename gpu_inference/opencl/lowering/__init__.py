"""Operators: each module registers the functions that turn its nodes into launches."""

from gpu_inference.opencl.lowering import convolution, elementwise, movement, products
from gpu_inference.opencl.lowering import gridsample, resize  # noqa: E402

__all__ = ["convolution", "elementwise", "movement", "products"]
