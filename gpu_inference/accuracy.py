"""What weights of a smaller type cost a model: its outputs beside those with fp32 weights, bytes and time.

    for found in compare_weights("model.onnx", {"x": frames}, ("fp16", "int8")):
        found.weights, found.ratio, found.max_error, found.agreement

Errors are relative to the size of an output, not to each element: the largest difference by the largest
magnitude, the mean difference by the mean magnitude. They hold for the inputs that were given; random ones
say little of a trained model, whose classes they don't show.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gpu_inference.opencl.session import OpenCLSession
from gpu_inference.opencl.weights import WEIGHT_TYPES, ActivationType, WeightType

if TYPE_CHECKING:
    from gpu_inference.graph.ir import Array

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class OutputError:
    """One output beside the same with fp32 weights.

    Attributes:
        name: of the output.
        max_error: largest difference by largest magnitude; None where elements are no floats.
        mean_error: mean difference by mean magnitude; None likewise.
        agreement: of an output [batch, classes] the share of rows with the same largest class, of one that
            has no floats the share of equal elements (0 where its shape changed); None for all others.
    """

    name: str
    max_error: float | None
    mean_error: float | None
    agreement: float | None


@dataclass(frozen=True, slots=True)
class WeightAccuracy:
    """A model with its weights in one type.

    Attributes:
        weights: their type.
        activations: type of the tensors between convolutions.
        weight_bytes: device memory of all constants, biases and scales too.
        arena_bytes: device memory of all intermediate tensors.
        ratio: of the weights' bytes to the same in fp32.
        time_ms: median of a run whose inputs lie on the device, untuned where nobody has tuned the type.
        outputs: each beside the same with fp32 weights.
    """

    weights: WeightType
    activations: ActivationType
    weight_bytes: int
    arena_bytes: int
    ratio: float
    time_ms: float
    outputs: tuple[OutputError, ...]

    @property
    def max_error(self) -> float | None:
        """Of the worst output; None where there are no floats."""
        return max((o.max_error for o in self.outputs if o.max_error is not None), default=None)

    @property
    def mean_error(self) -> float | None:
        """Of the worst output; None where there are no floats."""
        return max((o.mean_error for o in self.outputs if o.mean_error is not None), default=None)

    @property
    def agreement(self) -> float | None:
        """Of the worst output; None where none of them has classes or integers."""
        return min((o.agreement for o in self.outputs if o.agreement is not None), default=None)


def compare_weights(
    model: str | os.PathLike[str] | bytes,
    inputs: Mapping[str, Array],
    kinds: Sequence[WeightType] = WEIGHT_TYPES,
    device: str | int | None = None,
    *,
    activations: ActivationType = "fp32",
    repeats: int = 20,
    progress: Progress = lambda done, of, note: None,
) -> list[WeightAccuracy]:
    """Runs a model with each type of weights, all in fp32 first, whether that is among them or not.

    Args:
        model: path or bytes.
        inputs: what it runs on.
        kinds: types to compare.
        device: index or part of a name; None for the best.
        activations: how tensors between convolutions are stored beside each of `kinds`.
        repeats: runs that are timed.
        progress: called with (done, of, type).

    Returns:
        All in fp32, then `kinds` in their order.

    Raises:
        ModelError: the model is broken, or the inputs don't fit it.
        DeviceError: no such device, or too little memory on it.
    """
    exact: tuple[WeightType, ActivationType] = ("fp32", "fp32")
    todo = list(dict.fromkeys([exact, *((kind, activations) for kind in kinds)]))
    found: list[WeightAccuracy] = []
    wanted: dict[str, Array] = {}
    for done, (kind, between) in enumerate(todo):
        progress(done, len(todo), kind)
        session = OpenCLSession(model, device, weights=kind, activations=between)
        try:
            got = session.run(inputs)
            wanted = wanted or got
            size, arena = session.report.constant_bytes, session.report.arena_bytes
            first = found[0].weight_bytes if found else size
            outputs = tuple(output_error(name, got[name], want) for name, want in wanted.items())
            ratio = size / first if first else 1.0
            time_ms = _time_ms(session, inputs, repeats)
            found.append(WeightAccuracy(kind, between, size, arena, ratio, time_ms, outputs))
        finally:
            session.close()
    progress(len(todo), len(todo), "done")
    return found


def output_error(name: str, got: Array, want: Array) -> OutputError:
    """One output beside the same of another model."""
    same_shape = got.shape == want.shape
    if not np.issubdtype(want.dtype, np.floating):
        equal = float(np.equal(got, want).mean()) if same_shape and want.size else float(same_shape)
        return OutputError(name, None, None, equal)
    if not same_shape:
        return OutputError(name, float("inf"), float("inf"), None)
    if not want.size:
        return OutputError(name, 0.0, 0.0, None)
    got, want = got.astype(np.float64), want.astype(np.float64)
    off, size = np.abs(got - want), np.abs(want)
    largest, mean = max(float(size.max()), 1e-30), max(float(size.mean()), 1e-30)
    if not np.isfinite(off).all():  # halves overflow beyond 65504
        return OutputError(name, float("inf"), float("inf"), _same_class(got, want))
    return OutputError(name, float(off.max()) / largest, float(off.mean()) / mean, _same_class(got, want))


def _same_class(got: Array, want: Array) -> float | None:
    """Share of rows with the same largest entry; None for what isn't [batch, classes] (then ones)."""
    if want.ndim < 2 or want.shape[1] < 2 or any(size != 1 for size in want.shape[2:]):
        return None
    rows = (len(want), -1)
    return float((got.reshape(rows).argmax(axis=1) == want.reshape(rows).argmax(axis=1)).mean())


def _time_ms(session: OpenCLSession, inputs: Mapping[str, Array], repeats: int) -> float:
    session.upload(inputs)
    times = []
    for number in range(repeats + 2):
        started = time.perf_counter()
        session.replay()
        session.finish()
        if number >= 2:
            times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times)
