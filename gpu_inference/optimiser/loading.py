"""Models in, models out: one opset to work in, and what a model says of its own storage."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, version_converter

from gpu_inference.errors import ModelError
from gpu_inference.graph.exporter import checked
from gpu_inference.graph.importer import import_graph, read_model
from gpu_inference.graph.ir import Graph, Node

#: The first with 4-bit integers; every transform makes it, so that they can follow each other.
OPSET: Final = 21
_OLDEST_KEPT: Final = 18
_IR_VERSION: Final = 10
#: Types of weights, whole or quantised; integers of 64 bits are shapes and indices.
_PARAMETERS: Final = frozenset(
    (
        TensorProto.FLOAT,
        TensorProto.DOUBLE,
        TensorProto.FLOAT16,
        TensorProto.BFLOAT16,
        TensorProto.INT8,
        TensorProto.UINT8,
        TensorProto.INT4,
        TensorProto.UINT4,
    )
)


def load_model(model: str | os.PathLike[str] | bytes) -> ModelProto:
    """A model in an opset that every transform knows.

    Raises:
        ModelError: it is broken, or so old that onnx can't convert it.
    """
    proto = read_model(model)
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
    import_graph(proto)  # tells what is wrong better than the converter
    if opset < OPSET:
        try:
            proto = version_converter.convert_version(proto, OPSET)
        except Exception as error:
            if opset < _OLDEST_KEPT:
                raise ModelError(
                    f"opset {opset} can't be converted to {OPSET} ({error}): "
                    f"export the model with opset {_OLDEST_KEPT} or newer"
                ) from error
    proto.ir_version = max(proto.ir_version, _IR_VERSION)
    return checked(proto)


def to_bytes(model: ModelProto) -> bytes:
    """The file."""
    return bytes(model.SerializeToString())


def parameter_counts(model: ModelProto) -> tuple[int, int]:
    """How many weights there are, and how many of them are not zero."""
    total = nonzero = 0
    for tensor in model.graph.initializer:
        if tensor.data_type in _PARAMETERS:
            array = onnx.numpy_helper.to_array(tensor)
            total += array.size
            nonzero += int(np.count_nonzero(array.astype(np.float32)))
    for sparse in model.graph.sparse_initializer:
        total += int(np.prod(sparse.dims))
        nonzero += int(np.prod(sparse.values.dims))
    return total, nonzero


@dataclass(frozen=True, slots=True)
class Weight:
    """The constant of a convolution or product.

    Attributes:
        name: of the constant.
        node: the first that reads it.
        axis: of the output channels.
    """

    name: str
    node: Node
    axis: int


def weights_of(graph: Graph, least: int = 64) -> Iterator[Weight]:
    """Each float32 weight of convolutions and products, once, in the order of the nodes.

    Args:
        graph: of the model.
        least: smaller ones are left out.
    """
    seen: set[str] = set()
    for node in graph.nodes:
        name = node.input(1)
        if node.domain or node.op not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or name in seen:
            continue
        array = graph.constants.get(name)
        if array is None or array.dtype != np.float32 or array.ndim < 2 or array.size < least:
            continue
        seen.add(name)
        yield Weight(name, node, _output_axis(node, array.ndim))


def _output_axis(node: Node, rank: int) -> int:
    match node.op:
        case "Conv":
            return 0
        case "Gemm":
            return 0 if node.attributes.get("transB", 0) else 1
        case "ConvTranspose":
            return 1
        case _:
            return rank - 1


def set_metadata(model: ModelProto, key: str, value: str) -> None:
    """Writes one of the model's own properties."""
    found: Any = next((entry for entry in model.metadata_props if entry.key == key), None)
    entry = model.metadata_props.add(key=key) if found is None else found
    entry.value = value
