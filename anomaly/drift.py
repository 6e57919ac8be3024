"""Drift: a change that lasts, told from an anomaly, said once, after which the detector learns anew.

Readings of a sensor and field are gathered into blocks of `readings` / 8 readings and `lasting_s` / 8
seconds, of which the mean and the standard deviation are kept. The *level* is the median of the last 8
block means, the *spread* that of the logarithms of their standard deviations, so that spikes and bursts
in up to 3 blocks count for nothing. How level and spread usually move is learned as exponentially
weighted mean and variance over 128 blocks, each step counted up to 3 deviations: noise, slow rhythms and
wandering all widen it. A change is declared when

    |level - usual| > sigmas * deviation of the level, and above least_sd standard deviations of the readings,
    and 7 of the last 8 blocks lie beyond half of that on the same side

and likewise for the spread, by a factor of at least `least_factor`. What is usual then is the new level
and spread. Nothing is declared in the first 64 blocks.

When it misleads: a rhythm that is slower than 128 blocks and begins suddenly looks like a change; a shift
that is small against the usual movement of the level is learned without a word.

Cost: 0.02 us a reading and field.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from anomaly.compiled import compiled
from anomaly.notice import Notice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anomaly.detector import Detector, Explain, FloatArray, RowArray, StateArray
    from streams.config import DriftConfig

RULE = "drift"
BLOCKS = 8
MEMORY = 128.0
WARMUP = 64
#: A step of the level counts up to so many deviations.
CLIP = 3.0
HUGE = 1e150
ROOM = 32

_CELL = np.dtype(
    [
        ("n", "<i4"),  # readings of the block
        ("held", "<i4"),  # blocks in the ring
        ("next", "<i4"),  # where the next one goes
        ("learned", "<i4"),  # steps of level and spread learned
        ("serial", "<i4"),
        ("start", "<f8"),
        ("mean", "<f8"),
        ("m2", "<f8"),
        ("starts", "<f8", (BLOCKS,)),
        ("ring", "<f8", (2, BLOCKS)),  # means; logarithms of standard deviations
        ("usual", "<f8", (2,)),
        ("var", "<f8", (2,)),
    ]
)
_EVENT = np.dtype(
    [
        ("index", "<i4"),
        ("field", "<i4"),
        ("serial", "<i4"),
        ("score", "<f8"),
        ("since", "<f8"),
        ("old", "<f8", (2,)),
        ("new", "<f8", (2,)),
    ]
)


@compiled
def _block(cell: Any, x: float, at: float, least: int, least_s: float) -> bool:
    """Add a reading; tells whether its block is full and now in the ring."""
    if cell.n == 0:
        cell.start = at
        cell.mean = 0.0
        cell.m2 = 0.0
    cell.n += 1
    d = x - cell.mean
    cell.mean += d / cell.n
    cell.m2 += d * (x - cell.mean)
    if cell.n < least or at - cell.start < least_s:
        return False
    place = cell.next
    sd = max(math.sqrt(max(cell.m2, 0.0) / cell.n), 1e-9 * abs(cell.mean), 1e-300)
    cell.starts[place] = cell.start
    cell.ring[0, place] = cell.mean
    cell.ring[1, place] = math.log(sd)
    cell.next = (place + 1) % BLOCKS
    cell.held = min(cell.held + 1, BLOCKS)
    cell.n = 0
    return bool(cell.held == BLOCKS)


@compiled
def _middle(ring: Any, which: int, order: Any) -> float:
    """Sort one statistic of the ring into `order`; returns its median."""
    for i in range(BLOCKS):
        x = ring[which, i]
        j = i
        while j > 0 and order[j - 1] > x:
            order[j] = order[j - 1]
            j -= 1
        order[j] = x
    return float(0.5 * (order[BLOCKS // 2 - 1] + order[BLOCKS // 2]))


@compiled
def _since(cell: Any, which: int, edge: float, sign: float) -> float:
    """Return when the first block beyond the edge began."""
    for k in range(BLOCKS):
        place = (cell.next + k) % BLOCKS
        if (cell.ring[which, place] - edge) * sign > 0.0:
            return float(cell.starts[place])
    return float(cell.starts[cell.next])


@compiled
def _run(
    cells: Any,
    rows: RowArray,
    values: FloatArray,
    ts: FloatArray,
    least: int,
    least_s: float,
    sigmas: float,
    least_sd: float,
    least_log: float,
    begin: int,
    order: Any,
    now: Any,
    events: Any,
) -> tuple[int, int]:
    """Take readings from `begin` on, until the room for events runs short: (next reading, events)."""
    told = 0
    fields = values.shape[1]
    for i in range(begin, rows.shape[0]):
        if told + fields > events.shape[0]:
            return i, told
        for j in range(fields):
            x = values[i, j]
            if x != x:
                continue
            cell = cells[rows[i], j]
            if not _block(cell, min(max(x, -HUGE), HUGE), ts[i], least, least_s):
                continue
            now[0] = _middle(cell.ring, 0, order)
            now[1] = _middle(cell.ring, 1, order)
            score = 0.0
            since = 0.0
            for which in range(2):
                if cell.learned < WARMUP:
                    break
                middle = _middle(cell.ring, which, order)
                moved = middle - cell.usual[which]
                sign = 1.0 if moved > 0.0 else -1.0
                floor = least_sd * math.exp(min(cell.usual[1], 700.0)) if which == 0 else least_log
                margin = max(sigmas * math.sqrt(cell.var[which]), floor, 1e-9 * abs(cell.usual[which]))
                edge = cell.usual[which] + 0.5 * sign * margin
                # all blocks but one beyond half of it
                hindmost = order[1] if sign > 0.0 else order[BLOCKS - 2]
                if abs(moved) > margin and (hindmost - edge) * sign > 0.0:
                    if score == 0.0:
                        since = _since(cell, which, edge, sign)
                    score = max(score, sigmas * abs(moved) / margin)
            if score > 0.0:
                event = events[told]
                told += 1
                event.index = i
                event.field = j
                event.serial = cell.serial
                event.score = score
                event.since = since
                factor = math.exp(2.0 * min(now[1] - cell.usual[1], 300.0))
                if factor > 1.0:
                    cell.var[0] *= factor
                for which in range(2):
                    event.old[which] = cell.usual[which]
                    event.new[which] = now[which]
                    cell.usual[which] = now[which]
                cell.serial += 1
                cell.held = 0
                continue
            weight = max(1.0 / MEMORY, 1.0 / (cell.learned + 1.0))
            for which in range(2):
                d = now[which] - cell.usual[which]
                if cell.learned == 0:
                    cell.usual[which] = now[which]
                    continue
                if cell.learned >= WARMUP // 2:
                    most = CLIP * math.sqrt(cell.var[which]) + 1e-9 * abs(cell.usual[which]) + 1e-12
                    d = min(max(d, -most), most)
                cell.usual[which] += weight * d
                cell.var[which] = (1.0 - weight) * (cell.var[which] + weight * d * d)
            if cell.learned < 1 << 30:
                cell.learned += 1
    return rows.shape[0], told


class DriftWatch:
    """Tells lasting changes; meets the rules of a companion, see `anomaly.notice`.

    Args:
        config: what counts as lasting.
        fields: the names of the value columns.
        units: their units.
    """

    def __init__(self, config: DriftConfig, fields: Sequence[str], units: Sequence[str]) -> None:
        self.config = config
        self.fields = list(fields)
        self.units = list(units)
        self.dtype: np.dtype[Any] = np.dtype([("cells", _CELL, (len(self.fields),))])

    def init(self, n: int) -> StateArray:
        """Return the state of n sensors that were never seen, [n]."""
        return np.zeros(n, self.dtype)

    def update(self, state: StateArray, rows: RowArray, values: FloatArray, ts: FloatArray) -> list[Notice]:
        """Take a chunk of readings, as `Detector.examine` does, and return the changes in their order."""
        config = self.config
        events = np.zeros(max(ROOM, len(self.fields)), _EVENT)
        order, now = np.empty(BLOCKS), np.empty(2)
        notices: list[Notice] = []
        at = 0
        while at < len(rows):
            at, told = _run(
                state["cells"],
                rows,
                values,
                ts,
                config.readings // BLOCKS,
                config.lasting_s / BLOCKS,
                config.sigmas,
                config.least_sd,
                math.log(config.least_factor),
                at,
                order,
                now,
                events,
            )
            notices += [self._notice(event, rows, ts) for event in events[:told]]
        return notices

    def _notice(self, event: Any, rows: RowArray, ts: FloatArray) -> Notice:
        index, j = int(event["index"]), int(event["field"])
        old, new = float(event["old"][0]), float(event["new"][0])
        before, after = (math.exp(min(float(event[name][1]), 700.0)) for name in ("old", "new"))
        unit = self.units[j]
        way = "higher" if new >= old else "lower"
        text = f"{self.fields[j]} runs {abs(new - old):.3g} {unit}".rstrip()
        text += f" {way} ({old:.5g} -> {new:.5g}); spread {before:.3g} -> {after:.3g}"
        if before > 0 and max(after / before, before / after) >= self.config.least_factor:
            text += f", {after / before:.2g}x"
        return Notice(
            rule=RULE,
            subject=self.fields[j],
            # a change is told once; nothing stays open
            state="resolved",
            row=int(rows[index]),
            index=index,
            field=j,
            value=new,
            score=float(event["score"]),
            threshold=self.config.sigmas,
            severity="info",
            started_at=float(event["since"]),
            ts=float(ts[index]),
            count=1,
            serial=int(event["serial"]),
            explanation=f"{text}; a lasting change, learned anew from here",
        )


def relearn(detector: Detector, state: StateArray, row: int, column: int) -> None:
    """Make a detector forget a sensor's field, or the sensor where it can't forget less.

    A detector may have a method `relearn(state, row, column)`; `column` is that of `values`.
    """
    own = getattr(detector, "relearn", None)
    if own is None:
        state[row] = detector.init(1)[0]
    else:
        own(state, row, column)


def examine_in_parts(
    detector: Detector,
    state: StateArray,
    rows: RowArray,
    values: FloatArray,
    ts: FloatArray,
    changes: Sequence[Notice],
) -> tuple[FloatArray, Explain]:
    """Examine a chunk, the detector learning anew right after the reading at which each change was told.

    So the cut of the stream into chunks makes no difference. Changes are rare; each costs one more call.
    """
    if not changes:
        return detector.examine(state, rows, values, ts)
    starts: list[int] = []
    parts: list[tuple[FloatArray, Explain]] = []
    at = 0
    for stop in sorted({change.index + 1 for change in changes} | {len(rows)}):
        part = slice(at, stop)
        starts.append(at)
        parts.append(detector.examine(state, rows[part], values[part], ts[part]))
        for change in changes:
            if change.index == stop - 1:
                relearn(detector, state, change.row, change.field)
        at = stop

    def explain(i: int, j: int) -> str:
        k = int(np.searchsorted(starts, i, side="right")) - 1
        return parts[k][1](i - starts[k], j)

    return np.concatenate([scores for scores, _ in parts]), explain
