"""The parts together, on onnxruntime: from the folder to answers, and through a swap under traffic."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import gpu_inference
from gpu_inference.errors import ManifestError
from gpu_inference.models.binding import bind
from gpu_inference.models.folder import ModelFolder
from gpu_inference.models.live import Action, LiveModels
from gpu_inference.models.manifest import ImageInput, fit_of
from gpu_inference.models.signature import TrustedKeys, check, read_private_key, sign, write_keys
from gpu_inference.tasks.preprocessing import Preprocessor
from gpu_inference.tasks.task import task_of
from gpu_inference.tasks.windows import Windows

COLOURS = 'input.size = [16, 16]\noutput.task = "classification"\noutput.labels = ["red", "green", "blue"]\n'


def save(path: Path, shape: tuple[int | str, ...], nodes: list[Any], weights: tuple[Any, ...] = ()) -> Path:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        list(weights),
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def colour_model(path: Path, gain: float) -> Path:
    """Means of the three channels times a gain: logits of which colour it is."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[2, 3], keepdims=0),
        helper.make_node("Mul", ["m", "gain"], ["y"]),
    ]
    return save(path, ("n", 3, 16, 16), nodes, (numpy_helper.from_array(np.array(gain, np.float32), "gain"),))


def frame(colour: int, h: int = 30, w: int = 40) -> np.ndarray:
    made = np.full((h, w, 3), 20, np.uint8)
    made[:, :, colour] = 220
    return made


class Served:
    """One loaded version."""

    def __init__(self, folder: ModelFolder, name: str, number: str) -> None:
        self.version = folder.load(name, number)
        manifest = self.version.manifest
        self.session = gpu_inference.load(folder.read_model(self.version), engine="onnxruntime")
        self.binding = bind(manifest, self.session.inputs, self.session.outputs, self.version.labels)
        assert isinstance(manifest.input, ImageInput)
        self.prepare = Preprocessor(manifest.input, fit_of(manifest))
        self.task = task_of(manifest, self.version.labels)

    def answers(self, frames: list[np.ndarray]) -> list[dict[str, Any]]:
        batch = np.empty((len(frames), *self.prepare.shape), self.prepare.dtype)
        assert batch.shape[1:] == self.binding.shape
        geometries = [self.prepare.write(image, batch[i]) for i, image in enumerate(frames)]
        outputs = self.session.run({self.binding.input: batch})
        return self.task.answers(outputs, len(frames), geometries)


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    folder = ModelFolder(tmp_path / "models")
    for number, gain in (("1", 4.0), ("2", 8.0)):
        folder.add("colours", number, colour_model(tmp_path / "made.onnx", gain), COLOURS)
    return folder


def test_frames_become_answers(folder: ModelFolder) -> None:
    served = Served(folder, "colours", "1")
    answers = served.answers([frame(2), frame(0), frame(1, 16, 16)])
    assert [answer["label"] for answer in answers] == ["blue", "red", "green"]
    high, low = np.exp(4 * np.array([220, 20]) / 255)
    assert answers[0]["score"] == pytest.approx(high / (high + 2 * low), abs=1e-4)


def test_a_manifest_of_another_model_is_refused_before_it_runs(folder: ModelFolder, tmp_path: Path) -> None:
    folder.add("colours", "3", colour_model(tmp_path / "made.onnx", 1), COLOURS.replace("16, 16", "16, 17"))
    with pytest.raises(ManifestError, match=r"does not fit the model's \[any, 3, 16, 16\]"):
        Served(folder, "colours", "3")


def test_a_swap_under_traffic_answers_every_frame_once_by_one_version(
    folder: ModelFolder, tmp_path: Path
) -> None:
    private, public = write_keys(tmp_path / "plant")
    for number in ("1", "2"):
        sign(folder.load("colours", number), read_private_key(private))
    trusted, state = TrustedKeys.read([public]), LiveModels()
    loaded: dict[str, Served] = {}
    todo: list[Action] = []

    def work() -> None:
        action = todo.pop(0)
        match action.kind:
            case "load":
                served = Served(folder, action.model, action.version)
                assert check(served.version, trusted, required=True) == "plant"
                assert served.version.model_sha256 == action.sha256
                loaded[action.version] = served
                todo.extend(state.loaded(action.model, action.version))
            case "warm":
                loaded[action.version].answers([frame(0)])
                todo.extend(state.warmed(action.model, action.version))
            case "drain":
                todo.extend(state.drained(action.model, action.version))
            case "unload":
                loaded.pop(action.version).session.close()
                todo.extend(state.unloaded(action.model, action.version))

    for number in ("1", "2"):
        todo += state.apply(*state.added("colours", number, folder.load("colours", number).model_sha256))
    todo += state.apply(*state.promote("colours", "1"))
    while todo:
        work()
    scores: list[float] = []
    by: Counter[str] = Counter()
    for tick in range(40):
        if tick == 10:
            todo += state.apply(*state.promote("colours", "2"))
        if tick > 10 and tick % 5 == 0 and todo:
            work()
        route = state.route("colours", "cam")
        by[route.version] += 1
        (answer,) = loaded[route.version].answers([frame(0)])
        scores.append(answer["score"])
    assert by["1"] + by["2"] == 40
    changes = [i for i in range(1, 40) if scores[i] != scores[i - 1]]
    assert len(changes) == 1  # never back and forth, never in between
    assert changes[0] > 10
    assert list(loaded) == ["2"]


def test_windows_of_readings_become_forecasts(tmp_path: Path) -> None:
    path = save(tmp_path / "last.onnx", ("n", 4, 2), [helper.make_node("Identity", ["x"], ["y"])])
    text = """
        input = {kind = "series", fields = ["t", "p"], window = 4, mean = [20.0, 1000.0], std = [5.0, 10.0]}
        output = {task = "series", normalised = true}
    """
    folder = ModelFolder(tmp_path / "models")
    version = folder.add("echo", "1", path, text)
    session = gpu_inference.load(folder.read_model(version), engine="onnxruntime")
    binding = bind(version.manifest, session.inputs, session.outputs)
    windows = Windows(version.manifest.input)  # type: ignore[arg-type]
    values = np.stack([20 + np.arange(6.0), 1000 - np.arange(6.0)], axis=1)
    at, batch = windows.push(np.zeros(1, windows.dtype), np.zeros(6, np.int32), values)
    answers = task_of(version.manifest).answers(session.run({binding.input: batch}), len(at))
    assert at.tolist() == [3, 4, 5]
    assert answers[2] == {"forecast": {"t": [22.0, 23.0, 24.0, 25.0], "p": [998.0, 997.0, 996.0, 995.0]}}
