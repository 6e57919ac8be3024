"""`publish`, `subscribe` and `replay`: messages in and out by hand."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from polarstream.cli.options import ConfigOption, JsonOption, examples, load_kafka
from polarstream.cli.output import print_json, print_json_line, progress_bar, size
from streams.errors import RetryLater, UsageError


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(
        epilog=examples(
            "polarstream publish plant < readings.jsonl",
            "polarstream publish sensors.hall-2 readings.csv --id-field sensor",
            "tail -f log.jsonl | polarstream publish plant",
        )
    )(publish)
    app.command(
        epilog=examples(
            "polarstream subscribe predictions --filter \"score > 4 and source ~ 'pump-*'\"",
            "polarstream subscribe alerts --from -1h --json",
            "polarstream subscribe plant --from earliest --limit 10 --timeout 5s",
        )
    )(subscribe)
    app.command(
        epilog=examples(
            "polarstream replay day.csv --to plant --speed 60",
            "polarstream replay day.csv --to plant --flat-out --rewrite-time",
            "polarstream replay pump.csv --to plant --time-column Zeit --sensor-id pump-7",
        )
    )(replay)


def publish(
    topic: Annotated[str, typer.Argument(help="A topic, or the name of a stream.")],
    file: Annotated[
        Path | None, typer.Argument(help="File to read; without it or with -: stdin.", show_default=False)
    ] = None,
    format_: Annotated[
        str | None, typer.Option("--format", help="jsonl, csv or raw (lines as they are); default: by name.")
    ] = None,
    id_field: Annotated[
        str | None, typer.Option(help="Field that becomes the key; default: the stream's id, or sensor_id.")
    ] = None,
    time_field: Annotated[
        str | None, typer.Option(help="CSV column with the time; default: the stream's, or ts.")
    ] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Publish JSON lines or CSV from a file or a pipe. Ends when all of it is acknowledged."""
    from polarstream.publish import PublishPlan, ensure_stream_topic, publish_file

    loaded, kafka = load_kafka(config)
    plan = PublishPlan.of(
        loaded, topic, None if file is None or str(file) == "-" else file, format_, id_field, time_field
    )
    with progress_bar(f"publishing to {plan.topic}", show=not json and plan.path is not None) as move:

        async def run() -> int:
            await ensure_stream_topic(loaded, kafka, topic)
            return await publish_file(
                kafka, plan, lambda done, total, sent: move(done, total, f"{sent} messages")
            )

        count = asyncio.run(run())
    if json:
        print_json({"topic": plan.topic, "published": count})
    else:
        print(f"published {count} messages to {plan.topic}")


def subscribe(
    topic: Annotated[str, typer.Argument(help="A topic, a stream, predictions, alerts or dead-letter.")],
    filter_: Annotated[
        str | None,
        typer.Option("--filter", "-f", help="Only these, e.g. \"score > 4 and source ~ 'pump-*'\"."),
    ] = None,
    start: Annotated[
        str, typer.Option("--from", metavar="WHEN", help="latest, earliest, a time or ago (-10m).")
    ] = "latest",
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="End after so many.")] = None,
    timeout: Annotated[
        str | None, typer.Option(metavar="DURATION", help="End after this long; with --limit unmet: exit 75.")
    ] = None,
    until_end: Annotated[bool, typer.Option("--until-end", help="End at what is there now.")] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Show what comes in on a topic. Reads beside all groups and commits nothing."""
    from polarstream.filters import parse_filter
    from polarstream.reader import Record, parse_start, tail
    from polarstream.target import resolve_topic
    from polarstream.times import format_time, parse_duration

    begin = parse_start(start)
    test = parse_filter(filter_) if filter_ else None
    timeout_s = parse_duration(timeout) if timeout else None
    loaded, kafka = load_kafka(config)

    def show(record: Record) -> None:
        if json:
            print_json_line(record.as_dict())
            return
        key = "" if record.key is None else f" {record.key.decode(errors='replace')}"
        value = "(none)" if record.value is None else record.value.decode(errors="backslashreplace")
        at = format_time(record.timestamp_ms / 1000)
        print(f"{at} {record.partition}/{record.offset}{key} {value}", flush=True)

    shown = asyncio.run(
        tail(
            kafka,
            resolve_topic(loaded, topic),
            show,
            start=begin,
            keep=test,
            limit=limit,
            timeout_s=timeout_s,
            until_end=until_end,
        )
    )
    if limit is not None and shown < limit and not until_end:
        raise RetryLater(f"{shown} of {limit} messages came within {timeout}")


def replay(
    file: Annotated[Path, typer.Argument(help="CSV with a time column (.csv or .csv.gz).")],
    to: Annotated[str, typer.Option("--to", help="A stream or a topic.")],
    speed: Annotated[float, typer.Option(help="Times faster than it was recorded.")] = 1.0,
    flat_out: Annotated[bool, typer.Option("--flat-out", help="As fast as it goes.")] = False,
    rewrite_time: Annotated[
        bool, typer.Option("--rewrite-time", help="Move all times so that it begins now.")
    ] = False,
    time_column: Annotated[
        str | None, typer.Option(help="Column of the time; default: ts, timestamp, time ...")
    ] = None,
    id_column: Annotated[
        str | None, typer.Option(help="Column of the sensor's id; default: the stream's.")
    ] = None,
    sensor_id: Annotated[
        str | None, typer.Option(help="Id of all rows, where no column has it; default: the file's name.")
    ] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Play a recorded CSV into a topic: at true speed, faster, or flat out."""
    from polarstream.publish import ensure_stream_topic
    from polarstream.replay import ReplayPlan, ReplayResult, run_replay
    from polarstream.target import find_stream, resolve_topic

    if not speed > 0:
        raise UsageError(f"--speed {speed:g} is not positive: use --flat-out for no waiting")
    loaded, kafka = load_kafka(config)
    stream = find_stream(loaded, to)
    plan = ReplayPlan(
        path=file,
        topic=resolve_topic(loaded, to),
        id_field=stream.id_field if stream else "sensor_id",
        time_field=(stream.time_field if stream else None) or "ts",
        time_column=time_column,
        id_column=id_column,
        sensor_id=sensor_id,
        speed=None if flat_out else speed,
        rewrite_time=rewrite_time,
    )
    with progress_bar(f"replaying to {plan.topic}", show=not json) as move:

        async def run() -> ReplayResult:
            await ensure_stream_topic(loaded, kafka, to)
            return await run_replay(
                kafka, plan, lambda done, total, sent: move(done, total, f"{sent} readings, {size(done)}")
            )

        result = asyncio.run(run())
    if json:
        print_json(result)
    else:
        print(
            f"replayed {result.readings} readings, {result.recorded_s:.1f} s recorded, "
            f"in {result.elapsed_s:.1f} s to {plan.topic}"
        )
