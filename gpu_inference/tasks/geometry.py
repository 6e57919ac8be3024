"""Where a picture's pixels go in the model's input, and the way back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Fit: TypeAlias = Literal["crop", "letterbox", "stretch"]
Size: TypeAlias = tuple[int, int]
Box: TypeAlias = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Geometry:
    """A rectangle of the source that becomes a rectangle of the input.

    Attributes:
        source: height and width of the source in pixels.
        target: height and width of the input.
        region: of the source that is used: top, left, height, width.
        inner: of the input that it fills: top, left, height, width; bars are around it.
    """

    source: Size
    target: Size
    region: Box
    inner: Box

    @classmethod
    def fit(cls, source: Size, target: Size, fit: Fit, crop: float = 1.0) -> Geometry:
        """Plans one picture.

        Args:
            source: its height and width.
            target: height and width of the input.
            fit: crop cuts to the input's aspect ratio, letterbox adds bars, stretch does neither.
            crop: the part of the largest fitting rectangle that a crop keeps.

        Example:
            >>> Geometry.fit((1080, 1920), (640, 640), "letterbox").inner
            (140, 0, 360, 640)
            >>> Geometry.fit((1080, 1920), (224, 224), "crop").region
            (0, 420, 1080, 1080)
        """
        (h, w), (th, tw) = source, target
        region, inner = (0, 0, h, w), (0, 0, th, tw)
        if fit == "crop":
            scale = crop * min(h / th, w / tw)
            rh, rw = max(1, min(h, round(th * scale))), max(1, min(w, round(tw * scale)))
            region = ((h - rh) // 2, (w - rw) // 2, rh, rw)
        elif fit == "letterbox":
            scale = min(th / h, tw / w)
            ih, iw = max(1, min(th, round(h * scale))), max(1, min(tw, round(w * scale)))
            inner = ((th - ih) // 2, (tw - iw) // 2, ih, iw)
        return cls(source, target, region, inner)

    def to_source(self, boxes: NDArray[Any]) -> NDArray[np.float32]:
        """Boxes of the input as boxes of the source, cut off at its edges.

        Args:
            boxes: float [k, 4]: left, top, right, bottom in pixels of the input.

        Returns:
            float32 [k, 4], in pixels of the source.
        """
        (rt, rl, rh, rw), (it, il, ih, iw) = self.region, self.inner
        scale = np.array([rw / iw, rh / ih] * 2, np.float32)
        shift = np.array([rl - il * rw / iw, rt - it * rh / ih] * 2, np.float32)
        found = boxes.astype(np.float32) * scale + shift
        h, w = self.source
        return np.clip(found, 0, np.array([w, h, w, h], np.float32), out=found)
