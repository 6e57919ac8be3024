from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import msgspec
import psutil
import pytest

from connectors.publisher import Publisher
from connectors.source import Message
from streams.config import KafkaConfig
from tests.e2e.cli import Cli


@pytest.fixture
def cli(tmp_path: Path, broker: str, topic_prefix: str) -> Cli:
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
        name = "hall"
        topic = "{p}hall"
        partitions = 2
        [streams.fields.temperature]
        unit = "°C"
        """
    )
    return Cli(tmp_path, broker)


@pytest.fixture
def bare(tmp_path: Path) -> Cli:
    """Without any broker."""
    return Cli(tmp_path)


def every_command() -> list[list[str]]:
    groups = {
        (): ["up", "worker", "sources", "publish", "subscribe", "replay", "doctor", "status"],
        ("broker",): ["start", "stop", "status"],
        ("topics",): ["list", "create", "describe"],
        ("dlq",): ["list", "show", "replay"],
        ("config",): ["check", "init"],
    }
    return [[*group, name] for group, names in groups.items() for name in names]


@pytest.mark.parametrize("command", every_command(), ids=" ".join)
def test_every_command_has_help_with_examples(bare: Cli, command: list[str]) -> None:
    text = bare.ok(*command, "--help")
    assert "Examples:\n\n  " in text
    assert f"  polarstream {' '.join(command)}" in text.split("Examples:")[1].replace("| ", "\n  ")


def test_help_is_quick_and_loads_no_kafka(bare: Cli) -> None:
    listed = subprocess.run(
        [*bare.command()[:1], "-X", "importtime", *bare.command("--help")[1:]],
        capture_output=True,
        env=bare.environment,
        check=True,
    ).stderr.decode()
    loaded = {line.rpartition("|")[2].strip() for line in listed.splitlines()}
    assert not loaded & {"aiokafka", "faust", "numpy", "rich.console", "pyarrow", "psutil"}
    times: list[float] = []
    for _ in range(3):
        before = os.times()
        assert bare.spawn("--help").returncode == 0
        after = os.times()
        times.append(
            after.children_user + after.children_system - before.children_user - before.children_system
        )
    assert min(times) < 0.5


def test_mistakes_are_one_line_without_a_traceback(bare: Cli) -> None:
    assert re.fullmatch(r"error: No such command 'upp'.*\nsee polarstream --help\n", bare.fails(2, "upp"))
    assert "see polarstream subscribe --help" in bare.fails(2, "subscribe", "x", "--limit", "0")
    assert "'3x' is no duration" in bare.fails(2, "up", "--for", "3x")
    assert "no source 'moon'" in bare.fails(2, "up", "--source", "moon")
    assert "at column 8" in bare.fails(2, "subscribe", "x", "--filter", "score > ")
    assert "cannot start from 'yesterday'" in bare.fails(2, "subscribe", "x", "--from", "yesterday")
    assert "name one topic, or use --configured" in bare.fails(2, "topics", "create")
    assert "is not positive" in bare.fails(2, "replay", "x.csv", "--to", "y", "--speed", "0")
    assert re.match(r"polarstream \d+\.\d+", bare.ok("--version"))


def test_debug_shows_the_traceback(bare: Cli) -> None:
    done = bare.spawn("subscribe", "x", "--filter", "(", "--debug")
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_without_a_broker_every_command_says_what_to_do(bare: Cli) -> None:
    for command in (
        ["topics", "list"],
        ["publish", "x"],
        ["subscribe", "x"],
        ["dlq", "list"],
        ["worker"],
        ["sources", "plant"],
    ):
        assert "the local one is not running: polarstream broker start" in bare.fails(69, *command)
    assert bare.run("broker", "status").returncode == 69
    assert bare.run("status").returncode == 69


def test_a_broker_that_does_not_answer_is_named(tmp_path: Path) -> None:
    away = Cli(tmp_path, "127.0.0.1:1")
    for command in (["topics", "list"], ["publish", "x"], ["subscribe", "x"]):
        assert "127.0.0.1:1" in away.fails(69, *command)
    assert "FAIL  broker" in away.run("doctor").stdout


def test_config_init_writes_what_config_check_accepts(bare: Cli) -> None:
    assert "wrote polarstream.toml" in bare.ok("config", "init")
    assert "valid: " in bare.ok("config", "check")
    assert "exists: name another file, or use --force" in bare.fails(2, "config", "init")
    bare.ok("config", "init", "--force")
    assert bare.ok("config", "init", "-") == (bare.folder / "polarstream.toml").read_text()


def test_config_check_lists_every_fault(bare: Cli) -> None:
    (bare.folder / "bad.toml").write_text("[worker]\nlinger_ms = -1\n[kafka]\nrequest_timeout_ms = 1\n")
    told = bare.fails(2, "config", "check", "-c", "bad.toml")
    assert "worker.linger_ms" in told
    assert "kafka.request_timeout_ms" in told
    done = bare.run("config", "check", "-c", "bad.toml", "--json")
    assert done.returncode == 2
    faults = msgspec.json.decode(done.stdout)["faults"]
    assert {fault["path"] for fault in faults} == {"worker.linger_ms", "kafka.request_timeout_ms"}
    assert "none.toml" in bare.fails(2, "status", "-c", "none.toml")


def test_doctor_changes_nothing(bare: Cli, cli: Cli) -> None:
    cli.ok("doctor")
    found = cli.json("doctor")
    assert {c["name"] for c in found} >= {"python", "config", "clock", "disk", "memory", "broker", "devices"}
    assert all(c["verdict"] != "fail" for c in found)
    assert not (cli.folder / "data").exists()


def test_topics_are_made_listed_and_described(cli: Cli, topic_prefix: str) -> None:
    name = f"{topic_prefix}a"
    assert (
        cli.ok("topics", "create", name, "--partitions", "3", "--set", "retention.ms=60000")
        == f"created {name}\n"
    )
    assert cli.ok("topics", "create", name) == "nothing to do: it exists\n"
    [listed] = [t for t in cli.json("topics", "list") if t["name"] == name]
    assert listed["partitions"] == 3
    assert name in cli.ok("topics", "list")
    assert cli.json("topics", "describe", name)["configs"] == {"retention.ms": "60000"}
    assert "3 partitions" in cli.ok("topics", "describe", name)
    assert "did you mean" in cli.fails(2, "topics", "describe", f"{name}b")
    assert f"{topic_prefix}hall" in cli.json("topics", "create", "--configured")["created"]


def test_json_lines_go_in_and_come_out(cli: Cli, topic_prefix: str) -> None:
    readings = "".join(f'{{"sensor_id": "s{n % 3}", "temperature": {n}}}\n' for n in range(100))
    assert cli.json("publish", "hall", stdin=readings) == {"topic": f"{topic_prefix}hall", "published": 100}
    found = cli.json_lines("subscribe", "hall", "--from", "earliest", "--until-end")
    assert len(found) == 100
    assert {(r["key"], r["value"]["sensor_id"]) for r in found} == {(f"s{n}",) * 2 for n in range(3)}
    hot = cli.json_lines("subscribe", "hall", "--from", "earliest", "--until-end", "-f", "temperature >= 98")
    assert sorted(r["value"]["temperature"] for r in hot) == [98, 99]
    text = cli.ok("subscribe", "hall", "--from", "-1h", "--limit", "2")
    assert len(text.splitlines()) == 2
    assert '"temperature"' in text


def test_csv_goes_in_as_json(cli: Cli) -> None:
    (cli.folder / "a.csv").write_text("sensor_id,ts,temperature\na,2025-01-01 00:00:00,1.5\n")
    assert cli.ok("publish", "hall", "a.csv").startswith("published 1 messages to ")
    [found] = cli.json_lines("subscribe", "hall", "--from", "earliest", "--until-end")
    assert found["value"] == {"sensor_id": "a", "ts": 1735689600.0, "temperature": 1.5}


def test_what_comes_before_a_bad_line_is_published(cli: Cli) -> None:
    told = cli.fails(65, "publish", "hall", stdin='{"sensor_id": "a"}\nnonsense\n{"sensor_id": "b"}\n')
    assert told.startswith("error: line 2 is no JSON object")
    assert len(cli.json_lines("subscribe", "hall", "--from", "earliest", "--until-end")) == 1
    assert "cannot read 'none.csv'" in cli.fails(65, "publish", "hall", "none.csv")
    assert "does not exist" in cli.fails(2, "publish", "no-such-topic", stdin="{}\n")
    assert "there is no format 'xml'" in cli.fails(2, "publish", "hall", "--format", "xml")


def test_a_pipe_is_published_as_it_comes(cli: Cli) -> None:
    cli.ok("topics", "create", "--configured")
    process = subprocess.Popen(
        cli.command("publish", "hall"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=cli.folder,
        env=cli.environment,
    )
    assert process.stdin is not None
    process.stdin.write(b'{"sensor_id": "a"}\n')
    process.stdin.flush()
    found = cli.json_lines("subscribe", "hall", "--from", "earliest", "--limit", "1", "--timeout", "20s")
    assert found[0]["value"] == {"sensor_id": "a"}
    process.send_signal(signal.SIGINT)  # a silent pipe does not hold up the end
    assert process.wait(10) == 130
    process.stdin.close()
    assert process.stdout is not None
    process.stdout.close()


def test_an_unmet_limit_is_exit_75_and_a_closed_pipe_is_quiet(cli: Cli) -> None:
    cli.ok("publish", "hall", stdin='{"sensor_id": "a"}\n' * 5000)
    told = cli.fails(75, "subscribe", "hall", "--limit", "1", "--timeout", "500ms")
    assert told == "error: 0 of 1 messages came within 500ms\n"
    command = " ".join(cli.command("subscribe", "hall", "--from", "earliest"))
    done = subprocess.run(
        f"{command} | head -n 1",
        shell=True,
        capture_output=True,
        cwd=cli.folder,
        env=cli.environment,
        timeout=30,
        check=True,
    )
    assert done.stderr == b""
    assert len(done.stdout.splitlines()) == 1


def test_a_recording_is_replayed(cli: Cli) -> None:
    (cli.folder / "pump-7.csv").write_text(
        "timestamp,temperature\n" + "".join(f"{1000 + n},{n}\n" for n in range(500))
    )
    done = cli.json("replay", "pump-7.csv", "--to", "hall", "--flat-out", "--rewrite-time")
    assert (done["readings"], done["recorded_s"]) == (500, 499.0)
    found = cli.json_lines("subscribe", "hall", "--from", "earliest", "--until-end")
    assert [r["value"]["temperature"] for r in found] == list(range(500))
    assert {r["key"] for r in found} == {"pump-7"}
    assert time.time() - 60 < found[0]["value"]["ts"] < time.time() + 1
    assert "looks like a time" in cli.fails(65, "replay", str(_write(cli, "a,b\n1,2\n")), "--to", "hall")
    assert "replayed 500 readings" in cli.ok("replay", "pump-7.csv", "--to", "hall", "--speed", "1000")


def _write(cli: Cli, text: str) -> Path:
    path = cli.folder / "other.csv"
    path.write_text(text)
    return path


def test_refused_messages_are_listed_shown_and_sent_again(
    cli: Cli, kafka: KafkaConfig, topic_prefix: str
) -> None:
    cli.ok("topics", "create", "--configured")
    assert cli.ok("dlq", "list") == "no refused messages\n"
    headers = [
        ("ps-error", b"not_json"),
        ("ps-detail", b"unexpected end"),
        ("ps-topic", f"{topic_prefix}hall".encode()),
        ("ps-partition", b"1"),
        ("ps-offset", b"7"),
        ("ps-timestamp", b"1700000000000"),
    ]

    async def refuse() -> None:
        async with Publisher(kafka, sequence=False) as publisher:
            await publisher.publish(f"{topic_prefix}dead", [Message(b"k", b"\xff{", None, headers)] * 3)

    asyncio.run(refuse())
    listed = cli.json_lines("dlq", "list")
    assert [x["reason"] for x in listed] == ["not_json"] * 3
    assert "unexpected end" in cli.ok("dlq", "list", "--topic", f"{topic_prefix}hall")
    shown = cli.ok("dlq", "show", listed[0]["id"])
    assert "value     (2 bytes) ff 7b" in shown
    assert f"origin    {topic_prefix}hall, partition 1, offset 7" in shown
    assert cli.json("dlq", "replay", "--dry-run") == {"waiting": 3, "already": 0}
    assert cli.json("dlq", "replay", "--id", listed[1]["id"])["replayed"] == 1
    assert cli.ok("dlq", "replay").startswith("2 sent again, 1 were sent before, 0 left alone\n")
    found = cli.json_lines("subscribe", "hall", "--from", "earliest", "--until-end")
    assert [(r["key"], r["value"], r["partition"]) for r in found] == [("k", {"base64": "/3s="}, 1)] * 3
    assert "there is no dead letter '0/999'" in cli.fails(2, "dlq", "show", "0/999")


def test_the_local_broker_starts_is_found_and_stops(bare: Cli) -> None:
    try:
        bootstrap = bare.json("broker", "start")["bootstrap"]
        assert bare.json("broker", "start") == {"bootstrap": bootstrap}
        status = bare.json("broker", "status")
        assert (status["running"], status["bootstrap"]) == (True, bootstrap)
        assert bare.json("topics", "list") == []
        assert bootstrap in bare.ok("status")
    finally:
        assert bare.json("broker", "stop") == {"stopped": True}
    assert not psutil.pid_exists(status["pid"])
    assert bare.ok("broker", "stop") == "the local broker was not running\n"
