"""From labelled alerts to a threshold: the score at which right alerts and false ones part best.

What is known of an alert is its *peak*: the highest threshold at which it would still have opened.
A threshold t keeps an alert if its peak is at least t, and what it costs on a set of labelled alerts is

    cost(t) = miss_cost (right alerts that it loses) + (false alarms that it keeps)

The threshold of least cost is taken, of equals the lowest, in the middle of the gap between two peaks. It is
never below the one that holds now: nobody has labelled alerts that never opened.

A threshold that is chosen on labels flatters itself on them. So what to expect is measured on labels left
out: those of one sensor at a time (of one alert at a time where there are few sensors) are judged by the
threshold that the others give. It is proposed only if it saves there more than 1.64 standard errors. Shares
have Wilson's interval; the interval of the threshold is that of a bootstrap over the same units.

Sources: E. Wilson, "Probable inference, the law of succession, and statistical inference" (J. American
Statistical Association 22, 1927); M. Stone, "Cross-validatory choice and assessment of statistical
predictions" (J. Royal Statistical Society B 36, 1974); B. Efron, "Bootstrap methods: another look at the
jackknife" (Annals of Statistics 7, 1979).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from anomaly.detector import FloatArray

#: Labels of each kind without which nothing is proposed.
LEAST = 3
#: Sensors from which on they are left out one by one; with fewer, alerts are.
SENSORS = 5
#: Of all intervals, and the normal quantile that goes with it.
CONFIDENCE = 0.9
QUANTILE = 1.6449
ROUNDS = 500


class Share(NamedTuple):
    """A share with its interval."""

    value: float
    low: float
    high: float


def wilson(part: int, whole: int) -> Share:
    """Return a share and Wilson's interval; of nothing it is NaN, from 0 to 1.

    >>> [round(x, 3) for x in wilson(9, 10)]
    [0.9, 0.652, 0.977]
    """
    if whole == 0:
        return Share(math.nan, 0.0, 1.0)
    share, z2 = part / whole, QUANTILE**2
    middle = (share + z2 / (2 * whole)) / (1 + z2 / whole)
    reach = QUANTILE / (1 + z2 / whole) * math.sqrt(share * (1 - share) / whole + z2 / (4 * whole**2))
    return Share(share, max(middle - reach, 0.0), min(middle + reach, 1.0))


class Outcome(NamedTuple):
    """What a threshold makes of labelled alerts."""

    real: int
    real_kept: int
    false: int
    false_kept: int

    @property
    def precision(self) -> Share:
        """Of the alerts that are kept, how many are right."""
        return wilson(self.real_kept, self.real_kept + self.false_kept)

    @property
    def recall(self) -> Share:
        """Of the right alerts, how many are kept."""
        return wilson(self.real_kept, self.real)


@dataclass(frozen=True, slots=True)
class Proposal:
    """A threshold and what it does.

    Attributes:
        threshold: the proposed one.
        low, high: its interval.
        before: by what holds now.
        after: by the proposal, on the labels that it was chosen by.
        expected: on labels that were left out, each judged by what the others propose.
    """

    threshold: float
    low: float
    high: float
    before: Outcome
    after: Outcome
    expected: Outcome


def propose(
    peaks: FloatArray, real: NDArray[np.bool_], sensors: Sequence[str], now: FloatArray, miss_cost: float
) -> Proposal | str:
    """Propose a threshold for labelled alerts, or say why none is proposed.

    Args:
        peaks: float64 [n], the highest threshold at which each alert opens.
        real: bool [n], whether it was right.
        sensors: [n], whose it was.
        now: float64 [n], the threshold that holds for it now.
        miss_cost: what a right alert that is lost costs, in false alarms.
    """
    kept = peaks >= now
    n_real, n_false = int((kept & real).sum()), int((kept & ~real).sum())
    if n_real < LEAST or n_false < LEAST:
        return f"{n_real} right and {n_false} false alarms are labelled, {LEAST} of each are needed"
    floor = float(now.max())
    units = np.unique(np.array(sensors), return_inverse=True)[1]
    if units.max() + 1 < SENSORS:
        units = np.arange(len(peaks))
    threshold = choose(peaks, real, floor, miss_cost)
    before = _outcome(peaks, real, now)
    if threshold <= floor:
        return "no higher threshold parts right alerts from false ones better"
    by_others = np.empty(len(peaks))
    for unit in range(units.max() + 1):
        mine = units == unit
        by_others[mine] = choose(peaks[~mine], real[~mine], floor, miss_cost)
    by_others = np.maximum(by_others, now)
    expected = _outcome(peaks, real, by_others)
    saved = np.bincount(
        units, _costs(peaks, real, now, miss_cost) - _costs(peaks, real, by_others, miss_cost)
    )
    # what is saved must be more than chance makes of it
    if saved.sum() <= QUANTILE * saved.std(ddof=1) * math.sqrt(len(saved)):
        return (
            f"{threshold:.4g} fits these labels, but not those that are left out: "
            "label more, or there is nothing to part"
        )
    members = [np.flatnonzero(units == unit) for unit in range(units.max() + 1)]
    rng = np.random.default_rng(0)
    drawn = np.empty(ROUNDS)
    for i in range(ROUNDS):
        some = np.concatenate([members[unit] for unit in rng.integers(0, len(members), len(members))])
        drawn[i] = choose(peaks[some], real[some], floor, miss_cost)
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    after = _outcome(peaks, real, np.maximum(threshold, now))
    return Proposal(threshold, float(low), float(high), before, after, expected)


def choose(peaks: FloatArray, real: NDArray[np.bool_], floor: float, miss_cost: float) -> float:
    """Return the threshold of least cost, at least `floor`; of equals the lowest.

    Args:
        peaks: float64 [n].
        real: bool [n].
        floor: the threshold that holds now.
        miss_cost: see `propose`.
    """
    above = peaks >= floor
    places, inverse = np.unique(peaks[above], return_inverse=True)
    lost = np.bincount(inverse[real[above]], minlength=len(places))
    spared = np.bincount(inverse[~real[above]], minlength=len(places))
    # the change of the cost when the threshold passes the first, the first two ... of the peaks
    change = np.concatenate([[0.0], np.cumsum(miss_cost * lost - spared)])
    best = int(change.argmin())
    if best == 0:
        return floor
    below = float(places[best - 1])
    if best == len(places):
        return _round_up(below)
    return _between(below, float(places[best]))


def _between(low: float, high: float) -> float:
    """Return a short number near the middle: above low, at most high."""
    middle = (low + high) / 2
    for digits in range(2, 17):
        short = float(f"{middle:.{digits}g}")
        if low < short <= high:
            return short
    return high


def _round_up(low: float) -> float:
    return _between(low, low * 1.05 if low > 0 else 1e-6)


def _costs(peaks: FloatArray, real: NDArray[np.bool_], threshold: FloatArray, miss_cost: float) -> FloatArray:
    """Return float64 [n]: what each alert costs."""
    kept = peaks >= threshold
    return np.where(real, miss_cost * ~kept, kept)


def _outcome(peaks: FloatArray, real: NDArray[np.bool_], threshold: FloatArray | float) -> Outcome:
    kept = peaks >= threshold
    return Outcome(int(real.sum()), int((real & kept).sum()), int((~real).sum()), int((~real & kept).sum()))


def sustained(scores: Sequence[float], ts: Sequence[float], readings: int, lasting_s: float) -> float:
    """Return the highest threshold that so many readings in a row reach, over so long; -inf: none.

    Args:
        scores: [n], in the order of the readings; NaN where there is none, which breaks no row.
        ts: [n], their times in seconds.
        readings: in a row.
        lasting_s: from the first of them to the last.
    """
    known = [(score, t) for score, t in zip(scores, ts, strict=True) if score == score]
    best = -math.inf
    for begin in range(len(known)):
        if known[begin][0] <= best:
            continue
        lowest = math.inf
        for end in range(begin, len(known)):
            lowest = min(lowest, known[end][0])
            if lowest <= best:
                break
            if end - begin + 1 >= readings and known[end][1] - known[begin][1] >= lasting_s:
                best = lowest
                break
    return best
