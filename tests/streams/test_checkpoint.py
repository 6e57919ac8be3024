"""What may be committed, and what is never: batches skipped, failed or broken off."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from faust.types import TP

from streams.checkpoint import Checkpointer, InputPartition
from streams.errors import RetryLater
from streams.records import ReadingBatch

HERE = TP("in", 3)


def batch(first: int, last: int) -> ReadingBatch:
    return ReadingBatch(
        stream="s",
        topic=HERE.topic,
        partition=HERE.partition,
        first_offset=first,
        last_offset=last,
        offsets=np.empty(0, np.int64),
        index=None,
        sensor_ids=[],
        ts=np.empty(0),
        published=np.empty(0),
        fields=("x",),
        values=np.empty((0, 1)),
        rejected=[],
    )


class Emitted:
    """Stands for an emitter: nothing is under way, changes are stored at once."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, ...]] = []

    def take_pending(self) -> list[Any]:
        return []

    async def send_state(self, *what: Any) -> list[Any]:
        self.sent.append(what)
        stored: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        stored.set_result(type("Stored", (), {"offset": 0}))
        return [stored]


class Table:
    changelog_topic_name = "changelog"

    def note_written(self, *what: Any) -> None:
        pass


class Share:
    """A participant that has a change whenever it is asked."""

    def snapshot(self) -> list[tuple[bytes, bytes]]:
        return [(b"rows/a/0", b"state")]


def partition(*agents: str) -> tuple[InputPartition, list[BaseException]]:
    crashes: list[BaseException] = []

    async def crash(error: BaseException) -> None:
        crashes.append(error)

    table: Any = Table()
    emitter: Any = Emitted()
    return InputPartition(HERE, table, emitter, agents or ("detect",), crash), crashes


async def take(of: InputPartition, agent: str, *batches: ReadingBatch) -> None:
    for one in batches:
        async with of.turn(agent, one):
            pass


async def test_offsets_are_those_that_the_slowest_agent_has_passed() -> None:
    of, _ = partition("detect", "analyse")
    assert of.committable() is None
    of.start_at(10)
    assert of.committable() == 10
    await take(of, "detect", batch(10, 19), batch(20, 29))
    assert of.committable() == 10
    await take(of, "analyse", batch(10, 19))
    assert of.committable() == 20


async def test_without_a_start_an_agent_begins_wherever_it_is_given_a_batch() -> None:
    of, _ = partition("detect")
    of.start_at(None)
    await take(of, "detect", batch(700, 799))
    assert of.committable() == 800


@pytest.mark.parametrize("start", [0, 10])
async def test_a_batch_that_is_left_out_ends_the_worker(start: int) -> None:
    of, crashes = partition("detect")
    of.start_at(start)
    if start == 0:
        await take(of, "detect", batch(0, 9))
    with pytest.raises(RetryLater, match="went on at offset 20 instead of 10"):
        await take(of, "detect", batch(20, 29))
    assert of.broken
    assert len(crashes) == 1
    assert of.committable() == 10


async def test_a_batch_that_comes_again_takes_nothing_back() -> None:
    of, _ = partition("detect")
    of.start_at(0)
    await take(of, "detect", batch(0, 9), batch(10, 19), batch(0, 9), batch(10, 19), batch(20, 29))
    assert of.committable() == 30


async def test_a_second_start_changes_nothing_for_agents_that_have_begun() -> None:
    of, _ = partition("detect", "analyse")
    of.start_at(0)
    await take(of, "detect", batch(0, 9))
    of.start_at(0)
    await take(of, "detect", batch(10, 19))
    assert not of.broken


@pytest.mark.parametrize("error", [ValueError("boom"), asyncio.CancelledError()])
async def test_what_broke_off_in_the_middle_of_a_batch_is_never_checkpointed(error: BaseException) -> None:
    of, crashes = partition("detect")
    of.start_at(0)
    of.participants["detect"] = Share()
    await take(of, "detect", batch(0, 9))
    with pytest.raises(type(error)):
        async with of.turn("detect", batch(10, 19)):
            raise error
    assert crashes == ([error] if isinstance(error, Exception) else [])
    committed: list[Mapping[TP, int]] = []

    async def commit(offsets: Mapping[TP, int]) -> bool:
        committed.append(offsets)
        return True

    checkpointer = Checkpointer("group", commit)
    checkpointer.partitions[HERE] = of
    assert not await checkpointer.commit({HERE: 10})
    assert committed == []
    assert of.emitter.sent == []  # type: ignore[attr-defined]


async def test_a_checkpoint_that_fails_is_the_last_one() -> None:
    of, _ = partition("detect")
    of.start_at(0)
    of.participants["detect"] = Share()
    await take(of, "detect", batch(0, 9))

    async def refuse(offsets: Mapping[TP, int]) -> bool:
        raise ConnectionError("gone")

    checkpointer = Checkpointer("group", refuse)
    checkpointer.partitions[HERE] = of
    with pytest.raises(ConnectionError):
        await checkpointer.commit({HERE: 10})
    assert of.broken


async def test_offsets_of_a_partition_that_is_not_open_are_not_committed() -> None:
    async def commit(offsets: Mapping[TP, int]) -> bool:
        raise AssertionError(offsets)

    await Checkpointer("group", commit).commit({HERE: 10})
