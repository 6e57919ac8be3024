"""Neighbouring nodes that run on onnxruntime are one step on the host, and results stay what they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import gpu_inference
from gpu_inference.graph.ir import Graph, Node, TensorInfo
from gpu_inference.graph.partition import Partition, partitioned
from gpu_inference.opencl.session import OpenCLSession
from tests.gpu_inference.test_session import FLOAT, model_of, node


def steps_of(session: OpenCLSession) -> int:
    """Host steps of the plan that ran last."""
    count, segment = 0, next(reversed(session._plans.values()))
    while segment.next:
        count += segment.host_call is not None
        segment = next(reversed(segment.next.values()))
    return count


def check(model: bytes, x: np.ndarray, steps: int, fallback: set[str]) -> None:
    """The same as on onnxruntime, twice, with so many host steps."""
    session, reference = OpenCLSession(model), gpu_inference.load(model, engine="onnxruntime")
    try:
        for value in (x, x + 1):
            got, want = session.run({"x": value}), reference.run({"x": value})
            for name in want:
                np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-6)
        assert steps_of(session) == steps
        assert {label.split()[0] for label in session.report.fallback} == fallback
    finally:
        session.close()
        reference.close()


X = np.float32([[2, 1, 0], [1, 3, 5], [0, 7, 1]])


def test_a_chain_is_one_step() -> None:
    nodes = [
        node("Exp", "x", "a"),
        node("Unique", "a", "u"),
        node("Compress", "u keep", "c"),
        node("Neg", "c", "y"),
    ]
    keep = {"keep": np.array([True, False, True, True])}
    check(model_of(nodes, {"y": FLOAT}, keep), X, 1, {"Unique", "Compress"})


def test_what_others_read_of_it_leaves_it_too() -> None:
    nodes = [
        node("Unique", "x", "u"),
        node("Compress", "u keep", "c"),
        node("Neg", "u", "y"),
        node("Exp", "c", "z"),
    ]
    keep = {"keep": np.array([True, False, True])}
    check(model_of(nodes, {"y": FLOAT, "z": FLOAT, "c": FLOAT}, keep), X, 1, {"Unique", "Compress"})


def test_neighbours_with_a_node_of_ours_on_a_way_between_them_stay_apart() -> None:
    nodes = [
        node("Unique", "x", "u"),
        node("Greater", "u limit", "keep"),
        node("Compress", "u keep", "y"),
    ]
    check(model_of(nodes, {"y": FLOAT}, {"limit": np.float32([1.5])}), X, 2, {"Unique", "Compress"})


def test_a_node_of_ours_that_stood_between_them_moves_out_of_the_way() -> None:
    nodes = [
        node("Unique", "x", "u"),
        node("Neg", "x", "y"),
        node("Compress", "u keep", "z"),
    ]
    keep = {"keep": np.array([False, True])}
    check(model_of(nodes, {"y": FLOAT, "z": FLOAT}, keep), X, 1, {"Unique", "Compress"})


def _branch(name: str, op: str) -> Any:
    out = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)
    return helper.make_graph([helper.make_node(op, ["r", "b"], [f"{name}_y"])], name, [], [out])


def test_a_branch_reads_tensors_from_outside_of_it() -> None:
    # r would be taken into MatMul's epilogue if nobody saw that the branches read it
    nodes = [
        node("MatMul", "x w", "r"),
        node("Relu", "r", "a"),
        node("ReduceSum", "a", "s", keepdims=0),
        node("Greater", "s limit", "c"),
        node("If", "c", "i", then_branch=_branch("then", "Add"), else_branch=_branch("else", "Sub")),
        node("Mul", "i a", "y"),
    ]
    constants = {"w": np.eye(3, dtype=np.float32), "b": np.float32([1, 2, 3]), "limit": np.float32(25)}
    check(model_of(nodes, {"y": FLOAT}, constants), X, 1, {"If"})


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Graph, list[bool]]:
    """Nodes that read some of what stands before them, and which of them are foreign."""
    count = draw(st.integers(1, 12))
    nodes = []
    for number in range(count):
        inputs = draw(st.sets(st.integers(-1, number - 1), max_size=3))
        nodes.append(Node("Op", [f"t{i}" if i >= 0 else "x" for i in sorted(inputs)], [f"t{number}"]))
        nodes[-1].name = str(number)
    outputs = draw(st.sets(st.integers(0, count - 1), min_size=1))
    info = [TensorInfo(f"t{i}", np.dtype("f4"), None) for i in sorted(outputs)]
    foreign = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    return Graph(nodes, [TensorInfo("x", np.dtype("f4"), None)], info, {}, 18), foreign


@settings(max_examples=300, deadline=None)
@given(graphs())
def test_partitions_keep_every_node_and_an_order_in_which_it_can_run(case: tuple[Graph, list[bool]]) -> None:
    graph, foreign = case
    found = partitioned(graph, lambda n: foreign[int(n.name)])
    made, seen = {"x"}, list[str]()
    for one in found.nodes:
        assert made.issuperset(one.inputs)
        made.update(one.outputs)
        inner = set(one.inputs)
        for member in one.nodes if isinstance(one, Partition) else [one]:
            assert inner.issuperset(member.inputs)
            assert not isinstance(one, Partition) or foreign[int(member.name)]
            inner.update(member.outputs)
            seen.append(member.name)
        assert inner.issuperset(one.outputs)
    assert sorted(seen) == sorted(n.name for n in graph.nodes)
    assert made.issuperset(o.name for o in graph.outputs)
    # neighbours that are still apart have a reason to be: a way around
    at = {name: n for n in found.nodes for name in n.outputs}
    for one in found.nodes:
        for maker in {id(at[name]): at[name] for name in one.inputs if name in at}.values():
            if all(_is_foreign(n, foreign) for n in (one, maker)):
                assert _leads(found, maker, one)


def _is_foreign(one: Node, foreign: list[bool]) -> bool:
    return isinstance(one, Partition) or foreign[int(one.name)]


def _leads(graph: Graph, start: Node, end: Node) -> bool:
    """Whether a way of more than one step leads from `start` to `end`."""
    reached = {id(n) for n in graph.nodes if n is not end and set(n.inputs) & set(start.outputs)}
    while True:
        names = {name for n in graph.nodes if id(n) in reached for name in n.outputs}
        more = {id(n) for n in graph.nodes if set(n.inputs) & names}
        if id(end) in more:
            return True
        if more <= reached:
            return False
        reached |= more


def test_a_partition_that_onnxruntime_can_not_run_is_named() -> None:
    nodes = [
        helper.make_node("Unknown", ["x"], ["u"], name="u", domain="nowhere"),
        helper.make_node("Other", ["u"], ["y"], name="v", domain="nowhere"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, [3])],
        [helper.make_tensor_value_info("y", FLOAT, None)],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("nowhere", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    session = OpenCLSession(model.SerializeToString())
    with pytest.raises(
        gpu_inference.ModelError, match=r"Unknown\+Other node 'u' .* runs neither here nor on"
    ):
        session.run({"x": np.zeros(3, np.float32)})
    session.close()
