"""`Graph` back to ONNX protobuf, for what rewrites models into files and not for a device."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, NodeProto, helper, numpy_helper

from gpu_inference.errors import ModelError
from gpu_inference.graph.ir import Graph, Node


def export_model(graph: Graph, like: ModelProto) -> ModelProto:
    """A model of the graph.

    Args:
        graph: whose nodes are ONNX's own, in the form of the newest opsets (see importer): `like` has an
            opset of 18 or more.
        like: the model that the graph came from; inputs, outputs, opsets and metadata are its.

    Raises:
        ModelError: what the passes made isn't valid ONNX.
    """
    model = ModelProto()
    model.CopyFrom(like)
    proto = model.graph
    for field in (
        "node",
        "initializer",
        "sparse_initializer",
        "input",
        "value_info",
        "quantization_annotation",
    ):
        proto.ClearField(field)
    proto.input.extend(value for value in like.graph.input if value.name not in graph.constants)
    taken: set[str] = set()
    for node in graph.nodes:
        entry = _node(node)
        if entry.name in taken:  # the importer names a node without a name by its output
            entry.name = ""
        taken.add(entry.name)
        proto.node.append(entry)
    proto.initializer.extend(
        numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in graph.constants.items()
    )
    return checked(model)


def checked(model: ModelProto) -> ModelProto:
    """The same model.

    Raises:
        ModelError: onnx finds it invalid.
    """
    seen = model
    if not all(value.type.tensor_type.HasField("shape") for value in model.graph.output):
        # onnx's checker wants a shape of every output, which engines don't
        seen = ModelProto()
        seen.CopyFrom(model)
        for value in seen.graph.output:
            value.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(seen)
    except onnx.checker.ValidationError as error:
        raise ModelError(f"the rewritten model is not valid ({error}): leave this transform out") from error
    return model


def _node(node: Node) -> NodeProto:
    proto = helper.make_node(node.op, node.inputs, node.outputs, name=node.name, domain=node.domain or None)
    proto.attribute.extend(_attribute(node, name, value) for name, value in node.attributes.items())
    return proto


def _attribute(node: Node, name: str, value: Any) -> AttributeProto:
    if isinstance(value, np.ndarray):
        return helper.make_attribute(name, numpy_helper.from_array(value))
    if isinstance(value, list) and not value:  # its type can't be seen
        kind = onnx.defs.get_schema(node.op, node.opset, node.domain).attributes[name].type
        return helper.make_attribute(name, value, attr_type=int(kind))
    return helper.make_attribute(name, value)
