"""Backtests: the scores of the live path, whatever the cut; files read with what is wrong in them named."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from agents.detect import DetectPartition, StreamDetector
from connectors.errors import BadInput
from polarstream.backtest import Backtest, detector_table, parse_settings, reading_batch, squash, write_scores
from polarstream.backtest_topic import TopicBacktest
from polarstream.reader import Record
from polarstream.recording import CsvLayout, Recording, read_csv
from streams.codecs import ReadingCodec
from streams.config import FieldConfig, JoinConfig, MemberConfig, StreamConfig
from streams.errors import MissingExtra, UsageError
from streams.records import Chunk
from tests.e2e.cli import Cli

DETECTORS = [{"type": "ewz", "warmup": 20}, {"type": "rate_of_change", "warmup": 20, "once_in": 200}]


def a_recording(n: int = 600, name: str = "pump") -> Recording:
    chance = np.random.default_rng(5)
    values = chance.normal(20, 1, (n, 2))
    values[400, 1] = 60
    values[100:110, 0] = math.nan
    ts = 1.7e9 + np.arange(n) * 60.0
    return Recording(name, ("flow", "heat"), [f"{t:.0f}" for t in ts], np.arange(n), ts, values)


@pytest.mark.parametrize("detector", DETECTORS, ids=lambda d: d["type"])
def test_scores_and_alerts_are_those_of_the_live_path_in_other_chunks(detector: dict[str, Any]) -> None:
    recording = a_recording()
    scored = Backtest(detector).run(recording)
    fields = {name: FieldConfig(required=False) for name in recording.columns}
    stream = StreamConfig(name="backtest", topic="backtest", fields=fields, detector=detector)
    shared, codec = StreamDetector(stream), ReadingCodec(stream)
    share = DetectPartition(shared, {})
    predictions: list[Any] = []
    alerts: list[Any] = []
    for start in range(0, 600, 37):
        part = range(start, min(start + 37, 600))
        readings = [
            {"sensor_id": "pump", "ts": float(recording.ts[i])}
            | {n: v for n, v in zip(recording.columns, recording.values[i].tolist(), strict=True) if v == v}
            for i in part
        ]
        messages = [msgspec.json.encode(reading) for reading in readings]
        stamps = [int(recording.ts[i] * 1000) for i in part]
        chunk = Chunk("backtest", 0, part[0], part[-1], list(part), stamps, [None] * len(part), messages)
        outcome = share.process(codec.decode(chunk, 2e9), 2e9)
        predictions += [msgspec.json.decode(value or b"") for value in outcome.predictions.values]
        alerts += [msgspec.json.decode(value or b"") for value in outcome.alerts.values]
    thresholds = dict(zip(recording.columns, shared.detector.thresholds.tolist(), strict=True))
    ratio = [0.0 if p["score"] is None else p["score"] / thresholds[p["field"]] for p in predictions]
    assert scored.ratio.tolist() == ratio
    assert scored.is_anomaly.tolist() == [p["is_anomaly"] for p in predictions]
    assert msgspec.to_builtins(scored.alerts) == alerts
    assert scored.is_anomaly[400]
    assert scored.worst[400] == 1
    assert alerts


def test_a_detector_is_made_once_and_each_recording_begins_afresh() -> None:
    backtest = Backtest({"type": "ewz"})
    first = backtest.run(a_recording())
    shared = backtest.shared(("flow", "heat"))
    assert np.array_equal(backtest.run(a_recording()).ratio, first.ratio)
    assert backtest.shared(("flow", "heat")) is shared


def test_score_is_a_half_at_the_threshold_and_says_what_is_stranger() -> None:
    ratio = np.array([0.0, 0.5, 1.0, 3.0, np.inf])
    assert squash(ratio).tolist() == pytest.approx([0, 1 / 3, 0.5, 0.75, 1])
    scored = Backtest({"type": "ewz", "warmup": 20}).run(a_recording())
    assert ((scored.scores >= 0.5) == scored.is_anomaly).all()
    assert scored.scores.argmax() == 400
    assert 0.5 < scored.scores[400] < 1


def test_clean_start_sets_the_warm_up_and_reports_nothing() -> None:
    assert detector_table("ewz", {}, train=400) == {"type": "ewz", "warmup": 400}
    assert detector_table("ewz", {"warmup": 7}, train=400) == {"type": "ewz", "warmup": 7}
    recording = a_recording()
    plain = Backtest({"type": "ewz", "warmup": 20}).run(recording)
    trained = Backtest({"type": "ewz", "warmup": 20}, train=401).run(recording)
    assert plain.is_anomaly[400]
    assert not trained.is_anomaly[:401].any()
    assert not trained.scores[:401].any()
    assert np.array_equal(trained.scores[401:], plain.scores[401:])
    assert plain.alerts
    assert [alert for alert in trained.alerts if alert.started_at <= recording.ts[400]] == []


def test_parameters_are_read_as_toml_values_or_text() -> None:
    assert parse_settings(["a=1", "b=2.5", "c=true", "d=word", 'e="x y"', "f=[1, 2]"]) == {
        "a": 1,
        "b": 2.5,
        "c": True,
        "d": "word",
        "e": "x y",
        "f": [1, 2],
    }
    with pytest.raises(UsageError, match="is not NAME=VALUE"):
        parse_settings(["a"])


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("stamp", "seconds"),
    [
        ("1700000000", 1.7e9),
        ("1700000000.5", 1700000000.5),
        ("1700000000500", 1700000000.5),
        ("2023-11-14T22:13:20Z", 1.7e9),
        ("2023-11-14T23:13:20+01:00", 1.7e9),
        ("2023-11-14 22:13:20", 1.7e9),
        ("2023-11-14 22:13:20.500", 1700000000.5),
    ],
)
def test_times_are_read_as_people_write_them(tmp_path: Path, stamp: str, seconds: float) -> None:
    recording = read_csv(write(tmp_path / "a.csv", "timestamp,v", f"{stamp},1"), CsvLayout())
    assert recording.ts.tolist() == [seconds]
    assert recording.timestamps == [stamp]


def test_columns_are_picked_and_labels_left_out(tmp_path: Path) -> None:
    path = write(
        tmp_path / "loop.csv", "datetime;flow;heat;anomaly;changepoint", "2020-01-01 00:00:00;1;2;0;1"
    )
    assert read_csv(path, CsvLayout()).columns == ("flow", "heat")
    assert read_csv(path, CsvLayout(columns=("heat",))).values.tolist() == [[2.0]]
    assert read_csv(path, CsvLayout(exclude=("heat",))).columns == ("flow", "anomaly", "changepoint")
    with pytest.raises(UsageError, match=r"no column 'cold', only datetime, flow"):
        read_csv(path, CsvLayout(columns=("cold",)))
    with pytest.raises(UsageError, match="name the column of the time with --time-column"):
        read_csv(path, CsvLayout(time_column="when"))


def test_bad_rows_are_named_by_line_and_keep_their_place(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.csv",
        "timestamp,flow,heat",
        "1,1,1",
        "soon,1,1",
        "",
        "3,x,1",
        "4,,2",
        "5,1",
        "6,inf,1",
        "7,1,1",
    )
    recording = read_csv(path, CsvLayout())
    assert [row.line for row in recording.bad] == [3, 5, 7, 8]
    assert "'soon' is no time" in recording.bad[0].why
    assert recording.bad[1].why == "flow: 'x' is no number"
    assert recording.bad[2].why == "has 2 cells, the first line names 3 columns"
    assert recording.bad[3].why == "flow: 'inf' is not finite"
    assert recording.rows.tolist() == [0, 3, 6]
    assert math.isnan(recording.values[1, 0])
    assert recording.timestamps == ["1", "soon", "3", "4", "5", "6", "7"]
    out = tmp_path / "out.csv"
    write_scores(out, Backtest({"type": "ewz"}).run(recording))
    assert out.read_text().splitlines() == ["timestamp,score,is_anomaly"] + [
        f"{stamp},0.0,0" for stamp in recording.timestamps
    ]


@pytest.mark.parametrize("content", [b"", b"timestamp,v\n", b"timestamp,v\nx,y\n", b"\x00\xff\xfe", b'a,"b'])
def test_files_without_readings_are_refused_with_a_reason(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises((BadInput, UsageError), match=r"a\.csv"):
        read_csv(tmp_path / "a.csv", CsvLayout())


def test_topic_messages_give_the_scores_of_the_file(tmp_path: Path) -> None:
    recording = a_recording()
    fields = {name: FieldConfig(required=False) for name in recording.columns}
    stream = StreamConfig(name="pumps", topic="pumps", fields=fields, detector=DETECTORS[0])
    run = TopicBacktest(stream)
    records = []
    for i, ts in enumerate(recording.ts.tolist()):
        reading = {"ts": ts} | {
            n: v for n, v in zip(recording.columns, recording.values[i].tolist(), strict=True) if v == v
        }
        for k, sensor in enumerate(("pump", "twin")):
            value = msgspec.json.encode({"sensor_id": sensor, **reading})
            records.append(Record("pumps", k, i, int(ts * 1000), None, value, ()))
    records.append(Record("pumps", 0, 600, 0, None, b"no json", ()))
    for start in range(0, len(records), 101):
        run.take(records[start : start + 101], 2e9)
    result = run.result()
    expected = Backtest(DETECTORS[0]).run(recording)
    assert [scored.recording.name for scored in result.sensors] == ["pump", "twin"]
    for scored in result.sensors:
        assert np.array_equal(scored.ratio, expected.ratio)
        assert len(scored.alerts) == len(expected.alerts) > 0
    assert sum(result.refused.values()) == 1


def test_sensors_of_one_value_that_are_joined_score_like_one_sensor_of_several() -> None:
    recording = a_recording()
    recording.values[:] = np.nan_to_num(recording.values, nan=20.0)
    members = {name: MemberConfig(sensor=f"*/{name}") for name in recording.columns}
    stream = StreamConfig(
        name="pumps",
        topic="pumps",
        fields={"value": FieldConfig()},
        sensor_pattern="(?P<site>[^/]+)/",
        join=JoinConfig(members=members, detector=DETECTORS[0]),
    )
    run = TopicBacktest(stream)
    records = []
    for ts, row in zip(recording.ts.tolist(), recording.values.tolist(), strict=True):
        for name, value in zip(recording.columns, row, strict=True):
            reading = msgspec.json.encode({"sensor_id": f"north/{name}", "ts": ts, "value": value})
            records.append(Record("pumps", 0, len(records), int(ts * 1000), None, reading, ()))
    for start in range(0, len(records), 101):
        run.take(records[start : start + 101], 2e9)
    *sensors, group = run.result().sensors
    assert [scored.recording.name for scored in sensors] == ["north/flow", "north/heat"]
    expected = Backtest(DETECTORS[0]).run(recording)
    assert (group.recording.name, group.recording.columns) == ("north", recording.columns)
    assert np.array_equal(group.recording.values, recording.values)
    assert np.array_equal(group.ratio, expected.ratio)
    assert [alert.scope for alert in group.alerts] == ["group"] * len(expected.alerts)
    assert group.alerts


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def csv_of(recording: Recording) -> list[str]:
    rows = zip(recording.timestamps, recording.values.tolist(), strict=True)
    return ["timestamp,flow,heat,anomaly"] + [f"{t},{a!r},{b!r},1" for t, (a, b) in rows]


def test_command_writes_scores_and_tells_alerts(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "pump.csv", *csv_of(a_recording()))
    text = cli.ok("backtest", "pump.csv", "--detector", "ewz", "--out", "scores.csv")
    assert "pump: heat" in text
    assert "a second" in text
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    expected = Backtest({"type": "ewz"}).run(a_recording())
    assert [float(row["score"]) for row in rows] == expected.scores.tolist()
    assert [row["is_anomaly"] == "1" for row in rows] == expected.is_anomaly.tolist()
    assert [row["timestamp"] for row in rows] == expected.recording.timestamps
    found = cli.json("backtest", "pump.csv", "--detector", "ewz", "--detector-config", "threshold=1000")
    assert found["results"][0]["anomalies"] == 0
    assert found["results"][0]["columns"] == ["flow", "heat"]


def test_folder_in_gives_the_same_folder_out(cli: Cli, tmp_path: Path) -> None:
    for name in ("a.csv", "hall/b.csv"):
        write(tmp_path / "in" / name, *csv_of(a_recording()))
    write(tmp_path / "in" / "broken.csv", "timestamp,flow", "x,y")
    found = cli.json("backtest", "in", "--detector", "ewz", "--out", "out", "--train", "50")
    written = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.csv"))
    assert written == ["a.csv", "hall/b.csv"]
    assert (tmp_path / "out/a.csv").read_text() == (tmp_path / "out/hall/b.csv").read_text()
    assert [result["name"] for result in found["results"]] == ["a", "hall/b"]
    assert found["detector"] == {"type": "ewz", "warmup": 50}
    assert "broken.csv" in found["unusable"][0]


def test_mistakes_are_told_in_one_line(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "bad.csv", "timestamp,v", "x,y")
    write(tmp_path / "good.csv", "timestamp,a,b", "1,2,3")
    assert "line 2 'x' is no time" in cli.fails(65, "backtest", "bad.csv", "--detector", "ewz")
    assert "is not a detector" in cli.fails(2, "backtest", "good.csv", "--detector", "magic")
    told = cli.fails(2, "backtest", "good.csv", "--detector", "ewz", "--detector-config", "colour=red")
    assert "colour" in told
    assert "no stream of the configuration" in cli.fails(2, "backtest", "nowhere", "--detector", "ewz")
    done = cli.run("backtest", "good.csv", "--detector", "ewz", "--group")
    assert "scores each column alone" in done.stderr


def test_pictures_are_written_and_need_no_network(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra plots: pip install 'polarstream[plots]'")
    pytest.importorskip("bokeh", reason="needs the extra plots: pip install 'polarstream[plots]'")
    write(tmp_path / "pump.csv", *csv_of(a_recording()))
    cli.ok("backtest", "pump.csv", "--detector", "ewz", "--plot", "shown")
    assert (tmp_path / "shown.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    page = (tmp_path / "shown.html").read_text()
    assert "Bokeh" in page
    assert "cdn.bokeh.org/bokeh" not in page.split("<body>")[0].split("<script")[0]
    assert '<script type="text/javascript" src=' not in page


def test_pictures_without_the_extra_name_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from polarstream.backtest_plot import write_plots

    scored = Backtest({"type": "ewz"}).run(a_recording())
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"polarstream\[plots\]"):
        write_plots(tmp_path / "a.png", scored)


def test_batches_hold_what_a_worker_would_get() -> None:
    batch = reading_batch(a_recording(), 100, 150)
    assert (batch.first_offset, batch.last_offset, len(batch)) == (100, 149, 50)
    assert batch.sensor_ids == ["pump"] * 50


def test_what_auto_picked_is_told() -> None:
    picked = Backtest({"type": "auto"}).run(a_recording()).picked
    assert picked
    assert all("novelty" in told or "warming up" in told for told in picked.values())
    assert Backtest({"type": "ewz"}).run(a_recording()).picked == {}
