"""Batches to devices: where each one goes, and where it goes next when a device fails it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from gpu_inference.errors import ModelError, ServingError
from gpu_inference.graph.ir import Array
from gpu_inference.serving.board import Board, Hung, Model, Withdrawn
from gpu_inference.serving.choice import Strategy
from gpu_inference.serving.cost_curve import CostCurve
from gpu_inference.serving.device import Outcome, SessionTable
from gpu_inference.serving.health import Failure, State
from gpu_inference.serving.known_batch import has_nan
from gpu_inference.serving.slot import Answer, Slot, Task

_log = logging.getLogger(__name__)


class Placement:
    """Gives batches to devices. The caller is within `board.changing`.

    Args:
        board: of the pool.
        strategy: among devices that could take a batch.
        finished: is called after the last batch of a model that is to retire.
    """

    def __init__(self, board: Board, strategy: Strategy, finished: Callable[[Model], None]) -> None:
        self._board, self._strategy, self._finished = board, strategy, finished

    def able(self, key: str | None, but: tuple[str, ...] = ()) -> list[Slot]:
        """Devices for a batch: of last resort, or busy opening a model, only where no other serves it."""
        serving = [slot for slot in self._board.slots if slot.serves(key)]
        new = [slot for slot in serving if slot.spec.name not in but]
        able = [slot for slot in new if not slot.spec.last_resort] or new or serving
        return [slot for slot in able if not slot.opening] or able

    def place(self, task: Task) -> None:
        """Gives a batch to a device, or parks it until one comes back."""
        board, key, inputs = self._board, task.key, task.inputs
        able = self.able(key, tuple(task.failed_on))
        if not able:
            if all(slot.health.state is State.LOST for slot in board.slots):
                self.settle(task, None, self._no_device(task))
            else:
                board.parked.append(task)
            return
        at = 0
        if len(able) > 1:
            at = self._strategy.choose([slot.load(key, task.size) for slot in able])
        slot = able[at]

        def run(table: SessionTable) -> tuple[dict[str, Array], bool]:
            outputs = table[key].run(inputs)
            return outputs, has_nan(outputs)

        job = board.post(
            slot, run, self._timeout_s(slot, task), lambda outcome: self._ran(slot, task, outcome)
        )
        slot.add(task, job)
        board.wake_by(task.deadline_s)

    def place_parked(self) -> None:
        """A device came back, or none will: looks again at what waits for one."""
        parked, self._board.parked = self._board.parked, []
        for task in parked:
            self.place(task)

    def settle(self, task: Task, answer: Answer | None, error: Exception | None) -> None:
        """The one answer or error of a batch."""
        board = self._board
        if task.settled:
            return
        task.settled = True
        board.tell(task.future, answer, error)
        board.tasks.discard(task)
        if task in board.parked:
            board.parked.remove(task)
        if not board.tasks:
            board.condition.notify_all()
        model = board.models.get(task.key)
        if model is not None:
            model.tasks -= 1
            self._finished(model)

    def expire(self, now_s: float) -> None:
        """Settles batches whose deadline has come, and spares the devices those that they haven't begun."""
        expired = [task for task in self._board.tasks if now_s >= task.deadline_s]
        for task in expired:
            late = f"no answer for a batch of model {task.key!r} by its deadline"
            self.settle(task, None, ServingError(f"{late}: give it more time, or add devices"))
        for slot in self._board.slots if expired else ():
            waiting = set(slot.not_begun())
            for task in expired:
                if task in slot.tasks and slot.tasks[task][0] in waiting:
                    self._board.end(slot, slot.tasks[task][0], Outcome(error=Withdrawn("its time ran out")))

    def _timeout_s(self, slot: Slot, task: Task) -> float:
        limits, curve = self._board.limits, slot.curves.get(task.key)
        seconds = slot.seconds(task.key, task.size)
        if curve is None or seconds is None or task.size not in curve.sizes:
            return limits.cold_timeout_s
        return max(limits.min_timeout_s, limits.timeout_factor * seconds)

    def _ran(self, slot: Slot, task: Task, outcome: Outcome) -> None:
        """A device is done with a batch, or will never be."""
        slot.remove(task)
        match outcome.error:
            case None:
                self._answered(slot, task, outcome)
            case Withdrawn():
                if not task.settled:
                    slot.moved += 1
                    self.place(task)
            case ModelError() as error:
                slot.health.refused(self._board.clock())
                if not slot.health.ready:
                    self._board.news = True
                    self._board.withdraw(slot)
                self._again(slot, task, error)
            case Hung() as error:  # the watcher took its device out already
                self._again(slot, task, error)
            case error:
                self._board.out(slot, Failure.ERROR)
                self._again(slot, task, error)

    def _answered(self, slot: Slot, task: Task, outcome: Outcome) -> None:
        outputs, nan = outcome.value
        slot.batches += 1
        slot.busy_s += outcome.seconds
        model = self._board.models.get(task.key)
        if nan and not (model is not None and model.nan_ok):
            task.nans += 1
            if task.nans < 2:  # a second engine, or this one after its probe, tells whether it is the input
                self._board.out(slot, Failure.NAN)
                self._again(slot, task, ServingError(f"device {slot.spec.name} answered with NaN"))
                return
        slot.health.succeeded()
        slot.curves.setdefault(task.key, CostCurve()).observe(task.size, outcome.seconds)
        if model is not None:
            model.curve.observe(task.size, outcome.seconds)
        waited_s = max(0.0, self._board.clock() - outcome.seconds - task.submitted_s)
        answer = Answer(outputs, slot.spec.name, outcome.seconds, waited_s, tuple(task.failed_on))
        self.settle(task, answer, None)

    def _again(self, slot: Slot, task: Task, error: Exception) -> None:
        """Runs a batch elsewhere that this device failed."""
        if task.settled:
            return
        refused = isinstance(error, ModelError) and (task.error is None or isinstance(task.error, ModelError))
        task.failed_on.append(slot.spec.name)
        task.error = error
        others = [s for s in self._board.slots if s.serves(task.key) and s.spec.name not in task.failed_on]
        if refused and (len(task.failed_on) > 1 or not others):
            if len(task.failed_on) > 1:  # then it is the batch, not the devices
                for other in self._board.slots:
                    if other.spec.name in task.failed_on:
                        other.health.acquitted()
            self.settle(task, None, error)
        elif len(task.failed_on) >= self._board.limits.max_attempts:
            self.settle(task, None, self._no_device(task))
        else:
            slot.moved += 1
            _log.warning("a batch of %s that %s failed goes elsewhere: %s", task.key, slot.spec.name, error)
            self.place(task)

    def _no_device(self, task: Task) -> ServingError:
        tried = ", ".join(task.failed_on) or "none"
        last = f"; the last error: {task.error}" if task.error is not None else ""
        return ServingError(
            f"no device could run a batch of {task.size} of model {task.key!r} (tried: {tried}{last}): "
            "see the devices' states in the worker's metrics and log"
        )
