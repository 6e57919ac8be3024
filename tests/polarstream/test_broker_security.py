"""TLS and passwords against a real broker with a SASL_SSL listener."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaConnectionError

from polarstream.broker import LocalBroker
from streams.config import KafkaConfig
from streams.kafka import client_options
from tests import brokers

MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    """A broker with one SASL_SSL listener and two users."""
    folder = tmp_path_factory.mktemp("secure")
    files = brokers.make_sasl_ssl(folder / "certificates")
    with brokers.quick_broker(folder, sasl_ssl=files) as broker:
        yield broker


@pytest.fixture
def settings(secure: LocalBroker) -> Callable[..., KafkaConfig]:
    """Our own settings for that broker, each of which a test may change."""

    def make(**changes: object) -> KafkaConfig:
        certificates = secure.status().folder.parent / "certificates"
        options: dict[str, object] = {
            "bootstrap_servers": [secure.bootstrap],
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "PLAIN",
            "sasl_username": "alice",
            "sasl_password": brokers.USERS["alice"],
            "ssl_cafile": str(certificates / "authority.pem"),
        }
        return KafkaConfig(**{**options, **changes})  # type: ignore[arg-type]

    return make


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("user", brokers.USERS)
async def test_right_password_writes_and_reads(
    settings: Callable[..., KafkaConfig], mechanism: str, user: str
) -> None:
    kafka = settings(sasl_mechanism=mechanism, sasl_username=user, sasl_password=brokers.USERS[user])
    options = client_options(kafka)
    topic = f"{mechanism}-{user}"
    admin = AIOKafkaAdminClient(**options)
    await admin.start()
    await admin.create_topics([NewTopic(topic, 1, 1)])
    await admin.close()
    async with AIOKafkaProducer(**options, transactional_id=topic) as producer, producer.transaction():
        await producer.send_and_wait(topic, b"secret", partition=0)
    async with AIOKafkaConsumer(
        **options, auto_offset_reset="earliest", isolation_level="read_committed"
    ) as consumer:
        consumer.assign([TopicPartition(topic, 0)])
        assert (await consumer.getone()).value == b"secret"


@pytest.mark.parametrize("mechanism", MECHANISMS)
async def test_wrong_password_is_refused(settings: Callable[..., KafkaConfig], mechanism: str) -> None:
    kafka = settings(sasl_mechanism=mechanism, sasl_password="guessed")
    producer = AIOKafkaProducer(**client_options(kafka))
    with pytest.raises(KafkaConnectionError):
        await producer.start()
    await producer.stop()


async def test_unknown_authority_is_refused(settings: Callable[..., KafkaConfig], tmp_path: Path) -> None:
    strangers = brokers.make_sasl_ssl(tmp_path)
    producer = AIOKafkaProducer(**client_options(settings(ssl_cafile=str(strangers.authority))))
    with pytest.raises(KafkaConnectionError):
        await producer.start()
    await producer.stop()


def test_listener_speaks_tls_alone(secure: LocalBroker) -> None:
    context = ssl.create_default_context(
        cafile=str(secure.status().folder.parent / "certificates/authority.pem")
    )
    host, port = secure.bootstrap.split(":")
    with (
        socket.create_connection((host, int(port)), timeout=5) as raw,
        context.wrap_socket(raw, server_hostname=host) as wrapped,
    ):
        assert wrapped.version() in ("TLSv1.2", "TLSv1.3")


def test_passwords_are_readable_by_their_owner_alone(secure: LocalBroker) -> None:
    properties = secure.status().folder / "server.properties"
    assert properties.stat().st_mode & 0o077 == 0
    assert "guessed" not in repr(brokers.make_sasl_ssl(properties.parent / "other", {"a": "guessed"}))
