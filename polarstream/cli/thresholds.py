"""`polarstream thresholds`: rules that are changed while workers run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from polarstream.cli.options import ConfigOption, JsonOption, examples, load_kafka
from polarstream.cli.output import print_json, print_json_line, print_table
from streams.errors import UsageError

if TYPE_CHECKING:
    from streams.control import ThresholdRule

app = typer.Typer(help="Threshold rules: list, set, unset, while workers run.", no_args_is_help=True)

RuleId = Annotated[str, typer.Argument(metavar="ID", help="Names the rule.")]
_PLACES = ("stream", "site", "sensor_type", "sensor", "field")


@app.command("list", epilog=examples("polarstream thresholds list", "polarstream thresholds list --json"))
def list_(config: ConfigOption = None, json: JsonOption = False) -> None:
    """List the rules in force, of the configuration and of the control topic; the most specific first."""
    from anomaly.thresholds import specificity
    from polarstream.control import read_control
    from streams.control import ThresholdRule

    loaded, kafka = load_kafka(config)
    rules: list[tuple[str, str, ThresholdRule]] = [
        (
            f"{stream.name}[{i}]",
            "configuration",
            ThresholdRule(**{**msgspec.structs.asdict(rule), "stream": stream.name}),
        )
        for stream in loaded.streams
        for i, rule in enumerate(stream.thresholds)
    ]
    control = asyncio.run(read_control(loaded, kafka)).thresholds
    rules += [(name, "control", rule) for name, rule in control.items()]
    # of equals the later one counts
    rules.reverse()
    rules.sort(key=lambda item: specificity(item[2]), reverse=True)
    if json:
        for name, origin, rule in rules:
            print_json_line({"id": name, "from": origin, "rule": rule})
        return
    if not rules:
        print("no rules: the detectors' own thresholds hold")
        return
    rows = [(name, origin, _places(rule), _settings(rule)) for name, origin, rule in rules]
    print_table(("ID", "FROM", "WHERE", "WHAT"), rows)


@app.command(
    "set",
    epilog=examples(
        'polarstream thresholds set hot --stream plant --field temperature --sensor "boiler-*" --high 90',
        "polarstream thresholds set quiet --site hall-2 --budget-per-day 5",
        "polarstream thresholds set noisy --sensor pump-7 --adaptive 10000",
    ),
)
def set_(
    identity: RuleId,
    stream: Annotated[str, typer.Option(help="Pattern of stream names.")] = "*",
    site: Annotated[str, typer.Option(help="Pattern of sites.")] = "*",
    sensor_type: Annotated[str, typer.Option("--type", help="Pattern of sensor types.")] = "*",
    sensor: Annotated[str, typer.Option(help="Pattern of sensor ids.")] = "*",
    field: Annotated[str, typer.Option(help="Pattern of fields.")] = "*",
    low: Annotated[float | None, typer.Option(help="Anomalous below, in the field's unit.")] = None,
    high: Annotated[float | None, typer.Option(help="Anomalous above.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Score, in the detector's unit.")] = None,
    once_in: Annotated[float | None, typer.Option(help="Anomalous if so strange once in N readings.")] = None,
    adaptive: Annotated[float | None, typer.Option(help="Follow the sensor: once in N of its own.")] = None,
    budget_per_day: Annotated[float | None, typer.Option(help="Alerts in 24 h at the most.")] = None,
    budget_by: Annotated[str, typer.Option(help="rule, site or sensor: who shares the budget.")] = "rule",
    severity: Annotated[str | None, typer.Option(help="info, warning or critical.")] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Set a rule; workers take it up within a second. One of the same id is replaced."""
    from polarstream.control import write_control
    from streams.control import ThresholdRule

    given: dict[str, Any] = {
        "stream": stream,
        "site": site,
        "sensor_type": sensor_type,
        "sensor": sensor,
        "field": field,
        "low": low,
        "high": high,
        "threshold": threshold,
        "once_in": once_in,
        "adaptive": adaptive,
        "budget_per_day": budget_per_day,
        "budget_by": budget_by,
        "severity": severity,
    }
    try:
        rule = msgspec.convert(given, ThresholdRule)
    except msgspec.ValidationError as error:
        raise UsageError(f"{identity}: {str(error)[:1].lower()}{str(error)[1:]}") from error
    loaded, kafka = load_kafka(config)
    key = asyncio.run(write_control(loaded, kafka, "threshold", identity, rule))
    if json:
        print_json({"key": key, "record": rule})
    else:
        print(f"set {key}: {_settings(rule)} for {_places(rule)}")


@app.command(epilog=examples("polarstream thresholds unset hot"))
def unset(identity: RuleId, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Take a rule back; what the configuration says holds again."""
    from polarstream.control import read_control, write_control

    loaded, kafka = load_kafka(config)

    async def run() -> str:
        known = (await read_control(loaded, kafka)).thresholds
        if identity not in known:
            told = ", ".join(known) or "none"
            raise UsageError(f"there is no rule '{identity}' in the control topic, there is: {told}")
        return await write_control(loaded, kafka, "threshold", identity, None)

    key = asyncio.run(run())
    if json:
        print_json({"key": key, "record": None})
    else:
        print(f"removed {key}")


def _places(rule: ThresholdRule) -> str:
    found = [f"{name}={getattr(rule, name)}" for name in _PLACES if getattr(rule, name) != "*"]
    return " ".join(found) or "everything"


def _settings(rule: ThresholdRule) -> str:
    values = msgspec.structs.asdict(rule)
    names = ("low", "high", "threshold", "once_in", "adaptive", "budget_per_day", "severity")
    found = [f"{name}={values[name]}" for name in names if values[name] is not None]
    if rule.budget_per_day is not None:
        found.append(f"budget_by={rule.budget_by}")
    return " ".join(found)
