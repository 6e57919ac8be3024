"""A small process between polarstream and the Java runtime: python supervise.py MODE CONSOLE COMMAND...

MODE `owned`: the command lives only as long as our standard input stays open and our parent lives,
so that a parent that is killed takes its broker along on every system. MODE `detached`: the command
gets a session of its own, and we end at once, so that it is nobody's child.

Prints the command's process id on a line. Imports nothing of polarstream: it starts in 30 ms and
stays small.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

_GRACE_S = 15
_LOOK_S = 1.0


def main(mode: str, console: str, command: list[str]) -> int:
    """Run the command until it ends or our parent does; returns its exit code."""
    if sys.platform == "win32":
        flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
    else:
        flags = 0
        # Ctrl-C in a terminal reaches the whole group; who owns us stops us in order
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    with open(console, "wb") as output:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                creationflags=flags,
                preexec_fn=_die_with_us() if mode == "owned" else None,
            )
        except OSError as error:
            output.write(f"ERROR {error}\n".encode())
            return 1
    print(process.pid, flush=True)
    if mode == "detached":
        process.returncode = 0  # it is init's now: no warning that it still runs
        return 0
    return _watch(process)


def _watch(process: subprocess.Popen[bytes]) -> int:
    parent = os.getppid()
    over = threading.Event()
    for wait in (process.wait, lambda: sys.stdin.buffer.read()):
        threading.Thread(target=_then_set, args=(wait, over), daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    while not over.wait(_LOOK_S):
        if os.getppid() != parent:  # another process may have inherited our pipe
            break
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def _then_set(wait: Callable[[], object], over: threading.Event) -> None:
    wait()
    over.set()


def _die_with_us() -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    pr_set_pdeathsig = 1

    def ask() -> None:
        libc.prctl(pr_set_pdeathsig, signal.SIGTERM)

    return ask


if __name__ == "__main__":
    # a daemon thread may sit in a read of standard input, which a normal exit would wait for
    code = main(sys.argv[1], sys.argv[2], sys.argv[3:])
    sys.stdout.flush()
    os._exit(code & 0xFF)
