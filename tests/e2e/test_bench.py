from __future__ import annotations

import pytest

from tests.e2e.cli import Cli


@pytest.fixture
def cli(tmp_path, broker: str) -> Cli:  # type: ignore[no-untyped-def]
    return Cli(tmp_path, broker)


@pytest.mark.slow
@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_throughput_is_measured_and_its_topics_deleted(cli: Cli, delivery: str) -> None:
    found = cli.json("bench", "throughput", "--readings", "20000", "--delivery", delivery)
    assert found["readings"] == 20_000
    assert found["per_s"] > 1000
    assert 0 < found["startup_s"] < 60
    assert found["cpu_us_per_reading"] > 0
    assert 20 < found["peak_mb"] < 1000
    assert not [t for t in cli.json("topics", "list", "--all") if t["name"].startswith("bench-")]


@pytest.mark.slow
def test_latency_is_measured_from_publishing_to_reading(cli: Cli) -> None:
    found = cli.json("bench", "latency", "--rate", "200", "--seconds", "2")
    assert 300 < found["readings"] <= 420
    assert 0 < found["p50_ms"] <= found["p95_ms"] <= found["p99_ms"] <= found["max_ms"] < 60_000
    assert 0 <= found["cpu_share"] < 2


@pytest.mark.slow
def test_the_delivery_is_proved(cli: Cli) -> None:
    found = cli.json("bench", "delivery", "--readings", "5000", "--rate", "2500", "--kills", "1")
    assert (found["ok"], found["lost"], found["wrong"], found["kills"]) == (True, 0, 0, 1)


def test_an_unknown_delivery_is_refused(cli: Cli) -> None:
    for command in ("throughput", "latency", "delivery"):
        assert "--delivery sometimes is not known" in cli.fails(
            2, "bench", command, "--delivery", "sometimes"
        )
