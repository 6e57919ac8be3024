"""OpenCL devices: which there are, which one to take, and what to install where there is none."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from gpu_inference.errors import DeviceError
from gpu_inference.opencl.program import ProgramCache
from gpu_inference.opencl.timing import traits_of
from gpu_inference.opencl.traits import DeviceTraits

INSTALL_HINT: Final = (
    "install a driver. RX 580 with Mesa: 'apt install mesa-opencl-icd' (Debian, Ubuntu) or "
    "'dnf install mesa-libOpenCL' (Fedora), then set RUSTICL_ENABLE=radeonsi; NVIDIA: its driver brings "
    "OpenCL; without a GPU: 'apt install pocl-opencl-icd'"
)


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """One OpenCL device.

    Attributes:
        index: in the list of all devices; what `load(device=...)` takes.
        name: as its driver calls it.
        vendor: as its driver calls it.
        platform: name of the OpenCL platform.
        driver: its version.
        version: of OpenCL.
        memory_bytes: global memory.
        max_buffer_bytes: the driver's limit of one buffer.
        traits: what planners know of it.
        problems: what is known to be broken or missing on it.
    """

    index: int
    name: str
    vendor: str
    platform: str
    driver: str
    version: str
    memory_bytes: int
    max_buffer_bytes: int
    traits: DeviceTraits
    problems: tuple[str, ...] = ()

    @property
    def is_rx580(self) -> bool:
        """Whether it is one of the cards that we are made for (gfx803)."""
        return self.traits.kind == "gfx803"


class DeviceHandle:
    """One device's context and built programs, shared by all sessions of the process."""

    def __init__(self, device: Any) -> None:
        import pyopencl as cl

        self.context = cl.Context([device])
        self.device = device
        self.traits = traits_of(device)
        self.programs = ProgramCache(self.context)
        self.driver = f"{device.platform.name} {device.driver_version}"
        self.memory_bytes = int(device.global_mem_size)
        self.max_buffer_bytes = int(device.max_mem_alloc_size)
        self.unified_memory = bool(device.host_unified_memory)
        self._held_bytes = 0
        self._lock = threading.Lock()

    def hold(self, change_bytes: int) -> None:
        """A session took so much of the device's memory, or gave it back (negative)."""
        with self._lock:
            self._held_bytes += change_bytes

    def free_bytes(self) -> int:
        """Memory that is left: as AMD's drivers tell it, elsewhere all that sessions of ours don't hold."""
        import pyopencl as cl

        ours = self.memory_bytes - self._held_bytes
        try:
            told = self.device.global_free_memory_amd
        except (cl.Error, AttributeError):
            return ours
        free_kib = told if isinstance(told, int) else next(iter(told), 0)
        return min(ours, 1024 * int(free_kib)) if free_kib else ours  # some drivers say 0


_lock = threading.Lock()
_handles: dict[int, DeviceHandle] = {}


@cache
def _raw_devices() -> tuple[Any, ...]:
    try:
        import pyopencl as cl
    except ImportError as error:
        raise DeviceError(f"pyopencl can't be imported ({error}): pip install pyopencl") from error
    try:
        platforms = cl.get_platforms()
    except cl.Error as error:
        raise DeviceError(f"no OpenCL platform ({error}): {INSTALL_HINT}") from error
    found = []
    for platform in platforms:
        try:
            found += [(platform, device) for device in platform.get_devices()]
        except cl.Error:  # a driver without a device
            continue
    return tuple(found)


def list_devices() -> list[DeviceInfo]:
    """Every OpenCL device of this machine; empty where a platform exists without one.

    Raises:
        DeviceError: there is no driver at all; the message says what to install.
    """
    return [_info(index, platform, device) for index, (platform, device) in enumerate(_raw_devices())]


def pick_device(wanted: str | int | None = None) -> DeviceInfo:
    """A device by index, or by part of its name, vendor or platform; the best one without a wish.

    GPUs come before CPUs, then RX 580 before others, then more compute units.

    Raises:
        DeviceError: none fits; the message lists what there is.
    """
    devices = list_devices()
    if not devices:
        raise DeviceError(f"no OpenCL device: {INSTALL_HINT}")
    if isinstance(wanted, str) and wanted.isdigit():
        wanted = int(wanted)
    if isinstance(wanted, int):
        fitting = [d for d in devices if d.index == wanted]
    elif wanted is not None:
        text = wanted.lower()
        fitting = [d for d in devices if text in f"{d.name} {d.vendor} {d.platform}".lower()]
    else:
        fitting = devices
    if not fitting:
        known = "; ".join(f"{d.index}: {d.name} ({d.platform})" for d in devices)
        raise DeviceError(f"no OpenCL device {wanted!r}: take one of {known}")
    return max(fitting, key=lambda d: (not d.traits.is_cpu, d.is_rx580, d.traits.compute_units, -d.index))


def open_device(info: DeviceInfo) -> DeviceHandle:
    """The shared handle of a device."""
    with _lock:
        if info.index not in _handles:
            _handles[info.index] = DeviceHandle(_raw_devices()[info.index][1])
        return _handles[info.index]


def forget_device(wanted: str | int | None = None) -> None:
    """The next session on a device gets a context of its own: after an error the old one may be dead.

    Sessions that are open keep the old one.

    Raises:
        DeviceError: see pick_device.
    """
    index = pick_device(wanted).index
    with _lock:
        _handles.pop(index, None)


def _info(index: int, platform: Any, device: Any) -> DeviceInfo:
    problems = []
    if not device.available:
        problems.append("the driver says that it is not available")
    if not device.compiler_available:
        problems.append("its driver has no compiler")
    if device.local_mem_size < 32768:
        problems.append(f"only {device.local_mem_size} bytes of local memory, kernels want 32768")
    return DeviceInfo(
        index=index,
        name=str(device.name).strip(),
        vendor=str(device.vendor).strip(),
        platform=str(platform.name).strip(),
        driver=str(device.driver_version).strip(),
        version=str(device.version).strip(),
        memory_bytes=int(device.global_mem_size),
        max_buffer_bytes=int(device.max_mem_alloc_size),
        traits=traits_of(device),
        problems=tuple(problems),
    )
