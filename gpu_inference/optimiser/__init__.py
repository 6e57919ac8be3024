"""Smaller and faster models: transforms from ONNX to ONNX, what they cost, and a search over them."""

from gpu_inference.optimiser.loading import load_model, to_bytes
from gpu_inference.optimiser.measure import Judge, Measured, Target, target_of
from gpu_inference.optimiser.recipe import TRANSFORMS, USUAL, Recipe, parse_recipe
from gpu_inference.optimiser.samples import Samples, generated_samples, given_samples

__all__ = [
    "TRANSFORMS",
    "USUAL",
    "Judge",
    "Measured",
    "Recipe",
    "Samples",
    "Target",
    "generated_samples",
    "given_samples",
    "load_model",
    "parse_recipe",
    "target_of",
    "to_bytes",
]
