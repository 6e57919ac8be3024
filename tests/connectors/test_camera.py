"""Made-up cameras: the same seed, the same pictures; what moves, what is noise; a real one through OpenCV."""

from __future__ import annotations

import asyncio
import io
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from connectors import camera as camera_module
from connectors.album import MAX_SIDE, PHOTOGRAPHS, Album
from connectors.camera import CameraConfig, CameraSource
from connectors.errors import BadInput
from connectors.scene import Scene
from connectors.source import Message
from streams.errors import MissingExtra
from streams.frames import content_type_of

T0 = 1_750_000_000.0
COLOURS = ((220, 30, 30), (30, 200, 40), (20, 40, 230))


class Plain:
    """One photograph a colour, darker to the right and downwards."""

    def __init__(self, colours: Sequence[tuple[int, int, int]] = COLOURS) -> None:
        shade = np.linspace(1, 0.5, 600)[None, :, None] * np.linspace(1, 0.5, 400)[:, None, None]
        self.pictures = [(shade * np.array(colour)).astype(np.uint8) for colour in colours]

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, index: int) -> Any:
        return self.pictures[index]


def seen(scene: Scene, at_s: float) -> Any:
    return np.asarray(scene.picture(at_s)).astype(np.float64)


def test_same_seed_and_time_give_the_same_picture_and_others_do_not() -> None:
    first, again, other = (Scene(Plain(), seed) for seed in (3, 3, 4))
    seen(again, T0 + 500)  # whatever it was asked before
    picture = seen(first, T0)
    assert picture.shape == (240, 320, 3)
    assert np.array_equal(picture, seen(again, T0))
    assert not np.array_equal(picture, seen(other, T0))
    assert not np.array_equal(picture, seen(first, T0 + 0.5))


def test_noise_is_small_and_never_the_same() -> None:
    scene = Scene(Plain(), 0)
    difference = seen(scene, T0 + 0.002) - seen(scene, T0)  # too short for anything to move
    assert 4.0 < difference.std() < 7.0
    assert abs(difference.mean()) < 0.1


def test_every_photograph_gets_its_turn_and_is_shown_for_a_shot() -> None:
    scene = Scene(Plain(), 1, shot_s=8)
    shown = [int(seen(scene, T0 + s).mean(axis=(0, 1)).argmax()) for s in range(48)]
    runs = [(channel, len(list(run))) for channel, run in itertools.groupby(shown)]
    assert {channel for channel, _ in runs[:3]} == {0, 1, 2}
    assert all(length == 8 for _, length in runs[1:-1])


def test_the_camera_moves_and_the_light_changes() -> None:
    scene = Scene(Plain([(200, 200, 200)]), 2)
    pictures = [seen(scene, T0 + s) for s in range(60)]
    light = np.array([p.mean() for p in pictures])
    assert light.max() / light.min() > 1.3
    # the photograph is darker to the right: how the two halves compare says where the camera looks
    sides = np.array([p[:, :160].mean() / p.mean() for p in pictures])
    assert sides.max() - sides.min() > 0.005


@pytest.mark.parametrize(("count", "shot_s"), [(0, 8.0), (3, 0.0)])
def test_a_scene_of_nothing_is_refused(count: int, shot_s: float) -> None:
    with pytest.raises(ValueError, match="no scene of"):
        Scene(Plain(COLOURS[:count]), 0, shot_s=shot_s)


def save(path: Path, colour: tuple[int, int, int] = COLOURS[0], size: tuple[int, int] = (64, 48)) -> None:
    Image.new("RGB", size, colour).save(path)


