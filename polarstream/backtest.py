"""Backtest: recorded readings through the live path, as fast as it goes.

`agents.detect.DetectPartition` is what a worker runs on every partition; here it is fed from a file or from
what a topic holds. So scores and alerts are, bit for bit, what a worker would have said that had the same
configuration and began with the first of these readings.
"""

from __future__ import annotations

import csv
import tomllib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from agents.detect import DetectPartition, StreamDetector
from anomaly.registry import find_detector
from polarstream.recording import Recording
from streams.config import AlertConfig, FieldConfig, StreamConfig
from streams.errors import UsageError
from streams.records import Alert, ReadingBatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

#: Readings that go through the detector in one call.
CHUNK: Final = 8192
#: The name of the stream in alerts of recorded files.
STREAM: Final = "backtest"


@dataclass(slots=True)
class Scored:
    """A recording and what was said of it; n rows, those that can't be used among them.

    Attributes:
        recording: what was scored.
        ratio: float64 [n], the worst score over its threshold: 1 is the threshold; 0 without a score.
        is_anomaly: bool [n].
        worst: intp [n], the column whose score was the worst, 0 for a detector that scores them together.
        alerts: every change of an alert, in order.
        picked: what a detector that chooses for each sensor (`auto`) chose in the end and why, by column.
    """

    recording: Recording
    ratio: NDArray[np.float64]
    is_anomaly: NDArray[np.bool_]
    worst: NDArray[np.intp]
    alerts: list[Alert] = field(default_factory=list)
    picked: dict[str, str] = field(default_factory=dict)

    @property
    def scores(self) -> NDArray[np.float64]:
        """From 0 to 1, larger is stranger, 0.5 is the threshold: comparable between files; float64 [n]."""
        return squash(self.ratio)

    def summary(self) -> dict[str, Any]:
        """Plain values for printing."""
        recording = self.recording
        opened = [alert for alert in self.alerts if alert.state == "firing"]
        return {
            "name": recording.name,
            "columns": list(recording.columns),
            "rows": len(self.ratio),
            "bad_rows": len(recording.bad),
            "bad": [row._asdict() for row in recording.bad[:20]],
            "anomalies": int(self.is_anomaly.sum()),
            "highest_score": float(self.scores.max(initial=0.0)),
            "alerts": len({alert.id for alert in opened}),
            "picked": self.picked,
            "alert_changes": [msgspec.to_builtins(alert) for alert in self.alerts],
        }


