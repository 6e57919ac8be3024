"""Files and pipes into messages: JSON lines and CSV, with the line named where something is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import math
import threading
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal

import msgspec

from connectors.errors import BadInput
from connectors.source import Message
from polarstream.times import parse_time

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
    from pathlib import Path

Format = Literal["jsonl", "csv", "raw"]

_BLOCK_BYTES: Final = 262_144
_BLOCKS_AHEAD: Final = 4
_MAX_LINE_BYTES: Final = 2_097_152


def guess_format(path: Path | None) -> Format:
    """CSV for names that end in `.csv` (or `.csv.gz`), else JSON lines."""
    if path is not None and path.name.lower().removesuffix(".gz").endswith((".csv", ".tsv")):
        return "csv"
    return "jsonl"


def open_input(path: Path) -> BinaryIO:
    """A file to read bytes from; `.gz` is unpacked.

    Raises:
        BadInput: it cannot be opened.
    """
    try:
        if path.suffix == ".gz":
            import gzip

            return gzip.open(path, "rb")  # type: ignore[return-value]
        return path.open("rb")
    except OSError as error:
        raise BadInput(f"cannot read '{path}': {error.strerror or error}") from error


async def blocks(stream: BinaryIO) -> AsyncGenerator[bytes]:
    """What `stream` gives, as it comes. The reading is done by a daemon thread, so that a silent pipe can
    neither block the loop nor hold up the end of the process.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
    room = threading.Semaphore(_BLOCKS_AHEAD)
    closed = threading.Event()

    def pump() -> None:
        # `read1` returns what is there; a raw file has only `read`, which does the same
        read = getattr(stream, "read1", stream.read)
        item: bytes | Exception | None = b""
        with contextlib.suppress(RuntimeError):  # the loop has gone
            while isinstance(item, bytes):
                room.acquire()
                if closed.is_set():
                    return
                try:
                    item = read(_BLOCK_BYTES) or None
                except (OSError, EOFError, ValueError) as error:
                    item = error
                loop.call_soon_threadsafe(queue.put_nowait, item)

    threading.Thread(target=pump, name="polarstream-input", daemon=True).start()
    try:
        while (item := await queue.get()) is not None:
            if isinstance(item, Exception):
                raise BadInput(f"the input broke off: {item}") from item
            room.release()
            yield item
    finally:
        closed.set()
        room.release()


