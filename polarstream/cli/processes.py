"""`up`, `worker` and `sources`: the processes that run until they are told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from typing import Annotated

import typer

from polarstream.cli.options import ConfigOption, JsonOption, examples, load_config, load_kafka


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(
        epilog=examples(
            "polarstream up",
            "polarstream up --plain --for 60s",
            "polarstream up --workers 2 --source plant",
        )
    )(up)
    app.command(epilog=examples("polarstream worker", "polarstream worker --config site.toml"))(worker)
    app.command(epilog=examples("polarstream sources plant", "polarstream sources host plant"))(sources)


def up(
    config: ConfigOption = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")] = 1,
    source: Annotated[
        list[str] | None,
        typer.Option(help="camera, host or plant; repeatable. Default: those that a stream is named after."),
    ] = None,
    no_sources: Annotated[bool, typer.Option("--no-sources", help="Run no source.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="One line a second instead of the table.")] = False,
    for_: Annotated[
        str | None, typer.Option("--for", metavar="DURATION", help="End by itself after this long.")
    ] = None,
    json: JsonOption = False,
) -> int:
    """Run all of it on this machine: broker, worker, live sources, live view. Ctrl-C stops it."""
    from polarstream.times import parse_duration
    from polarstream.up import UpOptions, run

    options = UpOptions(
        config_path=config,
        workers=workers,
        sources=() if no_sources else source,
        view="json" if json else "plain" if plain else "table",
        for_s=parse_duration(for_) if for_ else None,
    )
    return run(load_config(config), options)


def worker(config: ConfigOption = None) -> int:
    """Run a worker: readings in, predictions and alerts out. SIGTERM or Ctrl-C ends it in order."""
    from polarstream.lifeline import end_with_parent

    end_with_parent()
    from polarstream.worker import run

    return run(load_config(config))


def sources(
    names: Annotated[list[str], typer.Argument(help="camera, host (this machine), plant (simulated).")],
    config: ConfigOption = None,
) -> int:
    """Publish live readings of the built-in sources until stopped."""
    from polarstream.lifeline import end_with_parent

    end_with_parent()
    from polarstream.up import run_sources

    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("aiokafka").setLevel(logging.ERROR)
    loaded, kafka = load_kafka(config)

    async def run() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.create_task(run_sources(loaded, kafka, names))
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(run())
    return 0
