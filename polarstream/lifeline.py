"""A child process that ends when its parent does, however the parent ended."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from typing import Final

#: The process id of the supervisor, in the environment of its children.
PARENT_VARIABLE: Final = "POLARSTREAM_PARENT_PID"
_POLL_S: Final = 1.0
_PR_SET_PDEATHSIG: Final = 1


def end_with_parent() -> None:
    """Let this process get SIGTERM when the supervisor that started it is gone; nothing without one."""
    text = os.environ.get(PARENT_VARIABLE, "")
    if not text.isdigit() or sys.platform == "win32":
        return
    parent = int(text)
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(OSError):
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() == parent:
                return
    # no such call here, or the parent went before it was made: look for it now and then
    threading.Thread(target=_watch, args=(parent,), name="polarstream-lifeline", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)
