"""Photographs on the disk: a folder of the user's, or those that come with scikit-image."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from connectors.errors import BadInput
from streams.errors import MissingExtra

if TYPE_CHECKING:
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

#: Those in scikit-image's wheel whose names ImageNet knows, all free of rights: a cat, a cup of espresso, a
#: motorcycle, a rocket on its pad, a man with a camera on a tripod.
PHOTOGRAPHS: Final = ("chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg", "camera.png")
SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp"})
#: Larger pictures are scaled down to fit into so many pixels each way.
MAX_SIDE: Final = 960


class Album:
    """Pictures by number, read when they are asked for.

    Args:
        paths: of JPEG, PNG or WebP files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)

    @classmethod
    def of_folder(cls, folder: Path) -> Album:
        """The pictures in a folder, by name; a file that is none is left out with a line in the log.

        Raises:
            BadInput: there is none.
            MissingExtra: Pillow is not installed.
        """
        image = _pillow()
        good = []
        for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES):
            try:
                with image.open(path):
                    good.append(path)
            except (OSError, image.DecompressionBombError) as error:
                _log.warning("%s is left out: %s", path, error)
        if not good:
            raise BadInput(f"there is no picture in {folder}: put JPEG, PNG or WebP files there")
        return cls(good)

    @classmethod
    def of_scikit_image(cls) -> Album:
        """The photographs that scikit-image brings along; it is not imported, which would take a second.

        Raises:
            MissingExtra: it is not installed.
        """
        _pillow()
        found = find_spec("skimage")
        if found is None or found.origin is None:
            raise MissingExtra("scikit-image", "demo")
        data = Path(found.origin).parent / "data"
        paths = [data / name for name in PHOTOGRAPHS if (data / name).is_file()]
        if not paths:
            raise BadInput(f"there is no photograph in {data}: install scikit-image again")
        return cls(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> NDArray[np.uint8]:
        """One picture.

        Returns:
            uint8 [h, w, 3], RGB.

        Raises:
            OSError: it can't be read any more.
        """
        with _pillow().open(self.paths[index]) as picture:
            picture.draft("RGB", (MAX_SIDE, MAX_SIDE))
            rgb = picture.convert("RGB")
        rgb.thumbnail((MAX_SIDE, MAX_SIDE))
        return np.asarray(rgb)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("pillow", "vision") from error
    return Image
