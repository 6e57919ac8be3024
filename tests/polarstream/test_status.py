from __future__ import annotations

import json
import os
import time
from pathlib import Path

from polarstream.status import gather_status, running_workers


def write(folder: Path, name: str, **fields: object) -> None:
    run = folder / "run"
    run.mkdir(exist_ok=True)
    state = {"pid": os.getpid(), "instance_id": name, "app_id": "a", "metrics": "http://x/metrics", **fields}
    (run / f"worker-{name}.json").write_text(json.dumps({"started_at": time.time(), **state}))


def test_only_workers_that_live_are_shown(tmp_path: Path) -> None:
    write(tmp_path, "alive")
    write(tmp_path, "gone", pid=2**22 + 1)
    write(tmp_path, "reused", started_at=1000.0)  # its process id is another's by now
    (tmp_path / "run" / "worker-half.json").write_text('{"pid"')
    assert [worker.instance_id for worker in running_workers(tmp_path)] == ["alive"]
    assert running_workers(tmp_path / "none") == []


async def test_a_broker_that_is_away_is_reported_with_the_rest(tmp_path: Path) -> None:
    from polarstream.config import load

    write(tmp_path, "alive")
    config = load(None, {"POLARSTREAM_DATA_DIR": str(tmp_path)})
    found = await gather_status(config)
    assert found.broker is None
    assert "not running" in found.broker_fault
    assert [worker.instance_id for worker in found.workers] == ["alive"]
