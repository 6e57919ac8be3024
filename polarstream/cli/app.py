"""The root of the commands. Everything slow is imported by the command that needs it."""

from __future__ import annotations

import sys

import typer

from polarstream.cli import (
    accuracy,
    alerts,
    backtest,
    bench,
    broker,
    checks,
    configuration,
    dlq,
    evaluate,
    forecast,
    gpu,
    models,
    optimize,
    processes,
    records,
    submit,
    thresholds,
    topics,
)

EPILOG = (
    "Exit codes: 0 done, 1 fault, 2 wrong usage or configuration, 65 bad input, 69 no broker, "
    "70 a person must mend it, 75 try later, 130 Ctrl-C."
)

app = typer.Typer(
    name="polarstream",
    help="Streaming analytics on Kafka: readings in, predictions and alerts out.\n\n"
    "Start with: polarstream up",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"polarstream {version('polarstream')} (Python {sys.version.split()[0]})")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", is_eager=True, callback=_version, help="Show the version and end."
    ),
    debug: bool = typer.Option(False, "--debug", help="Show tracebacks; works after any command too."),
) -> None:
    """`main` takes `--debug` out of the arguments; it stands here for the help."""


processes.register(app)
records.register(app)
submit.register(app)
backtest.register(app)
checks.register(app)
gpu.register(app)
forecast.register(app)
accuracy.register(app)
optimize.register(app)
app.add_typer(broker.app, name="broker")
app.add_typer(topics.app, name="topics")
app.add_typer(dlq.app, name="dlq")
app.add_typer(alerts.app, name="alerts")
app.add_typer(alerts.maintenance, name="maintenance")
app.add_typer(thresholds.app, name="thresholds")
app.add_typer(configuration.app, name="config")
app.add_typer(bench.app, name="bench")
app.add_typer(evaluate.app, name="eval")
app.add_typer(models.app, name="models")
