"""Files of pictures to pixels."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from agents.pictures import PictureDecoder
from streams.errors import BadRecord
from streams.frames import PNG, RAW, Frame, content_type_of
from tests.frames import COLOURS, picture

H, W = 60, 80


def frame(data: bytes, kind: str | None = None, shape: tuple[int, int, int] | None = None) -> Frame:
    return Frame("cam", 0.0, 0.0, 0, kind or content_type_of(data) or "", data, shape)


def whole(source: tuple[int, int]) -> tuple[int, int]:
    return source


@pytest.fixture(params=["simplejpeg", "pillow"])
def decoder(request: pytest.FixtureRequest) -> PictureDecoder:
    made = PictureDecoder(1_000_000)
    if request.param == "pillow":
        made._simplejpeg = None
    return made


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("colour", COLOURS)
def test_every_kind_gives_its_pixels_in_rgb(decoder: PictureDecoder, kind: str, colour: str) -> None:
    decoded = decoder.decode(frame(picture(colour, (W, H), kind)), whole)
    assert decoded.source == (H, W)
    assert decoded.pixels.shape == (H, W, 3)
    assert np.abs(decoded.pixels.astype(int) - COLOURS[colour]).max() <= 6


def test_raw_pixels_are_taken_as_they_are(decoder: PictureDecoder) -> None:
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    assert (decoder.decode(frame(pixels.tobytes(), RAW, (2, 3, 3)), whole).pixels == pixels).all()


@pytest.mark.parametrize("mode", ["L", "CMYK", "1", "P", "RGBA", "I;16"])
def test_other_colour_modes(decoder: PictureDecoder, mode: str) -> None:
    image = Image.fromarray(np.full((H, W), 128, np.uint8)).convert("L")
    file = io.BytesIO()
    if mode == "I;16":
        Image.fromarray(np.full((H, W), 128 * 257, np.uint16)).save(file, "PNG")
    else:
        image.convert(mode).save(file, "JPEG" if mode in ("L", "CMYK") else "PNG")
    pixels = decoder.decode(frame(file.getvalue()), whole).pixels
    assert pixels.shape in ((H, W, 1), (H, W, 3))
    if mode not in ("1", "I;16"):
        assert abs(float(pixels.mean()) - 128) < 3


def test_a_large_jpeg_is_decoded_no_larger_than_it_must_be(decoder: PictureDecoder) -> None:
    data = picture("red", (800, 600))
    decoded = decoder.decode(frame(data), lambda _: (70, 90))
    assert decoded.source == (600, 800)
    h, w, _ = decoded.pixels.shape
    assert 70 <= h <= 150
    assert 90 <= w <= 200


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("keep", [0.1, 0.6])
def test_a_file_that_is_cut_off_is_a_bad_record(decoder: PictureDecoder, kind: str, keep: float) -> None:
    noisy = np.random.default_rng(0).integers(0, 255, (H, W, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, kind)
    data = file.getvalue()
    with pytest.raises(BadRecord) as caught:
        decoder.decode(frame(data[: int(len(data) * keep)]), whole)
    assert caught.value.reason == "bad_image"


def bomb(side: int) -> bytes:
    """A PNG of a few hundred bytes that says it has side x side pixels."""

    def block(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + block(b"IHDR", header) + block(b"IDAT", body) + block(b"IEND", b"")


@pytest.mark.parametrize("side", [1_100, 12_000, 60_000])
def test_a_bomb_is_refused_by_its_claimed_size(decoder: PictureDecoder, side: int) -> None:
    with pytest.raises(BadRecord) as caught:
        decoder.decode(frame(bomb(side), PNG), whole)
    assert caught.value.reason == "image_too_large"


def test_a_large_jpeg_is_refused_before_it_is_unpacked(decoder: PictureDecoder) -> None:
    with pytest.raises(BadRecord) as caught:
        decoder.decode(frame(picture("red", (1200, 900))), lambda _: (30, 40))
    assert caught.value.reason == "image_too_large"
    assert "1200 x 900" in caught.value.detail
