"""What a Kafka client of ours is given: addresses, TLS, SASL; and the making of topics."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from streams.errors import BrokerUnavailable, ConfigError, Fault, Stop

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streams.config import KafkaConfig


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic as it should be made: `configs` are Kafka's own (`cleanup.policy`, `retention.ms` ...)."""

    partitions: int
    replication: int = 1
    configs: Mapping[str, str] = field(default_factory=dict)


def ssl_context(kafka: KafkaConfig) -> ssl.SSLContext | None:
    """The TLS context of these settings, None where the protocol has no TLS.

    Raises:
        ConfigError: a certificate or key file cannot be read or does not fit.
    """
    if kafka.security_protocol not in ("SSL", "SASL_SSL"):
        return None
    try:
        context = ssl.create_default_context(cafile=kafka.ssl_cafile)
    except (OSError, ssl.SSLError) as error:
        raise _tls_fault("ssl_cafile", kafka.ssl_cafile, error) from error
    if not kafka.ssl_check_hostname:
        context.check_hostname = False  # the chain of signatures is still verified
    if kafka.ssl_certfile:
        try:
            context.load_cert_chain(kafka.ssl_certfile, kafka.ssl_keyfile)
        except (OSError, ssl.SSLError) as error:
            raise _tls_fault("ssl_certfile", kafka.ssl_certfile, error) from error
    return context


def client_options(kafka: KafkaConfig) -> dict[str, Any]:
    """Keyword arguments for any aiokafka client (consumer, producer, admin) with these settings.

    Raises:
        ConfigError: no broker is named, or a TLS file cannot be used.
    """
    if not kafka.bootstrap_servers:
        raise ConfigError(
            [Fault("kafka.bootstrap_servers", "is empty: name a broker, or start the local one first")]
        )
    options: dict[str, Any] = {
        "bootstrap_servers": list(kafka.bootstrap_servers),
        "security_protocol": kafka.security_protocol,
        "request_timeout_ms": kafka.request_timeout_ms,
    }
    context = ssl_context(kafka)
    if context is not None:
        options["ssl_context"] = context
    if kafka.security_protocol.startswith("SASL_"):
        options["sasl_mechanism"] = kafka.sasl_mechanism or "PLAIN"
        options["sasl_plain_username"] = kafka.sasl_username
        options["sasl_plain_password"] = kafka.sasl_password
    return options


async def ensure_topics(kafka: KafkaConfig, topics: Mapping[str, TopicSpec]) -> list[str]:
    """Make the topics that do not exist yet; those that do are left exactly as they are.

    Idempotent and safe beside other processes that do the same. Returns once every new topic is in the
    broker's metadata, so that a client that starts now sees it.

    Returns:
        The names that this call made.

    Raises:
        BrokerUnavailable: no broker answered.
        Stop: the broker refused a topic (rights, replication factor, invalid setting).
    """
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic
    from aiokafka.errors import KafkaError

    admin = AIOKafkaAdminClient(**client_options(kafka))
    try:
        await admin.start()
        present = set(await admin.list_topics())
        missing = {name: spec for name, spec in topics.items() if name not in present}
        if not missing:
            return []
        response = await admin.create_topics(
            [
                NewTopic(
                    name=name,
                    num_partitions=spec.partitions,
                    replication_factor=spec.replication,
                    topic_configs=dict(spec.configs),
                )
                for name, spec in missing.items()
            ],
            timeout_ms=kafka.request_timeout_ms,
        )
        made = _check_created(response)
        await _wait_for_topics(admin, set(missing), kafka.request_timeout_ms / 1000)
    except (KafkaError, OSError, TimeoutError) as error:
        servers = ", ".join(kafka.bootstrap_servers)
        raise BrokerUnavailable(
            f"no answer from Kafka at {servers} ({_describe(error)}): check the address, that the broker "
            f"runs, and {_credentials(kafka)}"
        ) from error
    finally:
        await admin.close()
    return made


def _check_created(response: Any) -> list[str]:
    from aiokafka.errors import TopicAlreadyExistsError, for_code

    made: list[str] = []
    refused: list[str] = []
    for topic, code, *rest in response.topic_errors:
        if code == 0:
            made.append(topic)
        elif code != TopicAlreadyExistsError.errno:  # another process was quicker: as good
            message = rest[0] if rest and rest[0] else for_code(code).__name__
            refused.append(f"topic '{topic}' was refused by the broker: {message}")
    if refused:
        raise Stop("; ".join(refused) + ": mend the topic's settings or make the topic by hand")
    return made


async def _wait_for_topics(admin: Any, names: set[str], timeout_s: float) -> None:
    delay_s = 0.02
    async with asyncio.timeout(timeout_s):
        while not names <= set(await admin.list_topics()):
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, 0.5)


def _tls_fault(setting: str, path: str | None, error: Exception) -> ConfigError:
    return ConfigError(
        [Fault(f"kafka.{setting}", f"'{path}' cannot be used ({_describe(error)}): name a readable PEM file")]
    )


def _credentials(kafka: KafkaConfig) -> str:
    """The settings that a broker may have closed the connection for."""
    if kafka.security_protocol == "PLAINTEXT":
        return "that it takes PLAINTEXT (kafka.security_protocol)"
    return "kafka.security_protocol, its certificates, user and password"


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
