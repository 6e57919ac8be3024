"""`polarstream alerts` and `polarstream maintenance`: what is wrong, and what people say of it."""

from __future__ import annotations

import asyncio
import getpass
import secrets
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polarstream.cli.options import ConfigOption, JsonOption, examples, load_kafka
from polarstream.cli.output import print_json, print_json_line, print_table
from streams.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from streams.control import ControlRecord

app = typer.Typer(help="Alerts: list, show, acknowledge, silence, label.", no_args_is_help=True)
maintenance = typer.Typer(help="Maintenance windows, in which alerts page nobody.", no_args_is_help=True)

AlertId = Annotated[str, typer.Argument(metavar="ID", help="Of an alert, or how it begins.")]
SensorOption = Annotated[str, typer.Option("--sensor", help="Pattern of sensor ids.")]
SiteOption = Annotated[str, typer.Option("--site", help="Pattern of sites.")]
StreamOption = Annotated[str, typer.Option("--stream", help="Pattern of stream names.")]
FieldOption = Annotated[str, typer.Option("--field", help="Pattern of fields.")]
RuleOption = Annotated[str, typer.Option("--rule", help="Pattern of rules: a detector, silent, group ...")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, for those who wonder.")]
NameOption = Annotated[str | None, typer.Option("--id", help="Its id; without it one is made.")]


@app.command(
    "list", epilog=examples("polarstream alerts list", "polarstream alerts list --all --from -1d --json")
)
def list_(
    all_: Annotated[bool, typer.Option("--all", help="Resolved ones too.")] = False,
    start: Annotated[
        str, typer.Option("--from", metavar="WHEN", help="earliest, a time or ago (-10m).")
    ] = "earliest",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="The last so many.")] = 50,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """List the alerts that are firing, the newest last."""
    from polarstream.control import read_alerts
    from polarstream.reader import parse_start
    from polarstream.times import format_time

    loaded, kafka = load_kafka(config)
    stories = asyncio.run(read_alerts(loaded, kafka, start=parse_start(start)))
    shown = [story for story in stories if all_ or story.last.state == "firing"][-limit:]
    if json:
        for story in shown:
            print_json_line(story.as_dict())
        return
    if not shown:
        print("no alerts" if all_ else "no alert is firing")
        return
    rows = [
        (
            story.last.id,
            format_time(story.last.started_at),
            story.last.state,
            story.last.severity,
            story.last.source,
            ", ".join(_marks(story)) or "-",
            story.opened.explanation,
        )
        for story in shown
    ]
    print_table(("ID", "BEGAN", "STATE", "SEVERITY", "SOURCE", "MARKS", "EXPLANATION"), rows)


