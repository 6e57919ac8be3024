"""Finds the fastest candidate of a convolution or product by timing, and remembers it on disk.

    tuner = Tuner(TuningCache(path), timer.traits, driver="580.159", measure=timer.measure)
    problem = conv_problem(shape, epilogue, timer.traits)
    plan = plan_conv(shape, epilogue, timer.traits, tuner.known(problem))     # or None: the cost model's
    tuner.tune([problem], progress=bar)                                       # now known() has it

A cache entry is keyed by device, driver, problem and the text of the kernels, so that nothing stale is used.
The file is JSON, replaced atomically; whatever is wrong with it costs a new tuning, never an error.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from gpu_inference.errors import KernelError
from gpu_inference.opencl import conv, gemm
from gpu_inference.opencl.conv_shape import ConvChoice, ConvShape, round_up
from gpu_inference.opencl.cost_model import conv_cost_us
from gpu_inference.opencl.epilogue import Epilogue
from gpu_inference.opencl.gemm import GemmChoice, GemmShape
from gpu_inference.opencl.launch import Buf, Launch
from gpu_inference.opencl.source import kernel_source
from gpu_inference.opencl.traits import DeviceTraits

# Device time of launches in µs, run in buffers of the given sizes in bytes (by Buf.tensor).
Measure = Callable[[Sequence[Launch], Mapping[str, int]], float]
Progress = Callable[[int, int], None]

_FORMAT: Final = 1
_SOURCES: Final = (
    "conv_direct.cl",
    "conv_nhwc.cl",
    "conv_uniform.cl",
    "depthwise.cl",
    "gemm.cl",
    "gemm_direct.cl",
    "gemv.cl",
    "splitk.cl",
    "winograd.cl",
)
# Only candidates that the model predicts within this factor of its favourite are timed.
_BREADTH: Final = 1.7
_MOST: Final = 40

ChoiceT = TypeVar("ChoiceT", bound=ConvChoice | GemmChoice)


@cache
def kernels_version() -> str:
    """Changes whenever a tuned kernel's text does."""
    digest = sha256(str(_FORMAT).encode())
    for file in _SOURCES:
        digest.update(kernel_source(file).encode())
    return digest.hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Problem(Generic[ChoiceT]):
    """Something that can be computed in several ways.

    Attributes:
        key: names it in the cache.
        predicted: candidates and the cost model's time in µs, fastest first.
        launches: the launches of a candidate and the bytes of each buffer that they name.
    """

    key: str
    predicted: tuple[tuple[ChoiceT, float], ...]
    launches: Callable[[ChoiceT], tuple[list[Launch], dict[str, int]]]


def conv_problem(shape: ConvShape, epilogue: Epilogue, device: DeviceTraits) -> Problem[ConvChoice]:
    """A convolution's candidates."""
    costs = [(choice, conv_cost_us(shape, choice, device)) for choice in conv.candidates(shape, device)]

    def launches(choice: ConvChoice) -> tuple[list[Launch], dict[str, int]]:
        plan = conv.plan_conv(shape, epilogue, device, choice)
        taps = {"winograd2": 16, "winograd4": 36}.get(choice.algorithm, shape.kh * shape.kw)
        sizes = {
            "x": 4 * shape.n * shape.h * shape.w * shape.c4,
            "w": 4 * (taps * round_up(shape.cg, 64) + 64) * round_up(shape.o + 64 * shape.groups, 64),
            "bias": 4 * round_up(shape.o, 16),
            "res": 4 * shape.m * shape.o4,
            "y": 4 * shape.m * shape.o4,
            "ws": plan.workspace_bytes,
        }
        bias = Buf("bias") if epilogue.bias else None
        residual = Buf("res") if epilogue.residual != "none" else None
        return plan.launches(Buf("x"), Buf("w"), bias, residual, Buf("y"), Buf("ws")), sizes

    *sizes, weights, halves = astuple(shape)
    key = (
        f"conv {'x'.join(str(int(size)) for size in sizes)} {weights} {int(halves)} {_epilogue_key(epilogue)}"
    )
    return Problem(key, tuple(sorted(costs, key=lambda item: item[1])), launches)


