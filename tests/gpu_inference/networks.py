"""Networks of true architecture with random weights, small enough for a CPU: what whole-model tests run."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Network:
    """Builds an ONNX model node by node.

    Args:
        shape: of the input "x"; the first dimension is left free.
        seed: of the weights.
        opset: of the model.
    """

    def __init__(self, shape: tuple[int, ...], seed: int = 0, opset: int = 18) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.shape, self.opset = shape, opset
        self.count = 0

    def constant(self, array: np.ndarray) -> str:
        """A weight."""
        self.count += 1
        name = f"w{self.count}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def ints(self, *values: int) -> str:
        """A weight of int64."""
        return self.constant(np.asarray(values, np.int64))

    def normal(self, *shape: int, scale: float = 1.0) -> str:
        """A weight of normally distributed float32."""
        return self.constant((self.rng.standard_normal(shape) * scale).astype(np.float32))

    def add(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """A node; returns the name of its output, or all of them."""
        self.count += 1
        names = [f"t{self.count}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def conv(
        self,
        x: str,
        c: int,
        o: int,
        k: int = 1,
        stride: int = 1,
        group: int = 1,
        act: str | None = "Relu",
        norm: bool = True,
        residual: str | None = None,
    ) -> str:
        """Convolution, batch normalisation, perhaps a residual, activation."""
        w = self.normal(o, c // group, k, k, scale=1.4 / np.sqrt(c // group * k * k))
        bias = [] if norm else [self.normal(o, scale=0.1)]
        x = self.add("Conv", x, w, *bias, strides=[stride] * 2, pads=[k // 2] * 4, group=group)
        if norm:
            positive = self.constant((1 + self.rng.random(o)).astype(np.float32))
            variance = self.constant((1 + self.rng.random(o)).astype(np.float32))
            x = self.add(
                "BatchNormalization",
                x,
                positive,
                self.normal(o, scale=0.1),
                self.normal(o, scale=0.1),
                variance,
            )
        if residual is not None:
            x = self.add("Add", x, residual)
        if act == "Relu6":
            low, high = self.constant(np.float32(0)), self.constant(np.float32(6))
            return str(self.add("Clip", x, low, high))
        if act == "Silu":
            return str(self.add("Mul", x, self.add("Sigmoid", x)))
        return str(self.add(act, x)) if act else str(x)

    def linear(self, x: str, c: int, o: int) -> str:
        """Rank-free linear layer: MatMul and Add."""
        x = self.add("MatMul", x, self.normal(c, o, scale=1 / np.sqrt(c)))
        return str(self.add("Add", x, self.normal(o, scale=0.1)))

    def model(self, *outputs: str, types: tuple[int, ...] = ()) -> bytes:
        """The serialised model."""
        kinds = types or (TensorProto.FLOAT,) * len(outputs)
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *self.shape[1:]])],
            [helper.make_tensor_value_info(o, t, None) for o, t in zip(outputs, kinds, strict=True)],
            self.weights,
        )
        opsets = [helper.make_opsetid("", self.opset)]
        return bytes(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


def resnet(
    blocks: tuple[int, ...] = (2, 2, 2, 2), bottleneck: bool = False, width: int = 64, size: int = 64
) -> bytes:
    """ResNet-18 (or 50 with (3, 4, 6, 3) and bottlenecks)."""
    net = Network((1, 3, size, size))
    x = net.conv("x", 3, width, 7, 2)
    x = net.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    c = width
    for stage, count in enumerate(blocks):
        for block in range(count):
            stride = 2 if stage and not block else 1
            inner = width << stage
            o = inner * 4 if bottleneck else inner
            shortcut = x if c == o and stride == 1 else net.conv(x, c, o, 1, stride, act=None)
            if bottleneck:
                y = net.conv(x, c, inner)
                y = net.conv(y, inner, inner, 3, stride)
                x = net.conv(y, inner, o, residual=shortcut)
            else:
                y = net.conv(x, c, inner, 3, stride)
                x = net.conv(y, inner, o, 3, residual=shortcut)
            c = o
    x = net.add("GlobalAveragePool", x)
    x = net.add("Flatten", x)
    x = net.add("Gemm", x, net.normal(1000, c, scale=0.03), net.normal(1000), transB=1)
    return net.model(x)


def mobilenet_v2(size: int = 64, width: float = 1.0) -> bytes:
    """MobileNetV2: inverted residuals with depthwise convolutions."""
    net = Network((1, 3, size, size))

    def channels(n: int) -> int:
        return max(8, int(n * width + 4) // 8 * 8)

    c = channels(32)
    x = net.conv("x", 3, c, 3, 2, act="Relu6")
    plan = [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]
    for expand, out, count, first in plan:
        for block in range(count):
            o, stride, inner = channels(out), first if block == 0 else 1, c * expand
            y = net.conv(x, c, inner, act="Relu6") if expand > 1 else x
            y = net.conv(y, inner, inner, 3, stride, group=inner, act="Relu6")
            x = net.conv(y, inner, o, act=None, residual=x if stride == 1 and c == o else None)
            c = o
    x = net.conv(x, c, 1280, act="Relu6")
    x = net.add("GlobalAveragePool", x)
    x = net.add("Flatten", x)
    x = net.add("Gemm", x, net.normal(1000, 1280, scale=0.03), net.normal(1000), transB=1)
    return net.model(x)


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
