"""The pool's watcher: batches that hang, devices to probe, deadlines that pass."""

from __future__ import annotations

import logging
import threading
from functools import partial

from gpu_inference.errors import EngineError
from gpu_inference.serving.board import Board, Hung, Withdrawn, WrongAnswer
from gpu_inference.serving.device import Job, Outcome, SessionTable
from gpu_inference.serving.health import Failure
from gpu_inference.serving.lifecycle import Lifecycle
from gpu_inference.serving.placement import Placement
from gpu_inference.serving.slot import Slot

_log = logging.getLogger(__name__)


class Watcher:
    """A thread that sleeps until something is due.

    Args:
        board: of the pool.
        placement: for batches whose deadline passes or whose device comes back.
        lifecycle: for devices that come back.
    """

    def __init__(self, board: Board, placement: Placement, lifecycle: Lifecycle) -> None:
        self._board, self._placement, self._lifecycle = board, placement, lifecycle
        self._thread = threading.Thread(target=self._loop, name="device-pool", daemon=True)
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Waits for its end, which comes once the board is closed."""
        self._thread.join(max(0.0, timeout_s))

    def _loop(self) -> None:
        board = self._board
        while True:
            with board.changing():
                if board.closed:
                    return
                self._check(board.clock())
            with board.condition:
                board.wake_s = self._next_check_s()
                if not board.closed:
                    pause_s = board.wake_s - board.clock()
                    board.condition.wait(None if pause_s == float("inf") else max(0.0, pause_s))

    def _next_check_s(self) -> float:
        now_s = self._board.clock()
        times = [task.deadline_s for task in self._board.tasks]
        for slot in self._board.slots:
            running = slot.running()
            if running is not None:
                times.append(running[1] + running[0].timeout_s)
            elif slot.jobs:  # about to begin
                times.append(now_s + next(iter(slot.jobs)).timeout_s)
            due_s = slot.health.probe_due_s()
            if due_s is not None:
                times.append(due_s)
        return min(times, default=float("inf"))

    def _check(self, now_s: float) -> None:
        for slot in self._board.slots:
            running = slot.running()
            due_s = slot.health.probe_due_s()
            if running is not None and now_s >= running[1] + running[0].timeout_s:
                self._hung(slot, running[0])
            elif due_s is not None and now_s >= due_s:
                self._probe(slot)
        self._placement.expire(now_s)

    def _hung(self, slot: Slot, job: Job) -> None:
        """A device gives no answer: its thread is left behind and its work taken away."""
        slot.health.failed(Failure.TIMEOUT, self._board.clock())
        self._board.news = True
        _log.error(
            "device %s hangs (no answer for %.1f s): its thread is left behind, the device is %s",
            slot.spec.name,
            job.timeout_s,
            slot.health.state,
        )
        for left in slot.abandon():
            error: EngineError = Withdrawn("the device hangs")
            if left is job:
                error = Hung(f"device {slot.spec.name} gave no answer for {job.timeout_s:.1f} s")
            self._board.end(slot, left, Outcome(error=error))
        self._placement.place_parked()  # where no device is left, they must be told

    def _probe(self, slot: Slot) -> None:
        """Asks a device for answers that are known; with fresh sessions where the old ones are in doubt."""
        slot.health.probe_started()
        fresh, slot.fresh = slot.fresh, True
        models = [
            (model.key, model.known)
            for model in self._board.models.values()
            if model.ready and model.known is not None and model.key not in slot.refused
        ]
        limits = self._board.limits
        timeout_s = limits.cold_timeout_s + 5 * sum(slot.open_s.values()) if fresh else limits.probe_timeout_s

        def work(table: SessionTable) -> set[str]:
            if fresh:
                table.reset()
            for key, known in models:
                session = table.open(key)
                if not known.matches(known.run(session)):
                    raise WrongAnswer(f"model {key!r} gave another answer than the known one")
                if fresh:
                    for size in known.sizes:  # so that no batch waits for kernels to be built
                        session.run(known.batch(size))
            return {key for key, _ in models}

        self._board.post(slot, work, timeout_s, partial(self._probed, slot))

    def _probed(self, slot: Slot, outcome: Outcome) -> None:
        error = outcome.error
        if error is None:
            slot.health.probe_passed()
            slot.fresh = False
            slot.opened = set(outcome.value)
            self._board.news = True
            _log.info("device %s gave the known answer: back in service", slot.spec.name)
            self._lifecycle.complete(slot, again=True)
            self._placement.place_parked()
        elif not isinstance(error, Hung | Withdrawn):  # those are out again already
            _log.warning("device %s failed its probe: %s", slot.spec.name, error)
            kind = Failure.WRONG if isinstance(error, WrongAnswer) else Failure.ERROR
            self._board.out(slot, kind)