def gemm_problem(shape: GemmShape, epilogue: Epilogue, device: DeviceTraits) -> Problem[GemmChoice]:
    """A matrix product's candidates."""
    costs = [(choice, gemm.cost_us(shape, choice, device)) for choice in gemm.candidates(shape, device)]

    def extent(strides: tuple[int, ...], floats: int) -> int:
        return 4 * (floats + sum((n - 1) * s for n, s in zip(shape.batch, strides, strict=True)))

    def launches(choice: GemmChoice) -> tuple[list[Launch], dict[str, int]]:
        plan = gemm.plan_gemm(shape, epilogue, device, choice)
        result = 4 * math.prod(shape.batch) * shape.m * shape.n
        b_strides = (0,) * len(shape.batch) if shape.constant_b else shape.b_strides
        along_m, along_n = shape.bias_strides
        sizes = {
            "a": extent(shape.a_strides, shape.m * shape.k),
            "b": extent(b_strides, round_up(shape.k, 4) * round_up(shape.n, 4)),
            "bias": 4 * ((shape.m - 1) * along_m + (shape.n - 1) * along_n + 1),
            "res": result,
            "c": result,
            "ws": plan.workspace_bytes,
        }
        bias = Buf("bias") if epilogue.bias else None
        residual = Buf("res") if epilogue.residual != "none" else None
        return plan.launches(Buf("a"), Buf("b"), bias, residual, Buf("c"), Buf("ws")), sizes

    key = f"gemm {astuple(shape)} {_epilogue_key(epilogue)}".replace(" ", "")
    return Problem(key, tuple(sorted(costs, key=lambda item: item[1])), launches)


def _epilogue_key(epilogue: Epilogue) -> str:
    # slopes and bounds don't change the time
    return f"{int(epilogue.bias)}{epilogue.residual}/{epilogue.activation}"


class TuningCache:
    """Choices on disk: {"format": 1, "entries": {key: {"choice": label, "us": time}}}.

    Args:
        path: the JSON file; need not exist. None keeps everything in memory.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._entries = self._read()

    def get(self, key: str) -> str | None:
        """The remembered label."""
        entry = self._entries.get(key)
        return entry["choice"] if entry else None

    def put(self, key: str, label: str, time_us: float) -> None:
        """Remembers; `save` writes it."""
        self._entries[key] = {"choice": label, "us": round(time_us, 2)}

    def save(self) -> None:
        """Merges with what others wrote meanwhile and replaces the file; a full disk is no error."""
        if self._path is None:
            return
        self._entries = self._read() | self._entries
        text = json.dumps({"format": _FORMAT, "entries": self._entries}, indent=0, sort_keys=True)
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=self._path.parent, prefix=self._path.name)
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                    file.write(text)
                Path(name).replace(self._path)
            except OSError:
                Path(name).unlink(missing_ok=True)
                raise

    def _read(self) -> dict[str, dict[str, Any]]:
        if self._path is None:
            return {}
        try:
            document = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        entries = document.get("entries") if isinstance(document, dict) else None
        if not isinstance(entries, dict) or document.get("format") != _FORMAT:
            return {}
        return {
            key: entry
            for key, entry in entries.items()
            if isinstance(entry, dict)
            and isinstance(entry.get("choice"), str)
            and isinstance(entry.get("us"), int | float)
        }


class Tuner:
    """Times candidates on one device.

    Args:
        cache: where choices are remembered.
        device: offers the candidates.
        driver: driver and its version, part of the key.
        measure: times launches; timing.LaunchTimer.measure is one.
    """

    def __init__(
        self, cache: TuningCache, device: DeviceTraits, driver: str, measure: Measure | None = None
    ) -> None:
        self._cache = cache
        self._prefix = f"{device.name}|{driver}|{kernels_version()}|"
        self._measure = measure

    def known(self, problem: Problem[ChoiceT]) -> ChoiceT | None:
        """The measured choice, or None where the problem was never tuned here."""
        label = self._cache.get(self._prefix + problem.key)
        return next((choice for choice, _ in problem.predicted if choice.label == label), None)

    def tune(
        self,
        problems: Sequence[Problem[Any]],
        progress: Progress | None = None,
        *,
        again: bool = False,
    ) -> int:
        """Times what isn't known yet and saves the cache.

        Args:
            problems: duplicates are timed once.
            progress: called with (done, of) after each.
            again: also those that are known.

        Returns:
            How many were timed.

        Raises:
            KernelError: the tuner has no `measure`.
        """
        unique = {problem.key: problem for problem in problems}
        todo = [problem for problem in unique.values() if again or self.known(problem) is None]
        try:
            for done, problem in enumerate(todo, 1):
                self._tune_one(problem)
                if progress is not None:
                    progress(done, len(todo))
        finally:
            if todo:
                self._cache.save()
        return len(todo)

    def _tune_one(self, problem: Problem[ChoiceT]) -> None:
        if self._measure is None:
            raise KernelError("this tuner can't measure: give it timing.LaunchTimer.measure")
        limit = problem.predicted[0][1] * _BREADTH
        hopeful = [choice for choice, cost in problem.predicted[:_MOST] if cost <= limit]
        best: tuple[float, str] | None = None
        for choice in hopeful:
            try:
                time_us = self._measure(*problem.launches(choice))
            except KernelError:
                continue  # a driver may refuse one variant; the others still count
            if best is None or time_us < best[0]:
                best = (time_us, choice.label)
        if best is not None:
            self._cache.put(self._prefix + problem.key, best[1], best[0])