@app.command(epilog=examples("polarstream alerts show ac0237eb", "polarstream alerts show ac0237eb --json"))
def show(identity: AlertId, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Show one alert whole."""
    from polarstream.control import find_alert
    from polarstream.times import format_time

    loaded, kafka = load_kafka(config)
    story = asyncio.run(find_alert(loaded, kafka, identity))
    if json:
        print_json(story.as_dict())
        return
    last = story.last
    print(f"alert     {last.id}\nstate     {last.state}, {last.severity}")
    print(f"source    {last.key}" + (f", field {last.field}" if last.field else ""))
    print(f"rule      {last.rule}: score {last.score:.4g}, threshold {last.threshold:.4g}")
    print(f"began     {format_time(last.started_at)}\nlast      {format_time(last.ts)}")
    print(f"readings  {last.count} anomalous, {story.messages} messages")
    print(f"opened    {story.opened.explanation}\nnow       {last.explanation}")
    for name, text in (
        ("marks", ", ".join(_marks(story))),
        ("group", last.group_id),
        ("members", ", ".join(story.members)),
    ):
        if text:
            print(f"{name:<9} {text}")


@app.command(
    epilog=examples("polarstream alerts ack ac0237eb", 'polarstream alerts ack ac0237eb --note "Ada"')
)
def ack(
    identity: AlertId,
    note: Annotated[str, typer.Option(help="A word on it.")] = "",
    undo: Annotated[bool, typer.Option("--undo", help="Take it back.")] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Acknowledge an alert, or a group of alerts: its further messages page nobody."""
    from streams.control import Acknowledgement

    record = None if undo else Acknowledgement(at=time.time(), by=_me(), note=note)
    _of_alert("ack", identity, record, config, json)


@app.command(
    epilog=examples(
        "polarstream alerts label ac0237eb --false-alarm", "polarstream alerts label ac0237eb --real"
    )
)
def label(
    identity: AlertId,
    false_alarm: Annotated[bool, typer.Option("--false-alarm", help="Nothing was wrong.")] = False,
    real: Annotated[bool, typer.Option("--real", help="Something was.")] = False,
    note: Annotated[str, typer.Option(help="A word on it.")] = "",
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Say whether an alert was right: what thresholds are proposed from."""
    from streams.control import Label

    if false_alarm is real:
        raise UsageError("say which: --false-alarm or --real")
    record = Label(false_alarm=false_alarm, at=time.time(), by=_me(), note=note)
    _of_alert("label", identity, record, config, json)


@app.command(
    epilog=examples(
        'polarstream alerts silence --sensor "pump-*" --for 2h --reason "new bearings"',
        "polarstream alerts silence --site hall-2 --until 2026-02-01T06:00:00Z",
        "polarstream alerts silence --remove a1b2c3",
    )
)
def silence(
    sensor: SensorOption = "*",
    site: SiteOption = "*",
    stream: StreamOption = "*",
    field: FieldOption = "*",
    rule: RuleOption = "*",
    for_: Annotated[str | None, typer.Option("--for", metavar="DURATION", help="90s, 2h, 1d.")] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Until a time.")] = None,
    reason: ReasonOption = "",
    identity: NameOption = None,
    remove: Annotated[str | None, typer.Option(metavar="ID", help="End a silence.")] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Silence alerts until a time. They live on, and are marked, so that sinks page nobody."""
    from polarstream.times import parse_duration
    from streams.control import Silence

    if remove is not None:
        _write("silence", remove, None, config, json)
        return
    if (for_ is None) is (until is None):
        raise UsageError("say how long: --for 2h, or --until a time")
    if {sensor, site, stream, field, rule} == {"*"}:
        raise UsageError("name what to silence: --sensor, --site, --stream, --field or --rule")
    end = time.time() + parse_duration(for_) if for_ is not None else _time(until or "")
    record = Silence(
        stream=stream, sensor=sensor, site=site, field=field, rule=rule, reason=reason, by=_me(), until=end
    )
    _write("silence", identity or secrets.token_hex(3), record, config, json)


@maintenance.command(
    epilog=examples(
        "polarstream maintenance add --site hall-2 --start 2026-02-01T06:00:00Z --end 2026-02-01T08:00:00Z",
        'polarstream maintenance add --sensor "pump-*" --for 2h',
    )
)
def add(
    sensor: SensorOption = "*",
    site: SiteOption = "*",
    stream: StreamOption = "*",
    field: FieldOption = "*",
    rule: RuleOption = "*",
    start: Annotated[str | None, typer.Option(metavar="TIME", help="From when; now without it.")] = None,
    end: Annotated[str | None, typer.Option(metavar="TIME", help="Until when.")] = None,
    for_: Annotated[str | None, typer.Option("--for", metavar="DURATION", help="How long.")] = None,
    reason: ReasonOption = "",
    identity: NameOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Announce work on sensors: alerts whose event time is in it are marked as silenced."""
    from polarstream.times import parse_duration
    from streams.control import Maintenance

    if (for_ is None) is (end is None):
        raise UsageError("say how long: --for 2h, or --end with a time")
    begin = time.time() if start is None else _time(start)
    stop = begin + parse_duration(for_) if for_ is not None else _time(end or "")
    record = Maintenance(
        stream=stream,
        sensor=sensor,
        site=site,
        field=field,
        rule=rule,
        reason=reason,
        by=_me(),
        start=begin,
        end=stop,
    )
    _write("maintenance", identity or secrets.token_hex(3), record, config, json)


@maintenance.command(
    "list", epilog=examples("polarstream maintenance list", "polarstream maintenance list --json")
)
def list_windows(
    all_: Annotated[bool, typer.Option("--all", help="Those that are over too.")] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """List maintenance windows and silences."""
    from polarstream.control import read_control
    from polarstream.times import format_time

    loaded, kafka = load_kafka(config)
    state = asyncio.run(read_control(loaded, kafka))
    now = time.time()
    found: list[tuple[str, float, float, Any]] = [
        (f"maintenance/{name}", window.start, window.end, window)
        for name, window in state.maintenance.items()
    ]
    found += [(f"silence/{name}", 0.0, record.until, record) for name, record in state.silences.items()]
    found = sorted((item for item in found if all_ or item[2] > now), key=lambda item: item[1:3])
    if json:
        for key, _, _, record in found:
            print_json_line({"key": key, "record": record})
        return
    if not found:
        print("no maintenance window and no silence")
        return
    rows = []
    for key, begin, stop, record in found:
        patterns = {name: getattr(record, name) for name in ("stream", "site", "sensor", "field", "rule")}
        scope = " ".join(f"{name}={pattern}" for name, pattern in patterns.items() if pattern != "*")
        since = format_time(begin) if begin else "-"
        rows.append((key, since, format_time(stop), scope or "everything", record.by, record.reason))
    print_table(("KEY", "START", "END", "WHAT", "BY", "REASON"), rows)


@maintenance.command(epilog=examples("polarstream maintenance remove a1b2c3"))
def remove(
    identity: Annotated[str, typer.Argument(metavar="ID", help="Of the window.")],
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """End a maintenance window, or call it off."""
    _write("maintenance", identity.removeprefix("maintenance/"), None, config, json)


def _of_alert(
    kind: str, identity: str, record: ControlRecord | None, config: Path | None, json: bool
) -> None:
    from polarstream.control import find_alert

    loaded, kafka = load_kafka(config)
    story = asyncio.run(find_alert(loaded, kafka, identity))
    _write(kind, story.last.id, record, config, json)


def _write(kind: str, identity: str, record: ControlRecord | None, config: Path | None, json: bool) -> None:
    from polarstream.control import write_control

    loaded, kafka = load_kafka(config)
    key = asyncio.run(write_control(loaded, kafka, kind, identity, record))
    if json:
        print_json({"key": key, "record": record})
    else:
        print(f"{'removed' if record is None else 'set'} {key}")


def _marks(story: Any) -> list[str]:
    marks = []
    if story.silenced_by:
        marks.append(story.silenced_by)
    if story.acknowledged:
        marks.append("acknowledged")
    if story.label is not None:
        marks.append("false alarm" if story.label.false_alarm else "real")
    return marks


def _time(text: str) -> float:
    from polarstream.times import parse_time

    try:
        return parse_time(text)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _me() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such user, as in some containers
        return ""
