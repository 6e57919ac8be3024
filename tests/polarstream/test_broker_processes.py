"""Which processes a broker leaves, whatever ends its owner."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from polarstream.broker import LocalBroker, running_bootstrap
from polarstream.broker.process import ProcessId
from polarstream.broker.runtime import QUICK

OwnBroker = Callable[..., LocalBroker]

OWNER = """
import sys
from pathlib import Path
from polarstream.broker import LocalBroker
from polarstream.broker.runtime import QUICK

broker = LocalBroker(Path(sys.argv[1]), jvm_options=QUICK)
print(broker.start(detached=sys.argv[2] == "detached").pid, flush=True)
sys.stdin.read()
"""


def processes_of(folder: Path) -> list[psutil.Process]:
    """Live processes whose command line names a file of this folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(folder) in part for part in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Callable[[str], tuple[subprocess.Popen[str], psutil.Process]]]:
    """Start a process that starts a broker."""
    made: list[subprocess.Popen[str]] = []

    def make(mode: str) -> tuple[subprocess.Popen[str], psutil.Process]:
        process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(tmp_path), mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        made.append(process)
        assert process.stdout is not None
        return process, psutil.Process(int(process.stdout.readline()))

    yield make
    LocalBroker(tmp_path).stop()
    for process in made:
        process.kill()
        process.communicate()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_owned_broker_ends_with_a_killed_owner(
    owner: Callable[[str], tuple[subprocess.Popen[str], psutil.Process]], tmp_path: Path
) -> None:
    process, broker = owner("owned")
    process.send_signal(signal.SIGKILL)
    psutil.wait_procs([broker], timeout=20)
    assert not broker.is_running() or broker.status() == psutil.STATUS_ZOMBIE
    psutil.wait_procs(processes_of(tmp_path / "broker"), timeout=20)
    assert processes_of(tmp_path / "broker") == []
    assert running_bootstrap(tmp_path) is None


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_detached_broker_outlives_its_owner_and_any_object_stops_it(
    owner: Callable[[str], tuple[subprocess.Popen[str], psutil.Process]], tmp_path: Path
) -> None:
    process, broker = owner("detached")
    process.send_signal(signal.SIGKILL)
    process.wait()
    other = LocalBroker(tmp_path)
    assert other.status().pid == broker.pid
    assert other.status().detached
    assert other.stop()
    assert running_bootstrap(tmp_path) is None
    assert processes_of(tmp_path / "broker") == [process] or not processes_of(tmp_path / "broker")


def test_two_starts_at_once_make_one_broker_and_a_stop_leaves_no_process(own_broker: OwnBroker) -> None:
    own = own_broker(start=False)
    folder = own.status().folder
    other = LocalBroker(folder.parent, jvm_options=QUICK)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(LocalBroker.start, [own, other])
    assert first.pid == second.pid
    assert {first.attached, second.attached} == {True, False}
    assert len(processes_of(folder)) == 2  # the supervisor and Java
    own.stop()
    other.stop()
    assert processes_of(folder) == []


def test_process_id_that_another_process_has_now_is_not_ours() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()", "mark"], stdin=subprocess.PIPE) as child:
        found = ProcessId.of(child.pid, "mark")
        assert found is not None
        assert found.alive()
        # until the new program runs, its command line is still ours
        deadline = time.monotonic() + 10
        while "mark" not in psutil.Process(child.pid).cmdline() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not ProcessId(child.pid, found.started - 1000, "other").alive()
        # the wall clock was set since: the start time moved, the command line did not
        assert ProcessId(child.pid, found.started - 1000, "mark").alive()
        child.kill()
    assert not found.alive()
    assert found.end(1)
    assert ProcessId.of(2**22 + 12345, "mark") is None


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_process_that_ignores_the_request_is_killed() -> None:
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); input()"
    command = [sys.executable, "-c", stubborn]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        found = ProcessId.of(child.pid, stubborn)
        assert found is not None
        assert not found.end(0.2)
        assert not found.alive()
