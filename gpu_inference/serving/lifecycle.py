"""Models on devices: opened and measured everywhere before they are ready, closed after their last batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from gpu_inference.errors import DeviceError, EngineError, ServingError
from gpu_inference.graph.ir import Array
from gpu_inference.serving.board import Board, Hung, Model, Opened, Withdrawn, WrongAnswer, promise
from gpu_inference.serving.cost_curve import CostCurve
from gpu_inference.serving.device import Outcome, SessionTable
from gpu_inference.serving.known_batch import KnownBatch
from gpu_inference.serving.slot import Slot

_log = logging.getLogger(__name__)


class Lifecycle:
    """Opens and closes models. The caller is within `board.changing`.

    Args:
        board: of the pool.
        came: is called when a device can serve more than before.
    """

    def __init__(self, board: Board, came: Callable[[], None]) -> None:
        self._board, self._came = board, came

    def open(self, key: str, sizes: Sequence[int], row: Mapping[str, Array] | None, nan_ok: bool) -> Model:
        """Begins to open a model; see DevicePool.open."""
        if key in self._board.models:
            raise EngineError(f"model {key!r} is open already: retire it first, or give this one another key")
        if not sizes or min(sizes) < 1:
            raise EngineError(f"sizes = {tuple(sizes)} of model {key!r}: name at least one, 1 or more")
        model = self._board.models[key] = Model(key, tuple(sorted(set(sizes))), row, nan_ok)
        model.asked = [slot for slot in self._board.slots if slot.health.ready]
        self._open_more(model)
        return model

    def retire(self, key: str) -> Model:
        """Begins to retire a model; see DevicePool.retire."""
        model = self._board.models.get(key)
        if model is None:
            raise EngineError(f"model {key!r} isn't open: there is nothing to retire")
        if model.retired is None:
            model.retired = promise()
            model.ready = False
            model.asked.clear()
            self.finish(model)
        return model

    def finish(self, model: Model) -> None:
        """Closes a retired model's sessions once nothing of it is in flight."""
        board = self._board
        if model.retired is None or model.tasks or model.opening or model.closing:
            return
        if board.models.get(model.key) is not model:
            return
        if not model.opened.done():
            board.tell(
                model.opened, None, ServingError(f"model {model.key!r} was retired before it was ready")
            )
        model.closing = {slot for slot in board.slots if model.key in slot.opened}
        for slot in tuple(model.closing):
            self._close_on(slot, model.key, partial(self._closed, model, slot))
        if not model.closing:
            self._gone(model)

    def complete(self, slot: Slot, *, again: bool = False) -> None:
        """Opens on a device what became ready while it was out, and closes what was retired.

        Args:
            slot: the device.
            again: also what it had no memory for: there may be more now.
        """
        if not slot.health.ready:
            return
        if again:
            slot.refused = {
                k: error for k, error in slot.refused.items() if not isinstance(error, DeviceError)
            }
        for model in self._board.models.values():
            absent = model.key not in slot.opened and model.key not in slot.refused
            if model.ready and absent and slot not in model.opening:
                self._open_on(slot, model)
        for key in slot.opened - self._board.models.keys():
            self._close_on(slot, key, lambda: None)

    # ---- opening

    def _open_more(self, model: Model) -> None:
        """Opens a model on the next device, or on all of them while nothing else is served."""
        serving = any(other.ready for other in self._board.models.values())
        while model.asked and not (serving and model.opening):
            slot = model.asked.pop(0)
            if slot.health.ready:
                self._open_on(slot, model)
        if not model.opening:
            self._all_opened(model)

    def _open_on(self, slot: Slot, model: Model) -> None:
        key, sizes, row = model.key, model.sizes, model.row

        def work(table: SessionTable) -> tuple[KnownBatch, dict[str, Array], dict[int, float]]:
            try:
                session = table.open(key)
                known = KnownBatch(row, sizes) if row else KnownBatch.invented(session.inputs, sizes)
                answer = known.run(session)
                return known, answer, {size: known.measure(session, size) for size in sizes}
            except Exception:
                table.close(key)
                raise

        model.opening.add(slot)
        slot.opening += 1
        self._board.post(slot, work, self._board.limits.open_timeout_s, partial(self._opened, slot, model))

    def _opened(self, slot: Slot, model: Model, outcome: Outcome) -> None:
        slot.opening -= 1
        model.opening.discard(slot)
        if outcome.error is None:
            known, answer, seconds = outcome.value
            model.known = model.known or known
            model.first_answers[slot] = answer
            slot.curves[model.key] = CostCurve(seconds)
            slot.open_s[model.key] = outcome.seconds
            slot.opened.add(model.key)
            self._board.news = True
        elif not isinstance(outcome.error, Hung | Withdrawn):  # those open it when their probe has passed
            slot.refused[model.key] = outcome.error
        if model.retired is not None:
            self.finish(model)
        elif model.ready:
            self._compare(model)
            self._came()
        else:
            self._open_more(model)

    def _all_opened(self, model: Model) -> None:
        self._compare(model)
        slots = self._board.slots
        devices = [slot for slot in slots if model.key in slot.opened]
        refused = {s.spec.name: str(s.refused[model.key]) for s in slots if model.key in s.refused}
        if not devices:
            self._forget(model)
            why = "; ".join(f"{name}: {error}" for name, error in refused.items()) or "none is in service"
            error = ServingError(
                f"model {model.key!r} opens on no device ({why}): mend that, then open it again"
            )
            self._board.tell(model.opened, None, error)
            return
        for slot in [slot for slot in devices if not slot.spec.last_resort] or devices:
            for size, seconds in slot.curves[model.key].measured.items():
                model.curve.observe(size, seconds)
        model.ready = True
        self._board.tell(model.opened, Opened(tuple(slot.spec.name for slot in devices), refused))
        for slot in slots:
            self.complete(slot)

    def _compare(self, model: Model) -> None:
        """Devices whose first answer isn't that of the last resort (or the first device) don't serve it."""
        answers, model.first_answers = model.first_answers, {}
        if model.known is None:
            return
        for slot in sorted(answers, key=lambda slot: (not slot.spec.last_resort, slot.index)):
            if model.known.expected is None:
                model.known.expected = answers[slot]
            if not model.known.matches(answers[slot]):
                slot.refused[model.key] = WrongAnswer("its answer to the sample isn't that of other engines")
                _log.warning("device %s doesn't serve %s: wrong answer", slot.spec.name, model.key)
                self._close_on(slot, model.key, lambda: None)

    # ---- closing

    def _close_on(self, slot: Slot, key: str, done: Callable[[], None]) -> None:
        def closed(_: Outcome) -> None:
            slot.opened.discard(key)  # again: a probe in between may have found it open
            done()

        slot.opened.discard(key)
        self._board.post(slot, lambda table: table.close(key), self._board.limits.open_timeout_s, closed)

    def _closed(self, model: Model, slot: Slot) -> None:
        model.closing.discard(slot)
        if not model.closing:
            self._gone(model)

    def _gone(self, model: Model) -> None:
        self._forget(model)
        if model.retired is not None:
            self._board.tell(model.retired, None)
        for slot in self._board.slots:
            self.complete(slot, again=True)

    def _forget(self, model: Model) -> None:
        del self._board.models[model.key]
        for slot in self._board.slots:
            slot.curves.pop(model.key, None)
            slot.open_s.pop(model.key, None)
            slot.refused.pop(model.key, None)
