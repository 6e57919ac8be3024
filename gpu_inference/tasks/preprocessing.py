"""Pictures to model input: fitted to its size, normalised, in its layout, written where the batch is staged.

A pixel has 256 values, so normalisation is a look-up in a table of a row a channel: exact to the last bit
whatever the arithmetic, and one pass that reads bytes and writes the model's type. 224 x 224 takes 30 us on
one core; NumPy's multiply and add take 83, the expression in doubles 1,100.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpu_inference.compiled import compiled
from gpu_inference.errors import ModelError
from gpu_inference.models.manifest import ImageInput
from gpu_inference.tasks.geometry import Fit, Geometry
from gpu_inference.tasks.resize import resize

_WORDS: Final = {1: np.uint8, 2: np.uint16, 4: np.uint32}


class Preprocessor:
    """Prepares the pictures of one model. Threads may share it.

    Args:
        config: `[input]` of the model.
        fit: how other aspect ratios are met; `manifest.fit_of` says it.

    Attributes:
        shape: of one picture in the batch.
        dtype: of the batch.
    """

    def __init__(self, config: ImageInput, fit: Fit) -> None:
        self._config, self._fit = config, fit
        self._channels = 1 if config.channels == "gray" else 3
        h, w = config.size
        self._planar = config.layout == "NCHW"
        self.shape = (self._channels, h, w) if self._planar else (h, w, self._channels)
        self.dtype = np.dtype(config.dtype)
        self._table = table(config).view(_WORDS[self.dtype.itemsize])

    def geometry(self, source: tuple[int, int]) -> Geometry:
        """Where the pixels of a source of so many rows and columns go."""
        return Geometry.fit(source, self._config.size, self._fit, self._config.crop)

    def decode_size(self, source: tuple[int, int]) -> tuple[int, int]:
        """The smallest height and width that a decoder may scale a source to without loss for this model."""
        geometry = self.geometry(source)
        (h, w), (_, _, rh, rw), (_, _, ih, iw) = source, geometry.region, geometry.inner
        return min(h, -(-h * ih // rh)), min(w, -(-w * iw // rw))

    def write(
        self, image: NDArray[np.uint8], slot: NDArray[Any], source: tuple[int, int] | None = None
    ) -> Geometry:
        """Prepares one picture: `fit`, then `fill`.

        Args:
            image: see `fit`.
            slot: see `fill`.
            source: see `fit`.

        Returns:
            The geometry, in pixels of `source`.

        Raises:
            ModelError: the picture or the slot has another shape or type.
        """
        pixels, geometry = self.fit(image, source)
        self.fill(pixels, slot)
        return geometry

    def fit(
        self, image: NDArray[np.uint8], source: tuple[int, int] | None = None
    ) -> tuple[NDArray[np.uint8], Geometry]:
        """Brings a picture to the model's size: what waits for a batch is no larger than it must be.

        Args:
            image: uint8 [h, w], [h, w, 1] or [h, w, 3] in RGB.
            source: height and width before the decoder scaled it down; None if it didn't.

        Returns:
            uint8 [height, width, channels] for `fill`, and the geometry, in pixels of `source`.

        Raises:
            ModelError: it is no picture.
        """
        if image.ndim == 2:
            image = image[:, :, None]
        if image.ndim != 3 or image.shape[2] not in (1, 3) or image.dtype != np.uint8 or not image.size:
            raise ModelError(
                f"{image.dtype} {image.shape} is no picture: send uint8 [h, w], [h, w, 1] or [h, w, 3]"
            )
        image = np.ascontiguousarray(image)
        geometry = self.geometry(source or (image.shape[0], image.shape[1]))
        pixels = self._fitted(image, geometry)
        if self._channels == 1 and pixels.shape[2] == 3:
            pixels = grey(pixels)
        return pixels, geometry

    def fill(self, pixels: NDArray[np.uint8], slot: NDArray[Any]) -> None:
        """Normalises a fitted picture into its place in the batch.

        Args:
            pixels: what `fit` gave.
            slot: one row of the staging batch, of `shape` and `dtype`, C-contiguous; written.

        Raises:
            ModelError: the slot has another shape or type.
        """
        if slot.shape != self.shape or slot.dtype != self.dtype or not slot.flags.c_contiguous:
            raise ModelError(
                f"a slot of {slot.dtype} {slot.shape} does not fit: "
                f"stage {self.dtype} {self.shape}, C-contiguous"
            )
        words = slot.view(self._table.dtype)
        (_to_planes if self._planar else _to_pixels)(pixels, self._table, self._order(pixels), words)

    def warm(self) -> None:
        """Compiles what `write` needs, so that the first picture doesn't wait for it."""
        slot = np.empty(self.shape, self.dtype)
        for channels in (1, 3):
            image = np.zeros((2, 2, channels), np.uint8)
            self.write(image, slot)
            image.flags.writeable = False  # another type for the compiler: what Pillow and raw bytes give
            self.write(image, slot)

    def _fitted(self, image: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
        h, w, channels = image.shape
        if (h, w) == geometry.target and geometry.region == geometry.inner == (0, 0, h, w):
            return image
        pixels = np.empty((*geometry.target, channels), np.uint8)
        if geometry.inner != (0, 0, *geometry.target):
            pixels[:] = self._config.pad
        down, across = h / geometry.source[0], w / geometry.source[1]
        top, left, height, width = geometry.region
        resize(image, (top * down, left * across, height * down, width * across), pixels, geometry.inner)
        return pixels

    def _order(self, pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Which channel of the picture each channel of the model is."""
        if pixels.shape[2] == 1:
            return np.zeros(self._channels, np.int64)
        return np.array([2, 1, 0] if self._config.channels == "bgr" else [0, 1, 2])


def table(config: ImageInput) -> NDArray[Any]:
    """What becomes of each value of a pixel: [channels, 256] in the model's type."""
    values = np.arange(256.0)
    channels = 1 if config.channels == "gray" else 3
    if config.dtype == "uint8":
        return np.tile(values.astype(np.uint8), (channels, 1))
    mean = np.broadcast_to(np.array(config.mean), channels)[:, None]
    std = np.broadcast_to(np.array(config.std), channels)[:, None]
    return np.ascontiguousarray(((values * config.scale - mean) / std).astype(config.dtype))


def grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Luma of ITU-R BT.601, as Pillow's mode L: uint8 [h, w, 3] to [h, w, 1]."""
    red, green, blue = (pixels[:, :, c].astype(np.uint32) for c in range(3))
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(np.uint8)[:, :, None]


@compiled
def _to_planes(pixels: Any, table: Any, order: Any, out: Any) -> None:
    # row by row, so that the bytes stay in the nearest cache for all channels; unsigned indices as in resize
    for y in range(out.shape[1]):
        row = pixels[y]
        for c in range(out.shape[0]):
            values, line, at = table[c], out[c, y], np.uint32(order[c])
            for x in range(np.uint32(out.shape[2])):
                line[x] = values[row[x, at]]


@compiled
def _to_pixels(pixels: Any, table: Any, order: Any, out: Any) -> None:
    for y in range(out.shape[0]):
        row, line = pixels[y], out[y]
        for c in range(out.shape[2]):
            values, at, to = table[c], np.uint32(order[c]), np.uint32(c)
            for x in range(np.uint32(out.shape[1])):
                line[x, to] = values[row[x, at]]
