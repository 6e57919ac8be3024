"""Convolutions: which algorithms can compute a shape, and the plan of one of them.

    shape = ConvShape(n=8, h=56, w=56, c=64, o=64, kh=3, kw=3, pt=1, pl=1, pb=1, pr=1)
    plan = plan_conv(shape, relu(), device)
    packed = plan.pack(weights)               # upload once; share between plans with the same plan.packing
    launches = plan.launches(x, packed_buffer, bias_buffer, None, y, workspace)

`choice=None` takes the cost model's; the tuner passes what it measured to be best.
"""

from __future__ import annotations

from gpu_inference.opencl.conv_shape import (
    Algorithm,
    ConvChoice,
    ConvPlan,
    ConvShape,
    Pitches,
    pack_bias,
)
from gpu_inference.opencl.cost_model import conv_cost_us
from gpu_inference.opencl.depthwise import DepthwisePlan, depthwise_choices, supports_depthwise
from gpu_inference.opencl.direct import DirectPlan, direct_choices
from gpu_inference.opencl.epilogue import Epilogue
from gpu_inference.opencl.implicit import TilePlan, nchw_tiles, split_options, supports_tile
from gpu_inference.opencl.tile import tiles_for
from gpu_inference.opencl.traits import DeviceTraits
from gpu_inference.opencl.uniform import UniformPlan, supports_uniform, uniform_choices
from gpu_inference.opencl.winograd import WinogradPlan, supports_winograd, winograd_choices

__all__ = [
    "Algorithm",
    "ConvChoice",
    "ConvPlan",
    "ConvShape",
    "Pitches",
    "candidates",
    "pack_bias",
    "plan_conv",
]


def candidates(shape: ConvShape, device: DeviceTraits) -> list[ConvChoice]:
    """Every choice that the device is offered for the shape; never empty, in no particular order."""
    if supports_depthwise(shape):
        return depthwise_choices(shape, device)
    direct = direct_choices(shape, device)
    if device.is_cpu or not supports_tile(shape) or (shape.groups > 1 and shape.og < 16):
        return direct
    if shape.nchw:
        return [ConvChoice("stem", tile=tile) for tile in nchw_tiles(shape, device)]
    choices = [
        ConvChoice("tile", tile=tile, split=split)
        for tile in tiles_for(device)
        for split in split_options(shape, tile, device)
    ]
    if supports_winograd(shape):
        choices += winograd_choices(shape, device)
    if supports_uniform(shape):
        choices += uniform_choices(shape, device)
    return choices


def default_choice(shape: ConvShape, device: DeviceTraits) -> ConvChoice:
    """The candidate with the lowest predicted time."""
    return min(candidates(shape, device), key=lambda choice: conv_cost_us(shape, choice, device))


def plan_conv(
    shape: ConvShape, epilogue: Epilogue, device: DeviceTraits, choice: ConvChoice | None = None
) -> ConvPlan:
    """The plan of a convolution.

    Args:
        shape: concrete sizes.
        epilogue: what is fused into it.
        device: which kernels and parameters are allowed.
        choice: one of `candidates(shape, device)`; None for the cost model's.

    Raises:
        ValueError: the shape is empty or its groups don't divide its channels.
    """
    if min(shape.n, shape.oh, shape.ow, shape.c, shape.o) < 1:
        raise ValueError(f"a convolution without output: {shape}: handle empty tensors before planning")
    if shape.c % shape.groups or shape.o % shape.groups:
        raise ValueError(f"groups {shape.groups} don't divide channels {shape.c} -> {shape.o}: fix the model")
    choice = choice or default_choice(shape, device)
    match choice.algorithm:
        case "winograd2" | "winograd4":
            return WinogradPlan(shape, epilogue, choice, device)
        case "tile" | "stem":
            return TilePlan(shape, epilogue, choice, device)
        case "depthwise":
            return DepthwisePlan(shape, epilogue, choice, device)
        case "uniform":
            return UniformPlan(shape, epilogue, choice, device)
        case "direct":
            return DirectPlan(shape, epilogue, choice, device)
