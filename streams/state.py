"""Columnar state of the sensors of one partition, kept in shards.

The state of a detector is a structured array with one row a sensor. It is written to a changelog topic by
shards of `SHARD_ROWS` rows, so that one message carries the state of many sensors and a checkpoint writes
only the shards in which something changed.

Each shard holds the last offset that was applied to its rows. After a crash the log is read again from the
last committed offset, which may be older than what the shards have seen: `SensorState.fresh` says which
readings are new to their shard. So no reading is applied twice, even where a crash fell between two shards.

Pure: no Kafka, no loop, no clock.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

#: Rows in a shard: at 100 bytes a row some 25 KB, small beside Kafka's message limit and large beside the
#: cost of a message. Detectors with much state have fewer, so that a shard stays below `MAX_SHARD_BYTES`.
SHARD_ROWS = 256
MAX_SHARD_BYTES = 256 << 10
SHARD_PREFIX = b"rows/"
BLOB_PREFIX = b"blob/"
#: Bytes of one part of a blob, well below Kafka's default message limit of 1 MiB.
BLOB_PART_BYTES = 512 << 10

_LENGTH = struct.Struct("<I")


class _Header(msgspec.Struct, array_like=True):
    """What stands before the bytes of a shard or of a blob's part."""

    fingerprint: str
    last_offset: int
    ids: list[str] = []
    part: int = 0
    parts: int = 1


_encode_header = msgspec.msgpack.Encoder().encode
_decode_header = msgspec.msgpack.Decoder(_Header).decode


def last_offset(data: bytes) -> int:
    """Read from a shard or a blob's part up to which offset of the input it has seen."""
    return _unpack(data)[0].last_offset


def _pack(header: _Header, *bodies: bytes | memoryview) -> bytes:
    head = _encode_header(header)
    return b"".join((_LENGTH.pack(len(head)), head, *bodies))


def _unpack(data: bytes) -> tuple[_Header, memoryview]:
    (length,) = _LENGTH.unpack_from(data)
    view = memoryview(data)
    return _decode_header(view[4 : 4 + length]), view[4 + length :]


