"""What the pool knows of one device: its thread, its health, its work, what each model costs there."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from gpu_inference.graph.ir import Array
from gpu_inference.serving.choice import DeviceLoad
from gpu_inference.serving.cost_curve import CostCurve
from gpu_inference.serving.device import DeviceSpec, DeviceThread, Job, Outcome
from gpu_inference.serving.health import DeviceHealth, HealthLimits, State


@dataclass(frozen=True, slots=True)
class Answer:
    """A batch's answer.

    Attributes:
        outputs: of the model; the caller's own.
        device: that gave it.
        seconds: that it was busy with it.
        waited_s: from `submit` until it began, failed attempts included.
        failovers: devices that failed the batch before, in order.
    """

    outputs: dict[str, Array]
    device: str
    seconds: float
    waited_s: float
    failovers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """A device's state and counters, for metrics.

    Attributes:
        name: of the device.
        state: of its health.
        last_resort: whether it only stands in for others.
        waiting: batches that wait or run there.
        batches: answered.
        busy_s: seconds that it spent on them.
        failures: by kind (see Failure).
        probes: made.
        moved: batches that went elsewhere because it failed, begun there or not.
        hung_threads: left behind.
        late_answers: of hung threads, thrown away.
        models: open there.
    """

    name: str
    state: State
    last_resort: bool
    waiting: int
    batches: int
    busy_s: float
    failures: dict[str, int]
    probes: int
    moved: int
    hung_threads: int
    late_answers: int
    models: tuple[str, ...]


@dataclass(slots=True, eq=False)
class Task:
    """A batch that somebody waits for.

    Attributes:
        key: of its model.
        inputs: of the batch.
        size: its rows.
        submitted_s: when it came.
        deadline_s: when its future has an answer or an error.
        future: of the answer.
        failed_on: devices that failed it, in order.
        nans: answers with NaN so far.
        error: the last one.
        settled: the future is told.
    """

    key: str
    inputs: Mapping[str, Array]
    size: int
    submitted_s: float
    deadline_s: float
    future: Future[Answer]
    failed_on: list[str] = field(default_factory=list)
    nans: int = 0
    error: Exception | None = None
    settled: bool = False


class Slot:
    """One device of a pool. The pool's lock guards it."""

    def __init__(
        self, index: int, spec: DeviceSpec, limits: HealthLimits, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.index, self.spec = index, spec
        self.health = DeviceHealth(limits)
        self.opened: set[str] = set()
        self.refused: dict[str, Exception] = {}  # models that can't be opened here
        self.curves: dict[str, CostCurve] = {}
        self.open_s: dict[str, float] = {}  # seconds that opening a model took
        self.tasks: dict[Task, tuple[Job, float]] = {}  # with the seconds that each should take
        self.jobs: dict[Job, Callable[[Outcome], None]] = {}  # not settled, in order, with whom to tell
        self.opening = 0  # jobs that open models: a batch would wait behind them
        self.fresh = False  # the next probe opens all sessions anew
        self.work_s = 0.0
        self.batches = 0
        self.busy_s = 0.0
        self.moved = 0
        self.late_answers = 0
        self._clock = clock
        self.thread: DeviceThread | None = DeviceThread(spec, clock)

    def post(self, job: Job, done: Callable[[Outcome], None]) -> None:
        """Gives its thread a job; a new thread where the last was abandoned."""
        if self.thread is None:
            self.thread = DeviceThread(self.spec, self._clock)
        self.jobs[job] = done
        self.thread.post(job)

    def add(self, task: Task, job: Job) -> None:
        """A batch waits here now."""
        seconds = self.seconds(task.key, task.size) or 0.0
        self.tasks[task] = (job, seconds)
        self.work_s += seconds

    def remove(self, task: Task) -> None:
        """A batch waits here no more."""
        _, seconds = self.tasks.pop(task)
        self.work_s = max(0.0, self.work_s - seconds) if self.tasks else 0.0

    def serves(self, key: str | None) -> bool:
        """Whether batches of the model may go here."""
        return self.health.ready and (key is None or key in self.opened)

    def seconds(self, key: str, size: int) -> float | None:
        """What a batch should take here; None while nobody has measured."""
        curve = self.curves.get(key)
        return None if curve is None else curve.seconds(size)

    def load(self, key: str, size: int) -> DeviceLoad:
        """For a strategy."""
        work_s, running = self.work_s, self.running()
        if running is not None and self.tasks:
            job, seconds = next(iter(self.tasks.values()))
            if job is running[0]:  # it is partly done
                work_s -= min(seconds, self._clock() - running[1])
        return DeviceLoad(self.index, len(self.tasks), work_s, self.seconds(key, size))

    def running(self) -> tuple[Job, float] | None:
        """The job that its thread is in, and since when."""
        return None if self.thread is None else self.thread.running

    def not_begun(self) -> list[Job]:
        """The jobs of batches that its thread hasn't come to."""
        running = self.running()
        return [job for job, _ in self.tasks.values() if running is None or job is not running[0]]

    def abandon(self) -> list[Job]:
        """Leaves a hung thread behind with all that it held; returns the jobs that nobody will do."""
        if self.thread is not None:
            self.thread.abandon()
        self.thread, self.fresh = None, True
        self.opened.clear()
        return list(self.jobs)

    def status(self) -> DeviceStatus:
        """For metrics."""
        health = self.health
        return DeviceStatus(
            name=self.spec.name,
            state=health.state,
            last_resort=self.spec.last_resort,
            waiting=len(self.tasks),
            batches=self.batches,
            busy_s=self.busy_s,
            failures={failure.value: count for failure, count in health.failures.items()},
            probes=health.probes,
            moved=self.moved,
            hung_threads=health.hung,
            late_answers=self.late_answers,
            models=tuple(sorted(self.opened)),
        )
