"""`polarstream bench`: measure this machine and this broker."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Annotated

import typer

from polarstream.cli.options import ConfigOption, JsonOption, examples, load_kafka
from polarstream.cli.output import Progress, print_json, progress_bar
from streams.errors import UsageError

app = typer.Typer(help="Measure this machine and this broker.", no_args_is_help=True)


DeliveryOption = Annotated[str, typer.Option("--delivery", help="at_least_once or exactly_once.")]
SensorsOption = Annotated[int, typer.Option(min=1, help="Sensors they come from.")]
PartitionsOption = Annotated[int, typer.Option(min=1, max=1000, help="Partitions of the input topic.")]


@app.command(
    epilog=examples(
        "polarstream bench throughput",
        "polarstream bench throughput --readings 2000000 --delivery exactly_once",
    )
)
def throughput(
    config: ConfigOption = None,
    readings: Annotated[int, typer.Option(min=1000, help="Readings to publish.")] = 500_000,
    sensors: SensorsOption = 1000,
    partitions: PartitionsOption = 4,
    mode: DeliveryOption = "at_least_once",
    as_json: JsonOption = False,
) -> None:
    """Publish readings of three fields, then time one worker that scores them."""
    _check_mode(mode)
    _, kafka = load_kafka(config)
    from polarstream.self_measure import Load, measure_throughput

    load = Load(sensors, partitions, mode)
    with progress_bar("starting", show=not as_json) as move:
        found = asyncio.run(measure_throughput(kafka, load, readings, _shares(move)))
    if as_json:
        print_json(dataclasses.asdict(found))
        return
    print(f"throughput   {found.per_s:.0f} readings/s by one worker, {mode}")
    print(f"start        {found.startup_s:.1f} s from the worker's start to its first prediction")
    print(f"processor    {found.cpu_us_per_reading:.2f} µs a reading, start included")
    print(f"memory       {found.peak_mb:.0f} MB at its peak")


@app.command(
    epilog=examples("polarstream bench latency", "polarstream bench latency --rate 500 --seconds 30 --json")
)
def latency(
    config: ConfigOption = None,
    rate: Annotated[float, typer.Option(min=1, help="Readings a second.")] = 2000,
    seconds: Annotated[float, typer.Option(min=1, help="How long it is measured.")] = 10,
    sensors: SensorsOption = 1000,
    partitions: PartitionsOption = 4,
    mode: DeliveryOption = "at_least_once",
    as_json: JsonOption = False,
) -> None:
    """Publish at a steady rate and time every reading until its prediction is read."""
    _check_mode(mode)
    _, kafka = load_kafka(config)
    from polarstream.self_measure import Load, measure_latency

    load = Load(sensors, partitions, mode)
    with progress_bar("starting", show=not as_json) as move:
        found = asyncio.run(measure_latency(kafka, load, rate, seconds, _shares(move)))
    if as_json:
        print_json(dataclasses.asdict(found))
        return
    print(f"readings     {found.readings} at {rate:g}/s, from publishing to the prediction read, {mode}")
    print(
        f"latency      p50 {found.p50_ms:.1f} ms, p95 {found.p95_ms:.1f} ms, p99 {found.p99_ms:.1f} ms, "
        f"longest {found.max_ms:.1f} ms"
    )
    print(f"processor    {found.cpu_share:.0%} of one, by the worker")


@app.command(
    epilog=examples(
        "polarstream bench delivery",
        "polarstream bench delivery --kills 50 --readings 500000 --delivery exactly_once",
    ),
)
def delivery(
    config: ConfigOption = None,
    readings: Annotated[int, typer.Option(min=100, help="Readings to publish.")] = 50_000,
    rate: Annotated[float, typer.Option(min=1, help="Readings a second.")] = 5_000,
    sensors: SensorsOption = 200,
    kills: Annotated[int, typer.Option(min=0, help="How often a worker is killed.")] = 5,
    workers: Annotated[int, typer.Option(min=1, max=16, help="Workers side by side.")] = 1,
    mode: DeliveryOption = "at_least_once",
    seed: Annotated[int, typer.Option(help="Of the moments of the kills.")] = 1,
    as_json: JsonOption = False,
) -> int:
    """Kill workers under load, then count lost, duplicated and wrong predictions.

    Exit code 1 if the promise of the delivery was broken.
    """
    _check_mode(mode)
    from polarstream.delivery_proof import ProofOptions, prove

    options = ProofOptions(
        readings=readings,
        rate_hz=rate,
        sensors=sensors,
        kills=kills,
        workers=workers,
        delivery=mode,
        seed=seed,
    )
    _, kafka = load_kafka(config)
    with progress_bar("starting", show=not as_json) as move:
        report = asyncio.run(prove(kafka, options, _shares(move)))
    good = report.ok(mode)
    if as_json:
        print_json(dataclasses.asdict(report) | {"ok": good, "delivery": mode})
    else:
        print(f"published    {report.published}")
        print(f"kills        {report.kills}")
        print(f"lost         {report.lost}")
        print(f"duplicated   {report.duplicated}" + ("" if mode == "exactly_once" else " (with the same id)"))
        print(f"wrong scores {report.wrong}")
        print(f"out of order {report.out_of_order}")
        if report.recovery_s:
            worst = max(report.recovery_s)
            print(f"recovery     {worst:.1f} s at the most, from a worker's start to its first prediction")
        print("the promise was kept" if good else f"the promise of {mode} was BROKEN")
    return 0 if good else 1


def _check_mode(mode: str) -> None:
    if mode not in ("at_least_once", "exactly_once"):
        raise UsageError(f"--delivery {mode} is not known: use at_least_once or exactly_once")


def _shares(move: Progress) -> Callable[[str, float], None]:
    """Progress as (what, share done) on a bar."""
    return lambda what, share: move(share, 1.0, what)
