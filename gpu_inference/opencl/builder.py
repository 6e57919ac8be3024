"""What a lowering function works with: its node's inputs, outputs, scratch memory and launches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpu_inference.graph.ir import Array, Node
from gpu_inference.opencl.choices import Choices
from gpu_inference.opencl.expression import Expr, Leaf, Scalar, expr_dtype, leaves, steps
from gpu_inference.opencl.launch import Buf, Launch
from gpu_inference.opencl.recording import HostCall, HostFunction, NeedsValue, Recording
from gpu_inference.opencl.tensors import Tensors, is_channels_last
from gpu_inference.opencl.traits import DeviceTraits
from gpu_inference.opencl.value import (
    Layout,
    Shape,
    Slice,
    State,
    Storage,
    Value,
    device_dtype,
    layout_elements,
    layout_strides,
    padded_channels,
    slice_strides,
)
from gpu_inference.opencl.weights import WeightType

# A generated kernel reads at most so many tensors and does so many operations: registers are few.
MAX_LEAVES = 8
MAX_STEPS = 48


class Builder:
    """The planner's side that a lowering function sees. Indices count the node's inputs and outputs.

    Args:
        node: being lowered.
        state: of the planning.
        recording: where launches go.
        uses: readings of each tensor in the whole graph.
    """

    def __init__(self, node: Node, state: State, recording: Recording, uses: dict[str, int]) -> None:
        self.node = node
        self._state, self._recording, self._uses = state, recording, uses
        self._tensors = Tensors(state, recording, node.name)
        self._temporaries: list[Storage] = []
        self._anonymous = 0

    @property
    def device(self) -> DeviceTraits:
        """What the launches will run on."""
        return self._recording.device

    @property
    def choices(self) -> Choices:
        """Which kernel variants to take."""
        return self._recording.choices

    @property
    def weights(self) -> WeightType:
        """How weights of convolutions and products are stored."""
        return self._recording.weights

    # ---- inputs

    def has(self, index: int) -> bool:
        """Whether the optional input is given."""
        return bool(self.node.input(index))

    def value(self, index: int) -> Value:
        """The input's planning record."""
        return self._state.values[self.node.inputs[index]]

    def shape(self, index: int) -> Shape:
        """Concrete shape of an input."""
        return self.value(index).shape

    def dtype(self, index: int) -> np.dtype[Any]:
        """Element type of an input, as ONNX has it."""
        return self.value(index).dtype

    def known(self, index: int) -> Array:
        """The input's elements on the host. Call it before anything that allocates.

        Raises:
            NeedsValue: they aren't known yet; the planner reads them and calls the lowering again.
        """
        value = self.value(index)
        if value.host is None:
            raise NeedsValue(value)
        return value.host

    def maybe_known(self, index: int) -> Array | None:
        """The input's elements where the host has them already, else None. None too where it is left out."""
        return self.value(index).host if self.has(index) else None

    def is_input(self, index: int) -> bool:
        """Whether the tensor comes from the caller, so that `known` can have it at no cost in launches."""
        return self.value(index).from_caller

    def ints(self, index: int) -> list[int]:
        """`known` as a flat list of Python integers."""
        return [int(x) for x in self.known(index).reshape(-1)]

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute, decoded."""
        return self.node.attributes.get(name, default)

    def buf(self, index: int, layout: Layout = "plain") -> Buf:
        """Where an input lies on the device, brought into `layout` first if need be."""
        return self.place(self.value(index), layout)

    def strided(self, index: int) -> tuple[Buf, tuple[int, ...]]:
        """Where an input lies, in whatever layout it has, and its strides in the order of its dimensions."""
        value = self.value(index)
        layout: Layout = "nhwc" if self.is_nhwc(index) else "plain"
        return self.place(value, layout), layout_strides(value.shape, layout)

    def is_nhwc(self, index: int) -> bool:
        """Whether the input lies in NHWC and nowhere plain, so that NHWC is the cheaper way to read it."""
        value = self.value(index)
        return is_channels_last(value) and "plain" not in value.stores and value.host is None

    def channels_last(self, index: int) -> tuple[Buf, Slice]:
        """Where an input lies in NHWC, perhaps as channels of a wider tensor."""
        value = self.value(index)
        if value.lazy is not None:
            self._tensors.compute(value, "nhwc")
        if value.slice is not None and "slice" in value.stores and "nhwc" not in value.stores:
            return Buf(value.stores["slice"].key), value.slice
        return self.place(value, "nhwc"), Slice(padded_channels(value.shape))

    # ---- outputs

    def wants(self, index: int) -> bool:
        """Whether anybody asked for an output."""
        return index < len(self.node.outputs) and bool(self.node.outputs[index])

    def output(self, index: int, shape: Sequence[int], dtype: Any, layout: Layout = "plain") -> Buf:
        """Memory for an output, uninitialised.

        In NHWC, channels are padded to a multiple of 4, and the lowering writes something finite there.
        """
        value = self._define(index, shape, dtype)
        storage = self._state.allocate(
            layout_elements(value.shape, layout) * device_dtype(value.dtype).itemsize
        )
        self._state.attach(value, layout, storage)
        return Buf(storage.key)

    def strided_slice(self, index: int) -> tuple[Buf, tuple[int, ...], int]:
        """`strided`, and the elements before the first one: channels of a wider tensor needn't be copied."""
        if self.is_nhwc(index):
            x, at = self.channels_last(index)
            return x, slice_strides(self.shape(index), at), at.offset
        return *self.strided(index), 0

    def written(self, index: int) -> tuple[Buf, Slice]:
        """Where an output lies in NHWC that is defined already."""
        value = self.result(index)
        if value.slice is not None:
            return Buf(value.stores["slice"].key), value.slice
        return Buf(value.stores["nhwc"].key), Slice(padded_channels(value.shape))

    def output_channels_last(self, index: int, shape: Sequence[int], dtype: Any) -> tuple[Buf, Slice]:
        """Memory for an output in NHWC: its place in a concatenation's result where it has one."""
        value = self._define(index, shape, dtype)
        return self._tensors.allocate_channels_last(value)

    def output_over(self, index: int, source: int, dtype: Any) -> Buf | None:
        """An output in NHWC that overwrites input `source` of the same shape; None where that must stay.

        Only for kernels whose work-items read no element of the input but those that they write.
        """
        x = self.value(source)
        store = x.stores.get("nhwc")
        output = self.node.outputs[index]
        if store is None or store.slot is None or store.refs > 1 or x.uses > 1 or x.from_caller:
            return None
        if x.dtype != dtype or output in self._recording.places or not output:
            return None
        self._state.attach(self._define(index, x.shape, dtype), "nhwc", store)
        return Buf(store.key)

    def concatenated(self, index: int, shape: Shape, dtype: Any, parts: Sequence[int]) -> list[int] | None:
        """The output is a concatenation of inputs that lie in their places, as far as they do.

        Args:
            index: of the output.
            shape: of the output.
            dtype: of the output.
            parts: channels of every input.

        Returns:
            The inputs that must still be copied into their place (`channels_last` of the output); None where
            no input lies there, and nothing was done.
        """
        place = self._recording.places.get(self.node.outputs[index])
        if place is None or place.channels != shape[1]:
            return None
        for number in range(len(parts)):
            value = self.value(number)
            if value.lazy is not None and value.name in self._recording.places:
                self._tensors.compute(value, "nhwc")
        root, start, missing = self._state.roots.get(place.root), place.offset, list[int]()
        for number, size in enumerate(parts):
            value = self.value(number)
            at = Slice(place.total, start)
            if root is None or value.stores.get("slice") is not root:
                missing.append(number)
            elif value.slice != at:
                return None
            start += size
        if len(missing) == len(parts):
            return None
        self._tensors.allocate_channels_last(self._define(index, shape, dtype))
        return missing

    def scratch(self, shape: Shape, dtype: Any) -> tuple[Leaf, Buf]:
        """Memory for a result that an expression of this node goes on with; freed after that."""
        value = Value("", shape, np.dtype(dtype))
        storage = self._state.allocate(value.nbytes)
        self._state.attach(value, "plain", storage)
        return Leaf(value), Buf(storage.key)

    def alias(self, index: int, source: int, shape: Sequence[int]) -> None:
        """The output is input `source` in another shape: nothing is copied."""
        x = self.value(source)
        value = self._define(index, shape, x.dtype)
        if x.host is not None:
            value.host = x.host.reshape(value.shape)
            value.constant = f"{x.constant}{value.shape}" if x.constant else ""
        if x.host is not None and not x.stores:
            return
        if x.shape == value.shape and "nhwc" in x.stores:
            self._state.attach(value, "nhwc", x.stores["nhwc"])
            if "plain" not in x.stores:
                return
        elif x.shape == value.shape and "slice" in x.stores and "plain" not in x.stores:
            value.slice = x.slice
            self._state.attach(value, "slice", x.stores["slice"])
            return
        self.place(x)
        self._state.attach(value, "plain", x.stores["plain"])

    def set_host(self, index: int, array: Array) -> None:
        """The output's elements are known now: the device gets them only if somebody needs them there."""
        value = self._define(index, array.shape, array.dtype)
        value.host = np.asarray(array, order="C")

    def lazy(self, index: int, expr: Expr, shape: Sequence[int]) -> None:
        """The output is an elementwise expression: computed when somebody asks, or inside a later kernel."""
        value = self._define(index, shape, expr_dtype(expr))
        self.defer(value, expr)

    def defer(self, value: Value, expr: Expr) -> None:
        """Makes a value lazy; its leaves stay alive until it is computed."""
        for leaf in leaves(expr):
            leaf.uses += 1
        value.lazy = expr

    def host_call(self, function: HostFunction) -> None:
        """Runs what is queued, calls `function` with the node's inputs on the host, goes on with its results.

        For outputs whose shape depends on data. The function gets one array an input (None where left out)
        and returns one array an output.
        """
        inputs = [self._state.values[name] if name else None for name in self.node.inputs]
        for value in inputs:
            if value is not None and value.host is None:
                self.place(value)
        self._recording.host_call = HostCall(inputs, list(self.node.outputs), function, self.node.label)

    def _define(self, index: int, shape: Sequence[int], dtype: Any) -> Value:
        name = self.node.outputs[index] if index < len(self.node.outputs) else ""
        uses = self._uses.get(name, 0)
        if not name:
            self._anonymous += 1
            name = f"{self.node.name}:unused{self._anonymous}"
        value = Value(name, tuple(int(d) for d in shape), np.dtype(dtype), uses)
        self._state.values[name] = value
        return value

    # ---- memory and launches

    def temporary(self, size_bytes: int) -> Buf:
        """Scratch memory until the end of this node."""
        storage = self._state.allocate(size_bytes)
        storage.refs = 1
        self._temporaries.append(storage)
        return Buf(storage.key)

    def constant(self, array: Array, key: str | None = None) -> Buf:
        """An array on the device, uploaded once and shared by all plans of the session.

        Args:
            array: what goes there.
            key: its name, unique in the session (start it with the weight's name and say how it is packed);
                None: by content.
        """
        return self._tensors.constant(array, key)

    def packed(self, index: int, packing: str, pack: Callable[[Array], Array]) -> Buf:
        """A known input as `pack` lays it out; named by the weight and `packing`, packed once a session."""
        value = self.value(index)
        array = self.known(index)
        if not value.constant:
            return self.constant(pack(array))
        key = f"constant:{value.constant}:{packing}"
        if key not in self._recording.uploaded and key not in self._recording.constants:
            self._recording.constants[key] = np.ascontiguousarray(pack(array))
        return Buf(key)

    def launch(self, launch: Launch) -> None:
        """Queues a kernel."""
        self._tensors.launch(launch)

    def place(self, value: Value, layout: Layout = "plain") -> Buf:
        """Makes `value` lie on the device in `layout`."""
        return self._tensors.place(value, layout)

    # ---- expressions

    def expr(self, index: int, shape: Shape) -> Expr:
        """An input as part of an expression of `shape`: its own expression where nobody else needs it."""
        value = self.value(index)
        if value.host is not None and value.host.size == 1 and not value.stores:
            number = value.host.reshape(-1)[0]
            if value.dtype.kind == "f":
                return Scalar(float(number), value.dtype)
            return Scalar(int(number), value.dtype)
        if value.lazy is not None and value.uses == 1 and value.shape == shape:
            small = len(leaves(value.lazy)) <= MAX_LEAVES // 2 and steps(value.lazy) <= MAX_STEPS
            if small:
                return value.lazy
        if value.lazy is not None:
            self._tensors.compute(value, "any")
        return Leaf(value)

    def result(self, index: int) -> Value:
        """The planning record of an output that is defined already."""
        return self._state.values[self.node.outputs[index]]

    def leaf(self, array: Array) -> Leaf:
        """A constant array as part of an expression."""
        value = Value("", array.shape, array.dtype, 0, array)
        self._tensors.upload(value)
        return Leaf(value)

    def view(self, index: int, shape: Shape) -> Leaf:
        """An input in another shape as part of an expression, without a copy."""
        source = self.value(index)
        value = Value(source.name, shape, source.dtype)
        self.place(source)
        self._state.attach(value, "plain", source.stores["plain"])
        value.uses = 0
        return Leaf(value)

    # ---- the planner's

    def finish(self) -> None:
        """Frees scratch memory and what this node was the last to read."""
        for storage in self._temporaries:
            self._state.drop(storage)
        self._temporaries.clear()
        for name in self.node.inputs:
            if name:
                self._state.release(self._state.values[name])
        for name in self.node.outputs:
            value = self._state.values.get(name)
            if name and value is not None and value.uses == 0:
                value.uses = 1
                self._state.release(value)
        for number in range(1, self._anonymous + 1):
            value = self._state.values.pop(f"{self.node.name}:unused{number}")
            value.uses = 1
            self._state.release(value)

    def settle(self) -> None:
        """Computes every lazy value that is still needed, before planning pauses."""
        for value in list(self._state.values.values()):
            if value.lazy is not None and value.uses > 0:
                self._tensors.compute(value, "any")
