"""Standard networks of true architecture with random weights: what `polarstream gpu-report` measures."""

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
            low, high = self.constant(np.array(0, np.float32)), self.constant(np.array(6, np.float32))
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
