"""What predictions cost, and where the watts come from."""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpu_inference.serving import EnergyLedger, find_sensors, pci_address
from gpu_inference.serving.power import NvmlSensor


def card(sysfs: Path, number: int, address: str, **files: str) -> Path:
    """A card as the kernel shows it: card0/device is a link to the PCI device."""
    device = sysfs.parent / "devices" / address
    hwmon = device / "hwmon" / f"hwmon{len(list(sysfs.glob('card*')))}"
    hwmon.mkdir(parents=True)
    for file, text in files.items():
        (hwmon / file).write_text(text)
    (sysfs / f"card{number}").mkdir(parents=True)
    (sysfs / f"card{number}" / "device").symlink_to(device)
    return hwmon


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    folder = tmp_path / "drm"
    folder.mkdir()
    return folder


def test_watts_of_amd_cards_average_before_instant(sysfs: Path) -> None:
    card(sysfs, 1, "0000:03:00.0", name="amdgpu\n", power1_average="85000000\n", power1_input="1\n")
    card(sysfs, 2, "0000:04:00.0", name="amdgpu\n", power1_input="42500000\n")
    card(sysfs, 3, "0000:00:02.0", name="i915\n")
    (sysfs / "card1-HDMI-A-1").mkdir()
    sensors = find_sensors(sysfs, nvml=None)
    assert [(s.name, s.address, s.watts()) for s in sensors] == [
        ("amdgpu", "0000:03:00.0", 85.0),
        ("amdgpu", "0000:04:00.0", 42.5),
    ]


def test_a_sensor_that_falls_silent_gives_none_and_says_so_once(
    sysfs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hwmon = card(sysfs, 0, "0000:03:00.0", name="amdgpu\n", power1_average="85000000\n")
    (sensor,) = find_sensors(sysfs, nvml=None)
    (hwmon / "power1_average").write_text("no number\n")
    assert [sensor.watts(), sensor.watts()] == [None, None]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "no watts from amdgpu at 0000:03:00.0" in record.getMessage()
    (hwmon / "power1_average").write_text("1000000\n")
    assert sensor.watts() == 1.0


def test_no_sensor_is_none_and_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert find_sensors(tmp_path / "absent", nvml="libno-such-nvml.so.1") == []
    assert "no card here tells its watts" in caplog.text


def test_nvml_tells_milliwatts_or_none() -> None:
    class Library:
        status = 0

        def nvmlDeviceGetPowerUsage(self, handle: Any, into: Any) -> int:
            ctypes.cast(into, ctypes.POINTER(ctypes.c_uint))[0] = 123_456
            return self.status

    library = Library()
    sensor = NvmlSensor(library, None, "NVIDIA H200", "0000:1b:00.0")
    assert sensor.watts() == 123.456
    library.status = 3  # not supported
    assert sensor.watts() is None


@pytest.mark.parametrize(
    ("device", "address"),
    [
        (SimpleNamespace(topology_amd=SimpleNamespace(bus=3, device=0, function=0)), "0000:03:00.0"),
        (SimpleNamespace(topology_amd=SimpleNamespace(bus=-125, device=0, function=1)), "0000:83:00.1"),
        (SimpleNamespace(pci_bus_id_nv=0x1B, pci_slot_id_nv=0x08), "0000:1b:01.0"),
        (SimpleNamespace(name="PoCL"), None),
    ],
)
def test_the_address_tells_which_card_a_device_is(device: Any, address: str | None) -> None:
    assert pci_address(device) == address


def test_time_and_energy_are_shared_by_rows_and_seconds() -> None:
    ledger = EnergyLedger()
    ledger.add("gpu0", "m1", 0.030, {"yard": 2, "door": 1})
    ledger.add("gpu0", "m2", 0.010, {"door": 4})
    ledger.add("gpu1", "m1", 0.050, {"door": 1})
    ledger.sample("gpu0", 80.0, 0.5)
    ledger.sample("gpu1", None, 0.5)
    yard, door, other = (ledger.usage[key] for key in (("m1", "yard"), ("m1", "door"), ("m2", "door")))
    assert yard.ms_per_prediction == pytest.approx(10)
    assert door.ms_per_prediction == pytest.approx((10 + 50) / 2)
    assert other.ms_per_prediction == pytest.approx(2.5)
    # 40 J of gpu0, by 20, 10 and 10 ms
    assert yard.joules_per_prediction == pytest.approx(20 / 2)
    assert door.energy_j == pytest.approx(10)
    assert other.joules_per_prediction == pytest.approx(10 / 4)
    ledger.sample("gpu0", 30.0, 1.0)
    assert ledger.idle_j == {"gpu0": 30.0}


def test_nothing_measured_is_none() -> None:
    ledger = EnergyLedger()
    ledger.add("gpu0", "m", 0.01, {"yard": 1, "door": 0})
    assert ledger.usage["m", "yard"].joules_per_prediction is None
    assert ("m", "door") not in ledger.usage
