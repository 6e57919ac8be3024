"""Tensors while a plan is made: where each lies, what of it the host knows, who still needs it."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from gpu_inference.graph.ir import Array
from gpu_inference.opencl.arena import SlotPlan
from gpu_inference.opencl.expression import Expr, leaves

# "slice": NHWC, as channels of a wider tensor (Value.slice)
Layout: TypeAlias = Literal["plain", "nhwc", "slice"]
Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Slice:
    """Channels of a wider NHWC tensor, in elements.

    Attributes:
        pitch: from one pixel to the next.
        offset: before the first one's.
    """

    pitch: int
    offset: int = 0


# float64 has no place on the cards that we are made for: it is kept in float32 on the device.
_DEVICE_DTYPE: Final[dict[str, type[Any]]] = {"float64": np.float32}


def device_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """How elements of `dtype` lie in device memory."""
    return np.dtype(_DEVICE_DTYPE.get(dtype.name, dtype))


def padded_channels(shape: Shape) -> int:
    """Channels of a tensor [n, c, ...] in the NHWC layout: the next multiple of 4."""
    return -(-shape[1] // 4) * 4


def layout_strides(shape: Shape, layout: Layout) -> tuple[int, ...]:
    """Elements from one index to the next, in the order of the ONNX dimensions."""
    if layout == "plain":
        strides = [1] * len(shape)
        for axis in range(len(shape) - 2, -1, -1):
            strides[axis] = strides[axis + 1] * max(shape[axis + 1], 1)
        return tuple(strides)
    c4 = padded_channels(shape)
    spatial = layout_strides(shape[2:], "plain")
    return (math.prod(shape[2:]) * c4, 1, *(s * c4 for s in spatial))


def slice_strides(shape: Shape, at: Slice) -> tuple[int, ...]:
    """Elements from one index to the next of channels of a wider NHWC tensor."""
    spatial = layout_strides(shape[2:], "plain")
    return (math.prod(shape[2:]) * at.pitch, 1, *(s * at.pitch for s in spatial))


def layout_elements(shape: Shape, layout: Layout) -> int:
    """Elements that a tensor takes."""
    if layout == "plain":
        return math.prod(shape)
    return shape[0] * padded_channels(shape) * math.prod(shape[2:])


def content_key(array: Array) -> str:
    """A constant's name by what it holds."""
    digest = hashlib.sha1(np.ascontiguousarray(array).tobytes()).hexdigest()
    return f"{array.dtype.name}{array.shape}:{digest}"


@dataclass(slots=True, eq=False)
class Storage:
    """Device memory of one or more values.

    Attributes:
        key: what Buf names: "slot:3" or a constant's key.
        slot: number of the arena slot; None for a constant.
        refs: values that lie here.
    """

    key: str
    slot: int | None
    refs: int = 0


@dataclass(slots=True, eq=False)
class Value:
    """One tensor of a plan.

    Attributes:
        name: in the graph.
        shape: concrete.
        dtype: as ONNX has it.
        uses: readings of it that are still to come.
        host: its elements, where the host knows them.
        constant: name of the graph's constant that it is, "" otherwise.
        stores: where it lies on the device, by layout; the same elements in each.
        lazy: how to compute it, where nobody has asked for it yet.
        from_caller: it is an input of the model.
        slice: where it lies in `stores["slice"]`.
    """

    name: str
    shape: Shape
    dtype: np.dtype[Any]
    uses: int = 0
    host: Array | None = None
    constant: str = ""
    stores: dict[Layout, Storage] = field(default_factory=dict)
    lazy: Expr | None = None
    from_caller: bool = False
    slice: Slice | None = None

    @property
    def size(self) -> int:
        """Elements, unpadded."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes on the device in plain layout."""
        return self.size * device_dtype(self.dtype).itemsize


@dataclass(slots=True)
class State:
    """Everything that planning changes as it walks through the nodes.

    Attributes:
        values: tensors made so far.
        slots: the arena.
        position: index of the next node.
        roots: results of concatenations that have memory already, since one of their inputs lies in it.
    """

    values: dict[str, Value] = field(default_factory=dict)
    slots: SlotPlan = field(default_factory=SlotPlan)
    position: int = 0
    roots: dict[str, Storage] = field(default_factory=dict)

    def clone(self) -> State:
        """An independent copy, to go on from here more than once. No value may be lazy."""
        storages: dict[Storage, Storage] = {}

        def copied(store: Storage) -> Storage:
            if store not in storages:
                storages[store] = Storage(store.key, store.slot, store.refs)
            return storages[store]

        values: dict[str, Value] = {}
        for name, value in self.values.items():
            stores = {layout: copied(store) for layout, store in value.stores.items()}
            values[name] = Value(
                value.name, value.shape, value.dtype, value.uses, value.host, value.constant, stores
            )
            values[name].from_caller = value.from_caller
            values[name].slice = value.slice
        roots = {name: copied(store) for name, store in self.roots.items()}
        return State(values, self.slots.clone(), self.position, roots)

    def allocate(self, size_bytes: int) -> Storage:
        """A slot as storage that nobody refers to yet."""
        slot = self.slots.take(size_bytes)
        return Storage(f"slot:{slot}", slot)

    def attach(self, value: Value, layout: Layout, storage: Storage) -> None:
        """`value` lies in `storage` too."""
        storage.refs += 1
        value.stores[layout] = storage

    def release(self, value: Value) -> None:
        """One reading of `value` is over; the last one frees what it holds."""
        value.uses -= 1
        if value.uses > 0:
            return
        for storage in value.stores.values():
            self.drop(storage)
        value.stores.clear()
        if value.lazy is not None:
            for leaf in leaves(value.lazy):
                self.release(leaf)
            value.lazy = None

    def drop(self, storage: Storage) -> None:
        """One reference less; the last one frees the slot."""
        storage.refs -= 1
        if storage.refs <= 0 and storage.slot is not None:
            self.slots.give(storage.slot)

    def live_slots(self) -> set[int]:
        """Slots whose content is still needed."""
        return set(range(len(self.slots.sizes))) - self.slots.free
