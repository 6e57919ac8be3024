"""What a made-up camera sees: photographs that move, grow lighter and darker, and carry a sensor's noise.

Pure: time comes in, a picture goes out, and the same seed and the same time give the same picture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The part of the largest fitting rectangle of a photograph that is seen at once; the rest is room to move.
_SEEN: Final = 0.88
#: Seconds of one movement to and fro, across and down; and of one change of light.
_SWAY_S: Final = (11.0, 17.0)
_LIGHT_S: Final = 23.0
#: By how much the light changes.
_LIGHT: Final = 0.2
#: Standard deviation of the noise, in levels of 0 to 255.
_NOISE: Final = 4.0


class Photographs(Protocol):
    """Pictures by number."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> NDArray[np.uint8]:
        """One picture: uint8 [h, w, 3], RGB."""
        ...


class Scene:
    """One camera.

    Args:
        photographs: what there is to see, one after another in an order of the seed's.
        seed: the same seed and the same time give the same picture.
        size: width and height of the pictures.
        shot_s: seconds until the next photograph is shown.
    """

    def __init__(
        self, photographs: Photographs, seed: int, size: tuple[int, int] = (320, 240), shot_s: float = 8.0
    ) -> None:
        if not len(photographs) or shot_s <= 0:
            raise ValueError(f"no scene of {len(photographs)} photographs, {shot_s} s each")
        self._photographs = photographs
        self._seed, self._size, self._shot_s = seed, size, shot_s
        rng = np.random.default_rng([seed, 0])
        self._order = rng.permutation(len(photographs)).tolist()
        # no two cameras cut at the same time, or sway alike
        self._shift_s = float(rng.uniform(0, shot_s))
        self._phases = rng.uniform(0, 2 * np.pi, 3).tolist()
        self._shown: tuple[int, Any] | None = None

    def picture(self, at_s: float) -> Any:
        """What is seen at `at_s` (s since the epoch): a Pillow image, RGB, of the scene's size.

        Raises:
            OSError: the photograph can't be read any more.
        """
        from PIL import Image

        shot = int((at_s + self._shift_s) // self._shot_s)
        photograph = self._photograph(self._order[shot % len(self._order)])
        across, down, light = (
            np.sin(2 * np.pi * at_s / period + phase)
            for period, phase in zip((*_SWAY_S, _LIGHT_S), self._phases, strict=True)
        )
        (width, height), (w, h) = photograph.size, self._size
        scale = _SEEN * min(width / w, height / h)
        left = (width - scale * w) / 2 * (1 + across)
        top = (height - scale * h) / 2 * (1 + down)
        seen = photograph.resize(
            self._size, Image.Resampling.BILINEAR, box=(left, top, left + scale * w, top + scale * h)
        )
        pixels = np.asarray(seen, np.float32) * np.float32(1 + _LIGHT * light)
        rng = np.random.default_rng([self._seed, 1, int(at_s * 1000)])
        pixels += _NOISE * rng.standard_normal(pixels.shape, np.float32)
        return Image.fromarray(np.clip(pixels, 0, 255, out=pixels).astype(np.uint8))

    def _photograph(self, index: int) -> Any:
        from PIL import Image

        if self._shown is None or self._shown[0] != index:
            self._shown = (index, Image.fromarray(self._photographs.read(index)))
        return self._shown[1]
