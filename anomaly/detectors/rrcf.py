"""Robust random cut forest: how much of the past a reading displaces in random trees.

Each tree holds the last `size` readings as its leaves, and cuts the space at random, a field the more likely
the wider it is, until each reading is alone. A reading that few cuts suffice to part from many is strange.

What it finds: readings away from all of the last ones, in some fields or in all. When it misleads: it knows
the last `size` readings alone, so a rhythm longer than that surprises, and a fault that lasts so long is
usual; fields that only make noise hide the others. A field without value is taken as it was last.

With n(node) the number of readings below a node, from the leaf of the reading up

    CoDisp = mean over trees of the largest n(sibling) / n(node)

so about 30 of 64 for a reading on its own, 2 to 8 for a usual one. Readings that are the same count as one
leaf. Fields are first scaled by their mean distance from the mean in the warm-up, which settles there.

Random numbers are a hash of seed, tree and the number of the reading, so the same readings give the same
trees. Trees are arrays, changed in place: out with the oldest reading, in with the new one.

Cost: 9 us a reading of one field, 19 of three, 42 of eight. State: 36, 57, 108 KB a sensor.
Source: S. Guha, N. Mishra, G. Roy, O. Schrijvers, "Robust random cut forest based anomaly detection on
streams" (ICML 2016).

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> load = rng.normal(0, 1, 300)
    >>> values = np.stack([10 + load, 20 + 2 * load], 1) + rng.normal(0, 0.1, (300, 2))
    >>> values[299] = 15, 20
    >>> detector = RrcfDetector(RrcfConfig(), ("speed", "flow"))
    >>> rows, ts = np.zeros(300, np.int32), np.arange(300.0)
    >>> scores, explain = detector.examine(detector.init(1), rows, values, ts)
    >>> explain(299, 0).partition(",")[0]
    'apart from the last 64 readings (displaces 25.5 of them)'
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from anomaly.compiled import compiled
from anomaly.detectors.frame import CellConfig, CellDetector
from anomaly.detectors.hashing import uniform

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from anomaly.detector import DetectorConfig, FloatArray, RowArray

    Point = NDArray[np.float32]

#: Mean distances at which a field is cut off.
FAR = 1e6


class RrcfConfig(CellConfig, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Parameters of `rrcf`.

    Args:
        warmup: readings of a sensor before it is scored: for the scales, then `size` of them for the trees.
        trees: how many.
        size: readings that each tree holds.
        seed: of the cuts.
    """

    warmup: int = 150
    trees: int = 20
    size: int = 64
    seed: int = 0

    def faults(self) -> dict[str, str]:
        """See `DetectorConfig.faults`."""
        faults = super().faults()
        if not 1 <= self.trees <= 200:
            faults["trees"] = f"{self.trees} is not in [1, 200]"
        if not 8 <= self.size <= 256:
            faults["size"] = f"{self.size} is not in [8, 256]"
        elif self.warmup < self.size + 20:
            faults["warmup"] = f"{self.warmup} is not 20 more than the size of {self.size}"
        if not 0 <= self.seed < 2**63:
            faults["seed"] = f"{self.seed} is not in [0, 2^63)"
        return faults


# A node below `size` is the leaf of the reading in that place of the ring, so its box is that point; the
# others are inner nodes, whose arrays begin at `size`.


@compiled
def _low(tree: Any, points: Any, node: int, j: int) -> float:
    size = points.shape[0]
    return float(points[node, j]) if node < size else float(tree.low[node - size, j])


@compiled
def _high(tree: Any, points: Any, node: int, j: int) -> float:
    size = points.shape[0]
    return float(points[node, j]) if node < size else float(tree.high[node - size, j])


@compiled
def _replace(tree: Any, size: int, above: int, old: int, new: int) -> None:
    """Put node `new` where `old` was below `above`; -1: at the root."""
    tree.parent[new] = above
    if above < 0:
        tree.root = new
    elif tree.left[above - size] == old:
        tree.left[above - size] = new
    else:
        tree.right[above - size] = new


