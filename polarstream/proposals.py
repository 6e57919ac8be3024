"""What thresholds the labels of past alerts speak for: what `polarstream thresholds propose` calls.

History is what was recorded: the alerts topic says which alerts there were, the predictions topic what every
reading of them scored, the control topic what people said of them. Only alerts that a score opened count, not
those of limits, groups, silent sources, failure prediction and drift.
"""

from __future__ import annotations

import bisect
import glob
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from agents.alerting import StreamAlerting
from anomaly.feedback import Proposal, Share, propose, sustained
from anomaly.registry import DEFAULT, build_detector
from anomaly.thresholds import identify
from connectors.errors import TopicMissing
from polarstream.control import AlertStory, read_alerts, read_control
from polarstream.reader import Reader, Start
from streams.control import ControlState, ThresholdRule
from streams.errors import BadRecord, UsageError
from streams.records import is_arrow

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from anomaly.detector import FloatArray
    from polarstream.config import Config
    from polarstream.reader import Record
    from streams.config import KafkaConfig, StreamConfig

#: What alerts may be grouped by, beside their stream.
GROUPINGS: Final = ("field", "type", "site", "sensor")


class _Prediction(msgspec.Struct):
    """What is needed of a prediction."""

    id: str
    source: str
    ts: float
    score: float | None
    field: str
    stream: str


@dataclass(slots=True)
class PastAlert:
    """An alert of the past, with what its readings scored.

    Attributes:
        story: as it was told.
        stream: the stream's name.
        end: time of its last message; infinite while it fires.
        seen: (time, score) of its field by prediction id, so that a replay counts once.
    """

    story: AlertStory
    stream: str
    end: float
    seen: dict[str, tuple[float, float]] = field(default_factory=dict)

    def peak(self, readings: int, lasting_s: float) -> float:
        """Return the highest threshold at which it would have opened, as far as is known."""
        known = sorted(self.seen.values())
        best = sustained([score for _, score in known], [ts for ts, _ in known], readings, lasting_s)
        # its messages have scores too, should its predictions be gone
        told = max(s for s in (self.story.opened.score, self.story.last.score, -math.inf) if s == s)
        return best if known else told


class Predictions:
    """Takes predictions in and keeps those of alerts.

    Args:
        alerts: of all streams.
    """

    def __init__(self, alerts: Iterable[PastAlert]) -> None:
        self._alerts: dict[tuple[str, str], list[PastAlert]] = {}
        for alert in alerts:
            self._alerts.setdefault((alert.stream, alert.story.last.source), []).append(alert)
        for some in self._alerts.values():
            some.sort(key=lambda alert: alert.story.last.started_at)
        self._starts = {
            key: [alert.story.last.started_at for alert in some] for key, some in self._alerts.items()
        }
        self._decoder = msgspec.json.Decoder(_Prediction)

    def take(self, records: Iterable[Record]) -> None:
        """Take messages of the predictions topic in; what is no prediction is left out."""
        for record in records:
            value = record.value or b""
            try:
                if is_arrow(value, record.headers):
                    from streams.arrow import decode_predictions

                    some = [msgspec.convert(row, _Prediction) for row in decode_predictions(value)]
                else:
                    some = [self._decoder.decode(value)]
            except (msgspec.MsgspecError, UnicodeDecodeError, BadRecord):
                continue
            for prediction in some:
                self._keep(prediction)

    def _keep(self, prediction: _Prediction) -> None:
        key = (prediction.stream, prediction.source)
        starts = self._starts.get(key)
        if starts is None or prediction.score is None:
            return
        # alerts of a sensor follow one another
        place = bisect.bisect_right(starts, prediction.ts) - 1
        if place < 0:
            return
        alert = self._alerts[key][place]
        if prediction.ts <= alert.end and prediction.field == alert.story.last.field:
            alert.seen[prediction.id] = (prediction.ts, prediction.score)


