"""The data that models are compared on: inputs in pieces of one run, perhaps with labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from gpu_inference.errors import RecipeError

if TYPE_CHECKING:
    from gpu_inference.graph.ir import Array, TensorInfo

#: Names of an array of classes in a file of data.
LABELS: Final = ("labels", "y")


@dataclass(frozen=True, slots=True)
class Samples:
    """Inputs and what is known of them.

    Attributes:
        pieces: inputs of one run each.
        labels: the class of each row [n], or None.
        generated: whether they are random numbers.
    """

    pieces: tuple[dict[str, Array], ...]
    labels: Array | None = None
    generated: bool = False

    @property
    def count(self) -> int:
        """Rows in all."""
        return sum(_rows(piece) for piece in self.pieces)


def given_samples(infos: Sequence[TensorInfo], arrays: Mapping[str, Array], batch: int) -> Samples:
    """Samples of arrays [n, ...], cut into runs.

    Args:
        infos: the model's inputs.
        arrays: one for each input by its name (of a model with one input, any name will do), and perhaps
            integer classes [n] as "labels" or "y".
        batch: rows of a run where the model leaves that free.

    Raises:
        RecipeError: one is missing or doesn't fit.
    """
    names = {info.name for info in infos}
    left = {name: array for name, array in arrays.items() if name not in names}
    labels = next((left.pop(name) for name in LABELS if name in left), None)
    found = {name: array for name, array in arrays.items() if name in names}
    if len(infos) == 1 and not found and len(left) == 1:
        found = {infos[0].name: next(iter(left.values()))}
    for info in infos:
        if info.name not in found:
            raise RecipeError(
                f"the data has no array {info.name!r}, only {', '.join(arrays) or 'nothing'}: "
                "save one for each input of the model by its name"
            )
        array = found[info.name]
        shape = info.shape or ()
        wrong = info.shape is not None and (
            array.ndim != len(shape)
            or any(want not in (None, got) for want, got in zip(shape[1:], array.shape[1:], strict=True))
        )
        if wrong or not np.can_cast(array.dtype, info.dtype, "same_kind"):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise RecipeError(
                f"array {info.name!r} is {array.dtype} of shape {list(array.shape)}, "
                f"the model takes {info.dtype} [{wanted}]: preprocess the data as the model wants it"
            )
        found[info.name] = array.astype(info.dtype, copy=False)
    counts = {len(array) if array.ndim else 1 for array in found.values()}
    if len(counts) != 1:
        raise RecipeError(f"the data's arrays have {sorted(counts)} rows: give each as many")
    (count,) = counts
    sizes = {info.shape[0] for info in infos if info.shape} - {None}
    step = min((int(size) for size in sizes if size), default=min(batch, count))
    if count < step or not count:
        raise RecipeError(f"the data has {count} rows, one run of the model takes {step}: give more")
    ends = range(0, count - step + 1, step) if sizes else range(0, count, step)
    pieces = tuple({name: a[at : at + step] if a.ndim else a for name, a in found.items()} for at in ends)
    samples = Samples(pieces)
    if labels is None:
        return samples
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise RecipeError(
            f"labels are {labels.dtype} of shape {list(labels.shape)}: "
            f"give one integer class for each of {count} rows"
        )
    return Samples(pieces, labels[: samples.count])


def generated_samples(infos: Sequence[TensorInfo], batch: int, pieces: int = 4, seed: int = 0) -> Samples:
    """Random numbers, normally distributed; every free dimension becomes `batch`."""
    chance = np.random.default_rng(seed)
    made: list[dict[str, Array]] = []
    for _ in range(pieces):
        piece: dict[str, Array] = {}
        for info in infos:
            shape = tuple(batch if size is None else size for size in info.shape or ())
            floating = np.issubdtype(info.dtype, np.floating)
            values = chance.standard_normal(shape) if floating else chance.integers(0, 2, shape)
            piece[info.name] = np.asarray(values).astype(info.dtype)
        made.append(piece)
    return Samples(tuple(made), generated=True)


def _rows(piece: Mapping[str, Array]) -> int:
    return max((len(array) for array in piece.values() if array.ndim), default=1)
