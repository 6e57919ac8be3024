"""How a first start tells what it is waiting for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
from rich.progress import Progress as RichProgress

#: Called with (what, done, total) in bytes. A step of unknown size has total 0: done is 0 at its start
#: and 1 at its end.
Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """Report nothing."""


@contextmanager
def download_bar(console: Console | None = None) -> Iterator[Progress]:
    """Show the download of the jars as a bar on standard error, and nothing when there is none.

    Args:
        console: where to draw; standard error by default.

    Yields:
        The callback for `LocalBroker.start(progress=...)`. It may be called from any thread.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    bar = RichProgress(*columns, console=console or Console(stderr=True))
    tasks: dict[str, int] = {}

    def report(what: str, done: int, total: int) -> None:
        if not total:
            if not done:
                bar.console.print(f"{what} ...")
            return
        if what not in tasks:
            if not tasks:
                bar.start()
            tasks[what] = int(bar.add_task(what, total=total))
        bar.update(tasks[what], completed=done)  # type: ignore[arg-type]

    try:
        yield report
    finally:
        if tasks:
            bar.stop()
