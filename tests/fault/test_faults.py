"""Faults of the outside world under load, with real processes: nothing lost, no score wrong."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, RecordsToDelete

from connectors.publisher import Publisher
from connectors.source import Message
from polarstream.broker import LocalBroker
from polarstream.delivery_proof import (
    FIELDS,
    ProofOptions,
    WorkerProcess,
    prove,
    read_all,
    reference_score,
    worker_toml,
)
from streams.config import KafkaConfig
from streams.kafka import TopicSpec, client_options, ensure_topics
from streams.layout import partition_counts
from tests.brokers import make_sasl_ssl, quick_broker

pytestmark = pytest.mark.slow


def reading(sensor: str, number: int, **changes: Any) -> Message:
    value = {"sensor_id": sensor, "ts": time.time() - 100 + number / 100}
    value |= dict.fromkeys(FIELDS, 20 + number * 7 % 13 / 10) | changes
    return Message(key=sensor.encode(), value=msgspec.json.encode(value))


async def until(condition: Callable[[], Any], timeout_s: float = 30) -> Any:
    """Poll an asynchronous condition until it is true."""
    async with asyncio.timeout(timeout_s):
        while not (found := await condition()):
            await asyncio.sleep(0.1)
    return found


async def count(kafka: KafkaConfig, topic: str) -> int:
    if topic not in await partition_counts(kafka):
        return 0
    return len([1 async for _ in read_all(kafka, topic)])


class RunningWorker:
    """A worker on topics of its own, stopped at the end."""

    def __init__(self, kafka: KafkaConfig, name: str, folder: Path, **options: Any) -> None:
        self.name = name
        self.log = folder / "worker.log"
        path = folder / "worker.toml"
        path.write_text(worker_toml(kafka, name, folder / "data", ProofOptions(**options), "w"))
        self.process = WorkerProcess(name, path, self.log)

    def __enter__(self) -> RunningWorker:
        self.process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()


async def test_a_broker_that_is_gone_for_20_s_costs_nothing(own_broker: Callable[..., LocalBroker]) -> None:
    broker = own_broker()

    async def cut(workers: list[WorkerProcess], options: ProofOptions) -> list[float]:
        await asyncio.sleep(4)
        await asyncio.to_thread(broker.stop)
        await asyncio.sleep(20)
        await asyncio.to_thread(broker.start)
        return []

    options = ProofOptions(readings=20_000, rate_hz=2_000)
    report = await prove(KafkaConfig(bootstrap_servers=[broker.bootstrap]), options, disturb=cut)
    assert report.published == options.readings
    assert (report.lost, report.wrong, report.out_of_order) == (0, 0, 0)


async def test_tls_and_sasl_all_the_way(tmp_path: Path) -> None:
    security = make_sasl_ssl(tmp_path / "certificates")
    with quick_broker(tmp_path / "broker", sasl_ssl=security) as broker:
        user, password = next(iter(security.users.items()))
        kafka = KafkaConfig(
            bootstrap_servers=[broker.bootstrap],
            security_protocol="SASL_SSL",
            sasl_mechanism="SCRAM-SHA-512",
            sasl_username=user,
            sasl_password=password,
            ssl_cafile=str(security.authority),
        )
        for delivery in ("at_least_once", "exactly_once"):
            options = ProofOptions(readings=4_000, rate_hz=4_000, kills=0, delivery=delivery)
            report = await prove(kafka, options)
            assert (report.published, report.lost, report.wrong, report.duplicated) == (4_000, 0, 0, 0)


async def test_poison_at_the_start_middle_and_end_of_a_chunk_goes_to_the_dead_letter_topic(
    kafka: KafkaConfig, topic_prefix: str, tmp_path: Path
) -> None:
    name = topic_prefix[:40]
    bad = {
        0: b"not json",
        50: b'{"sensor_id": "a", "ts": 1, "temperature": NaN, "humidity": 1, "pressure": 1}',
        51: b"",
        52: b'{"sensor_id":"a","ts":1,\n"temperature":1,"humidity":1}',
        99: b'{"sensor_id": "a", "ts": 1e99, "temperature": 1, "humidity": 1, "pressure": 1}',
    }
    await ensure_topics(kafka, {f"{name}-in": TopicSpec(1)})
    async with Publisher(kafka) as publisher:
        await publisher.publish(
            f"{name}-in", [Message(b"a", bad[i]) if i in bad else reading("a", i) for i in range(100)]
        )
    with RunningWorker(kafka, name, tmp_path, partitions=1):

        async def done() -> bool:
            return await count(kafka, f"{name}-predictions") >= 95

        await until(done)
        letters = [record async for _, record in read_all(kafka, f"{name}-dead_letter")]
    assert [letter.value for letter in letters] == [bad[i] for i in sorted(bad)]
    headers = [dict(letter.headers) for letter in letters]
    assert [int(header["ps-offset"]) for header in headers] == sorted(bad)
    assert [header["ps-error"].decode() for header in headers] == [
        "not_json",
        "not_finite",
        "empty_value",
        "missing_field",
        "future_timestamp",
    ]
    assert {header["ps-topic"].decode() for header in headers} == {f"{name}-in"}
    state: dict[str, Any] = {}
    expected = {
        record.offset: reference_score(state, msgspec.json.decode(record.value))
        async for _, record in read_all(kafka, f"{name}-in")
        if record.offset not in bad
    }
    scores = {
        int(prediction["id"].split("/")[2]): prediction["score"]
        async for _, record in read_all(kafka, f"{name}-predictions")
        for prediction in [msgspec.json.decode(record.value)]
    }
    assert scores == pytest.approx(expected, rel=1e-9, abs=1e-9)


async def test_a_topic_that_does_not_exist_is_made(
    kafka: KafkaConfig, topic_prefix: str, tmp_path: Path
) -> None:
    name = topic_prefix[:40]
    with RunningWorker(kafka, name, tmp_path, partitions=3):

        async def made() -> bool:
            return f"{name}-in" in await partition_counts(kafka)

        await until(made)
        async with Publisher(kafka) as publisher:
            await publisher.publish(f"{name}-in", [reading(f"s{i % 5}", i) for i in range(500)])

        async def done() -> bool:
            return await count(kafka, f"{name}-predictions") == 500

        await until(done)
    counts = await partition_counts(kafka)
    assert (counts[f"{name}-in"], counts[f"{name}-predictions"], counts[f"{name}-proof-state-changelog"]) == (
        3,
        3,
        3,
    )


async def test_a_partition_count_that_grows_under_load(kafka: KafkaConfig) -> None:
    async def grow(workers: list[WorkerProcess], options: ProofOptions) -> list[float]:
        admin = AIOKafkaAdminClient(**client_options(kafka))
        await admin.start()
        await asyncio.sleep(3)
        await admin.create_partitions({workers[0].name + "-in": NewPartitions(total_count=6)})
        await admin.close()
        return []

    options = ProofOptions(readings=60_000, rate_hz=2_000)
    report = await prove(kafka, options, disturb=grow)
    # a sensor that changes its partition warms up again there; the reference does so too
    assert (report.published, report.lost, report.wrong) == (60_000, 0, 0)


async def test_readings_that_retention_deleted_are_counted_and_the_rest_goes_on(
    kafka: KafkaConfig, topic_prefix: str, tmp_path: Path
) -> None:
    name = topic_prefix[:40]
    await ensure_topics(kafka, {f"{name}-in": TopicSpec(1)})

    async def publish(begin: int, end: int) -> None:
        async with Publisher(kafka) as publisher:
            await publisher.publish(f"{name}-in", [reading("a", i) for i in range(begin, end)])

    async def until_predicted(many: int) -> None:
        async def done() -> bool:
            return await count(kafka, f"{name}-predictions") == many

        await until(done)

    await publish(0, 100)
    with RunningWorker(kafka, name, tmp_path, partitions=1) as worker:
        await until_predicted(100)
        assert await asyncio.to_thread(worker.process.stop) == 0
    await publish(100, 300)
    admin = AIOKafkaAdminClient(**client_options(kafka))
    await admin.start()
    await admin.delete_records({TopicPartition(f"{name}-in", 0): RecordsToDelete(before_offset=250)})
    await admin.close()
    with RunningWorker(kafka, name, tmp_path, partitions=1) as worker:
        await until_predicted(150)
        assert "retention deleted offsets 100 to 249" in worker.log.read_text()


async def test_a_clock_that_jumps_back_loses_nothing(
    kafka: KafkaConfig, topic_prefix: str, tmp_path: Path
) -> None:
    name = topic_prefix[:40]
    await ensure_topics(kafka, {f"{name}-in": TopicSpec(1)})
    hour_ms = 3_600_000
    now_ms = int(time.time() * 1000)
    messages = [
        reading("a", i, ts=time.time() - (0 if i < 100 else 3600) + i / 100)._replace(
            timestamp_ms=now_ms - (0 if i < 100 else hour_ms)
        )
        for i in range(200)
    ]
    with RunningWorker(kafka, name, tmp_path, partitions=1):
        async with Publisher(kafka) as publisher:
            await publisher.publish(f"{name}-in", messages[:100])
            await publisher.flush()
            await publisher.publish(f"{name}-in", messages[100:])

        async def done() -> bool:
            return await count(kafka, f"{name}-predictions") == 200

        await until(done)
    offsets = [
        int(msgspec.json.decode(record.value)["id"].split("/")[2])
        async for _, record in read_all(kafka, f"{name}-predictions")
    ]
    assert offsets == list(range(200))


async def test_a_full_disk_under_the_state_folder_stops_no_scoring(
    kafka: KafkaConfig, topic_prefix: str, tmp_path: Path
) -> None:
    name = topic_prefix[:40]
    folder = tmp_path / "data"
    folder.mkdir()
    # a file size limit of 0 makes every write to a file fail, as a full disk does
    limited = [
        sys.executable,
        "-c",
        "import os, resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); os.execv(sys.argv[1], sys.argv[1:])",
        sys.executable,
        "-B",
        "-m",
        "polarstream",
        "worker",
        "--config",
        str(tmp_path / "worker.toml"),
    ]
    options = ProofOptions(partitions=1)
    (tmp_path / "worker.toml").write_text(worker_toml(kafka, name, folder, options, "w"))
    await ensure_topics(kafka, {f"{name}-in": TopicSpec(1)})
    process = subprocess.Popen(limited, stderr=subprocess.PIPE, start_new_session=True)
    try:
        async with Publisher(kafka) as publisher:
            await publisher.publish(f"{name}-in", [reading("a", i) for i in range(300)])

        async def done() -> bool:
            assert process.poll() is None, process.stderr and process.stderr.read().decode()
            return await count(kafka, f"{name}-predictions") == 300

        await until(done)
        process.send_signal(signal.SIGTERM)
        _, errors = await asyncio.to_thread(process.communicate, timeout=20)
        assert process.returncode == 0
        assert b"File too large" in errors
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.stderr:
            process.stderr.close()


def test_the_configuration_of_the_proof_is_valid(tmp_path: Path) -> None:
    from polarstream.config import load

    path = tmp_path / "worker.toml"
    path.write_text(worker_toml(KafkaConfig(bootstrap_servers=["a:1"]), "x", tmp_path, ProofOptions(), "w"))
    config = load(path, {})
    assert json.loads(json.dumps(config.describe()))["app_id"] == "x"
