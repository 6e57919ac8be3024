"""The worker process: streams in, predictions and alerts out."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import socket
import sys
import time
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from aiokafka.errors import KafkaError

from agents.analyse import make_analyse_agent
from agents.control import CompactedFollower, ControlFollower
from agents.detect import export_gauges, make_detect_agent
from polarstream.demo.model import prepare
from polarstream.target import resolve_kafka
from streams import metrics
from streams.app import StreamApp
from streams.errors import BrokerUnavailable, PolarstreamError, RetryLater, Stop
from streams.layout import lay_out, state_table

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Mapping
    from pathlib import Path

    from agents.serving import Serving
    from polarstream.config import Config
    from streams.config import KafkaConfig

log = logging.getLogger("polarstream.worker")

#: A worker that failed starts again after so many seconds, doubling up to the second number; one that ran
#: for `SETTLED_S` before begins with the first again. The count goes from process to process by a variable.
RESTART_S = (0.5, 15.0)
SETTLED_S = 60.0
ATTEMPT = "_POLARSTREAM_WORKER_ATTEMPT"
#: How long a worker that is told to stop may take over its last checkpoint, in seconds.
STOP_S = 10.0
#: How often the process looks whether it still runs, in seconds.
TICK_S = 0.5


@contextlib.contextmanager
def claim_instance(run_dir: Path, wanted: str | None) -> Iterator[str]:
    """Claim a name for this worker: its own again after a restart, and no other living worker's.

    Several workers on one machine get `host`, `host-2`, `host-3` ... The claim is a lock of the operating
    system, so it ends with the process, however that ends.

    Args:
        run_dir: folder of the lock files.
        wanted: the configured name, or None for the host's.

    Raises:
        Stop: the configured name is taken.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    base = wanted or socket.gethostname().split(".")[0] or "worker"
    for number in range(1, 1000):
        name = base if number == 1 else f"{base}-{number}"
        path = run_dir / f"worker-{name}.lock"
        handle = _claim(path)
        if handle is not None:
            try:
                yield name
            finally:
                with contextlib.suppress(OSError):  # Windows: a file that is open stays
                    path.unlink()
                handle.close()
            return
        if wanted:
            raise Stop(f"another worker is running as '{wanted}': stop it, or set worker.instance_id")
    raise Stop(f"no free name for a worker in {run_dir}: set worker.instance_id")


def _claim(path: Path) -> IO[str] | None:
    """Open and lock a file; None where another process has it."""
    while True:
        handle = path.open("a+")
        if not _lock(handle):
            handle.close()
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle.fileno()), path.stat()):
                return handle
        # its owner has taken the file away between our opening and locking it
        handle.close()


def _lock(handle: IO[str]) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


class Built(NamedTuple):
    """What a worker runs.

    Attributes:
        app: the application.
        followers: of compacted topics, whose records so far are read.
        serving: the models, where there are streams of frames or requests.
    """

    app: StreamApp
    followers: list[CompactedFollower]
    serving: Serving | None


async def build_app(config: Config, kafka: KafkaConfig, instance_id: str) -> Built:
    """Make the application with the agents of all configured streams; topics are made as needed.

    Raises:
        Stop: a model can't be served.
    """

    async def follow_inputs() -> Mapping[str, int]:
        layout = await lay_out(kafka, config.app_id, config.inputs, config.topics)
        if layout.missing:
            log.info("topics made or grown: %s", dict(layout.missing))
        return layout.inputs

    inputs = await follow_inputs()
    app = StreamApp(
        config.app_id, kafka, config.worker, instance_id, str(config.data_dir / "faust"), follow_inputs
    )
    app.input_partitions = inputs
    control = ControlFollower(kafka, config.topics)
    await control.read_all()
    serving, models = None, None
    if config.frames or config.requests.enabled:
        # before the group is joined: kernels may have to be built
        from agents.serving import Serving

        serving = Serving(config.inference, config.models_dir)
        models = CompactedFollower(kafka, config.topics, config.topics.models, serving.apply)
        await models.read_all()
        asked = config.requests.models if config.requests.enabled else []
        try:
            await serving.start([stream.model for stream in config.frames], asked)
        except BaseException:
            # a device's thread in the middle of opening a model would take the process down at its end
            await serving.close()
            raise
    for stream in config.streams:
        table = app.changelog_table(state_table(stream), inputs[stream.topic])
        topic = app.reading_topic(stream, table)
        make_detect_agent(app, topic, stream, config.topics, control.state)
        if stream.windows:
            make_analyse_agent(app, topic, stream, config.topics)
    if serving is not None:
        from agents.infer import make_infer_agent

        for frames in config.frames:
            table = app.changelog_table(state_table(frames), inputs[frames.topic])
            make_infer_agent(
                app,
                app.frame_topic(frames, table),
                frames,
                config.topics,
                serving,
            )
    if serving is not None and config.requests.enabled:
        from agents.requests import make_request_agent

        table = app.changelog_table(state_table(config.requests), inputs[config.requests.topic])
        topic = app.request_topic(config.requests, table)
        make_request_agent(app, topic, config.requests, config.topics, serving)
    return Built(app, [follower for follower in (control, models) if follower is not None], serving)


