"""Which threshold holds for which sensor: rules by stream, type, site, field and sensor, made into columns.

A rule sets some of: a limit below and above (in the field's unit), the score from which a reading is
anomalous (as a score, as "once in n readings", or following the sensor), a budget of alerts, a severity.
Each of these settings is resolved for itself: of the rules that match and set it, the most specific one
counts. A named sensor beats a pattern of sensors, that beats a site, that a type, that a field, that the
stream; a pattern with more letters beats one with fewer; of equals, the later one counts, and rules of the
control topic come after those of the configuration.

Pure: rules in, columns out, one row a sensor. What is in force is a function of the rules and the sensor's
id.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from streams.control import ThresholdRule, matches

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from anomaly.detector import FloatArray, RowArray

Value = TypeVar("Value")


class Identity(NamedTuple):
    """What a rule may ask of a sensor."""

    sensor: str
    site: str
    type: str


class Budget(NamedTuple):
    """A budget of alerts and the name of the group that shares it."""

    group: str
    per_day: float


def identify(sensor: str, stream: str, pattern: re.Pattern[str] | None) -> Identity:
    """Find site and type in a sensor's id.

    Args:
        sensor: the id.
        stream: the stream's name: the site of sensors whose id tells none.
        pattern: with groups `site` and `type`, or one of them; it may match anywhere.

    >>> identify("hall-2/pump-7", "plant", re.compile(r"(?P<site>[^/]+)/(?P<type>[a-z]+)"))
    Identity(sensor='hall-2/pump-7', site='hall-2', type='pump')
    """
    found = pattern.search(sensor) if pattern is not None else None
    parts = found.groupdict() if found is not None else {}
    return Identity(sensor, parts.get("site") or stream, parts.get("type") or "")


def specificity(rule: ThresholdRule) -> tuple[int, ...]:
    """Return what rules are compared by: larger is more specific."""
    return tuple(map(_rank, (rule.sensor, rule.site, rule.sensor_type, rule.field, rule.stream)))


def _rank(pattern: str) -> int:
    if pattern == "*":
        return 0
    if not re.search(r"[*?\[]", pattern):
        return 1_000_000
    return 1 + len(re.sub(r"\[.*?\]|[*?]", "", pattern))


class Resolver:
    """The rules that may concern the sensors of one stream, least specific first.

    Args:
        rules: by id, those of the configuration before those of the control topic.
        stream: the stream's name.
        fields: its fields.
        base: float64 [k], the detector's own thresholds.
        decades: whether the detector's score is a surprise; `once_in` says nothing to others.
        pattern: finds site and type in sensor ids.
    """

    def __init__(
        self,
        rules: Mapping[str, ThresholdRule],
        stream: str,
        fields: Sequence[str],
        base: FloatArray,
        decades: bool,
        pattern: re.Pattern[str] | None = None,
    ) -> None:
        mine = [(name, rule) for name, rule in rules.items() if matches(rule.stream, stream)]
        self.rules = sorted(mine, key=lambda item: specificity(item[1]))
        self.stream, self.fields, self.base, self.pattern = stream, tuple(fields), base, pattern
        self._decades = decades
        #: A joint score, over all fields: rules that name a field don't concern it.
        self._columns = self.fields if len(base) == len(self.fields) else ("*",) * len(base)

    def identity(self, sensor: str) -> Identity:
        """Return site and type of a sensor."""
        return identify(sensor, self.stream, self.pattern)

    def concerning(self, who: Identity) -> list[tuple[str, ThresholdRule]]:
        """Return the rules that match a sensor, for any of its fields, least specific first."""
        return [
            (name, rule)
            for name, rule in self.rules
            if matches(rule.sensor, who.sensor)
            and matches(rule.site, who.site)
            and matches(rule.sensor_type, who.type)
        ]

    def limits(self, rules: list[tuple[str, ThresholdRule]], field: str) -> tuple[float, float]:
        """Return the lower and the upper limit of a field, NaN where there is none."""
        low = _last(rules, field, lambda rule: rule.low)
        high = _last(rules, field, lambda rule: rule.high)
        return math.nan if low is None else low, math.nan if high is None else high

    def score(self, rules: list[tuple[str, ThresholdRule]], column: int) -> tuple[float, float]:
        """Return the threshold of a score column, and the `adaptive` that makes it follow, 0 for none."""
        found = _last(rules, self._columns[column], self._score)
        base = float(self.base[column])
        if found is None:
            return base, 0.0
        threshold, adaptive = found
        return base if adaptive else threshold, adaptive

    def _score(self, rule: ThresholdRule) -> tuple[float, float] | None:
        if rule.threshold is not None:
            return rule.threshold, 0.0
        if rule.once_in is not None and self._decades:
            return math.log10(rule.once_in), 0.0
        return None if rule.adaptive is None else (0.0, rule.adaptive)

    def budget(self, rules: list[tuple[str, ThresholdRule]], who: Identity) -> Budget | None:
        """Return the budget that a sensor's alerts are counted against."""
        for name, rule in reversed(rules):
            if rule.budget_per_day is not None:
                inside = {"rule": "", "site": f"/{who.site}", "sensor": f"/{who.sensor}"}[rule.budget_by]
                return Budget(name + inside, rule.budget_per_day)
        return None

    def severity(self, rules: list[tuple[str, ThresholdRule]]) -> str | None:
        """Return the severity with which a sensor's alerts open, None for the stream's."""
        return _last(rules, "*", lambda rule: rule.severity)


