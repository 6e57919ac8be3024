"""Half-space trees: how many readings have been where this one is, all fields together.

Each tree halves the space of the fields again and again, each time along a field picked at random, and counts
how many readings of the last whole window came through each of its nodes. A reading is strange where the
counts are small.

What it finds: combinations of values that hardly came, also where each field alone is usual, and values far
outside. When it misleads: it is coarse, six halvings over all fields, so with many fields it sees only large
changes of several of them; a long anomaly is usual from the second window on; of a rhythm longer than a
window each phase is strange. A field without value is taken as it was last.

With r the count of the node in which a walk ends (at the bottom, or where at most a tenth of the window came)
and k its depth:

    raw score = window / density        log2(density) = mean over trees of log2(r 2^k + window / 1024)

so 1 is a place as full as if readings were spread evenly over the range, 50 one that is 50 times emptier. The
paper adds up r 2^k itself, in which the trees that see nothing drown the others: one field of three that was
6 sd off was as strange as 1 reading in 25 that way, and as 1 in 170 with logarithms.

The trees come from `seed` alone and are the same for all sensors; what a sensor keeps are its counts and the
range of each field, mean ± 4 mean distances. That range is learned in the part of the warm-up before the
first window, is widened or moved by a window with a tenth of its values outside, and learned anew when eight
windows in a row use less than an eighth of it; the window after that has no scores, since old counts don't
fit.

Cost: 1.0 us a reading, whatever the fields (10,000 sensors: 1.7). State: 13 KB a sensor. Source:
S. C. Tan, K. M. Ting, T. F. Liu, "Fast anomaly detection for streaming data" (IJCAI 2011), where the ranges
are given.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> on = rng.integers(0, 2, 1000)
    >>> values = np.stack([20 + 5 * on, 3 - 2 * on], 1) + rng.normal(0, 0.05, (1000, 2))
    >>> values[999] = 25, 3
    >>> detector = HalfSpaceTreesDetector(HalfSpaceTreesConfig(), ("speed", "flow"))
    >>> rows, ts = np.zeros(1000, np.int32), np.arange(1000.0)
    >>> scores, explain = detector.examine(detector.init(1), rows, values, ts)
    >>> explain(999, 0).partition(", most")[0]
    '2.31 times fewer readings came here than if they were spread evenly'
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from anomaly.compiled import compiled
from anomaly.detectors.frame import CellConfig, CellDetector
from anomaly.detectors.hashing import hashed, uniform

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from anomaly.detector import DetectorConfig, FloatArray, RowArray

    #: int64 [trees, inner nodes], the field along which a node splits; node i has children 2i+1 and 2i+2.
    Splits = NDArray[np.int64]

#: A range reaches so many mean distances from the mean.
REACH = 4.0
#: A range is fitted to a window that has a larger share of its values outside ...
MANY = 0.1
#: ... and to the last of so many in a row that use less than this share of it.
NARROW, LITTLE = 8, 0.125
#: Where at most this share of the window came, the walk ends.
SPARSE = 0.1
#: No place is taken as emptier than this.
EMPTIEST = 1024.0


class HalfSpaceTreesConfig(CellConfig, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Parameters of `half_space_trees`.

    Args:
        warmup: readings of a sensor before it is scored: for the ranges, then `window` for the counts.
        trees: how many.
        depth: halvings from the top to the bottom of a tree.
        window: readings that are counted before they become the past.
        seed: of the trees.
    """

    warmup: int = 500
    trees: int = 25
    depth: int = 6
    window: int = 250
    seed: int = 0

    def faults(self) -> dict[str, str]:
        """See `DetectorConfig.faults`."""
        faults = super().faults()
        if not 1 <= self.trees <= 1000:
            faults["trees"] = f"{self.trees} is not in [1, 1000]"
        if not 1 <= self.depth <= 12:
            faults["depth"] = f"{self.depth} is not in [1, 12]"
        if not 20 <= self.window <= 65_000:
            faults["window"] = f"{self.window} is not in [20, 65000]"
        elif self.warmup < self.window + 20:
            faults["warmup"] = f"{self.warmup} is not 20 more than the window of {self.window}"
        if not 0 <= self.seed < 2**63:
            faults["seed"] = f"{self.seed} is not in [0, 2^63)"
        return faults