class LineSplitter:
    """Blocks of bytes in, whole lines out; a line may go over many blocks."""

    def __init__(self) -> None:
        self._rest = b""
        self._first = True

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes, without their ends.

        Raises:
            BadInput: a line is longer than any message may be.
        """
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > _MAX_LINE_BYTES:
            raise BadInput(f"a line is longer than {_MAX_LINE_BYTES} bytes: is this a text file?")
        return self._clean(lines)

    def close(self) -> list[bytes]:
        """The last line, if it had no end."""
        rest, self._rest = self._rest, b""
        return self._clean([rest] if rest else [])

    def _clean(self, lines: list[bytes]) -> list[bytes]:
        if self._first and lines:
            lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
            self._first = False
        return [line.removesuffix(b"\r") for line in lines]


class JsonLines:
    """Lines of JSON objects to messages, the value untouched.

    Args:
        key_field: field whose value becomes the key; None: no key. An object without it has no key.
    """

    def __init__(self, key_field: str | None) -> None:
        self._key_field = key_field
        self._decode = msgspec.json.Decoder(dict[str, Any]).decode
        self._line = 0

    def messages(self, lines: Sequence[bytes]) -> Iterator[Message]:
        """One message a line; empty lines are passed over."""
        for line in lines:
            self._line += 1
            text = line.strip()
            if not text:
                continue
            try:
                found = self._decode(text)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise BadInput(f"line {self._line} is no JSON object: {error}") from error
            yield Message(key_of(found.get(self._key_field)) if self._key_field else None, text)


class RawLines:
    """Lines to messages just as they are, without a key."""

    def messages(self, lines: Sequence[bytes]) -> Iterator[Message]:
        """One message a line; empty lines are passed over."""
        return (Message(None, line) for line in lines if line)


class CsvRows:
    """Lines of CSV to rows by column name. The first row names the columns.

    A quoted cell may go over lines. The separator is a comma, a semicolon or a tab, whichever the first row
    has most of.
    """

    def __init__(self) -> None:
        self._held: list[str] = []
        self._quotes = 0
        self._columns: list[str] | None = None
        self._separator = ","
        #: Number of the last line that was read, from 1.
        self.line = 0

    def rows(self, lines: Sequence[bytes]) -> Iterator[dict[str, str]]:
        """The rows that these lines complete.

        Raises:
            BadInput: a row that does not fit the first one, or bytes that are no UTF-8.
        """
        for line in lines:
            self.line += 1
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                raise BadInput(f"line {self.line} is not UTF-8: {error}") from error
            self._quotes += text.count('"')
            self._held.append(text)
            if self._quotes % 2:
                continue  # inside a quoted cell
            whole, self._held, self._quotes = "\n".join(self._held), [], 0
            if not whole.strip():
                continue
            if self._columns is None:
                self._head(whole)
                continue
            [cells] = csv.reader([whole], delimiter=self._separator, skipinitialspace=True)
            if len(cells) != len(self._columns):
                raise BadInput(
                    f"line {self.line} has {len(cells)} cells, the first row names {len(self._columns)}"
                )
            yield dict(zip(self._columns, cells, strict=True))

    def head(self, lines: Sequence[bytes]) -> list[str] | None:
        """The names of the columns, if these lines hold (the rest of) the first row."""
        next(self.rows(lines), None)
        return self._columns

    def _head(self, text: str) -> None:
        self._separator = max(",;\t", key=text.count)
        [cells] = csv.reader([text], delimiter=self._separator, skipinitialspace=True)
        names = [cell.strip() for cell in cells]
        if len(set(names)) != len(names) or not all(names):
            raise BadInput(f"the first row must name every column, each once: {text[:200]}")
        self._columns = names


class CsvReadings:
    """Rows of CSV to readings: JSON objects with numbers where there are numbers.

    Args:
        id_field: name of the id in the reading; its value is kept as text and becomes the key.
        time_field: name of the time in the reading; ISO 8601 of any kind becomes epoch seconds.
        rename: column -> name in the reading.
        sensor_id: the id of rows that have none.
    """

    def __init__(
        self,
        id_field: str | None,
        time_field: str | None,
        *,
        rename: Mapping[str, str] | None = None,
        sensor_id: str | None = None,
    ) -> None:
        self._csv = CsvRows()
        self._id_field = id_field
        self._time_field = time_field
        self._rename = dict(rename or {})
        self._sensor_id = sensor_id
        self._checked = False

    @property
    def line(self) -> int:
        """Number of the last line that was read, from 1."""
        return self._csv.line

    def readings(self, lines: Sequence[bytes]) -> Iterator[dict[str, Any]]:
        """One reading a row; an empty cell is an absent field."""
        for row in self._csv.rows(lines):
            if not self._checked:
                self._check(row)
            reading: dict[str, Any] = {}
            if self._id_field and self._sensor_id is not None:
                reading[self._id_field] = self._sensor_id
            for column, cell in row.items():
                text = cell.strip()
                if not text:
                    continue
                name = self._rename.get(column, column)
                if name == self._id_field:
                    reading[name] = text
                elif name == self._time_field:
                    try:
                        reading[name] = parse_time(text)
                    except ValueError as error:
                        raise BadInput(f"line {self.line}, column '{column}': {error}") from error
                else:
                    reading[name] = number_or_text(text)
            yield reading

    def messages(self, lines: Sequence[bytes]) -> Iterator[Message]:
        """One message a row."""
        for reading in self.readings(lines):
            yield self.message(reading)

    def message(self, reading: Mapping[str, Any]) -> Message:
        """The message of one reading, keyed by its id."""
        key = key_of(reading.get(self._id_field)) if self._id_field else None
        return Message(key, msgspec.json.encode(reading))

    def _check(self, row: Mapping[str, str]) -> None:
        unknown = [column for column in self._rename if column not in row]
        if unknown:
            raise BadInput(f"there is no column '{unknown[0]}' to rename: the columns are {', '.join(row)}")
        self._checked = True


def key_of(value: object) -> bytes | None:
    """A Kafka key from a field's value."""
    if value is None:
        return None
    return value.encode() if isinstance(value, str) else msgspec.json.encode(value)


def number_or_text(text: str) -> float | int | str:
    """A finite number where the text is one, else the text itself (`NaN` stays text: JSON has none)."""
    if "_" in text:  # Python reads 1_000 as a number, nobody else does
        return text
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text
