"""Pictures made smaller or larger: bilinear, with as many source pixels as a target pixel covers.

The filter is Pillow's `BILINEAR` (a triangle, stretched when the picture shrinks), so that models see what
they were trained with; the result differs by at most 1 from Pillow's, which rounds between its two passes.
1920 x 1080 to 224 x 224 takes 1.6 ms on one core, where Pillow takes 5.5.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_inference.compiled import compiled


def resize(
    image: NDArray[np.uint8],
    region: tuple[float, float, float, float],
    out: NDArray[np.uint8],
    inner: tuple[int, int, int, int] | None = None,
) -> None:
    """Resizes a part of a picture into a part of another.

    Args:
        image: uint8 [h, w, c], C-contiguous.
        region: of the picture: top, left, height, width in pixels, fractions allowed.
        out: uint8 [th, tw, c], C-contiguous, written.
        inner: the part of `out` that is written: top, left, height, width; None for all of it.
    """
    top, left, height, width = region
    to_top, to_left, to_height, to_width = inner or (0, 0, *out.shape[:2])
    _resize(
        image,
        *_weights(image.shape[0], top, height, to_height),
        *_weights(image.shape[1], left, width, to_width),
        out,
        to_top,
        to_left,
    )


@lru_cache(maxsize=256)
def _weights(size: int, start: float, length: float, target: int) -> tuple[NDArray[np.int32], NDArray[Any]]:
    """For each target pixel the first source pixel [t, 2] (and how many), and their weights [t, most]."""
    scale = length / target
    reach = max(scale, 1.0)
    centres = start + (np.arange(target) + 0.5) * scale
    first = np.clip(np.floor(centres - reach + 0.5), 0, size - 1).astype(np.int32)
    last = np.clip(np.floor(centres + reach + 0.5), 1, size).astype(np.int32)
    last = np.maximum(last, first + 1)
    offsets = np.arange((last - first).max())
    distance = np.abs((first[:, None] + offsets + 0.5 - centres[:, None]) / reach)
    weights = np.where(offsets < (last - first)[:, None], np.maximum(1 - distance, 0), 0)
    totals = weights.sum(axis=1, keepdims=True)
    weights[totals[:, 0] == 0, 0] = 1
    weights /= np.where(totals == 0, 1, totals)
    return np.stack([first, last - first], axis=1).astype(np.int32), weights.astype(np.float32)


@compiled
def _resize(
    image: NDArray[np.uint8],
    rows: NDArray[np.int32],
    row_weights: NDArray[Any],
    columns: NDArray[np.int32],
    column_weights: NDArray[Any],
    out: NDArray[np.uint8],
    to_top: int,
    to_left: int,
) -> None:
    # unsigned indices: signed ones might count from the end, so that no loop is vectorised (7 times slower)
    channels = image.shape[2]
    left = np.uint32(columns[0, 0] * channels)
    length = np.uint32((columns[-1, 0] + columns[-1, 1]) * channels - left)
    line = np.empty(length, np.float32)
    flat = image.reshape(image.shape[0], -1)
    for y in range(rows.shape[0]):
        line[:] = 0
        for i in range(rows[y, 1]):
            weight = row_weights[y, i]
            source = flat[rows[y, 0] + i, left : left + length]
            for x in range(length):
                line[x] += weight * np.float32(source[x])
        for x in range(columns.shape[0]):
            start = np.uint32(columns[x, 0] * channels - left)
            for c in range(channels):
                total = np.float32(0.5)
                at = start + np.uint32(c)
                for i in range(columns[x, 1]):
                    total += column_weights[x, i] * line[at]
                    at += np.uint32(channels)
                out[to_top + y, to_left + x, c] = np.uint8(min(max(total, np.float32(0)), np.float32(255)))
