from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anomaly import build_detector
from anomaly.detectors.hashing import uniform
from anomaly.detectors.rrcf import RrcfConfig, RrcfDetector

FIELDS = ("load", "flow")


def plant(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    load = rng.normal(0, 1, n)
    return np.stack([50 + 5 * load, 10 + load], 1) + rng.normal(0, 0.1, (n, 2))


def detector_of(**settings: float) -> RrcfDetector:
    detector = build_detector({"type": "rrcf", **settings}, FIELDS)
    assert isinstance(detector, RrcfDetector)
    return detector


def raw_of(values: np.ndarray, **settings: float) -> np.ndarray:
    detector = detector_of(**settings)
    n = len(values)
    return detector.raw(detector.init(1), np.zeros(n, np.int32), values, np.arange(float(n)))[0][:, 0]


def run(values: np.ndarray, **settings: float) -> tuple[np.ndarray, list[str]]:
    detector = detector_of(**settings)
    n = len(values)
    scores, explain = detector.examine(detector.init(1), np.zeros(n, np.int32), values, np.arange(float(n)))
    return scores[:, 0], [explain(i, 0) for i in range(n)]


@dataclass
class Cut:
    field: int
    at: float
    left: Cut | int
    right: Cut | int


def leaves(node: Cut | int) -> list[int]:
    return [node] if isinstance(node, int) else leaves(node.left) + leaves(node.right)


def without(node: Cut | int, leaf: int) -> Cut | int:
    if isinstance(node, int):
        return node
    if leaf in (node.left, node.right):
        return node.right if node.left == leaf else node.left
    return Cut(node.field, node.at, without(node.left, leaf), without(node.right, leaf))


def within(node: Cut | int, leaf: int, points: np.ndarray, counter: int) -> Cut:
    """Insert as in the paper: a random cut of the box with the point in it, kept if it parts it off."""
    box, x = points[leaves(node)], points[leaf]
    low, high = np.minimum(box.min(0), x), np.maximum(box.max(0), x)
    if (high == low).all():
        return Cut(0, x[0], node, leaf)
    rest, field = uniform(0, counter) * (high - low).sum(), 0
    while rest >= high[field] - low[field]:
        rest -= high[field] - low[field]
        field += 1
    at = low[field] + rest
    if x[field] <= at < box[:, field].min():
        return Cut(field, at, leaf, node)
    if box[:, field].max() <= at < x[field]:
        return Cut(field, at, node, leaf)
    assert isinstance(node, Cut)
    if x[node.field] <= node.at:
        return Cut(node.field, node.at, within(node.left, leaf, points, counter + 1), node.right)
    return Cut(node.field, node.at, node.left, within(node.right, leaf, points, counter + 1))


def displaced(node: Cut | int, leaf: int, points: np.ndarray) -> float:
    if isinstance(node, int) or not np.ptp(points[leaves(node)], axis=0).any():
        return 0.0
    mine, other = (node.left, node.right) if leaf in leaves(node.left) else (node.right, node.left)
    return max(len(leaves(other)) / len(leaves(mine)), displaced(mine, leaf, points))


def test_codisp_is_that_of_plain_trees() -> None:
    values = plant(300, 1)
    values[150:170] = values[150]  # the same again and again
    values[200] = 90, 0
    size, warmup, trees = 16, 60, 3
    mean, spread = np.zeros(2), np.zeros(2)
    for i, x in enumerate(values[: warmup - size], 1):
        spread = spread + (abs(x - mean) - spread) / i if i > 1 else spread
        mean += (x - mean) / i
    places = ((values - mean) / spread).astype(np.float32)
    points = np.zeros((size, 2))
    wanted = np.full(300, -1.0)
    forest: list[Cut | int] = [0] * trees
    for inserts, i in enumerate(range(warmup - size, 300)):
        slot = inserts % size
        if inserts >= size:
            forest = [without(tree, slot) for tree in forest]
        points[slot] = places[i]
        if inserts:
            forest = [within(tree, slot, points, t << 50 | inserts << 10) for t, tree in enumerate(forest)]
        if i >= warmup:
            wanted[i] = np.mean([displaced(tree, slot, points) for tree in forest])
    found = raw_of(values, size=size, warmup=warmup, trees=trees)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert wanted[200] > 10


def test_a_reading_apart_from_the_last_ones_is_found_and_its_field_named() -> None:
    values = plant(4000, 2)
    values[3500, 1] += 8
    values[3600] += (40, 8)
    scores, words = run(values)
    assert (scores[[3500, 3600]] >= 3).all()
    assert (np.delete(scores, [3500, 3600]) >= 3).mean() < 0.003
    assert "most of all by flow" in words[3500]
    assert words[0] == "still warming up"


def test_another_level_is_usual_after_as_many_readings_as_the_trees_hold() -> None:
    values = plant(3000, 3)
    values[2000:] += (500, 100)
    raw = raw_of(values)
    assert raw[2000] > 50
    assert raw[2100:].max() < 50
    assert np.median(raw[2100:]) < 1.5 * np.median(raw[1000:2000])


def test_values_that_stand_still_displace_nothing_and_the_first_move_does() -> None:
    values = np.full((500, 2), 20.0)
    values[400, 1] = 21
    raw = raw_of(values)
    assert (raw[150:400] == 0).all()
    assert raw[400] == 63
    assert raw[480] == 0


def test_a_field_that_is_missing_is_taken_as_it_was() -> None:
    values = plant(1000, 4)
    holes = values.copy()
    holes[500:] = np.nan, 10
    held = values.copy()
    held[500:] = held[499, 0], 10
    np.testing.assert_array_equal(raw_of(holes), raw_of(held))


def test_faults_are_told() -> None:
    faults = RrcfConfig(trees=0, size=1000, seed=-1).faults()
    assert set(faults) == {"trees", "size", "seed"}
    assert set(RrcfConfig(warmup=70).faults()) == {"warmup"}
