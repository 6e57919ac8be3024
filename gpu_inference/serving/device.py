"""One owned thread a device: sessions are opened, run and closed on it, and nowhere else."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from gpu_inference.errors import EngineError
from gpu_inference.session import Session

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A device of a pool.

    Attributes:
        name: in answers, metrics and messages; unique in its pool.
        open_session: opens a model, by its key, on this device. Called on the device's thread.
        last_resort: gets batches only where no other device can take them: the CPU engine.
        reset: is called, on the device's thread, after a failure and before sessions are opened anew; for
            OpenCL `gpu_inference.devices.forget_device`, since a context may be dead for good.

    Example:
        >>> import gpu_inference
        >>> models = {"pump-v3": "model.onnx"}
        >>> from gpu_inference.devices import forget_device
        >>> def load(key):
        ...     return gpu_inference.load(models[key], device=0)
        >>> card = DeviceSpec("gpu0", load, reset=lambda: forget_device(0))
    """

    name: str
    open_session: Callable[[str], Session]
    last_resort: bool = False
    reset: Callable[[], None] | None = None


class SessionTable:
    """The open sessions of one device thread, by model key. Only that thread uses it."""

    def __init__(self, spec: DeviceSpec) -> None:
        self._spec = spec
        self._sessions: dict[str, Session] = {}

    def open(self, key: str) -> Session:
        """The model's session, opened where it isn't."""
        if key not in self._sessions:
            self._sessions[key] = self._spec.open_session(key)
        return self._sessions[key]

    def __getitem__(self, key: str) -> Session:
        """The model's session, which is open."""
        if key not in self._sessions:
            raise EngineError(f"model {key!r} isn't open on this device: open it first")
        return self._sessions[key]

    def close(self, key: str) -> None:
        """Closes the model's session if there is one, whatever that raises: it is gone either way."""
        session = self._sessions.pop(key, None)
        if session is not None:
            try:
                session.close()
            except Exception as error:
                _log.warning("closing model %s failed: %s", key, error)

    def reset(self) -> None:
        """Closes every session, and what the device keeps besides."""
        self.close_all()
        if self._spec.reset is not None:
            self._spec.reset()

    def close_all(self) -> None:
        """Closes every session."""
        for key in tuple(self._sessions):
            self.close(key)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job.

    Attributes:
        value: what its work returned; None where it raised.
        error: what it raised.
        seconds: that it took on the thread.
    """

    value: Any = None
    error: Exception | None = None
    seconds: float = 0.0


@dataclass(slots=True, eq=False)
class Job:
    """Something to do on a device thread.

    Attributes:
        work: is called there with the thread's sessions.
        done: is called there with what became of it, unless it was settled before it began.
        timeout_s: that it may take once it has begun; who watches the thread reads it.
        settled: its outcome counts already: not begun if it waits still, not counted if it comes late.
    """

    work: Callable[[SessionTable], Any]
    done: Callable[[Job, Outcome], None]
    timeout_s: float
    settled: bool = field(default=False)


class DeviceThread:
    """A daemon thread that does jobs in turn, so that a hung driver never keeps the process from exiting.

    Args:
        spec: the device.
        clock: monotonic seconds.
    """

    def __init__(self, spec: DeviceSpec, clock: Callable[[], float] = time.monotonic) -> None:
        self.running: tuple[Job, float] | None = None  # the job and when it began
        self._spec, self._clock = spec, clock
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._abandoned = False
        self._thread = threading.Thread(target=self._loop, name=f"device-{spec.name}", daemon=True)
        self._thread.start()

    def post(self, job: Job) -> None:
        """Lets a job wait for its turn."""
        self._jobs.put(job)

    def stop(self) -> None:
        """Ends the thread after the jobs that wait; it closes its sessions."""
        self._jobs.put(None)

    def abandon(self) -> None:
        """Gives up a thread that hangs: should it ever wake, it closes its sessions and ends."""
        self._abandoned = True
        self._jobs.put(None)

    def join(self, timeout_s: float) -> bool:
        """Waits for its end; False where it hangs still."""
        self._thread.join(max(0.0, timeout_s))
        return not self._thread.is_alive()

    def _loop(self) -> None:
        table = SessionTable(self._spec)
        while (job := self._jobs.get()) is not None and not self._abandoned:
            if job.settled:
                continue
            begun_s = self._clock()
            self.running = (job, begun_s)
            try:
                value, error = job.work(table), None
            except Exception as raised:
                value, error = None, raised
            self.running = None
            job.done(job, Outcome(value, error, self._clock() - begun_s))
        table.close_all()
