"""Thresholds, silences and silent sensors with a real broker and a real worker."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.e2e.cli import Cli


@pytest.fixture(params=["at_least_once", "exactly_once"])
def cli(tmp_path: Path, broker: str, topic_prefix: str, request: pytest.FixtureRequest) -> Cli:
    p = topic_prefix
    (tmp_path / "polarstream.toml").write_text(
        f"""
        app_id = "{p}app"
        [topics]
        predictions = "{p}predictions"
        alerts = "{p}alerts"
        analytics = "{p}analytics"
        dead_letter = "{p}dead"
        control = "{p}control"
        [worker]
        delivery = "{request.param}"
        [[streams]]
        name = "hall"
        topic = "{p}hall"
        partitions = 1
        sensor_pattern = "(?P<site>[^/]+)/"
        [streams.fields.temperature]
        unit = "°C"
        [streams.detector]
        type = "ewz"
        [streams.alerts]
        resolve_after = 2
        silent_after = 3
        silent_min_s = 2
        """
    )
    return Cli(tmp_path, broker)


@pytest.fixture
def worker(cli: Cli) -> Iterator[subprocess.Popen[bytes]]:
    process = cli.start("worker")
    yield process
    process.terminate()
    print(process.communicate(timeout=30)[0].decode())


def publish(cli: Cli, *sensors: str, value: float = 20.0, count: int = 1) -> None:
    now = time.time()
    lines = b"".join(
        msgspec.json.encode({"sensor_id": s, "ts": now - (count - 1 - n) * 0.1, "temperature": value + n % 2})
        + b"\n"
        for n in range(count)
        for s in sensors
    )
    cli.ok("publish", "hall", stdin=lines)


def wait_for(find: Callable[[], Any], timeout_s: float = 60) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = find()
        if found:
            return found
        time.sleep(0.3)
    raise AssertionError("it did not come")


def alerts(cli: Cli, **wanted: Any) -> list[dict[str, Any]]:
    found = cli.json_lines("alerts", "list", "--all")
    return [a for a in found if all(a[name] == value for name, value in wanted.items())]


@pytest.mark.slow
@pytest.mark.usefixtures("worker")
def test_what_is_set_while_a_worker_runs_holds(cli: Cli) -> None:
    publish(cli, "east/a", "east/b", "west/c", count=60)
    wait_for(
        lambda: len(cli.json_lines("subscribe", "predictions", "--from", "earliest", "--until-end")) >= 180
    )
    assert alerts(cli) == []

    # a rule makes anomalous what was not
    cli.ok("thresholds", "set", "hot", "--sensor", "east/*", "--high", "20.5")
    assert [r["id"] for r in cli.json_lines("thresholds", "list")] == ["hot"]

    def fires() -> list[dict[str, Any]]:
        publish(cli, "east/a", "east/b", "west/c", value=20.8)
        return alerts(cli, rule="ewz", source="east/a")

    [alert] = wait_for(fires)
    assert (alert["limit"], alert["state"], alert["silenced"]) == (20.5, "firing", False)
    assert "above its limit of 20.5 °C" in alert["opening"]
    assert alerts(cli, source="west/c", rule="ewz") == []

    # people speak of it
    cli.ok("alerts", "ack", alert["id"][:8])
    cli.ok("alerts", "label", alert["id"], "--false-alarm", "--note", "sun")
    [shown] = alerts(cli, id=alert["id"])
    assert (shown["acknowledged"], shown["label"]["false_alarm"]) == (True, True)

    # a silence marks the next alert, which lives all the same
    cli.ok("thresholds", "unset", "hot")
    cli.ok("alerts", "silence", "--sensor", "east/b", "--for", "1h", "--id", "s1")
    cli.ok("thresholds", "set", "hotter", "--field", "temperature", "--high", "30")

    def fires_again() -> list[dict[str, Any]]:
        publish(cli, "east/a", "east/b", "west/c", value=20.0, count=3)
        publish(cli, "east/b", value=31.0)
        return [a for a in alerts(cli, rule="ewz", source="east/b") if a["silenced"]]

    [marked] = wait_for(fires_again)[:1]
    assert marked["silenced_by"] == "silence/s1"
    assert alerts(cli, id=alert["id"])[0]["state"] == "resolved"

    # one sensor falls silent while the others speak, and comes back
    for _ in range(25):
        publish(cli, "east/a", "east/b", "west/c")
        time.sleep(0.4)  # what makes them regular

    def falls_silent() -> list[dict[str, Any]]:
        publish(cli, "east/a", "west/c")
        return alerts(cli, rule="silent", source="east/b", state="firing")

    [silent] = wait_for(falls_silent)
    assert (silent["scope"], silent["field"], silent["silenced"]) == ("sensor", "", True)
    assert silent["opening"].startswith("silent for ")
    publish(cli, "east/a", "east/b", "west/c")
    [back] = wait_for(lambda: alerts(cli, id=silent["id"], state="resolved"))
    assert back["explanation"].startswith("heard again")

    # then nobody speaks at all, and no reading brings it about
    gone = wait_for(lambda: alerts(cli, rule="silent", scope="broker", state="firing"))[0]
    assert gone["members"] == ["east/a", "east/b", "west/c"]
    publish(cli, "west/c")
    wait_for(lambda: alerts(cli, id=gone["id"], state="resolved"))


@pytest.mark.slow
@pytest.mark.usefixtures("worker")
def test_labels_become_a_threshold(cli: Cli) -> None:
    sensors, begin = [f"east/{i}" for i in range(5)], time.time() - 1000
    jumps = {60: 10.0, 80: 100.0}  # the first says nothing, the second is real
    lines = [
        {"sensor_id": sensor, "ts": begin + n, "temperature": 20 + n % 2 + jumps.get(n, 0.0)}
        for n in range(100)
        for sensor in sensors
    ]
    cli.ok("publish", "hall", stdin=b"\n".join(map(msgspec.json.encode, lines)))

    def all_opened() -> list[dict[str, Any]]:
        found = alerts(cli, rule="ewz", state="resolved")
        return found if len(found) >= 10 else []

    for alert in wait_for(all_opened):
        real = alert["started_at"] > begin + 70
        cli.ok("alerts", "label", alert["id"], "--real" if real else "--false-alarm")
    assert cli.ok("thresholds", "propose").endswith("nothing is set: add --apply\n")
    assert cli.json_lines("thresholds", "list") == []
    [found] = cli.json_lines("thresholds", "propose", "--by", "field", "--apply")
    assert found["applied"]
    assert (found["alerts"], found["alerts_after"]) == (10, 5)
    assert found["expected"]["precision"]["value"] == 1.0
    [rule] = cli.json_lines("thresholds", "list")
    assert (rule["id"], rule["rule"]["threshold"]) == ("labels.hall.temperature", found["threshold"])
    # asked again, there is nothing more to gain
    assert cli.ok("thresholds", "propose").startswith("nothing for stream=hall field=temperature")


@pytest.mark.slow
@pytest.mark.usefixtures("worker")
def test_a_bad_control_record_is_a_dead_letter_and_nothing_else(cli: Cli, topic_prefix: str) -> None:
    publish(cli, "east/a", count=5)
    wait_for(lambda: cli.json_lines("subscribe", "predictions", "--from", "earliest", "--until-end"))
    record = '{"key": "threshold/hot", "high": 3}\n'
    cli.ok("publish", "control", "--id-field", "key", stdin=record)
    letter = wait_for(lambda: cli.json_lines("dlq", "list"))[0]
    assert (letter["reason"], letter["topic"]) == ("bad_control", f"{topic_prefix}control")
    publish(cli, "east/a")
    wait_for(
        lambda: len(cli.json_lines("subscribe", "predictions", "--from", "earliest", "--until-end")) == 6
    )
