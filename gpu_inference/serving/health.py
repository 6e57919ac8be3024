"""Whether a device may be given work: in service, out after a failure, on probation, lost. No clock."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """Of a device."""

    READY = "ready"  # gets batches
    OUT = "out"  # failed; waits for its probe
    PROBING = "probing"  # runs a small known batch
    LOST = "lost"  # left too many hung threads behind: only a new process can use it


class Failure(StrEnum):
    """What a device did wrong."""

    ERROR = "error"  # it raised
    TIMEOUT = "timeout"  # it gave no answer in time: its thread hangs
    NAN = "nan"  # it answered with NaN
    WRONG = "wrong"  # its answer to a known batch was another


@dataclass(frozen=True, slots=True)
class HealthLimits:
    """When a device goes and comes.

    Attributes:
        model_errors: so many refused batches in a row put a device out, though refusals are a model's fault.
        first_probe_s: from a failure to the first probe.
        max_probe_s: the pause doubles with each failed probe up to this.
        max_hung: threads that may hang on a device before it is lost: each holds memory that can't come back.
    """

    model_errors: int = 3
    first_probe_s: float = 0.5
    max_probe_s: float = 60.0
    max_hung: int = 8


class DeviceHealth:
    """The state of one device. The pool reports, and asks when to probe.

    Example:
        >>> health = DeviceHealth()
        >>> health.failed(Failure.NAN, now_s=10.0)
        >>> health.state, health.probe_due_s()
        (<State.OUT: 'out'>, 10.5)
        >>> health.probe_started()
        >>> health.probe_passed()
        >>> health.state
        <State.READY: 'ready'>
    """

    def __init__(self, limits: HealthLimits | None = None) -> None:
        self.limits = limits or HealthLimits()
        self.state = State.READY
        self.failures: Counter[Failure] = Counter()
        self.probes = 0
        self.hung = 0
        self._refused = 0
        self._pause_s = self.limits.first_probe_s
        self._probe_s: float | None = None

    @property
    def ready(self) -> bool:
        """Whether it gets batches."""
        return self.state is State.READY

    def succeeded(self) -> None:
        """It answered."""
        self._refused = 0
        self._pause_s = self.limits.first_probe_s

    def refused(self, now_s: float) -> None:
        """It refused a batch as broken. That is the batch's fault, unless it refuses whatever comes."""
        self._refused += 1
        if self._refused >= self.limits.model_errors:
            self.failed(Failure.ERROR, now_s)

    def acquitted(self) -> None:
        """Another device refused the batch too: it was the batch's fault."""
        self._refused = 0

    def failed(self, failure: Failure, now_s: float) -> None:
        """It failed with a batch or with its probe: no more batches until a probe says otherwise."""
        self.failures[failure] += 1
        self.hung += failure is Failure.TIMEOUT
        self._refused = 0
        if self.hung > self.limits.max_hung:
            self.state, self._probe_s = State.LOST, None
            return
        self.state = State.OUT
        self._probe_s = now_s + self._pause_s
        # doubled until batches are answered again: a passed probe alone is no proof
        self._pause_s = min(2 * self._pause_s, self.limits.max_probe_s)

    def probe_due_s(self) -> float | None:
        """When to probe it; None where there is nothing to probe."""
        return self._probe_s if self.state is State.OUT else None

    def probe_started(self) -> None:
        """A probe runs; `failed` or `probe_passed` ends it."""
        self.state = State.PROBING
        self.probes += 1

    def probe_passed(self) -> None:
        """It gave the known answer: back in service."""
        self.state = State.READY
