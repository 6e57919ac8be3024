"""What runs now: broker, workers, lag. Reads, changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from streams.errors import BrokerUnavailable

if TYPE_CHECKING:
    from polarstream.config import Config


class WorkerStatus(msgspec.Struct, frozen=True):
    """A worker process of this data folder."""

    instance_id: str
    pid: int
    metrics: str
    started_at: float
    app_id: str


class StreamLag(msgspec.Struct, frozen=True):
    """How far the workers are behind on one topic."""

    topic: str
    lag: int


class Status(msgspec.Struct, frozen=True):
    """All of it."""

    data_dir: str
    broker: str | None
    #: What is wrong with the broker; empty: nothing.
    broker_fault: str
    workers: list[WorkerStatus]
    lag: list[StreamLag]
    topics: list[Any]


def running_workers(data_dir: Path) -> list[WorkerStatus]:
    """The workers of this data folder that are alive, from the files that they write."""
    found: list[WorkerStatus] = []
    for path in sorted((data_dir / "run").glob("worker-*.json")):
        try:
            worker = msgspec.json.decode(path.read_bytes(), type=WorkerStatus)
        except (OSError, msgspec.DecodeError):
            continue  # it is being written, or ended this moment
        if _alive(worker):
            found.append(worker)
    return found


def _alive(worker: WorkerStatus) -> bool:
    import psutil

    try:
        process = psutil.Process(worker.pid)
        # a process id may be another's by now: that one started after the file was written
        return bool(
            process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= worker.started_at + 1
        )
    except psutil.Error:
        return False


async def gather_status(config: Config) -> Status:
    """Look at everything; a broker that is away is reported, not raised."""
    from polarstream.target import resolve_kafka
    from polarstream.topics import group_lag, list_topics

    workers = running_workers(config.data_dir)
    where, fault, lag, topics = None, "", [], []
    try:
        kafka = resolve_kafka(config)
        where = ", ".join(kafka.bootstrap_servers)
        topics = await list_topics(kafka)
        inputs = {stream.topic for stream in config.inputs}
        lags = await group_lag(kafka, config.app_id)
        lag = [StreamLag(x.topic, x.lag) for x in lags if x.topic in inputs]
    except BrokerUnavailable as error:
        fault = str(error)
    return Status(str(config.data_dir), where, fault, workers, lag, topics)
