"""Which Kafka a command speaks to: the configured one, else the local broker of this data folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from streams.errors import BrokerUnavailable

if TYPE_CHECKING:
    from polarstream.config import Config
    from streams.config import KafkaConfig, StreamConfig


def resolve_kafka(config: Config) -> KafkaConfig:
    """The Kafka settings with addresses in them.

    Raises:
        BrokerUnavailable: none is configured and the local broker does not run.
    """
    if config.kafka.bootstrap_servers:
        return config.kafka
    from polarstream.broker import running_bootstrap

    bootstrap = running_bootstrap(config.data_dir)
    if bootstrap is None:
        raise BrokerUnavailable(
            "no broker is configured and the local one is not running: polarstream broker start, "
            "or set kafka.bootstrap_servers"
        )
    return msgspec.structs.replace(config.kafka, bootstrap_servers=[bootstrap])


def resolve_topic(config: Config, name: str) -> str:
    """The topic that a name means: a stream's name, one of `topics.*` in the configuration, or a topic."""
    stream = find_stream(config, name)
    if stream is not None:
        return stream.topic
    ours = {
        "predictions": config.topics.predictions,
        "alerts": config.topics.alerts,
        "analytics": config.topics.analytics,
        "control": config.topics.control,
        "models": config.topics.models,
        "dead-letter": config.topics.dead_letter,
        "dead_letter": config.topics.dead_letter,
    }
    return ours.get(name, name)


def find_stream(config: Config, name: str) -> StreamConfig | None:
    """The configured stream of this name or topic."""
    return next((s for s in config.streams if name in (s.name, s.topic)), None)
