"""`polarstream up`: broker, worker, sources and the live view on one machine, under one parent process.

The parent starts the local broker (unless one is configured or runs already), keeps a worker and the sources
running as child processes, and shows what comes out. When it ends, however it ends, so do they: in order
after Ctrl-C (sources, worker with a last checkpoint, broker), by SIGTERM from the kernel if it is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from connectors.source import FRAME_SOURCES, SOURCES
from polarstream.config import left_out_of_demo
from polarstream.demo.model import prepare
from polarstream.live import Board, follow, plain_line, render
from polarstream.supervisor import Backoff, Child, ChildSpec
from streams.errors import PolarstreamError, RetryLater, UsageError

if TYPE_CHECKING:
    from polarstream.broker import LocalBroker
    from polarstream.config import Config
    from streams.config import KafkaConfig

View = Literal["table", "plain", "json"]

_REFRESH_S: Final = 0.5
_LINE_S: Final = 1.0
_BROKER_LOOK_S: Final = 1.0


@dataclass(frozen=True)
class UpOptions:
    """How `up` runs."""

    config_path: Path | None = None
    workers: int = 1
    #: Sources to run; None: those that have a stream of their name.
    sources: Sequence[str] | None = None
    view: View = "table"
    #: End by itself after so many seconds.
    for_s: float | None = None


def choose_sources(config: Config, wanted: Sequence[str] | None) -> list[str]:
    """The sources to run: those asked for, else those that a configured stream is named after.

    Raises:
        UsageError: one that was asked for does not exist or has no stream.
    """
    topics = _topics_of_sources(config)
    if wanted is None:
        return list(topics)
    for name in wanted:
        if name not in SOURCES:
            raise UsageError(f"there is no source '{name}': choose from {', '.join(SOURCES)}")
        if name not in topics:
            kind = "stream of frames" if name in FRAME_SOURCES else "stream"
            raise UsageError(f"no {kind} is named '{name}' like the source: add one to the configuration")
    return list(wanted)


def _topics_of_sources(config: Config) -> dict[str, str]:
    """The topic of each source that has a stream of its name."""
    readings = {stream.name: stream.topic for stream in config.streams}
    frames = {stream.name: stream.topic for stream in config.frames}
    found = {name: (frames if name in FRAME_SOURCES else readings).get(name) for name in SOURCES}
    return {name: topic for name, topic in found.items() if topic is not None}


def run(config: Config, options: UpOptions) -> int:
    """Run all of it until Ctrl-C, SIGTERM or the time is over; returns the exit code.

    Raises:
        UsageError: it runs already in this data folder.
        BrokerUnavailable: there is no broker, and the local one could not be started.
    """
    sources = choose_sources(config, options.sources)
    with _one_at_a_time(config.data_dir / "run"), _terminate_as_interrupt():
        broker: LocalBroker | None = None
        kafka = config.kafka
        try:
            if not kafka.bootstrap_servers:
                kafka, broker = _local_broker(config)
            prepare(config, _tell)
            left_out = left_out_of_demo(config)
            if left_out:
                _tell(f"no camera frames without {', '.join(left_out)}: pip install 'polarstream[demo]'")
            return asyncio.run(_Up(config, options, sources, kafka, broker).run())
        except KeyboardInterrupt:
            return 0  # the usual end of it
        finally:
            if broker is not None:
                with _deaf():
                    broker.stop()


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    from polarstream.broker.folder_lock import folder_lock

    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(folder_lock(folder, timeout_s=0))
        except RetryLater:
            raise UsageError(
                f"polarstream up runs already in {folder.parent}: stop that one, or set POLARSTREAM_DATA_DIR"
            ) from None
        yield


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    numbers = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """A second Ctrl-C must not leave the broker behind."""
    before = {n: signal.signal(n, signal.SIG_IGN) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _local_broker(config: Config) -> tuple[KafkaConfig, LocalBroker | None]:
    """The local broker: one that runs already is used and left running, else ours is started."""
    from polarstream.broker import LocalBroker, download_bar, running_bootstrap

    bootstrap = running_bootstrap(config.data_dir)
    broker: LocalBroker | None = None
    if bootstrap is None:
        _tell("starting the local broker ...")
        broker = LocalBroker(config.data_dir)
        try:
            with download_bar() as progress:
                broker.start(progress=progress)
        except BaseException:
            with _deaf():
                broker.stop()
            raise
        bootstrap = broker.bootstrap
    return msgspec.structs.replace(config.kafka, bootstrap_servers=[bootstrap]), broker


class _Up:
    def __init__(
        self,
        config: Config,
        options: UpOptions,
        sources: Sequence[str],
        kafka: KafkaConfig,
        broker: LocalBroker | None,
    ) -> None:
        self._config = config
        self._options = options
        self._kafka = kafka
        self._broker = broker
        self._board = Board()
        self._stop = asyncio.Event()
        self._view: View = options.view
        if self._view == "table" and not sys.stdout.isatty():
            self._view = "plain"
        logs = config.data_dir / "logs"
        base = [sys.executable, "-m", "polarstream"]
        flags = ["--config", str(options.config_path)] if options.config_path else []
        self._workers = [
            Child(ChildSpec(name, [*base, "worker", *flags], logs / f"{name}.log"), self._say)
            for name in ("worker", *(f"worker-{n}" for n in range(2, options.workers + 1)))
        ]
        self._sources = [
            Child(
                ChildSpec("sources", [*base, "sources", *flags, *sources], logs / "sources.log", grace_s=5.0),
                self._say,
            )
        ]
        if not sources:
            self._sources = []

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._interrupt)
        from streams.layout import lay_out

        config = self._config
        await lay_out(self._kafka, config.app_id, config.inputs, config.topics)
        if self._options.for_s is not None:
            loop.call_later(self._options.for_s, self._stop.set)
        async with self._shown(), asyncio.TaskGroup() as group:
            workers = [group.create_task(child.run()) for child in self._workers]
            sources = [group.create_task(child.run()) for child in self._sources]
            others = [
                group.create_task(
                    follow(self._board, self._kafka, config.topics.predictions, config.topics.alerts)
                ),
                group.create_task(self._keep_broker()),
            ]
            await self._stop.wait()
            self._say("stopping ...")
            # what was published is still scored, and the last checkpoint needs the broker
            for tasks in (sources, workers, others):
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        summary = self._board.summary(time.time())
        if self._view != "json":
            print(
                f"stopped after {summary.predictions} predictions and {summary.alerts} alert messages; "
                f"the data stays in {config.data_dir}, the next polarstream up goes on with it"
            )
        return 0

    def _interrupt(self) -> None:
        if self._stop.is_set():  # a second Ctrl-C: no more patience
            for child in (*self._sources, *self._workers):
                child.kill()
        self._stop.set()

    def _say(self, message: str) -> None:
        self._board.say(message, time.time())
        if self._view != "table":
            _tell(message)

    async def _keep_broker(self) -> None:
        """Start our broker again if it dies."""
        from polarstream.broker import running_bootstrap

        broker, backoff = self._broker, Backoff()
        if broker is None:
            return
        started = time.monotonic()
        while True:
            await asyncio.sleep(_BROKER_LOOK_S)
            if running_bootstrap(self._config.data_dir) is not None:
                continue
            pause = backoff.pause_s(time.monotonic() - started)
            self._say(f"the local broker has died, starting it again in {pause:g} s")
            await asyncio.sleep(pause)
            try:
                await asyncio.to_thread(broker.start)
            except PolarstreamError as error:
                self._say(str(error))
            started = time.monotonic()

    def _notes(self) -> list[str]:
        where = ", ".join(self._kafka.bootstrap_servers)
        metrics = ", ".join(_metrics_addresses(self._config)) or "starting ..."
        return [
            f"broker {where}   metrics {metrics}",
            f"data {self._config.data_dir}   logs {self._config.data_dir / 'logs'}",
            "Ctrl-C stops all of it; the data stays",
        ]

    @contextlib.asynccontextmanager
    async def _shown(self) -> AsyncIterator[None]:
        """The view while the body runs."""
        if self._view == "table":
            from rich.live import Live

            with Live(self._picture(), screen=True, auto_refresh=False, transient=True) as live:
                task = asyncio.create_task(
                    self._every(_REFRESH_S, lambda: live.update(self._picture(), refresh=True))
                )
                try:
                    yield
                finally:
                    task.cancel()
            return
        said: list[Any] = [None]

        def line() -> None:
            if self._view == "json":
                print(msgspec.json.encode(self._board.summary(time.time())).decode(), flush=True)
                return
            metrics = _metrics_addresses(self._config)
            if metrics and metrics != said[0]:
                print(f"metrics {', '.join(metrics)}", flush=True)
                said[0] = metrics
            print(plain_line(self._board.summary(time.time())), flush=True)

        if self._view == "plain":
            print(
                f"broker {', '.join(self._kafka.bootstrap_servers)}, data {self._config.data_dir}", flush=True
            )
        task = asyncio.create_task(self._every(_LINE_S, line))
        try:
            yield
        finally:
            task.cancel()

    def _picture(self) -> Any:
        from rich.console import Console

        return render(self._board, "polarstream", self._notes(), time.time(), Console().size.height)

    @staticmethod
    async def _every(seconds: float, act: Callable[[], None]) -> None:
        while True:
            act()
            await asyncio.sleep(seconds)


def _metrics_addresses(config: Config) -> list[str]:
    """Metrics endpoints of the workers that run now."""
    from polarstream.status import running_workers

    return [worker.metrics for worker in running_workers(config.data_dir)]


async def run_sources(config: Config, kafka: KafkaConfig, names: Sequence[str]) -> None:
    """Publish the readings and frames of these sources until cancelled.

    Raises:
        UsageError: a source does not exist or has no stream.
    """
    from connectors.publisher import Publisher
    from connectors.source import build_source, feed
    from streams import metrics
    from streams.layout import lay_out

    chosen = choose_sources(config, names)
    topics = _topics_of_sources(config)
    (config.data_dir / "run").mkdir(parents=True, exist_ok=True)
    await lay_out(kafka, config.app_id, config.inputs, config.topics)
    port = metrics.serve(config.worker.metrics_host, 0)
    print(f"metrics: http://{config.worker.metrics_host}:{port}/metrics", file=sys.stderr, flush=True)
    async with Publisher(kafka, delivery_timeout_s=10.0) as publisher, asyncio.TaskGroup() as group:
        for name in chosen:
            settings: dict[str, Any] = {"type": name}
            if name == "plant":
                settings["clock_file"] = str(config.data_dir / "run" / "plant.clock")
            elif name == "camera":
                settings["folder"] = str(config.data_dir / "pictures")
            group.create_task(feed(build_source(settings), publisher, topics[name]))
