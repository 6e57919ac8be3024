"""A small batch with a known answer: warms sessions up, measures them, finds sick devices."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

import numpy as np

from gpu_inference.graph.ir import Array, TensorInfo
from gpu_inference.session import Session

TOLERANCE: Final = (
    0.05  # of the largest value of an output: fp16 and int8 engines differ by less, broken ones by more
)
REPEATS: Final = 3
MOST_LOOKED_AT: Final = 1 << 20  # elements of an output: a few milliseconds at most


def has_nan(outputs: Mapping[str, Array]) -> bool:
    """Whether any output holds NaN; of very large ones every n-th element is looked at."""
    for array in outputs.values():
        if array.dtype.kind == "f" and array.size:
            step = max(1, array.size // MOST_LOOKED_AT)
            if np.isnan(np.min(array.reshape(-1)[::step])):
                return True
    return False


class KnownBatch:
    """One row of input of a model, and what the model makes of it.

    Args:
        row: an array [1, ...] for each input.
        sizes: batch sizes that will be run.
    """

    def __init__(self, row: Mapping[str, Array], sizes: tuple[int, ...]) -> None:
        self.sizes = sizes
        self.expected: dict[str, Array] | None = None
        self._row = dict(row)

    @classmethod
    def invented(cls, inputs: tuple[TensorInfo, ...], sizes: tuple[int, ...]) -> KnownBatch:
        """Noise of the right shape for models without a sample: free dimensions are 1, integers 0."""
        rng = np.random.default_rng(0)
        row = {}
        for info in inputs:
            shape = (1, *(n or 1 for n in (info.shape or (1,))[1:]))
            if info.dtype.kind == "f":
                row[info.name] = rng.standard_normal(shape).astype(info.dtype)
            else:
                row[info.name] = np.zeros(shape, info.dtype)
        return cls(row, sizes)

    def batch(self, size: int) -> dict[str, Array]:
        """The row, `size` times."""
        return {name: np.repeat(array, size, axis=0) for name, array in self._row.items()}

    def run(self, session: Session) -> dict[str, Array]:
        """The session's answer to the smallest batch."""
        return session.run(self.batch(self.sizes[0]))

    def measure(self, session: Session, size: int) -> float:
        """Median seconds of a batch of `size`; the first run, which builds kernels, doesn't count."""
        batch = self.batch(size)
        session.run(batch)
        times = []
        for _ in range(REPEATS):
            started = time.perf_counter()
            session.run(batch)
            times.append(time.perf_counter() - started)
        return sorted(times)[REPEATS // 2]

    def matches(self, outputs: Mapping[str, Array]) -> bool:
        """Whether an answer to `run` is the known one, up to what engines differ by."""
        if self.expected is None or outputs.keys() != self.expected.keys():
            return self.expected is None
        for name, wanted in self.expected.items():
            given = outputs[name]
            if given.shape != wanted.shape:
                return False
            if wanted.dtype.kind != "f":
                continue  # a label may turn with the last bit of a score
            finite = np.abs(wanted[np.isfinite(wanted)])
            slack = TOLERANCE * float(finite.max(initial=0.0)) + 1e-6
            if not np.allclose(given, wanted, rtol=0.0, atol=slack, equal_nan=True):
                return False
        return True
