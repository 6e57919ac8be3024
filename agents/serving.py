"""The models and devices of a worker: a pool, a server for each version at work, and what is live.

`gpu_inference.models.live` decides what is loaded, takes traffic, is drained and given back; here it is done.
A frame gets its version once, when it is routed, and holds it until it is answered: so a version is drained
of its frames before its memory is given back, and no frame meets a version that is gone.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import gpu_inference
from agents.answering import Planned
from agents.devices import CPU, device_specs
from agents.model_server import ModelServer, Result, key_of
from gpu_inference.errors import EngineError, ModelNotReady, RecordError, RegistryError, UnknownModel
from gpu_inference.models.binding import Binding, bind
from gpu_inference.models.comparison import Comparison, Rules
from gpu_inference.models.folder import ModelFolder, ModelVersion
from gpu_inference.models.live import Action, LiveModels, Target
from gpu_inference.models.plan import Plan, plan
from gpu_inference.models.records import AliasRecord, ModelRecord, Share, VersionRecord
from gpu_inference.models.signature import TrustedKeys, check
from gpu_inference.serving.health import State
from gpu_inference.serving.pool import DevicePool
from gpu_inference.tasks.preprocessing import Preprocessor
from streams import metrics
from streams.errors import BadRecord, Stop

if TYPE_CHECKING:
    from gpu_inference.session import Session
    from streams.config import InferenceConfig

log = logging.getLogger("polarstream.serving")

Found = TypeVar("Found")

#: How long a model may take to be opened and measured on all devices, in seconds: kernels are compiled.
OPEN_S: Final = 900.0
#: How often a stream whose model is not live says so, in seconds.
SAY_S: Final = 10.0


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
        self.live = LiveModels()
        self._versions: dict[str, ModelVersion] = {}
        self._servers: dict[Target, ModelServer] = {}
        self._runs: dict[Target, asyncio.Task[None]] = {}
        self._deeds: set[asyncio.Task[None]] = set()
        self._trials: dict[tuple[str, str], Comparison] = {}
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        specs = device_specs(config.devices, self._open_session)
        # our engine makes a plan for each batch size, so batches keep to those that are measured
        self._pad = any(spec.name != CPU for spec in specs)
        self.pool = DevicePool(specs, config.strategy, changed=self._devices_changed)
        log.info("devices: %s", ", ".join(spec.name for spec in specs))

    # -- what is live

    def apply(self, key: bytes | None, value: bytes | None) -> str:
        """Take a record of the models topic in; returns its kind.

        Raises:
            BadRecord: it is none that can be used.
        """
        try:
            actions = self.live.apply(key, value)
        except RecordError as error:
            raise BadRecord("bad_control", str(error)) from error
        self._perform(actions)
        return (key or b"").decode().partition("/")[0]

    async def start(self, wanted: Iterable[str], others: Iterable[str] = ()) -> None:
        """Wait until the models that are asked for answer; what no record says is settled by the folder.

        Args:
            wanted: by streams of frames: `name` of a model or an alias, or `name@version`.
            others: likewise, by requests.

        Raises:
            Stop: there is no such model, it takes no pictures for `wanted`, or no device can run it.
        """
        frames = list(wanted)
        wanted = [*frames, *others]
        for name in dict.fromkeys(wanted):
            try:
                await asyncio.to_thread(self._settle_by_folder, name)
            except EngineError as error:
                raise Stop(f"model '{name}': {error}") from error
        self._perform(self.live.refresh())
        for name in wanted:
            found = await self._when_started(name)
            servers = [self._servers[route.model, route.version] for route in found.routes.values()]
            if name in frames and not all(isinstance(one.preprocessor, Preprocessor) for one in servers):
                raise Stop(f"model '{name}' takes no pictures: set input.kind in its model.toml")

    async def _when_started(self, name: str) -> Plan:
        while True:
            self._changed.clear()
            try:
                return plan(self.live, _route_name(name), "")
            except ModelNotReady as error:
                if not any(phase in ("loading", "warming") for phase in self.live.phases.values()):
                    raise Stop(f"model '{name}' can't be served: {error}") from error
            await self._changed.wait()

    async def plan(self, name: str, source: str) -> Planned:
        """What runs for a picture; every server of it is held.

        A stream whose model isn't live waits: nothing of it is lost.

        Args:
            name: as the stream has it.
            source: the camera.
        """

        def find() -> Planned:
            found = plan(self.live, _route_name(name), source)
            members = {member: self._servers[r.model, r.version] for member, r in found.routes.items()}
            shadows = [(m, self._servers[target]) for m, r in found.routes.items() for target in r.shadows]
            return Planned(name, found, members, shadows)

        planned = await self._when_live(find, patient=True)
        for server in planned.servers():
            server.hold()
        return planned

    async def route(self, name: str, source: str, patient: bool = True) -> list[ModelServer]:
        """Who looks at an input: the version that answers, then those that only see it. Each is held.

        Args:
            name: of a model or an alias, or `name@version`.
            source: of the input.
            patient: wait for a model that isn't live, too, and not only for one that is being loaded.

        Raises:
            UnknownModel: the model isn't live, and `patient` is false.
        """
        servers = await self._when_live(lambda: self._servers_of(name, source), patient)
        for server in servers:
            server.hold()
        return servers

    async def _when_live(self, find: Callable[[], Found], patient: bool) -> Found:
        """Wait until what is asked for is live. What was found may go with the next await: hold it."""
        said = 0.0
        while True:
            self._changed.clear()
            try:
                return find()
            except (UnknownModel, ModelNotReady) as error:
                if isinstance(error, UnknownModel) and not patient:
                    raise
                if time.monotonic() - said > SAY_S:
                    log.warning("inputs wait: %s", error)
                    said = time.monotonic()
            await self._changed.wait()

    def compare(
        self, name: str, live: ModelServer, answer: Result, trial: ModelServer, looked: Result
    ) -> None:
        """Take note of what a version on trial made of a picture, beside the one that answered it.

        Args:
            name: as the stream has it.
            live: who answered.
            answer: its.
            trial: who looked on.
            looked: its.
        """
        key = (live.key, trial.key)
        if key not in self._trials:
            self._trials[key] = Comparison(Rules())
        comparison = self._trials[key]
        theirs = looked.answer if looked.answer is not None else {"error": looked.error}
        if answer.answer is not None:
            comparison.add(
                answer.answer,
                theirs,
                answer.seconds / max(1, answer.batch),
                looked.seconds / max(1, looked.batch),
            )
        report = comparison.report()
        who = (trial.version.name, trial.version.version)
        metrics.TRIAL_SAMPLES.labels(*who).set(report.samples)
        metrics.TRIAL_AGREEMENT.labels(*who).set(report.agreement)
        metrics.TRIAL_LATENCY_RATIO.labels(*who).set(report.latency_ratio or 0.0)

    def _servers_of(self, name: str, source: str) -> list[ModelServer]:
        model, _, version = name.partition("@")
        alias = _route_name(name)
        if version and alias not in self.live.aliases:
            if self.live.phases.get((model, version)) != "ready":
                raise UnknownModel(f"{name} is not live: promote it, or ask for {model}")
            return [self._servers[model, version]]
        route = self.live.route(alias, source)
        return [self._servers[target] for target in ((route.model, route.version), *route.shadows)]

    def _settle_by_folder(self, wanted: str) -> None:
        """Say what is live where no record does: the version that is asked for, else the newest one."""
        name, _, version = wanted.partition("@")
        if not version and any(
            name in named
            for named in (self.live.models, self.live.aliases, self.live.ensembles, self.live.cascades)
        ):
            return
        there = self.folder.scan()
        if name not in there.versions:
            faults = "".join(f"; {fault}" for fault in there.faults)
            raise RegistryError(
                f"there is none in {self.folder.root}{faults}: add one with 'polarstream models add'"
            )
        found = self.folder.load(name, version or there.versions[name][-1])
        self.live.versions.setdefault((name, found.version), VersionRecord(sha256=found.model_sha256))
        if version:
            share = Share(model=name, version=version)
            self.live.aliases[_route_name(wanted)] = AliasRecord(traffic=(share,))
        else:
            self.live.models[name] = ModelRecord(live=found.version)

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            target = (action.model, action.version)
            name = f"{action.model}@{action.version}"
            match action.kind:
                case "load":
                    self._do(self._load(target))
                case "warm":
                    self._do(self._warm(target))
                case "switch":
                    log.info("model %s answers now", name)
                case "drain":
                    self._servers[target].when_idle(functools.partial(self._drained, target))
                case "unload":
                    self._do(self._unload(target))
        self._changed.set()

    def _drained(self, target: Target) -> None:
        self._perform(self.live.drained(*target))

    def _do(self, deed: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(deed)
        self._deeds.add(task)
        task.add_done_callback(self._deeds.discard)

    async def _load(self, target: Target) -> None:
        """Open a version on every device, which warms it up and measures it."""
        try:
            version = await asyncio.to_thread(self._read, target)
            binding = await asyncio.to_thread(self._bind, version)
            key = key_of(version)
            self._versions[key] = version
            opened = await asyncio.wait_for(asyncio.wrap_future(self.pool.open(key, _sizes(binding))), OPEN_S)
            for device, why in opened.refused.items():
                log.warning("model %s is not served by %s: %s", key, device, why)
            log.info("model %s is open on %s", key, ", ".join(opened.devices))
            self._servers[target] = ModelServer(
                version, binding, self.pool, self.threads, self._pad, self._wake_all
            )
        except (EngineError, TimeoutError) as error:
            why = str(error) or f"it was not opened within {OPEN_S:.0f} s"
            log.error("model %s@%s can't be served: %s", *target, why)
            self._perform(self.live.failed(*target, why))
            return
        self._perform(self.live.loaded(*target))

    async def _warm(self, target: Target) -> None:
        server = self._servers[target]
        await asyncio.to_thread(server.preprocessor.warm)
        self._runs[target] = asyncio.create_task(server.run(), name=f"serve-{server.key}")
        self._perform(self.live.warmed(*target))

    async def _unload(self, target: Target) -> None:
        server, run = self._servers.pop(target), self._runs.pop(target, None)
        if run is not None:
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)
        await asyncio.wrap_future(self.pool.retire(server.key))
        server.forget()
        self._versions.pop(server.key, None)
        log.info("model %s is unloaded", server.key)
        self._perform(self.live.unloaded(*target))

    def _read(self, target: Target) -> ModelVersion:
        found = self.folder.load(*target)
        record = self.live.versions.get(target)
        if record is not None and record.sha256 != found.model_sha256:
            raise RegistryError(
                f"{found.model_path} has SHA-256 {found.model_sha256}, and {record.sha256} was added: "
                "copy the right file, or add it under a new number"
            )
        signed_by = check(found, self._trusted, required=bool(self._config.trusted_keys))
        log.info("model %s@%s: %s", *target, f"signed by {signed_by}" if signed_by else "not signed")
        return found

    def _bind(self, version: ModelVersion) -> Binding:
        session = gpu_inference.load(self.folder.read_model(version), engine="onnxruntime")
        try:
            return bind(version.manifest, session.inputs, session.outputs, version.labels)
        finally:
            session.close()

    # -- devices

    def check(self) -> None:
        """Export the state of the devices.

        Raises:
            Exception: what a server has ended of.
        """
        for task in self._runs.values():
            if task.done() and not task.cancelled():
                task.result()
        for status in self.pool.status():
            metrics.DEVICE_BATCHES.labels(status.name).set(status.batches)
            metrics.DEVICE_BUSY.labels(status.name).set(status.busy_s)
            metrics.DEVICE_WAITING.labels(status.name).set(status.waiting)
            metrics.DEVICE_FAILOVERS.labels(status.name).set(status.moved)
            metrics.DEVICE_IN_SERVICE.labels(status.name).set(status.state is State.READY)

    async def close(self) -> None:
        """End the servers, then the devices."""
        tasks = [*self._runs.values(), *self._deeds]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self.pool.close, 5.0)
        self.threads.shutdown(wait=False, cancel_futures=True)

    def _open_session(self, device: int | None) -> Callable[[str], Session]:
        def open_session(key: str) -> Session:
            data = self.folder.read_model(self._versions[key])
            if device is None:
                return gpu_inference.load(data, engine="onnxruntime")
            return gpu_inference.load(data, engine="opencl", device=device)

        return open_session

    def _wake_all(self) -> None:
        for server in self._servers.values():
            server.wake()

    def _devices_changed(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._wake_all)
        except RuntimeError:  # the loop has ended
            log.debug("a device changed after the end")


def _route_name(wanted: str) -> str:
    """What a stream's model is called among the routes: a pinned version has an alias of its own."""
    name, _, version = wanted.partition("@")
    return f"pin.{name}.{version}" if version else name


def _sizes(binding: Binding) -> tuple[int, ...]:
    """The batch sizes to be measured: powers of two up to the largest."""
    if binding.fixed_batch is not None:
        return (binding.fixed_batch,)
    powers = [1 << n for n in range(binding.max_batch.bit_length()) if 1 << n < binding.max_batch]
    return (*powers, binding.max_batch)
