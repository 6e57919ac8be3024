"""The shapes that records have between the parts: raw chunks, columns of readings, refused messages, alerts.

A chunk is many messages of one partition as Kafka holds them; a `ReadingBatch` is the same as columns. Both
know the whole range of offsets that they stand for, so that a checkpoint acknowledges offsets that hold no
message (compacted away, transaction markers) too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

#: Content type of a message that holds many readings (or predictions) as an Arrow IPC stream.
ARROW_CONTENT_TYPE = b"application/vnd.apache.arrow.stream"
ARROW_HEADERS: tuple[tuple[str, bytes], ...] = (("content-type", ARROW_CONTENT_TYPE),)

#: How every Arrow IPC stream begins (since Arrow 0.15), and how no JSON text can.
_ARROW_MARK = b"\xff\xff\xff\xff"


def is_arrow(value: bytes, headers: Sequence[tuple[str, bytes]] = ()) -> bool:
    """Tell an Arrow message from a JSON one, by its first bytes or its content type.

    The first bytes suffice; the header matters where an Arrow message is damaged, so that it is refused as
    such.
    """
    return value[:4] == _ARROW_MARK or ARROW_HEADERS[0] in headers


@dataclass(slots=True)
class Chunk:
    """Many raw messages of one partition, in log order.

    `offsets`, `timestamps_ms`, `keys` and `values` are of one length; so is `headers`, unless no message of
    the chunk has any: then it is empty. `first_offset` and `last_offset` span the whole range that was read,
    offsets without a message included.
    """

    topic: str
    partition: int
    first_offset: int
    last_offset: int
    offsets: Sequence[int]
    timestamps_ms: list[int]
    keys: list[bytes | None]
    values: list[bytes | None]
    headers: list[Sequence[tuple[str, bytes]]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.values)


@dataclass(slots=True)
class Rejected:
    """One message that can't be used, as it came, with the reason (a metric label) and what to do."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]
    reason: str
    detail: str


class ReadingBatch:
    """Columns of n readings of one partition, in log order.

    Sensor ids come as `sensor_ids`, one string a reading, or as `ids`, a dictionary (distinct ids [d], codes
    int32 [n]), or both. Arrow chunks come with `ids`: at millions of readings a second a Python string for
    each costs more than all the rest, so a consumer that can should take `id_codes()`, which every batch
    has; `sensor_ids` is then built only when it is asked for.

    Attributes:
        offsets: int64 [n], offset of the message that each reading came in.
        index: int32 [n], position of each reading in its Arrow message; -1 for a reading that is a JSON
            message of its own. None: all are JSON.
        ts: float64 [n], seconds since the epoch, the sensor's time.
        published: float64 [n], seconds since the epoch, Kafka's timestamp of the message.
        values: float64 [n, len(fields)]; NaN where an optional field is absent.
        rejected: the messages that held no usable reading, in log order.
        ids: the dictionary form of the ids, None until somebody asked `id_codes()` of a JSON batch.
    """

    __slots__ = (
        "_sensor_ids",
        "fields",
        "first_offset",
        "ids",
        "index",
        "last_offset",
        "offsets",
        "partition",
        "published",
        "rejected",
        "stream",
        "topic",
        "ts",
        "values",
    )

    def __init__(
        self,
        stream: str,
        topic: str,
        partition: int,
        first_offset: int,
        last_offset: int,
        offsets: NDArray[np.int64],
        index: NDArray[np.int32] | None,
        sensor_ids: list[str] | None,
        ts: NDArray[np.float64],
        published: NDArray[np.float64],
        fields: tuple[str, ...],
        values: NDArray[np.float64],
        rejected: list[Rejected] | None = None,
        ids: tuple[list[str], NDArray[np.int32]] | None = None,
    ) -> None:
        self.stream = stream
        self.topic = topic
        self.partition = partition
        self.first_offset = first_offset
        self.last_offset = last_offset
        self.offsets = offsets
        self.index = index
        self._sensor_ids = sensor_ids
        self.ts = ts
        self.published = published
        self.fields = fields
        self.values = values
        self.rejected = [] if rejected is None else rejected
        self.ids = ids

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def sensor_ids(self) -> list[str]:
        """The sensor of each reading, [n]."""
        if self._sensor_ids is None:
            distinct, codes = self.ids if self.ids is not None else ([], np.empty(0, np.int32))
            self._sensor_ids = [distinct[code] for code in codes.tolist()]
        return self._sensor_ids

    def set_ids(self, distinct: list[str], codes: NDArray[np.int32]) -> None:
        """Give the sensor ids as a dictionary, in place of what was there."""
        self.ids = (distinct, codes)
        self._sensor_ids = None

    def id_codes(self) -> tuple[list[str], NDArray[np.int32]]:
        """The sensor ids as (distinct ids [d], codes int32 [n]); every distinct id has a reading."""
        if self.ids is None:
            numbers: dict[str, int] = {}
            ids = self.sensor_ids
            codes = np.fromiter((numbers.setdefault(i, len(numbers)) for i in ids), np.int32, len(ids))
            self.ids = (list(numbers), codes)
        return self.ids


class Alert(msgspec.Struct, kw_only=True, frozen=True):
    """One change of an alert, as it is written to the alerts topic.

    `id` and `key` stay the same over an alert's life. `ts` is the event time of this change and
    `started_at` that of the opening, both in seconds since the epoch; `count` is the number of anomalous
    readings so far. `scope` says what it is about: a sensor, a group of sensors of one site, a site that is
    silent (`link`), everything that is silent (`broker`), or a budget of alerts. A sink pages nobody for an
    alert that is `silenced` or `acknowledged`.
    """

    id: str
    key: str
    rule: str
    severity: Literal["info", "warning", "critical"]
    state: Literal["firing", "resolved"]
    source: str
    field: str
    value: float | None
    score: float
    threshold: float
    started_at: float
    ts: float
    count: int
    explanation: str
    scope: Literal["sensor", "group", "link", "broker", "budget"] = "sensor"
    #: The limit in the field's unit that the value is beyond, if that is what is wrong.
    limit: float | None = None
    #: Names the group of alerts that began together at one site.
    group_id: str | None = None
    #: The sensors, for an alert about several.
    members: list[str] = []
    #: Alerts that the budget has held back since its last one.
    suppressed: int = 0
    silenced: bool = False
    #: `silence/<id>` or `maintenance/<id>`: the control record that silences it.
    silenced_by: str | None = None
    acknowledged: bool = False
