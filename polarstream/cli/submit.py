"""`submit`: one request to a model."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from polarstream.cli.options import ConfigOption, JsonOption, examples, load_kafka
from polarstream.cli.output import print_json


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(
        epilog=examples(
            "polarstream submit animals cat.jpg",
            "polarstream submit pumps@3 window.json --timeout 5s --json",
            "polarstream submit embedder vector.npy",
        )
    )(submit)


def submit(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model or an alias, or name@version.")],
    file: Annotated[Path, typer.Argument(help="A picture, an array (.npy) or a list of readings (.json).")],
    timeout: Annotated[str, typer.Option(help="How long an answer is of use, such as 5s or 500ms.")] = "30s",
    config: ConfigOption = None,
    json: JsonOption = False,
) -> int:
    """Ask a model that workers serve (with requests.enabled), and print its answer."""
    from polarstream.submit import submit_file
    from polarstream.times import parse_duration

    loaded, kafka = load_kafka(config)
    result = asyncio.run(submit_file(loaded, kafka, model, file, parse_duration(timeout)))
    if json:
        print_json(result)
        return 0
    answer = result.answer or {}
    for name, value in answer.items():
        shown = [f"{k} {v}" for k, v in value.items()] if isinstance(value, dict) else [str(value)]
        print(f"{name}: {', '.join(shown)}")
    print(
        f"{result.model}@{result.version} on {result.device}: "
        f"{result.latency_ms:.1f} ms, {result.compute_ms:.1f} of them computing"
    )
    return 0
