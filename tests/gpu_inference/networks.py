"""More networks of true architecture with random weights: what whole-model tests run on a CPU."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from gpu_inference.standard_models import Network


def squeezenet(size: int = 64) -> bytes:
    """SqueezeNet 1.1: fire modules, concatenations."""
    net = Network((1, 3, size, size))
    x = net.conv("x", 3, 64, 3, 2, norm=False)
    c = 64
    fires = [
        (16, 64),
        (16, 64),
        (0, 0),
        (32, 128),
        (32, 128),
        (0, 0),
        (48, 192),
        (48, 192),
        (64, 256),
        (64, 256),
    ]
    x = net.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2])
    for squeeze, expand in fires:
        if not squeeze:
            x = net.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2])
            continue
        s = net.conv(x, c, squeeze, norm=False)
        left = net.conv(s, squeeze, expand, norm=False)
        right = net.conv(s, squeeze, expand, 3, norm=False)
        x, c = net.add("Concat", left, right, axis=1), 2 * expand
    x = net.conv(x, c, 1000, norm=False)
    x = net.add("GlobalAveragePool", x)
    return net.model(net.add("Softmax", net.add("Flatten", x), axis=1))


def unet(size: int = 48, width: int = 12) -> bytes:
    """A small U-Net: skip connections, transposed convolutions, odd channel counts."""
    net = Network((1, 3, size, size))
    skips, x, c = [], "x", 3
    for level in range(3):
        o = width << level
        x = net.conv(net.conv(x, c, o, 3), o, o, 3)
        skips.append((x, o))
        x, c = net.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), o
    x = net.conv(x, c, 2 * c, 3)
    c *= 2
    for skip, o in reversed(skips):
        x = net.add("ConvTranspose", x, net.normal(c, o, 2, 2, scale=0.2), net.normal(o), strides=[2, 2])
        x = net.add("Concat", x, skip, axis=1)
        x, c = net.conv(net.conv(x, 2 * o, o, 3), o, o, 3), o
    x = net.conv(x, c, 2, norm=False, act=None)
    return net.model(net.add("Softmax", x, axis=1))


def vit_block(tokens: int = 50, width: int = 96, heads: int = 4) -> bytes:
    """One transformer block: layer norm, attention by hand, GELU by hand."""
    net = Network((1, tokens, width))

    def norm(x: str) -> str:
        return str(net.add("LayerNormalization", x, net.normal(width), net.normal(width), axis=-1))

    h = norm("x")
    q, k, v = (
        net.add(
            "Transpose",
            net.add("Reshape", net.linear(h, width, width), net.ints(0, tokens, heads, -1)),
            perm=p,
        )
        for p in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
    )
    scale = net.constant(np.float32((width // heads) ** -0.5))
    a = net.add("Softmax", net.add("Mul", net.add("MatMul", q, k), scale), axis=-1)
    y = net.add("Transpose", net.add("MatMul", a, v), perm=[0, 2, 1, 3])
    y = net.linear(net.add("Reshape", y, net.ints(0, tokens, width)), width, width)
    x = net.add("Add", "x", y)
    h = net.linear(norm(x), width, 4 * width)
    gate = net.add("Erf", net.add("Div", h, net.constant(np.float32(2**0.5))))
    gate = net.add("Add", gate, net.constant(np.float32(1)))
    h = net.add("Mul", net.add("Mul", h, gate), net.constant(np.float32(0.5)))
    return net.model(net.add("Add", x, net.linear(h, 4 * width, width)))


def lstm_autoencoder(steps: int = 12, features: int = 3, hidden: int = 16) -> bytes:
    """An LSTM encoder and decoder around a bottleneck."""
    net = Network((1, steps, features))
    x = net.add("Transpose", "x", perm=[1, 0, 2])
    for inputs, size in ((features, hidden), (hidden, 4), (4, hidden)):
        args = [net.normal(1, 4 * size, n, scale=0.3) for n in (inputs, size)]
        y, _, _ = net.add("LSTM", x, *args, net.normal(1, 8 * size, scale=0.1), outputs=3, hidden_size=size)
        x = net.add("Squeeze", y, net.ints(1))
    y = net.linear(net.add("Transpose", x, perm=[1, 0, 2]), hidden, features)
    return net.model(y)


def detector(size: int = 64, classes: int = 5) -> bytes:
    """A YOLO-like head: strided convolutions with SiLU, upsampling, boxes from a grid, NMS."""
    net = Network((1, 3, size, size))
    x = net.conv("x", 3, 16, 3, 2, act="Silu")
    x = net.conv(x, 16, 32, 3, 2, act="Silu")
    deep = net.conv(x, 32, 64, 3, 2, act="Silu")
    up = net.conv(deep, 64, 32, act="Silu")
    up = net.add("Resize", up, "", net.constant(np.float32([1, 1, 2, 2])), mode="nearest")
    x = net.conv(net.add("Concat", up, x, axis=1), 64, 32, 3, act="Silu")
    head = net.conv(x, 32, 4 + classes, norm=False, act=None)
    cells = (size // 4) ** 2
    flat = net.add("Reshape", head, net.ints(0, 4 + classes, cells))
    parts = net.add("Split", flat, net.ints(4, classes), outputs=2, axis=1)
    side = size // 4
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), 0).reshape(1, 2, cells).astype(np.float32)
    centre, extent = net.add("Split", net.add("Sigmoid", parts[0]), net.ints(2, 2), outputs=2, axis=1)
    centre = net.add("Mul", net.add("Add", centre, net.constant(grid)), net.constant(np.float32(4)))
    extent = net.add("Mul", extent, net.constant(np.float32(24)))
    boxes = net.add("Transpose", net.add("Concat", centre, extent, axis=1), perm=[0, 2, 1])
    scores = net.add("Sigmoid", parts[1])
    limits = [net.ints(10), net.constant(np.float32([0.5])), net.constant(np.float32([0.6]))]
    chosen = net.add("NonMaxSuppression", boxes, scores, *limits, center_point_box=1)
    return net.model(boxes, scores, chosen, types=(TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT64))
