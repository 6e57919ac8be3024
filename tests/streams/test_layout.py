"""Which topics a worker has, and how they follow their inputs."""

from __future__ import annotations

from streams.config import FieldConfig, KafkaConfig, RequestsConfig, StreamConfig, TopicsConfig
from streams.kafka import TopicSpec, ensure_topics
from streams.layout import changelog_topic, lay_out, partition_counts, plan

PLANT = StreamConfig(name="plant", topic="sensors.plant", partitions=4, fields={"t": FieldConfig()})
HOST = StreamConfig(name="host", topic="sensors.host", partitions=2, fields={"t": FieldConfig()})


def test_outputs_are_as_wide_as_the_widest_input_and_changelogs_as_their_own() -> None:
    layout = plan("app", [PLANT, HOST], TopicsConfig(), {})
    assert layout.inputs == {"sensors.plant": 4, "sensors.host": 2}
    assert layout.missing == {
        "predictions": 4,
        "alerts": 4,
        "analytics": 4,
        "dead-letter": 4,
        "app-plant-state-changelog": 4,
        "app-host-state-changelog": 2,
    }


def test_an_input_that_exists_counts_as_it_is() -> None:
    present = {"sensors.plant": 6, "predictions": 4, "app-plant-state-changelog": 4}
    layout = plan("app", [PLANT], TopicsConfig(), present)
    assert layout.inputs == {"sensors.plant": 6}
    assert layout.missing["predictions"] == layout.missing["app-plant-state-changelog"] == 6


def test_results_have_partitions_of_their_own_and_no_fewer_than_requests() -> None:
    requests = RequestsConfig(partitions=4, results_partitions=8)
    layout = plan("app", [requests], TopicsConfig(), {})
    assert layout.inputs == {"inference.requests": 4}
    assert layout.missing["inference.results"] == 8
    assert layout.missing["dead-letter"] == 4
    assert (
        plan("app", [requests], TopicsConfig(), {"inference.requests": 12}).missing["inference.results"] == 12
    )


async def test_topics_are_made_grown_and_then_left_alone(kafka: KafkaConfig, topic_prefix: str) -> None:
    stream = StreamConfig(name="p", topic=f"{topic_prefix}in", partitions=3, fields={"t": FieldConfig()})
    names = {key: topic_prefix + key for key in ("predictions", "alerts", "analytics", "dead_letter")}
    topics = TopicsConfig(**names)
    await ensure_topics(kafka, {names["predictions"]: TopicSpec(1)})
    layout = await lay_out(kafka, topic_prefix, [stream], topics)
    assert layout.inputs == {stream.topic: 3}
    counts = await partition_counts(kafka)
    wanted = [stream.topic, *names.values(), changelog_topic(topic_prefix, stream)]
    assert {name: counts[name] for name in wanted} == dict.fromkeys(wanted, 3)
    assert (await lay_out(kafka, topic_prefix, [stream], topics)).missing == {}
