"""How weights of convolutions and products are stored on the card, and how they get there.

    packed = store(weights, "int8", lay_out)         # what a plan's `pack` returns
    launch args: (x, *weight_arguments(buffer, "int8", channels), ...)   # as kernels/weights.clh takes them

Arithmetic is fp32 whatever the type: kernels turn weights into floats on the way in. `fp16` rounds each one.
`int8` and `int4` store integers q with w = q * scale, one scale for each output channel, which the kernel
multiplies its sums by. Zero is zero, so that padding stays what it is.

Symmetric scales, because asymmetric ones gained nothing in the end: EfficientNet-Lite0's outputs in int8 were
off by 5.0% (root mean square) with them and 7.0% with a zero point for each channel. What did gain is the
rounding: of the integers nearest to the weights, as many are moved to their second nearest as it takes to
keep the channel's sum, since a sum that is off shifts the channel's mean (14.0% without; Guo et al.,
"SQuant", ICLR 2022, do this for each filter and channel).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from gpu_inference.errors import ModelError
from gpu_inference.opencl.launch import Argument, Buf

WeightType: TypeAlias = Literal["fp32", "fp16", "int8", "int4"]
#: Of tensors between convolutions.
ActivationType: TypeAlias = Literal["fp32", "fp16"]
ACTIVATION_TYPES: Final[tuple[ActivationType, ...]] = get_args(ActivationType)
WEIGHT_TYPES: Final[tuple[WeightType, ...]] = get_args(WeightType)

Floats: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Form:
    """One type.

    Attributes:
        code: WEIGHTS of kernels/weights.clh.
        quad_bytes: of four weights.
        slots: vector instructions of a GPU that make floats of four weights.
        top: the largest integer, 0 where there are none; the smallest is -top, or below that by one.
        bottom: the smallest.
    """

    code: int
    quad_bytes: int
    slots: int
    top: int = 0
    bottom: int = 0


_FORMS: Final[dict[WeightType, _Form]] = {
    "fp32": _Form(0, 16, 0),
    "fp16": _Form(1, 8, 4),
    "int8": _Form(2, 4, 8, 127, -127),
    "int4": _Form(3, 2, 11, 7, -8),
}
# Of the largest weight, what the largest integer stands for: with 16 levels it pays to clip.
_CLIPS: Final = tuple(1.0 - 0.05 * step for step in range(11))
_BLOCK: Final = 1 << 22  # weights that are rounded at once
_LARGEST_HALF: Final = 65504.0


def is_quantised(kind: WeightType) -> bool:
    """Whether weights are integers with a scale."""
    return _FORMS[kind].top > 0


def weight_bytes(kind: WeightType) -> float:
    """Bytes of one weight, without its share of the scales."""
    return _FORMS[kind].quad_bytes / 4


def conversion_slots(kind: WeightType) -> int:
    """Vector instructions that a GPU needs to make floats of four weights."""
    return _FORMS[kind].slots


def storage_defines(kind: WeightType, halves: bool) -> dict[str, int | str]:
    """The -D options that kernels/weights.clh and kernels/activations.clh read."""
    return {"WEIGHTS": _FORMS[kind].code, "HALVES": int(halves)}


def weight_arguments(buffer: Buf, kind: WeightType, channels: int) -> tuple[Argument, ...]:
    """Kernel arguments for weights that `store` made: WEIGHT_PARAM of kernels/weights.clh."""
    if not is_quantised(kind):
        return (buffer,)
    return buffer, buffer, np.int32(4 * _padded(channels) // _FORMS[kind].quad_bytes)


def store(weights: Floats, kind: WeightType, lay_out: Callable[[Floats], Floats]) -> NDArray[Any]:
    """Weights [output channels, ...] as they go to the card: scales, if any, then what `lay_out` makes.

    Args:
        weights: float32.
        kind: of the storage.
        lay_out: a kernel's order: same numbers, zeros between them, a multiple of four in all.
    """
    form = _FORMS[kind]
    if kind == "fp32":
        return lay_out(weights)
    if kind == "fp16":
        return lay_out(np.clip(weights, -_LARGEST_HALF, _LARGEST_HALF)).astype(np.float16)
    integers, scales = quantise(weights, kind)
    head = np.zeros(_padded(scales.size), np.float32)
    head[: scales.size] = scales
    raw = (lay_out(integers) + (form.top + 1)).astype(np.uint8)
    if kind == "int4":
        x, y, z, w = raw.reshape(-1, 4).T.astype(np.uint16)
        raw = (x | z << 4 | y << 8 | w << 12).astype("<u2").view(np.uint8)
    return np.concatenate([head.view(np.uint8), raw])


def quantise(weights: Floats, kind: WeightType, *, symmetric: bool = False) -> tuple[Floats, Floats]:
    """Integers q (as float32) and scales [output channels] so that weights are close to q * scale.

    Args:
        weights: float32 [output channels, ...].
        kind: "int8" or "int4".
        symmetric: no integer is below the largest one's negative, so that the largest weight gives the scale
            away, and quantising again what was quantised finds the same integers.

    Raises:
        ModelError: there are NaN or infinities among them.
    """
    form = replace(_FORMS[kind], bottom=-_FORMS[kind].top) if symmetric else _FORMS[kind]
    if not np.isfinite(weights).all():
        raise ModelError(f"NaN or infinity among weights can't be stored as {kind}: load with weights='fp32'")
    rows = weights.reshape(weights.shape[0], -1)
    integers, scales = np.empty_like(rows, np.float32), np.empty(len(rows), np.float32)
    step = max(1, _BLOCK // max(rows.shape[1], 1))
    for first in range(0, len(rows), step):
        block = rows[first : first + step]
        scale = _scales(block, form, _CLIPS if kind == "int4" else (1.0,))
        integers[first : first + step] = _rounded(block / scale, form)
        scales[first : first + step] = scale[:, 0]
    return integers.reshape(weights.shape), scales


def dequantised(weights: Floats, kind: WeightType) -> Floats:
    """Weights [output channels, ...] as kernels see them once they were stored."""
    if kind == "fp32":
        return weights
    if kind == "fp16":
        return np.clip(weights, -_LARGEST_HALF, _LARGEST_HALF).astype(np.float16).astype(np.float32)
    integers, scales = quantise(weights, kind)
    return integers * scales.reshape(-1, *(1,) * (weights.ndim - 1))


def _padded(channels: int) -> int:
    return -(-channels // 16) * 16


def _scales(rows: Floats, form: _Form, clips: tuple[float, ...]) -> Floats:
    """Of the clips, each row's with the smallest squared error, as scales [rows, 1]; 1 for rows of zeros."""
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0.0)
    whole = np.where(largest > 0, largest, form.top).astype(np.float32) / np.float32(form.top)
    best, least = whole, np.full_like(whole, np.inf)
    for clip in clips if len(clips) > 1 else ():
        scale = whole * np.float32(clip)
        error = np.clip(np.rint(rows / scale), form.bottom, form.top) * scale - rows
        squares = np.einsum("ij,ij->i", error, error)[:, None]
        best, least = np.where(squares < least, scale, best), np.minimum(squares, least)
    return best


def _rounded(rows: Floats, form: _Form) -> Floats:
    """Integers near `rows` whose sums are those of `rows`, as near as clipping lets them."""
    nearest = np.clip(np.rint(rows), form.bottom, form.top)
    lost = rows - nearest
    total = lost.sum(axis=1, keepdims=True)
    toward = np.sign(total)
    other = nearest + toward
    movable = (lost * toward > 0) & (other >= form.bottom) & (other <= form.top)
    # those that lie nearest to the other integer are moved first, one for each 1 that the sum is off
    order = np.argsort(np.where(movable, -lost * toward, 1.0), axis=1)
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(rows.shape[1])[None], axis=1)
    return np.where(movable & (rank < np.rint(np.abs(total))), other, nearest).astype(np.float32)
