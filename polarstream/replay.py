"""A recorded CSV played into a topic: at true speed, faster, or as fast as it goes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from connectors.errors import BadInput
from polarstream.ingest import CsvReadings, CsvRows, LineSplitter, blocks, open_input

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from connectors.publisher import Publisher
    from streams.config import KafkaConfig

#: column names that are taken for the time where none is named
TIME_COLUMNS: Final = ("ts", "timestamp", "time", "datetime", "date")
_BATCH: Final = 2000


class ReplayPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What to play and how."""

    path: Path
    topic: str
    #: Names in the readings that are sent.
    id_field: str | None
    time_field: str
    #: Column that holds the time; None: one of `TIME_COLUMNS`.
    time_column: str | None = None
    id_column: str | None = None
    #: Id of all rows, for a file of one sensor without an id column; None: the file's name.
    sensor_id: str | None = None
    #: Times faster than recorded; None: flat out.
    speed: float | None = 1.0
    #: Move all times so that the first row is of now.
    rewrite_time: bool = False


class ReplayResult(msgspec.Struct, frozen=True):
    """What was played."""

    readings: int
    #: Recorded seconds between the first row and the last.
    recorded_s: float
    elapsed_s: float


class Pacer:
    """When each recorded moment is due, on the clock of the caller; pure.

    Rows that are older than one before are due at once: a file's disorder is kept.
    """

    def __init__(self, speed: float | None, start: float) -> None:
        self._speed = speed
        self._start = start
        self._first: float | None = None

    def delay_s(self, recorded: float, now: float) -> float:
        """Seconds from `now` until the row recorded at `recorded` is due; 0: it is."""
        if self._first is None:
            self._first = recorded
        if self._speed is None:
            return 0.0
        return max(0.0, self._start + (recorded - self._first) / self._speed - now)


async def replay(
    plan: ReplayPlan, publisher: Publisher, progress: Callable[[int, int, int], None] | None = None
) -> ReplayResult:
    """Play a file.

    Args:
        plan: what and how.
        publisher: a started publisher.
        progress: called with (bytes read, size in bytes, readings sent).

    Raises:
        BadInput: the file cannot be read or has a row that does not fit.
        RetryLater: the broker did not take the readings in time.
    """
    size = _size(plan.path)
    columns = _columns(plan.path)
    time_column = _pick_time(plan, columns)
    rename = {time_column: plan.time_field}
    sensor_id = plan.sensor_id
    if plan.id_column is not None and plan.id_field is not None:
        rename[plan.id_column] = plan.id_field
    elif sensor_id is None and plan.id_field is not None and plan.id_field not in columns:
        sensor_id = plan.path.name.split(".")[0]
    rows = CsvReadings(
        plan.id_field,
        plan.time_field,
        rename={k: v for k, v in rename.items() if k != v},
        sensor_id=sensor_id,
    )
    started, started_wall = time.monotonic(), time.time()
    pacer = Pacer(plan.speed, started)
    batch: list[Any] = []
    sent = done = 0
    first: float | None = None
    last: float | None = None

    async def send() -> None:
        nonlocal sent, batch
        if batch:
            sent += await publisher.publish(plan.topic, batch)
            batch = []
        if progress is not None:
            progress(done, size, sent)

    splitter = LineSplitter()

    async def play(lines: Sequence[bytes]) -> None:
        nonlocal first, last, done
        for line in lines:
            done += len(line) + 1
            for reading in rows.readings([line]):
                recorded = _recorded(reading, plan.time_field, rows.line)
                first = recorded if first is None else first
                last = recorded
                delay = pacer.delay_s(recorded, time.monotonic())
                if delay > 0 or len(batch) >= _BATCH:
                    await send()
                    if delay > 0:
                        await _wait(delay, send)
                if plan.rewrite_time:
                    reading[plan.time_field] = round(started_wall + recorded - first, 6)
                batch.append(rows.message(reading))

    with open_input(plan.path) as file:
        try:
            async with contextlib.aclosing(blocks(file)) as found:
                async for data in found:
                    await play(splitter.feed(data))
            await play(splitter.close())
        finally:
            await send()  # the rows before a bad one
    await publisher.flush()
    return ReplayResult(sent, (last or 0.0) - (first or 0.0), time.monotonic() - started)


async def run_replay(
    kafka: KafkaConfig, plan: ReplayPlan, progress: Callable[[int, int, int], None] | None = None
) -> ReplayResult:
    """Connect and `replay`."""
    from connectors.publisher import Publisher

    async with Publisher(kafka) as publisher:
        await publisher.partitions(plan.topic)  # a wrong name is told before anything is read
        return await replay(plan, publisher, progress)


async def _wait(delay_s: float, tick: Callable[[], Any]) -> None:
    """Sleep, with a sign of life for the progress bar every second."""
    until = time.monotonic() + delay_s
    while (left := until - time.monotonic()) > 0:
        await asyncio.sleep(min(left, 1.0))
        await tick()


def _recorded(reading: Mapping[str, Any], time_field: str, line: int) -> float:
    recorded = reading.get(time_field)
    if not isinstance(recorded, float):
        raise BadInput(f"line {line} has no time")
    return recorded


def _size(path: Path) -> int:
    """Bytes of the file; 0 where what will be read from it is not known."""
    try:
        return 0 if path.suffix == ".gz" else path.stat().st_size
    except OSError as error:
        raise BadInput(f"cannot read '{path}': {error.strerror or error}") from error


def _columns(path: Path) -> list[str]:
    rows, splitter = CsvRows(), LineSplitter()
    with open_input(path) as file:
        try:
            while data := file.read(65_536):
                for line in splitter.feed(data):
                    if found := rows.head([line]):
                        return found
        except OSError as error:
            raise BadInput(f"cannot read '{path}': {error}") from error
        if found := rows.head(splitter.close()):
            return found
    raise BadInput(f"'{path}' is empty: the first row must name the columns")


def _pick_time(plan: ReplayPlan, columns: list[str]) -> str:
    for option, name in (("--id-column", plan.id_column), ("--time-column", plan.time_column)):
        if name is not None and name not in columns:
            raise BadInput(f"{option}: there is no column '{name}', only {', '.join(columns)}")
    if plan.time_column is not None:
        return plan.time_column
    for name in (plan.time_field, *TIME_COLUMNS):
        for column in columns:
            if column.lower() == name.lower():
                return column
    raise BadInput(
        f"no column of '{plan.path}' looks like a time ({', '.join(columns)}): name it with --time-column"
    )
