"""Sensors scored together against sensors scored alone: `python -m benchmarks.joined [--detector NAME ...]`.

A generated plant through the detect agent's share of a partition: at each site a flow meter at both ends of
a pipe and the power of its pump, each a sensor of its own that reports every 10 s at a time of its own. The
load wanders and has a rhythm; each reading has 1% of noise. From reading 6,000 on a part of the flow is lost.
A leak is found when one of the next 20 readings is anomalous, of any sensor of the site for `auto` alone; the
column 0% is what is found so by chance. False alarms are anomalous rows or readings in 10,000 before it.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import numpy as np

from agents.detect import DetectPartition, StreamDetector
from benchmarks import report
from streams.config import FieldConfig, JoinConfig, MemberConfig, StreamConfig
from streams.records import ReadingBatch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from agents.detect import Outcome

MEMBERS = ("inflow", "outflow", "power")
SITES = 40
READINGS = 6_500
#: The leak begins here, and is to be found in so many readings.
AT, SOON = 6_000, 20
#: Seconds between readings, and readings in a chunk.
STEP_S, CHUNK = 10.0, 50
LEAKS = (0.0, 0.03, 0.05, 0.1)
EPOCH = 1.7e9


def readings(leak: float, sites: int) -> Iterator[ReadingBatch]:
    """The plant's readings, in chunks; `leak` is the share of the flow that is lost."""
    rng = np.random.default_rng(1)
    ids = [f"site-{site}/{member}" for site in range(sites) for member in MEMBERS]
    phase, load, offset = rng.uniform(0, STEP_S, (sites, len(MEMBERS))), np.zeros(sites), 0
    for start in range(0, READINGS, CHUNK):
        values = np.empty((CHUNK, sites, len(MEMBERS)))
        for i in range(CHUNK):
            load = 0.99 * load + rng.normal(0, 0.14, sites)
            flow = 10 + 2 * load + 2 * np.sin(2 * np.pi * (start + i) / 1_440)
            values[i] = np.stack([flow, flow * (1 - leak * (start + i >= AT)), 2 * flow], 1)
        values *= 1 + 0.01 * rng.normal(size=values.shape)
        ts = EPOCH + STEP_S * np.arange(start, start + CHUNK)[:, None, None] + phase
        order = np.argsort(ts, axis=None)
        n = len(order)
        yield ReadingBatch(
            stream="plant",
            topic="plant",
            partition=0,
            first_offset=offset,
            last_offset=offset + n - 1,
            offsets=np.arange(offset, offset + n),
            index=None,
            sensor_ids=None,
            ts=ts.ravel()[order],
            published=ts.ravel()[order],
            fields=("value",),
            values=values.reshape(-1, 1)[order],
            ids=(ids, (order % len(ids)).astype(np.int32)),
        )
        offset += n


def shares(detector: dict[str, Any] | None, leak: float, sites: int = SITES) -> tuple[float, float]:
    """Return the share of sites where a leak is found, and the false alarms in 10,000.

    Args:
        detector: of the join; None: what `auto` says of the single sensors.
        leak: the share of the flow that is lost.
        sites: how many.
    """
    members = {name: MemberConfig(sensor=f"*/{name}") for name in MEMBERS}
    stream = StreamConfig(
        name="plant",
        topic="plant",
        fields={"value": FieldConfig()},
        detector={"type": "ewz"} if detector is not None else {"type": "auto"},
        sensor_pattern="(?P<site>[^/]+)/",
        join=JoinConfig(members=members, detector=detector) if detector is not None else None,
    )
    share = DetectPartition(StreamDetector(stream), {})
    found: set[str] = set()
    false = before = 0
    for batch in readings(leak, sites):
        names, ts, strange = _said(share.process(batch, float(batch.ts[-1])), batch)
        number = (ts - EPOCH) / STEP_S
        false += int(np.count_nonzero(strange & (number < AT)))
        before += int(np.count_nonzero(number < AT))
        soon = strange & (number >= AT) & (number < AT + SOON)
        found |= {names[at].partition("/")[0] for at in np.flatnonzero(soon).tolist()}
    return len(found) / sites, 1e4 * false / before


def _said(outcome: Outcome, batch: ReadingBatch) -> tuple[list[str], NDArray[np.float64], NDArray[np.bool_]]:
    joint = outcome.joint
    if joint is not None and joint.verdict is not None:
        return joint.groups, joint.ts, joint.verdict.is_anomaly
    assert joint is None
    assert outcome.verdict is not None
    return batch.sensor_ids, batch.ts, outcome.verdict.is_anomaly


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--detector", nargs="*", default=["graph", "pca"])
    options = parser.parse_args()
    table = []
    for name in [None, *options.detector]:
        results = [shares({"type": name} if name else None, leak) for leak in LEAKS]
        row = [f"{share:.0%}" for share, _ in results]
        table.append([name or "auto, alone", *row, f"{results[0][1]:.1f}"])
    print(report.table(["detector", *(f"{leak:.0%}" for leak in LEAKS), "false"], table))


if __name__ == "__main__":
    main()
