"""Predicted times of a model on a card that isn't there: its plan, priced by the cost model.

    for forecast in forecast_model("model.onnx", [inputs_of_batch_1, inputs_of_batch_8], RX580):
        forecast.total_us, forecast.memory, forecast.rows

The plan is the one that such a card would get untuned: the same choices from the same candidates.
Convolutions and products cost what cost_model.py and gemm.py say; every other launch is priced at the card's
full bandwidth and arithmetic rate plus the launch itself, which is the least that it can take, and marked so.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from gpu_inference.graph.importer import import_graph, read_model
from gpu_inference.graph.ir import Array, Graph, TensorInfo
from gpu_inference.graph.passes.pipeline import optimise
from gpu_inference.opencl.choices import Choices
from gpu_inference.opencl.conv_shape import ConvChoice, ConvShape
from gpu_inference.opencl.cost_model import rates_of
from gpu_inference.opencl.epilogue import Epilogue
from gpu_inference.opencl.gemm import GemmChoice, GemmShape
from gpu_inference.opencl.launch import Kernel, Launch
from gpu_inference.opencl.memory import MemoryNeed, memory_need
from gpu_inference.opencl.plan import NeedsInputValue, Planner, Segment
from gpu_inference.opencl.staging import staging_bytes_of
from gpu_inference.opencl.traits import DeviceTraits
from gpu_inference.opencl.tuner import Problem, conv_problem, gemm_problem
from gpu_inference.opencl.weights import ActivationType, WeightType


@dataclass(slots=True)
class KernelForecast:
    """All launches of one kernel variant in a run.

    Attributes:
        kernel: the variant.
        choice: how the cost model calls it, "" for kernels that nobody has a choice of.
        modelled: False where the time is only the least that it can take.
        launches: how many.
        time_us: predicted, of all of them.
        flops: of all of them, multiply-adds count two.
    """

    kernel: Kernel
    choice: str
    modelled: bool
    launches: int = 0
    time_us: float = 0.0
    flops: float = 0.0

    @property
    def gflops(self) -> float:
        """Predicted rate."""
        return self.flops / self.time_us / 1e3 if self.time_us else 0.0


@dataclass(frozen=True, slots=True)
class Forecast:
    """One run of a model at one set of input shapes.

    Attributes:
        rows: by kernel variant, the slowest first.
        memory: that the run takes.
        stops_at: the node behind which only a real run can tell what follows, "" where nothing does.
        nodes_left: nodes from there on, not part of the prediction.
        guessed: inputs whose elements shapes depend on; the plan is of the given ones.
        fallback: nodes that would run on onnxruntime, with the reason.
    """

    rows: tuple[KernelForecast, ...]
    memory: MemoryNeed
    stops_at: str = ""
    nodes_left: int = 0
    guessed: tuple[str, ...] = ()
    fallback: dict[str, str] = field(default_factory=dict)

    @property
    def total_us(self) -> float:
        """Predicted device time of a run."""
        return sum(row.time_us for row in self.rows)

    @property
    def least_us(self) -> float:
        """The part of it that is only a lower bound."""
        return sum(row.time_us for row in self.rows if not row.modelled)

    @property
    def launches(self) -> int:
        """Of a run."""
        return sum(row.launches for row in self.rows)


@dataclass(frozen=True, slots=True)
class _Note:
    """A convolution or product that was planned: its choice, and what each of its launches costs."""

    choice: str
    kernels: tuple[tuple[str | None, str], ...]
    costs_us: tuple[float, ...]


class NotingChoices(Choices):
    """The cost model's choices, with a note of each, in the order of the plan.

    Args:
        device: what the launches would run on.
    """

    def __init__(self, device: DeviceTraits) -> None:
        super().__init__(device)
        self.notes: deque[_Note] = deque()
        self._known: dict[Any, tuple[Any, _Note]] = {}

    def conv(self, shape: ConvShape, epilogue: Epilogue) -> ConvChoice:
        """The cost model's choice for a convolution."""
        if (shape, epilogue) not in self._known:
            self._learn((shape, epilogue), conv_problem(shape, epilogue, self._device))
        choice, note = self._known[shape, epilogue]
        self.notes.append(note)
        return choice  # type: ignore[no-any-return]

    def gemm(self, shape: GemmShape, epilogue: Epilogue) -> GemmChoice:
        """The cost model's choice for a product."""
        if (shape, epilogue) not in self._known:
            self._learn((shape, epilogue), gemm_problem(shape, epilogue, self._device))
        choice, note = self._known[shape, epilogue]
        self.notes.append(note)
        return choice  # type: ignore[no-any-return]

    def _learn(self, key: Any, problem: Problem[Any]) -> None:
        choice, cost_us = problem.predicted[0]
        launches, _ = problem.launches(choice)
        kernels = tuple((launch.kernel.file, launch.kernel.name) for launch in launches)
        self._known[key] = (
            choice,
            _Note(choice.label, kernels, tuple(_shares(launches, cost_us, self._device))),
        )


def _shares(launches: Sequence[Launch], cost_us: float, device: DeviceTraits) -> Iterator[float]:
    """A cost that covers several launches, divided as the cost model composes it."""
    main = max(range(len(launches)), key=lambda index: launches[index].flops)
    # parts of a split product are read from the cache, Winograd's tiles from memory
    rates = {"splitk.cl": device.cache_gbs}
    others = [
        rates_of(device).second_us
        + 1e-3 * launch.bytes / rates.get(launch.kernel.file or "", device.bandwidth_gbs)
        for launch in launches
    ]
    others[main] = 0.0
    rest = sum(others)
    for index, share in enumerate(others):
        yield cost_us - rest if index == main else share


