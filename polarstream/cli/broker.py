"""`polarstream broker`: the local Kafka broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from polarstream.cli.options import ConfigOption, JsonOption, examples, load_config
from polarstream.cli.output import print_json
from streams.errors import UsageError

if TYPE_CHECKING:
    from polarstream.broker import LocalBroker

app = typer.Typer(help="The local broker: start, stop, status.", no_args_is_help=True)


@app.command(epilog=examples("polarstream broker start", "polarstream broker start --port 9092"))
def start(
    port: int = typer.Option(
        0, min=0, max=65_535, help="Port on loopback; 0: the one of last time, or a free one."
    ),
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Start Apache Kafka on this machine; it goes on running in the background."""
    from polarstream.broker import LocalBroker, download_bar, running_bootstrap

    loaded = load_config(config)
    if loaded.kafka.bootstrap_servers:
        raise UsageError(
            f"a broker is configured ({', '.join(loaded.kafka.bootstrap_servers)}): "
            "remove kafka.bootstrap_servers to use the local one"
        )
    bootstrap = running_bootstrap(loaded.data_dir)
    if bootstrap is None:
        broker = LocalBroker(loaded.data_dir, port=port or None)
        with download_bar() as progress:
            broker.start(progress=progress, detached=True)
        bootstrap = broker.bootstrap
        text = f"the local broker runs at {bootstrap}"
    else:
        text = f"the local broker runs already at {bootstrap}"
    if json:
        print_json({"bootstrap": bootstrap})
    else:
        print(text)


@app.command(epilog=examples("polarstream broker stop"))
def stop(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Stop the local broker; its data stays."""
    from polarstream.broker import running_bootstrap

    loaded = load_config(config)
    ran = running_bootstrap(loaded.data_dir) is not None
    _broker(config).stop()
    if json:
        print_json({"stopped": ran})
    else:
        print("the local broker is stopped" if ran else "the local broker was not running")


@app.command(epilog=examples("polarstream broker status --json"))
def status(config: ConfigOption = None, json: JsonOption = False) -> int:
    """Say whether the local broker runs and where. Exit code 69 when it does not."""
    found = _broker(config).status()
    if json:
        print_json(found)
    elif found.running:
        print(f"the local broker runs at {found.bootstrap}, process {found.pid}")
    else:
        print("the local broker is not running")
    return 0 if found.running else 69


def _broker(config: ConfigOption) -> LocalBroker:
    from polarstream.broker import LocalBroker

    return LocalBroker(load_config(config).data_dir)
