"""Nodes that we can't lower, run by onnxruntime as a step on the host."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import NodeProto, helper, numpy_helper

from gpu_inference.errors import ModelError
from gpu_inference.graph.ir import Array, Node
from gpu_inference.opencl.builder import Builder


def lower_through_onnxruntime(node: Node, builder: Builder) -> None:
    """A host step that runs `node` on onnxruntime's CPU provider."""
    sessions: dict[tuple[Any, ...], Any] = {}

    def run(arrays: list[Array | None]) -> list[Array]:
        given = [(f"x{i}", array) for i, array in enumerate(arrays) if array is not None]
        key = tuple((name, array.dtype.str, array.ndim) for name, array in given)
        if key not in sessions:
            sessions[key] = _session(node, arrays)
        results = sessions[key].run(None, dict(given))
        wanted = iter(results)
        return [np.asarray(next(wanted)) if name else np.zeros(0, np.float32) for name in node.outputs]

    builder.host_call(run)


def node_proto(node: Node, inputs: list[str], outputs: list[str]) -> NodeProto:
    """The node as ONNX writes it, with other tensor names."""
    attributes = {
        name: numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
        for name, value in node.attributes.items()
    }
    proto: NodeProto = helper.make_node(
        node.op, inputs, outputs, name=node.name, domain=node.domain, **attributes
    )
    return proto


def _session(node: Node, arrays: list[Array | None]) -> Any:
    import onnxruntime

    inputs = [f"x{i}" if array is not None else "" for i, array in enumerate(arrays)]
    outputs = [f"y{i}" if name else "" for i, name in enumerate(node.outputs)]
    graph = helper.make_graph(
        [node_proto(node, inputs, outputs)],
        "node",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim
            )
            for name, array in zip(inputs, arrays, strict=True)
            if array is not None
        ],
        [helper.make_empty_tensor_value_info(name) for name in outputs if name],
    )
    opsets = [helper.make_opsetid(node.domain, max(node.opset, 1))]
    if node.domain:
        opsets.append(helper.make_opsetid("", 21))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise ModelError(
            f"{node.label} runs neither here nor on onnxruntime ({error}): "
            "export the model with operators that one of them has"
        ) from error
