"""Nodes that we can't lower, run by onnxruntime as a step on the host; neighbours among them as one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from onnx import NodeProto, helper, numpy_helper

from gpu_inference.errors import ModelError
from gpu_inference.graph.ir import Array, Node
from gpu_inference.graph.partition import Partition
from gpu_inference.graph.passes.epilogues import RESIDUAL_INPUT
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


def lower_partition(partition: Partition, builder: Builder) -> None:
    """A host step that runs several nodes, with what their subgraphs capture."""
    sessions: dict[tuple[Any, ...], Any] = {}
    names = partition.inputs

    def run(arrays: list[Array | None]) -> list[Array]:
        given = {name: array for name, array in zip(names, arrays, strict=True) if array is not None}
        key = tuple((name, array.dtype.str, array.ndim) for name, array in given.items())
        if key not in sessions:
            nodes = [node_proto(node, node.inputs, node.outputs) for node in partition.nodes]
            opsets: dict[str, int] = {}
            for node in partition.nodes:
                opsets[node.domain] = max(node.opset, opsets.get(node.domain, 1))
            sessions[key] = _load(partition.label, nodes, given, partition.outputs, opsets)
        return [np.asarray(result) for result in sessions[key].run(None, given)]

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


#: ONNX operators and attribute names of the activations that passes fuse into nodes; clip and silu differ.
_ACTIVATIONS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "leaky_relu": ("LeakyRelu", ("alpha",)),
    "sigmoid": ("Sigmoid", ()),
    "tanh": ("Tanh", ()),
    "hardswish": ("HardSwish", ()),
    "hard_sigmoid": ("HardSigmoid", ("alpha", "beta")),
    "elu": ("Elu", ("alpha",)),
}


def _has_bias(node: Node) -> bool:
    return node.op == "MatMul" and not node.domain and bool(node.input(2))


def _unfused(node: Node, inputs: list[str], output: str) -> list[NodeProto]:
    """A node with what `graph.passes.epilogues` has fused into it, as ONNX nodes one after another."""
    attributes = dict(node.attributes)
    kind, p0, p1 = attributes.pop("activation", ("none", 0.0, 0.0))
    residual = attributes.pop("residual", "none")
    operands = inputs[:RESIDUAL_INPUT]
    bias = operands.pop() if _has_bias(node) else ""
    while operands and not operands[-1]:
        operands.pop()
    nodes = [node_proto(dataclasses.replace(node, attributes=attributes), operands, [output])]

    def then(op: str, *more: str, **settings: Any) -> None:
        # what stood last writes a tensor of its own now, and the new node the output
        before = nodes[-1].output[0] = f"step{len(nodes)}"
        nodes.append(helper.make_node(op, [before, *more], [output], **settings))

    if bias:
        then("Add", bias)
    if residual == "before":
        then("Add", inputs[RESIDUAL_INPUT])
    if kind == "clip":
        then("Clip", "low", "high")
        for name, bound in (("low", p0), ("high", p1)):
            value = numpy_helper.from_array(np.array(bound, np.float32))
            nodes.insert(0, helper.make_node("Constant", [], [name], value=value))
    elif kind == "silu":
        then("Identity")
        then("Sigmoid")
        then("Mul", nodes[-1].input[0])
    elif kind != "none":
        op, names = _ACTIVATIONS[kind]
        then(op, **dict(zip(names, (p0, p1), strict=False)))
    if residual == "after":
        then("Add", inputs[RESIDUAL_INPUT])
    return nodes


def _session(node: Node, arrays: list[Array | None]) -> Any:
    inputs = [f"x{i}" if array is not None else "" for i, array in enumerate(arrays)]
    outputs = [f"y{i}" if name else "" for i, name in enumerate(node.outputs)]
    fused = "activation" in node.attributes or "residual" in node.attributes or _has_bias(node)
    nodes = _unfused(node, inputs, outputs[0]) if fused else [node_proto(node, inputs, outputs)]
    given = {name: array for name, array in zip(inputs, arrays, strict=True) if array is not None}
    opsets = {node.domain: max(node.opset, 14 if fused else 1)}
    return _load(node.label, nodes, given, [name for name in outputs if name], opsets)


def _load(
    label: str,
    nodes: list[NodeProto],
    inputs: Mapping[str, Array],
    outputs: list[str],
    opsets: Mapping[str, int],
) -> Any:
    """An onnxruntime session of some nodes, for inputs of these types and ranks."""
    import onnxruntime

    graph = helper.make_graph(
        nodes,
        "node",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim
            )
            for name, array in inputs.items()
        ],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
    )
    imports = [helper.make_opsetid(*entry) for entry in ({"": 21} | dict(opsets)).items()]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise ModelError(
            f"{label} runs neither here nor on onnxruntime ({error}): "
            "export the model with operators that one of them has"
        ) from error
