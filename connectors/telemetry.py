"""This machine as a source: processor, memory, disk, network, temperatures (through psutil).

Each quantity is a sensor of its own with one field, `value`: `<host>:cpu` (%), `<host>:memory` (%),
`<host>:load` (runnable processes a processor), `<host>:disk-used` (%), `<host>:disk-read` and
`<host>:disk-write` (MB/s), `<host>:net-in` and `<host>:net-out` (kB/s), `<host>:temp-<label>` (°C, where the
machine shows any). Nothing is invented: what the machine does not tell has no sensor.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import time
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import psutil

from connectors.source import Message

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping


class TelemetryConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True, tag="host"):
    """Settings of the machine's own telemetry as a source."""

    interval_s: float = 1.0
    #: First part of the sensor ids; None: the host's name.
    host: str | None = None
    #: Folder whose disk is watched; None: the root.
    disk: str | None = None


class HostReading(msgspec.Struct, frozen=True, gc=False):
    """One quantity of this machine at `ts` (s since the epoch); the sensor's name tells the unit."""

    sensor_id: str
    ts: float
    value: float


class Counters(NamedTuple):
    """Totals since the machine started, in bytes; None where the machine does not tell."""

    disk_read: int | None = None
    disk_write: int | None = None
    net_in: int | None = None
    net_out: int | None = None


#: sensor, field of `Counters`, bytes in one unit of the value
_RATES = (
    ("disk-read", "disk_read", 1e6),
    ("disk-write", "disk_write", 1e6),
    ("net-in", "net_in", 1e3),
    ("net-out", "net_out", 1e3),
)


def rates(before: Counters, after: Counters, elapsed_s: float) -> dict[str, float]:
    """What went through between two looks, by sensor; a counter that fell (wrapped, unplugged) has none."""
    found: dict[str, float] = {}
    for sensor, field, unit in _RATES:
        old, new = getattr(before, field), getattr(after, field)
        if old is not None and new is not None and new >= old and elapsed_s > 0:
            found[sensor] = (new - old) / elapsed_s / unit
    return found


def read_counters() -> Counters:
    """The totals of all disks and of all network interfaces."""
    disk, net = psutil.disk_io_counters(), psutil.net_io_counters()
    return Counters(
        disk.read_bytes if disk else None,
        disk.write_bytes if disk else None,
        net.bytes_recv if net else None,
        net.bytes_sent if net else None,
    )


def read_gauges(disk: str) -> dict[str, float]:
    """What holds right now, by sensor."""
    gauges = {"cpu": float(psutil.cpu_percent()), "memory": float(psutil.virtual_memory().percent)}
    if hasattr(os, "getloadavg"):
        gauges["load"] = os.getloadavg()[0] / (os.cpu_count() or 1)
    with contextlib.suppress(OSError):  # unmounted meanwhile: no sensor until it is back
        gauges["disk-used"] = float(psutil.disk_usage(disk).percent)
    gauges.update(read_temperatures())
    return gauges


def read_temperatures() -> dict[str, float]:
    """Temperatures in °C by sensor; empty where the machine has none or hides them."""
    probe = getattr(psutil, "sensors_temperatures", None)
    if probe is None:
        return {}
    try:
        chips: Mapping[str, list[object]] = probe()
    except OSError:
        return {}
    return dict(_temperatures(chips))


def _temperatures(chips: Mapping[str, list[object]]) -> Iterator[tuple[str, float]]:
    for chip, entries in chips.items():
        for number, entry in enumerate(entries):
            label = getattr(entry, "label", "") or str(number)
            current = getattr(entry, "current", None)
            if current is not None and -60.0 < current < 150.0:  # absent probes read as nonsense
                yield (
                    "temp-" + re.sub(r"[^a-z0-9]+", "-", f"{chip} {label}".lower()).strip("-"),
                    float(current),
                )


class TelemetrySource:
    """This machine, one batch of messages every `interval_s`."""

    def __init__(self, config: TelemetryConfig) -> None:
        self._interval_s = config.interval_s
        self._host = config.host or socket.gethostname()
        self._disk = config.disk or os.path.abspath(os.sep)

    async def batches(self) -> AsyncIterator[list[Message]]:
        """Readings of all quantities, keyed by sensor id, until cancelled."""
        psutil.cpu_percent()  # the first call only starts its clock
        before, looked = read_counters(), time.monotonic()
        due = looked
        while True:
            due = max(due + self._interval_s, time.monotonic())
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            # in a thread: a disk that hangs must not stop the other sources
            gauges = await asyncio.to_thread(read_gauges, self._disk)
            after, now = read_counters(), time.monotonic()
            values = gauges | rates(before, after, now - looked)
            before, looked = after, now
            yield self.messages(values, round(time.time(), 3))

    def messages(self, values: Mapping[str, float], ts: float) -> list[Message]:
        """One message a quantity."""
        readings = (
            HostReading(f"{self._host}:{name}", ts, round(value, 3)) for name, value in values.items()
        )
        return [Message(r.sensor_id.encode(), msgspec.json.encode(r)) for r in readings]
