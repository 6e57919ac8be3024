"""What Kafka clients are given, and the making of topics on a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient

from polarstream.broker import LocalBroker
from streams.config import KafkaConfig
from streams.errors import BrokerUnavailable, ConfigError, Stop
from streams.kafka import TopicSpec, client_options, ensure_topics
from tests import brokers


def test_plain_options() -> None:
    assert client_options(KafkaConfig(bootstrap_servers=["a:1", "b:2"], request_timeout_ms=5000)) == {
        "bootstrap_servers": ["a:1", "b:2"],
        "security_protocol": "PLAINTEXT",
        "request_timeout_ms": 5000,
    }


async def test_every_option_is_one_of_the_client() -> None:
    kafka = KafkaConfig(
        bootstrap_servers=["a:1"],
        security_protocol="SASL_SSL",
        sasl_username="u",
        sasl_password="p",
        ssl_check_hostname=False,
    )
    options = client_options(kafka)
    AIOKafkaClient(**options)
    assert options["sasl_mechanism"] == "PLAIN"
    assert options["ssl_context"].check_hostname is False
    assert options["ssl_context"].verify_mode.name == "CERT_REQUIRED"


def test_without_servers_there_are_no_options() -> None:
    with pytest.raises(ConfigError, match="bootstrap_servers"):
        client_options(KafkaConfig())


@pytest.mark.parametrize("setting", ["ssl_cafile", "ssl_certfile"])
def test_unusable_file_is_named(tmp_path: Path, setting: str) -> None:
    path = tmp_path / "x.pem"
    for _ in range(2):
        kafka = KafkaConfig(bootstrap_servers=["a:1"], security_protocol="SSL", **{setting: str(path)})
        with pytest.raises(ConfigError, match=setting):
            client_options(kafka)
        path.write_text("no PEM")


async def partitions(kafka: KafkaConfig, topic: str) -> int:
    admin = AIOKafkaAdminClient(**client_options(kafka))
    await admin.start()
    try:
        (found,) = await admin.describe_topics([topic])
        return len(found["partitions"])
    finally:
        await admin.close()


async def test_topics_are_made_once_and_never_grown(kafka: KafkaConfig, topic_prefix: str) -> None:
    a, b = topic_prefix + "a", topic_prefix + "b"
    assert await ensure_topics(kafka, {a: TopicSpec(3, configs={"retention.ms": "1000"})}) == [a]
    assert await ensure_topics(kafka, {a: TopicSpec(5), b: TopicSpec(1)}) == [b]
    assert await ensure_topics(kafka, {a: TopicSpec(5), b: TopicSpec(1)}) == []
    assert await partitions(kafka, a) == 3


async def test_many_may_make_the_same_topic(kafka: KafkaConfig, topic_prefix: str) -> None:
    specs = {topic_prefix + "x": TopicSpec(2)}
    made = await asyncio.gather(*(ensure_topics(kafka, specs) for _ in range(5)))
    assert [name for names in made for name in names] == [topic_prefix + "x"]


async def test_refused_topic_says_why(kafka: KafkaConfig, topic_prefix: str) -> None:
    with pytest.raises(Stop, match="replication"):
        await ensure_topics(kafka, {topic_prefix + "x": TopicSpec(1, replication=3)})


async def test_nobody_there_is_to_try_again_later(unused_tcp_port: int) -> None:
    kafka = KafkaConfig(bootstrap_servers=[f"127.0.0.1:{unused_tcp_port}"])
    with pytest.raises(BrokerUnavailable, match="check the address"):
        await ensure_topics(kafka, {"x": TopicSpec(1)})


async def test_tls_and_passwords_on_a_real_broker(
    own_broker: Callable[..., LocalBroker], tmp_path: Path
) -> None:
    secure = brokers.make_sasl_ssl(tmp_path / "certificates")
    broker = own_broker(sasl_ssl=secure)
    user, password = next(iter(secure.users.items()))
    good = KafkaConfig(
        bootstrap_servers=[broker.bootstrap],
        security_protocol="SASL_SSL",
        sasl_username=user,
        sasl_password=password,
        ssl_cafile=str(secure.authority),
        request_timeout_ms=10_000,
    )
    for mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"):
        kafka = msgspec.structs.replace(good, sasl_mechanism=mechanism)
        assert await ensure_topics(kafka, {mechanism: TopicSpec(2)}) == [mechanism]
        assert await partitions(kafka, mechanism) == 2
    for bad in ({"sasl_password": "wrong"}, {"ssl_cafile": None}, {"security_protocol": "SSL"}):
        with pytest.raises(BrokerUnavailable, match="password"):
            await ensure_topics(msgspec.structs.replace(good, **bad), {"x": TopicSpec(1)})
