"""What commands print: JSON for programs, plain tables for people."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import msgspec


def print_json(value: Any) -> None:
    """One JSON document on one line; bytes that JSON cannot hold must be made readable before."""
    sys.stdout.write(msgspec.json.encode(value, enc_hook=str).decode() + "\n")


def print_json_line(value: Any) -> None:
    """One line of a stream of JSON, shown at once."""
    print_json(value)
    sys.stdout.flush()


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Aligned columns; numbers to the right. Never cut, so that it can be piped on."""
    cells = [[_text(cell) for cell in row] for row in rows]
    widths = [max(len(name), *(len(row[i]) for row in cells), 0) for i, name in enumerate(columns)]
    right = [all(isinstance(row[i], int | float) for row in rows) and bool(rows) for i in range(len(columns))]
    for line in [list(columns), *cells]:
        padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)]
        print("  ".join(padded).rstrip())


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


class Progress(Protocol):
    """Moves a progress bar."""

    def __call__(self, done: float, total: float, note: str) -> None:
        """Set what is done of the total (0: not known), with a word on it."""
        ...


@contextmanager
def progress_bar(label: str, *, show: bool) -> Iterator[Progress]:
    """A bar on stderr where that is a terminal; else nothing at all."""
    if not show or not sys.stderr.isatty():
        yield lambda done, total, note: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    with bar:
        task = bar.add_task(label, total=None, note="")

        def move(done: float, total: float, note: str) -> None:
            bar.update(task, completed=done, total=total or None, note=note)

        yield move


def _text(cell: Any) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return f"{cell:,}".replace(",", " ") if isinstance(cell, int) else str(cell)