def squash(ratio: NDArray[np.float64]) -> NDArray[np.float64]:
    """Map a score over its threshold, from 0, to 0 to 1: ratio / (1 + ratio)."""
    return 1.0 - 1.0 / (1.0 + ratio)


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Make a detector's parameters from `name=value`, the value as in TOML; bare words are text.

    >>> parse_settings(["once_in=5000", "mode=fast"])
    {'once_in': 5000, 'mode': 'fast'}

    Raises:
        UsageError: a pair has no `=`.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"--detector-config '{pair}' is not NAME=VALUE, e.g. once_in=5000")
        try:
            settings[name.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            settings[name.strip()] = text
    return settings


#: What scores the fields of a group together where nobody named a detector.
GROUP_DETECTOR = "pca"


def detector_table(
    name: str, settings: dict[str, Any], *, train: int = 0, group: bool = False
) -> dict[str, Any]:
    """Return the `detector` table of a stream's configuration.

    Args:
        name: `type` of the detector.
        settings: its parameters.
        train: rows of a clean start: parameter `train` where the detector has one, else `warmup`.
        group: the fields belong together: `auto`, which scores each alone, gives way to `pca`.

    Raises:
        BadDetector: there is none of this name.
    """
    if group and name == "auto":
        name = GROUP_DETECTOR
    known = {field.encode_name for field in msgspec.structs.fields(find_detector(name).config_type)}
    table = {"type": name, **settings}
    if train:
        parameter = next((p for p in ("train", "warmup") if p in known), None)
        if parameter is not None:
            table.setdefault(parameter, train)
    return table


class Backtest:
    """Scores recordings one after the other, each from a fresh state; the detector is made once.

    Args:
        detector: the `detector` table of a stream's configuration.
        train: no anomaly is reported in so many rows at the start of each recording.
        alerts: when alerts open and resolve.

    Raises:
        BadDetector: at the first recording, with every fault of the table.
    """

    def __init__(
        self, detector: dict[str, Any], *, train: int = 0, alerts: AlertConfig | None = None
    ) -> None:
        self.detector = detector
        self.train = train
        self._alerts = AlertConfig() if alerts is None else alerts
        self._shared: dict[tuple[str, ...], StreamDetector] = {}

    def shared(self, columns: tuple[str, ...]) -> StreamDetector:
        """Return what recordings with these columns share."""
        if columns not in self._shared:
            fields = {column: FieldConfig(required=False) for column in columns}
            stream = StreamConfig(
                name=STREAM, topic=STREAM, fields=fields, detector=self.detector, alerts=self._alerts
            )
            self._shared[columns] = StreamDetector(stream)
        return self._shared[columns]

    def run(self, recording: Recording, progress: Callable[[int], None] | None = None) -> Scored:
        """Score a recording; `progress` is told how many of its rows are done."""
        share = DetectPartition(self.shared(recording.columns), {})
        total = len(recording.rows)
        scored = blank(recording)
        for start in range(0, total, CHUNK):
            stop = min(start + CHUNK, total)
            batch = reading_batch(recording, start, stop)
            collect(share, batch, float(batch.ts[-1]), recording.rows[start:stop], scored)
            if progress is not None:
                progress(stop)
        describe = getattr(share.shared.detector, "describe", None)
        if describe is not None and len(share.state):
            scored.picked = describe(share.state.rows["detector"], 0)
        return mask_training(scored, self.train)


def blank(recording: Recording) -> Scored:
    """Return a result in which nothing is scored yet."""
    n = len(recording.timestamps)
    return Scored(recording, np.zeros(n), np.zeros(n, np.bool_), np.zeros(n, np.intp))


def reading_batch(recording: Recording, start: int, stop: int) -> ReadingBatch:
    """Return usable rows of a recording as a worker would get them; the offset is the place among these."""
    count = stop - start
    return ReadingBatch(
        stream=STREAM,
        topic=STREAM,
        partition=0,
        first_offset=start,
        last_offset=stop - 1,
        offsets=np.arange(start, stop, dtype=np.int64),
        index=None,
        sensor_ids=None,
        ts=recording.ts[start:stop],
        published=recording.ts[start:stop],
        fields=recording.columns,
        values=recording.values[start:stop],
        ids=([recording.name], np.zeros(count, np.int32)),
    )


def collect(
    share: DetectPartition, batch: ReadingBatch, now: float, rows: NDArray[np.intp], scored: Scored
) -> None:
    """Process a batch of one sensor and write what is said of it to these rows of a result."""
    outcome = share.process(batch, now)
    verdict = outcome.verdict
    if verdict is not None:
        scored.ratio[rows] = np.nan_to_num(verdict.ratio, nan=0.0, posinf=np.inf)
        scored.is_anomaly[rows] = verdict.is_anomaly
        scored.worst[rows] = verdict.field
    scored.alerts += [msgspec.json.decode(value or b"", type=Alert) for value in outcome.alerts.values]


def mask_training(scored: Scored, train: int) -> Scored:
    """Take back what was said of the first rows, which are known to be clean."""
    if train > 0:
        scored.ratio[:train] = 0.0
        scored.is_anomaly[:train] = False
        taught = np.searchsorted(scored.recording.rows, train)
        until = float(scored.recording.ts[:taught].max(initial=-np.inf))
        scored.alerts = [alert for alert in scored.alerts if alert.started_at > until]
    return scored


def write_scores(path: Path, scored: Scored) -> None:
    """Write `timestamp,score,is_anomaly`, one line for each row of the input."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["timestamp", "score", "is_anomaly"])
        writer.writerows(_rows(scored))


def write_sensor_scores(path: Path, many: Iterable[Scored]) -> None:
    """Write `sensor_id,timestamp,score,is_anomaly`, sensor by sensor."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["sensor_id", "timestamp", "score", "is_anomaly"])
        for scored in many:
            writer.writerows((scored.recording.name, *row) for row in _rows(scored))


def _rows(scored: Scored) -> Iterable[tuple[str, float, int]]:
    anomalies = scored.is_anomaly.astype(np.int8).tolist()
    return zip(scored.recording.timestamps, scored.scores.tolist(), anomalies, strict=True)
