"""Several devices behind one `submit`: chooses one, watches it, and runs elsewhere what it fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

from gpu_inference.errors import BusyError, EngineError, ServingError
from gpu_inference.graph.ir import Array
from gpu_inference.serving.board import Board, Opened, PoolLimits, promise
from gpu_inference.serving.choice import StrategyName, make_strategy
from gpu_inference.serving.cost_curve import CostCurve
from gpu_inference.serving.device import DeviceSpec
from gpu_inference.serving.lifecycle import Lifecycle
from gpu_inference.serving.placement import Placement
from gpu_inference.serving.slot import Answer, DeviceStatus, Task
from gpu_inference.serving.watcher import Watcher


class DevicePool:
    """Devices of one worker. All methods may be called from any thread, and none waits, except `close`.

    A batch that a device fails (it raises, gives NaN, or hangs) is run on another one, on a device of last
    resort where no other is in service, or waits until one comes back; its future gets exactly one answer or
    error, at its deadline at the latest. A device that failed gets no batches until it has given the known
    answer to a small known batch. A thread that hangs can't be ended: it is left behind, counted, and what it
    answers later is thrown away; the probe runs on a new thread with fresh sessions.

    Args:
        devices: names and how to open a session on them.
        strategy: how to choose among devices that could take a batch.
        limits: times and bounds.
        clock: monotonic seconds.
        changed: is called, from any thread, after devices came or went: `free` may have more now.

    Example:
        >>> import numpy as np, gpu_inference
        >>> card = DeviceSpec("gpu0", lambda key: gpu_inference.load(key, device=0))
        >>> def on_cpu(key):
        ...     return gpu_inference.load(key, engine="onnxruntime")
        >>> pool = DevicePool([card, DeviceSpec("cpu", on_cpu, last_resort=True)])
        >>> pool.open("model.onnx", sizes=(1, 8, 32)).result(timeout=300)  # doctest: +SKIP
        >>> frames = np.zeros((8, 3, 224, 224), np.float32)
        >>> pool.submit("model.onnx", {"x": frames}).result().outputs  # doctest: +SKIP
        >>> pool.close()
        True
    """

    def __init__(
        self,
        devices: Sequence[DeviceSpec],
        strategy: StrategyName = "adaptive",
        limits: PoolLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        names = [spec.name for spec in devices]
        if not names or len(set(names)) < len(names):
            raise EngineError(f"devices {names}: a pool needs at least one, each with a name of its own")
        self.limits = limits or PoolLimits()
        self._board = Board(devices, self.limits, clock, changed)
        self._lifecycle = Lifecycle(self._board, lambda: self._placement.place_parked())
        self._placement = Placement(self._board, make_strategy(strategy), self._lifecycle.finish)
        self._watcher = Watcher(self._board, self._placement, self._lifecycle)

    def open(
        self,
        key: str,
        sizes: Sequence[int] = (1,),
        row: Mapping[str, Array] | None = None,
        *,
        nan_ok: bool = False,
    ) -> Future[Opened]:
        """Opens, warms up and measures a model on every device in service.

        While other models are served this goes on one device at a time, and batches avoid it. Devices that
        come back later open it before they take batches.

        Args:
            key: what `DeviceSpec.open_session` gets.
            sizes: batch sizes that will be run, so that their kernels are built and their costs known.
            row: a sample, an array [1, ...] for each input; None for noise.
            nan_ok: NaN is a fair answer of this model.

        Returns:
            Where it is ready; `submit` takes it from then on. ServingError where no device opened it.

        Raises:
            EngineError: it is open already, or `sizes` is empty.
            ServingError: the pool is closed.
        """
        with self._board.changing():
            self._check_open()
            return self._lifecycle.open(key, sizes, row, nan_ok).opened

    def retire(self, key: str) -> Future[None]:
        """Takes no more batches of the model and closes its sessions after the last one in flight.

        Raises:
            EngineError: it isn't open.
        """
        with self._board.changing():
            model = self._lifecycle.retire(key)
            assert model.retired is not None
            return model.retired

    def curve(self, key: str) -> CostCurve:
        """What batches of the model cost, over all devices: for its `MicroBatcher`."""
        with self._board.condition:
            if key not in self._board.models:
                raise EngineError(f"model {key!r} isn't open: open it first")
            return self._board.models[key].curve

    def free(self, key: str | None = None) -> tuple[int, int]:
        """Idle devices, and busy ones with room for a next batch: `batcher.take(now, *pool.free(key))`.

        Devices of last resort count only where no other serves the model, and so do those that open one.
        """
        with self._board.condition:
            able = self._placement.able(key)
            idle = sum(not slot.tasks for slot in able)
            return idle, sum(0 < len(slot.tasks) < self.limits.depth for slot in able)

    def submit(
        self, key: str, inputs: Mapping[str, Array], deadline_s: float | None = None
    ) -> Future[Answer]:
        """Runs a batch on some device.

        Args:
            key: of a model that is ready.
            inputs: an array for each input, left alone until the future is done.
            deadline_s: on the pool's clock; the future is done by then, with ServingError if need be. None
                for `give_up_s` from now.

        Returns:
            A future that can't be cancelled. Its errors: ModelError where two engines refuse the batch,
            ServingError where no device could run it, its time ran out, or the pool was closed.

        Raises:
            BusyError: too many batches wait.
            ServingError: the model isn't ready, or the pool is closed.
        """
        size = max((len(array) for array in inputs.values() if array.ndim), default=1)
        board = self._board
        with board.changing():
            self._check_open()
            model = board.models.get(key)
            if model is None or not model.ready:
                raise ServingError(f"model {key!r} isn't ready: wait for open() to be done before batches")
            if len(board.tasks) >= self.limits.max_batches:
                raise BusyError(
                    f"{len(board.tasks)} batches wait, the limit: submit when `free` says that one could run"
                )
            now_s = board.clock()
            give_up_s = now_s + self.limits.give_up_s if deadline_s is None else deadline_s
            task = Task(key, inputs, size, now_s, give_up_s, promise())
            board.tasks.add(task)
            model.tasks += 1
            self._placement.place(task)
            return task.future

    def status(self) -> list[DeviceStatus]:
        """State and counters of each device."""
        with self._board.condition:
            return [slot.status() for slot in self._board.slots]

    def close(self, timeout_s: float = 10.0) -> bool:
        """Takes no more batches, waits for those in flight, then ends the threads.

        Returns:
            Whether every thread has ended within `timeout_s`; one that hangs is left to the process's end.
        """
        end_s = time.monotonic() + timeout_s
        board = self._board
        with board.condition:
            board.closing = True
            board.condition.wait_for(lambda: not board.tasks, 0.75 * timeout_s)
        with board.changing():
            board.closed = True
            error = ServingError("the pool is closed: no more answers come from it")
            models, board.models = board.models, {}
            for task in list(board.tasks):
                self._placement.settle(task, None, error)
            for model in models.values():
                if not model.opened.done():
                    board.tell(model.opened, None, error)
                if model.retired is not None:
                    board.tell(model.retired, None)
            for slot in board.slots:
                for job in slot.jobs:
                    job.settled = True
                if slot.thread is not None:
                    slot.thread.stop()
            threads = [slot.thread for slot in board.slots if slot.thread is not None]
            hung = any(slot.thread is None for slot in board.slots)
            board.condition.notify_all()
        self._watcher.join(end_s - time.monotonic())
        ended = [thread.join(end_s - time.monotonic()) for thread in threads]
        return all(ended) and not hung

    def _check_open(self) -> None:
        if self._board.closing:
            raise ServingError("the pool is closed: make another one")
