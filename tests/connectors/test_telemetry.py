from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import msgspec

from connectors import telemetry
from connectors.telemetry import Counters, TelemetryConfig, TelemetrySource, rates

if TYPE_CHECKING:
    import pytest


def test_rates_are_what_went_through_by_the_second() -> None:
    before = Counters(1_000_000, 0, 5_000, None)
    after = Counters(5_000_000, 0, 25_000, 7)
    assert rates(before, after, 2.0) == {"disk-read": 2.0, "disk-write": 0.0, "net-in": 10.0}


def test_a_counter_that_fell_gives_no_rate() -> None:
    assert rates(Counters(net_in=100), Counters(net_in=5), 1.0) == {}
    assert rates(Counters(net_in=1), Counters(net_in=5), 0.0) == {}


def test_this_machine_has_processor_memory_and_disk() -> None:
    gauges = telemetry.read_gauges("/")
    assert 0 <= gauges["cpu"] <= 100
    assert 0 < gauges["memory"] <= 100
    assert 0 < gauges["disk-used"] <= 100


def test_a_disk_that_is_gone_has_no_sensor() -> None:
    assert "disk-used" not in telemetry.read_gauges("/no/such/folder")


def test_temperatures_are_named_by_chip_and_label(monkeypatch: pytest.MonkeyPatch) -> None:
    chips = {
        "coretemp": [SimpleNamespace(label="Package id 0", current=51.0)],
        "nvme": [SimpleNamespace(label="", current=38.5), SimpleNamespace(label="x", current=-273.1)],
        "dead": [SimpleNamespace(label="", current=None)],
    }
    monkeypatch.setattr(telemetry.psutil, "sensors_temperatures", lambda: chips, raising=False)
    assert telemetry.read_temperatures() == {"temp-coretemp-package-id-0": 51.0, "temp-nvme-0": 38.5}


def test_a_machine_without_temperatures_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(telemetry.psutil, "sensors_temperatures", raising=False)
    assert telemetry.read_temperatures() == {}


async def test_source_sends_one_message_a_quantity() -> None:
    source = TelemetrySource(TelemetryConfig(interval_s=0.01, host="box"))
    batches = source.batches()
    first, second = await anext(batches), await anext(batches)
    names = [msgspec.json.decode(m.value)["sensor_id"] for m in second]
    assert len(names) == len(set(names))
    assert "box:cpu" in names
    assert [m.key for m in second] == [n.encode() for n in names]
    assert msgspec.json.decode(first[0].value)["ts"] <= msgspec.json.decode(second[0].value)["ts"]
    await batches.aclose()  # type: ignore[attr-defined]
