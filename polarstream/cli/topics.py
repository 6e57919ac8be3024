"""`polarstream topics`: list, create, describe."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from polarstream.cli.options import ConfigOption, JsonOption, examples, load_kafka
from polarstream.cli.output import print_json, print_table
from streams.errors import UsageError

app = typer.Typer(help="Topics: list, create, describe with lag.", no_args_is_help=True)


@app.command("list", epilog=examples("polarstream topics list", "polarstream topics list --all --json"))
def list_(
    config: ConfigOption = None,
    json: JsonOption = False,
    all_: Annotated[bool, typer.Option("--all", help="Kafka's own topics and changelogs too.")] = False,
) -> None:
    """List the topics with their sizes."""
    from polarstream.topics import list_topics

    _, kafka = load_kafka(config)
    found = asyncio.run(list_topics(kafka, internal=all_))
    if json:
        print_json(found)
    else:
        rows = [(t.name, t.partitions, t.replication, t.messages) for t in found]
        print_table(("TOPIC", "PARTITIONS", "REPLICAS", "MESSAGES"), rows)


@app.command(
    epilog=examples(
        "polarstream topics create sensors.hall-2 --partitions 8",
        "polarstream topics create events --set retention.ms=86400000",
        "polarstream topics create --configured",
    )
)
def create(
    name: Annotated[str | None, typer.Argument(help="Name of the topic.", show_default=False)] = None,
    partitions: Annotated[int, typer.Option(min=1, max=10_000, help="Number of partitions.")] = 4,
    replication: Annotated[
        int | None, typer.Option(min=1, help="Copies; default: topics.replication_factor.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of Kafka's; repeatable."),
    ] = None,
    configured: Annotated[bool, typer.Option(help="Make all topics that the configuration names.")] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Make a topic. One that exists is left as it is, which is no error."""
    from polarstream.topics import create_configured, create_topic
    from streams.kafka import TopicSpec

    if (name is None) is not configured:
        raise UsageError("name one topic, or use --configured")
    loaded, kafka = load_kafka(config)
    if name is None:
        made = asyncio.run(create_configured(loaded, kafka))
    else:
        pairs = dict(_pair(text) for text in settings or ())
        spec = TopicSpec(partitions, replication or loaded.topics.replication_factor, pairs)
        made = [name] if asyncio.run(create_topic(kafka, name, spec)) else []
    if json:
        print_json({"created": made})
    else:
        print("\n".join(f"created {topic}" for topic in made) or "nothing to do: it exists")


@app.command(
    epilog=examples("polarstream topics describe predictions", "polarstream topics describe plant --json")
)
def describe(
    name: Annotated[str, typer.Argument(help="A topic, or the name of a stream.")],
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Show a topic's partitions, settings, and how far each consumer group is behind."""
    from polarstream.target import resolve_topic
    from polarstream.topics import describe_topic

    loaded, kafka = load_kafka(config)
    topic = asyncio.run(describe_topic(kafka, resolve_topic(loaded, name)))
    if json:
        print_json(topic)
        return
    print(f"{topic.name}: {len(topic.partitions)} partitions, {topic.replication} replicas")
    for setting, value in topic.configs.items():
        print(f"  {setting} = {value}")
    print()
    groups = [(f"LAG {g.group}", g) for g in topic.groups]
    columns = ("PARTITION", "LEADER", "FIRST", "END", "MESSAGES", *(title for title, _ in groups))
    print_table(
        columns,
        [
            (
                p.partition,
                p.leader,
                p.first,
                p.end,
                p.end - p.first,
                *(g.partitions[p.partition][1] for _, g in groups),
            )
            for p in topic.partitions
        ],
    )
    for group in topic.groups:
        print(f"{group.group} is {group.lag} behind")


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise UsageError(f"'{text}' is no setting: write --set retention.ms=86400000")
    return name, value
