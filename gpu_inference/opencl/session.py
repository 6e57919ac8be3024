"""Runs a graph on one OpenCL device: plans per input shapes, a replay list per plan, host steps between."""

from __future__ import annotations

import logging
import os
import statistics
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from gpu_inference.devices import DeviceHandle, open_device, pick_device
from gpu_inference.errors import EngineError, ModelError
from gpu_inference.graph.checks import check_inputs
from gpu_inference.graph.importer import import_graph, read_model
from gpu_inference.graph.ir import Array, Graph, TensorInfo
from gpu_inference.graph.passes.pipeline import optimise
from gpu_inference.opencl.buffers import DeviceBuffers
from gpu_inference.opencl.choices import Choices, default_cache_path
from gpu_inference.opencl.launch import Buf, Launch
from gpu_inference.opencl.memory import MemoryNeed
from gpu_inference.opencl.plan import MAX_CONTINUATIONS, NeedsInputValue, Planner, Segment
from gpu_inference.opencl.replay import ReplayList
from gpu_inference.opencl.timing import LaunchTimer
from gpu_inference.opencl.tuner import Progress, Tuner, TuningCache
from gpu_inference.opencl.weights import ActivationType, WeightType

_log = logging.getLogger(__name__)

MAX_PLANS: Final = 32


@dataclass(frozen=True, slots=True)
class Report:
    """What a session is made of so far.

    Attributes:
        launches: kernels of one run, of the plan used last.
        slot_bytes: the arena, which holds intermediate tensors: device memory of each slot.
        constant_bytes: device memory of weights.
        fallback: nodes that run on onnxruntime, with the reason.
        plans: made so far.
    """

    launches: int
    slot_bytes: tuple[int, ...]
    constant_bytes: int
    fallback: dict[str, str]
    plans: int

    @property
    def arena_bytes(self) -> int:
        """Device memory of intermediate tensors."""
        return sum(self.slot_bytes)

    @property
    def peak_bytes(self) -> int:
        """Device memory held."""
        return self.arena_bytes + self.constant_bytes


@dataclass(frozen=True, slots=True)
class LaunchTime:
    """Device time of one launch.

    Attributes:
        node: of the model.
        kernel: name of the function.
        source: its file, or "generated".
        time_us: median.
        flops: multiply-adds count two; 0 where nobody counted.
        bytes: that it must move at least; 0 where nobody counted.
        slots: of the arena that it reads or writes.
    """

    node: str
    kernel: str
    source: str
    time_us: float
    flops: float
    bytes: float
    slots: tuple[int, ...]


def _slots(launch: Launch) -> tuple[int, ...]:
    names = {argument.tensor for argument in launch.args if isinstance(argument, Buf)}
    return tuple(sorted(int(name[5:]) for name in names if name.startswith("slot:")))


def _tuner_of(handle: DeviceHandle) -> Tuner:
    """The device's tuner, which measures with buffers of its own."""

    timers: list[LaunchTimer] = []

    def measure(launches: Sequence[Launch], sizes: Mapping[str, int]) -> float:
        if not timers:
            timers.append(LaunchTimer(handle.context))
        return float(timers[0].measure(launches, sizes))

    return Tuner(TuningCache(default_cache_path()), handle.traits, handle.driver, measure)


@dataclass(slots=True)
class _Bound:
    """A segment's kernels with their arguments set."""

    generation: int
    kernels: list[Any]
    replay: ReplayList


