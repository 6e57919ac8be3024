"""The convolutions of the networks that the engine is measured on, as shapes: no weights, no framework."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpu_inference.opencl.conv_shape import ConvShape
from gpu_inference.opencl.epilogue import Epilogue, relu


@dataclass(frozen=True, slots=True)
class Layer:
    """One convolution of a network, `name` unique in it."""

    name: str
    shape: ConvShape
    epilogue: Epilogue


def _square(n: int, size: int, c: int, o: int, k: int, stride: int = 1, groups: int = 1) -> ConvShape:
    pad = k // 2
    return ConvShape(n, size, size, c, o, k, k, stride, stride, pad, pad, pad, pad, groups=groups)


def resnet50(n: int) -> list[Layer]:
    """The 53 convolutions (stride on the 3x3), batch norm folded, ReLU and residual in the epilogue."""
    stem = ConvShape(n, 224, 224, 3, 64, 7, 7, 2, 2, 3, 3, 3, 3, nchw=True)
    layers = [Layer("stem", stem, relu())]
    size, c = 56, 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
        for block in range(blocks):
            stride = 2 if block == 0 and stage > 1 else 1
            name = f"s{stage}b{block}"
            layers.append(Layer(name + "c1", _square(n, size, c, width, 1), relu()))
            layers.append(Layer(name + "c2", _square(n, size, width, width, 3, stride), relu()))
            if block == 0:
                down = _square(n, size, c, 4 * width, 1, stride)
                layers.append(Layer(name + "down", down, Epilogue(bias=True)))
            size //= stride
            last = _square(n, size, width, 4 * width, 1)
            layers.append(Layer(name + "c3", last, relu(residual="before")))
            c = 4 * width
    return layers


def mobilenet_v2(n: int) -> list[Layer]:
    """The 52 convolutions, batch norm folded, ReLU6 and residual in the epilogue."""
    stem = ConvShape(n, 224, 224, 3, 32, 3, 3, 2, 2, 1, 1, 1, 1, nchw=True)
    layers = [Layer("stem", stem, relu(6.0))]
    size, c = 112, 32
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2))
    for stage, (expand, o, blocks, first_stride) in enumerate((*stages, (6, 320, 1, 1)), 1):
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            name, hidden = f"s{stage}b{block}", c * expand
            if expand > 1:
                layers.append(Layer(name + "expand", _square(n, size, c, hidden, 1), relu(6.0)))
            layers.append(Layer(name + "dw", _square(n, size, hidden, hidden, 3, stride, hidden), relu(6.0)))
            size //= stride
            residual = "before" if stride == 1 and c == o else "none"
            layers.append(
                Layer(
                    name + "project",
                    _square(n, size, hidden, o, 1),
                    Epilogue(bias=True, residual="before" if residual == "before" else "none"),
                )
            )
            c = o
    layers.append(Layer("head", _square(n, size, c, 1280, 1), relu(6.0)))
    return layers


NETWORKS = {"resnet50": resnet50, "mobilenet_v2": mobilenet_v2}


def total_gflop(layers: list[Layer]) -> float:
    return math.fsum(layer.shape.flops for layer in layers) / 1e9
