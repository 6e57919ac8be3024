from __future__ import annotations

import re
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from polarstream.demo import requirements
from polarstream.status import running_workers
from tests.e2e.cli import Cli


class Up:
    """A running `polarstream up`, its output and the processes that it has started."""

    def __init__(self, cli: Cli, *arguments: str) -> None:
        self.process = cli.start("up", "--plain", *arguments)
        self.lines: list[str] = []
        self.seen: dict[int, psutil.Process] = {}
        self._came = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as out:
            for line in out:
                with self._came:
                    self.lines.append(line.decode().rstrip())
                    self._came.notify_all()

    def wait_for(self, pattern: str, timeout_s: float = 90, after: int = 0) -> int:
        """Index of the first line from `after` on that has the pattern."""
        deadline = time.monotonic() + timeout_s
        with self._came:
            while True:
                for index, line in enumerate(self.lines[after:], after):
                    if re.search(pattern, line):
                        return index
                left = deadline - time.monotonic()
                assert left > 0, f"no {pattern!r} in {timeout_s} s:\n" + "\n".join(self.lines)
                self._came.wait(left)

    def predictions(self) -> int:
        with self._came:
            found = [int(n) for line in self.lines for n in re.findall(r" predictions (\d+) ", line)]
        return found[-1] if found else 0

    def wait_for_predictions(self, count: int, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while self.predictions() < count:
            left = deadline - time.monotonic()
            assert left > 0, f"no {count} predictions in {timeout_s} s:\n" + "\n".join(self.lines[-40:])
            with self._came:
                self._came.wait(left)

    def note_processes(self) -> None:
        for process in psutil.Process(self.process.pid).children(recursive=True):
            self.seen.setdefault(process.pid, process)

    def end(self, how: Callable[[], None]) -> int:
        self.note_processes()
        how()
        code = self.process.wait(60)
        self._reader.join(10)
        return code

    def left_over(self, timeout_s: float = 0) -> list[psutil.Process]:
        _, alive = psutil.wait_procs(list(self.seen.values()), timeout=timeout_s)
        return [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(10)
        assert self.process.stdin is not None
        self.process.stdin.close()
        for process in self.left_over(20):
            process.kill()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_up_shows_predictions_and_alerts_survives_deaths_and_leaves_nothing(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    data = tmp_path / "data"
    started = time.monotonic()
    up = Up(cli)
    try:
        up.wait_for(r"^metrics http://127\.0\.0\.1:\d+/metrics$", 60)
        up.wait_for(r"predictions [1-9]", 60)
        up.wait_for(r"alerts [1-9].* last: firing", 60)
        if requirements.missing():
            assert any("pip install 'polarstream[demo]'" in line for line in up.lines)
        else:
            up.wait_for(r"camera-\d: (Egyptian cat|tabby|espresso|moped|missile|tripod) 0\.\d\d", 60)
            assert any("putting the model efficientnet-lite0 into" in line for line in up.lines)
        assert time.monotonic() - started < 60
        [worker] = running_workers(data)
        with urllib.request.urlopen(worker.metrics, timeout=5) as page:
            assert b"polarstream_predictions_total" in page.read()
        assert "runs already" in cli.fails(2, "up", "--plain")

        up.note_processes()
        at = len(up.lines)
        psutil.Process(worker.pid).kill()
        up.wait_for(r"worker ended \(killed by SIGKILL\), starting again in 0\.5 s", 20, at)
        up.wait_for_predictions(up.predictions() + 400, 40)
        assert running_workers(data)[0].pid != worker.pid

        status = cli.json("broker", "status")
        at = len(up.lines)
        psutil.Process(status["pid"]).kill()
        up.wait_for("the local broker has died, starting it again", 20, at)
        up.wait_for_predictions(up.predictions() + 400, 60)

        assert up.end(lambda: up.process.send_signal(signal.SIGINT)) == 0
        assert "the data stays in" in up.lines[-1]
        assert up.left_over(0) == []
        assert running_workers(data) == []
        assert cli.json("broker", "stop") == {"stopped": False}
    finally:
        up.close()

    again = Up(cli)  # it goes on with what is there
    try:
        again.wait_for_predictions(1, 60)
        assert again.end(lambda: again.process.send_signal(signal.SIGTERM)) == 0
        assert again.left_over(0) == []
    finally:
        again.close()


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_up_that_is_killed_takes_all_of_it_along(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    up = Up(cli)
    try:
        up.wait_for(r"predictions [1-9]", 90)
        assert up.end(up.process.kill) == -signal.SIGKILL
        assert up.left_over(25) == []
    finally:
        up.close()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_up_that_is_stopped_while_it_starts_leaves_nothing(tmp_path: Path, how: signal.Signals) -> None:
    up = Up(Cli(tmp_path))
    try:
        up.wait_for("starting the local broker", 30)
        assert up.end(lambda: up.process.send_signal(how)) == 0
        assert up.left_over(10) == []
    finally:
        up.close()


def test_up_on_a_broker_that_is_configured_starts_none(
    tmp_path: Path, broker: str, topic_prefix: str
) -> None:
    p = topic_prefix
    settings = {
        f"POLARSTREAM_TOPICS__{k.upper()}": f"{p}{k}"
        for k in ("predictions", "alerts", "analytics", "dead_letter")
    }
    cli = Cli(tmp_path, broker, POLARSTREAM_APP_ID=f"{p}app", **settings)
    done = subprocess.run(
        cli.command("up", "--json", "--for", "4s", "--no-sources"),
        cwd=tmp_path,
        env=cli.environment,
        capture_output=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    assert len(lines) >= 3
    assert all(line.startswith('{"ts":') for line in lines)
    assert not (tmp_path / "data" / "broker").exists()
