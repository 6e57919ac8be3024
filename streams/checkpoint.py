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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Protocol

from aiokafka.structs import TopicPartition
from faust.types import TP

from streams import metrics
from streams.changelog import ChangelogTable
from streams.emitter import Emitter, TransactionalEmitter
from streams.errors import RetryLater
from streams.frames import FrameBatch
from streams.records import ReadingBatch
from streams.requests import RequestBatch

Changes = list[tuple[bytes, bytes]]

#: Share of the time that checkpoints may take, and the longest pause between two of them in seconds.
CHECKPOINT_SHARE = 0.03
MAX_PAUSE_S = 10.0


class Participant(Protocol):
    """One agent's state for one input partition."""

    def snapshot(self) -> Changes:
        """Take what has changed since the last call, as (key, value) for the changelog."""


class InputPartition:
    """One partition of an input topic, while it is assigned to this worker.

    It alone knows how far each agent is, and so what may be committed: what Faust counts as acknowledged may
    also be what an agent has skipped or failed in.

    Args:
        tp: topic and partition.
        table: the stream's changelog.
        emitter: of the outputs.
        agents: names of all agents that read the topic.
        crash: called with what an agent has failed of.
    """

    def __init__(
        self,
        tp: TP,
        table: ChangelogTable,
        emitter: Emitter,
        agents: Iterable[str],
        crash: Callable[[BaseException], Awaitable[None]],
    ) -> None:
        self.tp = tp
        self.table = table
        self.emitter = emitter
        self.lock = asyncio.Lock()
        self.participants: dict[str, Participant] = {}
        #: True once an agent broke off in the middle of a batch: state and outputs no longer agree, so
        #: there is no further checkpoint.
        self.broken = False
        #: Called when the partition is no longer ours: what agents have under way for it is given up.
        self.on_close: list[Callable[[], None]] = []
        # next offset that each agent has to read; None: wherever the log begins
        self._next: dict[str, int | None] = dict.fromkeys(agents)
        self._crash = crash

    def start_at(self, offset: int | None) -> None:
        """Note the committed offset, from which the partition is read; None if there is none."""
        self._next = {agent: offset if known is None else known for agent, known in self._next.items()}

    def committable(self) -> int | None:
        """Return the next offset that some agent has to read, None if that is not known yet."""
        known = [offset for offset in self._next.values() if offset is not None]
        return min(known) if known and len(known) == len(self._next) else None

    @contextlib.asynccontextmanager
    async def turn(self, agent: str, batch: ReadingBatch | FrameBatch | RequestBatch) -> AsyncIterator[None]:
        """Hold the lock for one batch of one agent.

        A batch that an agent is given again, after a seek, is not refused: agents skip what they have had.
        An agent that fails here takes the worker with it, which starts again from the last checkpoint:
        Faust would start the agent anew and leave the batch out.

        Raises:
            RetryLater: there are readings between the agent's last batch and this one.
        """
        async with self.lock:
            try:
                expected = self._next[agent]
                if expected is not None and batch.first_offset > expected:
                    raise RetryLater(
                        f"{agent}: {self.tp.topic}/{self.tp.partition} went on at offset "
                        f"{batch.first_offset} instead of {expected}"
                    )
                yield
                self._next[agent] = max(expected or 0, batch.last_offset + 1)
            except BaseException as error:
                self.broken = True
                if isinstance(error, Exception):
                    await self._crash(error)
                raise

    def close(self) -> None:
        """Give up what agents have under way: another worker goes on from the last checkpoint."""
        for give_up in self.on_close:
            give_up()

    async def crash(self, error: BaseException) -> None:
        """Take the worker down: an agent has failed beyond a batch, and what it had is read again."""
        self.broken = True
        await self._crash(error)

    def changes(self) -> Changes:
        """Take the participants' changes; call it under the lock."""
        return [change for participant in self.participants.values() for change in participant.snapshot()]

    async def write(self, changes: Changes) -> int | None:
        """Write changes to the changelog; return the offset of the last one once all are stored."""
        if not changes:
            return None
        futures = await self.emitter.send_state(self.table.changelog_topic_name, self.tp.partition, changes)
        stored = await asyncio.gather(*futures)
        metrics.CHECKPOINT_BYTES.inc(sum(len(value) for _, value in changes))
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
        taken = {tp: partition for tp in offsets if (partition := self.partitions.get(tp))}
        try:
            transactional = {
                tp: partition
                for tp, partition in taken.items()
                if isinstance(partition.emitter, TransactionalEmitter)
            }
            if transactional:
                # a quarter of the partitions at a time, so that the others can be worked on
                room = asyncio.Semaphore(max(1, len(transactional) // 4))
                await asyncio.gather(
                    *(
                        self._commit_transaction(partition, offsets[tp], room)
                        for tp, partition in transactional.items()
                    )
                )
            plain = {tp: partition for tp, partition in taken.items() if tp not in transactional}
            done = await self._commit_plain(plain, offsets) if plain else True
        except BaseException:
            # what was taken out of the state is not stored
            for partition in taken.values():
                partition.broken = True
            raise
        metrics.CHECKPOINTS.inc()
        metrics.CHECKPOINT_SECONDS.observe(time.perf_counter() - started)
        return done

    def _changes(self, partition: InputPartition) -> Changes:
        started = time.thread_time()
        changes = partition.changes()
        # What is gathered here is then copied into record batches, summed and sent: all in all some five
        # times as much (`python -m benchmarks.checkpoint`).
        self._cost_s += 5 * (time.thread_time() - started)
        return changes

    async def _commit_plain(self, partitions: Mapping[TP, InputPartition], offsets: Mapping[TP, int]) -> bool:
        changes: dict[TP, Changes] = {}
        outputs: list[asyncio.Future[object]] = []
        for tp, partition in partitions.items():
            async with partition.lock:
                if not partition.broken:
                    changes[tp] = self._changes(partition)
                    outputs += partition.emitter.take_pending()
        if outputs:
            await asyncio.gather(*outputs)
        last = await asyncio.gather(*(partitions[tp].write(change) for tp, change in changes.items()))
        for (tp, change), offset in zip(changes.items(), last, strict=True):
            if offset is not None:
                partitions[tp].table.note_written(tp.partition, change, offset)
        return bool(changes) and await self._commit_offsets({tp: offsets[tp] for tp in changes})

    async def _commit_transaction(
        self, partition: InputPartition, offset: int, room: asyncio.Semaphore
    ) -> None:
        async with room, partition.lock:
            if partition.broken:
                return
            changes = self._changes(partition)
            last = await partition.write(changes)
            outputs = partition.emitter.take_pending()
            if outputs:
                await asyncio.gather(*outputs)
            tp = TopicPartition(partition.tp.topic, partition.tp.partition)
            await partition.emitter.commit({tp: offset}, self._group)
            if last is not None:
                partition.table.note_written(partition.tp.partition, changes, last)
