"""The records of a compacted topic that say which models are live.

| key | value |
|---|---|
| `version/<model>/<version>` | `VersionRecord`: it lies in the folder, with this SHA-256 |
| `model/<model>` | `ModelRecord`: what is live |
| `alias/<alias>` | `AliasRecord`: where its traffic goes |
| `ensemble/<name>` | `EnsembleRecord`: whose answers are combined |
| `cascade/<name>` | `CascadeRecord`: which model decides whether another one runs |

A tombstone takes a record back. Each record says the whole state of its key, so compaction loses nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeAlias

import msgspec
from msgspec import Meta

from gpu_inference.errors import ModelError, RecordError
from gpu_inference.models.ensemble import CascadeRule, Ensemble, Method
from gpu_inference.models.folder import NAME

Name: TypeAlias = Annotated[str, Meta(pattern=rf"^{NAME.pattern}$")]
Sha256: TypeAlias = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Weight: TypeAlias = Annotated[float, Meta(gt=0, le=1e6)]
Part: TypeAlias = Annotated[float, Meta(ge=0, le=1)]


class VersionRecord(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """A version that workers may load, if its file is this one."""

    sha256: Sha256


class Canary(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """A version that answers for a part of the sources."""

    version: Name
    part: Part


class ModelRecord(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """What is live of a model."""

    live: Name
    #: What a roll back brings back.
    previous: Name | None = None
    #: Keep the previous version loaded, so that a roll back takes no time.
    keep_previous: bool = False
    canary: Canary | None = None
    #: Versions that see the same inputs; their answers are compared and not published.
    shadows: tuple[Name, ...] = ()


class Share(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """A part of an alias's traffic."""

    model: Name
    #: Unset: whatever is live.
    version: Name | None = None
    weight: Weight = 1.0


class AliasRecord(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """Where the traffic of an alias goes."""

    traffic: Annotated[tuple[Share, ...], Meta(min_length=1)]
    shadows: tuple[Share, ...] = ()


class EnsembleRecord(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """Several models that answer together."""

    #: Aliases or models.
    members: Annotated[tuple[Name, ...], Meta(min_length=1)]
    method: Method = "mean"
    #: One a member, for weighted and vote; empty: all alike.
    weights: tuple[Weight, ...] = ()
    #: Overlap from which on boxes are the same.
    same_box: Part = 0.55

    def ensemble(self) -> Ensemble:
        """What combines the answers.

        Raises:
            ModelError: members and weights don't fit together.
        """
        return Ensemble(self.members, self.method, self.weights or None, self.same_box)


class CascadeRecord(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """A cheap model, and a dear one that runs where the rule says so."""

    #: An alias or a model.
    first: Name
    #: An alias or a model.
    second: Name
    rule: CascadeRule


Record: TypeAlias = VersionRecord | ModelRecord | AliasRecord | EnsembleRecord | CascadeRecord
#: Key and value of a message; None for a tombstone.
Message: TypeAlias = tuple[bytes, bytes | None]
Key: TypeAlias = tuple[str, ...]

_KINDS: Final[dict[str, tuple[type[Any], int]]] = {
    "version": (VersionRecord, 3),
    "model": (ModelRecord, 2),
    "alias": (AliasRecord, 2),
    "ensemble": (EnsembleRecord, 2),
    "cascade": (CascadeRecord, 2),
}


def encode(key: Key, record: Record | None) -> Message:
    """A message of a record; None makes a tombstone."""
    return "/".join(key).encode(), None if record is None else msgspec.json.encode(record)


def decode(key: bytes | None, value: bytes | None) -> tuple[Key, Record | None]:
    """A record of a message.

    Returns:
        Its key in parts, the kind first, and the record, None for a tombstone.

    Raises:
        RecordError: it is none; the message says why.
    """
    try:
        parts = tuple((key or b"").decode().split("/"))
    except UnicodeDecodeError:
        parts = ("",)
    kind, length = _KINDS.get(parts[0], (None, 0))
    if kind is None or len(parts) != length or not all(NAME.fullmatch(part) for part in parts[1:]):
        kinds = ", ".join(f"{kind}/<name>" for kind in _KINDS if kind != "version")
        raise RecordError(f"{key!r} is no key: write {kinds} or version/<model>/<version>")
    if value is None:
        return parts, None
    try:
        record: Record = msgspec.json.decode(value, type=kind)
        if isinstance(record, EnsembleRecord):
            record.ensemble()
    except (msgspec.MsgspecError, ModelError) as error:
        raise RecordError(f"the record {'/'.join(parts)} can't be used ({error}): write it again") from error
    return parts, record