def _settle_memory() -> None:
    """Let the garbage collector rest: a chunk makes tens of thousands of short-lived objects, no cycles.

    What is loaded by now stays, so it need not be looked at again. Saves 20% of the CPU time of a reading.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 50)


async def _serve(config: Config, kafka: KafkaConfig, instance_id: str, stopping: asyncio.Event) -> None:
    """Run the application until it is told to stop.

    Raises:
        Exception: what the application failed of.
    """
    app, followers, serving = await build_app(config, kafka, instance_id)
    _settle_memory()
    # Faust looks for agents in the modules that it knows; ours are declared
    app.conf.autodiscover = False
    app.finalize()
    await app.maybe_start()
    stop = asyncio.create_task(stopping.wait())
    watch = asyncio.create_task(_watch(app, config, serving))
    crash = asyncio.create_task(app._crashed.wait())
    follow = [asyncio.create_task(follower.follow()) for follower in followers]
    between = asyncio.create_task(_between_chunks(app))
    failure: BaseException | None = None
    try:
        await asyncio.wait({stop, watch, crash, *follow, between}, return_when=asyncio.FIRST_COMPLETED)
        failed = [task.exception() for task in (watch, *follow, between) if task.done()]
        failure = app.crash_reason or next(iter(failed), None)
    finally:
        for task in (stop, watch, crash, *follow, between):
            task.cancel()
        await asyncio.gather(*follow, between, return_exceptions=True)
    if failure is not None:
        raise failure
    await app.stop()
    if serving is not None:
        await serving.close()


async def _watch(app: StreamApp, config: Config, serving: Serving | None) -> None:
    """Export the gauges, and notice when the process has slept."""
    limit_s = config.worker.session_timeout_ms / 1000
    seen = time.monotonic()
    while True:
        await asyncio.sleep(TICK_S)
        now = time.monotonic()
        if now - seen > limit_s:
            # others have our partitions by now, and what we would write is older than what they wrote
            raise RetryLater(f"the process stood still for {now - seen:.0f} s, more than the session timeout")
        seen = now
        app.note_lag()
        export_gauges(app)
        if serving is not None:
            serving.check()


async def _between_chunks(app: StreamApp) -> None:
    """Look now and then for what no message brings about, such as a sensor that is silent."""
    while True:
        await asyncio.sleep(TICK_S)
        for look in app.between_chunks:
            await look(time.time())


def run(config: Config) -> int:
    """Run a worker until SIGINT or SIGTERM.

    A failure that may pass (a broker that is gone, a fenced producer) is no reason to give up: the worker
    replaces itself by a fresh one, which goes on from the last checkpoint.

    Returns:
        The process's exit code: 0 after a signal.
    """
    logging.basicConfig(
        level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if config.log_level != "debug":
        # a broker that restarts makes them say a great deal, all of which passes
        # (our subclasses of mode's services announce themselves too)
        for chatty in ("aiokafka", "faust", "mode", "streams.transport", "streams.changelog"):
            logging.getLogger(chatty).setLevel(logging.ERROR)
    run_dir = config.data_dir / "run"
    with claim_instance(run_dir, config.worker.instance_id) as instance_id:
        kafka = resolve_kafka(config)
        prepare(config, log.info)
        port = metrics.serve(config.worker.metrics_host, config.worker.metrics_port)
        status = run_dir / f"worker-{instance_id}.json"
        try:
            _write_status(status, instance_id, config, port)
        except OSError as error:
            log.warning(
                "%s cannot be written (%s): polarstream status will not see this worker", status, error
            )
        try:
            with asyncio.Runner(loop_factory=_new_event_loop) as runner:
                return runner.run(_run(config, kafka, instance_id))
        finally:
            with contextlib.suppress(OSError):
                status.unlink(missing_ok=True)


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _write_status(path: Path, instance_id: str, config: Config, port: int) -> None:
    state: dict[str, Any] = {
        "pid": os.getpid(),
        "instance_id": instance_id,
        "app_id": config.app_id,
        "metrics": f"http://{config.worker.metrics_host}:{port}/metrics",
        "started_at": time.time(),
    }
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(state))
    draft.replace(path)


async def _run(config: Config, kafka: KafkaConfig, instance_id: str) -> int:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows
            loop.add_signal_handler(number, stopping.set)
    while not stopping.is_set():
        started = time.monotonic()
        try:
            await _until_stopped(_serve(config, kafka, instance_id, stopping), stopping)
            return 0
        except BrokerUnavailable as error:
            log.warning("%s; trying again", error)
        except (KafkaError, RetryLater, OSError) as error:
            log.warning("%s: %s; starting again", type(error).__name__, error)
        except PolarstreamError:
            raise
        except Exception:
            log.exception("the worker failed; starting again")
        attempt = 0 if time.monotonic() - started > SETTLED_S else min(int(os.environ.get(ATTEMPT, 0)), 10)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), min(RESTART_S[0] * 2**attempt, RESTART_S[1]))
        if not stopping.is_set():
            _start_afresh(attempt + 1)
    return 0


async def _until_stopped(serving: Coroutine[Any, Any, None], stopping: asyncio.Event) -> None:
    """Await the service; once it is told to stop, for `STOP_S` at the most.

    The last checkpoint needs a broker. Where that is gone too, the next start makes up for it.
    """
    serve, stop = asyncio.create_task(serving), asyncio.create_task(stopping.wait())
    await asyncio.wait({serve, stop}, return_when=asyncio.FIRST_COMPLETED)
    if not serve.done():
        await asyncio.wait({serve}, timeout=STOP_S)
    stop.cancel()
    if serve.done():
        return serve.result()
    log.warning("no last checkpoint within %.0f s: the next start goes on from the one before", STOP_S)
    sys.stderr.flush()
    os._exit(0)  # nothing here is worth waiting for: connections that hang, tasks that wait for them


def _start_afresh(attempt: int) -> None:
    """Replace this process by the same command: no half-dead task, connection or lock survives."""
    os.environ[ATTEMPT] = str(attempt)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
