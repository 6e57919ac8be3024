from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polarstream.filters import FilterError, parse_filter

RECORD = {
    "source": "pump-07",
    "score": 5.5,
    "is_anomaly": True,
    "field": None,
    "count": 0,
    "label": "über",
    "explanation": {"field": "temperature", "z": -3},
    "kafka": {"partition": 2, "key": "pump-07"},
}


@pytest.mark.parametrize(
    "text",
    [
        "score > 4",
        "score>4 and source~'pump-*'",
        "score >= 5.5",
        "score = 5.5 and score == 5.5",
        "score != 4",
        "score > -1e3",
        "source = pump-07",
        'source = "pump-07"',
        "source ~ 'pump-0?'",
        "source !~ 'fan-*'",
        "is_anomaly",
        "is_anomaly = true",
        "not count",
        "field = null",
        "not field",
        "explanation.field ~ 'temp*' and explanation.z < 0",
        "kafka.partition = 2",
        "score > 9 or source ~ 'pump*'",
        "score > 9 and source ~ 'fan*' or is_anomaly",
        "not (score > 9 or count)",
        "label = 'über'",
        "score > 4 AND NOT count",
    ],
)
def test_filters_that_hold(text: str) -> None:
    assert parse_filter(text)(RECORD)


@pytest.mark.parametrize(
    "text",
    [
        "score < 4",
        "absent > 1",
        "absent = null",
        "absent",
        "source > 4",
        "is_anomaly = 1",
        "score = 'pump'",
        "source ~ 'PUMP-*'",
        "score.deeper > 1",
        "count",
        "score > 4 and source ~ 'fan-*'",
        "not is_anomaly",
    ],
)
def test_filters_that_do_not_hold(text: str) -> None:
    assert not parse_filter(text)(RECORD)


@pytest.mark.parametrize(
    ("text", "column", "words"),
    [
        ("", 1, "expected a field's name"),
        ("score >", 8, "expected a number or 'text' after >"),
        ("score > 4 source", 11, "expected 'and', 'or' or the end"),
        ("score > 4 and", 14, "expected a field's name"),
        ("(score > 4", 11, r"expected '\)'"),
        ("score > 4)", 10, "expected 'and', 'or' or the end"),
        ("score ; 4", 7, "unexpected ';'"),
        ("4 > score", 1, "expected a field's name instead of '4'"),
        ("score > and", 9, "expected a number"),
        ("score = 'open", 9, "unexpected"),
        ("__import__('os')", 11, "expected 'and', 'or' or the end"),
        ("not " * 60 + "a", 161, "more than 40 levels"),
        ("(" * 60 + "a", 41, "more than 40 levels"),
    ],
)
def test_a_wrong_filter_names_the_column(text: str, column: int, words: str) -> None:
    with pytest.raises(FilterError, match=words) as caught:
        parse_filter(text)
    assert f"at column {column}\n" in str(caught.value)


@given(st.text(max_size=60))
def test_any_text_is_a_filter_or_a_filter_error(text: str) -> None:
    try:
        test = parse_filter(text)
    except FilterError:
        return
    assert test(RECORD) in (True, False)


@given(st.text(max_size=20), st.text(alphabet="ab*?[]", max_size=12))
def test_matching_never_fails_whatever_the_pattern(text: str, pattern: str) -> None:
    assert parse_filter(f"x ~ '{pattern}'")({"x": text}) in (True, False)
