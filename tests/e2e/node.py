"""A folder with a configuration, and the workers that run in it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer

from tests.e2e.cli import Cli


class WorkerNode:
    """Starts and kills workers, and reads what they write."""

    def __init__(self, folder: Path, bootstrap: str, prefix: str, config: str) -> None:
        self.cli = Cli(folder, bootstrap)
        (folder / "polarstream.toml").write_text(config)
        self.models = folder / "data" / "models"
        self.bootstrap, self.prefix = bootstrap, prefix
        self.workers: list[Any] = []

    def start(self) -> Any:
        worker = self.cli.start("worker")
        self.workers.append(worker)
        return worker

    def kill(self, worker: Any) -> None:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()

    def stop(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
            print(worker.communicate()[0].decode())

    async def read(self, topic: str, count: int, timeout_s: float = 60, quiet_s: float = 0) -> list[Any]:
        """The first messages of a topic that are committed, and what comes in `quiet_s` after them."""
        consumer = AIOKafkaConsumer(
            f"{self.prefix}{topic}",
            bootstrap_servers=self.bootstrap,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
        )
        await consumer.start()
        got: list[Any] = []
        deadline = time.monotonic() + timeout_s
        try:
            while len(got) < count and time.monotonic() < deadline:
                for messages in (await consumer.getmany(timeout_ms=200)).values():
                    got += messages
            end = time.monotonic() + quiet_s
            while time.monotonic() < end:
                for messages in (await consumer.getmany(timeout_ms=100)).values():
                    got += messages
        finally:
            await consumer.stop()
        return got
