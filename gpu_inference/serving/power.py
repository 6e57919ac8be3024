"""Watts of graphics cards: amdgpu's hwmon files, NVIDIA's NVML. What isn't there gives None and says why."""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path
from typing import Any, Final, Protocol

_log = logging.getLogger(__name__)

SYSFS: Final = Path("/sys/class/drm")
NVML: Final = "libnvidia-ml.so.1"


class PowerSensor(Protocol):
    """What a card draws."""

    @property
    def name(self) -> str:
        """Of the card, for people."""
        ...

    @property
    def address(self) -> str:
        """Its PCI address, 0000:03:00.0, to tell which OpenCL device it is (see `pci_address`)."""
        ...

    def watts(self) -> float | None:
        """Now, or over the driver's own short window; None where the sensor is silent."""
        ...


class HwmonSensor:
    """A card of the amdgpu driver.

    Args:
        folder: of its hwmon, with power1_average or power1_input in microwatts.
        address: of the card.
    """

    def __init__(self, folder: Path, address: str) -> None:
        self.address = address
        self._files = [folder / name for name in ("power1_average", "power1_input")]
        try:
            self.name = (folder / "name").read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            self.name = "hwmon"
        self._silent = False

    def watts(self) -> float | None:
        """See PowerSensor."""
        problem: Exception | None = None
        for file in self._files:
            try:
                microwatts = int(file.read_text(encoding="ascii"))
            except (OSError, ValueError) as error:  # a sleeping card refuses to be read
                problem = error if problem is None else problem
            else:
                self._silent = False
                return microwatts / 1e6
        if not self._silent:
            _log.warning("no watts from %s at %s: %s", self.name, self.address, problem)
        self._silent = True
        return None


class NvmlSensor:
    """An NVIDIA card, through NVML.

    Args:
        library: NVML, initialised.
        handle: of the card.
        name: of the card.
        address: of the card.
    """

    def __init__(self, library: Any, handle: Any, name: str, address: str) -> None:
        self._library, self._handle = library, handle
        self.name, self.address = name, address
        self._silent = False

    def watts(self) -> float | None:
        """See PowerSensor."""
        milliwatts = ctypes.c_uint()
        status = self._library.nvmlDeviceGetPowerUsage(self._handle, ctypes.byref(milliwatts))
        if status == 0:
            self._silent = False
            return milliwatts.value / 1e3
        if not self._silent:
            _log.warning("no watts from %s at %s: NVML says %d", self.name, self.address, status)
        self._silent = True
        return None


def find_sensors(sysfs: Path = SYSFS, nvml: str | None = NVML) -> list[PowerSensor]:
    """Every card's sensor on this machine; empty where there is none, which is logged.

    Args:
        sysfs: the folder of graphics cards.
        nvml: name of NVIDIA's library; None to leave it out.
    """
    found: list[PowerSensor] = [*_hwmon_sensors(sysfs), *(_nvml_sensors(nvml) if nvml else [])]
    if not found:
        _log.info("no card here tells its watts: joules per prediction stay unknown")
    return found


def pci_address(device: Any) -> str | None:
    """The PCI address of a pyopencl device, where its driver tells it."""
    for read in (_amd_address, _khr_address, _nvidia_address):
        try:
            return read(device)
        except Exception:  # each driver has its own way to say that it has no such property
            continue
    return None


def _amd_address(device: Any) -> str:
    place = device.topology_amd
    return f"0000:{place.bus & 0xFF:02x}:{place.device & 0xFF:02x}.{place.function & 7:x}"


def _khr_address(device: Any) -> str:
    place = device.pci_bus_info_khr
    return f"{place.pci_domain:04x}:{place.pci_bus:02x}:{place.pci_device:02x}.{place.pci_function:x}"


def _nvidia_address(device: Any) -> str:
    # the slot holds device and function, as in PCI's own encoding
    bus, slot = device.pci_bus_id_nv, device.pci_slot_id_nv
    try:
        domain = device.pci_domain_id_nv
    except Exception:  # older drivers don't know it
        domain = 0
    return f"{domain:04x}:{bus:02x}:{slot >> 3:02x}.{slot & 7:x}"


def _hwmon_sensors(sysfs: Path) -> list[HwmonSensor]:
    found = []
    for card in sorted(sysfs.glob("card[0-9]*")):
        if not card.name.removeprefix("card").isdigit():  # a connector: card0-HDMI-A-1
            continue
        address = (card / "device").resolve().name
        found += [
            HwmonSensor(folder, address)
            for folder in sorted((card / "device" / "hwmon").glob("hwmon*"))
            if any((folder / name).exists() for name in ("power1_average", "power1_input"))
        ]
    return found


class _PciInfo(ctypes.Structure):
    """nvmlPciInfo_t of NVML's public header."""

    _fields_ = (
        ("bus_id_legacy", ctypes.c_char * 16),
        ("domain", ctypes.c_uint),
        ("bus", ctypes.c_uint),
        ("device", ctypes.c_uint),
        ("pci_device_id", ctypes.c_uint),
        ("pci_subsystem_id", ctypes.c_uint),
        ("bus_id", ctypes.c_char * 32),
    )


def _nvml_sensors(name: str) -> list[NvmlSensor]:
    try:
        library: Any = ctypes.CDLL(name)
    except OSError:
        return []
    status = library.nvmlInit_v2()
    count = ctypes.c_uint()
    if status == 0:
        status = library.nvmlDeviceGetCount_v2(ctypes.byref(count))
    if status != 0:
        _log.warning("NVML is there, but says %d: joules of NVIDIA cards stay unknown", status)
        return []
    found = []
    for index in range(count.value):
        handle, info, text = ctypes.c_void_p(), _PciInfo(), ctypes.create_string_buffer(96)
        if library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) != 0:
            continue
        library.nvmlDeviceGetName(handle, text, ctypes.c_uint(96))
        library.nvmlDeviceGetPciInfo_v3(handle, ctypes.byref(info))
        address = f"{info.domain:04x}:{info.bus:02x}:{info.device:02x}.0"
        found.append(NvmlSensor(library, handle, text.value.decode(errors="replace"), address))
    return found
