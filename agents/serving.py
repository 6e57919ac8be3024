"""The models and devices of a worker: a pool, and a server for each version that some stream asks for."""

from __future__ import annotations

import asyncio
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import gpu_inference
from agents.model_server import ModelServer, key_of
from gpu_inference.devices import list_devices, pick_device
from gpu_inference.errors import DeviceError, EngineError, RegistryError
from gpu_inference.models.binding import Binding, bind
from gpu_inference.models.folder import ModelFolder, ModelVersion
from gpu_inference.models.manifest import ImageInput
from gpu_inference.models.signature import TrustedKeys, check
from gpu_inference.serving.device import DeviceSpec
from gpu_inference.serving.health import State
from gpu_inference.serving.pool import DevicePool
from streams import metrics
from streams.errors import Stop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gpu_inference.session import Session
    from streams.config import InferenceConfig

log = logging.getLogger("polarstream.serving")

CPU = "cpu"
#: How long a model may take to be opened and measured on all devices, in seconds: kernels are compiled.
OPEN_S = 900.0


class Serving:
    """Opens models and serves them; lives on one event loop.

    Args:
        config: of the worker.
        models_dir: the folder of models.
    """

    def __init__(self, config: InferenceConfig, models_dir: Path) -> None:
        self._config = config
        self.folder = ModelFolder(models_dir)
        try:
            self._trusted = TrustedKeys.read(map(Path, config.trusted_keys))
        except RegistryError as error:
            raise Stop(f"inference.trusted_keys: {error}") from error
        self.threads = ThreadPoolExecutor(config.decode_threads or os.cpu_count() or 1, "pictures")
        self._versions: dict[str, ModelVersion] = {}
        self._servers: dict[str, ModelServer] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._loop = asyncio.get_running_loop()
        specs = device_specs(config.devices, self._open_session)
        # our engine makes a plan for each batch size, so batches keep to those that are measured
        self._pad = any(spec.name != CPU for spec in specs)
        self.pool = DevicePool(specs, config.strategy, changed=self._devices_changed)
        log.info("devices: %s", ", ".join(spec.name for spec in specs))

    async def serve(self, wanted: str) -> ModelServer:
        """Open the model that a stream asks for, unless it is open.

        Args:
            wanted: `name` for the newest version, or `name@version`.

        Raises:
            Stop: there is no such model, or no device can run it.
        """
        try:
            version = await asyncio.to_thread(self._find, wanted)
            key = key_of(version)
            if key not in self._servers:
                binding = await asyncio.to_thread(self._bind, version)
                if not isinstance(version.manifest.input, ImageInput):
                    raise RegistryError(f"model {key} takes no pictures: set input.kind in its model.toml")
                self._versions[key] = version
                sizes = _sizes(binding)
                opened = await asyncio.wait_for(asyncio.wrap_future(self.pool.open(key, sizes)), OPEN_S)
                for device, why in opened.refused.items():
                    log.warning("model %s is not served by %s: %s", key, device, why)
                server = ModelServer(version, binding, self.pool, self.threads, self._pad)
                await asyncio.to_thread(server.preprocessor.warm)
                self._servers[key] = server
                self._tasks.append(asyncio.create_task(server.run(), name=f"serve-{key}"))
                log.info("model %s is served by %s", key, ", ".join(opened.devices))
        except (EngineError, TimeoutError) as error:
            raise Stop(f"model '{wanted}' can't be served: {error or 'it took too long to open'}") from error
        return self._servers[key]

    async def close(self) -> None:
        """End the servers, then the devices."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self.pool.close, 5.0)
        self.threads.shutdown(wait=False, cancel_futures=True)

    def check(self) -> None:
        """Export the state of the devices.

        Raises:
            Exception: what a server has ended of.
        """
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()
        for status in self.pool.status():
            metrics.DEVICE_BATCHES.labels(status.name).set(status.batches)
            metrics.DEVICE_BUSY.labels(status.name).set(status.busy_s)
            metrics.DEVICE_WAITING.labels(status.name).set(status.waiting)
            metrics.DEVICE_FAILOVERS.labels(status.name).set(status.moved)
            metrics.DEVICE_IN_SERVICE.labels(status.name).set(status.state is State.READY)

    def _find(self, wanted: str) -> ModelVersion:
        name, _, version = wanted.partition("@")
        if not version:
            there = self.folder.scan()
            if name not in there.versions:
                faults = "".join(f"; {fault}" for fault in there.faults)
                raise RegistryError(
                    f"no model '{name}' in {self.folder.root}{faults}: add one with 'polarstream models add'"
                )
            version = there.versions[name][-1]
        found = self.folder.load(name, version)
        signed_by = check(found, self._trusted, required=bool(self._config.trusted_keys))
        log.info("model %s@%s: %s", name, version, f"signed by {signed_by}" if signed_by else "not signed")
        return found

    def _bind(self, version: ModelVersion) -> Binding:
        session = gpu_inference.load(self.folder.read_model(version), engine="onnxruntime")
        try:
            return bind(version.manifest, session.inputs, session.outputs)
        finally:
            session.close()

    def _open_session(self, device: int | None) -> Callable[[str], Session]:
        def open_session(key: str) -> Session:
            data = self.folder.read_model(self._versions[key])
            if device is None:
                return gpu_inference.load(data, engine="onnxruntime")
            return gpu_inference.load(data, engine="opencl", device=device)

        return open_session

    def _devices_changed(self) -> None:
        def wake() -> None:
            for server in self._servers.values():
                server.wake()

        try:
            self._loop.call_soon_threadsafe(wake)
        except RuntimeError:  # the loop has ended
            log.debug("a device changed after the end")


def _sizes(binding: Binding) -> tuple[int, ...]:
    """The batch sizes to be measured: powers of two up to the largest."""
    if binding.fixed_batch is not None:
        return (binding.fixed_batch,)
    powers = [1 << n for n in range(binding.max_batch.bit_length()) if 1 << n < binding.max_batch]
    return (*powers, binding.max_batch)


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
        cards = [DeviceSpec(_name(info.index, info.name), open_session(info.index)) for info in found]
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
        specs.append(DeviceSpec(_name(info.index, info.name), open_session(info.index)))
    return specs


def _name(index: int, name: str) -> str:
    return f"{index}:{name}"