def _last(
    rules: list[tuple[str, ThresholdRule]], field: str, value: Callable[[ThresholdRule], Value | None]
) -> Value | None:
    for _, rule in reversed(rules):
        # a rule that names a field says nothing of what belongs to all of them
        fits = rule.field == "*" or (field != "*" and matches(rule.field, field))
        if fits and (found := value(rule)) is not None:
            return found
    return None


class ThresholdTable:
    """What is in force for the sensors of a partition, a row each.

    Attributes:
        scores: float64 [rows, k], thresholds.
        low, high: float64 [rows, fields], NaN for none.
        span: float64 [rows, fields], the distance in the field's unit that counts as one threshold more.
        adaptive: float64 [rows, k], 0 for none.
        budgets: [rows], or None.
        severities: [rows], or None for the stream's.
        limited, adapts, governed: whether any row has a limit, an adaptive threshold, a budget or a severity.
    """

    def __init__(self, resolver: Resolver) -> None:
        self.resolver = resolver
        k, fields = len(resolver.base), len(resolver.fields)
        self.scores: FloatArray = np.empty((0, k))
        self.adaptive: FloatArray = np.empty((0, k))
        self.low: FloatArray = np.empty((0, fields))
        self.high: FloatArray = np.empty((0, fields))
        self.span: FloatArray = np.empty((0, fields))
        self.budgets: list[Budget | None] = []
        self.severities: list[str | None] = []
        self.limited = self.adapts = self.governed = False
        self._known: NDArray[np.bool_] = np.empty(0, np.bool_)

    def learn(self, ids: Sequence[str], rows: RowArray) -> None:
        """Resolve the rules for sensors that have not been met yet.

        Args:
            ids: the sensor of each row.
            rows: int32 [n], rows that are about to be asked for.
        """
        more = len(ids) - len(self._known)
        if more > 0:
            self._grow(more)
        if self._known[rows].all():
            return
        for row in np.unique(rows[~self._known[rows]]).tolist():
            self._resolve(row, ids[row])
        self._known[rows] = True

    def _grow(self, more: int) -> None:
        for name in ("scores", "adaptive", "low", "high", "span"):
            old = getattr(self, name)
            setattr(self, name, np.concatenate((old, np.zeros((more, old.shape[1])))))
        self.budgets += [None] * more
        self.severities += [None] * more
        self._known = np.concatenate((self._known, np.zeros(more, np.bool_)))

    def _resolve(self, row: int, sensor: str) -> None:
        resolver = self.resolver
        who = resolver.identity(sensor)
        rules = resolver.concerning(who)
        for column in range(len(resolver.base)):
            self.scores[row, column], self.adaptive[row, column] = resolver.score(rules, column)
        for j, field in enumerate(resolver.fields):
            low, high = resolver.limits(rules, field)
            self.low[row, j], self.high[row, j] = low, high
            span = high - low
            if math.isnan(span):
                span = abs(low) if math.isnan(high) else abs(high)
            self.span[row, j] = span or 1.0
        self.budgets[row] = resolver.budget(rules, who)
        self.severities[row] = resolver.severity(rules)
        self.limited |= not bool(np.isnan(self.low[row]).all() and np.isnan(self.high[row]).all())
        self.adapts |= bool(self.adaptive[row].any())
        self.governed |= self.budgets[row] is not None or self.severities[row] is not None
