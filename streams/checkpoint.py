"""Checkpoints: outputs stored, then changed state, then offsets; or all three in one transaction.

An `InputPartition` is what a worker has of one partition of an input topic: the emitter of its outputs, the
participants (each agent's state for it) and a lock. An agent holds the lock from the first change of its
state to the moment the chunk's outputs are queued, so that under the lock state and outputs agree.

At least once, in this order:

1. under the lock: take the changed state and the futures of the outputs;
2. wait until the brokers have stored the outputs;
3. write the state to the changelog, wait until it is stored;
4. commit the offsets, which were determined before step 1.

A crash after 2 replays readings whose predictions went out already: the same ids are written again. A crash
after 3 replays readings that the state has seen: each shard knows its last offset, and they are skipped.

Exactly once, steps 2 to 4 are one transaction of the partition's own producer, under the lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Protocol

from aiokafka.structs import TopicPartition
from faust.types import TP

from streams import metrics
from streams.changelog import ChangelogTable
from streams.emitter import Emitter, TransactionalEmitter
from streams.errors import RetryLater
from streams.records import ReadingBatch

Changes = list[tuple[bytes, bytes]]

#: Share of the time that checkpoints may take, and the longest pause between two of them in seconds.
CHECKPOINT_SHARE = 0.03
MAX_PAUSE_S = 10.0


class Participant(Protocol):
    """One agent's state for one input partition."""

    def snapshot(self) -> Changes:
        """Take what has changed since the last call, as (key, value) for the changelog."""


class InputPartition:
    """One partition of an input topic, while it is assigned to this worker."""

    def __init__(
        self,
        tp: TP,
        table: ChangelogTable,
        emitter: Emitter,
        crash: Callable[[BaseException], Awaitable[None]],
    ) -> None:
        self.tp = tp
        self.table = table
        self.emitter = emitter
        self.lock = asyncio.Lock()
        self.participants: dict[str, Participant] = {}
        # last offset of each agent's last batch
        self._done: dict[str, int] = {}
        # agents that may be given again what they have had, after a seek
        self._rewound: set[str] = set()
        self._crash = crash

    def rewind(self) -> None:
        """Note that the partition is read again from an older offset; agents skip what they have had."""
        self._rewound.update(self._done)

    @contextlib.asynccontextmanager
    async def turn(self, agent: str, batch: ReadingBatch) -> AsyncIterator[None]:
        """Hold the lock for one batch of one agent.

        An agent that fails here takes the worker with it, which starts again from the last checkpoint:
        Faust would start the agent anew and leave the batch out.

        Raises:
            RetryLater: the batch is older than one that the agent has had, and nobody has sought back.
        """
        async with self.lock:
            try:
                done = self._done.get(agent, -1)
                if batch.first_offset > done:
                    self._rewound.discard(agent)
                elif agent not in self._rewound:
                    raise RetryLater(f"{agent}: batch {batch.first_offset} of {self.tp} came out of order")
                yield
                self._done[agent] = max(done, batch.last_offset)
            except Exception as error:
                await self._crash(error)
                raise

    def changes(self) -> Changes:
        """Take the participants' changes; call it under the lock."""
        return [change for participant in self.participants.values() for change in participant.snapshot()]

    async def write(self, changes: Changes) -> int | None:
        """Write changes to the changelog; return the offset of the last one once all are stored."""
        if not changes:
            return None
        keys, values = zip(*changes, strict=True)
        topic = self.table.changelog_topic_name
        futures = await self.emitter.send(topic, self.tp.partition, keys, values)
        stored = await asyncio.gather(*futures)
        metrics.CHECKPOINT_BYTES.inc(sum(map(len, values)))
        # only this worker writes the partition, so the offsets follow each other
        return int(stored[0].offset) + len(changes) - 1


class Checkpointer:
    """Commits checkpoints of the partitions that a worker has.

    Args:
        group: the consumer group's id.
        commit_offsets: commits offsets by the consumer.
    """

    def __init__(self, group: str, commit_offsets: Callable[[Mapping[TP, int]], Awaitable[bool]]) -> None:
        self._group = group
        self._commit_offsets = commit_offsets
        self.partitions: dict[TP, InputPartition] = {}
        # CPU time that the last checkpoint took this process, in seconds
        self._cost_s = 0.0

    def pause_s(self, interval_s: float) -> float:
        """How long to wait until the next checkpoint, in seconds.

        A checkpoint of much state takes longer than one of little; so that all of them together stay below
        some per cent of the time, they are then made less often.
        """
        return max(interval_s, min(self._cost_s / CHECKPOINT_SHARE, MAX_PAUSE_S))

    async def commit(self, offsets: Mapping[TP, int]) -> bool:
        """Make a checkpoint.

        Args:
            offsets: next offset to read, by input partition; all before it is processed.

        Raises:
            KafkaError: outputs, state or offsets could not be stored. The state in memory is then ahead of
                the changelog, so the worker has to start again from the last checkpoint.
        """
        started = time.perf_counter()
        self._cost_s = 0.0
        transactional = {
            tp: partition
            for tp in offsets
            if (partition := self.partitions.get(tp)) and isinstance(partition.emitter, TransactionalEmitter)
        }
        if transactional:
            # half of the partitions at a time, so that the others can be worked on
            room = asyncio.Semaphore(max(1, len(transactional) // 2))
            await asyncio.gather(
                *(
                    self._commit_transaction(partition, offsets[tp], room)
                    for tp, partition in transactional.items()
                )
            )
        plain = {tp: offset for tp, offset in offsets.items() if tp not in transactional}
        done = await self._commit_plain(plain) if plain else True
        metrics.CHECKPOINTS.inc()
        metrics.CHECKPOINT_SECONDS.observe(time.perf_counter() - started)
        return done

    def _changes(self, partition: InputPartition) -> Changes:
        started = time.thread_time()
        changes = partition.changes()
        # twice: what is gathered here is then copied into record batches, summed and sent
        self._cost_s += 2 * (time.thread_time() - started)
        return changes

    async def _commit_plain(self, offsets: Mapping[TP, int]) -> bool:
        partitions = [self.partitions[tp] for tp in offsets if tp in self.partitions]
        changes: list[Changes] = []
        outputs: list[asyncio.Future[object]] = []
        for partition in partitions:
            async with partition.lock:
                changes.append(self._changes(partition))
                outputs += partition.emitter.take_pending()
        if outputs:
            await asyncio.gather(*outputs)
        last = await asyncio.gather(
            *(partition.write(change) for partition, change in zip(partitions, changes, strict=True))
        )
        for partition, change, offset in zip(partitions, changes, last, strict=True):
            if offset is not None:
                partition.table.note_written(partition.tp.partition, change, offset)
        return await self._commit_offsets(offsets)

    async def _commit_transaction(
        self, partition: InputPartition, offset: int, room: asyncio.Semaphore
    ) -> None:
        async with room, partition.lock:
            changes = self._changes(partition)
            last = await partition.write(changes)
            outputs = partition.emitter.take_pending()
            if outputs:
                await asyncio.gather(*outputs)
            tp = TopicPartition(partition.tp.topic, partition.tp.partition)
            await partition.emitter.commit({tp: offset}, self._group)
            if last is not None:
                partition.table.note_written(partition.tp.partition, changes, last)