def test_an_album_has_the_pictures_of_a_folder_and_leaves_out_what_is_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path / "b.png")
    save(tmp_path / "A.JPG", COLOURS[1], (3000, 1000))
    (tmp_path / "c.jpg").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("no picture")
    album = Album.of_folder(tmp_path)
    assert [path.name for path in album.paths] == ["A.JPG", "b.png"]
    assert "c.jpg is left out" in caplog.text
    assert album.read(0).shape == (MAX_SIDE // 3, MAX_SIDE, 3)
    assert album.read(1)[0, 0].tolist() == list(COLOURS[0])
    with pytest.raises(BadInput, match="there is no picture in"):
        Album.of_folder(_empty(tmp_path))


def _empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def test_scikit_image_brings_the_photographs_or_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("connectors.album.find_spec", lambda name: None)
    with pytest.raises(
        MissingExtra, match=r"scikit-image is not installed: pip install 'polarstream\[demo\]'"
    ):
        Album.of_scikit_image()


def test_all_photographs_are_in_scikit_images_wheel() -> None:
    pytest.importorskip("skimage", reason="pip install 'polarstream[demo]'")
    album = Album.of_scikit_image()
    assert [path.name for path in album.paths] == list(PHOTOGRAPHS)
    for index in range(len(album)):
        assert album.read(index).shape[2] == 3


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return T0 + self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr(camera_module, "time", clock)
    monkeypatch.setattr(
        camera_module, "asyncio", SimpleNamespace(sleep=clock.sleep, to_thread=asyncio.to_thread)
    )
    return clock


async def take(source: CameraSource, count: int) -> list[Message]:
    batches = source.batches()
    found = [message for _ in range(count) for message in await anext(batches)]
    await batches.aclose()  # type: ignore[attr-defined]
    return found


async def test_frames_of_all_cameras_come_in_turn_at_their_rate(tmp_path: Path, clock: Time) -> None:
    for number, colour in enumerate(COLOURS):
        save(tmp_path / f"{number}.png", colour)
    config = CameraConfig(cameras=2, interval_s=0.5, folder=str(tmp_path), device=None, size=(80, 60))
    messages = await take(CameraSource(config), 6)
    assert [m.key for m in messages] == [b"camera-1", b"camera-2"] * 3
    assert clock.slept == pytest.approx([0.25] * 5)
    for n, message in enumerate(messages):
        headers = dict(message.headers)
        assert headers["content-type"] == b"image/jpeg" == (content_type_of(message.value) or "").encode()
        assert float(headers["ts"]) == pytest.approx(T0 + 0.25 * n, abs=1e-3)
        assert Image.open(io.BytesIO(message.value)).size == (80, 60)
    again = CameraSource(config)
    clock.now = 0.0
    assert [m.value for m in await take(again, 6)] == [m.value for m in messages]


async def test_a_camera_that_was_held_up_sends_no_burst(tmp_path: Path, clock: Time) -> None:
    save(tmp_path / "0.png")
    config = CameraConfig(cameras=1, interval_s=0.5, folder=str(tmp_path), device=None, size=(80, 60))
    batches = CameraSource(config).batches()
    await anext(batches)
    clock.now += 60
    for _ in range(4):
        await anext(batches)
    assert clock.slept == [0.0, 0.0, 0.5, 0.5][: len(clock.slept)]
    await batches.aclose()  # type: ignore[attr-defined]


async def test_a_folder_without_pictures_is_told_and_others_are_shown(
    tmp_path: Path, clock: Time, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path / "0.png")
    monkeypatch.setattr(Album, "of_scikit_image", lambda: Album([tmp_path / "0.png"]))
    source = CameraSource(CameraConfig(folder=str(_empty(tmp_path)), device=None))
    assert len(await take(source, 1)) == 1
    assert "scikit-image's photographs are shown" in caplog.text


class FakeOpenCV:
    """OpenCV with a camera that is there or not."""

    CAP_PROP_BUFFERSIZE, IMWRITE_JPEG_QUALITY = 38, 1

    def __init__(self, there: bool) -> None:
        self.there = there
        self.opened: list[int] = []
        self.released = 0

    def VideoCapture(self, device: int) -> FakeOpenCV:
        self.opened.append(device)
        return self

    def isOpened(self) -> bool:
        return self.there

    def set(self, *_: Any) -> None: ...

    def grab(self) -> bool:
        return self.there

    def read(self) -> tuple[bool, Any]:
        return self.there, np.zeros((4, 4, 3), np.uint8)

    def imencode(self, *_: Any) -> tuple[bool, Any]:
        return True, np.frombuffer(b"\xff\xd8\xff jpeg", np.uint8)

    def release(self) -> None:
        self.released += 1


async def test_a_real_camera_is_shown_alone_and_looked_for_again_when_it_is_gone(
    clock: Time, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cv2 = FakeOpenCV(there=True)
    monkeypatch.setitem(sys.modules, "cv2", cv2)
    batches = CameraSource(CameraConfig(device=2, interval_s=0.5)).batches()
    first = await anext(batches)
    assert [(m.key, m.value) for m in first] == [(b"camera-1", b"\xff\xd8\xff jpeg")]
    assert cv2.opened == [2]

    cv2.there = False
    monkeypatch.setattr(clock, "sleep", _unplugged_for(3, clock, cv2))
    monkeypatch.setattr(camera_module.asyncio, "sleep", clock.sleep)
    assert len(await anext(batches)) == 1
    assert caplog.text.count("camera 2 gives no picture") == 1
    assert caplog.text.count("camera 2 is back") == 1
    assert len(cv2.opened) > 2
    released = cv2.released
    await batches.aclose()  # type: ignore[attr-defined]
    assert cv2.released == released + 1


def _unplugged_for(sleeps: int, clock: Time, cv2: FakeOpenCV) -> Any:
    count = itertools.count()

    async def sleep(seconds: float) -> None:
        clock.now += seconds
        cv2.there = next(count) >= sleeps

    return sleep


async def test_without_a_real_camera_made_up_ones_are_shown(
    tmp_path: Path, clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "0.png")
    cv2 = FakeOpenCV(there=False)
    monkeypatch.setitem(sys.modules, "cv2", cv2)
    messages = await take(CameraSource(CameraConfig(cameras=2, folder=str(tmp_path))), 2)
    assert [m.key for m in messages] == [b"camera-1", b"camera-2"]
    assert cv2.released == 1
