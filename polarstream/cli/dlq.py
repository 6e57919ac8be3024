"""`polarstream dlq`: what was refused, why, and sending it again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from polarstream.cli.options import ConfigOption, JsonOption, examples, load_kafka
from polarstream.cli.output import print_json, print_json_line, print_table, progress_bar

if TYPE_CHECKING:
    from polarstream.dlq import DeadLetter

app = typer.Typer(help="Refused messages: list, show, send again.", no_args_is_help=True)

ReasonOption = Annotated[str | None, typer.Option("--reason", help="Only those refused for this reason.")]
TopicOption = Annotated[str | None, typer.Option("--topic", help="Only those that came from this topic.")]
FromOption = Annotated[
    str, typer.Option("--from", metavar="WHEN", help="earliest, a time (2026-01-31T12:00:00Z) or ago (-10m).")
]


@app.command(
    "list",
    epilog=examples("polarstream dlq list", "polarstream dlq list --reason out_of_bounds --from -1h --json"),
)
def list_(
    reason: ReasonOption = None,
    topic: TopicOption = None,
    start: FromOption = "earliest",
    limit: Annotated[int, typer.Option(min=1, help="Show the last so many.")] = 50,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """List refused messages, the newest last."""
    from polarstream.dlq import read_dead_letters
    from polarstream.reader import parse_start
    from polarstream.times import format_time

    loaded, kafka = load_kafka(config)
    letters = asyncio.run(
        read_dead_letters(loaded, kafka, start=parse_start(start), keep=_keep(reason, topic), limit=limit)
    )
    if json:
        for letter in letters:
            print_json_line(letter.as_dict())
        return
    if not letters:
        print("no refused messages")
        return
    rows = [
        (
            x.id,
            format_time(x.refused_at_ms / 1000),
            x.reason,
            f"{x.topic}/{x.partition}/{x.offset}",
            x.replayed,
            x.detail,
        )
        for x in letters
    ]
    print_table(("ID", "REFUSED", "REASON", "ORIGIN", "REPLAYED", "DETAIL"), rows)


@app.command(epilog=examples("polarstream dlq show 0/42", "polarstream dlq show 0/42 --json"))
def show(
    identity: Annotated[str, typer.Argument(metavar="ID", help="As dlq list shows it: partition/offset.")],
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Show one refused message whole."""
    from polarstream.dlq import find_dead_letter
    from polarstream.times import format_time

    loaded, kafka = load_kafka(config)
    letter = asyncio.run(find_dead_letter(loaded, kafka, identity))
    if json:
        print_json(letter.as_dict())
        return
    print(f"reason    {letter.reason}\ndetail    {letter.detail}")
    print(f"refused   {format_time(letter.refused_at_ms / 1000)}")
    print(f"origin    {letter.topic}, partition {letter.partition}, offset {letter.offset}")
    print(f"replayed  {'yes' if letter.replayed else 'no'}")
    print(f"key       {_shown(letter.key)}")
    for name, value in letter.headers:
        print(f"header    {name}: {_shown(value)}")
    print(f"value     {_shown(letter.value)}")


@app.command(
    epilog=examples(
        "polarstream dlq replay --reason out_of_bounds   (after the bounds were mended)",
        "polarstream dlq replay --topic sensors.plant --from -1d",
    )
)
def replay(
    reason: ReasonOption = None,
    topic: TopicOption = None,
    start: FromOption = "earliest",
    identity: Annotated[str | None, typer.Option("--id", metavar="ID", help="Only this one.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how many would be sent.")] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Send refused messages back to where they came from: the original bytes, each once, ever."""
    from polarstream.dlq import count_dead_letters, replay_dead_letters
    from polarstream.reader import parse_start

    loaded, kafka = load_kafka(config)
    keep = _keep(reason, topic, identity)
    if dry_run:
        counts = asyncio.run(count_dead_letters(loaded, kafka, start=parse_start(start), keep=keep))
        print_json(counts) if json else print(
            f"{counts['waiting']} would be sent, {counts['already']} were sent before"
        )
        return
    with progress_bar("replaying", show=not json) as move:
        report = asyncio.run(
            replay_dead_letters(
                loaded,
                kafka,
                start=parse_start(start),
                keep=keep,
                progress=lambda done: move(done, 0, f"{done} sent"),
            )
        )
    if json:
        print_json(report)
        return
    print(f"{report.replayed} sent again, {report.already} were sent before, {report.skipped} left alone")
    for name, count in sorted(report.by_topic.items()):
        print(f"  {count} to {name}")


def _keep(reason: str | None, topic: str | None, identity: str | None = None) -> Callable[[DeadLetter], bool]:
    def keep(letter: DeadLetter) -> bool:
        return (
            (reason is None or letter.reason == reason)
            and (topic is None or letter.topic == topic)
            and (identity is None or letter.id == identity)
        )

    return keep


def _shown(data: bytes | None) -> str:
    if data is None:
        return "(none)"
    try:
        return data.decode()
    except UnicodeDecodeError:
        return f"({len(data)} bytes) {data[:4096].hex(' ')}"
