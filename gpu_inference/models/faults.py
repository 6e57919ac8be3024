"""Raw tables into typed structs, with every fault noted by its path: a person who mends a file wants all."""

from __future__ import annotations

import difflib
import math
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias

import msgspec

Note: TypeAlias = Callable[[str, str], None]

#: How msgspec tells the place of a fault inside a value.
_PLACE: Final = re.compile(r" - at `\$(?P<path>.*)`$")


def convert(kind: type[msgspec.Struct], raw: object, path: str, note: Note) -> Any | None:
    """Makes a struct of a table, setting by setting.

    Args:
        kind: the struct; its fields may be structs, or unions of tagged structs (the first is the default).
        raw: what was read.
        path: of the table, "" for the whole file.
        note: called with (path, message) for each fault.

    Returns:
        The struct, or None if a fault was noted.
    """
    if not isinstance(raw, Mapping):
        note(path, f"{raw!r} is not a table: write settings under it")
        return None
    tag_field, tag = kind.__struct_config__.tag_field, kind.__struct_config__.tag
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    made: dict[str, Any] = {}
    whole = True
    for key, item in raw.items():
        place = _join(path, key)
        if key == tag_field:
            continue
        if key not in fields:
            of = f" of {tag_field} {tag!r}" if tag_field else ""
            note(place, f"is not a setting{of}: {suggest(key, fields)}")
            whole = False
            continue
        value = _value(fields[key].type, item, place, note)
        whole = whole and value is not None
        made[fields[key].name] = value
    for key, field in fields.items():
        if field.required and key not in raw:
            note(_join(path, key), "is missing: set it")
            whole = False
    return kind(**made) if whole else None


def suggest(word: object, known: Iterable[str]) -> str:
    """What to do about an unknown word: take the close one, or one of all."""
    by_lower = {one.lower(): one for one in known}
    close = difflib.get_close_matches(str(word).lower(), list(by_lower), n=1, cutoff=0.6)
    return f"did you mean {by_lower[close[0]]!r}?" if close else f"use one of {', '.join(by_lower.values())}"


def _value(kind: Any, raw: object, place: str, note: Note) -> Any | None:
    parts = typing.get_args(kind) or (kind,)
    structs = [one for one in parts if isinstance(one, type) and issubclass(one, msgspec.Struct)]
    if len(structs) == 1:
        return convert(structs[0], raw, place, note)
    if structs:
        return _tagged(structs, raw, place, note)
    words = next(
        (typing.get_args(one) for one in (kind, *parts) if typing.get_origin(one) is typing.Literal), ()
    )
    if words:
        if raw in words:
            return raw
        note(place, f"there is no {raw!r}: {suggest(raw, words)}")
        return None
    if not _finite(raw):
        note(place, f"{raw!r} is not finite: write a number")
        return None
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        text = str(error)
        inner = _PLACE.search(text)
        if inner:
            place, text = place + inner["path"].replace("[...]", ""), text[: inner.start()]
        note(place, f"{text[0].lower()}{text[1:]}: it is {raw!r}")
        return None


def _tagged(kinds: list[type[msgspec.Struct]], raw: object, path: str, note: Note) -> Any | None:
    if not isinstance(raw, Mapping):
        note(path, f"{raw!r} is not a table: write settings under it")
        return None
    field = str(kinds[0].__struct_config__.tag_field)
    by_tag = {str(kind.__struct_config__.tag): kind for kind in kinds}
    tag = raw.get(field, next(iter(by_tag)))
    if tag not in by_tag:
        note(_join(path, field), f"there is no {tag!r}: {suggest(tag, by_tag)}")
        return None
    return convert(by_tag[tag], raw, path, note)


def _finite(raw: object) -> bool:
    if isinstance(raw, list):
        return all(_finite(item) for item in raw)
    return not isinstance(raw, float) or math.isfinite(raw)


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
