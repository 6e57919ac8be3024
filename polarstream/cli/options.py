"""Options that many commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from polarstream.config import Config
    from streams.config import KafkaConfig

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="Configuration file. Without it: $POLARSTREAM_CONFIG, ./polarstream.toml, the built-in demo.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def load_config(path: Path | None) -> Config:
    """The configuration, checked whole."""
    from polarstream.config import load

    return load(path)


def load_kafka(path: Path | None) -> tuple[Config, KafkaConfig]:
    """The configuration and the broker that it means."""
    from polarstream.target import resolve_kafka

    config = load_config(path)
    return config, resolve_kafka(config)


def examples(*lines: str) -> str:
    """The epilog of a command's help."""
    return "Examples:\n\n\b\n" + "\n".join(f"  {line}" for line in lines)  # \b: not rewrapped
