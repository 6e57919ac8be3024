"""EfficientNet-Lite0 with its ImageNet weights: a PyTorch checkpoint to ONNX, without PyTorch."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

CLASSES: Final = 1000
#: First block of each stage that halves the image.
HALVING_BLOCKS: Final = frozenset({1, 3, 5, 11})
BLOCKS: Final = 16
EPSILON: Final = 1e-3
DTYPES: Final[dict[str, np.dtype[Any]]] = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}
MAGIC: Final = 0x1950A86A20F9469CFC6C

Array = NDArray[Any]


class _Storage:
    """Numbers that stand after the pickles; tensors are views of them."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self.array: Array = np.empty(0, dtype)

    def view(self, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
        strides_bytes = [stride * self.dtype.itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(self.array[offset:], shape, strides_bytes, writeable=False)


class _Unpickler(pickle.Unpickler):
    """Knows the three things that a checkpoint is made of, and builds nothing else."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "collections", "OrderedDict":
                return OrderedDict
            case "torch._utils", "_rebuild_tensor_v2":
                # the storages are still empty: views wait
                return lambda storage, offset, shape, strides, *_: (storage, offset, shape, strides)
            case "torch", _ if name in DTYPES:
                return DTYPES[name]
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint")

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, *_ = pid
        return self.storages.setdefault(key, _Storage(dtype))


def read_checkpoint(path: Path) -> dict[str, Array]:
    """Read the format that PyTorch wrote before 1.6: five pickles, then the storages in the last's order.

    Args:
        path: of the checkpoint. Nothing in it is run.

    Returns:
        The tensors by name.

    Raises:
        ValueError: it is another kind of file.
        pickle.UnpicklingError: it holds other things than tensors.
    """
    with path.open("rb") as file:
        if _Unpickler(file).load() != MAGIC:
            raise ValueError(f"{path.name} is not a checkpoint of PyTorch before 1.6")
        for _ in ("protocol version", "sizes of the writer's types"):
            _Unpickler(file).load()
        unpickler = _Unpickler(file)
        tensors = unpickler.load()
        for key in _Unpickler(file).load():
            storage = unpickler.storages[key]
            count = int.from_bytes(file.read(8), "little")
            storage.array = np.frombuffer(file.read(count * storage.dtype.itemsize), storage.dtype)
    return {name: storage.view(*where) for name, (storage, *where) in tensors.items()}


class _Builder:
    def __init__(self, weights: Mapping[str, Array]) -> None:
        self.weights = weights
        self.nodes: list[Any] = []
        self.initializers = [
            numpy_helper.from_array(np.float32(0), "zero"),
            numpy_helper.from_array(np.float32(6), "six"),
        ]

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def weight(self, name: str) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(self.weights[name]), name))
        return name

    def conv_norm(self, x: str, conv: str, norm: str, stride: int = 1) -> str:
        """Convolution and batch norm; the odd pixel of padding is at the end, as in TensorFlow."""
        kernel = self.weights[f"{conv}.weight"]
        group = kernel.shape[0] if conv.endswith("_depthwise_conv") else 1
        x = self.add(
            "Conv", x, self.weight(f"{conv}.weight"), auto_pad="SAME_UPPER", group=group, strides=[stride] * 2
        )
        parameters = [
            self.weight(f"{norm}.{part}") for part in ("weight", "bias", "running_mean", "running_var")
        ]
        return self.add("BatchNormalization", x, *parameters, epsilon=EPSILON)

    def relu6(self, x: str) -> str:
        return self.add("Clip", x, "zero", "six")

    def block(self, x: str, index: int) -> str:
        prefix = f"_blocks.{index}"
        stride = 2 if index in HALVING_BLOCKS else 1
        y, channels = x, self.weights[f"{prefix}._depthwise_conv.weight"].shape[0]
        if f"{prefix}._expand_conv.weight" in self.weights:
            channels = self.weights[f"{prefix}._expand_conv.weight"].shape[1]
            y = self.relu6(self.conv_norm(y, f"{prefix}._expand_conv", f"{prefix}._bn0"))
        y = self.relu6(self.conv_norm(y, f"{prefix}._depthwise_conv", f"{prefix}._bn1", stride))
        y = self.conv_norm(y, f"{prefix}._project_conv", f"{prefix}._bn2")
        same_shape = stride == 1 and channels == self.weights[f"{prefix}._project_conv.weight"].shape[0]
        return self.add("Add", y, x) if same_shape else y


def efficientnet_lite0(weights: Mapping[str, Array]) -> bytes:
    """Build the model: x float32 [n, 3, 224, 224], (pixel - 127) / 128, to y float32 [n, 1000], logits.

    Args:
        weights: by their names in the checkpoint.

    Returns:
        An ONNX file.
    """
    builder = _Builder(weights)
    x = builder.relu6(builder.conv_norm("x", "_conv_stem", "_bn0", stride=2))
    for index in range(BLOCKS):
        x = builder.block(x, index)
    x = builder.relu6(builder.conv_norm(x, "_conv_head", "_bn1"))
    x = builder.add("Flatten", builder.add("GlobalAveragePool", x))
    x = builder.add("Gemm", x, builder.weight("_fc.weight"), builder.weight("_fc.bias"), transB=1)
    builder.nodes[-1].output[0] = "y"
    graph = helper.make_graph(
        builder.nodes,
        "efficientnet_lite0",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 224, 224])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES])],
        builder.initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())
