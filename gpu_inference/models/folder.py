"""A folder of models: `<name>/<version>/` with `model.onnx`, `model.toml`, labels and perhaps a signature.

A version never changes: it is added whole, by one rename, and none is overwritten. So a path and a SHA-256
mean the same model on every worker that shares the folder.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from gpu_inference.errors import ManifestError, RegistryError
from gpu_inference.models import manifest as manifests
from gpu_inference.models.manifest import Manifest

MODEL_FILE: Final = "model.onnx"
MANIFEST_FILE: Final = "model.toml"
SIGNATURE_FILE: Final = "model.sig"

#: Names of models and versions: they become paths, keys of records and labels of metrics.
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_BLOCK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version of a model, as it lies in the folder.

    Attributes:
        name: of the model.
        version: of it.
        path: its folder.
        manifest: what `model.toml` says.
        labels: of its classes.
        sha256: of each file by name, except the signature.
        size_bytes: of `model.onnx`.
    """

    name: str
    version: str
    path: Path
    manifest: Manifest
    labels: tuple[str, ...]
    sha256: Mapping[str, str]
    size_bytes: int

    @property
    def model_path(self) -> Path:
        """Of `model.onnx`."""
        return self.path / MODEL_FILE

    @property
    def model_sha256(self) -> str:
        """What predictions name."""
        return self.sha256[MODEL_FILE]


@dataclass(frozen=True, slots=True)
class Scan:
    """What lies in a folder.

    Attributes:
        versions: by name of the model, oldest first: numbers in a version count as numbers.
        faults: what can't be used, with its path and the reason.
    """

    versions: dict[str, list[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


class ModelFolder:
    """Reads and adds versions.

    Args:
        root: the folder; made by the first `add`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def scan(self) -> Scan:
        """Lists what there is, with a look at each manifest but not at the models themselves."""
        found = Scan()
        for folder in _folders(self.root):
            if not NAME.fullmatch(folder.name):
                found.faults.append(f"{folder}: {_bad_name('model', folder.name)}")
                continue
            good = []
            for inner in _folders(folder):
                fault = _fault_of(inner)
                if fault:
                    found.faults.append(f"{inner}: {fault}")
                else:
                    good.append(inner.name)
            if good:
                found.versions[folder.name] = sorted(good, key=version_key)
        return found

    def load(self, name: str, version: str) -> ModelVersion:
        """Reads one version and hashes its files.

        Raises:
            RegistryError: there is no such version.
            ManifestError: its `model.toml` is wrong.
        """
        path = self._path(name, version)
        if not path.is_dir():
            there = self.scan().versions.get(name, [])
            hint = f"there are {', '.join(there)}" if there else "there is no version at all"
            raise RegistryError(f"no version {version!r} of model {name!r} in {self.root}: {hint}")
        if not (path / MODEL_FILE).is_file():
            raise RegistryError(f"{path} has no {MODEL_FILE}: add the version again")
        manifest = manifests.read(path / MANIFEST_FILE)
        return ModelVersion(
            name=name,
            version=version,
            path=path,
            manifest=manifest,
            labels=manifests.labels_of(manifest, path),
            sha256=hashes(path),
            size_bytes=(path / MODEL_FILE).stat().st_size,
        )

    def add(
        self, name: str, version: str, model: Path, manifest: Path | str, files: Iterable[Path] = ()
    ) -> ModelVersion:
        """Adds a version; until it is whole nobody sees it.

        Args:
            name: of the model.
            version: of it, new.
            model: an .onnx file.
            manifest: a `model.toml`, or its text.
            files: what else belongs to it: labels, external weights.

        Raises:
            RegistryError: the version is there already, or a file can't be copied.
            ManifestError: the manifest is wrong.
        """
        path = self._path(name, version)
        if path.exists():
            raise RegistryError(
                f"model {name!r} has a version {version!r}, which never changes: take a new number"
            )
        text = manifest if isinstance(manifest, str) else _text(manifest)
        manifests.parse(text)
        temporary = path.parent / f".adding-{version}-{secrets.token_hex(4)}"
        try:
            temporary.mkdir(parents=True)
            for source, target in [(model, MODEL_FILE), *((file, file.name) for file in files)]:
                shutil.copyfile(source, temporary / target)
            (temporary / MANIFEST_FILE).write_text(text, encoding="utf-8")
            manifests.labels_of(manifests.parse(text), temporary)
            _sync(temporary)
            temporary.rename(path)  # refused where somebody else was quicker: no empty folder is ever there
            _sync_folder(path.parent)
        except OSError as error:
            raise RegistryError(
                f"version {version!r} of {name!r} can't be added ({error}): mend it and add again"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return self.load(name, version)

    def read_model(self, version: ModelVersion) -> bytes:
        """The bytes of `model.onnx`, checked: what was hashed is what is run.

        Raises:
            RegistryError: the file was changed since it was hashed.
        """
        try:
            data = version.model_path.read_bytes()
        except OSError as error:
            raise RegistryError(f"{version.model_path} can't be read ({error}): add it again") from error
        if hashlib.sha256(data).hexdigest() != version.model_sha256:
            raise RegistryError(
                f"{version.model_path} has changed: a version never does, add it under a new number"
            )
        return data

    def _path(self, name: str, version: str) -> Path:
        for what, text in (("model", name), ("version", version)):
            if not NAME.fullmatch(text):
                raise RegistryError(_bad_name(what, text))
        return self.root / name / version


def version_key(version: str) -> tuple[tuple[int, int, str], ...]:
    """Orders versions: numbers in them by value, so that 1.10 comes after 1.9."""
    parts = re.findall(r"\d+|[^\d]+", version)
    return tuple((1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts)


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a version by name, except the signature."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != SIGNATURE_FILE:
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while block := file.read(_BLOCK_BYTES):
                    digest.update(block)
            found[path.name] = digest.hexdigest()
    return found


def _folders(path: Path) -> list[Path]:
    """The visible folders in a folder, by name; none where it isn't there."""
    try:
        return sorted(inner for inner in path.iterdir() if inner.is_dir() and not inner.name.startswith("."))
    except FileNotFoundError:
        return []


def _fault_of(path: Path) -> str:
    if not NAME.fullmatch(path.name):
        return _bad_name("version", path.name)
    if not (path / MODEL_FILE).is_file():
        return f"has no {MODEL_FILE}: add the version again"
    try:
        manifests.labels_of(manifests.read(path / MANIFEST_FILE), path)
    except ManifestError as error:
        return "; ".join(f"{MANIFEST_FILE}: {fault}" for fault in error.faults)
    return ""


def _bad_name(what: str, text: str) -> str:
    return f"{text!r} is no name of a {what}: use letters, digits, '.', '_' and '-', at most 128"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError([f"can't be read ({error}): write a UTF-8 file {path}"]) from error


def _sync(folder: Path) -> None:
    """What is renamed must be on the disk before."""
    for path in folder.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders can't be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
