"""`polarstream thresholds`: rules that are changed while workers run, and proposed from labels."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from polarstream.cli.options import ConfigOption, JsonOption, examples, load_kafka
from polarstream.cli.output import print_json, print_json_line, print_table, progress_bar
from streams.errors import UsageError

if TYPE_CHECKING:
    from anomaly.feedback import Share
    from polarstream.proposals import Suggestion
    from streams.control import ThresholdRule

app = typer.Typer(help="Threshold rules: list, set, unset, propose, while workers run.", no_args_is_help=True)

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


@app.command(
    "propose",
    epilog=examples(
        "polarstream thresholds propose",
        "polarstream thresholds propose --stream plant --by field,type --from -30d",
        "polarstream thresholds propose --miss-cost 50 --apply",
    ),
)
def propose_(
    by: Annotated[
        str, typer.Option(help="What shares a threshold: field, type, site, sensor, or several.")
    ] = "field",
    stream: Annotated[str | None, typer.Option(help="Only this stream.")] = None,
    start: Annotated[
        str, typer.Option("--from", metavar="WHEN", help="History from: earliest, a time or ago (-30d).")
    ] = "earliest",
    miss_cost: Annotated[
        float, typer.Option(min=0.01, help="What a right alert that is lost costs, in false alarms.")
    ] = 10.0,
    apply: Annotated[bool, typer.Option("--apply", help="Set what is proposed.")] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Propose thresholds from labelled alerts, with what they do to past alerts; --apply sets them."""
    from polarstream.control import write_control
    from polarstream.proposals import propose_thresholds
    from polarstream.reader import parse_start

    loaded, kafka = load_kafka(config)
    names = [name.strip() for name in by.split(",") if name.strip()]

    async def run() -> list[Suggestion]:
        with progress_bar("predictions", show=not json) as move:
            found = await propose_thresholds(
                loaded,
                kafka,
                start=parse_start(start),
                by=names,
                miss_cost=miss_cost,
                stream=stream,
                progress=lambda count: move(count, 0, f"{count:,}"),
            )
        for one in found:
            if apply and one.rule is not None:
                await write_control(loaded, kafka, "threshold", one.identity, one.rule)
        return found

    found = asyncio.run(run())
    if json:
        for one in found:
            print_json_line(one.as_dict() | {"applied": apply and one.rule is not None})
        return
    if not found:
        print("no labelled alert: say of some whether they were right, with polarstream alerts label")
        return
    _print_proposals(found, apply)


def _print_proposals(found: list[Suggestion], applied: bool) -> None:
    rows = []
    for one in found:
        proposal = one.proposal
        if proposal is None:
            continue
        before, expected = proposal.before, proposal.expected
        rows.append(
            (
                " ".join(f"{name}={value}" for name, value in one.where.items()),
                f"{before.real}/{before.false}",
                _range(*one.now),
                f"{proposal.threshold:.4g} ({proposal.low:.4g} to {proposal.high:.4g})",
                f"{_percent(before.precision)} -> {_percent(expected.precision)}",
                f"{_percent(before.recall)} -> {_percent(expected.recall)}",
                f"{one.alerts} -> {one.alerts_after}",
            )
        )
    if rows:
        head = ("WHERE", "RIGHT/FALSE", "NOW", "PROPOSED", "PRECISION", "RECALL", "PAST ALERTS")
        print_table(head, rows)
        print("in brackets 90% intervals; what is expected was measured on labels that were left out")
    for one in found:
        if one.proposal is None:
            place = " ".join(f"{name}={value}" for name, value in one.where.items())
            print(f"nothing for {place} (threshold {_range(*one.now)}): {one.why}")
        if one.apart:
            print(f"{one.identity}: {one.apart} alerts are decided by more specific or adaptive rules")
    if rows:
        told = ", ".join(one.identity for one in found if one.rule is not None)
        print(f"set: {told}" if applied else "nothing is set: add --apply")


def _range(low: float, high: float) -> str:
    return f"{low:.4g}" if f"{low:.4g}" == f"{high:.4g}" else f"{low:.4g} to {high:.4g}"


def _percent(share: Share) -> str:
    if share.value != share.value:
        return "unknown"
    return f"{share.value:.0%} ({share.low:.0%} to {share.high:.0%})"


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
