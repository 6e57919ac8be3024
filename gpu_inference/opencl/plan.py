"""Plans: a graph with concrete shapes, walked node by node into launches, arena slots and host steps.

A plan is a chain of segments. Most models have one. Where a shape depends on what the device computes, the
segment ends there: it runs, the tensors are read back, and planning goes on with what they hold (such
continuations are cached by the values, or by the shapes that a host step returned).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

import gpu_inference.opencl.lowering  # noqa: F401 - registers every operator
from gpu_inference.errors import ModelError
from gpu_inference.graph import folding
from gpu_inference.graph.ir import Array, Graph, Node
from gpu_inference.graph.partition import Partition, partitioned
from gpu_inference.opencl.builder import Builder
from gpu_inference.opencl.choices import Choices
from gpu_inference.opencl.launch import Launch
from gpu_inference.opencl.lowering.registry import Unsupported, lowering_of
from gpu_inference.opencl.lowering.through_onnxruntime import lower_partition, lower_through_onnxruntime
from gpu_inference.opencl.placement import concatenation_places
from gpu_inference.opencl.recording import HostCall, NeedsValue, Recording
from gpu_inference.opencl.traits import DeviceTraits
from gpu_inference.opencl.value import Shape, State, Storage, Value, device_dtype
from gpu_inference.opencl.weights import WEIGHT_TYPES, WeightType

# Nodes whose inputs the host knows are computed there up to so many elements.
MAX_HOST_ELEMENTS: Final = 65536
MAX_CONTINUATIONS: Final = 32
_NO_OPERATOR: Final = "this engine has no such operator"


class NeedsInputValue(Exception):
    """Shapes depend on the elements of a model input: plan again with them."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(slots=True, eq=False)
class Segment:
    """Launches up to the next stop.

    Attributes:
        launches: in order.
        constants: that must be on the device before, as far as they weren't when it was planned.
        slot_bytes: the arena that it needs.
        live: slots that hold something when it begins.
        inputs: storage key of each model input that the device reads, with its dtype there.
        results: where the arrays of the host step before it go: index, storage key, dtype there.
        reads: tensors that the host needs at its end: all inputs of a host step, or values for planning.
        host_call: the host step at its end.
        state: of the planning at its end, None at the last segment.
        outputs: the model's, at the last segment.
        next: continuations, by what the host read or computed.
    """

    launches: list[Launch]
    constants: dict[str, Array]
    slot_bytes: list[int]
    live: set[int]
    inputs: dict[str, tuple[str, np.dtype[Any]]] = field(default_factory=dict)
    results: list[tuple[int, str, np.dtype[Any]]] = field(default_factory=list)
    reads: list[Value | None] = field(default_factory=list)
    host_call: HostCall | None = None
    state: State | None = None
    outputs: list[Value] = field(default_factory=list)
    next: OrderedDict[Any, Segment] = field(default_factory=OrderedDict)


