"""What every engine asks of the arrays that it is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gpu_inference.errors import ModelError
from gpu_inference.graph.ir import Array, TensorInfo


def check_inputs(infos: Sequence[TensorInfo], arrays: Mapping[str, Array]) -> None:
    """Compares arrays with what a model declares.

    Raises:
        ModelError: an array is missing, unknown, or has another dtype, rank or fixed dimension.
    """
    unknown = set(arrays) - {info.name for info in infos}
    if unknown:
        names = ", ".join(repr(info.name) for info in infos)
        raise ModelError(f"the model has no input {sorted(unknown)[0]!r}: it has {names}")
    for info in infos:
        if info.name not in arrays:
            raise ModelError(f"no array for input {info.name!r} ({info.dtype} {_text(info)}): pass one")
        array = arrays[info.name]
        if not isinstance(array, np.ndarray) or array.dtype != info.dtype:
            given = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise ModelError(
                f"input {info.name!r} is {given}, the model wants {info.dtype}: convert it first"
            )
        if info.shape is None:
            continue
        fits = len(array.shape) == len(info.shape) and all(
            want is None or want == have for want, have in zip(info.shape, array.shape, strict=True)
        )
        if not fits:
            raise ModelError(
                f"input {info.name!r} has shape {array.shape}, the model wants {_text(info)}: reshape it"
            )


def _text(info: TensorInfo) -> str:
    if info.shape is None:
        return "of any shape"
    return "[" + ", ".join("?" if d is None else str(d) for d in info.shape) + "]"
