"""Cameras as a source of frames: a real one if there is one, else made-up ones that look at photographs.

A real camera is read through OpenCV, where that is installed (`pip install opencv-python-headless`). The
made-up ones look at the pictures of a folder, or at the photographs that come with scikit-image (`scene.py`).
Frames are JPEGs, the key is the camera, the headers are those of `streams.frames`.
"""

from __future__ import annotations

import asyncio
import io
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from connectors.album import Album
from connectors.errors import BadInput
from connectors.scene import Scene
from connectors.source import Message
from streams.frames import JPEG, frame_headers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_log = logging.getLogger(__name__)

_QUALITY: Final = 85


class CameraConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True, tag="camera"):
    """Settings of cameras as a source."""

    #: How many are made up where there is no real one.
    cameras: int = 3
    #: Seconds between two frames of a camera.
    interval_s: float = 0.5
    seed: int = 0
    #: Width and height of made-up frames.
    size: tuple[int, int] = (320, 240)
    #: Seconds until a made-up camera sees the next photograph.
    shot_s: float = 8.0
    #: Folder of pictures for the made-up cameras; None, or without pictures: scikit-image's photographs.
    folder: str | None = None
    #: OpenCV's number of the real camera; None: none is looked for.
    device: int | None = 0


class Camera(Protocol):
    """What takes pictures."""

    def jpeg(self, at_s: float) -> bytes | None:
        """A picture of the time `at_s` (s since the epoch); None: there is none now. May block."""
        ...

    def close(self) -> None:
        """Give it back."""
        ...


class SceneCamera:
    """A made-up camera."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def jpeg(self, at_s: float) -> bytes | None:
        """See `Camera`."""
        file = io.BytesIO()
        try:
            self._scene.picture(at_s).save(file, "JPEG", quality=_QUALITY)
        except OSError as error:
            _log.warning("a frame is left out: %s", error)
            return None
        return file.getvalue()

    def close(self) -> None:
        """See `Camera`."""


class RealCamera:
    """A camera of this machine, through OpenCV.

    Args:
        cv2: the module.
        device: OpenCV's number of it.
    """

    def __init__(self, cv2: Any, device: int) -> None:
        self._cv2, self._device = cv2, device
        self._away = False
        self._capture: Any = None
        self._open()

    @property
    def is_open(self) -> bool:
        """Whether there is such a camera."""
        return bool(self._capture.isOpened())

    def jpeg(self, at_s: float) -> bytes | None:
        """See `Camera`; one that was unplugged is looked for again."""
        # one frame waits in the driver, as old as the one that was taken last
        self._capture.grab()
        good, pixels = self._capture.read()
        if good:
            good, data = self._cv2.imencode(".jpg", pixels, [self._cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
        if good != (not self._away):
            self._away = not good
            _log.warning("camera %d %s", self._device, "is back" if good else "gives no picture")
        if not good:
            self._capture.release()
            self._open()
            return None
        return bytes(data)

    def close(self) -> None:
        """See `Camera`."""
        self._capture.release()

    def _open(self) -> None:
        self._capture = self._cv2.VideoCapture(self._device)
        self._capture.set(self._cv2.CAP_PROP_BUFFERSIZE, 1)


class CameraSource:
    """Frames of all cameras in turn, one message at a time."""

    def __init__(self, config: CameraConfig) -> None:
        self._config = config

    async def batches(self) -> AsyncIterator[list[Message]]:
        """Frames, keyed `camera-1` and so on, until cancelled.

        Raises:
            MissingExtra: there is neither a camera nor a photograph.
        """
        cameras = await asyncio.to_thread(self._find)
        pause_s = self._config.interval_s / len(cameras)
        due, last = time.monotonic(), 0.0
        try:
            while True:
                for number, camera in enumerate(cameras, 1):
                    last = max(last, round(time.time(), 3))
                    value = await asyncio.to_thread(camera.jpeg, last)
                    if value is not None:
                        headers = frame_headers(JPEG, last)
                        yield [Message(f"camera-{number}".encode(), value, headers=headers)]
                    due = max(due + pause_s, time.monotonic() - pause_s)
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
        finally:
            for camera in cameras:
                camera.close()

    def _find(self) -> list[Camera]:
        real = self._real()
        if real is not None:
            return [real]
        config, album = self._config, self._album()
        return [
            SceneCamera(Scene(album, config.seed + number, config.size, config.shot_s))
            for number in range(config.cameras)
        ]

    def _real(self) -> Camera | None:
        device = self._config.device
        if device is None:
            return None
        try:
            import cv2
        except ImportError:
            _log.info("no real camera is looked for: pip install opencv-python-headless")
            return None
        camera = RealCamera(cv2, device)
        if camera.is_open:
            _log.info("camera %d is shown", device)
            return camera
        camera.close()
        _log.info("there is no camera %d: made-up ones are shown", device)
        return None

    def _album(self) -> Album:
        folder = self._config.folder
        if folder is not None and Path(folder).is_dir():
            try:
                return Album.of_folder(Path(folder))
            except BadInput as error:
                _log.warning("%s; scikit-image's photographs are shown", error)
        return Album.of_scikit_image()
