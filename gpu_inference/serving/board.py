"""What the parts of the pool share under one lock: devices, models, batches, and whom to tell what."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from gpu_inference.errors import EngineError
from gpu_inference.graph.ir import Array
from gpu_inference.serving.cost_curve import CostCurve
from gpu_inference.serving.device import DeviceSpec, Job, Outcome, SessionTable
from gpu_inference.serving.health import Failure, HealthLimits
from gpu_inference.serving.known_batch import KnownBatch
from gpu_inference.serving.slot import Slot, Task

_log = logging.getLogger(__name__)

F = TypeVar("F")


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """How long and how much.

    Attributes:
        depth: batches that wait or run on a device before `free` counts it as busy: with 2 the next one is
            there when one ends.
        max_batches: in the whole pool; above it `submit` refuses.
        give_up_s: for a batch without a deadline of its own.
        max_attempts: of a batch, the first one included.
        min_timeout_s: no batch is thought to hang before.
        timeout_factor: a batch hangs after so many times its measured seconds.
        cold_timeout_s: for sizes that nobody has measured, whose kernels may have to be built.
        open_timeout_s: for opening and measuring a model on a device.
        probe_timeout_s: for a probe with the sessions that are there; fresh ones get more time.
        health: when devices go and come.
    """

    depth: int = 2
    max_batches: int = 256
    give_up_s: float = 60.0
    max_attempts: int = 4
    min_timeout_s: float = 1.0
    timeout_factor: float = 20.0
    cold_timeout_s: float = 60.0
    open_timeout_s: float = 300.0
    probe_timeout_s: float = 5.0
    health: HealthLimits = field(default_factory=HealthLimits)


@dataclass(frozen=True, slots=True)
class Opened:
    """A model that is ready.

    Attributes:
        devices: that serve it.
        refused: devices that don't, with the reason.
    """

    devices: tuple[str, ...]
    refused: dict[str, str]


class Withdrawn(EngineError):
    """The device went out before it came to the job."""


class Hung(EngineError):
    """The device gave no answer in time."""


class WrongAnswer(EngineError):
    """A known batch got another answer."""


def promise() -> Future[Any]:
    """A future that nobody can cancel: whoever made it will settle it."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future


@dataclass(slots=True, eq=False)
class Model:
    """A model from `open` to the end of `retire`.

    Attributes:
        key: what opens it.
        sizes: of batches that will be run.
        row: the caller's sample.
        nan_ok: NaN is a fair answer.
        curve: its costs over all devices.
        opened: whom to tell that it is ready.
        retired: whom to tell that it is gone, once somebody asked for that.
        ready: takes batches.
        known: the sample and its answer.
        asked: devices that are still to open it.
        opening: devices that open it now.
        closing: devices that close it now.
        first_answers: of the sample, not compared yet.
        tasks: batches in flight.
    """

    key: str
    sizes: tuple[int, ...]
    row: Mapping[str, Array] | None
    nan_ok: bool
    curve: CostCurve = field(default_factory=CostCurve)
    opened: Future[Opened] = field(default_factory=promise)
    retired: Future[None] | None = None
    ready: bool = False
    known: KnownBatch | None = None
    asked: list[Slot] = field(default_factory=list)
    opening: set[Slot] = field(default_factory=set)
    closing: set[Slot] = field(default_factory=set)
    first_answers: dict[Slot, dict[str, Array]] = field(default_factory=dict)
    tasks: int = 0


class Board:
    """The pool's state and its lock. Whatever changes it does so within `changing`.

    Args:
        devices: of the pool.
        limits: of the pool.
        clock: monotonic seconds.
        changed: is called, without the lock, after devices came or went.
    """

    def __init__(
        self,
        devices: Sequence[DeviceSpec],
        limits: PoolLimits,
        clock: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:
        self.limits, self.clock = limits, clock
        self.condition = threading.Condition()
        self.slots = [Slot(i, spec, limits.health, clock) for i, spec in enumerate(devices)]
        self.models: dict[str, Model] = {}
        self.tasks: set[Task] = set()
        self.parked: list[Task] = []  # no device can take them now
        self.closing = self.closed = False
        self.wake_s = float("inf")  # when the watcher looks next
        self.news = False  # devices came or went
        self._changed = changed
        self._settled: list[tuple[Future[Any], Any, Exception | None]] = []

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Holds the lock; futures are told afterwards, since their callbacks may come back in."""
        try:
            with self.condition:
                yield
        finally:
            with self.condition:
                settled, self._settled = self._settled, []
                news, self.news = self.news, False
            for future, value, error in settled:
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(value)
            if news:
                try:
                    self._changed()
                except Exception:  # it must not end a device's thread
                    _log.exception("the pool's `changed` failed")

    def tell(self, future: Future[F], value: F | None, error: Exception | None = None) -> None:
        """Settles a future when the lock is free again."""
        self._settled.append((future, value, error))

    def wake_by(self, time_s: float) -> None:
        """The watcher must look at that time."""
        if time_s < self.wake_s:
            self.wake_s = time_s
            self.condition.notify_all()

    # ---- jobs

    def post(
        self,
        slot: Slot,
        work: Callable[[SessionTable], Any],
        timeout_s: float,
        done: Callable[[Outcome], None],
    ) -> Job:
        """Gives a device a job whose end is told once, whoever tells it first: its thread or the watcher."""

        def finish(job: Job, outcome: Outcome) -> None:
            with self.changing():
                if job.settled:
                    slot.late_answers += 1
                else:
                    self.end(slot, job, outcome)

        job = Job(work, finish, timeout_s)
        slot.post(job, done)
        self.wake_by(self.clock() + timeout_s)
        return job

    def end(self, slot: Slot, job: Job, outcome: Outcome) -> None:
        """A job's outcome; what its thread says later is thrown away."""
        job.settled = True
        slot.jobs.pop(job)(outcome)

    def out(self, slot: Slot, failure: Failure) -> None:
        """Takes a device out of service, and its waiting batches away from it."""
        slot.health.failed(failure, self.clock())
        self.news = True
        _log.warning("device %s is %s: %s", slot.spec.name, slot.health.state, failure)
        self.withdraw(slot)

    def withdraw(self, slot: Slot) -> None:
        """Takes the batches away that a device hasn't begun; they go elsewhere."""
        for job in slot.not_begun():
            self.end(slot, job, Outcome(error=Withdrawn("the device is out")))
        due_s = slot.health.probe_due_s()
        if due_s is not None:
            self.wake_by(due_s)