_CHOSEN: Final = frozenset(
    {
        "conv_direct.cl",
        "conv_nhwc.cl",
        "conv_uniform.cl",
        "depthwise.cl",
        "gemm.cl",
        "gemm_direct.cl",
        "gemv.cl",
        "splitk.cl",
        "winograd.cl",
    }
)


def inputs_of(model: str | os.PathLike[str] | bytes) -> tuple[TensorInfo, ...]:
    """What a model wants, read without a device."""
    return tuple(import_graph(read_model(model)).inputs)


def forecast_model(
    model: str | os.PathLike[str] | bytes,
    inputs: Sequence[Mapping[str, Array]],
    device: DeviceTraits,
    weights: WeightType | None = None,
    activations: ActivationType = "fp32",
) -> list[Forecast]:
    """Plans a model for a device and prices the plans; nothing runs, and no OpenCL is needed.

    Args:
        model: path or bytes.
        inputs: arrays for the model's inputs, a set for each forecast. Their shapes count, and the elements
            of those that shapes depend on.
        device: for example traits.RX580.
        weights: how they are stored; None as in the model.
        activations: how tensors between convolutions are.

    Raises:
        ModelError: the model is broken, or can't be planned at these shapes.
        DeviceError: one of its tensors passes the limit of a buffer.
    """
    graph = optimise(import_graph(read_model(model)), half_activations=activations == "fp16")
    return [_forecast(graph, given, device, weights) for given in inputs]


def memory_of_model(
    model: str | os.PathLike[str] | bytes,
    inputs: Sequence[Mapping[str, Array]],
    device: DeviceTraits,
    weights: WeightType | None = None,
    activations: ActivationType = "fp32",
) -> MemoryNeed:
    """Device memory of a session that runs all these sets of inputs, planned without allocating any.

    Args:
        model: path or bytes.
        inputs: as for `forecast_model`; give the largest batch, or all of them.
        device: what it would run on.
        weights: how they are stored; None as in the model.
        activations: how tensors between convolutions are.

    Raises:
        ModelError: the model is broken, or can't be planned at these shapes.
        DeviceError: one of its tensors passes the limit of a buffer.
    """
    graph = optimise(import_graph(read_model(model)), half_activations=activations == "fp16")
    segments = [_plan(graph, given, device, weights)[0] for given in inputs]
    return memory_need(segments, staging_bytes=staging_bytes_of(device))


def _plan(
    graph: Graph, inputs: Mapping[str, Array], device: DeviceTraits, weights: WeightType | None
) -> tuple[Segment, NotingChoices, Planner, list[str]]:
    shapes = {name: (array.shape, array.dtype) for name, array in inputs.items()}
    values: dict[str, Array] = {}
    while True:
        choices = NotingChoices(device)
        planner = Planner(graph, device, fallback=True, choices=choices, weights=weights)
        try:
            return planner.start(shapes, values), choices, planner, list(values)
        except NeedsInputValue as need:
            values[need.name] = inputs[need.name]


def _forecast(
    graph: Graph, inputs: Mapping[str, Array], device: DeviceTraits, weights: WeightType | None
) -> Forecast:
    segment, choices, planner, guessed = _plan(graph, inputs, device, weights)
    rows: dict[Kernel, KernelForecast] = {}
    for launch, choice, time_us in _priced(segment.launches, choices.notes, device):
        row = rows.get(launch.kernel)
        if row is None:
            row = rows[launch.kernel] = KernelForecast(launch.kernel, choice, bool(choice))
        row.launches += 1
        row.time_us += time_us
        row.flops += launch.flops
    position = segment.state.position if segment.state is not None else len(planner.nodes)
    return Forecast(
        rows=tuple(sorted(rows.values(), key=lambda row: -row.time_us)),
        memory=memory_need([segment], staging_bytes=staging_bytes_of(device)),
        stops_at=planner.nodes[position].label if segment.state is not None else "",
        nodes_left=len(planner.nodes) - position,
        guessed=tuple(guessed),
        fallback=dict(planner.fallen_back),
    )


def _priced(
    launches: Sequence[Launch], notes: deque[_Note], device: DeviceTraits
) -> Iterator[tuple[Launch, str, float]]:
    """Each launch with its choice ("" where there was none) and predicted time, µs.

    Launches stand in the order of the notes. A note whose launches never came belongs to a lowering that
    gave up halfway, and is skipped.
    """
    waiting: deque[tuple[str, tuple[str | None, str], float]] = deque()
    rates = rates_of(device)
    for launch in launches:
        found = (launch.kernel.file, launch.kernel.name)
        if launch.kernel.file in _CHOSEN:
            while notes and (not waiting or waiting[0][1] != found):
                note = notes.popleft()
                waiting = deque(
                    (note.choice, kernel, cost)
                    for kernel, cost in zip(note.kernels, note.costs_us, strict=True)
                )
            if waiting and waiting[0][1] == found:
                choice, _, time_us = waiting.popleft()
                yield launch, choice, time_us
                continue
        least_us = 1e-3 * max(launch.bytes / device.bandwidth_gbs, launch.flops / device.peak_gflops)
        yield launch, "", least_us + rates.launch_us