class Planner:
    """Makes plans of one graph for one device.

    Args:
        graph: after the passes.
        device: what the launches will run on.
        uploaded: keys of constants that are on the device already; the session adds to it.
        fallback: nodes that have no lowering run on onnxruntime instead of raising.
        choices: which kernel variants to take; None for the cost model's.
        weights: how those of convolutions and products are stored; None as in the model: what its
            metadata says, fp16, or else fp32.
    """

    def __init__(
        self,
        graph: Graph,
        device: DeviceTraits,
        uploaded: Container[str] = (),
        *,
        fallback: bool = False,
        choices: Choices | None = None,
        weights: WeightType | None = None,
    ) -> None:
        if fallback:
            graph = partitioned(graph, _runs_elsewhere)
        self._graph, self._device, self._uploaded = graph, device, uploaded
        self._choices = choices or Choices(device)
        self._uses: dict[str, int] = Counter(name for node in graph.nodes for name in node.inputs if name)
        for output in graph.outputs:
            self._uses[output.name] = self._uses.get(output.name, 0) + 1
        self._places = concatenation_places(graph)
        self._fallback = fallback
        told = next((kind for kind in WEIGHT_TYPES if kind == graph.stored), None)
        self._weights: WeightType = weights or told or ("fp16" if graph.half else "fp32")
        self.fallen_back: dict[str, str] = {}

    @property
    def nodes(self) -> list[Node]:
        """What `State.position` counts: neighbours that run on onnxruntime are one."""
        return self._graph.nodes

    def start(
        self, shapes: Mapping[str, tuple[Shape, np.dtype[Any]]], values: Mapping[str, Array]
    ) -> Segment:
        """The first segment.

        Args:
            shapes: shape and dtype of every model input.
            values: elements of those inputs that planning asked for.

        Raises:
            NeedsInputValue: another input's elements are needed.
            ModelError: a node can't be planned; the message says which and why.
        """
        state = State()
        for name, array in self._graph.constants.items():
            value = Value(name, array.shape, array.dtype, self._uses.get(name, 0), array, name)
            if value.uses:
                state.values[name] = value
        inputs = {}
        for name, (shape, dtype) in shapes.items():
            # one use more than there are: inputs stay where they are, so that a run can be repeated
            value = Value(name, shape, dtype, self._uses.get(name, 0) + 1)
            value.from_caller = True
            state.values[name] = value
            if name in values:
                value.host = values[name]
            storage = state.allocate(value.nbytes)
            state.attach(value, "plain", storage)
            inputs[name] = (storage.key, device_dtype(dtype))
        segment = Segment([], {}, [], set(), inputs)  # the inputs are written after the arena is made
        return self._walk(state, segment)

    def resume(self, segment: Segment, arrays: list[Array]) -> Segment:
        """The segment after a stop.

        Args:
            segment: that has run.
            arrays: what its host step returned, or the values that were read.
        """
        assert segment.state is not None
        state = segment.state.clone()
        after = Segment([], {}, [], state.live_slots())
        state.slots.fixed = set(after.live)
        if segment.host_call is None:
            for value, array in zip(segment.reads, arrays, strict=True):
                assert value is not None
                state.values[value.name].host = array
            return self._walk(state, after)
        node = self._graph.nodes[state.position]
        for index, (name, array) in enumerate(zip(node.outputs, arrays, strict=False)):
            if not name:
                continue
            value = Value(name, array.shape, array.dtype, self._uses.get(name, 0))
            if not value.uses:
                continue
            state.values[name] = value
            storage: Storage = state.allocate(value.nbytes)
            state.attach(value, "plain", storage)
            after.results.append((index, storage.key, device_dtype(array.dtype)))
        for name in node.inputs:
            if name:
                state.release(state.values[name])
        state.position += 1
        return self._walk(state, after)

    def _walk(self, state: State, segment: Segment) -> Segment:
        recording = Recording(
            self._device,
            self._choices,
            self._uploaded,
            segment.launches,
            segment.constants,
            places=self._places,
            weights=self._weights,
        )
        nodes = self._graph.nodes
        while state.position < len(nodes):
            node = nodes[state.position]
            builder = Builder(node, state, recording, self._uses)
            try:
                self._lower(node, builder, state)
            except NeedsValue as need:
                if not need.value.stores and need.value.lazy is None:
                    raise ModelError(f"{node.label}: {need.value.name!r} has no elements to read") from None
                name = need.value.name
                if any(info.name == name for info in self._graph.inputs):
                    raise NeedsInputValue(name) from None
                builder.place(need.value)
                return self._stop(state, segment, builder, [need.value])
            if recording.host_call is not None:
                segment.host_call = recording.host_call
                return self._stop(state, segment, builder, recording.host_call.inputs)
            builder.finish()
            state.position += 1
        end = Builder(Node("end", [], []), state, recording, self._uses)
        for output in self._graph.outputs:
            value = state.values[output.name]
            if value.host is None:
                end.place(value)
            segment.outputs.append(value)
        segment.slot_bytes = list(state.slots.sizes)
        return segment

    def _stop(
        self, state: State, segment: Segment, builder: Builder, reads: list[Value | None] | list[Value]
    ) -> Segment:
        builder.settle()
        segment.reads = list(reads)
        segment.slot_bytes = list(state.slots.sizes)
        segment.state = state
        return segment

    def _lower(self, node: Node, builder: Builder, state: State) -> None:
        if isinstance(node, Partition):
            for member in node.nodes:
                self.fallen_back.setdefault(member.label, _NO_OPERATOR)
            lower_partition(node, builder)
            return
        arrays = [state.values[name].host if name else None for name in node.inputs]
        known = all(array is not None or not name for array, name in zip(arrays, node.inputs, strict=True))
        if known and sum(a.size for a in arrays if a is not None) <= MAX_HOST_ELEMENTS:
            results = folding.evaluate(node, arrays)
            if results is not None:
                for index, result in enumerate(results[: len(node.outputs)]):
                    builder.set_host(index, result)
                return
        function = lowering_of(node)
        if function is None:
            reason = _NO_OPERATOR
        else:
            try:
                function(node, builder)
                return
            except Unsupported as error:
                reason = str(error)
        if not self._fallback:
            raise ModelError(
                f"{node.label}: {reason}: load with fallback=True to run it on onnxruntime, "
                "or with engine='onnxruntime'"
            )
        self.fallen_back.setdefault(node.label, reason)
        lower_through_onnxruntime(node, builder)


def _runs_elsewhere(node: Node) -> bool:
    """Whether onnxruntime has to run the node whatever its shapes are."""
    return lowering_of(node) is None and (bool(node.domain) or node.op not in folding.HOST)
