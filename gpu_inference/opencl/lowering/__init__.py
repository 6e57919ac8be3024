"""Operators: each module registers the functions that turn its nodes into launches."""

from gpu_inference.opencl.lowering import convolution, elementwise, movement, products

__all__ = ["convolution", "elementwise", "movement", "products"]
