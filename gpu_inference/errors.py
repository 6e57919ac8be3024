"""What can go wrong in an engine. Every message says what to do."""

from __future__ import annotations


class EngineError(Exception):
    """Any failure of `gpu_inference`."""


class ModelError(EngineError):
    """The model is broken, or asks for what the engine can't do: stop, or load with `fallback=True`."""


class DeviceError(EngineError):
    """No device, no driver, or too little memory on it: nothing was run."""


class KernelError(EngineError):
    """A kernel didn't build or run on this device; the message has the driver's log."""


class BusyError(EngineError):
    """Too much waits already: try again later."""


class ServingError(EngineError):
    """No answer could be given: no device could run the batch, its time ran out, or the pool is closed."""
