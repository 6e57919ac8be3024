"""Small networks that have what the transforms look for."""

from __future__ import annotations

import numpy as np

from gpu_inference.standard_models import Network


def chain(seed: int = 0, classes: int = 10) -> bytes:
    """Convolutions in a row, one of them depthwise, and a classifier: every channel but the first can go."""
    net = Network((1, 3, 16, 16), seed)
    x = net.conv("x", 3, 16, 3, 2)
    x = net.conv(x, 16, 16, 3, group=16, act="Silu")
    x = net.conv(x, 16, 32, act="Relu6")
    x = net.conv(x, 32, 32, 3)
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    return net.model(net.add("Gemm", x, net.normal(classes, 32, scale=0.3), net.normal(classes), transB=1))


def of_low_rank(seed: int = 0) -> bytes:
    """Each layer has few strong directions: 3x3 and 1x1 convolutions, Gemm both ways round, MatMul."""
    net = Network((1, 24, 9, 9), seed)

    def low(outputs: int, inputs: int, *window: int, rank: int = 4) -> str:
        left, right = net.rng.standard_normal((outputs, rank)), net.rng.standard_normal((rank, inputs))
        core = net.rng.standard_normal((rank, rank, *window)) / rank
        array = np.einsum("or,rs...,si->oi...", left, core, right) / np.sqrt(inputs * max(1, np.prod(window)))
        return net.constant(array.astype(np.float32))

    x = net.add("Conv", "x", low(32, 24, 3, 3), net.normal(32), auto_pad="SAME_UPPER", strides=[2, 2])
    x = net.add("Relu", x)
    x = net.add("Conv", x, low(40, 32, 1, 1), net.normal(40), strides=[2, 2])
    x = net.add("Conv", x, low(24, 40, 3, 3), dilations=[2, 2], pads=[2, 2, 2, 2])
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    x = net.add("Gemm", x, low(30, 24), net.normal(30), transB=1, alpha=0.5)
    x = net.add("Gemm", net.add("Tanh", x), low(30, 40), beta=2.0)
    return net.model(net.add("MatMul", x, low(40, 20)))


def tiny(seed: int = 0) -> bytes:
    """A convolution and a classifier: few kernels to build."""
    net = Network((1, 3, 8, 8), seed)
    x = net.add("Flatten", net.add("GlobalAveragePool", net.conv("x", 3, 32, 3, norm=False)))
    return net.model(net.add("Gemm", x, net.normal(48, 32, scale=0.3), net.normal(48), transB=1))


def residual(seed: int = 0) -> bytes:
    """One convolution inside a residual block, whose channels can go; all others meet the sum."""
    net = Network((1, 3, 12, 12), seed)
    x = net.conv("x", 3, 16, 3)
    y = net.conv(x, 16, 24, 3)
    return net.model(net.conv(y, 24, 16, 3, residual=x))
