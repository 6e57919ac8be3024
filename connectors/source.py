"""What a source is: an endless series of batches of messages for one topic, and the registry of them.

A source knows its part of the outside world and nothing of Kafka; `feed` carries its batches to a
publisher. One is added with a config struct (`type` is its tag), a class with `batches`, and one line in
`SOURCES`, or from another package through the entry-point group `polarstream.sources`.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import msgspec

from streams.errors import RetryLater, UsageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from connectors.publisher import Publisher

_log = logging.getLogger(__name__)


class Message(NamedTuple):
    """One message for a topic."""

    key: bytes | None
    value: bytes
    #: Kafka timestamp in ms since the epoch; None: when it is sent.
    timestamp_ms: int | None = None
    headers: Sequence[tuple[str, bytes]] = ()


class Source(Protocol):
    """The outside world, as batches of messages."""

    def batches(self) -> AsyncIterator[list[Message]]:
        """Batches in order, paced by the source itself, until it has no more or is cancelled."""
        ...


#: type tag -> (module, config struct, class); imported when asked for
SOURCES: Final[dict[str, tuple[str, str, str]]] = {
    "camera": ("connectors.camera", "CameraConfig", "CameraSource"),
    "host": ("connectors.telemetry", "TelemetryConfig", "TelemetrySource"),
    "plant": ("connectors.plant", "PlantConfig", "PlantSource"),
}

#: Those that send camera frames, no readings.
FRAME_SOURCES: Final = frozenset({"camera"})


def build_source(config: Mapping[str, Any]) -> Source:
    """The source that `config["type"]` names, with the rest of `config` as its settings.

    Raises:
        UsageError: there is no such source, or a setting does not fit.
    """
    settings = dict(config)
    kind = settings.pop("type", None)
    try:
        if kind in SOURCES:
            module_name, struct_name, class_name = SOURCES[kind]
            module = importlib.import_module(module_name)
            struct, build = getattr(module, struct_name), getattr(module, class_name)
            source: Source = build(msgspec.convert(settings, struct))
            return source
        return _external(kind)(settings)
    except msgspec.ValidationError as error:
        raise UsageError(f"source '{kind}': {error}") from error


def _external(kind: object) -> Callable[[dict[str, Any]], Source]:
    from importlib.metadata import entry_points

    for entry in entry_points(group="polarstream.sources"):
        if entry.name == kind:
            found: Callable[[dict[str, Any]], Source] = entry.load()
            return found
    raise UsageError(f"there is no source '{kind}': choose one of {', '.join(sorted(SOURCES))}")


async def feed(source: Source, publisher: Publisher, topic: str) -> None:
    """Publish all batches of `source`; a broker that is away costs its messages, not the feed.

    What is lost is logged once per outage and counted in `publisher.failed`; the sequence numbers of the
    publisher make the gap visible downstream.
    """
    away = False
    async for batch in source.batches():
        try:
            await publisher.publish(topic, batch)
        except RetryLater as error:
            if not away:
                _log.warning("readings for '%s' are being lost: %s", topic, error)
            away = True
        else:
            if away:
                _log.warning("readings for '%s' flow again; %d were lost so far", topic, publisher.failed)
            away = False