def grow(trees: int, depth: int, fields: int, seed: int) -> tuple[Splits, FloatArray]:
    """Return the trees: which field each inner node splits, and where.

    Returns:
        int64 [trees, 2^depth - 1], and float64 of the same shape, where 0 to 1 is the range of the field.
    """
    nodes = (1 << depth) - 1
    field, at = np.zeros((trees, nodes), np.int64), np.zeros((trees, nodes))
    for tree in range(trees):
        # a range that holds 0 to 1, with a random middle: so the trees halve at different places
        middle = np.array([uniform(seed, tree << 32 | 1 << 31 | q) for q in range(fields)])
        reach = 2 * np.maximum(middle, 1 - middle)
        spans = {0: (middle - reach, middle + reach)}
        for node in range(nodes):
            low, high = spans.pop(node)
            q = int(hashed(seed, tree << 32 | node) % np.uint64(fields))
            half = (low[q] + high[q]) / 2
            field[tree, node], at[tree, node] = q, half
            left, right = high.copy(), low.copy()
            left[q] = right[q] = half
            spans[2 * node + 1], spans[2 * node + 2] = (low, left), (right, high)
    return field, at


@compiled
def _place(cell: Any, j: int) -> float:
    """Return where the last value of a field is in its range, which is 0 to 1."""
    x, low, high = cell.last[j], cell.low[j], cell.high[j]
    if low > high:
        return 0.5  # never had a value when the ranges were learned
    if high > low:
        return float((x - low) / (high - low))
    return 0.5 if x == low else (-math.inf if x < low else math.inf)


@compiled
def _refit(cell: Any) -> bool:
    """Compare a finished window with the ranges; return whether they have changed."""
    moved = narrow = False
    for j in range(cell.mean.shape[0]):
        if cell.seen[j] > 0:
            low, high = cell.low[j], cell.high[j]
            moved |= low > high or cell.outside[j] > MANY * cell.seen[j]
            narrow |= 2.0 * REACH * cell.spread[j] < LITTLE * (high - low)
    cell.narrow = cell.narrow + 1 if narrow else 0
    if not moved and cell.narrow < NARROW:
        return False
    _learn_ranges(cell, cell.narrow >= NARROW)
    cell.narrow = 0
    return True


@compiled
def _learn_ranges(cell: Any, anew: bool) -> None:
    """Take the ranges from the window, or widen what they were unless `anew`."""
    for j in range(cell.mean.shape[0]):
        if cell.seen[j] == 0:
            if cell.ready == 0:
                cell.low[j], cell.high[j] = 1.0, -1.0
            continue
        low = cell.mean[j] - REACH * cell.spread[j]
        high = cell.mean[j] + REACH * cell.spread[j]
        before, after = cell.low[j], cell.high[j]
        width = after - before
        # what is more than a width away from the range before has left it for good
        if not anew and before <= after and low <= after + width and high >= before - width:
            low, high = min(low, before), max(high, after)
        cell.low[j], cell.high[j] = low, high


