"""What every task promises, whatever the model gives."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from gpu_inference.models.agreement import agreement
from gpu_inference.models.manifest import Manifest, Output, parse
from gpu_inference.tasks.geometry import Geometry
from gpu_inference.tasks.task import task_of

SERIES = 'input = {kind = "series", fields = ["a", "b"], window = 8}\n'
SMALL = "input.size = [16, 16]\n"

#: A manifest of each task and form of output, and the shapes of one input's outputs.
CASES: dict[str, tuple[str, list[tuple[int, ...]]]] = {
    "classification": ("", [(30,)]),
    "labels": ('output = {task = "classification", activation = "sigmoid"}', [(30,)]),
    "yolo": (SMALL + 'output.task = "detection"', [(9, 60)]),
    "objectness": (SMALL + 'output = {task = "detection", format = "yolo-objectness"}', [(60, 9)]),
    "split": (SMALL + 'output = {task = "detection", format = "split"}', [(40, 4), (40, 3)]),
    "rows": (SMALL + 'output = {task = "detection", format = "rows"}', [(20, 6)]),
    "final": (SMALL + 'output = {task = "detection", format = "final"}', [(20, 4), (20,), (20,)]),
    "segmentation": (SMALL + 'output = {task = "segmentation", ignore = []}', [(4, 8, 8)]),
    "mask": (SMALL + 'output.task = "segmentation"', [(1, 16, 16)]),
    "embedding": ('output.task = "embedding"', [(12,)]),
    "packed": ('output = {task = "embedding", encoding = "float16"}', [(12,)]),
    "regression": ('output = {task = "regression", values = ["x", "y"], units = ["m", ""]}', [(2,)]),
    "series": (SERIES + 'output = {task = "series", normalised = true}', [(5, 2)]),
    "raw": ('output.task = "raw"', [(3, 2), (4,)]),
}
COUNT = 5
GEOMETRIES = [Geometry.fit((20 + i, 30), (16, 16), "letterbox") for i in range(COUNT)]


def case(name: str) -> tuple[Manifest, dict[str, np.ndarray]]:
    text, shapes = CASES[name]
    rng = np.random.default_rng(len(name))
    outputs = {
        f"out{i}": (rng.random((COUNT + 2, *shape)) * 4 % 1.0).astype(np.float32)
        for i, shape in enumerate(shapes)
    }
    if len(shapes) == 3 or name == "rows":  # classes are whole numbers, boxes are in pixels
        for array in outputs.values():
            array[..., 5 if name == "rows" else -1 :] = np.round(array[..., 5 if name == "rows" else -1 :])
        outputs["out0"][..., :2] *= 8
        outputs["out0"][..., 2:4] = 8 + outputs["out0"][..., 2:4] * 8
    elif name == "split":
        outputs["out0"][..., 2:] = 8 + outputs["out0"][..., 2:] * 8
    elif name == "yolo":
        outputs["out0"][:, :4] *= 16
    elif name == "objectness":
        outputs["out0"][:, :, :4] *= 16
    return parse(text), outputs


def answers(manifest: Manifest, outputs: dict[str, np.ndarray], rows: slice) -> list[dict[str, Any]]:
    part = {name: array[rows] for name, array in outputs.items()}
    count = min(len(GEOMETRIES[rows]), COUNT)
    return task_of(manifest, ("zero", "one")).answers(part, count, GEOMETRIES[rows])


def test_every_task_is_held() -> None:
    held = {type(parse(text).output) for text, _ in CASES.values()}
    assert held == set(Output.__args__)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", CASES)
def test_a_batch_answers_as_one_by_one_and_fills_no_padding(name: str) -> None:
    manifest, outputs = case(name)
    together = answers(manifest, outputs, slice(None))
    assert len(together) == COUNT
    assert together == [answers(manifest, outputs, slice(i, i + 1))[0] for i in range(COUNT)]
    assert len({json.dumps(one) for one in together}) > 1  # and not one answer for all


@pytest.mark.parametrize("name", CASES)
def test_answers_are_json_and_outputs_stay_as_they_were(name: str) -> None:
    manifest, outputs = case(name)
    before = {key: array.copy() for key, array in outputs.items()}
    made = answers(manifest, outputs, slice(None))
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    for key, array in outputs.items():
        np.testing.assert_array_equal(array, before[key])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", CASES)
def test_one_number_that_is_not_finite_spoils_one_answer(name: str, bad: float) -> None:
    manifest, outputs = case(name)
    good = answers(manifest, outputs, slice(None))
    outputs["out0"][2].flat[-1] = bad
    spoiled = answers(manifest, outputs, slice(None))
    assert spoiled[2] == {"error": "not_finite"}
    assert spoiled[:2] + spoiled[3:] == good[:2] + good[3:]


@pytest.mark.parametrize("name", CASES)
def test_half_precision_gives_nearly_the_same_answers(name: str) -> None:
    manifest, outputs = case(name)
    halves = {key: array.astype(np.float16) for key, array in outputs.items()}
    wholes = {key: array.astype(np.float32) for key, array in halves.items()}
    pairs = zip(answers(manifest, halves, slice(None)), answers(manifest, wholes, slice(None)), strict=True)
    assert np.mean([agreement(half, whole)[0] for half, whole in pairs]) > 0.9


@pytest.mark.parametrize("name", CASES)
def test_an_answer_agrees_with_itself_and_less_with_another(name: str) -> None:
    manifest, outputs = case(name)
    made = answers(manifest, outputs, slice(None))
    assert [agreement(one, one)[0] for one in made] == [1.0] * COUNT
    pairs = [(a, b) for i, a in enumerate(made) for b in made[i + 1 :]]
    assert min(agreement(a, b)[0] for a, b in pairs) < 1
    for a, b in pairs:
        assert agreement(a, b)[0] == pytest.approx(agreement(b, a)[0])
