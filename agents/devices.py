"""The devices of a worker, from its configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gpu_inference.devices import forget_device, list_devices, pick_device
from gpu_inference.errors import DeviceError
from gpu_inference.serving.device import DeviceSpec
from streams.errors import Stop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gpu_inference.session import Session

CPU: Final = "cpu"


def device_specs(
    wanted: Sequence[str], open_session: Callable[[int | None], Callable[[str], Session]]
) -> list[DeviceSpec]:
    """Make the devices of a pool.

    Args:
        wanted: `inference.devices` of the configuration.
        open_session: makes what opens a session on an OpenCL device of an index, or (None) on the CPU.

    Raises:
        Stop: there is no such device.
    """
    cpu = DeviceSpec(CPU, open_session(None))
    if list(wanted) == ["auto"]:
        try:
            found = [info for info in list_devices() if info.traits.kind != "cpu"]
        except DeviceError:
            found = []
        cards = [_card(info.index, info.name, open_session) for info in found]
        return [*cards, DeviceSpec(CPU, open_session(None), last_resort=True)] if cards else [cpu]
    specs: list[DeviceSpec] = []
    for word in wanted:
        if word == CPU:
            specs.append(cpu)
            continue
        try:
            info = pick_device(int(word) if word.isdecimal() else word)
        except DeviceError as error:
            raise Stop(f"inference.devices: {error}") from error
        specs.append(_card(info.index, info.name, open_session))
    return specs


def _card(
    index: int, name: str, open_session: Callable[[int | None], Callable[[str], Session]]
) -> DeviceSpec:
    # a context that a failure has broken is made anew
    return DeviceSpec(f"{index}:{name}", open_session(index), reset=lambda: forget_device(index))
