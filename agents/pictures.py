"""Files of pictures to pixels, no larger than a model needs them, within bounds."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gpu_inference.errors import ModelError
from streams.errors import BadRecord, MissingExtra
from streams.frames import JPEG, RAW

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from agents.model_server import Fitted
    from gpu_inference.tasks.preprocessing import Preprocessor
    from streams.frames import Frame

    #: The smallest (height, width) that will do, for a source of (height, width).
    Enough = Callable[[tuple[int, int]], tuple[int, int]]


class Picture(NamedTuple):
    """A decoded frame.

    Attributes:
        pixels: uint8 [h, w, 3] in RGB, or [h, w, 1] grey.
        source: height and width before the decoder scaled it down.
    """

    pixels: NDArray[np.uint8]
    source: tuple[int, int]


class PictureDecoder:
    """Decodes frames; threads may share it.

    JPEGs are decoded at a fraction of their size where that is enough for the model, which costs a fraction
    of the time. The size that a file claims is looked at before anything is unpacked.

    Args:
        max_pixels: height times width at the most.

    Raises:
        MissingExtra: there is no decoder.
    """

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._simplejpeg: Any = None
        try:
            import PIL.Image
        except ImportError as error:
            raise MissingExtra("pillow", "vision") from error
        self._pillow: Any = PIL.Image
        try:
            import simplejpeg
        except ImportError:  # Pillow decodes JPEGs, too, in more time
            return
        self._simplejpeg = simplejpeg

    def fit(self, frame: Frame, preprocessors: Sequence[Preprocessor]) -> list[Fitted]:
        """Decode a frame once and fit it to each model's input.

        Raises:
            BadRecord: it is no picture, damaged, or too large.
        """

        def enough(source: tuple[int, int]) -> tuple[int, int]:
            heights, widths = zip(*(one.decode_size(source) for one in preprocessors), strict=True)
            return max(heights), max(widths)

        picture = self.decode(frame, enough)
        try:
            return [one.fit(picture.pixels, picture.source) for one in preprocessors]
        except ModelError as error:
            raise BadRecord("bad_image", str(error)) from error

    def decode(self, frame: Frame, enough: Enough) -> Picture:
        """Decode one frame.

        Args:
            frame: of any content type.
            enough: how large the picture must be at least.

        Raises:
            BadRecord: it is no picture, damaged, or too large.
        """
        if frame.content_type == RAW:
            assert frame.shape is not None
            h, w, _ = frame.shape
            self._check_size(h, w)
            return Picture(np.frombuffer(frame.data, np.uint8).reshape(frame.shape), (h, w))
        try:
            if frame.content_type == JPEG and self._simplejpeg is not None:
                return self._decode_jpeg(frame.data, enough)
            return self._decode_any(frame.data, enough)
        except (ValueError, OSError, SyntaxError, MemoryError) as error:
            # what decoders raise for damaged files
            raise BadRecord(
                "bad_image", f"the picture can't be decoded ({error}): send whole JPEG, PNG or WebP files"
            ) from error

    def _decode_jpeg(self, data: bytes, enough: Enough) -> Picture:
        h, w, colours, _ = self._simplejpeg.decode_jpeg_header(data)
        self._check_size(h, w)
        if colours in ("CMYK", "YCCK"):
            return self._decode_any(data, enough)
        least_h, least_w = enough((h, w))
        grey = colours == "Gray"
        pixels = self._simplejpeg.decode_jpeg(
            data, "GRAY" if grey else "RGB", min_height=least_h, min_width=least_w, min_factor=2
        )
        return Picture(pixels.reshape(*pixels.shape[:2], -1), (h, w))

    def _decode_any(self, data: bytes, enough: Enough) -> Picture:
        bombs = (self._pillow.DecompressionBombError, self._pillow.DecompressionBombWarning)
        try:
            with (
                warnings.catch_warnings(),
                self._pillow.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image,
            ):
                w, h = image.size
                self._check_size(h, w)
                image.draft(None, enough((h, w))[::-1])
                grey = image.mode in ("L", "1")
                return Picture(_array(image.convert("L" if grey else "RGB")), (h, w))
        except bombs as error:
            raise BadRecord("image_too_large", f"{error}: send smaller pictures") from error

    def _check_size(self, h: int, w: int) -> None:
        if h * w > self._max_pixels:
            raise BadRecord(
                "image_too_large",
                f"{w} x {h} pixels are above max_pixels {self._max_pixels}: "
                "send smaller pictures, or raise it",
            )


def _array(image: Any) -> NDArray[np.uint8]:
    pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], -1)
