"""Failure prediction: "temperature reaches 90 °C in 5 h, 3 to 9 h", and remaining useful life.

A companion of the detector. For each sensor and configured limit, readings are gathered into blocks of
about `memory_s` / 64 seconds; each block gives one step of a trend (`anomaly.trend`), from which the time
until the limit is reached is forecast as a distribution. A block's value is the mean of medians of five
readings in a row, so that single spikes count for nothing; or the root mean square of its readings (`of =
"rms"`, the usual index of vibration); or how many anomalous readings there have been at all (`of =
"anomalies"`). A limit with `wear = true` is the end of a life: exponential growth is tried beside the
linear one, and the better fit has the larger say.

    calm  --  two blocks in a row: P(reached within horizon) >= (1 - confidence) / 2, that is, the
              early end of the interval is within the horizon; and a significant trend   -->  open
    open  --  P(reached within a quarter of the horizon) >= 1/2  -->  open, now critical
    open  --  three blocks in a row: less than half that P, or no trend  -->  resolved: it has turned
    open  --  the level is beyond the limit                      -->  resolved: it has happened

When it misleads: a rhythm that is slow against `memory_s` looks like a trend on every slope (make it at
least twice the rhythm); a value that starts to move faster than ever is believed only as the trend learns
it; what comes without any trend, such as a break, can't be foreseen so.

Cost: 0.02 us a reading and limit.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from anomaly.compiled import compiled
from anomaly.notice import Notice
from anomaly.trend import (
    MEMORY,
    MODELS,
    level_of,
    reach,
    share_exponential,
    significance,
    slope_of,
    step,
    trend_dtype,
    weigh,
    when,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    from anomaly.detector import FloatArray, RowArray, StateArray
    from anomaly.verdict import Verdict
    from streams.config import PrognosisConfig

RULE = "prognosis"
#: Readings whose median counts.
SPAN = 5
#: The slope in its standard errors from which an alert opens, and below which it resolves.
SIGNIFICANT = 2.5
TURNED = 1.0
#: Blocks in a row that open an alert, and that resolve it.
OPEN_AFTER = 2
RESOLVE_AFTER = 3
#: Values beyond this are taken as this.
HUGE = 1e150

VALUE, RMS, ANOMALIES = 0, 1, 2
OPENED, WORSENED, PASSED, GONE = 1, 2, 3, 4
SIDES: tuple[Literal["low", "high"], ...] = ("low", "high")

#: Events of one run of the compiled loop, which then hands over and goes on.
ROOM = 32
_EVENT = np.dtype(
    [
        ("index", "<i4"),
        ("limit", "<i4"),
        ("side", "<i4"),
        ("change", "<i4"),
        ("count", "<i4"),
        ("serial", "<i4"),
        ("critical", "u1"),
        ("started_at", "<f8"),
        ("level", "<f8"),
        ("slope", "<f8"),
        ("exponential", "<f8"),
        ("p", "<f8"),
        ("early", "<f8"),
        ("middle", "<f8"),
        ("late", "<f8"),
    ]
)


def _cell(banks: int) -> np.dtype[Any]:
    sides = (2,)
    return np.dtype(
        [
            ("window", "<f8", (SPAN,)),
            ("held", "<i4"),  # values in the window
            ("n", "<i4"),  # readings of the block
            ("parts", "<i4"),  # medians in `total`
            ("total", "<f8"),
            ("start", "<f8"),  # event time of the block's first reading
            ("ts", "<f8"),  # mean event time of the block's readings
            ("last_ts", "<f8"),  # of the block before
            ("trend", trend_dtype(banks)),
            ("open", "u1", sides),
            ("critical", "u1", sides),
            ("streak", "<i4", sides),
            ("count", "<i4", sides),
            ("serial", "<i4", sides),
            ("started_at", "<f8", sides),
        ]
    )


@compiled
def _median(window: Any) -> float:
    """Return the median of SPAN values, by insertion; changes their order."""
    for i in range(1, SPAN):
        x = window[i]
        j = i
        while j > 0 and window[j - 1] > x:
            window[j] = window[j - 1]
            j -= 1
        window[j] = x
    return float(window[SPAN // 2])


@compiled
def _gather(cell: Any, x: float, at: float, kind: int, block_s: float) -> bool:
    """Add a reading to the block; tells whether the block is full."""
    if cell.n == 0:
        cell.start = at
        cell.ts = at
    cell.n += 1
    cell.ts += (at - cell.ts) / cell.n
    if kind == VALUE:
        cell.window[cell.held] = x
        cell.held += 1
        if cell.held == SPAN:
            cell.held = 0
            cell.total += _median(cell.window)
            cell.parts += 1
    elif kind == RMS:
        cell.total += x * x
        cell.parts += 1
    else:
        cell.total += x
    return bool(cell.n >= SPAN and at - cell.start >= block_s and (kind == ANOMALIES or cell.parts > 0))


@compiled
def _close(cell: Any, kind: int, block_s: float) -> bool:
    """Make a step of the trend of a full block; tells whether it did."""
    z = cell.total
    if kind == VALUE:
        z /= cell.parts
    elif kind == RMS:
        z = math.sqrt(z / cell.parts)
    dt = (cell.ts - cell.last_ts) / block_s
    first = cell.trend.n[0] == 0
    cell.n = 0
    if kind != ANOMALIES:
        cell.total = 0.0
        cell.parts = 0
    if not first and dt <= 0.0:
        return False
    cell.last_ts = cell.ts
    if not first and dt > 2.0 * MEMORY:
        # silent for longer than the memory: what was known is forgotten
        for bank in range(cell.trend.n.shape[0]):
            cell.trend.n[bank] = 0
    step(cell.trend, z, dt)
    return True


@compiled
def _judge(
    cell: Any, side: int, bound: float, at: float, horizon: float, least: float, weights: Any, seen: Any
) -> int:
    """Move the alert of one limit on; returns what has changed, 0 if nothing has."""
    upward = 1.0 if side == 1 else -1.0
    is_open = cell.open[side] == 1
    trend = significance(cell.trend, weights) * upward
    passed = (level_of(cell.trend, weights) - bound) * upward >= 0.0
    if not is_open and (trend < SIGNIFICANT or passed):
        cell.streak[side] = 0
        return 0
    p = reach(cell.trend, weights, bound, upward, horizon)
    seen[0] = p
    if not is_open:
        cell.streak[side] = cell.streak[side] + 1 if p >= least else 0
        if cell.streak[side] < OPEN_AFTER:
            return 0
        cell.open[side] = 1
        cell.streak[side] = 0
        cell.count[side] = 1
        cell.started_at[side] = at
        cell.critical[side] = reach(cell.trend, weights, bound, upward, 0.25 * horizon) >= 0.5
        return OPENED
    cell.count[side] += 1
    if passed:
        return PASSED
    turned = p < 0.5 * least or trend < TURNED
    cell.streak[side] = cell.streak[side] + 1 if turned else 0
    if cell.streak[side] >= RESOLVE_AFTER:
        return GONE
    if cell.critical[side] == 0 and reach(cell.trend, weights, bound, upward, 0.25 * horizon) >= 0.5:
        cell.critical[side] = 1
        return WORSENED
    return 0


@compiled
def _tell(event: Any, cell: Any, side: int, bound: float, least: float, weights: Any) -> None:
    """Fill the numbers of an event."""
    upward = 1.0 if side == 1 else -1.0
    event.side = side
    event.count = cell.count[side]
    event.serial = cell.serial[side]
    event.critical = cell.critical[side]
    event.started_at = cell.started_at[side]
    event.level = level_of(cell.trend, weights)
    event.slope = slope_of(cell.trend, weights)
    event.exponential = share_exponential(weights)
    if event.change <= WORSENED:
        event.early = when(cell.trend, weights, bound, upward, least)
        event.middle = when(cell.trend, weights, bound, upward, 0.5)
        event.late = when(cell.trend, weights, bound, upward, 1.0 - least)
    if event.change >= PASSED:
        cell.open[side] = 0
        cell.critical[side] = 0
        cell.streak[side] = 0
        cell.serial[side] += 1


@compiled
def _run(
    cells: Any,
    rows: RowArray,
    values: FloatArray,
    ts: FloatArray,
    strange: Any,
    fields: Any,
    kinds: Any,
    bounds: FloatArray,
    block_s: float,
    horizon: float,
    least: float,
    begin: int,
    weights: Any,
    seen: Any,
    events: Any,
) -> tuple[int, int]:
    """Take readings from `begin` on, until the room for events runs short: (next reading, events)."""
    told = 0
    for i in range(begin, rows.shape[0]):
        if told + 2 * fields.shape[0] > events.shape[0]:
            return i, told
        for k in range(fields.shape[0]):
            kind = kinds[k]
            x = values[i, fields[k]]
            if x != x:
                continue
            x = (1.0 if strange[i, k] else 0.0) if kind == ANOMALIES else min(max(x, -HUGE), HUGE)
            cell = cells[rows[i], k]
            if not _gather(cell, x, ts[i], kind, block_s) or not _close(cell, kind, block_s):
                continue
            if not weigh(cell.trend, weights):
                continue
            for side in range(2):
                bound = bounds[k, side]
                if bound != bound:
                    continue
                change = _judge(cell, side, bound, ts[i], horizon, least, weights, seen)
                if change:
                    event = events[told]
                    told += 1
                    event.index = i
                    event.limit = k
                    event.change = change
                    event.p = seen[0]
                    _tell(event, cell, side, bound, least, weights)
    return rows.shape[0], told


class Prognosis:
    """Predicts when values reach their limits.

    Args:
        config: limits and horizon.
        fields: the names of the value columns.
        units: their units, "" where there is none.
    """

    def __init__(self, config: PrognosisConfig, fields: Sequence[str], units: Sequence[str]) -> None:
        self.config = config
        self.units = list(units)
        self.limits = list(config.limits)
        kinds = {"value": VALUE, "rms": RMS, "anomalies": ANOMALIES}
        self._fields = np.array([list(fields).index(limit.field) for limit in self.limits], np.int64)
        self._kinds = np.array([kinds[limit.of] for limit in self.limits], np.int64)
        self._bounds = np.array(
            [
                [math.nan if bound is None else bound for bound in (limit.low, limit.high)]
                for limit in self.limits
            ],
            np.float64,
        ).reshape(-1, 2)
        self.banks = 2 if any(limit.wear for limit in self.limits) else 1
        self.block_s = config.memory / MEMORY
        self.least = (1 - config.confidence) / 2
        self.dtype: np.dtype[Any] = np.dtype([("cells", _cell(self.banks), (len(self.limits),))])

    def init(self, n: int) -> StateArray:
        """Return the state of n sensors that were never seen, [n]."""
        return np.zeros(n, self.dtype)

    def update(
        self, state: StateArray, rows: RowArray, values: FloatArray, ts: FloatArray, verdict: Verdict
    ) -> list[Notice]:
        """Take a chunk of judged readings.

        Args:
            state: structured [sensors] of `dtype`, changed in place.
            rows: int32 [n], the sensor of each reading, in log order.
            values: float64 [n, fields].
            ts: float64 [n], seconds since 1970.
            verdict: of these readings.

        Returns:
            The notices, in the order of the readings.
        """
        notices: list[Notice] = []
        strange = np.empty((len(rows), len(self.limits)), np.bool_)
        for k, j in enumerate(self._fields.tolist()):
            own = verdict.scores.shape[1] == values.shape[1]
            strange[:, k] = verdict.scores[:, j] >= verdict.thresholds[j] if own else verdict.is_anomaly
        events = np.zeros(max(ROOM, 2 * len(self.limits)), _EVENT)
        weights, seen = np.empty(self.banks * MODELS), np.zeros(1)
        at = 0
        while at < len(rows):
            at, told = _run(
                state["cells"],
                rows,
                values,
                ts,
                strange,
                self._fields,
                self._kinds,
                self._bounds,
                self.block_s,
                self.config.horizon_s / self.block_s,
                self.least,
                at,
                weights,
                seen,
                events,
            )
            notices += [self._notice(event, rows, ts) for event in events[:told]]
        return notices

    def _notice(self, event: Any, rows: RowArray, ts: FloatArray) -> Notice:
        k, side, index = int(event["limit"]), int(event["side"]), int(event["index"])
        limit = self.limits[k]
        resolved = event["change"] >= PASSED
        subject = f"{limit.field}/{SIDES[side]}" + ("" if limit.of == "value" else f"/{limit.of}")
        return Notice(
            rule=RULE,
            subject=subject,
            state="resolved" if resolved else "firing",
            row=int(rows[index]),
            index=index,
            field=int(self._fields[k]),
            value=float(event["level"]),
            score=float(event["p"]),
            threshold=self.least,
            severity="critical" if event["critical"] else self.config.severity,
            started_at=float(event["started_at"]),
            ts=float(ts[index]),
            count=int(event["count"]),
            serial=int(event["serial"]),
            explanation=self._words(event, k, side),
        )

    def _words(self, event: Any, k: int, side: int) -> str:
        """Say what is foreseen: "... rising 3.7 °C an hour: reaches 90 °C in 5 h, 3 to 9 h (80%)"."""
        limit = self.limits[k]
        unit = "" if limit.of == "anomalies" else self.units[int(self._fields[k])]
        name = {"value": "", "rms": "root mean square of ", "anomalies": "anomalies of "}[
            limit.of
        ] + limit.field

        def amount(x: float) -> str:
            return f"{x:.4g} {unit}".rstrip()

        bound = amount(float(self._bounds[k, side]))
        head = f"{name} {amount(float(event['level']))}"
        if event["change"] == PASSED:
            return f"{head}: has reached {bound}"
        if event["change"] == GONE:
            return f"{head}: no longer heading for {bound}"
        pace, per = abs(float(event["slope"])) / self.block_s, "an hour"
        pace *= 3600
        if self.config.horizon_s < 3600:
            pace, per = pace / 60, "a minute"
        elif self.config.horizon_s > 10 * 86_400:
            pace, per = pace * 24, "a day"
        verb = "rising" if side == 1 else "falling"
        way = "exponentially, now " if event["exponential"] >= 0.5 else ""
        early, middle, late = (float(event[name]) * self.block_s for name in ("early", "middle", "late"))
        share = f"{self.config.confidence:.0%}"
        if limit.wear:
            life = f"{in_words(middle)} of life left, {span_in_words(early, late)} ({share}), until {bound}"
        else:
            life = f"reaches {bound} in {in_words(middle)}, {span_in_words(early, late)} ({share})"
        return f"{head}, {verb} {way}{amount(pace)} {per}: {life}"


_UNITS = ((2 * 86_400.0, 86_400.0, "days"), (2 * 3600.0, 3600.0, "h"), (120.0, 60.0, "min"), (0.0, 1.0, "s"))


def in_words(seconds: float) -> str:
    """Say a time to come in its largest fitting unit.

    >>> in_words(18_000), in_words(95), in_words(float("inf"))
    ('5 h', '95 s', 'unforeseeable time')
    """
    if math.isinf(seconds):
        return "unforeseeable time"
    _, size, name = next(unit for unit in _UNITS if seconds >= unit[0])
    return f"{seconds / size:.3g} {name}" if seconds < 10 * size else f"{seconds / size:.0f} {name}"


def span_in_words(early: float, late: float) -> str:
    """Say the interval, with the unit once where it is one.

    >>> span_in_words(10_800, 32_400), span_in_words(3000, 32_400), span_in_words(3000, float("inf"))
    ('3 to 9 h', '50 min to 9 h', '50 min or later, or never')
    """
    if math.isinf(late):
        return f"{in_words(early)} or later, or never"
    first, second = in_words(early), in_words(late)
    if first.split()[-1] == second.split()[-1]:
        first = first.rpartition(" ")[0]
    return f"{first} to {second}"
