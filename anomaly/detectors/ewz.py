"""Exponentially weighted mean and variance, and how many standard deviations a reading is away.

What it finds: spikes, level shifts and steep changes of a value that otherwise moves about a slowly
changing mean. When it misleads: a daily rhythm that is fast against 1/alpha readings looks strange on
every slope; a slow drift is followed and never flagged; a stuck value is the most usual value of all (and
lets the deviation shrink, so that the first move after it stands out). After a fault the deviation is
wide for about 1/alpha readings. It expects one mode and thin tails.

For each sensor and field, with n readings seen, before reading x:

    z    = |x - mean| / max(sqrt(var), min_sd)      0 while n < warmup
    w    = max(alpha, 1 / (n + 1))                  plain mean and variance until n reaches 1/alpha
    d    = x - mean
    mean = mean + w d
    var  = (1 - w) (var + w d d)

Source: T. Finch, "Incremental calculation of weighted mean and variance" (2009), section 9.

Bit for bit the same for any cut of the stream: every path below makes these operations in this order, so
that what a recording gives in large chunks is what the live path gave in small ones. A blocked scan
(prefix products) would be faster on a single sensor, but differs in the last bits of the mean, and after
a stuck value, where the deviation is at its floor, those bits are all that z shows (1e-4 instead of 0).
Cost for 3 fields on one core: see the comments at the three paths.

    >>> import numpy as np
    >>> detector = EwzDetector(EwzConfig(warmup=3), ("temperature",))
    >>> state = detector.init(1)
    >>> rows, ts = np.zeros(5, np.int32), np.arange(5.0)
    >>> detector.score(state, rows, np.array([[20.0], [20.2], [19.8], [20.0], [25.0]]), ts)[:, 0].round(1)
    array([ 0. ,  0. ,  0. ,  0. , 35.4])
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from anomaly.detector import (
    DetectorConfig,
    Explain,
    FloatArray,
    RowArray,
    StateArray,
    thresholds_of,
)
from streams.occurrence import Costs, Rounds

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
CountArray = np.ndarray[Any, np.dtype[np.int32]]

#: Microseconds at 3 fields: a round, a tail, a reading of a tail.
COSTS = Costs(per_round=8, per_tail=20, per_tail_reading=0.7)
#: Chunks up to this many readings are scored in plain Python.
FEW = 24
#: A value beyond this is scored as this and not learned: its square would overflow.
HUGE = 1e150
#: Readings are counted up to here; the weight is alpha long before.
MOST = 1 << 30


class EwzConfig(DetectorConfig, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Parameters of `ewz`.

    Args:
        alpha: weight of a new reading, 0 < alpha <= 1; about 1/alpha readings are remembered.
        warmup: readings of a sensor and field before it is scored.
        threshold: standard deviations from which a reading is anomalous.
        min_sd: floor of the deviation, in the field's unit.
    """

    alpha: float = 0.02
    warmup: int = 30
    threshold: float = 6.0
    min_sd: float = 1e-9

    def faults(self) -> dict[str, str]:
        """See `DetectorConfig.faults`."""
        faults = {}
        if not 1e-6 <= self.alpha <= 1:
            faults["alpha"] = f"{self.alpha} is not in [0.000001, 1]"
        if not 1 <= self.warmup <= 1_000_000:
            faults["warmup"] = f"{self.warmup} is not in [1, 1000000]"
        if not 0 < self.threshold < math.inf:
            faults["threshold"] = f"{self.threshold} is not positive"
        if not 1e-100 <= self.min_sd < math.inf:
            faults["min_sd"] = f"{self.min_sd} is not at least 1e-100"
        return faults


