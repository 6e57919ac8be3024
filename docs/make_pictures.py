"""Make the pictures of the documentation from a real run: `python docs/make_pictures.py`.

Runs `polarstream up` in a data folder of its own for about two minutes, reads the predictions and alerts
beside it, and writes the live table as it then stands to `docs/images/live.svg`.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path

from rich.console import Console

from polarstream.broker import running_bootstrap
from polarstream.live import Board, follow, render
from streams.config import KafkaConfig

IMAGES = Path(__file__).parent / "images"
WIDTH, HEIGHT = 92, 34
#: What this machine is called in the picture.
HOST = b"edge-1"
NOTES = (
    "broker 127.0.0.1:41857   metrics http://127.0.0.1:35211/metrics",
    "data ~/.local/share/polarstream   logs ~/.local/share/polarstream/logs",
    "Ctrl-C stops all of it; the data stays",
)


class PictureBoard(Board):
    """A board on which this machine has another name."""

    def _renamed(self, values: Iterable[bytes | None]) -> list[bytes | None]:
        own = socket.gethostname().split(".")[0].encode()
        return [value and value.replace(own, HOST) for value in values]

    def add_predictions(self, values: Sequence[bytes | None], now: float) -> None:
        """See `Board.add_predictions`."""
        super().add_predictions(self._renamed(values), now)

    def add_alerts(self, values: Iterable[bytes | None]) -> None:
        """See `Board.add_alerts`."""
        super().add_alerts(self._renamed(values))


def wait_for_broker(data_dir: Path) -> KafkaConfig:
    """Wait until the broker of the run answers and its topics are made."""
    while (bootstrap := running_bootstrap(data_dir)) is None:
        time.sleep(0.5)
    time.sleep(5)
    return KafkaConfig(bootstrap_servers=[bootstrap])


async def watch(kafka: KafkaConfig, least_s: float, most_s: float) -> Board:
    """Follow the run until alerts of both states are there, or for `most_s` seconds."""
    board, started = PictureBoard(), time.monotonic()
    task = asyncio.create_task(follow(board, kafka, "predictions", "alerts"))
    while (passed := time.monotonic() - started) < most_s:
        await asyncio.sleep(0.2)
        states = {alert.state for alert in board.alerts(20)}
        if passed > least_s and len(states) == 2 and len(board.alerts(20)) > 4:
            break
    task.cancel()
    return board


def to_svg(board: Board) -> str:
    """Draw the table; the fonts are those of the viewer, so that the file asks the net for nothing."""
    console = Console(
        record=True,
        width=WIDTH,
        height=HEIGHT,
        file=StringIO(),
        force_terminal=True,
        color_system="truecolor",
    )
    console.print(render(board, "polarstream", NOTES, time.time(), HEIGHT))
    svg = console.export_svg(title="make run")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    return re.sub(r"[ \t]+\n", "\n", svg.replace("Fira Code, monospace", "monospace"))


def main() -> None:
    """Run, watch, draw, stop."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "POLARSTREAM_DATA_DIR": folder}
        up = subprocess.Popen(
            [sys.executable, "-m", "polarstream", "up", "--plain"], env=environment, stdout=subprocess.DEVNULL
        )
        try:
            board = asyncio.run(watch(wait_for_broker(Path(folder)), least_s=90, most_s=400))
            IMAGES.mkdir(exist_ok=True)
            (IMAGES / "live.svg").write_text(to_svg(board), encoding="utf-8")
        finally:
            up.send_signal(signal.SIGINT)
            up.wait(60)


if __name__ == "__main__":
    main()
