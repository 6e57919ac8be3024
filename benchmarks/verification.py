"""Reads what a contestant put out and holds every prediction against the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks.workload import F64, FIELDS, I64, STREAM, THRESHOLD, Prediction, Workload

if TYPE_CHECKING:
    from benchmarks.cluster import Cluster

Bools = npt.NDArray[np.bool_]
Show = Callable[[int], str]

_RELATIVE = 1e-6
_FIELD_INDEX = {name: i for i, name in enumerate(FIELDS)}


@dataclass
class Verdict:
    """What the outputs of one run are worth.

    Attributes:
        appended_ms: int64 [outputs], when the broker appended each, sorted.
        wrong: count by kind of fault; empty when every output is right.
        example: one sentence on the first fault seen.
    """

    outputs: int = 0
    missing: int = 0
    duplicated: int = 0
    wrong: dict[str, int] = field(default_factory=dict)
    example: str = ""
    appended_ms: I64 = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)

    @property
    def right(self) -> bool:
        """Every score is there once and right, and the order by key was kept."""
        return not (self.wrong or self.missing or self.duplicated)

    def blame(self, kind: str, faults: Bools, example: Show) -> None:
        """Counts faults; `example(i)` describes the first."""
        count = int(np.count_nonzero(faults))
        if count:
            if not self.example:
                self.example = f"{kind}: {example(int(np.argmax(faults)))}"
            self.wrong[kind] = self.wrong.get(kind, 0) + count

    def summary(self) -> str:
        """`ok`, or what is wrong."""
        if self.right:
            return "ok"
        parts = [f"{n} {kind}" for kind, n in self.wrong.items()]
        parts += [f"{self.missing} missing"] * bool(self.missing)
        parts += [f"{self.duplicated} duplicated"] * bool(self.duplicated)
        return ", ".join(parts) + (f" ({self.example})" if self.example else "")


async def verify(
    cluster: Cluster,
    topic: str,
    source_topic: str,
    workload: Workload,
    *,
    committed: bool = False,
    detector: Mapping[str, Any] | None = None,
) -> Verdict:
    """Checks every output of `topic`: fields, scores to 1e-6, order by key, each exactly once.

    Where `committed`, it reads only what a committed transaction wrote. With `detector`, the scores are those
    of that detector of ours, given all readings at once; else those of the reference z-score.
    """
    checker = Checker(source_topic, workload, detector)
    async for partition, records in cluster.read(topic, workload.partitions, committed=committed):
        checker.add(
            partition, [r.key for r in records], [r.value for r in records], [r.timestamp for r in records]
        )
    return checker.verdict()


class Checker:
    """Takes outputs in log order of each output partition."""

    def __init__(
        self, source_topic: str, workload: Workload, detector: Mapping[str, Any] | None = None
    ) -> None:
        self._workload = workload
        self._prefix = source_topic
        self._rows = workload.rows_by_offset()
        self._counts = np.zeros(workload.readings, np.int32)
        scores, self._threshold = workload.scores(), THRESHOLD
        if detector is not None:
            scores, self._threshold = workload.detected(detector)
        self._score = scores.max(axis=1)
        self._scores = scores
        self._last_row = np.full(workload.sensors, -1, np.int64)
        self._output_partition = np.full(workload.sensors, -1, np.int64)
        self._appended: list[I64] = []
        self._decoder = msgspec.json.Decoder(list[Prediction])
        self._verdict = Verdict()
        self._models: set[tuple[str, str]] = set()

    def count(self, outputs: int, appended_ms: list[int]) -> None:
        """Takes note of outputs and when the broker appended them."""
        self._verdict.outputs += outputs
        self._appended.append(np.array(appended_ms, np.int64))

    def blame(self, kind: str, example: str) -> None:
        """Takes note of one fault that has no row."""
        self._verdict.blame(kind, np.ones(1, np.bool_), lambda _: example)

    def add(self, partition: int, keys: list[bytes], values: list[bytes], appended_ms: list[int]) -> None:
        """Checks outputs of one partition of the output topic, in log order."""
        verdict, work = self._verdict, self._workload
        try:
            got = self._decoder.decode(b"[" + b",".join(values) + b"]")
        except (msgspec.DecodeError, TypeError) as error:
            verdict.wrong["undecodable"] = verdict.wrong.get("undecodable", 0) + len(values)
            verdict.example = verdict.example or f"undecodable: {error}: {values[0]!r}"
            return
        self.count(len(got), appended_ms)
        origin = [p.id.split("/") for p in got]
        bad_id = np.array([len(o) != 4 or o[0] != self._prefix for o in origin])
        verdict.blame("wrong id", bad_id, lambda i: got[i].id)
        if bad_id.any():
            return
        from_partition = np.array([int(o[1]) for o in origin])
        offset = np.array([int(o[2]) for o in origin])
        row = np.empty(len(got), np.int64)
        for p in range(work.partitions):
            here = from_partition == p
            if here.any() and offset[here].max() >= len(self._rows[p]):
                verdict.wrong["no such reading"] = verdict.wrong.get("no such reading", 0) + 1
                return
            row[here] = self._rows[p][offset[here]]
        ids = work.sensor_ids
        self._models.update({(p.model, p.version) for p in got[:1]})
        named = [ids[s] for s in work.sensor[row].tolist()]
        wrong_source = np.array(
            [
                p.source != n or p.stream != STREAM or k != n.encode()
                for p, n, k in zip(got, named, keys, strict=True)
            ]
        )
        verdict.blame("wrong source", wrong_source, lambda i: f"{values[i]!r} with key {keys[i]!r}")
        latency = np.array([p.latency_ms for p in got])
        verdict.blame("wrong latency", ~np.isfinite(latency), lambda i: f"{values[i]!r}")
        self.check(
            partition,
            row,
            np.array([p.ts for p in got]),
            np.array([p.score for p in got]),
            np.array([_FIELD_INDEX.get(p.field or "", -1) for p in got]),
            np.array([p.is_anomaly for p in got]),
            lambda i: f"{values[i]!r}",
        )

    def check(
        self, partition: int, row: I64, ts: F64, score: F64, field: I64, flagged: Bools, show: Show
    ) -> None:
        """Checks columns of outputs of one partition of the output topic, in log order.

        Args:
            partition: of the output topic.
            row: int64 [n], the reading that each output is of.
            ts: float64 [n], seconds since the epoch.
            score: float64 [n].
            field: int64 [n], column of the worst field, -1 where it has no known name.
            flagged: bool [n].
            show: describes output i.
        """
        verdict, work = self._verdict, self._workload
        np.add.at(self._counts, row, 1)
        verdict.blame("wrong ts", np.abs(ts - work.ts[row]) > 1e-4, show)
        right = self._score[row]
        wrong_score = ~(np.abs(score - right) <= _RELATIVE * np.abs(right) + 1e-9)
        verdict.blame("wrong score", wrong_score, lambda i: f"{show(i)}, right is {right[i]!r}")
        sure = np.abs(right - self._threshold) > 1e-4
        verdict.blame("wrong flag", (flagged != (right > self._threshold)) & sure, show)
        by_field = np.where(field >= 0, self._scores[row, field], -1.0)
        wrong_field = (right > 0) & ~(np.abs(by_field - right) <= _RELATIVE * right)
        verdict.blame("wrong field", wrong_field, show)
        self._check_order(partition, work.sensor[row], row, show)

    def _check_order(self, partition: int, sensor: I64, row: I64, show: Show) -> None:
        by_sensor = np.argsort(sensor, kind="stable")
        s, r = sensor[by_sensor], row[by_sensor]
        first = np.concatenate(([True], s[1:] != s[:-1]))
        before = np.where(first, self._last_row[s], np.concatenate(([0], r[:-1])))
        # a repeated output is counted as duplicated, not as out of order
        self._verdict.blame("out of order", r < before, lambda i: show(int(by_sensor[i])))
        last = np.concatenate((first[1:], [True]))
        self._last_row[s[last]] = np.maximum(r[last], self._last_row[s[last]])
        home = self._output_partition[s]
        strayed = (home >= 0) & (home != partition)
        self._verdict.blame("key in two partitions", strayed, lambda i: show(int(by_sensor[i])))
        self._output_partition[s] = partition

    def verdict(self) -> Verdict:
        """Closes the check: what is missing and what came twice."""
        self._verdict.missing = int(np.count_nonzero(self._counts == 0))
        self._verdict.duplicated = int(np.maximum(self._counts - 1, 0).sum())
        if self._appended:
            self._verdict.appended_ms = np.sort(np.concatenate(self._appended))
        if len(self._models) > 1:
            self._verdict.wrong["several models"] = len(self._models)
        return self._verdict
