"""Pictures to input: against plain NumPy, and the resize against a slow reference of the same filter."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_inference.errors import ModelError
from gpu_inference.models.manifest import ImageInput
from gpu_inference.tasks.geometry import Geometry
from gpu_inference.tasks.preprocessing import Preprocessor
from gpu_inference.tasks.resize import resize

RNG = np.random.default_rng(7)


def picture(h: int, w: int, c: int = 3) -> np.ndarray:
    return RNG.integers(0, 256, (h, w, c), dtype=np.uint8)


def triangle(image: np.ndarray, h: int, w: int) -> np.ndarray:
    """Resizes by the definition: each target pixel is a weighted mean of all source pixels, in doubles."""

    def matrix(size: int, target: int) -> np.ndarray:
        scale = size / target
        centres = (np.arange(target) + 0.5) * scale
        distance = np.abs(np.arange(size) + 0.5 - centres[:, None]) / max(scale, 1.0)
        weights = np.maximum(1 - distance, 0)
        return weights / weights.sum(axis=1, keepdims=True)

    rows, columns = matrix(image.shape[0], h), matrix(image.shape[1], w)
    return np.einsum("yh,hwc,xw->yxc", rows, image.astype(np.float64), columns)


def plain(image: np.ndarray, config: ImageInput) -> np.ndarray:
    """Normalises by the definition, in doubles."""
    if config.channels == "bgr":
        image = image[:, :, ::-1]
    mean, std = np.array(config.mean), np.array(config.std)
    values = (image * config.scale - mean) / std
    values = values if config.layout == "NHWC" else values.transpose(2, 0, 1)
    return values.astype(config.dtype)


@pytest.mark.parametrize(
    ("source", "target"),
    [((40, 60), (17, 23)), ((9, 7), (30, 41)), ((16, 16), (16, 16)), ((50, 3), (5, 30)), ((1, 1), (4, 4))],
)
def test_resize_is_the_mean_under_a_triangle(source: tuple[int, int], target: tuple[int, int]) -> None:
    image = picture(*source)
    out = np.empty((*target, 3), np.uint8)
    resize(image, (0, 0, *source), out)
    assert np.abs(out - triangle(image, *target)).max() <= 0.501


def test_a_part_is_resized_into_a_part() -> None:
    image = picture(30, 40, 1)
    out = np.full((20, 20, 1), 9, np.uint8)
    resize(image, (5, 10, 10, 20), out, (3, 2, 5, 10))
    # pixels beyond the part's edge count for its outermost pixels: compare inside
    wanted = triangle(image[5:15, 10:30], 5, 10)
    assert np.abs(out[4:7, 3:11] - wanted[1:-1, 1:-1]).max() <= 0.501
    outside = np.ones((20, 20), bool)
    outside[3:8, 2:12] = False
    assert (out[outside] == 9).all()


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("channels", ["rgb", "bgr"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_normalisation_and_layout_are_those_of_numpy(layout: Any, channels: Any, dtype: Any) -> None:
    config = ImageInput(
        size=(12, 20),
        layout=layout,
        channels=channels,
        dtype=dtype,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.1),
    )
    prepare = Preprocessor(config, "crop")
    image = picture(12, 20)
    batch = np.full((3, *prepare.shape), 77, prepare.dtype)
    prepare.write(image, batch[1])
    np.testing.assert_array_equal(batch[1], plain(image, config))
    assert (batch[[0, 2]] == 77).all()


def test_bytes_stay_bytes() -> None:
    prepare = Preprocessor(ImageInput(size=(4, 6), layout="NHWC", dtype="uint8"), "stretch")
    image, slot = picture(4, 6), np.empty((4, 6, 3), np.uint8)
    prepare.write(image, slot)
    np.testing.assert_array_equal(slot, image)


def test_grey_is_made_of_colours_and_colours_of_grey() -> None:
    image = picture(5, 5)
    grey = Preprocessor(ImageInput(size=(5, 5), channels="gray", scale=1.0), "crop")
    slot = np.empty((1, 5, 5), np.float32)
    grey.write(image, slot)
    luma = image @ np.array([0.299, 0.587, 0.114])
    assert np.abs(slot[0] - luma).max() <= 0.51
    colours = Preprocessor(ImageInput(size=(5, 5), scale=1.0), "crop")
    three = np.empty((3, 5, 5), np.float32)
    colours.write(image[:, :, 0], three)
    for plane in three:
        np.testing.assert_array_equal(plane, image[:, :, 0])


def test_a_letterbox_has_grey_bars_and_the_whole_picture() -> None:
    prepare = Preprocessor(ImageInput(size=(20, 20), layout="NHWC", dtype="uint8", pad=50), "letterbox")
    slot = np.empty((20, 20, 3), np.uint8)
    geometry = prepare.write(np.full((10, 40, 3), 200, np.uint8), slot)
    assert geometry.inner == (7, 0, 5, 20)
    assert (slot[7:12] == 200).all()
    assert (slot[:7] == 50).all()
    assert (slot[12:] == 50).all()


def test_a_crop_keeps_the_middle() -> None:
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = 255
    prepare = Preprocessor(ImageInput(size=(10, 10), layout="NHWC", dtype="uint8"), "crop")
    slot = np.empty((10, 10, 3), np.uint8)
    assert prepare.write(image, slot).region == (0, 10, 10, 10)
    assert (slot == 255).all()
    tight = Preprocessor(ImageInput(size=(4, 4), crop=0.5), "crop")
    assert tight.geometry((10, 30)).region == (2, 12, 5, 5)


def test_a_picture_that_the_decoder_scaled_down_has_the_geometry_of_its_source() -> None:
    prepare = Preprocessor(ImageInput(size=(20, 20), layout="NHWC", dtype="uint8"), "crop")
    image = np.repeat(np.repeat(picture(20, 40), 4, axis=0), 4, axis=1)
    whole, scaled = np.empty((2, 20, 20, 3), np.uint8)
    geometry = prepare.write(image, whole)
    assert prepare.write(image[::4, ::4], scaled, source=(80, 160)) == geometry
    assert prepare.decode_size((80, 160)) == (20, 40)
    np.testing.assert_array_equal(scaled, image[::4, ::4][:, 10:30])
    assert np.abs(whole.astype(int) - scaled).mean() < 40  # the filter is wider than one source pixel


def test_what_is_no_picture_or_does_not_fit_is_refused() -> None:
    prepare = Preprocessor(ImageInput(size=(8, 8)), "crop")
    slot = np.empty((3, 8, 8), np.float32)
    for image in (
        picture(4, 4, 4),
        np.zeros((4, 4, 3)),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(3, np.uint8),
    ):
        with pytest.raises(ModelError, match="is no picture"):
            prepare.write(image, slot)
    for bad in (slot[:, :, :7], np.empty((8, 8, 3), np.float32), slot.astype(np.float64), slot[:, ::-1]):
        with pytest.raises(ModelError, match="does not fit"):
            prepare.write(picture(4, 4), bad)


def test_boxes_find_their_way_back_to_the_source() -> None:
    for fit in ("crop", "letterbox", "stretch"):
        geometry = Geometry.fit((300, 500), (64, 96), fit)
        (rt, rl, rh, rw), (it, il, ih, iw) = geometry.region, geometry.inner
        corners = np.array([[il, it, il + iw, it + ih]], np.float32)
        np.testing.assert_allclose(geometry.to_source(corners), [[rl, rt, rl + rw, rt + rh]], atol=1e-3)
    beyond = Geometry.fit((300, 500), (64, 96), "letterbox").to_source(np.array([[-50.0, -50, 500, 500]]))
    np.testing.assert_array_equal(beyond, [[0, 0, 500, 300]])


SIDE = st.integers(1, 400)


@settings(max_examples=300, deadline=None)
@given(
    source=st.tuples(SIDE, SIDE),
    target=st.tuples(SIDE, SIDE),
    fit=st.sampled_from(["crop", "letterbox", "stretch"]),
    crop=st.floats(0.05, 1),
)
def test_every_geometry_stays_inside_and_comes_back(
    source: tuple[int, int], target: tuple[int, int], fit: Any, crop: float
) -> None:
    geometry = Geometry.fit(source, target, fit, crop)
    for (top, left, h, w), (most_h, most_w) in ((geometry.region, source), (geometry.inner, target)):
        assert h >= 1
        assert w >= 1
        assert 0 <= top <= top + h <= most_h
        assert 0 <= left <= left + w <= most_w
    (rt, rl, rh, rw), (it, il, ih, iw) = geometry.region, geometry.inner
    middle = np.array([[il + iw / 2, it + ih / 2] * 2])
    np.testing.assert_allclose(
        geometry.to_source(middle), [[rl + rw / 2, rt + rh / 2] * 2], rtol=1e-4, atol=2e-3
    )


@settings(max_examples=60, deadline=None)
@given(source=st.tuples(SIDE, SIDE), fit=st.sampled_from(["crop", "letterbox", "stretch"]))
def test_a_picture_of_one_colour_stays_of_one_colour(source: tuple[int, int], fit: Any) -> None:
    prepare = Preprocessor(ImageInput(size=(24, 40), layout="NHWC", dtype="uint8", pad=77), fit)
    slot = np.empty((24, 40, 3), np.uint8)
    geometry = prepare.write(np.full((*source, 3), 77, np.uint8), slot)
    assert (slot == 77).all()
    down, across = prepare.decode_size(source)
    assert down <= source[0]
    assert across <= source[1]
    scaled = prepare.write(np.full((down, across, 3), 77, np.uint8), slot, source=source)
    assert scaled == geometry
    assert (slot == 77).all()


def test_threads_may_share_a_preprocessor() -> None:
    prepare = Preprocessor(ImageInput(size=(32, 32)), "crop")
    images = [picture(40 + i, 50) for i in range(24)]
    alone = np.empty((24, *prepare.shape), np.float32)
    for image, slot in zip(images, alone, strict=True):
        prepare.write(image, slot)
    together = np.empty_like(alone)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(prepare.write, images, together))
    np.testing.assert_array_equal(together, alone)


def test_pictures_that_can_not_be_written_to_are_read() -> None:
    prepare = Preprocessor(ImageInput(size=(8, 8)), "crop")
    prepare.warm()
    image, slots = picture(8, 8), np.empty((2, *prepare.shape), np.float32)
    prepare.write(image, slots[0])
    image.flags.writeable = False
    prepare.write(image[:, :, :], slots[1])
    np.testing.assert_array_equal(slots[0], slots[1])
