"""The detect agent's partition: cuts, replays and restarts change no score and send nothing twice."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import numpy as np

from agents.detect import DetectPartition, StreamDetector
from streams.codecs import ReadingCodec
from streams.config import (
    AlertConfig,
    DeltaConfig,
    DriftConfig,
    FieldConfig,
    LimitConfig,
    PrognosisConfig,
    ScaleConfig,
    StreamConfig,
)
from streams.records import Chunk

NOW = time.time()
STREAM = StreamConfig(
    name="plant",
    topic="sensors.plant",
    fields={"temperature": FieldConfig(unit="°C"), "humidity": FieldConfig(required=False, threshold=3)},
    detector={"type": "ewz", "warmup": 5, "threshold": 6},
    alerts=AlertConfig(resolve_after=2),
)


def messages(count: int, sensors: int = 7, spike_at: tuple[int, ...] = ()) -> list[bytes]:
    chance = np.random.default_rng(3)
    made = []
    for number in range(count):
        reading: dict[str, Any] = {
            "sensor_id": f"s{number % sensors}",
            "ts": NOW - 1000 + number,
            "temperature": 500 if number in spike_at else 20 + chance.normal(),
        }
        if number % 3:
            reading["humidity"] = 40 + chance.normal()
        made.append(msgspec.json.encode(reading))
    return made


def chunk(values: list[bytes], start: int, stop: int, producer: str | None = None) -> Chunk:
    count = stop - start
    return Chunk(
        topic=STREAM.topic,
        partition=2,
        first_offset=start,
        last_offset=stop - 1,
        offsets=list(range(start, stop)),
        timestamps_ms=[int(NOW * 1000)] * count,
        keys=[b"k"] * count,
        values=list(values[start:stop]),
        headers=[[("ps-seq", f"{producer}:{n}".encode())] for n in range(start, stop)] if producer else [],
    )


class Run:
    """One partition over its life: restarts from its checkpoints, and what it has sent."""

    def __init__(self, stream: StreamConfig = STREAM) -> None:
        self.stream = stream
        self.codec = ReadingCodec(stream)
        self.shared = StreamDetector(stream)
        self.changelog: dict[bytes, bytes] = {}
        self.predictions: list[dict[str, Any]] = []
        self.alerts: list[dict[str, Any]] = []
        self.dead: list[bytes] = []
        self.lost = self.duplicated = 0
        self.start()

    def start(self) -> None:
        self.share = DetectPartition(self.shared, self.changelog)

    def checkpoint(self) -> None:
        self.changelog |= dict(self.share.snapshot())

    def take(self, part: Chunk) -> None:
        batch = self.codec.decode(part, NOW)
        seen = self.share.observe(part, batch.rejected)
        outcome = self.share.process(batch, NOW)
        self.lost += seen.lost
        self.duplicated += seen.duplicated
        self.dead += [value or b"" for value in seen.dead_letters.values]
        self.predictions += [msgspec.json.decode(value or b"") for value in outcome.predictions.values]
        self.alerts += [msgspec.json.decode(value or b"") for value in outcome.alerts.values]

    def scores(self) -> dict[str, tuple[float | None, bool]]:
        return {p["id"]: (p["score"], p["is_anomaly"]) for p in self.predictions}


def test_any_cut_gives_the_same_predictions_and_alerts() -> None:
    values = messages(300, spike_at=(150, 157))
    whole, parts = Run(), Run()
    whole.take(chunk(values, 0, 300))
    for start in range(0, 300, 13):
        parts.take(chunk(values, start, min(start + 13, 300)))
    assert whole.scores() == parts.scores()
    assert whole.alerts == parts.alerts
    assert [alert["state"] for alert in whole.alerts if alert["source"] == "s3"] == ["firing", "resolved"]


def test_a_replay_after_a_crash_sends_what_was_not_checkpointed_and_nothing_else() -> None:
    values = messages(200, spike_at=(120,))
    values[30] = values[110] = b"not json"
    reference, run = Run(), Run()
    reference.take(chunk(values, 0, 200, "p"))
    run.take(chunk(values, 0, 80, "p"))
    run.checkpoint()
    run.take(chunk(values, 80, 150, "p"))  # lost with the crash
    run.start()
    before = len(run.predictions)
    run.take(chunk(values, 50, 200, "p"))  # replayed from an offset before the checkpoint
    replayed = run.predictions[before:]
    assert [p["id"].split("/")[2] for p in replayed] == [str(n) for n in range(80, 200) if n != 110]
    assert run.scores() == reference.scores()
    assert (run.lost, run.duplicated) == (0, 0)
    assert len(run.dead) == 2 + 1  # 110 once before the crash and once after: it was not in a checkpoint


def test_changed_thresholds_keep_the_state_and_changed_transforms_drop_it() -> None:
    values = messages(100)
    run = Run()
    run.take(chunk(values, 0, 100))
    run.checkpoint()
    relaxed = Run(msgspec.structs.replace(STREAM, detector={"type": "ewz", "warmup": 5, "threshold": 9}))
    relaxed.changelog = run.changelog
    relaxed.start()
    assert len(relaxed.share.state) == 7
    fields = {**STREAM.fields, "temperature": FieldConfig(transforms=[DeltaConfig()])}
    changed = Run(msgspec.structs.replace(STREAM, fields=fields))
    changed.changelog = run.changelog
    changed.start()
    assert (len(changed.share.state), changed.share.state.dropped) == (0, 1)


def test_transforms_come_before_the_detector_and_survive_a_restart() -> None:
    fields = {"temperature": FieldConfig(transforms=[ScaleConfig(factor=1.8, offset=32), DeltaConfig()])}
    stream = msgspec.structs.replace(STREAM, fields=fields)
    values = messages(120)
    reference, run = Run(stream), Run(stream)
    reference.take(chunk(values, 0, 120))
    run.take(chunk(values, 0, 61))
    run.checkpoint()
    run.start()
    run.take(chunk(values, 61, 120))
    assert run.scores() == reference.scores()
    assert any(score for score, _ in run.scores().values())


def test_the_worst_field_against_its_own_threshold_is_named() -> None:
    run = Run()
    run.take(chunk(messages(100), 0, 100))
    values = messages(101)
    values[100] = msgspec.json.encode({"sensor_id": "s2", "ts": NOW, "temperature": 20.0, "humidity": 60.0})
    run.take(chunk(values, 100, 101))
    assert run.predictions[-1]["field"] == "humidity"
    assert run.predictions[-1]["is_anomaly"] is True
    alert = run.alerts[-1]
    assert (alert["field"], alert["threshold"], alert["state"]) == ("humidity", 3.0, "firing")
    assert "sd above the usual" in alert["explanation"]


def test_losses_and_duplicates_show_in_the_publishers_numbers() -> None:
    values = messages(60)
    run = Run()
    run.take(chunk(values, 0, 20, "p"))
    gap = chunk(values, 20, 40, "p")
    gap.headers = [[("ps-seq", f"p:{n + 5}".encode())] for n in range(20, 40)]
    run.take(gap)
    again = chunk(values, 40, 42, "p")
    again.headers = [[("ps-seq", b"p:3")], [("ps-seq", b"p:45")]]
    run.take(again)
    assert (run.lost, run.duplicated) == (5, 1)


def test_what_is_read_again_after_a_seek_is_not_applied_again() -> None:
    values = messages(200, spike_at=(120,))
    values[30] = values[90] = b"not json"
    reference, run = Run(), Run()
    reference.take(chunk(values, 0, 200, "p"))
    run.take(chunk(values, 0, 100, "p"))
    run.take(chunk(values, 20, 60, "p"))
    run.take(chunk(values, 60, 200, "p"))
    assert run.predictions == reference.predictions
    assert (run.alerts, run.dead) == (reference.alerts, reference.dead)
    assert (run.lost, run.duplicated) == (0, 0)


def test_a_prediction_is_an_alert_of_its_own_and_survives_a_restart() -> None:
    limits = [LimitConfig(field="temperature", high=60)]
    stream = msgspec.structs.replace(STREAM, prognosis=PrognosisConfig(limits=limits, horizon_s=500))
    chance = np.random.default_rng(4)
    values = [
        msgspec.json.encode(
            {"sensor_id": "s", "ts": NOW - 1000 + n, "temperature": 20 + n / 20 + chance.normal()}
        )
        for n in range(900)
    ]
    reference, run = Run(stream), Run(stream)
    reference.take(chunk(values, 0, 900))
    run.take(chunk(values, 0, 401))
    run.checkpoint()
    run.start()
    run.take(chunk(values, 401, 900))
    assert run.alerts == reference.alerts
    foreseen = [alert for alert in run.alerts if alert["rule"] == "prognosis"]
    assert [alert["state"] for alert in foreseen][:: len(foreseen) - 1] == ["firing", "resolved"]
    assert "reaches 60 °C in" in foreseen[0]["explanation"]
    assert {alert["key"] for alert in foreseen} == {"plant/s/prognosis/temperature/high"}
    moved = msgspec.structs.replace(limits[0], high=70)
    other = PrognosisConfig(limits=[moved], horizon_s=500)
    assert msgspec.structs.replace(stream, prognosis=other).state_fingerprint() == stream.state_fingerprint()


def test_a_lasting_change_is_told_once_however_it_is_cut() -> None:
    stream = msgspec.structs.replace(STREAM, drift=DriftConfig(enabled=True, readings=64, lasting_s=0))
    chance = np.random.default_rng(5)
    values = [
        msgspec.json.encode(
            {"sensor_id": "s", "ts": NOW - 2000 + n, "temperature": 20 + 9 * (n >= 1000) + chance.normal()}
        )
        for n in range(1300)
    ]
    whole, parts = Run(stream), Run(stream)
    whole.take(chunk(values, 0, 1300))
    for start in range(0, 1300, 130):
        parts.take(chunk(values, start, start + 130))
        parts.checkpoint()
        parts.start()
    assert whole.scores() == parts.scores()

    def by_id(run: Run) -> list[dict[str, Any]]:
        return sorted(run.alerts, key=lambda alert: (alert["ts"], alert["rule"]))

    assert by_id(whole) == by_id(parts)
    (told,) = [alert for alert in whole.alerts if alert["rule"] == "drift"]
    assert (told["state"], told["severity"]) == ("resolved", "info")
    assert "higher" in told["explanation"]
