"""Runs a contestant as a process of its own and measures what it takes from the machine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType


@dataclass(frozen=True)
class Usage:
    """What was taken up to one moment.

    Attributes:
        at: monotonic seconds.
        cpu_s: CPU seconds of the process and its children, living and gone.
        broker_cpu_s: the same of the broker, NaN where it is not ours.
        harness_cpu_s: the same of this process.
        machine_cpu_s: busy CPU seconds of the whole machine.
    """

    at: float
    cpu_s: float
    broker_cpu_s: float
    harness_cpu_s: float
    machine_cpu_s: float


class Measured:
    """A running contestant. Leaving the context ends its whole process group."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        folder: Path,
        broker_pid: int | None = None,
    ) -> None:
        self._log_path = folder / "output.log"
        self._log = self._log_path.open("wb")
        self._broker = psutil.Process(broker_pid) if broker_pid is not None else None
        self._me = psutil.Process()
        self._seen: dict[int, tuple[float, int]] = {}
        self.started_s = time.time()
        self._process = subprocess.Popen(
            list(command),
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._root = psutil.Process(self._process.pid)
        self.first = self.usage()

    def __enter__(self) -> Measured:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Of the first process."""
        return self._process.pid

    @property
    def exited(self) -> int | None:
        """Its exit status, None while it runs."""
        return self._process.poll()

    @property
    def peak_rss_bytes(self) -> int:
        """Sum over its processes of each one's own peak; pages that they share count for each."""
        return sum(peak for _, peak in self._seen.values())

    def usage(self) -> Usage:
        """A sample of now."""
        try:
            family = [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            family = []
        for process in family:
            try:
                times = process.cpu_times()
                self._seen[process.pid] = (times.user + times.system, _peak_rss(process))
            except psutil.NoSuchProcess:
                continue
        broker = self._broker.cpu_times() if self._broker is not None else None
        me = self._me.cpu_times()
        machine = psutil.cpu_times()
        return Usage(
            time.monotonic(),
            sum(cpu for cpu, _ in self._seen.values()),
            broker.user + broker.system if broker is not None else float("nan"),
            me.user + me.system,
            machine.user + machine.system + machine.nice + getattr(machine, "softirq", 0.0),
        )

    def log_tail(self, lines: int = 15) -> str:
        """The end of what it printed."""
        return "\n".join(self._log_path.read_text(errors="replace").splitlines()[-lines:])

    def stop(self, grace_s: float = 10.0) -> None:
        """Asks it to end, then ends its process group."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()


def _peak_rss(process: psutil.Process) -> int:
    """VmHWM where the system tells it, else what is resident now."""
    try:
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return int(process.memory_info().rss)
