"""Ed25519 signatures of model versions, and the keys that are trusted.

What is signed is the name, the version and the SHA-256 of each file: a signed version can't be passed off as
another one, nor its labels or manifest be exchanged.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from gpu_inference.errors import SignatureError
from gpu_inference.models.folder import SIGNATURE_FILE, ModelVersion

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

#: First line of what is signed, so that a signature of ours means nothing elsewhere.
_HEADER: Final = "polarstream model 1"


class _Signature(msgspec.Struct, forbid_unknown_fields=True):
    """`model.sig`, as JSON."""

    key: str
    signature: str


class TrustedKeys:
    """Public keys by their name.

    Args:
        keys: raw public keys of 32 bytes, by name.
    """

    def __init__(self, keys: Mapping[str, bytes] = {}) -> None:
        self._keys = {key_id(raw): (name, _public_key(raw, name)) for name, raw in keys.items()}

    @classmethod
    def read(cls, paths: Iterable[Path]) -> TrustedKeys:
        """Reads `.pub` files as `write_keys` makes them; a key has the name of its file.

        Raises:
            SignatureError: a file can't be read, or holds no key.
        """
        return cls({path.stem: _read_key(path) for path in paths})

    def verify(self, version: ModelVersion) -> str:
        """Checks the signature of a version.

        Args:
            version: with the hashes of its files as they are now.

        Returns:
            The name of the key that signed it.

        Raises:
            SignatureError: it isn't signed, not by a key of these, or was changed since.
        """
        what = f"model {version.name!r} version {version.version!r}"
        path = version.path / SIGNATURE_FILE
        try:
            found = msgspec.json.decode(path.read_bytes(), type=_Signature)
            raw = base64.b64decode(found.signature, validate=True)
        except FileNotFoundError:
            raise SignatureError(f"{what} is not signed: sign it, or allow unsigned models") from None
        except (OSError, msgspec.MsgspecError, binascii.Error) as error:
            raise SignatureError(f"{path} is no signature ({error}): sign the version again") from error
        if found.key not in self._keys:
            known = ", ".join(name for name, _ in self._keys.values()) or "none"
            raise SignatureError(f"{what} is signed by {found.key}, not by a trusted key ({known}): trust it")
        from cryptography.exceptions import InvalidSignature

        name, key = self._keys[found.key]
        try:
            key.verify(raw, statement(version.name, version.version, version.sha256))
        except InvalidSignature:
            raise SignatureError(
                f"{what} is not what {name!r} signed: its files, name or version have changed; add it again"
            ) from None
        return name


def check(version: ModelVersion, trusted: TrustedKeys, required: bool) -> str | None:
    """Decides whether a version may be loaded.

    Args:
        version: with the hashes of its files as they are now.
        trusted: keys.
        required: refuse what isn't signed. A signature that is there and wrong is refused in any case.

    Returns:
        The name of the key that signed it; None for an unsigned version.

    Raises:
        SignatureError: it may not.
    """
    if not required and not (version.path / SIGNATURE_FILE).exists():
        return None
    return trusted.verify(version)


def sign(version: ModelVersion, private_key: bytes) -> None:
    """Writes the signature of a version beside its model.

    Args:
        version: to sign.
        private_key: raw, of 32 bytes.

    Raises:
        SignatureError: it is no key.
    """
    key = _private_key(private_key)
    signature = key.sign(statement(version.name, version.version, version.sha256))
    made = {
        "key": key_id(key.public_key().public_bytes_raw()),
        "signature": base64.b64encode(signature).decode(),
    }
    temporary = version.path / f".{SIGNATURE_FILE}-{secrets.token_hex(4)}"
    temporary.write_text(json.dumps(made) + "\n", encoding="utf-8")
    temporary.replace(version.path / SIGNATURE_FILE)


def write_keys(path: Path) -> tuple[Path, Path]:
    """Makes a pair of keys: `<path>.key`, for its owner's eyes, and `<path>.pub`, for those who trust it.

    Raises:
        SignatureError: one of the files is there already.
    """
    private_path, public_path = path.with_name(path.name + ".key"), path.with_name(path.name + ".pub")
    if public_path.exists():
        raise SignatureError(f"{public_path} is there already: choose another name")
    key = _cryptography().Ed25519PrivateKey.generate()
    try:
        handle = os.open(private_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise SignatureError(f"{private_path} is there already: choose another name") from None
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(base64.b64encode(key.private_bytes_raw()).decode() + "\n")
    public = base64.b64encode(key.public_key().public_bytes_raw()).decode()
    public_path.write_text(public + "\n", encoding="ascii")
    return private_path, public_path


def read_private_key(path: Path) -> bytes:
    """The private key that `write_keys` wrote.

    Raises:
        SignatureError: the file can't be read, or holds no key.
    """
    return _read_key(path)


def key_id(public_key: bytes) -> str:
    """A short name of a public key, the same everywhere."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def statement(name: str, version: str, sha256: Mapping[str, str]) -> bytes:
    """What is signed. Names of files come as JSON, so that none can end a line."""
    lines = [_HEADER, json.dumps(name), json.dumps(version)]
    lines += [f"{digest} {json.dumps(file)}" for file, digest in sorted(sha256.items())]
    return "\n".join(lines).encode()


def _read_key(path: Path) -> bytes:
    try:
        return base64.b64decode(path.read_text(encoding="ascii").strip(), validate=True)
    except (OSError, UnicodeDecodeError, binascii.Error) as error:
        raise SignatureError(f"{path} holds no key ({error}): make one with write_keys") from error


def _private_key(raw: bytes) -> Ed25519PrivateKey:
    try:
        key: Ed25519PrivateKey = _cryptography().Ed25519PrivateKey.from_private_bytes(raw)
    except ValueError as error:
        raise SignatureError(f"no private key ({error}): use the .key file") from error
    return key


def _public_key(raw: bytes, name: str) -> Ed25519PublicKey:
    try:
        key: Ed25519PublicKey = _cryptography().Ed25519PublicKey.from_public_bytes(raw)
    except ValueError as error:
        raise SignatureError(f"{name!r} is no public key ({error}): use the .pub file") from error
    return key


def _cryptography() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise SignatureError("signatures need cryptography: pip install 'polarstream[signing]'") from error
    return ed25519
