"""What planning collects: launches, constants, and where it has to stop for the host."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from gpu_inference.graph.ir import Array
from gpu_inference.opencl.choices import Choices
from gpu_inference.opencl.launch import Launch
from gpu_inference.opencl.placement import Place
from gpu_inference.opencl.traits import DeviceTraits
from gpu_inference.opencl.value import Value
from gpu_inference.opencl.weights import WeightType

HostFunction: TypeAlias = Callable[[list[Array | None]], list[Array]]


class NeedsValue(Exception):
    """Planning can't go on without the elements of a tensor."""

    def __init__(self, value: Value) -> None:
        super().__init__(value.name)
        self.value = value


@dataclass(slots=True)
class HostCall:
    """A step on the host: read tensors, call the function, go on with what it returns."""

    inputs: list[Value | None]
    outputs: list[str]
    function: HostFunction
    node: str


@dataclass(slots=True)
class Recording:
    """What a plan's segment collects.

    Attributes:
        device: what the launches will run on.
        choices: which kernel variants to take.
        uploaded: keys of constants that the device has already.
        launches: in order.
        constants: new ones by key, as they go to the device.
        host_call: where the segment ends in one.
        places: tensors that can be computed in their place in a concatenation's result.
        weights: how those of convolutions and products are stored.
    """

    device: DeviceTraits
    choices: Choices
    uploaded: Container[str] = ()
    launches: list[Launch] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    host_call: HostCall | None = None
    places: Mapping[str, Place] = field(default_factory=dict)
    weights: WeightType = "fp32"
