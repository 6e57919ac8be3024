"""A simulated device: answers y = 2 x, costs what it is told, and fails when it is told."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gpu_inference import Session, TensorInfo
from gpu_inference.serving import DeviceSpec

Fault = Callable[[dict[str, Any]], dict[str, Any]]  # gets the right outputs, gives what the device says


class Device:
    """What tests see of a simulated device.

    Args:
        name: of the device.
        session: opens the session that answers; None for y = 2 x.
        cost_s: of a batch of n: cost_s[0] + n * cost_s[1].
    """

    def __init__(
        self,
        name: str,
        session: Callable[[str], Session] | None = None,
        cost_s: tuple[float, float] = (0.0, 0.0),
        last_resort: bool = False,
    ) -> None:
        self.name, self.cost_s, self.last_resort = name, cost_s, last_resort
        self.script: list[Fault | None] = []  # what happens at the next runs; None for nothing
        self.refuse_to_open: Exception | None = None
        self.opened: Counter[str] = Counter()
        self.closed: Counter[str] = Counter()
        self.threads: set[int] = set()
        self.runs = self.resets = 0
        self.wake = threading.Event()  # ends every hang
        self.hangs = threading.Event()  # one has begun
        self._session = session

    @property
    def spec(self) -> DeviceSpec:
        return DeviceSpec(self.name, self.open, self.last_resort, self.reset)

    @property
    def open_now(self) -> int:
        return self.opened.total() - self.closed.total()

    def open(self, key: str) -> Session:
        if self.refuse_to_open is not None:
            raise self.refuse_to_open
        self.opened[key] += 1
        return _Session(self, key, None if self._session is None else self._session(key))

    def reset(self) -> None:
        self.resets += 1

    def hang(self, outputs: dict[str, Any]) -> dict[str, Any]:
        """A fault: no answer until the test says so; then a late one."""
        self.hangs.set()
        assert self.wake.wait(30)
        return outputs


def raise_error(outputs: dict[str, Any]) -> dict[str, Any]:
    """A fault."""
    raise RuntimeError("CL_OUT_OF_RESOURCES")


def give_nan(outputs: dict[str, Any]) -> dict[str, Any]:
    """A fault."""
    return {
        name: np.where(np.arange(array.size).reshape(array.shape) == 1, np.nan, array).astype(array.dtype)
        for name, array in outputs.items()
    }


def give_wrong(outputs: dict[str, Any]) -> dict[str, Any]:
    """A fault."""
    return {name: array + 1 for name, array in outputs.items()}


class _Session:
    def __init__(self, device: Device, key: str, inner: Session | None) -> None:
        self._device, self._key, self._inner = device, key, inner
        info = (TensorInfo("x", np.dtype(np.float32), (None, 3)),)
        self.inputs: Sequence[TensorInfo] = inner.inputs if inner else info
        self.outputs: Sequence[TensorInfo] = inner.outputs if inner else info
        self._thread = threading.get_ident()
        self._closed = False

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        device = self._device
        assert threading.get_ident() == self._thread
        assert not self._closed
        device.threads.add(self._thread)
        device.runs += 1
        fault = device.script.pop(0) if device.script else None
        size = len(next(iter(inputs.values())))
        if any(device.cost_s):
            time.sleep(device.cost_s[0] + size * device.cost_s[1])
        outputs = self._inner.run(inputs) if self._inner else {"y": 2 * inputs["x"]}
        return fault(outputs) if fault else outputs

    def close(self) -> None:
        assert threading.get_ident() == self._thread
        assert not self._closed
        self._closed = True
        self._device.closed[self._key] += 1
        if self._inner:
            self._inner.close()
