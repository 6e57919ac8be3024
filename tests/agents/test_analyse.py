"""The analyse agent's partition: windows survive restarts and replays."""

from __future__ import annotations

import time

import msgspec
import numpy as np
import pytest

from agents.analyse import AnalysePartition
from streams.codecs import ReadingCodec
from streams.config import FieldConfig, RateConfig, StreamConfig, TumblingConfig
from streams.records import Chunk, ReadingBatch
from streams.windows import WindowResult

BASE = time.time() // 60 * 60 - 600
STREAM = StreamConfig(
    name="plant",
    topic="in",
    fields={"level": FieldConfig(transforms=[RateConfig()])},
    windows=[TumblingConfig(name="1min", size_s=60)],
)


def batch(start: int, stop: int) -> ReadingBatch:
    chance = np.random.default_rng(1)
    levels = np.cumsum(chance.normal(size=stop))
    values: list[bytes | None] = [
        msgspec.json.encode({"sensor_id": f"s{n % 3}", "ts": BASE + n, "level": float(levels[n])})
        for n in range(start, stop)
    ]
    count = stop - start
    keys: list[bytes | None] = [None] * count
    chunk = Chunk("in", 0, start, stop - 1, list(range(start, stop)), [0] * count, keys, values)
    return ReadingCodec(STREAM).decode(chunk, time.time())


def test_a_restart_and_a_replay_close_the_same_windows() -> None:
    reference = AnalysePartition(STREAM, {})
    expected = reference.process(batch(0, 400))
    assert {result.window for result in expected} == {"1min"}
    assert len(expected) == 3 * (400 // 60)

    results: list[WindowResult] = []
    share = AnalysePartition(STREAM, {})
    results += share.process(batch(0, 150))
    changelog = dict(share.snapshot())
    assert share.snapshot() == []
    share.process(batch(150, 200))  # lost with a crash
    share = AnalysePartition(STREAM, changelog)
    assert share.process(batch(100, 150)) == []
    results += share.process(batch(140, 400))
    assert len(results) == len(expected)
    for ours, theirs in zip(results, expected, strict=True):
        names = (ours.sensor, ours.field, ours.start, ours.end, ours.count)
        assert names == (theirs.sensor, theirs.field, theirs.start, theirs.end, theirs.count)
        # a sum may differ in its last bit by where it was cut
        numbers = [ours.mean, ours.min, ours.max, ours.std, ours.p50, ours.p95]
        assert numbers == pytest.approx(
            [theirs.mean, theirs.min, theirs.max, theirs.std, theirs.p50, theirs.p95], rel=1e-12
        )
