"""Processes told apart by more than their id, so that a reused id is never taken for ours."""

from __future__ import annotations

from dataclasses import dataclass

import psutil

#: Start times of one process read at different moments differ by rounding alone.
_SAME_START_S = 1.0


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process.

    Args:
        pid: its id.
        started: when it started, seconds of the epoch. Systems derive it from the wall clock, so it
            moves when that is set.
        argument: one of its command line that no other process has; tells it apart then.
    """

    pid: int
    started: float
    argument: str

    @classmethod
    def of(cls, pid: int, argument: str) -> ProcessId | None:
        """The process that has this id now."""
        try:
            return cls(pid, psutil.Process(pid).create_time(), argument)
        except psutil.NoSuchProcess:
            return None

    def process(self) -> psutil.Process | None:
        """The process, if it still runs. A zombie does not."""
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return None
            if abs(process.create_time() - self.started) <= _SAME_START_S:
                return process
            return process if self.argument in process.cmdline() else None
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # another user's is not ours
            return None

    def alive(self) -> bool:
        """Whether it still runs."""
        return self.process() is not None

    def end(self, timeout_s: float) -> bool:
        """Ask it to end, and kill it when it has not after `timeout_s`; False: it had to be killed."""
        process = self.process()
        if process is None:
            return True
        try:
            process.terminate()
            if self.wait(timeout_s):
                return True
            process.kill()
        except psutil.NoSuchProcess:
            return True
        self.wait(timeout_s)
        return False

    def kill(self) -> None:
        """End it at once, as `kill -9` does, and wait until it is gone."""
        if (process := self.process()) is not None:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                return
            self.wait(10)

    def wait(self, timeout_s: float) -> bool:
        """Wait until it is gone; False: it still runs after `timeout_s`."""
        if (process := self.process()) is not None:
            try:
                process.wait(timeout_s)
            except psutil.TimeoutExpired:
                return not self.alive()
        return True
