"""What all tasks share: their interface, the model's outputs by role, numbers fit for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gpu_inference.errors import ModelError
from gpu_inference.tasks.geometry import Geometry

Array: TypeAlias = NDArray[Any]
#: Fit for JSON: text, finite numbers, lists and dicts of them.
Answer: TypeAlias = dict[str, Any]

#: The answer to an input for which the model gave NaN or infinity.
NOT_FINITE: Final = "not_finite"
SCORE_DIGITS: Final = 4
#: Boxes are told to a hundredth of a pixel.
BOX_DIGITS: Final = 2


class Task(Protocol):
    """Makes answers of a model's outputs. Threads may share it."""

    def answers(
        self, outputs: Mapping[str, Array], count: int, geometries: Sequence[Geometry | None] = ()
    ) -> list[Answer]:
        """Makes the answers of one batch.

        Args:
            outputs: what the session gave; the batch is the first dimension.
            count: inputs in the batch; rows after them are padding.
            geometries: of each picture; tasks that need none take any.

        Returns:
            One answer an input, in order; `{"error": "not_finite"}` for NaN and infinity. An answer depends
            on no other row.

        Raises:
            ModelError: the outputs have other shapes than the manifest says.
        """
        ...


def roles(
    outputs: Mapping[str, Array], names: Sequence[str], count: int, wanted: Sequence[str]
) -> list[Array]:
    """The outputs that a task wants, cut to the batch's inputs.

    Args:
        outputs: of the session.
        names: `output.names` of the manifest; empty: in the model's order.
        count: inputs in the batch.
        wanted: what each is for; those in brackets may be absent.

    Raises:
        ModelError: one is missing, or has fewer rows than inputs.
    """
    found = []
    for index, role in enumerate(wanted):
        if index >= len(names or outputs):
            if role.startswith("("):
                break
            raise ModelError(f"the model has no output for {role}: name it in output.names")
        name = names[index] if names else list(outputs)[index]
        if name not in outputs:
            raise ModelError(f"the model has no output {name!r}, only {', '.join(outputs)}: set output.names")
        array = outputs[name]
        if array.ndim == 0 or array.shape[0] < count:
            raise ModelError(
                f"output {name!r} has shape {array.shape} for {count} inputs: the batch must come first"
            )
        found.append(array[:count])
    return found


def finite_rows(*arrays: Array) -> NDArray[np.bool_]:
    """Which inputs have only finite numbers in all arrays: bool [n]."""
    good = np.ones(arrays[0].shape[0], bool)
    for array in arrays:
        if array.dtype.kind != "f":
            continue
        rest = tuple(range(1, array.ndim))
        with np.errstate(all="ignore"):  # a sum is quick, and finite only if all numbers are
            doubtful = ~np.isfinite(array.sum(axis=rest, dtype=np.promote_types(array.dtype, np.float32)))
        for row in np.flatnonzero(doubtful):
            good[row] &= bool(np.isfinite(array[row]).all())
    return good


def rounded(array: Array, digits: int) -> Any:
    """Numbers as JSON shows them, in (nested) lists."""
    return np.round(array.astype(np.float64), digits).tolist()


def significant(value: float, digits: int = 6) -> float:
    """A number as measuring instruments tell it: with so many digits, wherever its point is."""
    return float(f"{value:.{digits}g}")


def softmax(logits: Array) -> NDArray[np.float32]:
    """Probabilities over the last axis."""
    shifted: NDArray[np.float32] = logits.astype(np.float32) - logits.max(axis=-1, keepdims=True).astype(
        np.float32
    )
    np.exp(shifted, out=shifted)
    shifted /= shifted.sum(axis=-1, keepdims=True)
    return shifted


def sigmoid(logits: Array) -> NDArray[np.float32]:
    """A probability of each number alone."""
    half: NDArray[np.float32] = np.tanh(logits.astype(np.float32) * np.float32(0.5))  # overflows nowhere
    half += 1
    half *= np.float32(0.5)
    return half


def label_of(labels: Sequence[str], index: int) -> str:
    """The label of a class, its number where it has none."""
    return labels[index] if 0 <= index < len(labels) and labels[index] else str(index)
