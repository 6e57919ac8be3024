"""The local broker: one real Kafka, started, killed, started again."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import UnknownTopicOrPartitionError

from polarstream.broker import LocalBroker, running_bootstrap
from polarstream.broker.state import read_state, write_state
from streams.errors import BrokerUnavailable

OwnBroker = Callable[..., LocalBroker]


async def create(bootstrap: str, topic: str, partitions: int = 1) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, partitions, 1)])
    finally:
        await admin.close()


async def produce(bootstrap: str, topic: str, *values: bytes) -> None:
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all") as producer:
        for value in values:
            await producer.send_and_wait(topic, value, partition=0)


async def consume(bootstrap: str, topic: str, count: int, **options: object) -> list[bytes]:
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest", **options)
    async with consumer:
        consumer.assign([TopicPartition(topic, 0)])
        return [(await consumer.getone()).value for _ in range(count)]


async def test_what_is_produced_is_consumed(broker: str, topic_prefix: str) -> None:
    topic = f"{topic_prefix}readings"
    await create(broker, topic)
    await produce(broker, topic, b"one", b"two")
    assert await consume(broker, topic, 2) == [b"one", b"two"]


async def test_committed_transactions_are_read_and_aborted_ones_are_not(
    broker: str, topic_prefix: str
) -> None:
    topic = f"{topic_prefix}out"
    await create(broker, topic)
    producer = AIOKafkaProducer(bootstrap_servers=broker, transactional_id=f"{topic_prefix}writer")
    async with producer:
        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"aborted", partition=0)
        await producer.abort_transaction()
        async with producer.transaction():
            await producer.send_and_wait(topic, b"committed", partition=0)
    assert await consume(broker, topic, 1, isolation_level="read_committed") == [b"committed"]


async def test_a_group_commits_and_goes_on(broker: str, topic_prefix: str) -> None:
    topic = f"{topic_prefix}in"
    await create(broker, topic)
    await produce(broker, topic, b"one", b"two")
    for expected in (b"one", b"two"):
        consumer = AIOKafkaConsumer(
            topic, bootstrap_servers=broker, group_id=f"{topic_prefix}group", auto_offset_reset="earliest",
            session_timeout_ms=1000, heartbeat_interval_ms=300, enable_auto_commit=False, max_poll_records=1,
        )  # fmt: skip
        async with consumer:
            message = await consumer.getone()
            assert message.value == expected
            await consumer.commit({TopicPartition(topic, 0): message.offset + 1})


async def test_a_topic_is_never_made_by_a_typing_error(broker: str, topic_prefix: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=broker)
    await admin.start()
    try:
        (answer,) = await admin.describe_topics([f"{topic_prefix}nowhere"])
        assert answer["error_code"] == UnknownTopicOrPartitionError.errno
        assert f"{topic_prefix}nowhere" not in await admin.list_topics()
    finally:
        await admin.close()


def test_status_tells_port_process_and_size(session_broker: LocalBroker) -> None:
    status = session_broker.status()
    assert status.running
    assert status.bootstrap == session_broker.bootstrap == running_bootstrap(status.folder.parent)
    assert status.rss_bytes > 50_000_000
    assert status.uptime_s > 0
    assert status.log.exists()


def test_status_of_a_broker_that_was_never_started(tmp_path: Path) -> None:
    never = LocalBroker(tmp_path)
    assert not never.status().running
    assert never.status().bootstrap is None
    assert running_bootstrap(tmp_path) is None
    assert not never.stop()
    with pytest.raises(BrokerUnavailable, match="start one"):
        _ = never.bootstrap


def test_second_start_attaches_and_leaves_it_running(session_broker: LocalBroker) -> None:
    with LocalBroker(session_broker.status().folder.parent) as second:
        assert second.status().attached
        assert second.status().pid == session_broker.status().pid
    assert session_broker.status().running


def test_second_start_on_another_port_is_refused(session_broker: LocalBroker) -> None:
    with pytest.raises(BrokerUnavailable, match=r"runs on port \d+, not 1234: stop it first"):
        LocalBroker(session_broker.status().folder.parent, port=1234).start()


async def test_restart_keeps_port_and_data_and_leaves_no_lock(own_broker: OwnBroker) -> None:
    own = own_broker()
    bootstrap = own.bootstrap
    await create(bootstrap, "kept")
    await produce(bootstrap, "kept", b"before")
    assert own.stop()
    status = own.status()
    assert not status.running
    assert not list(status.folder.rglob("*.lck"))
    assert own.start().bootstrap == bootstrap
    assert await consume(bootstrap, "kept", 1) == [b"before"]


@pytest.mark.slow
async def test_kill_loses_nothing_acknowledged(own_broker: OwnBroker) -> None:
    own = own_broker()
    await create(own.bootstrap, "kept")
    values = [b"%d" % number for number in range(200)]
    await produce(own.bootstrap, "kept", *values)
    own.kill()
    folder = own.status().folder
    assert running_bootstrap(folder.parent) is None
    # a stale entry whose process id another process has by now
    state = read_state(folder)
    assert state is not None
    assert state.process is not None
    assert not state.process.alive()
    own.start()
    assert await consume(own.bootstrap, "kept", len(values)) == values


def test_demanded_port_that_is_taken_is_named(own_broker: OwnBroker) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        own = own_broker(start=False, port=port)
        with pytest.raises(BrokerUnavailable, match=f"port {port} of 127.0.0.1 is taken"):
            own.start()


async def test_kept_port_that_is_taken_is_changed(own_broker: OwnBroker) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        own = own_broker(start=False)
        folder = own.status().folder
        folder.mkdir()
        taken = other.getsockname()[1]
        template = '{{"port": {0}, "controller_port": {0}, "process": null, "detached": false}}'
        (folder / "broker.json").write_text(template.format(taken))
        assert own.start().bootstrap != f"127.0.0.1:{taken}"
        state = read_state(folder)
        assert state is not None
        assert taken not in (state.port, state.controller_port)


def test_wrong_setting_of_kafka_is_shown_with_the_log(own_broker: OwnBroker) -> None:
    own = own_broker(start=False, properties={"num.io.threads": "many"})
    with pytest.raises(BrokerUnavailable, match=r"(?s)can't format.*num\.io\.threads"):
        own.start()
    assert not own.status().running


def test_folder_that_is_no_folder_is_a_fault_without_traceback(tmp_path: Path) -> None:
    (tmp_path / "broker").write_text("a file")
    with pytest.raises(BrokerUnavailable, match="can't use"):
        LocalBroker(tmp_path).start()


def test_state_survives_writing_and_damage(tmp_path: Path, session_broker: LocalBroker) -> None:
    state = read_state(session_broker.status().folder)
    assert state is not None
    write_state(tmp_path, state)
    again = read_state(tmp_path)
    assert again is not None
    assert again.port == state.port
    (tmp_path / "broker.json").write_text("{")
    assert read_state(tmp_path) is None
