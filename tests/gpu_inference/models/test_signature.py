"""Signatures: what was signed is loaded, whatever else is not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from gpu_inference.errors import SignatureError
from gpu_inference.models import signature
from gpu_inference.models.folder import ModelFolder, ModelVersion
from gpu_inference.models.signature import TrustedKeys, check, read_private_key, sign, write_keys


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    model = tmp_path / "made.onnx"
    model.write_bytes(b"some model")
    folder = ModelFolder(tmp_path / "models")
    for version in ("1", "2"):
        folder.add("animals", version, model, 'output.labels = ["cat", "dog"]')
    return folder


@pytest.fixture
def signed(folder: ModelFolder, tmp_path: Path) -> tuple[ModelVersion, TrustedKeys]:
    private, public = write_keys(tmp_path / "plant")
    sign(folder.load("animals", "1"), read_private_key(private))
    return folder.load("animals", "1"), TrustedKeys.read([public])


def test_a_signed_version_names_its_key(signed: tuple[ModelVersion, TrustedKeys]) -> None:
    version, trusted = signed
    assert trusted.verify(version) == "plant"
    assert check(version, trusted, required=True) == "plant"
    assert "model.sig" not in version.sha256  # or signing would change what is signed


def test_unsigned_models_are_refused_where_signatures_are_required(folder: ModelFolder) -> None:
    version = folder.load("animals", "1")
    assert check(version, TrustedKeys(), required=False) is None
    with pytest.raises(SignatureError, match="is not signed: sign it, or allow"):
        check(version, TrustedKeys(), required=True)


@pytest.mark.parametrize("file", ["model.onnx", "model.toml", "extra.txt"])
def test_any_changed_file_is_refused(
    folder: ModelFolder, signed: tuple[ModelVersion, TrustedKeys], file: str
) -> None:
    version, trusted = signed
    with (version.path / file).open("ab") as out:
        out.write(b"\n")
    for required in (True, False):
        with pytest.raises(SignatureError, match="is not what 'plant' signed"):
            check(folder.load("animals", "1"), trusted, required)


def test_a_signature_holds_for_no_other_version_or_name(
    folder: ModelFolder, signed: tuple[ModelVersion, TrustedKeys]
) -> None:
    version, trusted = signed
    (folder.root / "animals" / "2" / "model.sig").write_bytes((version.path / "model.sig").read_bytes())
    with pytest.raises(SignatureError, match="is not what"):
        trusted.verify(folder.load("animals", "2"))
    version.path.parent.rename(folder.root / "plants")
    with pytest.raises(SignatureError, match="is not what"):
        trusted.verify(folder.load("plants", "1"))


def test_keys_that_are_not_trusted_are_refused(
    tmp_path: Path, signed: tuple[ModelVersion, TrustedKeys]
) -> None:
    version, _ = signed
    _, other = write_keys(tmp_path / "other")
    with pytest.raises(SignatureError, match=r"not by a trusted key \(other\)"):
        TrustedKeys.read([other]).verify(version)
    with pytest.raises(SignatureError, match=r"\(none\)"):
        check(version, TrustedKeys(), required=False)


@pytest.mark.parametrize("text", ["", "{}", '{"key": "a", "signature": "?"}', "[1]"])
def test_what_is_no_signature_is_refused(signed: tuple[ModelVersion, TrustedKeys], text: str) -> None:
    version, trusted = signed
    (version.path / "model.sig").write_text(text, encoding="utf-8")
    with pytest.raises(SignatureError, match="is no signature"):
        trusted.verify(version)


def test_a_signature_with_the_name_of_a_trusted_key_still_has_to_be_its_own(
    tmp_path: Path, signed: tuple[ModelVersion, TrustedKeys]
) -> None:
    version, trusted = signed
    private, _ = write_keys(tmp_path / "other")
    good = json.loads((version.path / "model.sig").read_text(encoding="utf-8"))
    sign(version, read_private_key(private))
    forged = json.loads((version.path / "model.sig").read_text(encoding="utf-8")) | {"key": good["key"]}
    (version.path / "model.sig").write_text(json.dumps(forged), encoding="utf-8")
    with pytest.raises(SignatureError, match="is not what 'plant' signed"):
        trusted.verify(version)


def test_the_private_key_is_for_its_owner_and_never_overwritten(tmp_path: Path) -> None:
    private, public = write_keys(tmp_path / "plant")
    assert private.stat().st_mode & 0o077 == 0
    for path in (public, private):
        with pytest.raises(SignatureError, match="is there already"):
            write_keys(tmp_path / "plant")
        path.unlink()
        public.unlink(missing_ok=True)
    with pytest.raises(SignatureError, match="holds no key"):
        read_private_key(tmp_path / "absent.key")
    public.write_text("aGFsZg==", encoding="ascii")
    with pytest.raises(SignatureError, match="'plant' is no public key"):
        TrustedKeys.read([public])


def test_a_file_whose_name_holds_a_line_break_can_not_forge_a_statement() -> None:
    split = signature.statement("m", "1", {"a": "0" * 64, "b": "1" * 64})
    joined = signature.statement("m", "1", {'a"\n' + "1" * 64 + ' "b': "0" * 64})
    assert split != joined


def test_without_cryptography_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: ModelFolder
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    with pytest.raises(SignatureError, match="polarstream\\[signing\\]"):
        write_keys(tmp_path / "plant")
    assert list(tmp_path.glob("plant*")) == []
    version = folder.load("animals", "1")
    assert check(version, TrustedKeys(), required=False) is None  # unsigned models need none
