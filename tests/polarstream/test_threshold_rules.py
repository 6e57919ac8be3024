"""Threshold rules in the configuration, every fault with its path; alerts put together for the commands."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from polarstream.config import parse
from polarstream.control import tell_alerts
from streams.control import ControlState
from streams.errors import ConfigError
from streams.records import Alert

ENV = {"HOME": "/home/someone"}


def faults(**stream: Any) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        parse({"streams": [{"name": "s", "topic": "t", "fields": {"x": {}, "y": {}}, **stream}]}, ENV)
    return {fault.path: fault.message for fault in caught.value.faults}


def test_every_fault_of_every_rule_is_told_with_its_path() -> None:
    rules = [
        {"field": "z", "high": 1},
        {"low": 5, "high": 3},
        {"once_in": 1000},
        {"threshold": 3, "adaptive": 100},
        {"field": "x", "budget_per_day": 5},
        {"sensor": "a"},
        {"hihg": 3},
        {"budget_per_day": 0},
        {"severity": "bad", "budget_by": "hall"},
        {"sensor": "", "high": 1},
        {"sensor": "pump-*", "field": "x", "high": 90, "threshold": 8},
    ]
    found = faults(
        detector={"type": "ewz"},
        thresholds=rules,
        sensor_pattern="(?P<hall>x",
        alerts={"silent_after": 1, "group_min": 1},
    )
    assert set(found) == {
        "streams[0].thresholds[0].field",
        "streams[0].thresholds[1].low",
        "streams[0].thresholds[2].once_in",
        "streams[0].thresholds[3].adaptive",
        "streams[0].thresholds[4].budget_per_day",
        "streams[0].thresholds[5]",
        "streams[0].thresholds[6].hihg",
        "streams[0].thresholds[7].budget_per_day",
        "streams[0].thresholds[8].severity",
        "streams[0].thresholds[8].budget_by",
        "streams[0].thresholds[9].sensor",
        "streams[0].sensor_pattern",
        "streams[0].alerts.silent_after",
        "streams[0].alerts.group_min",
    }
    assert "use threshold" in found["streams[0].thresholds[2].once_in"]
    assert "(?P<site>...)" in faults(sensor_pattern="(?P<hall>x)")["streams[0].sensor_pattern"]


def test_once_in_is_for_detectors_with_calibrated_scores() -> None:
    stream = {
        "name": "s",
        "topic": "t",
        "fields": {"x": {}},
        "detector": {"type": "rate_of_change"},
        "thresholds": [{"once_in": 1000}],
    }
    assert parse({"streams": [stream]}, ENV).streams[0].thresholds[0].once_in == 1000


def message(identity: str, state: str, ts: float, **more: Any) -> bytes:
    plain = {
        "id": identity,
        "key": "s/hall/a",
        "rule": "ewz",
        "severity": "warning",
        "state": state,
        "source": "hall/a",
        "field": "x",
        "value": None,
        "score": 7.0,
        "threshold": 6.0,
        "started_at": 1.0,
        "ts": ts,
        "count": 1,
        "explanation": f"{state} at {ts:g}",
    }
    return msgspec.json.encode(msgspec.convert({**plain, **more}, Alert))


def test_an_alert_is_told_from_all_its_messages_and_from_what_people_said() -> None:
    control = ControlState()
    control.apply(b"ack/aa", b'{"at": 1}')
    control.apply(b"label/aa", b'{"at": 1, "false_alarm": true}')
    control.apply(b"silence/x", b'{"site": "hall", "until": 50}')
    values = [
        message("aa", "firing", 2.0),
        b"no alert",
        None,
        message("bb", "firing", 60.0),
        message("aa", "resolved", 9.0),
        message("g", "firing", 3.0, scope="group", members=["b", "a"]),
        message("g", "firing", 2.0, scope="group", members=["c"]),
        message("j", "firing", 2.5, scope="group", key="s/hall/join", source="hall"),
    ]
    stories = {s.last.id: s for s in tell_alerts(values, control, {"s": lambda sensor: sensor.split("/")[0]})}
    assert list(stories) == ["aa", "bb", "g", "j"]
    told = stories["aa"].as_dict()
    assert (told["state"], told["opening"], told["messages"]) == ("resolved", "firing at 2", 2)
    assert (told["acknowledged"], told["silenced_by"], told["label"]["false_alarm"]) == (
        True,
        "silence/x",
        True,
    )
    assert (stories["bb"].silenced_by, stories["bb"].acknowledged) == (None, False)
    assert stories["j"].silenced_by == "silence/x"
    assert stories["g"].members == ["a", "b", "c"]