@dataclass(slots=True)
class Suggestion:
    """What is proposed for one group of alerts, or why nothing is.

    Attributes:
        identity: of the rule.
        rule: with the proposed threshold; None where there is none.
        where: the patterns of the rule.
        now: the thresholds that hold now for the alerts of the group, lowest and highest.
        proposal: with all its numbers.
        why: why there is none.
        alerts: past alerts of the group, labelled or not, that its rule would decide on.
        alerts_after: how many of these would still have opened.
        apart: alerts of sensors that a more specific rule, or one that follows them, decides on.
    """

    identity: str
    where: dict[str, str]
    now: tuple[float, float]
    rule: ThresholdRule | None = None
    proposal: Proposal | None = None
    why: str = ""
    alerts: int = 0
    alerts_after: int = 0
    apart: int = 0

    def as_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        plain: dict[str, Any] = {
            "id": self.identity,
            "where": self.where,
            "threshold_now": list(self.now),
            "threshold": None,
            "why_not": self.why or None,
            "alerts": self.alerts,
            "alerts_apart": self.apart,
        }
        found = self.proposal
        if found is not None:
            plain["threshold"] = found.threshold
            plain["threshold_interval"] = [found.low, found.high]
            plain["alerts_after"] = self.alerts_after
            for name in ("before", "after", "expected"):
                outcome = getattr(found, name)
                plain[name] = outcome._asdict() | {
                    "precision": _share(outcome.precision),
                    "recall": _share(outcome.recall),
                }
        return plain


def _share(share: Share) -> dict[str, float | None]:
    return {name: None if value != value else value for name, value in share._asdict().items()}


def past_alerts(stories: Iterable[AlertStory], streams: Sequence[StreamConfig]) -> list[PastAlert]:
    """Return the alerts that a score opened, of these streams."""
    known = {stream.name: stream for stream in streams}
    found = []
    for story in stories:
        last, opened = story.last, story.opened
        stream = known.get(last.key.partition("/")[0])
        if stream is None or last.scope != "sensor" or last.field not in stream.fields:
            continue
        by_score = last.rule == stream.detector.get("type", DEFAULT) and last.limit is None
        if by_score and opened.limit is None:
            end = math.inf if last.state == "firing" else last.ts
            found.append(PastAlert(story, stream.name, end))
    return found


def suggest(
    config: Config,
    control: ControlState,
    alerts: Sequence[PastAlert],
    *,
    by: Sequence[str] = ("field",),
    miss_cost: float = 10.0,
) -> list[Suggestion]:
    """Propose thresholds.

    Args:
        config: with the streams.
        control: the rules that hold now.
        alerts: with what their readings scored.
        by: what shares a threshold, of `GROUPINGS`.
        miss_cost: what a right alert that is lost costs, in false alarms.

    Raises:
        UsageError: `by` names no such grouping.
    """
    unknown = [name for name in by if name not in GROUPINGS]
    if unknown:
        raise UsageError(f"--by '{unknown[0]}' is none of {', '.join(GROUPINGS)}")
    found = []
    for stream in config.streams:
        mine = [alert for alert in alerts if alert.stream == stream.name]
        if any(alert.story.label is not None for alert in mine):
            found += _Stream(stream, control, mine).suggest(by, miss_cost)
    return found


