"""The readings that every contestant gets, and the scores that are right for them.

One workload is a fixed stream of readings: sensors drawn at random, three fields each, faults here and
there. A shorter workload is always a prefix of a longer one, so that slow contestants may get fewer readings
and still be held against the same reference.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt
from aiokafka.partitioner import murmur2

from anomaly.registry import build_detector

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

FIELDS = ("temperature", "humidity", "pressure")
STREAM = "bench"
ALPHA, WARMUP, MIN_SD, THRESHOLD = 0.02, 30, 1e-9, 6.0

_BLOCK = 100_000
_EPOCH_S = 1_760_000_000.0

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


@dataclass(eq=False)
class Workload:
    """`readings` readings of `sensors` sensors, in the order in which they are published.

    Attributes:
        sensor: int64 [n], which sensor; its id is `sensor_ids[sensor]`.
        ts: float64 [n], seconds since the epoch, rising, in the past.
        values: float64 [n, 3], in the order of `FIELDS`, two decimals each.
        partition: int64 [n], where murmur2 of the sensor id puts it, as every Java client would.
        offset: int64 [n], the offset that it gets in a fresh topic.
    """

    readings: int
    sensors: int = 1000
    partitions: int = 4
    seed: int = 7
    sensor: I64 = field(init=False, repr=False)
    ts: F64 = field(init=False, repr=False)
    values: F64 = field(init=False, repr=False)
    partition: I64 = field(init=False, repr=False)
    offset: I64 = field(init=False, repr=False)
    sensor_ids: list[str] = field(init=False, repr=False)
    partition_of: I64 = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.sensor_ids = [f"sensor-{i:06d}" for i in range(self.sensors)]
        self.partition_of = np.array(
            [(murmur2(s.encode()) & 0x7FFFFFFF) % self.partitions for s in self.sensor_ids], np.int64
        )
        blocks = [self._block(b) for b in range((self.readings + _BLOCK - 1) // _BLOCK)]
        n = self.readings
        self.sensor = np.concatenate([sensor for sensor, _ in blocks])[:n]
        self.values = np.concatenate([values for _, values in blocks])[:n]
        self.ts = np.round(_EPOCH_S + np.arange(n) * 0.0005, 4)
        self.partition = self.partition_of[self.sensor]
        self.offset = np.empty(n, np.int64)
        for p in range(self.partitions):
            rows = np.flatnonzero(self.partition == p)
            self.offset[rows] = np.arange(len(rows))

    def _block(self, block: int) -> tuple[I64, F64]:
        rng = np.random.default_rng([self.seed, self.sensors, block])
        sensor = rng.integers(0, self.sensors, _BLOCK)
        base = np.array([22.0, 45.0, 1013.0]) + (sensor % 17)[:, None] * np.array([0.7, 1.1, 0.9])
        values = base + rng.normal(size=(_BLOCK, 3)) * np.array([0.4, 1.5, 2.0])
        spikes = np.flatnonzero(rng.random(_BLOCK) < 0.001)
        values[spikes, rng.integers(0, 3, len(spikes))] += 40.0
        return sensor, np.round(values, 2)

    def payloads(self, start: int, stop: int) -> Iterator[tuple[int, bytes, bytes]]:
        """(partition, key, JSON value) of the readings `start` to `stop`, in order."""
        keys = [s.encode() for s in self.sensor_ids]
        columns = zip(
            self.partition[start:stop].tolist(),
            self.sensor[start:stop].tolist(),
            self.ts[start:stop].tolist(),
            *self.values[start:stop].T.tolist(),
            strict=True,
        )
        ids = self.sensor_ids
        for partition, sensor, ts, temperature, humidity, pressure in columns:
            value = (
                f'{{"sensor_id":"{ids[sensor]}","ts":{ts!r},"temperature":{temperature!r},'
                f'"humidity":{humidity!r},"pressure":{pressure!r}}}'
            )
            yield partition, keys[sensor], value.encode()

    def rows_by_offset(self) -> list[I64]:
        """For each partition int64 [readings in it]: the reading at each offset."""
        return [np.flatnonzero(self.partition == p) for p in range(self.partitions)]

    def scores(self) -> F64:
        """float64 [n, 3], the right z-score of each field of each reading.

        Round by round: the first reading of every sensor, then the second of every sensor, and so on.
        `scores_plain` is the same one reading at a time.
        """
        n = self.readings
        by_sensor = np.argsort(self.sensor, kind="stable")
        counts = np.bincount(self.sensor, minlength=self.sensors)
        starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
        occurrence = np.empty(n, np.int64)
        occurrence[by_sensor] = np.arange(n) - np.repeat(starts, counts)
        by_round = np.argsort(occurrence, kind="stable")
        ends = np.cumsum(np.bincount(occurrence)) if n else np.zeros(0, np.int64)
        scores = np.zeros((n, len(FIELDS)))
        mean = np.zeros((self.sensors, len(FIELDS)))
        var = np.zeros_like(mean)
        start = 0
        for seen, end in enumerate(ends):
            rows = by_round[start:end]
            start = end
            who = self.sensor[rows]
            d = self.values[rows] - mean[who]
            v = var[who]
            if seen >= WARMUP:
                scores[rows] = np.abs(d) / np.maximum(np.sqrt(v), MIN_SD)
            w = max(ALPHA, 1.0 / (seen + 1))
            mean[who] += w * d
            var[who] = (1.0 - w) * (v + w * d * d)
        return scores

    def detected(self, detector: Mapping[str, Any]) -> tuple[F64, float]:
        """float64 [n, 3], the scores of one of our detectors that gets all readings at once; threshold."""
        made = build_detector(detector, FIELDS)
        rows = self.sensor.astype(np.int32)
        return made.score(made.init(self.sensors), rows, self.values, self.ts), float(made.thresholds[0])

    def scores_plain(self, sensor: int) -> tuple[I64, F64]:
        """The rows of one sensor and their scores [rows, 3], straight from the definition."""
        rows = np.flatnonzero(self.sensor == sensor)
        out = np.zeros((len(rows), len(FIELDS)))
        for f in range(len(FIELDS)):
            mean = var = 0.0
            for seen, x in enumerate(self.values[rows, f].tolist()):
                if seen >= WARMUP:
                    out[seen, f] = abs(x - mean) / max(var**0.5, MIN_SD)
                w = max(ALPHA, 1.0 / (seen + 1))
                d = x - mean
                mean += w * d
                var = (1.0 - w) * (var + w * d * d)
        return rows, out

    def check_reference(self, sensors: Sequence[int] = (0, 1, 2)) -> None:
        """Raises AssertionError where the two references differ."""
        scores = self.scores()
        for sensor in sensors:
            rows, plain = self.scores_plain(sensor)
            np.testing.assert_allclose(scores[rows], plain, rtol=1e-9, atol=1e-12)


class Prediction(msgspec.Struct, gc=False):
    """What each contestant puts out for one reading."""

    id: str
    source: str
    stream: str
    ts: float
    model: str
    version: str
    score: float
    field: str | None
    is_anomaly: bool
    latency_ms: float


def describe(sensors: int) -> dict[str, Any]:
    """The parameters that all workloads of one benchmark share, for a result file."""
    return {
        "sensors": sensors,
        "partitions": Workload.partitions,
        "fields": len(FIELDS),
        "seed": Workload.seed,
        "detector": {"type": "ewz", "alpha": ALPHA, "warmup": WARMUP, "threshold": THRESHOLD},
    }
