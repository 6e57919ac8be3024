"""One process at a time in a folder, with a lock that dies with its holder."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streams.errors import RetryLater

_POLL_S = 0.05


@contextmanager
def folder_lock(folder: Path, timeout_s: float = 600) -> Iterator[None]:
    """Hold a folder that exists; the kernel lets go when the process ends, however it ends.

    On POSIX the lock lies on the folder itself, so that no file is left behind.

    Raises:
        RetryLater: another process still holds it after `timeout_s`.
    """
    if sys.platform == "win32":
        import msvcrt

        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)

        def take() -> None:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)

        def take() -> None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    try:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                take()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise RetryLater(
                        f"another process has held {folder} for {timeout_s:g} s: wait for it or end it"
                    ) from None
                time.sleep(_POLL_S)
        yield
    finally:
        os.close(handle)