class _Stream:
    """The alerts of one stream, with the thresholds that hold for them."""

    def __init__(self, stream: StreamConfig, control: ControlState, alerts: Sequence[PastAlert]) -> None:
        self.stream, self.control, self.alerts = stream, control, alerts
        thresholds = {name: spec.threshold for name, spec in stream.fields.items()}
        self.detector = build_detector(stream.detector, stream.field_names, thresholds)
        # one score over all fields: rules that name a field don't concern it
        self.joint = len(self.detector.thresholds) != len(stream.fields)
        self._pattern = re.compile(stream.sensor_pattern) if stream.sensor_pattern else None
        rules = stream.alerts
        self.peaks = np.array([alert.peak(rules.open_after, rules.min_duration_s) for alert in alerts])
        self.now, self.adaptive = self.thresholds(control)

    def thresholds(self, control: ControlState) -> tuple[FloatArray, NDArray[np.bool_]]:
        """Return the threshold of each alert's sensor and field by these rules, and whether it follows."""
        resolver = StreamAlerting(self.stream, self.detector, control).resolver()
        names = self.stream.field_names
        found = []
        for alert in self.alerts:
            column = 0 if self.joint else names.index(alert.story.last.field)
            if resolver is None:
                found.append((float(self.detector.thresholds[column]), 0.0))
            else:
                rules = resolver.concerning(resolver.identity(alert.story.last.source))
                found.append(resolver.score(rules, column))
        table = np.array(found).reshape(-1, 2)
        return table[:, 0], table[:, 1] > 0

    def suggest(self, by: Sequence[str], miss_cost: float) -> list[Suggestion]:
        if "type" in by and "type" not in (self._pattern.groupindex if self._pattern else ()):
            raise UsageError(
                f"--by type: nothing tells the types of stream '{self.stream.name}': give it a "
                "sensor_pattern with (?P<type>...)"
            )
        groups: dict[tuple[tuple[str, str], ...], list[int]] = {}
        for i, alert in enumerate(self.alerts):
            place = self._place(alert, by)
            # of sensors without a type no rule can be made that leaves the others alone
            if ("sensor_type", "") not in place:
                groups.setdefault(place, []).append(i)
        labelled = [
            (place, members)
            for place, members in groups.items()
            if any(self.alerts[i].story.label is not None for i in members)
        ]
        return [self._of_group(dict(place), members, miss_cost) for place, members in sorted(labelled)]

    def _place(self, alert: PastAlert, by: Sequence[str]) -> tuple[tuple[str, str], ...]:
        """Return the settings of a rule that say where."""
        who = identify(alert.story.last.source, self.stream.name, self._pattern)
        values = {
            "field": "*" if self.joint else alert.story.last.field,
            "type": who.type,
            "site": who.site,
            "sensor": who.sensor,
        }
        names = {"type": "sensor_type"}
        return tuple(
            (names.get(name, name), values[name]) for name in GROUPINGS if name in by and values[name] != "*"
        )

    def _of_group(self, place: dict[str, str], members: list[int], miss_cost: float) -> Suggestion:
        where = {"stream": self.stream.name, **place}
        identity = re.sub(r"[/\s]", "_", ".".join(("labels", *where.values())))[:100]
        # a rule that nobody could miss tells for which alerts this one would count
        trial = 1e9
        decided = self._with(identity, _rule(where, trial))[members] == trial
        mine = np.array(members)[decided & ~self.adaptive[members]]
        apart = len(members) - len(mine)
        now = self.now[mine] if len(mine) else self.now[members]
        found = Suggestion(identity, where, (float(now.min()), float(now.max())), apart=apart)
        found.alerts = len(mine)
        labels = [self.alerts[i].story.label for i in mine]
        told = np.array([label is not None for label in labels], np.bool_)
        some = mine[told]
        real = np.array([not label.false_alarm for label in labels if label is not None], np.bool_)
        sensors = [self.alerts[i].story.last.source for i in some]
        result = propose(self.peaks[some], real, sensors, self.now[some], miss_cost)
        if isinstance(result, str):
            found.why = result
            return found
        found.proposal = result
        found.rule = _rule(where, result.threshold)
        after = self._with(identity, found.rule)[mine]
        found.alerts_after = int((self.peaks[mine] >= np.maximum(after, self.now[mine])).sum())
        return found

    def _with(self, identity: str, rule: ThresholdRule) -> FloatArray:
        """Return the threshold of each alert with one rule more."""
        control = ControlState()
        control.thresholds.update(self.control.thresholds)
        # last, as a record that is written now would be
        control.thresholds.pop(identity, None)
        control.thresholds[identity] = rule
        return self.thresholds(control)[0]


def _rule(where: dict[str, str], threshold: float) -> ThresholdRule:
    patterns = {name: glob.escape(value) for name, value in where.items()}
    return msgspec.convert({**patterns, "threshold": threshold}, ThresholdRule)


async def propose_thresholds(
    config: Config,
    kafka: KafkaConfig,
    *,
    start: Start,
    by: Sequence[str] = ("field",),
    miss_cost: float = 10.0,
    stream: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Suggestion]:
    """Read history and propose thresholds.

    Args:
        config: with the streams.
        kafka: how the brokers are reached.
        start: where history begins.
        by: see `suggest`.
        miss_cost: see `suggest`.
        stream: only this one.
        progress: told how many predictions are read.

    Raises:
        UsageError: there is no such stream, or no such grouping.
    """
    streams = [one for one in config.streams if stream in (None, one.name)]
    if not streams:
        known = ", ".join(one.name for one in config.streams)
        raise UsageError(f"there is no stream '{stream}', there is: {known}")
    stories = await read_alerts(config, kafka, start=start)
    alerts = past_alerts(stories, streams)
    predictions, count = Predictions(alerts), 0
    if any(alert.story.label is not None for alert in alerts):
        try:
            async with Reader(kafka, [config.topics.predictions], start) as reader:
                async for records in reader.to_end():
                    predictions.take(records)
                    count += len(records)
                    if progress is not None:
                        progress(count)
        except TopicMissing:
            pass
    control = await read_control(config, kafka)
    return suggest(config, control, alerts, by=by, miss_cost=miss_cost)
