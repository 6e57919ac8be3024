"""The live view: predictions, labels of frames and alerts as they come, as a table or as one line a second.

`Board` is pure: records and the time go in, a summary comes out. `follow` fills it from Kafka.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from rich.console import RenderableType

    from polarstream.reader import Record
    from streams.config import KafkaConfig

_RATE_WINDOW_S: Final = 5.0
_LATENCIES: Final = 512
_MAX_SENSORS: Final = 5_000
_MAX_CAMERAS: Final = 1_000
_MAX_ALERTS: Final = 200
#: cameras get up to so many rows of the table
_CAMERA_ROWS: Final = 4
#: a high score stays in the table for so long
_SHOWN_S: Final = 60.0


class PredictionView(msgspec.Struct):
    """What the view needs of a prediction."""

    source: str
    ts: float
    score: float | None = None
    field: str | None = None
    is_anomaly: bool = False
    latency_ms: float | None = None
    #: Of a frame's prediction alone: what it ran on, and the best label if the model gives one.
    device: str | None = None
    label: str | None = None


class CameraView(msgspec.Struct):
    """The newest answer to a camera's frames, and how many are answered."""

    camera: str
    label: str | None
    score: float | None
    latency_ms: float | None
    device: str | None
    frames_per_s: float


class AlertView(msgspec.Struct):
    """What the view needs of an alert."""

    id: str
    state: str
    source: str
    ts: float
    started_at: float
    severity: str = "warning"
    field: str | None = None
    value: float | None = None
    score: float | None = None
    count: int = 0
    explanation: str = ""


class Summary(msgspec.Struct):
    """The view in numbers, one line of `--json`."""

    ts: float
    predictions: int
    predictions_per_s: float
    latency_ms_p50: float | None
    anomalies: int
    alerts: int
    alerts_open: int
    last_alert: AlertView | None
    cameras: list[CameraView]


@dataclass
class _Camera:
    last: PredictionView
    arrivals: deque[tuple[float, int]] = field(default_factory=deque)


@dataclass
class _Sensor:
    last: PredictionView
    worst: PredictionView
    worst_at: float
    count: int = 1


