"""The folder of models: whole versions, never changed, in the order of their numbers."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from gpu_inference.errors import ManifestError, RegistryError
from gpu_inference.models.folder import ModelFolder, version_key

MANIFEST = 'input.size = [8, 8]\noutput.labels = "labels.txt"\n'


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "made.onnx"
    path.write_bytes(b"not really a model")
    (tmp_path / "labels.txt").write_text("cat\ndog\n", encoding="utf-8")
    return path


def test_an_added_version_is_found_with_the_hashes_of_its_files(tmp_path: Path, model: Path) -> None:
    folder = ModelFolder(tmp_path / "models")
    added = folder.add("animals", "1", model, MANIFEST, [tmp_path / "labels.txt"])
    loaded = folder.load("animals", "1")
    assert loaded == added
    assert loaded.labels == ("cat", "dog")
    assert loaded.model_sha256 == hashlib.sha256(b"not really a model").hexdigest()
    assert set(loaded.sha256) == {"model.onnx", "model.toml", "labels.txt"}
    assert loaded.size_bytes == 18
    assert folder.read_model(loaded) == b"not really a model"
    assert folder.scan().versions == {"animals": ["1"]}
    assert folder.scan().faults == []


def test_a_version_is_never_overwritten(tmp_path: Path, model: Path) -> None:
    folder = ModelFolder(tmp_path / "models")
    folder.add("animals", "1", model, MANIFEST, [tmp_path / "labels.txt"])
    model.write_bytes(b"another")
    with pytest.raises(RegistryError, match="never changes: take a new number"):
        folder.add("animals", "1", model, MANIFEST, [tmp_path / "labels.txt"])
    assert folder.read_model(folder.load("animals", "1")) == b"not really a model"


def test_of_two_that_add_the_same_version_one_wins_and_nothing_is_mixed(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ModelFolder(tmp_path / "models")
    rename = Path.rename

    def late(self: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        other = tmp_path / "other.onnx"
        other.write_bytes(b"quicker")
        folder.add("animals", "1", other, "")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    with pytest.raises(RegistryError, match="can't be added"):
        folder.add("animals", "1", model, MANIFEST, [tmp_path / "labels.txt"])
    loaded = folder.load("animals", "1")
    assert folder.read_model(loaded) == b"quicker"
    assert set(loaded.sha256) == {"model.onnx", "model.toml"}
    assert [path.name for path in (tmp_path / "models" / "animals").iterdir()] == ["1"]


def test_a_version_that_can_not_be_whole_leaves_nothing_behind(tmp_path: Path, model: Path) -> None:
    folder = ModelFolder(tmp_path / "models")
    with pytest.raises(ManifestError, match="can't be read"):
        folder.add("animals", "1", model, MANIFEST)
    with pytest.raises(ManifestError, match="is not a setting"):
        folder.add("animals", "1", model, "input.sise = 3")
    with pytest.raises(RegistryError, match="can't be added"):
        folder.add("animals", "1", tmp_path / "absent.onnx", "")
    assert folder.scan().versions == {}
    assert list(tmp_path.glob("models/*/*")) == []


def test_a_changed_model_is_refused(tmp_path: Path, model: Path) -> None:
    folder = ModelFolder(tmp_path / "models")
    added = folder.add("animals", "1", model, "")
    added.model_path.write_bytes(b"tampered with")
    with pytest.raises(RegistryError, match="has changed"):
        folder.read_model(added)


def test_what_can_not_be_used_is_told_and_the_rest_goes_on(tmp_path: Path, model: Path) -> None:
    folder = ModelFolder(tmp_path / "models")
    folder.add("animals", "1.9", model, "")
    folder.add("animals", "1.10", model, "")
    (tmp_path / "models" / "animals" / "2").mkdir()
    (tmp_path / "models" / "animals" / ".adding-3-0a").mkdir()
    (tmp_path / "models" / "with space").mkdir()
    broken = folder.add("plants", "1", model, "")
    (broken.path / "model.toml").write_text("input.pad = -1\ninput.size = 3", encoding="utf-8")
    scan = folder.scan()
    assert scan.versions == {"animals": ["1.9", "1.10"]}
    assert len(scan.faults) == 3
    assert any("has no model.onnx" in fault for fault in scan.faults)
    assert any("'with space' is no name of a model" in fault for fault in scan.faults)
    assert any("input.pad" in fault and "input.size" in fault for fault in scan.faults)


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a b", "x" * 200])
def test_names_that_would_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    folder = ModelFolder(tmp_path)
    with pytest.raises(RegistryError, match="is no name of a model"):
        folder.load(name, "1")
    with pytest.raises(RegistryError, match="is no name of a version"):
        folder.load("animals", name)


def test_a_missing_version_is_told_with_those_that_there_are(tmp_path: Path, model: Path) -> None:
    folder = ModelFolder(tmp_path / "models")
    with pytest.raises(RegistryError, match="there is no version at all"):
        folder.load("animals", "1")
    folder.add("animals", "1", model, "")
    with pytest.raises(RegistryError, match="there are 1"):
        folder.load("animals", "2")


def test_versions_are_ordered_by_their_numbers() -> None:
    shuffled = ["2.0", "1.10", "10", "1", "2-rc1", "1.2"]
    assert sorted(shuffled, key=version_key) == ["1", "1.2", "1.10", "2-rc1", "2.0", "10"]
