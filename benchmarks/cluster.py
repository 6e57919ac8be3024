"""Kafka as the benchmarks see it: fresh topics, a fast loader, end offsets, and reading back.

Built on aiokafka, which polarstream needs anyway, so that the harness runs in polarstream's own environment.
Loading fills record batches itself (about 0.35 µs a record): it happens before a contestant starts and is no
part of any figure.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from benchmarks.contestants import cache_folder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Mapping

    from benchmarks.workload import Workload
from polarstream.broker import LocalBroker

_BATCH_BYTES = 256 * 1024


@dataclass(frozen=True)
class Broker:
    """A broker to measure on; `pid` is None where it is not ours and its CPU can't be told."""

    bootstrap: str
    pid: int | None


@contextmanager
def broker(bootstrap: str | None) -> Iterator[Broker]:
    """The broker at `bootstrap`, or a fresh local one with an empty log that goes away afterwards."""
    if bootstrap is not None:
        yield Broker(bootstrap, _listener_pid(bootstrap))
        return
    cache_folder().mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="broker-", dir=cache_folder()) as folder,
        LocalBroker(Path(folder)) as local,
    ):
        yield Broker(local.bootstrap, local.status().pid)


def _listener_pid(bootstrap: str) -> int | None:
    import psutil

    host, _, port = bootstrap.split(",")[0].rpartition(":")
    if host not in {"127.0.0.1", "localhost"}:
        return None
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == int(port):
                return int(connection.pid) if connection.pid else None
    except psutil.AccessDenied:
        pass
    return None


@asynccontextmanager
async def _started(client: Any) -> AsyncIterator[Any]:
    await client.start()
    try:
        yield client
    finally:
        await (client.close() if hasattr(client, "close") else client.stop())


class Cluster:
    """The few things that a benchmark asks of the broker."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap

    async def create(self, topic: str, partitions: int, *, configs: Mapping[str, str] | None = None) -> None:
        """Makes `topic`, whose files go soon after it is deleted."""
        settings = {"file.delete.delay.ms": "1000", "retention.ms": "-1", "retention.bytes": "-1"}
        async with _started(AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)) as admin:
            response = await admin.create_topics(
                [NewTopic(topic, partitions, 1, topic_configs={**settings, **(configs or {})})]
            )
        for name, code, *detail in response.topic_errors:
            if code:
                raise RuntimeError(f"topic {name} was refused: {detail[0] if detail else code}")
        await self._wait_until_led(topic, partitions)

    async def _wait_until_led(self, topic: str, partitions: int) -> None:
        async with (
            asyncio.timeout(20),
            _started(AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)) as admin,
        ):
            while True:
                (described,) = await admin.describe_topics([topic])
                led = [p for p in described.get("partitions", ()) if p["leader"] >= 0]
                if len(led) == partitions:
                    return
                await asyncio.sleep(0.05)

    async def topics(self) -> list[str]:
        """Every topic of the broker."""
        async with _started(AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)) as admin:
            return list(await admin.list_topics())

    async def delete(self, topics: Iterable[str]) -> None:
        """Deletes topics and, after a second, their files."""
        names = list(topics)
        if names:
            async with _started(AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)) as admin:
                await admin.delete_topics(names)

    async def load(self, topic: str, workload: Workload) -> None:
        """Writes the whole workload, each partition in order, without compression."""
        now_ms = int(time.time() * 1000)
        payloads = workload.payloads(0, workload.readings)
        await self.load_records(topic, ((p, key, value, now_ms) for p, key, value in payloads))

    async def load_records(self, topic: str, records: Iterable[tuple[int, bytes | None, bytes, int]]) -> None:
        """Writes (partition, key, value, timestamp in ms) records, each partition in order."""
        producer = AIOKafkaProducer(
            bootstrap_servers=self.bootstrap, max_batch_size=_BATCH_BYTES, max_request_size=8 << 20, acks=1
        )
        async with _started(producer):
            open_batches: dict[int, Any] = {}
            sent: dict[int, asyncio.Future[Any]] = {}

            async def send(partition: int) -> None:
                # one batch a partition in flight keeps the order; the partitions overlap
                if partition in sent:
                    await sent[partition]
                batch = open_batches.pop(partition)
                sent[partition] = await producer.send_batch(batch, topic, partition=partition)

            for partition, key, value, timestamp in records:
                batch = open_batches.get(partition)
                if batch is None:
                    batch = open_batches[partition] = producer.create_batch()
                if batch.append(key=key, value=value, timestamp=timestamp) is None:
                    await send(partition)
                    batch = open_batches[partition] = producer.create_batch()
                    if batch.append(key=key, value=value, timestamp=timestamp) is None:
                        raise ValueError(f"a record of {len(value)} bytes does not fit a batch")
            for partition in list(open_batches):
                await send(partition)
            await asyncio.gather(*sent.values())

    @asynccontextmanager
    async def ends(self, topic: str, partitions: int, *, committed: bool = False) -> AsyncIterator[Ends]:
        """A cheap way to ask again and again how far a topic has got."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.bootstrap,
            isolation_level="read_committed" if committed else "read_uncommitted",
        )
        async with _started(consumer):
            yield Ends(consumer, [TopicPartition(topic, p) for p in range(partitions)])

    async def read(
        self, topic: str, partitions: int, *, committed: bool = False
    ) -> AsyncIterator[tuple[int, list[Any]]]:
        """Every record of `topic` up to its present end, as (partition, records), in log order."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.bootstrap,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=4 << 20,
            isolation_level="read_committed" if committed else "read_uncommitted",
        )
        async with _started(consumer):
            assigned = [TopicPartition(topic, p) for p in range(partitions)]
            consumer.assign(assigned)
            ends = await consumer.end_offsets(assigned)
            await consumer.seek_to_beginning(*assigned)
            while True:
                waiting = [tp for tp in assigned if await consumer.position(tp) < ends[tp]]
                if not waiting:
                    return
                for tp, records in (await consumer.getmany(timeout_ms=1000, max_records=20_000)).items():
                    yield tp.partition, records


class Ends:
    """How many records (transaction markers included) a topic holds."""

    def __init__(self, consumer: AIOKafkaConsumer, partitions: list[TopicPartition]) -> None:
        self._consumer = consumer
        self._partitions = partitions

    async def total(self) -> int:
        """The sum of the end offsets."""
        return sum((await self._consumer.end_offsets(self._partitions)).values())
