"""`polarstream config`: check a configuration, write a first one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polarstream.cli.options import ConfigOption, JsonOption, examples, load_config
from polarstream.cli.output import print_json
from streams.errors import ConfigError, UsageError

app = typer.Typer(help="Configuration: check it, write a first one.", no_args_is_help=True)


@app.command(epilog=examples("polarstream config check", "polarstream config check -c site.toml --json"))
def check(config: ConfigOption = None, json: JsonOption = False) -> int:
    """Check the whole configuration, environment included, and list every fault with its path."""
    try:
        loaded = load_config(config)
    except ConfigError as error:
        if json:
            print_json(
                {"valid": False, "faults": [{"path": f.path, "message": f.message} for f in error.faults]}
            )
            return error.exit_code
        raise
    if json:
        print_json({"valid": True, "faults": []})
        return 0
    where = ", ".join(loaded.kafka.bootstrap_servers) or "the local broker"
    print(f"valid: {len(loaded.streams)} streams on {where}, data in {loaded.data_dir}")
    for stream in loaded.streams:
        fields = ", ".join(f"{n} {f.unit}".strip() for n, f in stream.fields.items())
        detector = stream.detector.get("type", "?")
        print(f"  {stream.name}: topic {stream.topic}, detector {detector}, fields {fields}")
    return 0


@app.command(
    epilog=examples(
        "polarstream config init", "polarstream config init site.toml", "polarstream config init -"
    )
)
def init(
    path: Annotated[Path, typer.Argument(help="File to write; - for stdout.")] = Path("polarstream.toml"),
    force: Annotated[bool, typer.Option("--force", help="Write over a file that exists.")] = False,
    json: JsonOption = False,
) -> None:
    """Write a commented configuration to start from."""
    from polarstream.config_template import TEMPLATE

    if str(path) == "-":
        print(TEMPLATE, end="")
        return
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(TEMPLATE)
    except FileExistsError:
        raise UsageError(f"'{path}' exists: name another file, or use --force") from None
    except OSError as error:
        raise UsageError(f"cannot write '{path}': {error.strerror}") from error
    if json:
        print_json({"written": str(path)})
    else:
        print(f"wrote {path}: edit it, then polarstream config check")
