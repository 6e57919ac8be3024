"""`polarstream backtest`: recorded readings through the live path."""

from __future__ import annotations

import asyncio
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polarstream.cli.options import ConfigOption, JsonOption, examples, load_config
from polarstream.cli.output import print_json, print_table, progress_bar
from streams.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from polarstream.backtest import Scored
    from polarstream.backtest_topic import TopicResult

#: Alerts that are printed; `--json` has all.
_SHOWN = 20
#: Sensors of a topic that get a picture, those with the highest scores.
_PLOTTED = 20


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(
        epilog=examples(
            "polarstream backtest pump.csv --detector ewz --plot pump.png",
            "polarstream backtest recordings/ --detector ewz --out scores/",
            "polarstream backtest loop.csv --delimiter ';' --group --train 400 --exclude anomaly",
            "polarstream backtest plant --from -24h --detector-config warmup=200",
        )
    )(backtest)


def backtest(
    source: Annotated[str, typer.Argument(help="CSV file, folder of them, or a stream or its topic.")],
    detector: Annotated[
        str | None, typer.Option(help="Name of the detector; default: auto, for a topic its stream's.")
    ] = None,
    detector_config: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A parameter of the detector; repeatable.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write timestamp,score,is_anomaly of each row; a folder for a folder.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Picture: .png, .html, or no ending for both; a folder for a folder.")
    ] = None,
    group: Annotated[
        bool, typer.Option("--group", help="All columns are one sensor's: score them together.")
    ] = False,
    train: Annotated[int, typer.Option(min=0, help="So many rows at the start are known to be clean.")] = 0,
    delimiter: Annotated[
        str | None, typer.Option(help="Between columns; default: by the first line.")
    ] = None,
    time_column: Annotated[
        str | None, typer.Option(help="Default: timestamp, ts, time, datetime, date.")
    ] = None,
    columns: Annotated[
        list[str] | None, typer.Option(help="Value columns, a,b,c or repeated; default: all others.")
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(help="Columns that are no values; default: anomaly, changepoint, is_anomaly, label."),
    ] = None,
    start: Annotated[
        str, typer.Option("--from", metavar="WHEN", help="Topic: earliest, a time or ago (-24h).")
    ] = "earliest",
    until: Annotated[str | None, typer.Option(metavar="WHEN", help="Topic: a time or ago.")] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Run recorded readings through the live detector: scores, alerts, pictures."""
    from polarstream.backtest import detector_table, parse_settings
    from polarstream.recording import CsvLayout

    settings = parse_settings(detector_config or [])
    path = Path(source)
    began = time.perf_counter()
    if path.exists():
        layout = CsvLayout(
            delimiter=_delimiter(delimiter),
            time_column=time_column,
            columns=_names(columns),
            exclude=None if exclude is None else _names(exclude),
        )
        table = detector_table(detector or "auto", settings, train=train, group=group)
        results, unusable = _run_files(path, layout, table, train, out, plot, show=not json)
        extra: dict[str, Any] = {"unusable": unusable}
    else:
        found = _run_topic(source, detector, settings, train, group, start, until, config, out, plot, json)
        table, results, unusable = found[0], found[1].sensors, []
        extra = {"refused": found[1].refused}
    elapsed = time.perf_counter() - began
    if group and results:
        _warn_if_alone(table, results[0].recording.columns)
    if json:
        print_json(
            {
                "detector": table,
                "elapsed_s": elapsed,
                "rows": sum(len(scored.ratio) for scored in results),
                "results": [scored.summary() for scored in results],
                **extra,
            }
        )
    else:
        _print_results(results, table, elapsed, extra)
    if unusable and not results:
        raise typer.Exit(65)


def _run_files(
    path: Path,
    layout: Any,
    table: dict[str, Any],
    train: int,
    out: Path | None,
    plot: Path | None,
    *,
    show: bool,
) -> tuple[list[Scored], list[str]]:
    from connectors.errors import BadInput
    from polarstream.backtest import Backtest, write_scores
    from polarstream.recording import read_csv

    folder = path.is_dir()
    files = sorted(f for f in path.rglob("*") if f.name.endswith((".csv", ".csv.gz"))) if folder else [path]
    if not files:
        raise UsageError(f"no .csv or .csv.gz files in '{path}'")
    run = Backtest(table, train=train)
    results: list[Scored] = []
    unusable: list[str] = []
    with progress_bar("backtest", show=show) as move:
        for done, file in enumerate(files):
            name = file.relative_to(path).as_posix() if folder else file.name
            move(done, len(files), name)
            try:
                recording = read_csv(file, layout, name.removesuffix(".gz").removesuffix(".csv"))
            except BadInput as error:
                if not folder:
                    raise
                unusable.append(str(error))
                continue
            total = max(len(recording.rows), 1)
            scored = run.run(recording, lambda rows: move(done + rows / total, len(files), name))  # noqa: B023
            results.append(scored)
            if out is not None:
                write_scores(out / name.removesuffix(".gz") if folder else out, scored)
            if plot is not None:
                _plot(plot / recording.name if folder else plot, scored)
    return results, unusable


def _run_topic(
    source: str,
    detector: str | None,
    settings: dict[str, Any],
    train: int,
    group: bool,
    start: str,
    until: str | None,
    config: Path | None,
    out: Path | None,
    plot: Path | None,
    json: bool,
) -> tuple[dict[str, Any], TopicResult]:
    import msgspec

    from anomaly.registry import DEFAULT
    from polarstream.backtest import detector_table, write_sensor_scores
    from polarstream.backtest_topic import backtest_topic
    from polarstream.reader import parse_start
    from polarstream.target import find_stream, resolve_kafka

    loaded = load_config(config)
    stream = find_stream(loaded, source)
    if stream is None:
        raise UsageError(
            f"'{source}' is no file, no folder and no stream of the configuration: "
            f"its streams are {', '.join(s.name for s in loaded.streams)}"
        )
    own = dict(stream.detector)
    name = detector or str(own.get("type", DEFAULT))
    kept = {} if name != own.get("type", DEFAULT) else {k: v for k, v in own.items() if k != "type"}
    table = detector_table(name, {**kept, **settings}, train=train, group=group)
    end = None if until is None else parse_start(until)
    if end is not None and end.at != "time":
        raise UsageError(f"--until '{until}' is no time: write 2026-01-31T12:00:00Z or -10m")
    with progress_bar(f"backtest of {stream.topic}", show=not json) as move:
        found = asyncio.run(
            backtest_topic(
                resolve_kafka(loaded),
                msgspec.structs.replace(stream, detector=table),
                start=parse_start(start),
                until_s=None if end is None else end.time_s,
                train=train,
                progress=lambda count: move(0, 0, f"{count} messages"),
            )
        )
    if out is not None:
        write_sensor_scores(out, found.sensors)
    if plot is not None:
        from urllib.parse import quote

        highest = sorted(found.sensors, key=lambda scored: -float(scored.ratio.max(initial=0.0)))
        for scored in highest[:_PLOTTED]:
            _plot(plot / quote(scored.recording.name, safe=" "), scored)
    return table, found


def _plot(path: Path, scored: Scored) -> None:
    from polarstream.backtest_plot import write_plots

    write_plots(path, scored)


def _names(given: Sequence[str] | None) -> tuple[str, ...]:
    return tuple(name.strip() for text in given or () for name in text.split(",") if name.strip())


def _delimiter(text: str | None) -> str | None:
    found = {"\\t": "\t", "tab": "\t"}.get(text or "", text)
    if found is not None and len(found) != 1:
        raise UsageError(f"--delimiter '{text}' is not one character: write ';', ',' or tab")
    return found


def _warn_if_alone(table: dict[str, Any], columns: tuple[str, ...]) -> None:
    from anomaly.registry import build_detector

    if len(columns) > 1 and len(build_detector(table, columns).thresholds) > 1:
        print(
            f"note: detector '{table['type']}' scores each column alone, and the worst counts; "
            "--group wants one that scores them together",
            file=sys.stderr,
        )


def _print_results(
    results: Sequence[Scored], table: dict[str, Any], elapsed: float, extra: dict[str, Any]
) -> None:
    summaries = [scored.summary() for scored in results]
    head = ["recording", "rows", "bad", "anomalies", "alerts", "highest score"]
    keys = ("name", "rows", "bad_rows", "anomalies", "alerts")
    print_table(head, [[*(s[key] for key in keys), f"{s['highest_score']:.3f}"] for s in summaries])
    for scored in results:
        for row in scored.recording.bad[:3]:
            print(f"bad row: {scored.recording.name}, line {row.line}: {row.why}")
    for reason in extra.get("unusable", ()):
        print(f"left out: {reason}")
    for reason, count in extra.get("refused", {}).items():
        print(f"refused: {count} messages, {reason}")
    if len(results) == 1:
        for column, picked in results[0].picked.items():
            print(f"{column}: {picked}")
    opened = [alert for scored in results for alert in scored.alerts if alert.state == "firing"]
    if opened:
        print()

    for alert in opened[:_SHOWN]:
        at = datetime.fromtimestamp(alert.ts, UTC).strftime("%Y-%m-%d %H:%M:%S")
        print(f"{at} {alert.severity} {alert.source}: {alert.explanation}")
    if len(opened) > _SHOWN:
        print(f"... and {len(opened) - _SHOWN} more changes of alerts: --json has all")
    rows = sum(s["rows"] for s in summaries)
    print(
        f"\n{rows:,} rows with {table['type']} in {elapsed:.1f} s, {rows / max(elapsed, 1e-9):,.0f} a second"
    )
