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


class RecipeError(EngineError):
    """A recipe of the optimiser, its data or its budget can't be used: a wrong usage."""


class ManifestError(ModelError):
    """A `model.toml` is wrong: stop.

    Args:
        faults: all of them, each with its path.
    """

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class RegistryError(EngineError):
    """A folder of models can't be read or changed, or a model in it isn't what it should be: stop."""


class SignatureError(RegistryError):
    """A model isn't signed by a trusted key, where that is asked for: it isn't loaded."""


class RecordError(RegistryError):
    """A record about models can't be used: what held before goes on to hold."""


class UnknownModel(RegistryError):
    """No record says that such a model or alias is live: a bad request."""


class ModelNotReady(EngineError):
    """The model is live but no version of it is loaded yet, or none can be: try again later."""
