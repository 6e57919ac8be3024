"""Where the tensors of a plan lie on the device: uploaded, computed when asked for, brought into layouts."""

from __future__ import annotations

import math

import numpy as np

from gpu_inference.graph.ir import Array
from gpu_inference.opencl.codegen import Operand, elementwise
from gpu_inference.opencl.expression import leaves
from gpu_inference.opencl.launch import Buf, Launch
from gpu_inference.opencl.recording import Recording
from gpu_inference.opencl.strided import strided_copy, to_nhwc
from gpu_inference.opencl.value import (
    Layout,
    Shape,
    Slice,
    State,
    Storage,
    Value,
    content_key,
    device_dtype,
    layout_elements,
    layout_strides,
    padded_channels,
    slice_strides,
)


class Tensors:
    """Gives tensors memory and queues what brings them there.

    Args:
        state: of the planning.
        recording: where launches and constants go.
        node: that is being lowered; launches are told of it.
    """

    def __init__(self, state: State, recording: Recording, node: str) -> None:
        self._state, self._recording, self._node = state, recording, node

    def constant(self, array: Array, key: str | None = None) -> Buf:
        """An array on the device, uploaded once and shared by all plans of the session.

        Args:
            array: what goes there.
            key: its name, unique in the session (start it with the weight's name and say how it is packed);
                None: by content.
        """
        array = np.ascontiguousarray(array)
        key = f"constant:{key or content_key(array)}"
        if key not in self._recording.uploaded:
            self._recording.constants.setdefault(key, array)
        return Buf(key)

    def launch(self, launch: Launch) -> None:
        """Queues a kernel."""
        if 0 in launch.global_size:
            return
        if not launch.node:
            launch.node = self._node
        self._recording.launches.append(launch)

    def place(self, value: Value, layout: Layout = "plain") -> Buf:
        """Makes `value` lie on the device in `layout`."""
        if layout in value.stores:
            return Buf(value.stores[layout].key)
        if value.lazy is not None:
            self.compute(value, layout)
            return self.place(value, layout)
        if not value.stores:
            self.upload(value)
            return self.place(value, layout)
        itemsize = device_dtype(value.dtype).itemsize
        if value.slice is not None and "slice" in value.stores and not {"plain", "nhwc"} & set(value.stores):
            return self._copy_slice(value, value.slice, layout, itemsize)
        other: Layout = "plain" if layout == "nhwc" else "nhwc"
        source = value.stores[other]
        n, c, spatial = value.shape[0], value.shape[1], math.prod(value.shape[2:])
        if c % 4 == 0 and (spatial == 1 or c == 1):
            self._state.attach(value, layout, source)
            return Buf(source.key)
        storage = self._state.allocate(layout_elements(value.shape, layout) * itemsize)
        self._state.attach(value, layout, storage)
        x, y = Buf(source.key), Buf(storage.key)
        if layout == "nhwc":
            self.launch(to_nhwc(x, y, n, c, spatial, itemsize))
        else:
            strides = layout_strides(value.shape, "nhwc")
            plain = layout_strides(value.shape, "plain")
            self.launch(strided_copy(x, y, value.shape, strides, plain, itemsize))
        return y

    def _copy_slice(self, value: Value, at: Slice, layout: Layout, itemsize: int) -> Buf:
        """Channels of a wider tensor as a tensor of their own."""
        storage = self._state.allocate(layout_elements(value.shape, layout) * itemsize)
        x, y = Buf(value.stores["slice"].key), Buf(storage.key)
        self._state.attach(value, layout, storage)
        order = [0, 2, 3, 1] if layout == "nhwc" else [0, 1, 2, 3]
        strides, walk = slice_strides(value.shape, at), layout_strides(value.shape, layout)
        sizes, steps = [value.shape[a] for a in order], [strides[a] for a in order]
        self.launch(strided_copy(x, y, sizes, steps, [walk[a] for a in order], itemsize, at.offset))
        return y

    def upload(self, value: Value) -> None:
        """Makes a tensor that the host knows lie on the device, plain."""
        if value.host is None:
            raise AssertionError(f"{value.name!r} is neither on the host nor on the device")
        array = np.ascontiguousarray(value.host.astype(device_dtype(value.dtype), copy=False))
        buffer = self.constant(array, f"{value.constant}:plain" if value.constant else None)
        self._state.attach(value, "plain", Storage(buffer.tensor, None))

    def allocate_channels_last(self, value: Value) -> tuple[Buf, Slice]:
        """Memory in NHWC: the tensor's place in a concatenation's result where it has one."""
        place = self._recording.places.get(value.name)
        itemsize = device_dtype(value.dtype).itemsize
        if (
            place is None
            or len(value.shape) != 4
            or value.shape[1] != place.channels
            or itemsize not in (2, 4)
        ):
            storage = self._state.allocate(layout_elements(value.shape, "nhwc") * itemsize)
            self._state.attach(value, "nhwc", storage)
            return Buf(storage.key), Slice(padded_channels(value.shape))
        root = self._state.roots.get(place.root)
        if root is None:
            wide = (value.shape[0], place.total, *value.shape[2:])
            root = self._state.allocate(layout_elements(wide, "nhwc") * itemsize)
            if place.root != value.name:
                root.refs += 1  # until the concatenation is there itself
                self._state.roots[place.root] = root
        elif place.root == value.name:
            self._state.roots.pop(place.root)
            root.refs -= 1
        if place.root == value.name:
            self._state.attach(value, "nhwc", root)
            return Buf(root.key), Slice(place.total)
        value.slice = Slice(place.total, place.offset)
        self._state.attach(value, "slice", root)
        return Buf(root.key), value.slice

    def compute(self, value: Value, wanted: Layout | str) -> None:
        """Launches a lazy value's kernel, in NHWC where its inputs lie so."""
        expr = value.lazy
        if expr is None:
            return
        inputs = leaves(expr)
        layout = self._layout(value, inputs, wanted)
        order = [0, *range(2, len(value.shape)), 1] if layout == "nhwc" else list(range(len(value.shape)))
        operands = {leaf: self._operand(leaf, value.shape, order, layout) for leaf in inputs}
        count = layout_elements(value.shape, layout)
        value.lazy = None
        if layout == "nhwc":
            out, at = self.allocate_channels_last(value)
        else:
            storage = self._state.allocate(count * device_dtype(value.dtype).itemsize)
            self._state.attach(value, layout, storage)
            out, at = Buf(storage.key), None
        loop = [value.shape[axis] for axis in order]
        if count:
            sliced = at if "slice" in value.stores else None
            self.launch(elementwise(expr, loop, operands, out, value.dtype, sliced))
        for leaf in inputs:
            self._state.release(leaf)

    def _layout(self, value: Value, inputs: list[Value], wanted: Layout | str) -> Layout:
        if len(value.shape) not in (3, 4) or value.shape[1] % 4:
            return "plain"
        full = [leaf for leaf in inputs if leaf.shape == value.shape]
        nhwc = [leaf for leaf in full if is_channels_last(leaf)]
        plain = [leaf for leaf in full if not is_channels_last(leaf)]
        if wanted == "nhwc" and not plain:
            return "nhwc"
        return "nhwc" if len(nhwc) > len(plain) or (nhwc and wanted == "nhwc") else "plain"

    def _operand(self, leaf: Value, shape: Shape, order: list[int], layout: Layout) -> Operand:
        if not leaf.stores:
            self.place(leaf)
        sliced = leaf.slice if "slice" in leaf.stores and layout == "nhwc" else None
        if sliced is None or "nhwc" in leaf.stores:
            sliced = None
            if layout not in leaf.stores and (leaf.shape == shape or list(leaf.stores) == ["slice"]):
                self.place(leaf, layout)
        held = layout if layout in leaf.stores else next(s for s in leaf.stores if s != "slice" or sliced)
        strides = slice_strides(leaf.shape, sliced) if sliced else layout_strides(leaf.shape, held)
        missing = len(shape) - len(leaf.shape)
        padded = [0] * missing + [0 if d == 1 else s for d, s in zip(leaf.shape, strides, strict=True)]
        offset = sliced.offset if sliced else 0
        return Operand(Buf(leaf.stores[held].key), tuple(padded[axis] for axis in order), offset)


def is_channels_last(value: Value) -> bool:
    """Whether the tensor lies in NHWC, perhaps as channels of a wider one."""
    return "nhwc" in value.stores or "slice" in value.stores
