from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from polarstream.supervisor import Backoff, Child, ChildSpec, describe_exit


def test_pauses_double_up_to_the_longest_and_start_anew_after_a_good_run() -> None:
    backoff = Backoff(first_s=1, longest_s=5, good_after_s=60)
    assert [backoff.pause_s(0.1) for _ in range(5)] == [1, 2, 4, 5, 5]
    assert backoff.pause_s(61) == 1
    assert backoff.pause_s(0.1) == 2


def test_exits_are_told_in_words() -> None:
    assert describe_exit(69) == "exit code 69"
    assert describe_exit(-9) == "killed by SIGKILL"
    assert describe_exit(-99) == "killed by signal 99"


def spec(tmp_path: Path, code: str, grace_s: float = 10.0) -> ChildSpec:
    return ChildSpec("job", [sys.executable, "-c", code], tmp_path / "job.log", grace_s=grace_s)


async def until(path: Path, text: str) -> None:
    async with asyncio.timeout(15):
        while not (path.exists() and text in path.read_text()):
            await asyncio.sleep(0.02)


async def test_a_child_that_dies_is_started_again_and_its_last_words_told(tmp_path: Path) -> None:
    said: list[str] = []
    code = (
        "import pathlib, sys, time\n"
        f"p = pathlib.Path({str(tmp_path / 'runs')!r})\n"
        "p.write_text((p.read_text() if p.exists() else '') + 'x')\n"
        "if len(p.read_text()) < 3: print('error: no luck', flush=True); print('bye'); sys.exit(3)\n"
        "print('settled', flush=True); time.sleep(60)"
    )
    child = Child(spec(tmp_path, code), said.append, Backoff(0.01, 0.02))
    task = asyncio.create_task(child.run())
    await until(tmp_path / "job.log", "settled")
    assert child.restarts == 2
    assert said[0] == "job ended (exit code 3), starting again in 0.01 s; its last words: error: no luck"
    pid = child.pid
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert pid is not None
    assert not psutil.pid_exists(pid)
    assert child.pid is None


async def test_a_child_that_will_not_end_is_killed_with_its_children(tmp_path: Path) -> None:
    said: list[str] = []
    code = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "grandchild = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print('ready', grandchild.pid, flush=True); time.sleep(60)"
    )
    child = Child(spec(tmp_path, code, grace_s=0.2), said.append)
    task = asyncio.create_task(child.run())
    await until(tmp_path / "job.log", "\n")
    grandchild = int((tmp_path / "job.log").read_text().split()[1])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert said == ["job did not end within 0.2 s and is killed"]
    async with asyncio.timeout(10):
        while psutil.pid_exists(grandchild) and psutil.Process(grandchild).status() != psutil.STATUS_ZOMBIE:
            await asyncio.sleep(0.02)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
def test_children_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    child = (
        "import time\nfrom polarstream.lifeline import end_with_parent\n"
        "end_with_parent()\nprint('up', flush=True)\ntime.sleep(60)"
    )
    parent = (
        "import os, subprocess, sys, time\n"
        "env = {**os.environ, 'POLARSTREAM_PARENT_PID': str(os.getpid())}\n"
        f"p = subprocess.Popen([sys.executable, '-c', {child!r}], env=env, stdout=subprocess.PIPE)\n"
        "p.stdout.readline(); print(p.pid, flush=True); time.sleep(60)"
    )
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, cwd=root, start_new_session=True
    )
    assert process.stdout is not None
    with process.stdout as out:
        pid = int(out.readline())
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    psutil.wait_procs([p for p in psutil.process_iter() if p.pid == pid], timeout=10)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