@compiled
def _run(
    cells: Any,
    rows: RowArray,
    values: FloatArray,
    splits: tuple[Splits, FloatArray],
    warmup: int,
    window: int,
    raw: FloatArray,
    why: FloatArray,
) -> None:
    field, at = splits
    trees, inner = field.shape
    p = values.shape[1]
    place, lost = np.empty(p), np.empty(p)
    sparse = SPARSE * window
    for i in range(rows.shape[0]):
        cell = cells[rows[i], 0]
        some = False
        for j in range(p):
            x = values[i, j]
            if x == x:
                some = True
                cell.last[j] = x
                cell.seen[j] += 1
                cell.outside[j] += x < cell.low[j] or x > cell.high[j]
                cell.mean[j] += (x - cell.mean[j]) / cell.seen[j]
                cell.spread[j] += (abs(x - cell.mean[j]) - cell.spread[j]) / cell.seen[j]
        if not some:
            raw[i, 0] = math.nan
            continue
        cell.counted += 1
        if cell.ready == 0:
            if cell.counted >= warmup - window:
                _learn_ranges(cell, True)
                cell.ready = 1
                _begin_window(cell)
            continue
        for j in range(p):
            place[j] = _place(cell, j)
            lost[j] = 0.0
        density = 0.0
        for t in range(trees):
            reference, latest = cell.reference[t], cell.latest[t]
            node, scale, scored = 0, 1.0, False
            while True:
                latest[node] += 1
                here = scale * reference[node]
                if not scored and (reference[node] <= sparse or node >= inner):
                    density += math.log2(here + window / EMPTIEST)
                    scored = True
                if node >= inner:
                    break
                q = field[t, node]
                node = 2 * node + (1 if place[q] < at[t, node] else 2)
                scale *= 2.0
                if not scored:
                    lost[q] += here - scale * reference[node]
        if cell.ready == 2:
            density /= trees
            raw[i, 0] = window / 2.0**density
            most = 0
            for j in range(p):
                if lost[j] > lost[most]:
                    most = j
            why[i, 0, 0], why[i, 0, 1], why[i, 0, 2] = raw[i, 0], most, cell.last[most]
            why[i, 0, 3], why[i, 0, 4] = cell.past_mean[most], cell.past_spread[most]
        if cell.counted == window:
            cell.ready = 2
            if _refit(cell):
                cell.ready = 1
            cell.reference[:] = cell.latest
            _begin_window(cell)


@compiled
def _begin_window(cell: Any) -> None:
    cell.counted = 0
    cell.latest[:] = 0
    for j in range(cell.mean.shape[0]):
        if cell.seen[j] > 0:
            cell.past_mean[j], cell.past_spread[j] = cell.mean[j], cell.spread[j]
        cell.seen[j] = cell.outside[j] = 0
        cell.mean[j] = cell.spread[j] = 0.0


class HalfSpaceTreesDetector(CellDetector):
    """See the module."""

    name: ClassVar[str] = "half_space_trees"
    version: ClassVar[str] = "1"
    config_type: ClassVar[type[DetectorConfig]] = HalfSpaceTreesConfig
    per_field: ClassVar[bool] = False
    evidence: ClassVar[tuple[str, ...]] = ("emptier", "field", "now", "mean", "spread")
    config: HalfSpaceTreesConfig

    def __init__(
        self, config: CellConfig, fields: tuple[str, ...], field_thresholds: dict[str, float] | None = None
    ) -> None:
        super().__init__(config, fields, field_thresholds)
        self.splits = grow(self.config.trees, self.config.depth, len(fields), self.config.seed)

    def cell_dtype(self) -> np.dtype[Any]:
        """See `CellDetector.cell_dtype`."""
        counts = ("<u2", (self.config.trees, (2 << self.config.depth) - 1))
        vector = ("<f8", (len(self.fields),))
        return np.dtype(
            [
                ("ready", "<i4"),  # 1: there are ranges, 2: and a reference
                ("counted", "<i4"),  # readings of the window under way
                ("narrow", "<i4"),  # windows in a row that used little of a range
                ("seen", "<i4", (len(self.fields),)),  # values of the window under way
                ("outside", "<i4", (len(self.fields),)),
                ("last", *vector),
                ("mean", *vector),
                ("spread", *vector),
                ("past_mean", *vector),
                ("past_spread", *vector),
                ("low", *vector),
                ("high", *vector),
                ("reference", *counts),
                ("latest", *counts),
            ]
        )

    def run(
        self, cells: Any, rows: RowArray, values: FloatArray, ts: FloatArray, raw: FloatArray, why: FloatArray
    ) -> None:
        """See `CellDetector.run`."""
        _run(cells, rows, values, self.splits, self.config.warmup, self.config.window, raw, why)

    def words(self, column: int, evidence: dict[str, float]) -> str:
        """See `CellDetector.words`."""
        emptier = evidence["emptier"]
        than = f"{emptier:.3g} times fewer" if emptier >= 1 else f"{1 / emptier:.3g} times more"
        return (
            f"{than} readings came here than if they were spread evenly, most of all for "
            f"{self.fields[int(evidence['field'])]} {evidence['now']:.6g}, "
            f"of late {evidence['mean']:.6g} ± {evidence['spread']:.3g}"
        )
