"""Masks: runs against a loop over pixels, places against the geometry read pixel by pixel."""

from __future__ import annotations

import json

import numpy as np
import pytest

from gpu_inference.errors import ModelError
from gpu_inference.models.manifest import Segmentation
from gpu_inference.tasks.answers import Answer
from gpu_inference.tasks.geometry import Geometry
from gpu_inference.tasks.segmentation import SegmentationTask, best_class

LABELS = ("background", "road", "car", "sky")


def painted(answer: Answer) -> np.ndarray:
    """The masks as classes [h, w], decoded the way COCO describes; -1 where there is none."""
    canvas = None
    for mask in answer["masks"]:
        h, w = mask["rle"]["size"]
        canvas = np.full(h * w, -1) if canvas is None else canvas
        at, inside = 0, False
        for length in mask["rle"]["counts"]:
            if inside:
                assert (canvas[at : at + length] == -1).all()
                canvas[at : at + length] = mask["class"]
            at, inside = at + length, not inside
        assert at == h * w
        assert mask["pixels"] == sum(mask["rle"]["counts"][1::2])
    assert canvas is not None
    return canvas.reshape(w, h).T


def looked_up(classes: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Each pixel of the source by itself: through the geometry to the output's pixel that it lies in."""
    (h, w), (th, tw) = geometry.source, geometry.target
    (rt, rl, rh, rw), (it, il, ih, iw) = geometry.region, geometry.inner
    found = np.full((h, w), -1)
    for y in range(rt, rt + rh):
        for x in range(rl, rl + rw):
            row = (it + (y - rt + 0.5) * ih / rh) * classes.shape[0] / th
            column = (il + (x - rl + 0.5) * iw / rw) * classes.shape[1] / tw
            found[y, x] = classes[int(row), int(column)]
    return found


@pytest.mark.parametrize("fit", ["crop", "letterbox", "stretch"])
@pytest.mark.parametrize("source", [(30, 50), (64, 20), (8, 8)])
def test_masks_are_those_of_a_look_up_pixel_by_pixel(fit: str, source: tuple[int, int]) -> None:
    scores = np.random.default_rng(1).normal(size=(1, 4, 8, 8)).astype(np.float32)
    geometry = Geometry.fit(source, (32, 32), fit)  # type: ignore[arg-type]
    task = SegmentationTask(Segmentation(ignore=()), LABELS, (32, 32))
    (answer,) = task.answers({"s": scores}, 1, [geometry])
    np.testing.assert_array_equal(painted(answer), looked_up(scores[0].argmax(axis=0), geometry))
    assert [mask["label"] for mask in answer["masks"]] == list(LABELS)
    json.dumps(answer, allow_nan=False)


def test_the_forms_of_outputs_give_the_same_masks() -> None:
    rng = np.random.default_rng(2)
    scores = rng.normal(size=(2, 3, 6, 5)).astype(np.float32)
    numbers = scores.argmax(axis=1)
    wanted = SegmentationTask(Segmentation(), LABELS, (6, 5)).answers({"s": scores}, 2)
    assert (
        SegmentationTask(Segmentation(layout="NHWC"), LABELS, (6, 5)).answers(
            {"s": scores.transpose(0, 2, 3, 1)}, 2
        )
        == wanted
    )
    for array in (numbers, numbers[:, None], numbers[..., None].astype(np.uint8)):
        assert SegmentationTask(Segmentation(), LABELS, (6, 5)).answers({"s": array}, 2) == wanted
    assert [mask["class"] for mask in wanted[0]["masks"]] == [1, 2]


def test_one_channel_is_a_probability_or_its_logit() -> None:
    p = np.array([[0.1, 0.6, 0.7], [0.8, 0.2, 0.55]], np.float32)
    plain = SegmentationTask(Segmentation(threshold=0.6), ("", "crack"), (2, 3))
    (answer,) = plain.answers({"p": p[None, None]}, 1)
    assert answer == {
        "masks": [
            {"label": "crack", "class": 1, "pixels": 3, "rle": {"size": [2, 3], "counts": [1, 2, 1, 1, 1]}}
        ]
    }
    logit = SegmentationTask(Segmentation(threshold=0.6, activation="sigmoid"), ("", "crack"), (2, 3))
    exact = np.log(p / (1 - p)) + np.float32(1e-6)
    assert logit.answers({"p": exact[None, None]}, 1) == [answer]


def test_masks_that_are_too_small_and_numbers_that_are_not_finite_are_left_out() -> None:
    scores = np.zeros((2, 2, 4, 4), np.float32)
    scores[0, 1, 0, 0] = 1
    scores[1, 1, 0, 0] = np.nan
    task = SegmentationTask(Segmentation(min_pixels=2), LABELS, (4, 4))
    assert task.answers({"s": scores}, 2) == [{"masks": []}, {"error": "not_finite"}]


def test_the_best_class_is_numpys() -> None:
    scores = np.random.default_rng(3).integers(0, 4, (7, 33, 21)).astype(np.float32)
    np.testing.assert_array_equal(best_class(scores), scores.argmax(axis=0))


def test_other_shapes_are_refused() -> None:
    task = SegmentationTask(Segmentation(), LABELS, (4, 4))
    with pytest.raises(ModelError, match="is no segmentation"):
        task.answers({"s": np.zeros((1, 10), np.float32)}, 1)
