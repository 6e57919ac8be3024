from __future__ import annotations

import asyncio
import gzip
import io
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.errors import BadInput
from polarstream.ingest import (
    CsvReadings,
    JsonLines,
    LineSplitter,
    RawLines,
    blocks,
    guess_format,
    number_or_text,
    open_input,
)


def lines(text: str) -> list[bytes]:
    splitter = LineSplitter()
    return splitter.feed(text.encode()) + splitter.close()


@given(st.lists(st.binary(max_size=30).map(lambda b: b.replace(b"\n", b"x").replace(b"\r", b"y"))), st.data())
def test_lines_are_the_same_however_the_bytes_are_cut(wanted: list[bytes], data: st.DataObject) -> None:
    wanted = [w.removeprefix(b"\xef\xbb\xbf") for w in wanted]
    text = b"".join(w + b"\n" for w in wanted)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    splitter, found = LineSplitter(), []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        found += splitter.feed(text[start:end])
    assert found + splitter.close() == wanted


def test_windows_line_ends_and_a_byte_order_mark_are_no_part_of_a_line() -> None:
    assert lines("\ufeffa,b\r\n1,2\r\n3,4") == [b"a,b", b"1,2", b"3,4"]


def test_an_endless_line_is_refused() -> None:
    with pytest.raises(BadInput, match="longer than 2097152 bytes"):
        LineSplitter().feed(b"x" * 3_000_000)


def test_json_lines_keep_their_bytes_and_are_keyed_by_the_field() -> None:
    found = list(JsonLines("id").messages(lines('{"id": "a",  "x": 1}\n\n{"id": 7}\n{"x": 2}\n')))
    assert [(m.key, m.value) for m in found] == [
        (b"a", b'{"id": "a",  "x": 1}'),
        (b"7", b'{"id": 7}'),
        (None, b'{"x": 2}'),
    ]
    assert [m.key for m in JsonLines(None).messages([b'{"id": "a"}'])] == [None]


@pytest.mark.parametrize("bad", ["[1]", "nonsense", '{"a": 1', '"text"', '{"a": \udcff}'])
def test_a_line_that_is_no_object_is_named(bad: str) -> None:
    reader = JsonLines("id")
    with pytest.raises(BadInput, match="line 2 is no JSON object"):
        list(reader.messages([b"{}", bad.encode(errors="surrogateescape")]))


def test_raw_lines_go_as_they_are() -> None:
    assert [m.value for m in RawLines().messages(lines("nonsense\n\n{broken"))] == [b"nonsense", b"{broken"]


def readings(text: str, **kwargs: Any) -> list[dict[str, Any]]:
    return list(CsvReadings("sensor_id", "ts", **kwargs).readings(lines(text)))


def test_csv_cells_become_numbers_and_texts_and_times() -> None:
    text = "sensor_id,ts,temperature,note\n007,2025-01-21 22:53:20,21.5,warm\nb,1737500001500,,\n"
    assert readings(text) == [
        {"sensor_id": "007", "ts": 1737500000.0, "temperature": 21.5, "note": "warm"},
        {"sensor_id": "b", "ts": 1737500001.5},
    ]


@pytest.mark.parametrize("separator", [";", "\t"])
def test_other_separators_are_seen(separator: str) -> None:
    assert readings("sensor_id,x\na,1\n".replace(",", separator)) == [{"sensor_id": "a", "x": 1}]


def test_a_quoted_cell_may_go_over_lines_and_blocks() -> None:
    csv = CsvReadings("sensor_id", "ts")
    found = list(csv.readings([b"sensor_id,note", b'a,"one']))
    found += csv.readings([b'two, ""three"""', b"b,x"])
    assert found == [{"sensor_id": "a", "note": 'one\ntwo, "three"'}, {"sensor_id": "b", "note": "x"}]


def test_columns_can_be_renamed_and_an_id_given() -> None:
    found = readings("time,t\n5,1\n", rename={"time": "ts", "t": "temperature"}, sensor_id="pump-7")
    assert found == [{"sensor_id": "pump-7", "ts": 5.0, "temperature": 1}]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1\n", "line 2 has 1 cells, the first row names 2"),
        ("a,a\n1,2\n", "must name every column, each once"),
        ("a,,c\n1,2,3\n", "must name every column"),
        ("ts,x\nsoon,1\n", "line 2, column 'ts': 'soon' is no time"),
    ],
)
def test_a_wrong_row_is_named(text: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        readings(text)


def test_a_column_to_rename_must_be_there() -> None:
    with pytest.raises(BadInput, match="no column 'zeit' to rename: the columns are ts, x"):
        readings("ts,x\n1,2\n", rename={"zeit": "ts"})
    with pytest.raises(BadInput, match="line 2 is not UTF-8"):
        list(CsvReadings(None, None).readings([b"a", b"\xff"]))


def test_a_csv_message_is_keyed_and_json() -> None:
    [message] = CsvReadings("sensor_id", "ts").messages(lines("sensor_id,x\na,1.5\n"))
    assert (message.key, msgspec.json.decode(message.value)) == (b"a", {"sensor_id": "a", "x": 1.5})


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("-2.5", -2.5), ("1e3", 1000.0), ("x", "x"), ("nan", "nan"), ("inf", "inf"), ("1_0", "1_0")],
)
def test_numbers_are_finite_or_texts(text: str, value: object) -> None:
    assert number_or_text(text) == value


def test_the_format_is_guessed_from_the_name() -> None:
    assert guess_format(Path("a.CSV.gz")) == "csv"
    assert guess_format(Path("a.jsonl")) == "jsonl"
    assert guess_format(None) == "jsonl"


async def test_blocks_come_as_a_pipe_gives_them() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as stream:
        found = blocks(stream)
        os.write(writer, b"one\n")
        assert await asyncio.wait_for(anext(found), 5) == b"one\n"
        os.write(writer, b"two\n")
        assert await asyncio.wait_for(anext(found), 5) == b"two\n"
        os.close(writer)
        assert [b async for b in found] == []


async def test_a_gzipped_file_is_unpacked_and_a_broken_one_said_to_be(tmp_path: Path) -> None:
    whole, broken = tmp_path / "a.csv.gz", tmp_path / "b.csv.gz"
    whole.write_bytes(gzip.compress(b"a,b\n" * 1000))
    broken.write_bytes(gzip.compress(b"a,b\n" * 1000)[:-9])
    with open_input(whole) as stream:
        assert b"".join([b async for b in blocks(stream)]) == b"a,b\n" * 1000
    with pytest.raises(BadInput, match="the input broke off"), open_input(broken) as stream:
        async for _ in blocks(stream):
            pass
    with pytest.raises(BadInput, match=r"cannot read '.*none': No such file"):
        open_input(tmp_path / "none")


async def test_leaving_early_frees_the_reading_thread() -> None:
    found = blocks(io.BytesIO(b"x" * 10_000_000))
    await anext(found)
    await found.aclose()  # type: ignore[attr-defined]
