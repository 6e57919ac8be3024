"""The plant of the benchmark: a leak that no single sensor shows is found by the sensors together."""

from __future__ import annotations

from benchmarks.joined import shares


def test_a_leak_is_found_by_the_sensors_together() -> None:
    found, false_alarms = shares({"type": "graph"}, 0.1, sites=4)
    assert found == 1.0
    assert false_alarms < 30
