"""Raw configuration (TOML tables, environment texts) into typed structs, collecting every fault.

msgspec stops at the first fault; a person who mends a file wants all of them, each with its path. So the
types are walked here and msgspec only says what they are.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import inspect

#: Stands for a value that could not be made; its fault has been noted.
BAD: Final = object()


class EnvText(str):
    """A value from the environment: text that may mean a number, a flag or a list."""

    __slots__ = ()


class Converter:
    """Converts raw values to a type and notes each fault with its path.

    Args:
        note: called with (path, message) for each fault.
        salvage: make what can be made in spite of faults: a bad setting gets its default (text without one
            is empty), and `BAD` stands in a list or table for an item that can't be made. The rules between
            settings are checked on the result, so that one slip does not hide another.
    """

    def __init__(self, note: Callable[[str, str], None], *, salvage: bool = False) -> None:
        self._note = note
        self._salvage = salvage

    def struct(self, kind: type[msgspec.Struct], raw: object, path: str) -> Any:
        """Make a struct, or `BAD`."""
        info = inspect.type_info(kind)
        assert isinstance(info, inspect.StructType)
        return self._struct(info, raw, path)

    def _value(self, info: inspect.Type, raw: object, path: str) -> Any:
        if isinstance(info, inspect.Metadata):
            return self._value(info.type, raw, path)
        if isinstance(info, inspect.AnyType):
            return _from_text(raw) if isinstance(raw, EnvText) else raw
        if isinstance(info, inspect.UnionType):
            return self._union(info, raw, path)
        if isinstance(info, inspect.StructType):
            return self._struct(info, raw, path)
        if isinstance(info, inspect.ListType):
            return self._list(info, raw, path)
        if isinstance(info, inspect.DictType):
            return self._dict(info, raw, path)
        if isinstance(info, inspect.LiteralType):
            return self._literal(info, raw, path)
        return self._scalar(info, raw, path)

    def _struct(self, info: inspect.StructType, raw: object, path: str) -> Any:
        if isinstance(raw, EnvText):
            raw = _from_text(raw)
        if isinstance(raw, info.cls):
            return raw
        if not isinstance(raw, Mapping):
            return self._bad(path, f"{_shown(raw)} is not a table: write settings under it")
        made: dict[str, Any] = {}
        known = {field.encode_name: field for field in info.fields}
        for key, item in raw.items():
            if key == info.tag_field:
                continue
            if key not in known:
                self._bad(_join(path, key), f"is not a setting{_suggest(key, known)}")
                continue
            made[known[key].name] = self._value(known[key].type, item, _join(path, key))
        for name, field in known.items():
            if field.required and name not in raw:
                made[field.name] = self._bad(_join(path, name), "is missing: set it")
        bad = [field for field in info.fields if made.get(field.name) is BAD]
        for field in bad:
            if not self._salvage:
                return BAD
            if not field.required:
                del made[field.name]
            elif isinstance(field.type, (inspect.StrType, inspect.DictType)):
                made[field.name] = "" if isinstance(field.type, inspect.StrType) else {}
            else:
                return BAD
        return info.cls(**made)

    def _list(self, info: inspect.ListType, raw: object, path: str) -> Any:
        if isinstance(raw, EnvText):
            parsed = _from_text(raw)
            raw = parsed if isinstance(parsed, list) else [EnvText(part.strip()) for part in raw.split(",")]
            raw = [part for part in raw if part != ""]
        if not isinstance(raw, list):
            return self._bad(path, f"{_shown(raw)} is not a list: write [...]")
        items = [self._value(info.item_type, item, f"{path}[{i}]") for i, item in enumerate(raw)]
        return BAD if not self._salvage and any(item is BAD for item in items) else items

    def _dict(self, info: inspect.DictType, raw: object, path: str) -> Any:
        if isinstance(raw, EnvText):
            raw = _from_text(raw)
        if not isinstance(raw, Mapping):
            return self._bad(path, f"{_shown(raw)} is not a table: write settings under it")
        made = {key: self._value(info.value_type, item, _join(path, key)) for key, item in raw.items()}
        return BAD if not self._salvage and any(item is BAD for item in made.values()) else made

    def _union(self, info: inspect.UnionType, raw: object, path: str) -> Any:
        structs = [kind for kind in info.types if isinstance(kind, inspect.StructType)]
        if structs and structs[0].tag_field is not None:
            return self._tagged(structs, raw, path)
        others = [kind for kind in info.types if not isinstance(kind, inspect.NoneType)]
        if len(others) < len(info.types):
            if raw is None:
                return None
            texts = any(isinstance(kind, (inspect.StrType, inspect.LiteralType)) for kind in others)
            if isinstance(raw, EnvText) and not texts and raw.lower() in ("", "null", "none"):
                return None
        return self._value(others[0], raw, path)

    def _tagged(self, structs: list[inspect.StructType], raw: object, path: str) -> Any:
        if isinstance(raw, EnvText):
            raw = _from_text(raw)
        if any(isinstance(raw, kind.cls) for kind in structs):
            return raw
        if not isinstance(raw, Mapping):
            return self._bad(path, f"{_shown(raw)} is not a table: write {{ type = ... }}")
        field = str(structs[0].tag_field)
        by_tag = {str(kind.tag): kind for kind in structs}
        tag = raw.get(field)
        if tag is None:
            return self._bad(_join(path, field), f"is missing: use one of {', '.join(by_tag)}")
        if tag not in by_tag:
            known = ", ".join(by_tag)
            return self._bad(_join(path, field), f"{_shown(tag)} is none of {known}{_suggest(tag, by_tag)}")
        return self._struct(by_tag[str(tag)], raw, path)

    def _literal(self, info: inspect.LiteralType, raw: object, path: str) -> Any:
        if raw in info.values:
            return str(raw) if isinstance(raw, str) else raw
        known = [str(value) for value in info.values]
        same = [
            value for value in known if str(raw).lower().replace("-", "_") == value.lower().replace("-", "_")
        ]
        hint = f": did you mean '{same[0]}'?" if same else _suggest(raw, known)
        return self._bad(path, f"{_shown(raw)} is none of {', '.join(known)}{hint}")

    def _scalar(self, info: inspect.Type, raw: object, path: str) -> Any:
        if isinstance(info, inspect.StrType):
            if isinstance(raw, str):
                return str(raw)
            return self._bad(path, f"{_shown(raw)} is not text: put it in quotes")
        if isinstance(info, inspect.CustomType) and info.cls is Path:
            if isinstance(raw, (str, Path)) and str(raw):
                return Path(raw).expanduser()
            return self._bad(path, f"{_shown(raw)} is not a path: write a folder in quotes")
        if isinstance(raw, EnvText):
            raw = _from_text(raw)
        if isinstance(info, inspect.BoolType):
            if isinstance(raw, bool):
                return raw
            return self._bad(path, f"{_shown(raw)} is neither true nor false: write one of them")
        if isinstance(info, inspect.IntType):
            if isinstance(raw, int) and not isinstance(raw, bool):
                return self._range(info, raw, path)
            return self._bad(path, f"{_shown(raw)} is not a whole number: write one without quotes")
        assert isinstance(info, inspect.FloatType), info
        if isinstance(raw, bool) or not isinstance(raw, (int, float)):
            return self._bad(path, f"{_shown(raw)} is not a number: write one without quotes")
        try:
            number = float(raw)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            return self._bad(path, f"{_shown(raw)} is not finite: write a number, or leave the setting out")
        return self._range(info, number, path)

    def _range(self, info: inspect.IntType | inspect.FloatType, number: float, path: str) -> Any:
        if info.ge is not None and number < info.ge:
            return self._bad(path, f"{number:g} is below {info.ge:g}: use {info.ge:g} or more")
        if info.gt is not None and number <= info.gt:
            if info.gt == 0:
                return self._bad(path, f"{number:g} is not positive: use a number above 0")
            return self._bad(path, f"{number:g} is not above {info.gt:g}: use a number above it")
        if info.le is not None and number > info.le:
            return self._bad(path, f"{number:g} is above {info.le:g}: use {info.le:g} or less")
        return number

    def _bad(self, path: str, message: str) -> Any:
        self._note(path, message)
        return BAD


def suggest(word: object, known: Iterable[str]) -> str:
    """The known word that was probably meant, or an empty string."""
    close = difflib.get_close_matches(str(word).lower(), list(known), n=1, cutoff=0.6)
    return close[0] if close else ""


def _suggest(word: object, known: Iterable[str]) -> str:
    known = list(known)
    close = suggest(word, known)
    if close:
        return f": did you mean '{close}'?"
    return f": use one of {', '.join(known)}" if 0 < len(known) <= 12 else ": remove it"


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _from_text(text: object) -> Any:
    """What an environment text means: JSON where it is JSON, itself otherwise."""
    try:
        return json.loads(str(text))
    except ValueError:
        words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
        return words.get(str(text).lower(), str(text))


def _shown(value: object) -> str:
    text = repr(str(value)) if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