class EwzDetector:
    """See the module."""

    name: ClassVar[str] = "ewz"
    version: ClassVar[str] = "1"
    config_type: ClassVar[type[DetectorConfig]] = EwzConfig

    def __init__(
        self, config: EwzConfig, fields: tuple[str, ...], field_thresholds: dict[str, float] | None = None
    ) -> None:
        self.config = config
        self.fields = fields
        k = len(fields)
        self.dtype: np.dtype[Any] = np.dtype(
            [("n", "<i4", (k,)), ("mean", "<f8", (k,)), ("var", "<f8", (k,))]
        )
        self.thresholds = thresholds_of(fields, config.threshold, field_thresholds)
        # from this n on the weight is alpha
        steady = max(0, math.ceil(1 / config.alpha) - 2)
        while 1 / (steady + 1) > config.alpha:
            steady += 1
        self._steady = max(steady, config.warmup)

    def init(self, n: int) -> StateArray:
        """See `Detector.init`."""
        return np.zeros(n, self.dtype)

    def relearn(self, state: StateArray, row: int, column: int) -> None:
        """Forget a sensor's field: it warms up again."""
        for part in ("n", "mean", "var"):
            state[part][row, column] = 0

    def score(self, state: StateArray, rows: RowArray, values: FloatArray, ts: FloatArray) -> FloatArray:
        """See `Detector.score`; the score is z."""
        return self.examine(state, rows, values, ts)[0]

    def examine(
        self, state: StateArray, rows: RowArray, values: FloatArray, ts: FloatArray
    ) -> tuple[FloatArray, Explain]:
        """See `Detector.examine`."""
        if len(rows) <= FEW:
            return self._score_few(state, rows, values)
        return self._score_many(state, rows, values)

    def _score_few(self, state: StateArray, rows: RowArray, values: FloatArray) -> tuple[FloatArray, Explain]:
        """Score reading by reading: 15 to 45 us for 1 to 20 readings, where rounds take 80 us and more."""
        shape = values.shape
        k = shape[1]
        # a sensor's state is kept where its first reading in this chunk is
        first: dict[int, int] = {}
        homes = [first.setdefault(row, i * k) for i, row in enumerate(rows.tolist())]
        slots = [home + j for home in homes for j in range(k)]
        seen, mean, var = state["n"][rows], state["mean"][rows], state["var"][rows]
        distances, variances, new = self._walk(
            values.ravel().tolist(), slots, seen.reshape(-1), mean.reshape(-1), var.reshape(-1)
        )
        if len(first) < len(homes):
            last = [home // k for home in homes]
            seen, mean, var = seen[last], mean[last], var[last]
        state["n"][rows] = seen
        state["mean"][rows] = mean
        state["var"][rows] = var
        distance, spread = np.array(distances).reshape(shape), np.array(variances).reshape(shape)
        young = np.array(new).reshape(shape) if True in new else None

        def explain(i: int, j: int) -> str:
            return _explain(float(values[i, j]), float(distance[i, j]), float(spread[i, j]))

        return self._z(distance, spread, young), explain

    def _score_many(
        self, state: StateArray, rows: RowArray, values: FloatArray
    ) -> tuple[FloatArray, Explain]:
        """Score by rounds, and what is left sensor by sensor."""
        rounds = Rounds(rows, COSTS)
        seen = state["n"][rounds.rows]
        mean = state["mean"][rounds.rows]
        var = state["var"][rounds.rows]
        # in the order of the rounds: the values, which become the distance from the mean before each
        # reading; and the variance before it, which becomes the deviation
        distance = values.take(rounds.order, axis=0)
        spread = np.empty_like(distance)
        young: BoolArray | None = None
        # NaN fails both comparisons
        plain = bool(seen.min() >= self._steady and values.min() >= -HUGE and values.max() <= HUGE)
        if plain:
            self._rounds_plain(rounds.widths, distance, spread, mean, var)
            np.minimum(seen + rounds.counts[:, None], MOST, out=seen, casting="unsafe")
        else:
            young = np.empty(distance.shape, np.bool_)
            self._rounds(rounds.widths, distance, spread, young, seen, mean, var)
        for rank, start, stop in rounds.tails:
            part = slice(start, stop)
            for j in range(distance.shape[1]):
                x = distance[part, j]
                if young is None:
                    distance[part, j], spread[part, j], mean[rank, j], var[rank, j] = self._tail(
                        x, float(mean[rank, j]), float(var[rank, j])
                    )
                else:
                    of = (slice(rank, rank + 1), j)
                    distance[part, j], spread[part, j], young[part, j] = self._walk(
                        x.tolist(), [0] * (stop - start), seen[of], mean[of], var[of]
                    )
        state["n"][rounds.rows] = seen
        state["mean"][rounds.rows] = mean
        state["var"][rounds.rows] = var
        place = rounds.place

        def explain(i: int, j: int) -> str:
            at = place[i]
            return _explain(float(values[i, j]), float(distance[at, j]), float(spread[at, j]))

        return self._z(distance, spread, young).take(place, axis=0), explain

    def _z(self, distance: FloatArray, spread: FloatArray, young: BoolArray | None) -> FloatArray:
        """Return z; `spread` comes as variance and is left as deviation."""
        np.sqrt(spread, out=spread)
        np.maximum(spread, self.config.min_sd, out=spread)
        z = distance / spread
        np.abs(z, out=z)
        if young is not None:
            z[young & ~np.isnan(distance)] = 0.0
        return z

    def _rounds_plain(
        self,
        widths: list[int],
        x: FloatArray,
        variance: FloatArray,
        mean: FloatArray,
        var: FloatArray,
    ) -> None:
        """Take the rounds where every value counts and every weight is alpha; `x` becomes the distance."""
        alpha = self.config.alpha
        keep = 1 - alpha
        scratch = np.empty_like(mean)
        start = 0
        for width in widths:
            stop = start + width
            d, step, m, v = x[start:stop], scratch[:width], mean[:width], var[:width]
            variance[start:stop] = v
            np.subtract(d, m, out=d)
            np.multiply(d, alpha, out=step)
            np.add(m, step, out=m)
            np.multiply(step, d, out=step)
            np.add(v, step, out=v)
            np.multiply(v, keep, out=v)
            start = stop

    def _rounds(
        self,
        widths: list[int],
        x: FloatArray,
        variance: FloatArray,
        young: BoolArray,
        seen: CountArray,
        mean: FloatArray,
        var: FloatArray,
    ) -> None:
        """Take the rounds where values may be missing and sensors new; `x` becomes the distance."""
        alpha, warmup = self.config.alpha, self.config.warmup
        done = sum(widths)
        learn = np.abs(x[:done]) <= HUGE
        np.clip(x[:done], -HUGE, HUGE, out=x[:done])
        start = 0
        for width in widths:
            stop = start + width
            n, m, v, ok = seen[:width], mean[:width], var[:width], learn[start:stop]
            variance[start:stop] = v
            np.less(n, warmup, out=young[start:stop])
            d = np.subtract(x[start:stop], m, out=x[start:stop])
            w = np.maximum(alpha, 1 / (n + 1))
            step = w * d
            np.copyto(v, (1 - w) * (v + step * d), where=ok)
            np.add(m, step, out=m, where=ok)
            np.add(n, ok, out=n)
            np.minimum(n, MOST, out=n)
            start = stop

    def _tail(self, x: FloatArray, mean: float, var: float) -> tuple[FloatArray, FloatArray, float, float]:
        """Take many readings of one sensor and field, [m], where all count and all weights are alpha.

        NumPy has no scan for such a recurrence. This loop holds the least that must run in order: 0.2 us a
        value on a slow core, 1.4 M readings/s with 3 fields.

        Returns:
            distance and variance before each reading, [m]; mean and variance after the last.
        """
        alpha = self.config.alpha
        keep = 1 - alpha
        distances: list[float] = []
        variances: list[float] = []
        push_distance, push_variance = distances.append, variances.append
        for value in x.tolist():
            d = value - mean
            push_distance(d)
            push_variance(var)
            step = alpha * d
            mean += step
            var = keep * (var + step * d)
        m = len(x)
        return np.fromiter(distances, np.float64, m), np.fromiter(variances, np.float64, m), mean, var

    def _walk(
        self, values: list[float], slots: list[int], seen: CountArray, mean: FloatArray, var: FloatArray
    ) -> tuple[list[float], list[float], list[bool]]:
        """Take values one by one, whatever they are: 0.4 to 0.5 us each.

        Args:
            values: [m], in order.
            slots: [m], where in `seen`, `mean` and `var` the state is that each value belongs to.
            seen: [slots], readings seen, changed in place.
            mean: [slots], likewise.
            var: [slots], likewise.

        Returns:
            [m] each: distance and variance before the value, and whether it was in warm-up.
        """
        alpha, warmup, steady = self.config.alpha, self.config.warmup, self._steady
        keep = 1 - alpha
        counts, means, variances = seen.tolist(), mean.tolist(), var.tolist()
        distances: list[float] = []
        before: list[float] = []
        young: list[bool] = []
        for value, slot in zip(values, slots, strict=True):
            v = variances[slot]
            n = counts[slot]
            before.append(v)
            young.append(n < warmup)
            if -HUGE <= value <= HUGE:
                m = means[slot]
                d = value - m
                if n >= steady:
                    step = alpha * d
                    variances[slot] = keep * (v + step * d)
                else:
                    w = max(alpha, 1 / (n + 1))
                    step = w * d
                    variances[slot] = (1 - w) * (v + step * d)
                means[slot] = m + step
                counts[slot] = n + 1 if n < MOST else n
            elif value == value:
                d = math.copysign(HUGE, value) - means[slot]
            else:
                d = value
            distances.append(d)
        seen[:], mean[:], var[:] = counts, means, variances
        return distances, before, young


def _explain(value: float, distance: float, sd: float) -> str:
    if value != value:
        return "no value"
    side = "above" if distance >= 0 else "below"
    usual = f"{number(value - distance, sd)} ± {number(sd, sd)}"
    return f"{number(abs(distance) / sd, 1)} sd {side} the usual {usual}"


def number(value: float, scale: float) -> str:
    """Write a value with as many decimals as a deviation of `scale` makes meaningful.

    >>> number(71.0449, 3.5), number(1013.24, 0.021), number(20.0, 1e-9)
    ('71.0', '1013.240', '20')
    """
    if not math.isfinite(value) or abs(value) >= 1e9 or scale < 1e-6:
        return f"{value:.6g}"
    decimals = 1 if scale >= 1 else 1 - math.floor(math.log10(scale))
    return f"{value:.{min(decimals, 6)}f}"
