"""A backtest says what a worker says, bit for bit, on a real broker."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from polarstream.backtest import squash
from tests.e2e.cli import Cli


def test_backtests_of_file_and_topic_are_what_the_worker_said(
    tmp_path: Path, broker: str, topic_prefix: str
) -> None:
    p = topic_prefix
    (tmp_path / "polarstream.toml").write_text(
        f"""
        app_id = "{p}app"
        [topics]
        predictions = "{p}predictions"
        alerts = "{p}alerts"
        analytics = "{p}analytics"
        dead_letter = "{p}dead"
        [[streams]]
        name = "pumps"
        topic = "{p}pumps"
        partitions = 2
        detector = {{ type = "rate_of_change", warmup = 30, once_in = 200 }}
        [streams.fields.flow]
        [streams.fields.heat]
        """
    )
    cli = Cli(tmp_path, broker)
    count = 1200
    values = np.random.default_rng(4).normal(20, 1, (count, 2))
    values[700, 1] += 30
    ts = 1.75e9 + np.arange(count) * 60.0
    lines = ["timestamp,flow,heat"]
    readings = []
    for t, (flow, heat) in zip(ts.tolist(), values.tolist(), strict=True):
        lines.append(f"{t!r},{flow!r},{heat!r}")
        readings.append({"sensor_id": "pump", "ts": t, "flow": flow, "heat": heat})
    (tmp_path / "pump.csv").write_text("\n".join(lines) + "\n")
    cli.ok("publish", "pumps", stdin=b"".join(msgspec.json.encode(reading) + b"\n" for reading in readings))

    worker = cli.start("worker")
    try:
        found = cli.json_lines(
            "subscribe", "predictions", "--from", "earliest", "--limit", str(count), "--timeout", "60s"
        )
    finally:
        worker.terminate()
        worker.wait(30)
        for pipe in (worker.stdin, worker.stdout):
            if pipe is not None:
                pipe.close()
    said = [record["value"] for record in found]
    scores = np.array([0.0 if s["score"] is None else s["score"] for s in said])
    live = squash(scores / math.log10(200)).tolist()
    assert any(s["is_anomaly"] for s in said)

    def read(path: str) -> list[dict[str, Any]]:
        with (tmp_path / path).open() as file:
            return list(csv.DictReader(file))

    settings = ("--detector-config", "warmup=30", "--detector-config", "once_in=200")
    cli.ok("backtest", "pump.csv", "--detector", "rate_of_change", *settings, "--out", "file.csv")
    cli.ok("backtest", "pumps", "--out", "topic.csv")
    for rows in (read("file.csv"), read("topic.csv")):
        assert [float(row["score"]) for row in rows] == live
        assert [row["is_anomaly"] == "1" for row in rows] == [s["is_anomaly"] for s in said]
    early = cli.json("backtest", "pumps", "--until", "2001-01-01")
    assert early["rows"] == 0