class OpenCLSession:
    """A model on an OpenCL device. See gpu_inference.Session.

    Args:
        model: path or bytes.
        device: index or part of a name; None for the best.
        fallback: run missing operators on onnxruntime.
        max_batch: size of free dimensions to weigh the device's memory for, here instead of at the first run.
        weights: how those of convolutions and products are stored; None as in the model: fp16, or else fp32.
        activations: how tensors between convolutions are stored.

    Raises:
        DeviceError: the device has too little memory for `max_batch`; none was taken.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes,
        device: str | int | None = None,
        *,
        fallback: bool = True,
        max_batch: int | None = None,
        weights: WeightType | None = None,
        activations: ActivationType = "fp32",
    ) -> None:
        graph = optimise(import_graph(read_model(model)), half_activations=activations == "fp16")
        self._open(graph, open_device(pick_device(device)), fallback, weights)
        if max_batch is not None:
            self._foresee(max_batch)

    def _open(self, graph: Graph, handle: DeviceHandle, fallback: bool, weights: WeightType | None) -> None:
        import pyopencl as cl

        self._cl: Any = cl
        self._graph, self._handle = graph, handle
        self._queue: Any = cl.CommandQueue(handle.context)
        self._buffers = DeviceBuffers(handle)
        self._tuner = _tuner_of(handle)
        self._choices = Choices(handle.traits, self._tuner)
        self._planner = Planner(
            graph,
            handle.traits,
            self._buffers.constants,
            fallback=fallback,
            choices=self._choices,
            weights=weights,
        )
        self._first: Segment | None = None
        self._last: Segment | None = None
        self._plans: OrderedDict[Any, Segment] = OrderedDict()
        self._bound: dict[Segment, _Bound] = {}
        self._value_inputs: list[str] = []
        self._announced: set[str] = set()
        self._launches = 0
        self._closed = False

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """See gpu_inference.Session."""
        return tuple(self._graph.inputs)

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """See gpu_inference.Session."""
        return tuple(self._graph.outputs)

    @property
    def report(self) -> Report:
        """Launches, memory and what runs elsewhere; meaningful after the first run."""
        return Report(
            self._launches,
            self._buffers.slot_bytes,
            self._buffers.constant_bytes,
            dict(self._planner.fallen_back),
            len(self._plans),
        )

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See gpu_inference.Session."""
        if self._closed:
            raise EngineError("the session is closed: load the model again")
        check_inputs(self._graph.inputs, inputs)
        first = self._plan(inputs)
        self._prepare(first)
        for name, (key, dtype) in first.inputs.items():
            self._write(key, inputs[name], dtype)
        return self._read_outputs(self._run_from(first))

    def upload(self, inputs: Mapping[str, Array]) -> None:
        """Plans for these inputs and puts them on the device; `replay` runs on them."""
        check_inputs(self._graph.inputs, inputs)
        self._first = self._plan(inputs)
        self._prepare(self._first)
        for name, (key, dtype) in self._first.inputs.items():
            self._write(key, inputs[name], dtype)

    def replay(self) -> None:
        """Runs once on what `upload` has put there, without reading the outputs or waiting for them.

        Raises:
            EngineError: nothing was uploaded.
        """
        if self._first is None:
            raise EngineError("nothing to replay: call upload() first")
        self._last = self._run_from(self._first)

    def finish(self) -> None:
        """Waits for the device."""
        self._queue.finish()

    def fetch(self) -> dict[str, Array]:
        """The outputs of the last replay."""
        if self._last is None:
            raise EngineError("nothing to fetch: call replay() first")
        return self._read_outputs(self._last)

    def tune(
        self, inputs: Mapping[str, Array], progress: Progress | None = None, *, again: bool = False
    ) -> int:
        """Times the candidates of every convolution and product at these shapes; later runs use the best.

        Args:
            inputs: of the shapes to tune for.
            progress: called with (done, of).
            again: also what was tuned before.

        Returns:
            How many problems were timed.
        """
        self.run(inputs)
        count = self._tuner.tune(list(self._choices.problems.values()), progress, again=again)
        self._plans.clear()
        self._bound.clear()
        self._first = self._last = None
        return count

    def profile(self, inputs: Mapping[str, Array], repeats: int = 5) -> list[LaunchTime]:
        """Device time of every launch, the median of some runs.

        Models with host steps are measured up to their end too; the host's own time isn't part of it.
        """
        self.run(inputs)
        properties = self._cl.command_queue_properties.PROFILING_ENABLE
        queue, self._queue = self._queue, self._cl.CommandQueue(self._handle.context, properties=properties)
        try:
            rounds = [self._profile_once(inputs) for _ in range(repeats)]
        finally:
            self._queue = queue
        return [
            LaunchTime(
                launch.node,
                launch.kernel.name,
                launch.kernel.file or "generated",
                statistics.median(times[position][1] for times in rounds),
                launch.flops,
                launch.bytes,
                _slots(launch),
            )
            for position, (launch, _) in enumerate(rounds[0])
        ]

    def _profile_once(self, inputs: Mapping[str, Array]) -> list[tuple[Launch, float]]:
        segment = self._plan(inputs)
        self._prepare(segment)
        for name, (key, dtype) in segment.inputs.items():
            self._write(key, inputs[name], dtype)
        events: list[tuple[Launch, Any]] = []
        while True:
            bound = self._bound[segment]
            for launch, kernel in zip(segment.launches, bound.kernels, strict=True):
                sizes = launch.global_size, launch.local_size
                events.append((launch, self._cl.enqueue_nd_range_kernel(self._queue, kernel, *sizes)))
            if segment.state is None:
                break
            segment = self._continue(segment)
        self._queue.finish()
        return [(launch, 1e-3 * (e.profile.end - e.profile.start)) for launch, e in events]

    def _run_from(self, segment: Segment) -> Segment:
        launches = self._execute(segment)
        while segment.state is not None:
            segment = self._continue(segment)
            launches += self._execute(segment)
        self._launches = launches
        return segment

    def close(self) -> None:
        """See gpu_inference.Session."""
        if self._closed:
            return
        self._closed = True
        self._queue.finish()
        self._plans.clear()
        self._bound.clear()
        self._first = self._last = None
        self._buffers.close()

    # ---- planning

    def memory_need(self, inputs: Mapping[str, Array]) -> MemoryNeed:
        """Device memory that the session holds once it has run on such inputs; plans, but takes none."""
        check_inputs(self._graph.inputs, inputs)
        return self._buffers.need(self._plan(inputs))

    def _foresee(self, batch: int) -> None:
        inputs = {
            info.name: np.zeros([batch if size is None else size for size in info.shape or ()], info.dtype)
            for info in self._graph.inputs
        }
        try:
            segment = self._plan(inputs, guess=False)
        except NeedsInputValue as need:
            _log.info("the memory it takes shows at the first run: shapes depend on input %r", need.name)
        except ModelError as error:
            _log.warning("the memory it takes is unknown, it can't be planned for batch %d: %s", batch, error)
        else:
            self._buffers.check(segment)

    def _plan(self, inputs: Mapping[str, Array], *, guess: bool = True) -> Segment:
        while True:
            key = (
                tuple((info.name, inputs[info.name].shape) for info in self._graph.inputs),
                tuple(inputs[name].tobytes() for name in self._value_inputs),
            )
            if key in self._plans:
                self._plans.move_to_end(key)
                return self._plans[key]
            shapes = {name: (array.shape, array.dtype) for name, array in inputs.items()}
            values = {name: np.array(inputs[name]) for name in self._value_inputs}
            try:
                segment = self._planner.start(shapes, values)
            except NeedsInputValue as need:
                if not guess:
                    raise
                self._value_inputs.append(need.name)
                continue
            self._plans[key] = segment
            if len(self._plans) > MAX_PLANS:
                self._forget(self._plans.popitem(last=False)[1])
            self._announce()
            return segment

    def _continue(self, segment: Segment) -> Segment:
        arrays = [
            None if value is None else self._buffers.read(self._queue, value) for value in segment.reads
        ]
        if segment.host_call is not None:
            results = segment.host_call.function(arrays)
            key: Any = tuple((array.shape, array.dtype.str) for array in results)
        else:
            results = [array for array in arrays if array is not None]
            key = tuple(array.tobytes() for array in results)
        after = segment.next.get(key)
        if after is None:
            after = segment.next[key] = self._planner.resume(segment, results)
            if len(segment.next) > MAX_CONTINUATIONS:
                self._forget(segment.next.popitem(last=False)[1])
            self._announce()
        else:
            segment.next.move_to_end(key)
        self._prepare(after)
        for index, name, dtype in after.results:
            self._write(name, results[index], dtype)
        return after

    def _forget(self, segment: Segment) -> None:
        self._bound.pop(segment, None)
        for after in segment.next.values():
            self._forget(after)

    def _announce(self) -> None:
        new = set(self._planner.fallen_back) - self._announced
        self._announced |= new
        for label in sorted(new):
            _log.warning(
                "%s runs on onnxruntime (%s): each run copies its tensors to the host and back",
                label,
                self._planner.fallen_back[label],
            )

    def _prepare(self, segment: Segment) -> None:
        """Takes the memory that the segment needs and presets every kernel's arguments."""
        self._buffers.prepare(self._queue, segment)
        bound = self._bound.get(segment)
        if bound is None:
            kernels = [self._handle.programs.kernel(launch.kernel) for launch in segment.launches]
            bound = self._bound[segment] = _Bound(-1, kernels, ReplayList(kernels, segment.launches))
        if bound.generation != self._buffers.generation:
            for kernel, launch in zip(bound.kernels, segment.launches, strict=True):
                self._preset(kernel, launch)
            bound.generation = self._buffers.generation

    def _preset(self, kernel: Any, launch: Launch) -> None:
        for index, argument in enumerate(launch.args):
            value = self._buffers.resolve(argument) if isinstance(argument, Buf) else argument
            kernel.set_arg(index, value)

    def _write(self, key: str, array: Array, dtype: np.dtype[Any]) -> None:
        self._buffers.write(self._queue, key, array, dtype)

    # ---- running

    def _execute(self, segment: Segment) -> int:
        replay = self._bound[segment].replay
        replay.enqueue(self._queue)
        return len(replay)

    def _read_outputs(self, segment: Segment) -> dict[str, Array]:
        results = {}
        for info, value in zip(self._graph.outputs, segment.outputs, strict=True):
            array = self._buffers.read(self._queue, value)
            results[info.name] = array if value.host is None else array.copy()
        return results
