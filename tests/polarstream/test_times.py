from __future__ import annotations

import pytest

from polarstream.reader import Start, parse_start
from polarstream.times import format_time, parse_duration, parse_time
from streams.errors import UsageError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1737500000", 1737500000.0),
        ("1737500000.123", 1737500000.123),
        ("1737500000123", 1737500000.123),
        ("2025-01-21T22:53:20Z", 1737500000.0),
        ("2025-01-21T23:53:20+01:00", 1737500000.0),
        ("2025-01-21 22:53:20", 1737500000.0),
        (" 2025-01-21 22:53:20.5 ", 1737500000.5),
        ("2025-01-21", 1737417600.0),
    ],
)
def test_times_of_every_kind(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "nan", "inf", "2025-13-01", "12:00"])
def test_what_is_no_time_says_how_to_write_one(text: str) -> None:
    with pytest.raises(ValueError, match="is no time"):
        parse_time(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("1d", 86400), ("250ms", 0.25)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "-5s", "5 parsecs", "s", "1h30m"])
def test_a_wrong_duration_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="is no duration"):
        parse_duration(text)


def test_starts() -> None:
    assert parse_start("earliest") == Start("earliest")
    assert parse_start("latest") == Start("latest")
    assert parse_start("-10m", now_s=1000.0) == Start("time", 400.0)
    assert parse_start("2025-01-21T22:53:20Z") == Start("time", 1737500000.0)
    with pytest.raises(UsageError, match="cannot start from 'now'"):
        parse_start("now")


def test_times_are_shown_to_the_millisecond() -> None:
    assert format_time(parse_time("2025-01-21T22:53:20.1234Z"))[-7:] == ":20.123"
