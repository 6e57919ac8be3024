"""Smaller storage of the same weights, with the operator that makes floats of them again beside them.

Both engines turn them into floats when they load the model; ours then stores them on the card as the model's
metadata says, so that they are small there too.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
from onnx import ModelProto, SparseTensorProto, TensorProto, helper, numpy_helper

from gpu_inference.errors import ModelError
from gpu_inference.graph.exporter import checked, export_model
from gpu_inference.graph.importer import STORED_KEY, import_graph
from gpu_inference.graph.ir import Node
from gpu_inference.opencl.weights import quantise
from gpu_inference.optimiser.loading import OPSET, set_metadata, weights_of

_INTEGERS: Final = {
    kind: np.dtype(helper.tensor_dtype_to_np_dtype(number))
    for kind, number in (("int8", TensorProto.INT8), ("int4", TensorProto.INT4))
}
_LARGEST_HALF: Final = 65504.0
#: Values and indices of what isn't zero, 4 and 8 bytes, against 4 bytes of everything.
_SPARSE_BELOW: Final = 1 / 3


def store_halves(model: ModelProto) -> ModelProto:
    """Every float32 constant of 64 elements or more as float16, and a Cast."""
    graph = import_graph(model)
    casts: list[Node] = []
    for name, array in list(graph.constants.items()):
        if array.dtype != np.float32 or array.size < 64:
            continue
        stored = f"{name}:half"
        del graph.constants[name]
        graph.constants[stored] = np.clip(array, -_LARGEST_HALF, _LARGEST_HALF).astype(np.float16)
        casts.append(Node("Cast", [stored], [name], {"to": int(TensorProto.FLOAT)}, f"{name}:whole"))
    graph.nodes = [*casts, *graph.nodes]
    result = export_model(graph, model)
    set_metadata(result, STORED_KEY, "fp16")
    return result


def store_integers(model: ModelProto, kind: Literal["int8", "int4"]) -> ModelProto:
    """Weights of convolutions and products as integers, with one scale for each output channel.

    Raises:
        ModelError: the model's opset has no 4-bit integers, or there are NaN among its weights.
    """
    graph = import_graph(model)
    if kind == "int4" and graph.opset < OPSET:
        raise ModelError(f"opset {graph.opset} has no int4: export the model with opset {OPSET}")
    made: list[Node] = []
    for weight in weights_of(graph):
        array = graph.constants.pop(weight.name)
        rows = np.ascontiguousarray(np.moveaxis(array, weight.axis, 0))
        integers, scales = quantise(rows, kind, symmetric=True)
        stored, scale = f"{weight.name}:{kind}", f"{weight.name}:scale"
        graph.constants[stored] = np.moveaxis(integers, 0, weight.axis).astype(_INTEGERS[kind])
        graph.constants[scale] = scales
        made.append(
            Node(
                "DequantizeLinear",
                [stored, scale],
                [weight.name],
                {"axis": weight.axis},
                f"{weight.name}:whole",
            )
        )
    graph.nodes = [*made, *graph.nodes]
    result = export_model(graph, model)
    set_metadata(result, STORED_KEY, kind)
    return result


def store_sparse(model: ModelProto) -> ModelProto:
    """Float32 constants that are zero to more than two thirds as values and indices.

    Engines make them dense when they load the model.
    """
    result = ModelProto()
    result.CopyFrom(model)
    result.graph.ClearField("initializer")
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor) if tensor.data_type == TensorProto.FLOAT else None
        if array is None or array.size < 64 or np.count_nonzero(array) >= array.size * _SPARSE_BELOW:
            result.graph.initializer.append(tensor)
            continue
        flat = array.reshape(-1)
        places = np.flatnonzero(flat)
        if not len(places):  # onnx wants one element at least
            places = np.zeros(1, np.int64)
        values = numpy_helper.from_array(flat[places], tensor.name)
        indices = numpy_helper.from_array(places.astype(np.int64), f"{tensor.name}:places")
        result.graph.sparse_initializer.append(
            SparseTensorProto(values=values, indices=indices, dims=array.shape)
        )
    return checked(result)
