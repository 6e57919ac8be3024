"""Child processes that are kept running: watched, restarted with growing pauses, stopped in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from polarstream.lifeline import PARENT_VARIABLE

_LOG_BYTES: Final = 10_000_000


class Backoff:
    """Pauses before restarts: they double with each failure, and start anew after a long good run; pure."""

    def __init__(self, first_s: float = 0.5, longest_s: float = 30.0, good_after_s: float = 60.0) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._good_after_s = good_after_s
        self._next_s = first_s

    def pause_s(self, ran_s: float) -> float:
        """Seconds to wait after a run of `ran_s` seconds that ended by itself."""
        if ran_s >= self._good_after_s:
            self._next_s = self._first_s
        pause, self._next_s = self._next_s, min(self._next_s * 2, self._longest_s)
        return pause


@dataclass(frozen=True)
class ChildSpec:
    """A process to keep running; its output goes to `log`."""

    name: str
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    #: How long it may take to end after SIGTERM before it is killed.
    grace_s: float = 20.0


class Child:
    """One supervised process.

    Args:
        spec: what to run.
        say: takes messages for the user.
        backoff: pauses before restarts.
    """

    def __init__(self, spec: ChildSpec, say: Callable[[str], None], backoff: Backoff | None = None) -> None:
        self.spec = spec
        self.restarts = 0
        self._say = say
        self._backoff = backoff or Backoff()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def run(self) -> None:
        """Keep the process running until cancelled; then it is stopped, and killed if it will not end."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                started = loop.time()
                self._process = await self._spawn()
                code = await self._process.wait()
                pause = self._backoff.pause_s(loop.time() - started)
                self._say(
                    f"{self.spec.name} ended ({describe_exit(code)}), starting again in {pause:g} s"
                    f"{_last_words(self.spec.log) if code > 0 else ''}"
                )
                await asyncio.sleep(pause)
                self.restarts += 1
        finally:
            await self._stop()

    def kill(self) -> None:
        """End it at once."""
        self._signal(signal.SIGKILL)

    async def _spawn(self) -> asyncio.subprocess.Process:
        self.spec.log.parent.mkdir(parents=True, exist_ok=True)
        _rotate(self.spec.log)
        environment = {**os.environ, **self.spec.environment, PARENT_VARIABLE: str(os.getpid())}
        with self.spec.log.open("ab") as log:
            # a session of its own: the terminal's Ctrl-C reaches the supervisor alone, which stops in order
            return await asyncio.create_subprocess_exec(
                *self.spec.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=environment,
            )

    async def _stop(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        self._signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), self.spec.grace_s)
        except TimeoutError:
            self._say(f"{self.spec.name} did not end within {self.spec.grace_s:g} s and is killed")
        finally:
            # whatever it may have started lives in its session
            self._signal(signal.SIGKILL)
            await process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)


def describe_exit(code: int) -> str:
    """An exit status in words: `exit code 69`, `killed by SIGKILL`."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _last_words(log: Path) -> str:
    """The line of a log's end where a failing process says why."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    errors = [line for line in lines[-20:] if line.startswith("error: ")]
    return f"; its last words: {(errors or lines)[-1].strip()[:300]}" if lines else ""


def _rotate(log: Path) -> None:
    with contextlib.suppress(OSError):
        if log.stat().st_size > _LOG_BYTES:
            log.replace(log.with_suffix(log.suffix + ".1"))
