"""A small filter language for records: `score > 4 and source ~ 'pump-*'`.

    filter  = and { "or" and }
    and     = not { "and" not }
    not     = "not" not | "(" filter ")" | test
    test    = name [ operator literal ]
    operator= "=" "==" "!=" "<" "<=" ">" ">=" "~" "!~"       (~: matches the pattern, with * and ?)
    literal = number | 'text' | "text" | true | false | null | word

A name is a field of the record's JSON object, with dots into objects (`explanation.field`); `kafka.key`,
`kafka.partition`, `kafka.offset` and `kafka.timestamp_ms` are the message's own. A bare name tests that
the field is there and neither false, null, zero nor empty. A comparison with a field that is absent or of
another type is false, except `!=` and `!~`. Nothing is evaluated as code.
"""

from __future__ import annotations

import fnmatch
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from streams.errors import UsageError

Filter: TypeAlias = Callable[[Mapping[str, Any]], bool]

_TOKEN: Final = re.compile(
    r"""\s*(?:
        (?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.]))
      | (?P<text>'[^']*'|"[^"]*")
      | (?P<name>[^\W\d][\w-]*(?:\.[\w-]+)*)
      | (?P<operator>==|!=|<=|>=|!~|[=<>~])
      | (?P<paren>[()])
    )""",
    re.VERBOSE,
)
_ORDER: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_WORDS: Final[dict[str, Any]] = {"true": True, "false": False, "null": None}
_MAX_DEPTH: Final = 40
_MISSING: Final = object()


class FilterError(UsageError):
    """A filter that cannot be read."""

    def __init__(self, text: str, at: int, message: str) -> None:
        super().__init__(f"filter: {message} at column {at + 1}\n  {text}\n  {' ' * at}^")


def parse_filter(text: str) -> Filter:
    """The test that `text` describes.

    >>> big = parse_filter("score > 4 and source ~ 'pump-*'")
    >>> big({"score": 5.5, "source": "pump-07"}), big({"score": 5.5, "source": "fan-01"})
    (True, False)

    Raises:
        FilterError: with the column and what was expected there.
    """
    return _Parser(text).parse()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[tuple[str, str, int]] = []
        at = 0
        while text[at:].strip():
            match = _TOKEN.match(text, at)
            if match is None or match.lastgroup is None:
                at += len(text[at:]) - len(text[at:].lstrip())
                raise FilterError(text, at, f"unexpected {text[at]!r}")
            self._tokens.append((match.lastgroup, match[match.lastgroup], match.start(match.lastgroup)))
            at = match.end()
        self._next = 0
        self._depth = 0

    def parse(self) -> Filter:
        found = self._any()
        kind, value, at = self._peek()
        if kind != "end":
            raise FilterError(self._text, at, f"expected 'and', 'or' or the end instead of {value!r}")
        return found

    def _peek(self) -> tuple[str, str, int]:
        if self._next < len(self._tokens):
            return self._tokens[self._next]
        return ("end", "the end", len(self._text.rstrip()))

    def _take(self, kind: str, *values: str) -> str | None:
        """The next token, if it is of this kind (and one of these values)."""
        found, value, _ = self._peek()
        if found == kind and (not values or value.lower() in values):
            self._next += 1
            return value
        return None

    def _any(self) -> Filter:
        parts = [self._all()]
        while self._take("name", "or"):
            parts.append(self._all())
        return parts[0] if len(parts) == 1 else lambda record: any(part(record) for part in parts)

    def _all(self) -> Filter:
        parts = [self._not()]
        while self._take("name", "and"):
            parts.append(self._not())
        return parts[0] if len(parts) == 1 else lambda record: all(part(record) for part in parts)

    def _not(self) -> Filter:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise FilterError(self._text, self._peek()[2], f"more than {_MAX_DEPTH} levels")
        try:
            if self._take("name", "not"):
                inner = self._not()
                return lambda record: not inner(record)
            if self._take("paren", "("):
                inner = self._any()
                if not self._take("paren", ")"):
                    raise FilterError(self._text, self._peek()[2], "expected ')'")
                return inner
            return self._test()
        finally:
            self._depth -= 1

    def _test(self) -> Filter:
        _kind, value, at = self._peek()
        name = self._take("name")
        if name is None:
            raise FilterError(self._text, at, f"expected a field's name instead of {value!r}")
        if name.lower() in ("and", "or"):
            raise FilterError(self._text, at, f"expected a field's name instead of {name!r}")
        path = name.split(".")
        sign = self._take("operator")
        if sign is None:
            return lambda record: _lookup(record, path) not in (_MISSING, None, False, 0, "", [], {})
        return _comparison(path, sign, self._literal(sign))

    def _literal(self, sign: str) -> Any:
        kind, value, at = self._peek()
        self._next += 1
        if kind == "text":
            return value[1:-1]
        if kind == "number":
            return value if sign in ("~", "!~") else float(value)
        if kind == "name" and value.lower() not in ("and", "or", "not"):
            return _WORDS.get(value, value)
        raise FilterError(self._text, at, f"expected a number or 'text' after {sign} instead of {value!r}")


def _comparison(path: list[str], sign: str, wanted: Any) -> Filter:
    if sign in ("~", "!~"):
        matches = re.compile(fnmatch.translate(str(wanted)), re.DOTALL).match
        positive = sign == "~"

        def like(record: Mapping[str, Any]) -> bool:
            found = _lookup(record, path)
            return (isinstance(found, str) and matches(found) is not None) is positive

        return like
    if sign in ("=", "=="):
        return lambda record: _equal(_lookup(record, path), wanted)
    if sign == "!=":
        return lambda record: not _equal(_lookup(record, path), wanted)
    before = _ORDER[sign]

    def ordered(record: Mapping[str, Any]) -> bool:
        found = _lookup(record, path)
        return _same_kind(found, wanted) and before(found, wanted)

    return ordered


def _lookup(record: Mapping[str, Any], path: list[str]) -> Any:
    found: Any = record
    for step in path:
        if not isinstance(found, Mapping) or step not in found:
            return _MISSING
        found = found[step]
    return found


def _equal(found: Any, wanted: Any) -> bool:
    if wanted is None or isinstance(wanted, bool):
        return found is wanted
    return _same_kind(found, wanted) and bool(found == wanted)


def _same_kind(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, float):
        return isinstance(found, int | float) and not isinstance(found, bool)
    return isinstance(wanted, str) and isinstance(found, str)