@dataclass
class Board:
    """What was seen so far; memory is bounded whatever comes."""

    predictions: int = 0
    anomalies: int = 0
    alert_events: int = 0
    undecodable: int = 0
    _said: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=5))
    _sensors: OrderedDict[str, _Sensor] = field(default_factory=OrderedDict)
    _cameras: OrderedDict[str, _Camera] = field(default_factory=OrderedDict)
    _alerts: OrderedDict[str, AlertView] = field(default_factory=OrderedDict)
    _latencies: deque[float] = field(default_factory=lambda: deque(maxlen=_LATENCIES))
    _arrivals: deque[tuple[float, int]] = field(default_factory=deque)

    def say(self, message: str, now: float) -> None:
        """A message for the user; it is shown for a minute."""
        self._said.append((now, message))

    def messages(self, now: float) -> list[str]:
        """What was said in the last minute."""
        return [text for at, text in self._said if now - at <= _SHOWN_S]

    def add_predictions(self, values: Sequence[bytes | None], now: float) -> None:
        """Count predictions and remember the worst of each sensor and the newest of each camera."""
        self.predictions += len(values)
        self._arrivals.append((now, len(values)))
        for value in values:
            try:
                seen = _decode_prediction(value or b"")
            except msgspec.DecodeError:
                self.undecodable += 1
                continue
            self.anomalies += seen.is_anomaly
            if seen.latency_ms is not None:
                self._latencies.append(seen.latency_ms)
            if seen.device is None:
                self._note_sensor(seen, now)
            else:
                self._note_camera(seen, now)

    def add_alerts(self, values: Iterable[bytes | None]) -> None:
        """Remember the newest state of each alert."""
        for value in values:
            self.alert_events += 1
            try:
                seen = _decode_alert(value or b"")
            except msgspec.DecodeError:
                self.undecodable += 1
                continue
            self._alerts[seen.id] = seen
            self._alerts.move_to_end(seen.id)
            while len(self._alerts) > _MAX_ALERTS:
                resolved = next((i for i, a in self._alerts.items() if a.state == "resolved"), None)
                self._alerts.pop(resolved if resolved is not None else next(iter(self._alerts)))

    def worst(self, count: int, now: float) -> list[PredictionView]:
        """The highest score of the last minute of each of the `count` sensors that have the highest."""
        fresh = [s.worst for s in self._sensors.values() if now - s.worst_at <= _SHOWN_S]
        return sorted(fresh, key=lambda p: (-_score(p), p.source))[:count]

    def cameras(self, now: float) -> list[CameraView]:
        """Every camera of the last minute by name."""
        found = []
        for name, camera in sorted(self._cameras.items()):
            last, arrivals = camera.last, camera.arrivals
            if now - arrivals[-1][0] > _SHOWN_S:
                continue
            rate = sum(count for at, count in arrivals if now - at <= _RATE_WINDOW_S) / _RATE_WINDOW_S
            found.append(
                CameraView(name, last.label, last.score, last.latency_ms, last.device, round(rate, 1))
            )
        return found

    def alerts(self, count: int) -> list[AlertView]:
        """The newest alerts, those that are open first."""
        newest = sorted(self._alerts.values(), key=lambda a: (a.state != "firing", -a.ts))
        return newest[:count]

    @property
    def sensors(self) -> int:
        """How many sensors were seen."""
        return len(self._sensors)

    @property
    def open_alerts(self) -> int:
        """How many alerts are open."""
        return sum(a.state == "firing" for a in self._alerts.values())

    def summary(self, now: float) -> Summary:
        """The numbers at `now` (s since the epoch)."""
        while self._arrivals and now - self._arrivals[0][0] > _RATE_WINDOW_S:
            self._arrivals.popleft()
        recent = sum(count for _, count in self._arrivals)
        latencies = sorted(self._latencies)
        return Summary(
            ts=round(now, 3),
            predictions=self.predictions,
            predictions_per_s=round(recent / _RATE_WINDOW_S, 1),
            latency_ms_p50=round(latencies[len(latencies) // 2], 1) if latencies else None,
            anomalies=self.anomalies,
            alerts=self.alert_events,
            alerts_open=self.open_alerts,
            last_alert=next(reversed(self._alerts.values()), None),
            cameras=self.cameras(now),
        )

    def _note_camera(self, seen: PredictionView, now: float) -> None:
        known = self._cameras.get(seen.source)
        if known is None:
            known = self._cameras[seen.source] = _Camera(seen)
            if len(self._cameras) > _MAX_CAMERAS:
                self._cameras.popitem(last=False)
        known.last = seen
        arrivals = known.arrivals
        if arrivals and arrivals[-1][0] == now:
            now, count = arrivals.pop()
            arrivals.append((now, count + 1))
        else:
            arrivals.append((now, 1))
        while now - arrivals[0][0] > _RATE_WINDOW_S:
            arrivals.popleft()

    def _note_sensor(self, seen: PredictionView, now: float) -> None:
        known = self._sensors.get(seen.source)
        if known is None:
            self._sensors[seen.source] = _Sensor(seen, seen, now)
            if len(self._sensors) > _MAX_SENSORS:
                self._sensors.popitem(last=False)
            return
        known.last = seen
        known.count += 1
        if _score(seen) >= _score(known.worst) or now - known.worst_at > _SHOWN_S:
            known.worst, known.worst_at = seen, now


_decode_prediction = msgspec.json.Decoder(PredictionView).decode
_decode_alert = msgspec.json.Decoder(AlertView).decode


def plain_line(summary: Summary) -> str:
    """One line for logs and pipes."""
    from polarstream.times import format_time

    latency = "-" if summary.latency_ms_p50 is None else f"{summary.latency_ms_p50:.0f} ms"
    line = (
        f"{format_time(summary.ts)} predictions {summary.predictions} ({summary.predictions_per_s:.0f}/s, "
        f"p50 {latency}) anomalies {summary.anomalies} alerts {summary.alerts} ({summary.alerts_open} open)"
    )
    last = summary.last_alert
    if last is not None:
        line += f" | last: {last.state} {last.source} {last.field or ''} score {_score(last):.1f}"
    for camera in summary.cameras[:_CAMERA_ROWS]:
        line += f" | {camera.camera}: {camera.label or '-'} {camera.score or 0.0:.2f}"
    return line


async def follow(board: Board, kafka: KafkaConfig, predictions: str, alerts: str) -> None:
    """Fill `board` from the two topics, from now on, until cancelled; outlives a broker's restart."""
    import asyncio
    import time

    from polarstream.reader import Reader, Start
    from streams.errors import RetryLater, UsageError

    start = Start("latest")
    while True:
        began = time.time()
        try:
            async with Reader(kafka, [predictions, alerts], start) as reader:
                while True:
                    records = await reader.poll(0.5, 5000)
                    _fill(board, records, predictions, time.time())
                    began = time.time() if records else began
        except (RetryLater, UsageError) as error:
            board.say(str(error), time.time())
            await asyncio.sleep(1.0)
            start = Start("time", began)


def _fill(board: Board, records: Sequence[Record], predictions: str, now: float) -> None:
    seen = [r.value for r in records if r.topic == predictions]
    if seen:
        board.add_predictions(seen, now)
    board.add_alerts(r.value for r in records if r.topic != predictions)


def render(board: Board, title: str, notes: Sequence[str], now: float, height: int) -> RenderableType:
    """The table view, fitted to `height` lines."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    summary = board.summary(now)
    latency = "-" if summary.latency_ms_p50 is None else f"{summary.latency_ms_p50:.0f} ms"
    head = Text.assemble(
        (f"{summary.predictions:,}".replace(",", " "), "bold"),
        " predictions   ",
        (f"{summary.predictions_per_s:.0f}", "bold"),
        "/s   latency ",
        (latency, "bold"),
        f"   {board.sensors} sensors   ",
        (f"{summary.alerts_open} open", "bold red" if summary.alerts_open else "bold green"),
        f" of {len(board._alerts)} alerts",
    )
    # frame 2, head 1, and 2 lines above the rows of each table; alerts get up to half of the rest
    messages = board.messages(now)
    rows = max(2, height - 7 - len(notes) - len(messages))
    # a terminal that is too low for three tables has no cameras
    cameras = summary.cameras[: min(_CAMERA_ROWS, rows - 6)] if rows > 6 else []
    if cameras:
        rows -= len(cameras) + 2
    alert_rows = max(1, min(len(board._alerts), rows // 2))
    parts: list[RenderableType] = [
        head,
        _prediction_table(board, rows - alert_rows, now),
        *([_camera_table(cameras, len(summary.cameras))] if cameras else []),
        _alert_table(board, alert_rows, now),
    ]
    parts += [Text(note, style="dim", no_wrap=True, overflow="ellipsis") for note in notes]
    parts += [Text(note, style="yellow", no_wrap=True, overflow="ellipsis") for note in messages]
    return Panel(Group(*parts), title=title, border_style="cyan", height=height)


def _prediction_table(board: Board, rows: int, now: float) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    worst = board.worst(rows, now)
    learning = bool(worst) and not _score(worst[0])
    title = "Learning what is normal ..." if learning else "Highest scores of the last minute"
    table = Table(expand=True, box=None, title=title, title_style="bold")
    for name, justify in (
        ("sensor", "left"),
        ("field", "left"),
        ("score", "right"),
        ("", "left"),
        ("age", "right"),
    ):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for seen in worst:
        style = "bold red" if seen.is_anomaly else "white"
        # logarithmic: a score of 1000 is no longer news beside one of 100
        bar = "█" * min(24, round(8 * math.log10(1 + _score(seen))))
        table.add_row(
            Text(seen.source),
            seen.field or "",
            Text(f"{_score(seen):.1f}", style),
            Text(bar, style),
            _age(now - seen.ts),
        )
    if not board.sensors:
        table.add_row("waiting for the first prediction ...")
    return table


def _camera_table(cameras: Sequence[CameraView], of: int) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    title = "Cameras" if len(cameras) == of else f"Cameras: {len(cameras)} of {of}"
    table = Table(expand=True, box=None, title=title, title_style="bold")
    for name, justify in (
        ("camera", "left"), ("label", "left"), ("score", "right"), ("latency", "right"), ("device", "left"),
        ("frames/s", "right"),
    ):  # fmt: skip
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for seen in cameras:
        table.add_row(
            Text(seen.camera),
            Text(seen.label or "-", "bold cyan"),
            "-" if seen.score is None else f"{seen.score:.2f}",
            "-" if seen.latency_ms is None else f"{seen.latency_ms:.0f} ms",
            Text(seen.device or "-"),
            f"{seen.frames_per_s:.1f}",
        )
    return table


def _alert_table(board: Board, rows: int, now: float) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(expand=True, box=None, title="Alerts", title_style="bold")
    for name, justify in (
        ("state", "left"), ("severity", "left"), ("sensor", "left"), ("field", "left"), ("value", "right"),
        ("score", "right"), ("for", "right"),
    ):  # fmt: skip
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for alert in board.alerts(rows):
        firing = alert.state == "firing"
        style = "bold red" if firing and alert.severity == "critical" else "yellow" if firing else "green"
        lasted = (now if firing else alert.ts) - alert.started_at
        table.add_row(
            Text(alert.state, style),
            alert.severity,
            Text(alert.source),
            alert.field or "",
            "-" if alert.value is None else f"{alert.value:.2f}",
            f"{_score(alert):.1f}",
            _age(lasted),
        )
    if not board.alert_events:
        table.add_row("none yet")
    return table


def _score(seen: PredictionView | AlertView) -> float:
    return 0.0 if seen.score is None else seen.score


def _age(seconds: float) -> str:
    seconds = max(0.0, seconds)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} h"