@compiled
def _delete(tree: Any, points: Any, leaf: int) -> int:
    """Take a leaf out; return the inner node that is free now."""
    size, p = points.shape
    gone = tree.parent[leaf]
    inner = gone - size
    sibling = tree.right[inner] if tree.left[inner] == leaf else tree.left[inner]
    above = tree.parent[gone]
    _replace(tree, size, above, gone, sibling)
    while above >= 0:
        k = above - size
        tree.count[k] -= 1
        left, right = tree.left[k], tree.right[k]
        for j in range(p):
            tree.low[k, j] = min(_low(tree, points, left, j), _low(tree, points, right, j))
            tree.high[k, j] = max(_high(tree, points, left, j), _high(tree, points, right, j))
        above = tree.parent[above]
    return int(gone)


@compiled
def _insert(tree: Any, points: Any, leaf: int, free: int, seed: int, counter: int) -> None:
    """Put a leaf in, by random cuts; `free` is an inner node that isn't used."""
    size, p = points.shape
    node, above, level = tree.root, -1, 0
    while True:
        span = 0.0
        for j in range(p):
            x = float(points[leaf, j])
            span += max(_high(tree, points, node, j), x) - min(_low(tree, points, node, j), x)
        rest = uniform(seed, counter + level) * span
        field, cut = -1, 0.0
        for j in range(p):
            x = float(points[leaf, j])
            low, high = min(_low(tree, points, node, j), x), max(_high(tree, points, node, j), x)
            if high > low:
                field, cut = j, min(low + rest, high)
                if cut >= high:
                    cut = low
                if rest < high - low:
                    break
            rest -= high - low
        # all the same: beside them, in a node whose box is a point
        apart, before = field < 0, False
        if field < 0:
            field, cut = 0, float(points[leaf, 0])
        else:
            x = float(points[leaf, field])
            before = x <= cut < _low(tree, points, node, field)
            apart = before or _high(tree, points, node, field) <= cut < x
        k = free - size if apart else node - size
        if apart:
            tree.field[k], tree.cut[k] = field, cut
            _replace(tree, size, above, node, free)
            tree.parent[node] = tree.parent[leaf] = free
            tree.left[k], tree.right[k] = (leaf, node) if before else (node, leaf)
            tree.count[k] = (tree.count[node - size] if node >= size else 1) + 1
        else:
            tree.count[k] += 1
        for j in range(p):
            x = float(points[leaf, j])
            tree.low[k, j] = min(_low(tree, points, node, j), x)
            tree.high[k, j] = max(_high(tree, points, node, j), x)
        if apart:
            return
        above = node
        node = tree.left[k] if points[leaf, tree.field[k]] <= tree.cut[k] else tree.right[k]
        level += 1


@compiled
def _displaced(tree: Any, points: Any, leaf: int) -> tuple[float, int]:
    """Return the largest n(sibling) / n(node) from a leaf up, and the field of the cut there."""
    size, p = points.shape
    most, field = 0.0, 0
    node, above = leaf, tree.parent[leaf]
    while above >= 0:
        k = above - size
        same = True
        for j in range(p):
            same &= tree.low[k, j] == tree.high[k, j]
        if not same:
            mine = tree.count[node - size] if node >= size else 1
            share = (tree.count[k] - mine) / mine
            if share > most:
                most, field = share, tree.field[k]
        node, above = above, tree.parent[above]
    return most, field


