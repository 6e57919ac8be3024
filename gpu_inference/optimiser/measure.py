"""What a transformed model costs and keeps, beside the one that it came from.

judge = Judge(load_model("model.onnx"), samples, [target_of("cpu")])
judge.measure(judge.original, "original"), judge.measure(smaller, "int8")
"""

from __future__ import annotations

import statistics
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
from onnx import ModelProto

from gpu_inference.accuracy import OutputError, output_error
from gpu_inference.errors import EngineError, RecipeError
from gpu_inference.optimiser.loading import parameter_counts, to_bytes
from gpu_inference.session import EngineName, Session, load

if TYPE_CHECKING:
    from gpu_inference.graph.ir import Array
    from gpu_inference.optimiser.samples import Samples

_REFERENCE: Final = "CPUExecutionProvider"


@dataclass(frozen=True, slots=True)
class Target:
    """Where models are timed.

    Attributes:
        name: as the user wrote it.
        engine: of ours.
        device: as `gpu_inference.load` takes it.
    """

    name: str
    engine: EngineName
    device: str | None


def target_of(name: str) -> Target:
    """A target by its name: `cpu`, `onnxruntime`, `opencl`, or an engine and its device after a colon.

    Raises:
        RecipeError: there is no such engine.
    """
    engine, _, device = name.partition(":")
    match engine:
        case "cpu":
            return Target(name, "onnxruntime", _REFERENCE)
        case "onnxruntime" | "opencl":
            return Target(name, engine, device or None)
    raise RecipeError(
        f"no device {name!r}: take cpu, onnxruntime:PROVIDER or opencl:DEVICE (index or part of its name)"
    )


@dataclass(frozen=True, slots=True)
class Measured:
    """One model beside the original.

    Attributes:
        recipe: what was done to it.
        size_bytes: of the file.
        ratio: of that to the original's.
        packed_bytes: of the file once it is compressed (deflate), where zeros cost nothing.
        parameters: weights, whole or quantised.
        nonzero: those that aren't zero.
        max_error: largest difference by the largest magnitude of an output, of the worst output; None where
            there are no floats.
        mean_error: mean difference by the mean magnitude, likewise.
        agreement: share of rows with the same largest class; None where an output has no classes.
        accuracy: share of rows with the labelled class; None without labels.
        kept: what a floor is compared with, 0 to 1: accuracy by the original's where there are labels, else
            agreement where there are classes, else 1 - mean_error.
        seconds: median of a run by target; None where it failed.
        failures: why, by target.
    """

    recipe: str
    size_bytes: int
    ratio: float
    packed_bytes: int
    parameters: int
    nonzero: int
    max_error: float | None
    mean_error: float | None
    agreement: float | None
    accuracy: float | None
    kept: float
    seconds: dict[str, float | None] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


class Judge:
    """Measures models against one original.

    Args:
        original: the model.
        samples: what all of them run on.
        targets: where they are timed; none are, where there are none.
        repeats: runs that are timed.
        calibration: data for the steps that learn from it, which then says nothing of what they keep; None
            for `samples`.

    Attributes:
        calibrator: a judge with the calibration data: itself where there is none of its own.

    Raises:
        ModelError: onnxruntime can't run the original on the samples.
    """

    def __init__(
        self,
        original: ModelProto,
        samples: Samples,
        targets: Sequence[Target] = (),
        repeats: int = 10,
        calibration: Samples | None = None,
    ) -> None:
        self.original, self.samples = original, samples
        self.calibrator: Judge = self if calibration is None else Judge(original, calibration)
        self.targets, self._repeats = tuple(targets), repeats
        self._size = len(to_bytes(original))
        self._wanted = self._outputs(to_bytes(original))
        self._accuracy = self._share_right(self._wanted)
        if self._accuracy == 0:
            raise RecipeError(
                "the model gets no label right: check the labels and the preprocessing of the data"
            )

    def kept(self, model: ModelProto) -> float:
        """Only what a floor is compared with: see Measured.kept."""
        return self._judged(self._outputs(to_bytes(model)))[-1]

    def measure(self, model: ModelProto, recipe: str) -> Measured:
        """Runs a model on the samples and times it.

        Raises:
            ModelError: onnxruntime can't run it.
        """
        data = to_bytes(model)
        max_error, mean_error, agreement, accuracy, kept = self._judged(self._outputs(data))
        total, nonzero = parameter_counts(model)
        seconds: dict[str, float | None] = {}
        failures: dict[str, str] = {}
        for target in self.targets:
            try:
                seconds[target.name] = self._seconds(data, target)
            except EngineError as error:
                seconds[target.name], failures[target.name] = None, str(error)
        return Measured(
            recipe,
            len(data),
            len(data) / self._size,
            len(zlib.compress(data, 1)),
            total,
            nonzero,
            max_error,
            mean_error,
            agreement,
            accuracy,
            kept,
            seconds,
            failures,
        )

    def _judged(
        self, outputs: dict[str, Array]
    ) -> tuple[float | None, float | None, float | None, float | None, float]:
        errors = [output_error(name, outputs[name], want) for name, want in self._wanted.items()]
        max_error = _worst(errors, "max_error")
        mean_error = _worst(errors, "mean_error")
        agreement = min((e.agreement for e in errors if e.agreement is not None), default=None)
        accuracy = self._share_right(outputs)
        if accuracy is not None and self._accuracy:
            kept = min(accuracy / self._accuracy, 1.0)
        elif agreement is not None:
            kept = agreement
        else:
            kept = max(0.0, 1 - (mean_error or 0.0))
        return max_error, mean_error, agreement, accuracy, kept

    def _outputs(self, data: bytes) -> dict[str, Array]:
        session = load(data, "onnxruntime", _REFERENCE)
        try:
            runs = [session.run(piece) for piece in self.samples.pieces]
        finally:
            session.close()
        found = {}
        for name, first in runs[0].items():
            array = np.concatenate([run[name] for run in runs]) if first.ndim and len(runs) > 1 else first
            if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
                array = np.nan_to_num(array.astype(np.float64), posinf=1e30, neginf=-1e30)
            found[name] = array
        return found

    def _share_right(self, outputs: dict[str, Array]) -> float | None:
        labels = self.samples.labels
        if labels is None:
            return None
        for array in outputs.values():
            if array.ndim >= 2 and array.size == len(labels) * array.shape[1]:
                return float((array.reshape(len(labels), -1).argmax(axis=1) == labels).mean())
        raise RecipeError("there are labels, but the model has no output [rows, classes]: leave them out")

    def _seconds(self, data: bytes, target: Target) -> float:
        session = load(data, target.engine, target.device)
        try:
            return _median_seconds(session, self.samples.pieces[0], self._repeats)
        finally:
            session.close()


def _median_seconds(session: Session, piece: dict[str, Array], repeats: int) -> float:
    session.run(piece)
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        session.run(piece)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _worst(errors: Sequence[OutputError], name: str) -> float | None:
    found = [getattr(error, name) for error in errors]
    return max((value for value in found if value is not None), default=None)
