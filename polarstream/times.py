"""Times as people and CSV files write them, to seconds since the epoch."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import Final

from streams.errors import UsageError

_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)?")
#: numbers above this are milliseconds (in seconds: the year 5138)
_MILLISECONDS_FROM: Final = 1e11


def parse_time(text: str) -> float:
    """Seconds since the epoch of epoch seconds, epoch milliseconds or an ISO 8601 time; no zone means UTC.

    Raises:
        ValueError: it is none of these.
    """
    text = text.strip()
    try:
        number = float(text)
    except ValueError:
        pass
    else:
        if not math.isfinite(number):
            raise ValueError(f"'{text}' is no time")
        return number / 1000.0 if abs(number) > _MILLISECONDS_FROM else number
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"'{text}' is no time: write epoch seconds, epoch milliseconds or 2026-01-31T12:00:00Z"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def parse_duration(text: str) -> float:
    """Seconds of `90`, `90s`, `1.5m`, `2h`, `1d` ...

    Raises:
        UsageError: it is none of these.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"'{text}' is no duration: write 90s, 1.5m, 2h or 1d")
    return float(match[1]) * _SECONDS[match[2] or "s"]


def format_time(seconds: float) -> str:
    """Local time to the millisecond, for people."""
    return datetime.fromtimestamp(seconds).isoformat(sep=" ", timespec="milliseconds")