@compiled
def _run(
    cells: Any,
    rows: RowArray,
    values: FloatArray,
    warmup: int,
    seed: int,
    raw: FloatArray,
    why: FloatArray,
) -> None:
    p = values.shape[1]
    by = np.empty(p)
    for i in range(rows.shape[0]):
        cell = cells[rows[i], 0]
        some = False
        for j in range(p):
            x = values[i, j]
            if x == x:
                some = True
                cell.last[j] = x
                if cell.n + cell.points.shape[0] < warmup or cell.spread[j] <= 0.0:
                    cell.seen[j] += cell.seen[j] < 1_000_000
                    cell.spread[j] += (abs(x - cell.mean[j]) - cell.spread[j]) / cell.seen[j]
                    cell.mean[j] += (x - cell.mean[j]) / cell.seen[j]
                    if cell.seen[j] == 1:
                        cell.spread[j] = 0.0
        if not some:
            raw[i, 0] = math.nan
            continue
        points = cell.points
        size = points.shape[0]
        cell.n += cell.n < 1 << 30
        if cell.n + size <= warmup:
            continue
        slot = cell.inserts % size
        trees = cell.trees.shape[0]
        full = cell.inserts >= size
        if full:
            for t in range(trees):
                cell.trees[t].free = _delete(cell.trees[t], points, slot)
        for j in range(p):
            place = (cell.last[j] - cell.mean[j]) / cell.spread[j] if cell.spread[j] > 0.0 else 0.0
            points[slot, j] = min(max(place, -FAR), FAR)
        score = 0.0
        by[:] = 0.0
        for t in range(trees):
            tree = cell.trees[t]
            if cell.inserts == 0:
                tree.root, tree.parent[0] = 0, -1
                continue
            free = tree.free if full else size + slot - 1
            _insert(tree, points, slot, free, seed, t << 50 | cell.inserts << 10)
            if cell.n > warmup:
                most, field = _displaced(tree, points, slot)
                score += most
                by[field] += most
        # keeps the place in the ring; the cuts repeat after 2^30 readings
        cell.inserts = cell.inserts + 1 if cell.inserts < (1 << 30) + size - 1 else 1 << 30
        if cell.n > warmup:
            first = np.argmax(by)
            usual = distance = 0.0
            for k in range(size):
                usual += points[k, first] / size
            for k in range(size):
                distance += abs(points[k, first] - usual) / size
            raw[i, 0] = score / trees
            why[i, 0, 0], why[i, 0, 1], why[i, 0, 2] = raw[i, 0], first, cell.last[first]
            why[i, 0, 3] = cell.mean[first] + usual * cell.spread[first]
            why[i, 0, 4] = distance * cell.spread[first]


class RrcfDetector(CellDetector):
    """See the module."""

    name: ClassVar[str] = "rrcf"
    version: ClassVar[str] = "1"
    config_type: ClassVar[type[DetectorConfig]] = RrcfConfig
    per_field: ClassVar[bool] = False
    evidence: ClassVar[tuple[str, ...]] = ("displaced", "field", "now", "mean", "spread")
    config: RrcfConfig

    def cell_dtype(self) -> np.dtype[Any]:
        """See `CellDetector.cell_dtype`."""
        p, size = len(self.fields), self.config.size
        inner = (size - 1,)
        tree = np.dtype(
            [
                ("root", "<i2"),
                ("free", "<i2"),  # inner node that the oldest reading has left
                ("parent", "<i2", (2 * size - 1,)),
                ("left", "<i2", inner),
                ("right", "<i2", inner),
                ("field", "<i2", inner),
                ("count", "<i2", inner),
                ("cut", "<f8", inner),
                ("low", "<f4", (size - 1, p)),
                ("high", "<f4", (size - 1, p)),
            ]
        )
        vector = ("<f8", (p,))
        return np.dtype(
            [
                ("n", "<i4"),
                ("inserts", "<i8"),
                ("seen", "<i4", (p,)),
                ("last", *vector),
                ("mean", *vector),
                ("spread", *vector),
                ("points", "<f4", (size, p)),  # the ring, in spreads from the mean
                ("trees", tree, (self.config.trees,)),
            ]
        )

    def run(
        self, cells: Any, rows: RowArray, values: FloatArray, ts: FloatArray, raw: FloatArray, why: FloatArray
    ) -> None:
        """See `CellDetector.run`."""
        _run(cells, rows, values, self.config.warmup, self.config.seed, raw, why)

    def words(self, column: int, evidence: dict[str, float]) -> str:
        """See `CellDetector.words`."""
        displaced = f"displaces {evidence['displaced']:.3g} of them"
        return (
            f"apart from the last {self.config.size} readings ({displaced}), most of all by "
            f"{self.fields[int(evidence['field'])]} {evidence['now']:.6g}, "
            f"of late {evidence['mean']:.6g} ± {evidence['spread']:.3g}"
        )