class SensorState:
    """The rows of one partition's sensors, in parts that share the row numbers.

    Args:
        name: of the agent that it belongs to; agents of one stream share a changelog.
        fingerprint: changes when kept rows no longer fit the configuration; rows with another one are
            dropped at `restore`.
        parts: for each part (the detector's state, the transforms', the alerts') a function that makes n
            rows of a sensor never seen: structured array [n].
    """

    def __init__(
        self, name: str, fingerprint: str, parts: Mapping[str, Callable[[int], NDArray[np.void]]]
    ) -> None:
        self._prefix = SHARD_PREFIX + name.encode() + b"/"
        self.fingerprint = fingerprint
        self._new_rows = dict(parts)
        self.rows: dict[str, NDArray[np.void]] = {name: new(0) for name, new in self._new_rows.items()}
        self.index: dict[str, int] = {}
        row_bytes = sum(rows.dtype.itemsize for rows in self.rows.values())
        self.shard_rows = max(1, min(SHARD_ROWS, MAX_SHARD_BYTES // max(row_bytes, 1)))
        #: Sensor ids by row, as text and as the bytes of a Kafka key.
        self.ids: list[str] = []
        self.keys: list[bytes] = []
        #: Shards that were restored with another fingerprint and therefore dropped.
        self.dropped = 0
        self._capacity = 0
        self._free: list[int] = []
        self._shard_offset: NDArray[np.int64] = np.empty(0, np.int64)
        self._dirty: NDArray[np.bool_] = np.empty(0, np.bool_)
        # offsets beyond this one are new to every shard
        self._replay_until = -1

    def __len__(self) -> int:
        return len(self.index)

    @property
    def applied_offset(self) -> int:
        """The highest offset that any shard has seen; -1 if none."""
        return int(self._shard_offset.max(initial=-1))

    def locate(self, sensor_ids: list[str]) -> NDArray[np.int32]:
        """Find the rows of sensors, making rows for new ones: int32 [n]."""
        index = self.index
        try:
            return np.fromiter(map(index.__getitem__, sensor_ids), np.int32, len(sensor_ids))
        except KeyError:
            self._add([sensor for sensor in dict.fromkeys(sensor_ids) if sensor not in index])
            return np.fromiter(map(index.__getitem__, sensor_ids), np.int32, len(sensor_ids))

    def fresh(self, rows: NDArray[np.int32], offsets: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Tell which readings their shard has not seen yet: bool [n], or None if all are new.

        Only the first chunks after a recovery pay for the question.
        """
        if not len(offsets) or int(offsets[0]) > self._replay_until:
            return None
        mask: NDArray[np.bool_] = offsets > self._shard_offset[rows // self.shard_rows]
        return None if mask.all() else mask

    def touch(self, rows: NDArray[np.int32], last_offset: int) -> None:
        """Note that the rows have changed and that all up to an offset is applied to them."""
        shard_rows = self.shard_rows
        # for a few rows plain Python is ten times as fast as np.unique
        shards = [*{row // shard_rows for row in rows.tolist()}] if len(rows) < 64 else rows // shard_rows
        self._dirty[shards] = True
        self._shard_offset[shards] = last_offset

    def mark(self, rows: NDArray[np.signedinteger]) -> None:
        """Note that the rows have changed by something else than readings."""
        self._dirty[rows // self.shard_rows] = True

    def snapshot(self) -> list[tuple[bytes, bytes]]:
        """Take the changed shards as (key, value) for the changelog; they count as unchanged afterwards."""
        shards = np.flatnonzero(self._dirty)
        self._dirty[:] = False
        return [(self._prefix + b"%d" % shard, self._dump(int(shard))) for shard in shards]

    def dump(self) -> list[tuple[bytes, bytes]]:
        """Return all shards as (key, value), for a state that is kept inside something else."""
        shards = range(-(-len(self) // self.shard_rows))
        return [(self._prefix + b"%d" % shard, self._dump(shard)) for shard in shards]

    def restore(self, changelog: Mapping[bytes, bytes]) -> None:
        """Load the shards among a changelog's contents; call it on an empty state."""
        loaded: dict[int, tuple[_Header, memoryview]] = {}
        for key, data in changelog.items():
            if not key.startswith(self._prefix):
                continue
            header, body = _unpack(data)
            if header.fingerprint != self.fingerprint:
                self.dropped += 1
                continue
            loaded[header.part] = (header, body)
        if not loaded:
            return
        self._grow((max(loaded) + 1) * self.shard_rows)
        self.ids = [""] * self._capacity
        self.keys = [b""] * self._capacity
        used = np.zeros(self._capacity, np.bool_)
        for shard, (header, body) in loaded.items():
            start, count = shard * self.shard_rows, len(header.ids)
            at = 0
            for rows in self.rows.values():
                size = rows.dtype.itemsize * count
                rows[start : start + count] = np.frombuffer(body[at : at + size], rows.dtype)
                at += size
            for row, sensor in enumerate(header.ids, start):
                self.index[sensor] = row
                self.ids[row] = sensor
                self.keys[row] = sensor.encode()
            used[start : start + count] = True
            self._shard_offset[shard] = header.last_offset
        self._free = np.flatnonzero(~used)[::-1].tolist()
        self._replay_until = self.applied_offset

    def _add(self, sensors: list[str]) -> None:
        missing = len(sensors) - len(self._free)
        if missing > 0:
            self._grow(max(self._capacity * 2, self._capacity + missing, self.shard_rows))
        for sensor in sensors:
            row = self._free.pop()
            self.index[sensor] = row
            self.ids[row] = sensor
            self.keys[row] = sensor.encode()

    def _grow(self, capacity: int) -> None:
        capacity = -(-capacity // self.shard_rows) * self.shard_rows
        more = capacity - self._capacity
        for name, new in self._new_rows.items():
            self.rows[name] = np.concatenate((self.rows[name], new(more)))
        shards = more // self.shard_rows
        self._shard_offset = np.concatenate((self._shard_offset, np.full(shards, -1, np.int64)))
        self._dirty = np.concatenate((self._dirty, np.zeros(shards, np.bool_)))
        self.ids += [""] * more
        self.keys += [b""] * more
        # lowest rows first, so that shards fill one after the other
        self._free = list(range(capacity - 1, self._capacity - 1, -1)) + self._free
        self._capacity = capacity

    def _dump(self, shard: int) -> bytes:
        start = shard * self.shard_rows
        ids = self.ids[start : start + self.shard_rows]
        count = ids.index("") if "" in ids else self.shard_rows
        header = _Header(self.fingerprint, int(self._shard_offset[shard]), ids[:count], part=shard)
        return _pack(header, *(rows[start : start + count].tobytes() for rows in self.rows.values()))


class BlobState:
    """State of another shape (windows, sequence numbers): bytes that change as a whole.

    A blob may need several messages, and a crash may fall between them. So two slots are written in turn,
    and the newest that is complete counts; the one before is never older than the committed offset.
    """

    def __init__(self, name: str, fingerprint: str) -> None:
        self.name = name.encode()
        self.fingerprint = fingerprint
        self._slot = 0

    def dump(self, data: bytes, last_offset: int) -> list[tuple[bytes, bytes]]:
        """Cut the bytes into (key, value) for the changelog."""
        self._slot ^= 1
        starts = range(0, max(len(data), 1), BLOB_PART_BYTES)
        view = memoryview(data)
        return [
            (
                BLOB_PREFIX + b"%s/%d/%d" % (self.name, self._slot, part),
                _pack(
                    _Header(self.fingerprint, last_offset, part=part, parts=len(starts)),
                    view[start : start + BLOB_PART_BYTES],
                ),
            )
            for part, start in enumerate(starts)
        ]

    def load(self, changelog: Mapping[bytes, bytes]) -> tuple[bytes, int] | None:
        """Find the newest complete blob: (bytes, last offset), or None where there is none that fits."""
        best: tuple[bytes, int] | None = None
        for slot in (0, 1):
            prefix = BLOB_PREFIX + b"%s/%d/" % (self.name, slot)
            first = changelog.get(prefix + b"0")
            if first is None:
                continue
            head, body = _unpack(first)
            parts = [bytes(body)]
            for part in range(1, head.parts):
                other = changelog.get(prefix + b"%d" % part)
                if other is None:
                    break
                header, body = _unpack(other)
                if header.last_offset != head.last_offset or header.parts != head.parts:
                    break
                parts.append(bytes(body))
            complete = len(parts) == head.parts and head.fingerprint == self.fingerprint
            if complete and (best is None or head.last_offset > best[1]):
                best = (b"".join(parts), head.last_offset)
                self._slot = slot
        return best
