"""ONNX protobuf to `Graph`: checks, decoding, and old operator versions rewritten to the newest form."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from gpu_inference.errors import ModelError
from gpu_inference.graph.ir import Array, Graph, Node, TensorInfo

MIN_OPSET: Final = 1
MAX_OPSET: Final = 25
#: Of the model's properties, the one that the optimiser writes: the type of weights to store on a device.
STORED_KEY: Final = "polarstream.weights"

# Attributes that later opsets made inputs: operator -> (attribute, input index, dtype of the tensor).
_ATTRIBUTE_TO_INPUT: Final[dict[str, tuple[tuple[str, int, type], ...]]] = {
    "Squeeze": (("axes", 1, np.int64),),
    "Unsqueeze": (("axes", 1, np.int64),),
    "Slice": (("starts", 1, np.int64), ("ends", 2, np.int64), ("axes", 3, np.int64)),
    "Pad": (("pads", 1, np.int64), ("value", 2, np.float32)),
    "Clip": (("min", 1, np.float32), ("max", 2, np.float32)),
    "Split": (("split", 1, np.int64),),
    "TopK": (("k", 1, np.int64),),
    "Upsample": (("scales", 1, np.float32),),
    **{
        f"Reduce{kind}": (("axes", 1, np.int64),)
        for kind in ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
    },
}


def read_model(model: str | os.PathLike[str] | bytes) -> ModelProto:
    """Parses a model, with its external data where it is a file.

    Raises:
        ModelError: the file is missing or isn't an ONNX model.
    """
    try:
        if isinstance(model, bytes):
            return onnx.load_model_from_string(model)
        path = Path(model)
        if not path.is_file():
            raise ModelError(f"no model file {str(path)!r}: check the path")
        return onnx.load_model(path)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"not an ONNX model ({error}): export it again, or check that it is whole"
        ) from error


def import_graph(model: ModelProto) -> Graph:
    """The graph of a parsed model.

    Raises:
        ModelError: its opset is not supported, or it is inconsistent.
    """
    opsets = {
        entry.domain if entry.domain != "ai.onnx" else "": entry.version for entry in model.opset_import
    }
    opset = opsets.get("", MAX_OPSET)
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise ModelError(
            f"opset {opset} is outside {MIN_OPSET} to {MAX_OPSET}: convert the model with "
            "onnx.version_converter, or export it with another opset"
        )
    proto = model.graph
    constants = {init.name: _tensor(init) for init in proto.initializer}
    for sparse in proto.sparse_initializer:
        constants[sparse.values.name] = _dense(sparse)
    nodes: list[Node] = []
    known = set(constants) | {value.name for value in proto.input}
    for entry in proto.node:
        node = _node(entry, opsets, len(nodes))
        for name in node.inputs:
            if name and name not in known:
                raise ModelError(
                    f"{node.label} reads {name!r}, which nothing makes: the model is not sorted or not whole"
                )
        known.update(node.outputs)
        if node.op == "Constant" and not node.domain:
            constants[node.outputs[0]] = _constant(node)
            continue
        if opset < 7 and ("broadcast" in node.attributes or "consumed_inputs" in node.attributes):
            raise ModelError(f"{node.label} means what it did before opset 7: convert the model")
        _attributes_to_inputs(node, constants)
        nodes.append(node)
    inputs = [_info(value) for value in proto.input if value.name not in constants]
    outputs = [_info(value) for value in proto.output]
    for output in outputs:
        if output.name not in known:
            raise ModelError(f"nothing makes the output {output.name!r}: the model is not whole")
    stored = next((entry.value for entry in model.metadata_props if entry.key == STORED_KEY), "")
    return Graph(nodes, inputs, outputs, constants, opset, stored=stored)


def _node(proto: NodeProto, opsets: dict[str, int], number: int) -> Node:
    domain = "" if proto.domain == "ai.onnx" else proto.domain
    first = next((name for name in proto.output if name), f"#{number}")
    attributes = {a.name: _attribute(a) for a in proto.attribute}
    return Node(
        proto.op_type,
        list(proto.input),
        list(proto.output),
        attributes,
        proto.name or first,
        domain,
        opsets.get(domain, 1),
    )


def _attribute(proto: AttributeProto) -> Any:
    match proto.type:
        case AttributeProto.TENSOR:
            return _tensor(proto.t)
        case AttributeProto.SPARSE_TENSOR:
            return _dense(proto.sparse_tensor)
        case AttributeProto.STRING:
            return proto.s.decode("utf-8", "replace")
        case AttributeProto.STRINGS:
            return [text.decode("utf-8", "replace") for text in proto.strings]
        case AttributeProto.INTS:
            return list(proto.ints)
        case AttributeProto.FLOATS:
            return list(proto.floats)
        case _:
            return helper.get_attribute_value(proto)


def _tensor(proto: TensorProto) -> Array:
    return np.asarray(numpy_helper.to_array(proto))


def _dense(sparse: onnx.SparseTensorProto) -> Array:
    values, indices = _tensor(sparse.values), _tensor(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return dense


def _constant(node: Node) -> Array:
    for key, value in node.attributes.items():
        match key:
            case "value" | "sparse_value":
                return np.asarray(value)
            case "value_int" | "value_ints":
                return np.asarray(value, np.int64)
            case "value_float" | "value_floats":
                return np.asarray(value, np.float32)
            case "value_string" | "value_strings":
                return np.asarray(value, object)
    raise ModelError(f"{node.label} has no value: the model is not whole")


def _attributes_to_inputs(node: Node, constants: dict[str, Array]) -> None:
    if node.domain or node.op not in _ATTRIBUTE_TO_INPUT:
        return
    for attribute, index, dtype in _ATTRIBUTE_TO_INPUT[node.op]:
        if attribute not in node.attributes or len(node.inputs) > index:
            continue
        value: Array = np.asarray(node.attributes.pop(attribute), dtype)
        if node.op == "TopK":
            value = value.reshape(1)
        name = f"{node.outputs[0]}:{attribute}"
        constants[name] = value
        node.inputs += [""] * (index - len(node.inputs)) + [name]
    if node.op == "Upsample":
        node.op = "Resize"
        node.inputs = [node.inputs[0], "", node.inputs[1]]
        node.attributes.update(coordinate_transformation_mode="asymmetric", nearest_mode="floor")


def _info(value: onnx.ValueInfoProto) -> TensorInfo:
    if not value.type.HasField("tensor_type"):
        raise ModelError(
            f"{value.name!r} is a {value.type.WhichOneof('value')}, only tensors are supported: "
            "export the model with tensor inputs and outputs"
        )
    tensor = value.type.tensor_type
    dtype = (
        np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)) if tensor.elem_type else np.dtype("f4")
    )
    if not tensor.HasField("shape"):
        return TensorInfo(value.name, dtype, None)
    shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
    return TensorInfo(value.name, dtype, shape)
